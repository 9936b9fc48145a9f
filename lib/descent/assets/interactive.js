// Draws each interactive figure over its static picture, which stays where WebGL or the script fails. What Plotly does by
// pointer alone is there for the keyboard too: arrows turn a scene, and buttons and sliders are those of the page.
document.addEventListener("DOMContentLoaded", () => {
  const KEYS = "Arrow keys turn the figure, + and − move closer and away, 0 puts it back.";
  const TURNS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const ZOOMS = { "+": 1 / 1.1, "=": 1 / 1.1, "-": 1.1, "−": 1.1 };
  const ANGLE = Math.PI / 24;
  const PHONE = 500; // pixels of a figure's width, below which it is laid out for a phone

  const scenes = (layout) => Object.keys(layout).filter((name) => /^scene\d*$/.test(name));
  const element = (name, properties) => Object.assign(document.createElement(name), properties);

  // a camera's eye after a turn about the vertical and one up or down, as parts of ANGLE
  function turned({ x, y, z }, [around, up], zoom) {
    const far = Math.hypot(x, y, z);
    const angle = Math.atan2(y, x) + around * ANGLE;
    const height = Math.min(Math.max(Math.asin(z / far) + up * ANGLE, -1.5), 1.5);
    const across = far * zoom * Math.cos(height);
    return { x: across * Math.cos(angle), y: across * Math.sin(angle), z: far * zoom * Math.sin(height) };
  }

  // the eye steps back until a narrow scene is whole; on a phone scenes stand below one another, the legend under them
  function fitted(layout, width, height) {
    const names = scenes(layout), narrow = width < PHONE, below = narrow && names.length > 1;
    const fit = { ...layout }, tall = below ? names.length * 0.95 * width : height;
    names.forEach((name, row) => {
      const top = 1 - row / names.length, { x = [0, 1], y = [0, 1] } = layout[name].domain ?? {};
      const domain = below ? { x: [0, 1], y: [top - 0.9 / names.length, top - 0.07 / names.length] } : { x, y };
      const shape = (tall * (domain.y[1] - domain.y[0])) / (width * (domain.x[1] - domain.x[0]));
      const back = Math.min(Math.max(shape, 1.2), 2.5), camera = layout[name].camera ?? {}; // room for the axes' titles
      const { x: right, y: away, z: up } = camera.eye ?? { x: 1.25, y: 1.25, z: 1.25 };
      const eye = { x: back * right, y: back * away, z: back * up };
      fit[name] = { ...layout[name], domain, camera: { ...camera, eye } };
      if (narrow) for (const axis of ["xaxis", "yaxis", "zaxis"]) fit[name][axis] = { nticks: 4, ...layout[name][axis] };
    });
    if (below) {
      fit.height = tall;
      fit.annotations = layout.annotations?.map((text, row) => ({ ...text, x: 0.5, y: 1 - row / names.length }));
    }
    if (narrow) fit.legend = { ...layout.legend, orientation: "h", x: 0, xanchor: "left", y: 0, yanchor: "top" };
    return [fit, tall];
  }

  // beside the scenes of a phone a colour bar would take half the width: it lies under them
  function lying(trace) {
    const bar = trace.marker?.colorbar;
    if (!bar) return trace;
    const place = { orientation: "h", x: 0.5, xanchor: "center", y: 0, yanchor: "top", len: 0.9 };
    return { ...trace, marker: { ...trace.marker, colorbar: { ...bar, ...place, title: { ...bar.title, side: "top" } } } };
  }

  function listen(canvas, first) {
    canvas.addEventListener("keydown", (event) => {
      const turn = TURNS[event.key], zoom = ZOOMS[event.key];
      if ((!turn && !zoom && event.key !== "0") || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const changes = {};
      for (const name of scenes(canvas.layout)) {
        const { eye } = canvas.layout[name].camera;
        const next = { up: { x: 0, y: 0, z: 1 }, eye: turned(eye, turn ?? [0, 0], zoom ?? 1) };
        changes[name + ".camera"] = event.key === "0" ? first[name] : next;
      }
      Plotly.relayout(canvas, changes);
    });
  }

  // an animation that another one interrupts ends by a rejected promise
  const perform = (canvas, method, args) => Plotly[method](canvas, ...structuredClone(args)).catch(() => {});

  // the figure's own buttons and sliders as elements of the page
  function controls(canvas, menus, sliders) {
    const row = element("div", { className: "interactive-controls" });
    for (const { label, method, args } of menus.flatMap((menu) => menu.buttons)) {
      const button = element("button", { type: "button", textContent: label });
      button.addEventListener("click", () => perform(canvas, method, args));
      row.append(button);
    }
    for (const { steps, currentvalue } of sliders) {
      const prefix = currentvalue?.prefix ?? "";
      const range = element("input", { type: "range", min: 0, max: steps.length - 1, value: 0 });
      const shown = element("output", { textContent: prefix + steps[0].label });
      range.ariaLabel = prefix.trim() || "frame";
      const say = (at) => { shown.textContent = range.ariaValueText = prefix + steps[at].label; };
      range.addEventListener("input", () => {
        const { method, args } = steps[range.value];
        perform(canvas, method, args);
        say(range.value);
      });
      canvas.on("plotly_animatingframe", ({ name }) => {
        const at = steps.findIndex((step) => step.label === name);
        if (at >= 0) { range.value = at; say(at); }
      });
      row.append(range, shown);
    }
    if (row.children.length) canvas.after(row);
  }

  // a canvas of no height yet: the keyboard reaches every figure, and so brings it near enough to be drawn
  function prepared(figure) {
    const canvas = element("div", { className: "interactive-canvas", tabIndex: 0, role: "application" });
    canvas.ariaLabel = `${figure.ariaLabel ?? "figure"} ${KEYS}`;
    figure.append(canvas);
  }

  function draw(figure) {
    const picture = figure.querySelector("img"), canvas = figure.querySelector(".interactive-canvas");
    const { data, layout, config, frames } = window.figures[figure.dataset.figure];
    const { updatemenus = [], sliders = [], ...own } = layout;
    if (updatemenus.length || sliders.length) own.margin = { ...own.margin, b: 10 };
    const [drawn, height] = fitted(own, figure.clientWidth, Number(figure.dataset.height));
    const first = Object.fromEntries(scenes(drawn).map((name) => [name, structuredClone(drawn[name].camera)]));
    canvas.style.height = height + "px";
    const keepPicture = () => { if (picture) canvas.remove(); };
    const traces = figure.clientWidth < PHONE ? data.map(lying) : data;
    Plotly.newPlot(canvas, { data: traces, layout: drawn, config, frames }).then(() => {
      if (canvas.querySelector(".no-webgl")) return keepPicture();
      if (picture) picture.hidden = true;
      controls(canvas, updatemenus, sliders);
      figure.append(element("p", { className: "interactive-keys", textContent: KEYS, ariaHidden: true }));
      listen(canvas, first);
    }, keepPicture);
  }

  // a scene costs seconds where there is no graphics card: each is drawn when it is less than a screen away
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "100% 0px" });

  for (const figure of document.querySelectorAll("div.interactive")) {
    prepared(figure);
    near.observe(figure);
  }
});
