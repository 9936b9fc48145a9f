// Draws each interactive figure over its static picture, which stays where WebGL or the script fails. What Plotly does by
// pointer alone is there for the keyboard too: arrows turn a scene, and buttons are those of the page.
document.addEventListener("DOMContentLoaded", () => {
  const KEYS = "Arrow keys turn the figure, + and − move closer and away, 0 puts it back.";
  const TURNS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const ZOOMS = { "+": 1 / 1.1, "=": 1 / 1.1, "-": 1.1, "−": 1.1 };
  const ANGLE = Math.PI / 24;
  const PHONE = 500; // pixels of a figure's width, below which it is laid out for a phone
  const SCENE = 300; // pixels of a scene's width, below which its axes are hard to read: fewer stand beside one another
  const AXES = ["xaxis", "yaxis", "zaxis"];
  const LIFT = 0.12; // how far a scene stands above the middle: titles of axes are below it

  const scenes = (layout) => Object.keys(layout).filter((name) => /^scene\d*$/.test(name));
  const element = (name, properties) => Object.assign(document.createElement(name), properties);

  const point = (value) => Object.fromEntries(["x", "y", "z"].map((axis) => [axis, value(axis)]));
  const away = ({ eye, center }) => Math.hypot(eye.x - center.x, eye.y - center.y, eye.z - center.z);

  // a camera's eye after a turn about the vertical through its centre and one up or down, as parts of ANGLE
  function turned({ eye, center }, [around, up], zoom) {
    const { x, y, z } = point((axis) => eye[axis] - center[axis]), far = Math.hypot(x, y, z);
    const angle = Math.atan2(y, x) + around * ANGLE;
    const height = Math.min(Math.max(Math.asin(z / far) + up * ANGLE, -1.5), 1.5);
    const across = far * zoom * Math.cos(height);
    const next = { x: across * Math.cos(angle), y: across * Math.sin(angle), z: far * zoom * Math.sin(height) };
    return point((axis) => next[axis] + center[axis]);
  }

  // a long title would end outside its scene: the unit stands below it; in a small scene ticks are fewer
  function titled(axis, width) {
    const text = axis?.title?.text ?? "";
    const broken = text.length > 20 ? text.replace(" (", "<br>(").replace(", ", ",<br>") : text;
    return { ...axis, title: { text: broken, font: { size: 12 } }, ...(width < PHONE && { nticks: 4, tickfont: { size: 11 } }) };
  }

  // the distance from which a scene of this size is whole, with room on every side for the titles of its axes
  function enough(width, height, room) {
    const least = Math.min(width, height);
    return (2 * height) / Math.max(least - 2 * room, least / 4);
  }

  // a camera as far away as that, and a little below the scene, since titles stand below and not above it
  function placed({ eye = { x: 1, y: 1, z: 1 }, up = { x: 0, y: 0, z: 1 } } = {}, far) {
    const scale = far / Math.hypot(eye.x, eye.y, eye.z), center = point((axis) => -LIFT * up[axis]);
    return { eye: point((axis) => scale * eye[axis] + center[axis]), center, up };
  }

  // where scenes stand that have too little width as they are: fewer in a row, the last row in the middle
  function rearranged(count, columns) {
    const rows = Math.ceil(count / columns);
    return Array.from({ length: count }, (_, index) => {
      const row = Math.floor(index / columns), top = 1 - row / rows, inRow = Math.min(columns, count - row * columns);
      const left = ((columns - inRow) / 2 + (index % columns)) / columns;
      return { x: [left, left + 1 / columns], y: [top - 0.9 / rows, top - 0.07 / rows], top };
    });
  }

  // each scene has the width that it needs, on a phone all of it; a row of small scenes is no higher than they need
  function fitted(layout, width, height) {
    const names = scenes(layout), narrow = width < PHONE;
    const domains = names.map((name) => ({ x: [0, 1], y: [0, 1], ...layout[name].domain }));
    const part = ({ x }) => width * (x[1] - x[0]);
    const room = Math.max(1, Math.floor(width / SCENE)), beside = new Set(domains.map(({ x }) => x[0])).size;
    const moved = beside > room ? rearranged(names.length, room) : undefined;
    const rows = Math.ceil(names.length / room), across = Math.min(...domains.map(part));
    const fit = { ...layout }, tall = moved ? (rows * 1.15 * width) / room : Math.min(height, 1.15 * across + 90);
    const margin = { t: 0, b: 0, ...layout.margin };
    names.forEach((name, index) => {
      const { x, y } = (moved ?? domains)[index], domain = { x, y };
      const size = [part(domain), (tall - margin.t - margin.b) * (y[1] - y[0])];
      const axes = Object.fromEntries(AXES.map((axis) => [axis, titled(layout[name][axis], size[0])]));
      const titles = AXES.some((axis) => axes[axis].title.text);
      const lines = Math.max(...AXES.map((axis) => axes[axis].title.text.split("<br>").length));
      const camera = placed(layout[name].camera, enough(...size, titles ? 40 + 14 * lines : 0));
      fit[name] = { ...layout[name], ...axes, domain, camera };
    });
    fit.height = tall;
    if (moved) fit.annotations = layout.annotations?.map((text, index) => {
      const { x, top } = moved[index] ?? {}; // the scenes' titles come first
      return x ? { ...text, x: (x[0] + x[1]) / 2, y: top } : text;
    });
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
        const { camera } = canvas.layout[name];
        const next = { ...camera, up: { x: 0, y: 0, z: 1 }, eye: turned(camera, turn ?? [0, 0], zoom ?? 1) };
        changes[name + ".camera"] = event.key === "0" ? first[name].camera : next;
        changes[name + ".zaxis.visible"] = first[name].vertical;
      }
      Plotly.relayout(canvas, changes);
    });
  }

  // a change that another one interrupts ends by a rejected promise
  const perform = (canvas, method, args) => Plotly[method](canvas, ...structuredClone(args)).catch(() => {});

  // a button's own cameras, as far away as the first ones; from straight above the vertical axis is a heap of letters
  const views = (changes, first) => Object.fromEntries(Object.entries(changes ?? {}).flatMap(([key, value]) => {
    const name = key.replace(/\.camera$/, "");
    if (!first[name]) return [[key, value]];
    const above = Math.hypot(value.eye.x, value.eye.y) < 0.05 * value.eye.z;
    const { camera, vertical } = first[name];
    return [[key, placed(value, (above ? 0.75 : 1) * away(camera))], [name + ".zaxis.visible", vertical && !above]];
  }));

  // the figure's own buttons as elements of the page
  function controls(canvas, menus, first) {
    const row = element("div", { className: "interactive-controls" });
    for (const { label, method, args: given } of menus.flatMap((menu) => menu.buttons)) {
      const args = method === "relayout" ? [views(given[0], first)] : given;
      const button = element("button", { type: "button", textContent: label });
      button.addEventListener("click", () => perform(canvas, method, args));
      row.append(button);
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
    const { updatemenus = [], ...own } = layout;
    if (updatemenus.length) own.margin = { ...own.margin, b: 10 };
    const [drawn, height] = fitted(own, figure.clientWidth, Number(figure.dataset.height));
    const first = Object.fromEntries(scenes(drawn).map((name) => {
      const { camera, zaxis } = drawn[name];
      return [name, structuredClone({ camera, vertical: zaxis.visible ?? true })];
    }));
    canvas.style.height = height + "px";
    const keepPicture = () => { if (picture) canvas.remove(); };
    const traces = figure.clientWidth < PHONE ? data.map(lying) : data;
    Plotly.newPlot(canvas, { data: traces, layout: drawn, config, frames }).then(() => {
      if (canvas.querySelector(".no-webgl")) return keepPicture();
      if (picture) picture.hidden = true;
      controls(canvas, updatemenus, first);
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
