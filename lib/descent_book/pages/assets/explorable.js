// Computes and draws each figure that a reader moves, from the data in its cell's output. The still picture stays where
// this or plotly.js fails. Every control is the page's own, so that keyboard, touch and screen readers have it, too.
document.addEventListener("DOMContentLoaded", () => {
  const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#8C8C8C", "#CC79A7"];
  const LEAST = -2; // of the threshold's logarithm

  function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  // the colour of text: the page's own, since that of a place fades from one mode into the other
  const ink = (place) => getComputedStyle(place).getPropertyValue("--pst-color-text-base").trim() || getComputedStyle(place).color;

  // the layout of a plot of this height, whose lines and text have this colour
  function layoutIn(colour) {
    const axis = { fixedrange: true, color: colour, gridcolor: "rgba(128, 128, 128, 0.25)", zeroline: false };
    return (height, x, y, more = {}) => ({
      height, margin: { l: 60, r: 10, t: 10, b: 40 }, showlegend: false, dragmode: false, font: { size: 13, color: colour },
      paper_bgcolor: "rgba(0, 0, 0, 0)", plot_bgcolor: "rgba(0, 0, 0, 0)", xaxis: { ...axis, ...x }, yaxis: { ...axis, ...y }, ...more,
    });
  }

  // a handle stands on a plot where this point of its axes is drawn
  function stand(handle, map, [x, y]) {
    const { xaxis, yaxis } = map._fullLayout;
    handle.style.left = `${xaxis._offset + xaxis.d2p(x)}px`;
    handle.style.top = `${yaxis._offset + yaxis.d2p(y)}px`;
  }

  // mouse, finger and arrow keys move a handle on a plot: where() is its place, by the steps of a key without and with Shift
  function movable(handle, map, where, by, move) {
    handle.addEventListener("pointerdown", (event) => handle.setPointerCapture(event.pointerId));
    handle.addEventListener("pointermove", (event) => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const { xaxis, yaxis } = map._fullLayout, box = map.getBoundingClientRect();
      move(xaxis.p2d(event.clientX - box.left - xaxis._offset), yaxis.p2d(event.clientY - box.top - yaxis._offset));
    });
    handle.addEventListener("keydown", (event) => {
      const keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
      const [dx, dy] = keys[event.key] ?? [0, 0], step = by[event.shiftKey ? 1 : 0], [x, y] = where();
      if (!dx && !dy) return;
      event.preventDefault();
      move(x + step * dx, y + step * dy);
    });
  }

  // how many of the values are at least the threshold
  const above = (values, threshold) => values.filter((value) => value >= threshold).length;

  function layout(place, threshold, length) {
    const colour = ink(place);
    const axis = { type: "log", fixedrange: true, color: colour, gridcolor: "rgba(128, 128, 128, 0.25)" };
    return {
      height: 380, margin: { l: 55, r: 10, t: 10, b: 45 }, showlegend: false, dragmode: false, font: { size: 14, color: colour },
      paper_bgcolor: "rgba(0, 0, 0, 0)", plot_bgcolor: "rgba(0, 0, 0, 0)",
      xaxis: { ...axis, title: { text: "index i" }, range: [0, Math.log10(length)], dtick: 1 },
      yaxis: { ...axis, title: { text: "σᵢ / σ₁" }, range: [LEAST, 0.05], dtick: 1 },
      shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: threshold, y1: threshold, line: { color: colour, width: 2, dash: "dot" } }],
    };
  }

  // singular values over the first, and a threshold; data.choices has for each choice its name and its curves, each a name
  // and values: lists, as a notebook sorts the keys of what it keeps
  function threshold(place, data) {
    const canvas = element("div", { className: "explorable-canvas" });
    const choice = element("select", {}, ...data.choices.map(([name]) => element("option", { value: name }, name)));
    choice.value = data.choice;
    const slider = element("input", { type: "range", min: LEAST, max: 0, step: 0.01, value: Math.log10(data.threshold) });
    const said = element("output"), rows = element("tbody");
    const controls = element("div", { className: "explorable-controls" },
      element("label", {}, "Trained on", choice), element("label", {}, "Threshold", slider, said));
    place.append(canvas, controls, element("table", {}, rows));

    function update() {
      const fraction = Number((10 ** slider.value).toPrecision(3)), curves = new Map(data.choices).get(choice.value);
      const traces = curves.map(([name, y], number) => ({
        y, x: y.map((_, index) => index + 1), name, mode: "lines", hovertemplate: "%{x}: %{y}",
        line: { color: COLOURS[number], width: number ? 1.5 : 3 },
      }));
      said.value = `${fraction}`;
      slider.setAttribute("aria-valuetext", `${fraction} of the largest: ${curves.map(([name, y]) => `${name} ${above(y, fraction)}`).join(", ")}`);
      rows.replaceChildren(...curves.map(([name, y], number) => element("tr", {},
        element("td", {}, element("span", { className: "explorable-mark", style: `background: ${COLOURS[number]}` }), name),
        element("td", {}, `${above(y, fraction)} of ${y.length}`))));
      const longest = Math.max(...curves.map(([, y]) => y.length));
      return Plotly.react(canvas, traces, layout(place, fraction, longest), { responsive: true, displayModeBar: false });
    }

    slider.addEventListener("input", update);
    choice.addEventListener("change", update);
    return update().then(() => update);
  }

  // ---- a saddle to play with: two coordinates, the steps of PyTorch's optimisers, and what theory predicts ----
  const WINDOW = 1.3, TILT = Math.PI / 6; // of the map, and of the quadratic saddle's axes
  const norm = ([x, y]) => Math.hypot(x, y);

  function surfaceOf({ surface, condition }) {
    if (surface === "monkey") {
      return {
        value: ([x, y]) => x ** 3 - 3 * x * y * y, gradient: ([x, y]) => [3 * x * x - 3 * y * y, -6 * x * y],
        hessian: ([x, y]) => [6 * x, -6 * y, -6 * x], goal: -1,
      };
    }
    const [h, k, turn] = surface === "classic" ? [2, -2, 0] : [1, -1 / condition, TILT];
    const c = Math.cos(turn), s = Math.sin(turn);
    const [a, b, d] = [h * c * c + k * s * s, (h - k) * c * s, h * s * s + k * c * c]; // the Hessian's entries
    return {
      value: ([x, y]) => (a * x * x + 2 * b * x * y + d * y * y) / 2, gradient: ([x, y]) => [a * x + b * y, b * x + d * y],
      hessian: () => [a, b, d], unstable: k, goal: k / 2, out: ([x, y]) => Math.abs(c * y - s * x),
    };
  }

  // -|H|^-1 g; directions without curvature are left out
  function newtonStep([a, b, d], [p, q]) {
    const mean = (a + d) / 2, half = Math.hypot((a - d) / 2, b), turn = Math.atan2(2 * b, a - d) / 2;
    const c = Math.cos(turn), s = Math.sin(turn), least = 1e-15 * Math.max(Math.abs(mean + half), Math.abs(mean - half));
    const part = (value, along) => (Math.abs(value) > least ? along / Math.abs(value) : 0);
    const first = part(mean + half, c * p + s * q), second = part(mean - half, c * q - s * p);
    return [s * second - c * first, -s * first - c * second];
  }

  // one step of each optimiser, (point, gradient, state, settings) -> point; state begins as {t: 0} and t counts from 1
  const heavy = (g, state, mu) => (state.v = state.v ? g.map((each, i) => mu * state.v[i] + each) : [...g]);
  const running = (state, name, g, beta, value) =>
    (state[name] = g.map((each, i) => beta * (state[name]?.[i] ?? 0) + (1 - beta) * value(each)));
  function adam(x, g, state, { rate }) {
    const m = running(state, "m", g, 0.9, (each) => each), v = running(state, "s", g, 0.999, (each) => each * each);
    const first = 1 - 0.9 ** state.t, second = Math.sqrt(1 - 0.999 ** state.t);
    return x.map((each, i) => each - ((rate / first) * m[i]) / (Math.sqrt(v[i]) / second + 1e-8));
  }
  const STEPS = {
    "SGD": (x, g, _, { rate }) => x.map((each, i) => each - rate * g[i]),
    "momentum": (x, g, state, { rate, momentum }) => {
      const v = heavy(g, state, momentum);
      return x.map((each, i) => each - rate * v[i]);
    },
    "Nesterov": (x, g, state, { rate, momentum }) => {
      const v = heavy(g, state, momentum);
      return x.map((each, i) => each - rate * (g[i] + momentum * v[i]));
    },
    "RMSprop": (x, g, state, { rate }) => {
      const v = running(state, "s", g, 0.99, (each) => each * each);
      return x.map((each, i) => each - (rate * g[i]) / (Math.sqrt(v[i]) + 1e-8));
    },
    "Adam": adam,
    "AdamW": (x, g, state, settings) => adam(x.map((each) => each * (1 - 0.01 * settings.rate)), g, state, settings),
    "saddle-free Newton": (x, g, _, { hessian }) => {
      const step = newtonStep(hessian, g);
      return x.map((each, i) => each + step[i]);
    },
  };

  // uniform numbers of a seed (mulberry32), and normal ones from pairs of them (Box and Muller)
  function uniforms(seed) {
    let a = seed;
    return () => {
      a = (a + 0x6d2b79f5) | 0;
      let t = Math.imul(a ^ (a >>> 15), 1 | a);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }
  function normals(seed = 1) {
    const uniform = uniforms(seed);
    return () => {
      const radius = Math.sqrt(-2 * Math.log(1 - uniform())), angle = 2 * Math.PI * uniform();
      return [radius * Math.cos(angle), radius * Math.sin(angle)];
    };
  }

  // the points of a run, which ends a hundred units from the saddle
  function walk(settings) {
    const surface = surfaceOf(settings), state = { t: 0 }, draw = normals(), points = [[settings.x, settings.y]];
    while (points.length <= settings.steps && norm(points.at(-1)) < 100) {
      const x = points.at(-1), noise = settings.noise > 0 ? draw().map((each) => settings.noise * each) : [0, 0];
      const g = surface.gradient(x).map((each, i) => each + noise[i]);
      state.t += 1;
      points.push(STEPS[settings.optimiser](x, g, state, { ...settings, hessian: surface.hessian(x) }));
    }
    return points;
  }

  // what the equations say of the distance along the unstable direction at each step; empty where they say nothing
  function predict(settings, count) {
    const { optimiser, rate, momentum, noise, x, y } = settings, surface = surfaceOf(settings);
    const mu = optimiser === "SGD" ? 0 : momentum, linear = ["SGD", "momentum", "Nesterov"].includes(optimiser);
    const steps = Array.from({ length: count }, (_, t) => t);
    if (!surface.unstable || noise > 0) return [];
    const out = surface.out([x, y]), h = surface.unstable, slow = optimiser === "Nesterov" ? 1 - rate * h : 1;
    if (out === 0) return [];
    if (optimiser === "saddle-free Newton") return steps.map((t) => out * 2 ** t);
    if (!linear) return [];
    const sum = optimiser === "Nesterov" ? (1 + mu) * slow : 1 + mu - rate * h, product = mu * slow;
    const root = (sum + Math.sqrt(sum * sum - 4 * product)) / 2, other = product / root;
    const first = 1 - rate * h * (optimiser === "Nesterov" ? 1 + mu : 1), share = (first - other) / (root - other);
    return steps.map((t) => out * (share * root ** t + (1 - share) * other ** t));
  }

  // lines of equal height (marching squares), as one polyline with gaps for each sign
  function isolines(value, cells = 48) {
    const at = (i) => WINDOW * ((2 * i) / cells - 1);
    const high = Math.max(...[-1, 1].flatMap((x) => [0.3, WINDOW].map((y) => Math.abs(value([WINDOW * x, y])))));
    const lines = { up: [[], []], down: [[], []] };
    for (let level = -9; level <= 9; level++) {
      const height = high * Math.sign(level) * (level / 9) ** 2, [xs, ys] = level < 0 ? lines.down : lines.up;
      for (let number = 0; number < cells * cells; number++) {
        const i = number % cells, j = (number - i) / cells;
        const corners = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]].map(([p, q]) => [at(p), at(q)]);
        const over = corners.map((each) => value(each) - height), ends = [];
        for (let e = 0; e < 4; e++) {
          const f = (e + 1) % 4;
          if (over[e] < 0 === over[f] < 0) continue;
          const part = over[e] / (over[e] - over[f]);
          ends.push(corners[e].map((each, k) => each + part * (corners[f][k] - each)));
        }
        for (let e = 0; e + 1 < ends.length; e += 2) {
          xs.push(ends[e][0], ends[e + 1][0], null);
          ys.push(ends[e][1], ends[e + 1][1], null);
        }
      }
    }
    return lines;
  }

  function saddle(place, data) {
    const current = { ...data.presets[0][1] };
    const maps = ["map", "distance", "loss"].map((name) => element("div", { className: `explorable-canvas explorable-${name}` }));
    const handle = element("button", { className: "explorable-handle", type: "button", title: "Start" });
    const said = element("output", { className: "explorable-said" });
    const frame = element("div", { className: "explorable-saddle" }, ...maps);
    maps[0].append(handle);
    const selects = {}, sliders = {}, controls = element("div", { className: "explorable-controls" });
    const options = {
      surface: [["classic", "classic saddle"], ["monkey", "monkey saddle"], ["tilted", "tilted, with a flat valley"]],
      optimiser: Object.keys(STEPS).map((each) => [each, each]),
    };
    const option = (value, text = value) => element("option", { value }, text);
    const chosen = element("select", {}, option("", "(your own)"), ...data.presets.map(([name]) => option(name)));
    chosen.value = data.presets[0][0];
    controls.append(element("label", {}, "Preset", chosen));
    for (const [name, title] of [["surface", "Surface"], ["optimiser", "Method"]]) {
      selects[name] = element("select", {}, ...options[name].map((each) => option(...each)));
      controls.append(element("label", {}, title, selects[name]));
    }
    // name, title, least, greatest, on a logarithmic axis; the least noise is none
    const RANGES = [
      ["rate", "Step size", 1e-4, 4, true], ["momentum", "Momentum", 0, 0.99, false], ["noise", "Noise", 1e-6, 1, true],
      ["condition", "Condition number", 1, 1e4, true], ["steps", "Steps", 10, 3000, true],
    ];
    for (const [name, title, least, most, log] of RANGES) {
      const ends = log ? { min: Math.log10(least), max: Math.log10(most), step: 0.01 } : { min: least, max: most, step: 0.01 };
      const input = element("input", { type: "range", ...ends }), shown = element("span", { className: "explorable-value" });
      const none = (value) => (name === "noise" && value <= 1.01 * least ? 0 : value);
      const read = () => (log ? none(10 ** input.value) : Number(input.value));
      const write = (value) => { input.value = log ? Math.log10(Math.max(value, least)) : value; };
      sliders[name] = { input, shown, read, write };
      controls.append(element("label", {}, title, input, shown));
    }
    place.append(frame, controls, said);
    place.setAttribute("aria-label", "A saddle to play with: a map of the path from a start that you move, distance and loss against steps");

    // what decides nothing now is not offered
    const idle = {
      condition: () => current.surface !== "tilted", rate: () => current.optimiser === "saddle-free Newton",
      momentum: () => !["momentum", "Nesterov"].includes(current.optimiser),
    };

    function tell(points, { value, goal }) {
      for (const name in selects) selects[name].value = current[name];
      for (const [name, { input, shown, write }] of Object.entries(sliders)) {
        write(current[name]);
        shown.textContent = name === "steps" ? `${current.steps}` : `${Number(current[name].toPrecision(3))}`;
        input.setAttribute("aria-valuetext", shown.textContent);
        input.disabled = idle[name]?.() ?? false;
      }
      const left = points.findIndex((each) => value(each) <= goal), taken = left < 0 ? points.length - 1 : left;
      const steps = `${taken} ${taken === 1 ? "step" : "steps"}`; // the race's rule: as low as a unit move down makes it
      said.value = left < 0 ? `Not escaped after ${steps}.` : `Escaped after ${steps}.`;
      const at = [current.x, current.y].map((each) => each.toPrecision(3));
      handle.setAttribute("aria-label", `Start at x ${at[0]}, y ${at[1]}; arrow keys move it. ${said.value}`);
    }

    function draw() {
      current.steps = Math.round(current.steps);
      const surface = surfaceOf(current), points = walk(current), steps = points.map((_, t) => t);
      tell(points, surface);
      const colour = ink(place), config = { responsive: true, displayModeBar: false };
      const layout = layoutIn(colour);
      const { up, down } = isolines(surface.value), [x, y] = [0, 1].map((i) => points.map((each) => each[i]));
      const thin = (name, [x, y], color) => ({ x, y, name, mode: "lines", hoverinfo: "skip", line: { width: 1, color } });
      const path = {
        x, y, name: "path", mode: "lines+markers", line: { color: COLOURS[3], width: 2 }, marker: { size: 4 },
        hovertemplate: "%{x:.3g}, %{y:.3g}",
      };
      const against = (name, y, color, dash) => ({
        x: steps, y, name, mode: "lines", line: { color, width: dash ? 1.5 : 2.5, dash }, hovertemplate: "step %{x}: %{y:.3g}",
      });
      const predicted = predict(current, points.length).map((each) => (each < 100 ? each : null));
      const square = (text) => ({ range: [-WINDOW, WINDOW], dtick: 0.5, constrain: "domain", title: { text } });
      const map = [thin("up", up, COLOURS[0]), thin("down", down, COLOURS[1]), path];
      const far = [against("distance", points.map(norm), COLOURS[3]), against("predicted", predicted, colour, "dash")];
      const loss = [against("loss", points.map(surface.value), COLOURS[3])];
      const all = [...far[0].y, ...predicted].filter((each) => each > 0), decades = Math.log10(Math.max(...all) / Math.min(...all));
      const log = { type: "log", title: { text: "distance" }, exponentformat: "power", dtick: Math.max(1, Math.ceil(decades / 5)) };
      const top = 1.7 * Math.max(-surface.goal, surface.value(points[0])), range = [1.7 * surface.goal, top];
      return Promise.all([
        Plotly.react(maps[0], map, layout(420, square("x"), { ...square("y"), scaleanchor: "x" }), config),
        Plotly.react(maps[1], far, layout(210, {}, log), config),
        Plotly.react(maps[2], loss, layout(210, { title: { text: "step" } }, { title: { text: "loss" }, range }), config),
      ]).then(settle);
    }

    const settle = () => stand(handle, maps[0], [current.x, current.y]);

    function move(x, y) {
      [current.x, current.y] = [x, y].map((each) => Math.min(WINDOW, Math.max(-WINDOW, each)));
      chosen.value = "";
      return draw();
    }

    movable(handle, maps[0], () => [current.x, current.y], [0.05, 0.001], move);
    function change(name, value) {
      Object.assign(current, name ? { [name]: value } : new Map(data.presets).get(value));
      if (name) chosen.value = "";
      draw();
    }
    chosen.addEventListener("change", () => change("", chosen.value));
    for (const [name, each] of Object.entries(selects)) each.addEventListener("change", () => change(name, each.value));
    for (const [name, { input, read }] of Object.entries(sliders)) input.addEventListener("input", () => change(name, read()));
    return draw().then(() => maps[0].on("plotly_afterplot", settle)).then(() => draw);
  }

  // ---- superposition: n features in a plane, x' = ReLU(W^T W x + b), trained as the reader watches ----
  // the weights are one list: both rows of W, then b; a batch is a list of inputs
  function toyGradient(weights, batch, importance) {
    const n = importance.length, gradient = Array(3 * n).fill(0), scale = 1 / (batch.length * n);
    let loss = 0;
    for (const x of batch) {
      let [h, k, p, q] = [0, 0, 0, 0];
      for (let i = 0; i < n; i++) { h += weights[i] * x[i]; k += weights[n + i] * x[i]; }
      const g = x.map((value, i) => {
        const out = Math.max(0, weights[i] * h + weights[n + i] * k + weights[2 * n + i]), error = out - value;
        loss += scale * importance[i] * error * error;
        return out > 0 ? 2 * scale * importance[i] * error : 0;
      });
      for (let i = 0; i < n; i++) { p += weights[i] * g[i]; q += weights[n + i] * g[i]; }
      for (let i = 0; i < n; i++) {
        gradient[i] += h * g[i] + p * x[i];
        gradient[n + i] += k * g[i] + q * x[i];
        gradient[2 * n + i] += g[i];
      }
    }
    return [loss, gradient];
  }

  // inputs that are 0 with probability 1 - density, else uniform on 0 to 1
  const toyBatch = (count, n, density, uniform) => Array.from({ length: count }, () =>
    Array.from({ length: n }, () => Math.max(0, (uniform() - 1 + density) / density)));

  const column = (weights, i) => [weights[i], weights[weights.length / 3 + i]];

  // the share of a dimension that each feature has
  function toyShares(weights) {
    const columns = Array.from({ length: weights.length / 3 }, (_, i) => column(weights, i));
    return columns.map(([x, y]) => {
      const square = x * x + y * y, sum = columns.reduce((total, [p, q]) => total + (x * p + y * q) ** 2, 0);
      return sum > 0 ? square * square / sum : 0;
    });
  }

  const CHUNK = 20, TAIL = 400; // steps from one picture to the next, and pictures that are kept
  const TESTED = 1000; // fresh inputs of the loss

  function superposition(place, data) {
    const current = { ...data.presets[0][1] };
    const maps = ["map", "distance", "loss"].map((name) => element("div", { className: `explorable-canvas explorable-${name}` }));
    const said = element("output", { className: "explorable-said" }), run = element("button", { type: "button" });
    const controls = element("div", { className: "explorable-controls" });
    const chosen = element("select", {}, element("option", { value: "" }, "(your own)"),
      ...data.presets.map(([name]) => element("option", { value: name }, name)));
    chosen.value = data.presets[0][0];
    controls.append(element("label", {}, "Preset", chosen));
    const RANGES = [
      ["density", "Density", -2, 0, 0.01, (v) => 10 ** v, Math.log10], ["importance", "Importance, each over the last", 0.5, 1, 0.01],
      ["features", "Features", 2, 8, 1], ["start", "Start", 1, 30, 1],
    ];
    const sliders = {}, same = (value) => value;
    for (const [name, title, min, max, step, read = same, write = same] of RANGES) {
      const input = element("input", { type: "range", min, max, step }), shown = element("span", { className: "explorable-value" });
      sliders[name] = { input, shown, read: () => read(Number(input.value)), write };
      controls.append(element("label", {}, title, input, shown));
    }
    controls.append(run);
    const frame = element("div", { className: "explorable-saddle" }, ...maps);
    place.append(frame, controls, said);
    place.setAttribute("aria-label", "Features in a plane, trained as you watch: their directions, which you can move, shares of a dimension, and the loss");

    let weights, state, step, until, uniform, trail, losses, handles = [], frameAsked = 0;
    const importance = () => Array.from({ length: current.features }, (_, i) => current.importance ** i);
    const tested = () => toyBatch(TESTED, current.features, current.density, uniforms(0));

    function begin() {
      const n = current.features, draw = normals(current.start), size = Math.sqrt(2 / (2 + n));
      const drawn = Array.from({ length: n }, () => draw().map((each) => size * each));
      weights = [...drawn.map(([x]) => x), ...drawn.map(([, y]) => y), ...Array(n).fill(0)];
      [state, step, until, uniform] = [{ t: 0 }, 0, current.steps, uniforms(1000 + current.start)];
      [trail, losses] = [[], []];
      handles.forEach((each) => each.remove());
      handles = drawn.map((_, i) => handle(i));
      maps[0].append(...handles);
      keep();
    }

    function keep() {
      trail = [...trail, [...weights]].slice(-TAIL);
      losses = [...losses, [step, toyGradient(weights, tested(), importance())[0]]].slice(-TAIL);
    }

    function train(count) {
      for (let k = 0; k < count && step < until; k++) {
        const [, gradient] = toyGradient(weights, toyBatch(current.batch, current.features, current.density, uniform), importance());
        state.t += 1;
        weights = STEPS.AdamW(weights, gradient, state, { rate: current.rate });
        step += 1;
      }
      keep();
    }

    function tell() {
      for (const [name, { input, shown, write }] of Object.entries(sliders)) {
        input.value = write(current[name]);
        shown.textContent = `${Number(current[name].toPrecision(2))}`;
        input.setAttribute("aria-valuetext", shown.textContent);
      }
      run.textContent = step < until ? "Pause" : "Train on";
      if (step < until) return; // a reader is told of the end, not of every picture
      const learnt = toyShares(weights).filter((_, i) => Math.hypot(...column(weights, i)) > 0.5).map((each) => each.toFixed(2));
      said.value = `Step ${step}: loss ${losses.at(-1)[1].toPrecision(3)}, ${learnt.length} of ${current.features} features learnt, with shares ${learnt.join(", ")}.`;
    }

    function draw() {
      tell();
      const n = current.features, colour = ink(place), config = { responsive: true, displayModeBar: false };
      const layout = layoutIn(colour);
      const all = Array.from({ length: n }, (_, i) => i), of = (i) => COLOURS[i % COLOURS.length];
      const rays = all.map((i) => ({
        x: [0, column(weights, i)[0]], y: [0, column(weights, i)[1]], name: `feature ${i + 1}`, mode: "lines",
        line: { color: of(i), width: 3 }, hoverinfo: "name",
      }));
      const paths = all.map((i) => ({
        x: trail.map((each) => each[i]), y: trail.map((each) => each[n + i]), name: `path ${i + 1}`, mode: "lines",
        line: { color: of(i), width: 1 }, opacity: 0.6, hoverinfo: "skip",
      }));
      const shares = { x: all.map((i) => i + 1), y: toyShares(weights), name: "shares", mode: "markers", marker: { size: 10, color: all.map(of) }, hovertemplate: "%{y:.3f}" };
      const loss = { x: losses.map(([at]) => at), y: losses.map(([, each]) => each), name: "loss", mode: "lines", line: { color: COLOURS[0], width: 2 }, hovertemplate: "step %{x}: %{y:.3g}" };
      const square = (text) => ({ range: [-1.4, 1.4], dtick: 0.5, constrain: "domain", title: { text } });
      const level = (y) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: colour, width: 1, dash: "dot" } });
      const circle = { type: "circle", x0: -1, x1: 1, y0: -1, y1: 1, line: { color: "#8C8C8C", width: 1 } };
      return Promise.all([
        Plotly.react(maps[0], [...paths, ...rays], layout(420, square("first dimension"), { ...square("second dimension"), scaleanchor: "x" }, { shapes: [circle] }), config),
        Plotly.react(maps[1], [shares], layout(210, { title: { text: "feature" }, dtick: 1, range: [0.5, n + 0.5] }, { title: { text: "share" }, range: [0, 1.05] }, { shapes: [0.4, 0.5, 1].map(level) }), config),
        Plotly.react(maps[2], [loss], layout(210, { title: { text: "step" } }, { title: { text: "loss" }, rangemode: "tozero" }), config),
      ]).then(settle);
    }

    function settle() { // the handles stand where the columns end
      handles.forEach((each, i) => {
        const [x, y] = column(weights, i);
        stand(each, maps[0], [x, y]);
        each.setAttribute("aria-label", `Feature ${i + 1} at ${x.toFixed(2)}, ${y.toFixed(2)}; arrow keys move it`);
      });
      place.dataset.step = step; // of what is drawn
    }

    function handle(i) {
      const made = element("button", { className: "explorable-handle explorable-head", type: "button", title: `Feature ${i + 1}` });
      made.style.borderColor = COLOURS[i % COLOURS.length];
      made.addEventListener("pointerdown", () => { until = step; });
      movable(made, maps[0], () => column(weights, i), [0.1, 0.1], (x, y) => move(i, x, y));
      return made;
    }

    function move(i, ...to) { // and stop: a column that is being moved does not train
      until = step;
      const [x, y] = to.map((each) => Math.min(1.4, Math.max(-1.4, each)));
      [weights[i], weights[current.features + i]] = [x, y];
      [state, chosen.value] = [{ t: 0 }, ""];
      keep();
      return draw();
    }

    function go(more) { // train so many steps further, some between one picture and the next
      until = step + more;
      if (frameAsked) return;
      const next = () => {
        train(CHUNK);
        frameAsked = step < until ? requestAnimationFrame(next) : 0;
        draw();
      };
      frameAsked = requestAnimationFrame(next);
    }

    run.addEventListener("click", () => {
      if (step < until) until = step;
      else go(current.steps);
      tell();
    });
    chosen.addEventListener("change", () => {
      if (!chosen.value) return;
      Object.assign(current, new Map(data.presets).get(chosen.value));
      begin();
      go(current.steps);
    });
    for (const [name, { input, read }] of Object.entries(sliders)) {
      input.addEventListener("input", () => {
        current[name] = read();
        chosen.value = "";
        if (name === "features" || name === "start") begin();
        go(current.steps);
      });
    }
    begin();
    while (step < until) train(CHUNK); // it opens on what training gives; what moves, a reader has asked for
    return draw().then(() => maps[0].on("plotly_afterplot", settle)).then(() => draw);
  }

  // ---- a spectrum on its way from true data to a null: data.choices has for each change its name and its frames, each an
  // amount, the share of values above a tenth, and the values at data.index over the first ----
  function interpolation(place, data) {
    const canvas = element("div", { className: "explorable-canvas" });
    const choice = element("select", {}, ...data.choices.map(([name]) => element("option", { value: name }, name)));
    choice.value = data.choice;
    const slider = element("input", { type: "range", min: 0, step: 1 }), shown = element("span", { className: "explorable-value" });
    const said = element("output", { className: "explorable-said" });
    const controls = element("div", { className: "explorable-controls" },
      element("label", {}, "Change", choice), element("label", {}, "Amount", slider, shown));
    place.append(canvas, controls, said);
    const frames = () => new Map(data.choices).get(choice.value);

    function update() {
      const all = frames();
      slider.max = all.length - 1;
      const [amount, share, values] = all[slider.value];
      shown.textContent = `${amount}`;
      said.value = `${choice.value}, amount ${amount}: ${(100 * share).toFixed(0)} % of the values are above a tenth.`;
      slider.setAttribute("aria-valuetext", said.value);
      const line = (y, name, style) => ({ x: data.index, y, name, mode: "lines", line: style, hovertemplate: `${name}, %{x}: %{y}<extra></extra>` });
      const traces = [
        line(all[0][2], "true data", { color: COLOURS[4], width: 1.5 }),
        line(all[all.length - 1][2], "the whole change", { color: COLOURS[4], width: 1.5, dash: "dash" }),
        line(values, `amount ${amount}`, { color: COLOURS[0], width: 3 }),
      ];
      const legend = { showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, margin: { l: 55, r: 10, t: 40, b: 45 } };
      const longest = data.index[data.index.length - 1];
      return Plotly.react(canvas, traces, { ...layout(place, 0.1, longest), ...legend }, { responsive: true, displayModeBar: false });
    }

    choice.addEventListener("change", update);
    slider.addEventListener("input", update);
    slider.max = frames().length - 1;
    slider.value = Math.floor(frames().length / 2); // it opens between the two ends
    return update().then(() => update);
  }

  // ---- a network that comes to add: kept weights by a slider, its losses, its embedding's spectrum and ring ----
  // data: p, keys; steps; losses, four lists, training, test, restricted, excluded; spectrum, a list for each step;
  // rings, for each step and key the places [x, y] of the numbers; first, the step that is shown first
  const MADE_OF = ["training", "test", "restricted", "excluded"], PAINTED = [0, 3, 2, 5].map((i) => COLOURS[i]);

  // the numbers in the order in which k a is 0, 1, 2, ... modulo the prime p, and the first once more
  function around(k, p) {
    const order = Array(p + 1).fill(0);
    for (let a = 0; a < p; a++) order[(k * a) % p] = a;
    return order;
  }

  function grokking(place, data) {
    const [curves, bars, ring] = ["losses", "spectrum", "ring"].map((name) => element("div", { className: `explorable-canvas explorable-${name}` }));
    const slider = element("input", { type: "range", min: 0, max: data.steps.length - 1, step: 1, value: data.first });
    const chosen = element("select", {}, ...data.keys.map((k, number) => element("option", { value: number }, `${k}`)));
    const shown = element("span", { className: "explorable-value" }), said = element("output", { className: "explorable-said" });
    const controls = element("div", { className: "explorable-controls" }, element("label", {}, "Step", slider, shown));
    if (data.keys.length) controls.append(element("label", {}, "Plane of frequency", chosen));
    place.append(element("div", { className: "explorable-grokking" }, curves, bars, ring), controls, said);
    place.setAttribute("aria-label", "A network that comes to add: losses, spectrum of the embedding and the ring of numbers, by step");
    const highest = Math.max(...data.spectrum.flat()), far = 1.05 * Math.max(1e-9, ...data.rings.flat(3).map(Math.abs));
    const positive = data.losses.flat().filter((each) => each > 0).map(Math.log10);
    const losses = [Math.min(...positive) - 0.2, Math.max(...positive) + 0.2];

    function draw() {
      const at = Number(slider.value), number = Number(chosen.value), k = data.keys[number], step = data.steps[at];
      const loss = data.losses.map((each) => each[at]), told = MADE_OF.map((name, i) => `${name} ${Number(loss[i].toPrecision(2))}`);
      shown.textContent = `${step}`;
      slider.setAttribute("aria-valuetext", `step ${step}; loss: ${told.join(", ")}`);
      said.value = `Step ${step}. Loss in nats: ${told.join(", ")}.`;
      const colour = ink(place), config = { responsive: true, displayModeBar: false };
      const layout = layoutIn(colour);
      const marker = { type: "line", yref: "paper", y0: 0, y1: 1, x0: step, x1: step, line: { color: colour, width: 1.5, dash: "dot" } };
      const lines = data.losses.map((y, i) => ({
        x: data.steps, y: y.map((each) => (each > 0 ? each : null)), name: MADE_OF[i], mode: "lines",
        line: { width: 2, color: PAINTED[i] }, hovertemplate: `${MADE_OF[i]}, step %{x}: %{y:.3g}`,
      }));
      const waves = data.spectrum[at], frequencies = waves.map((_, i) => i + 1);
      const bar = { x: frequencies, y: waves, type: "bar", marker: { color: frequencies.map((each) => COLOURS[data.keys.includes(each) ? 0 : 4]) } };
      const order = k ? around(k, data.p) : [], points = k ? order.map((a) => data.rings[at][number][a]) : [];
      const path = {
        x: points.map(([x]) => x), y: points.map(([, y]) => y), text: order.map(String), mode: "lines+markers", hovertemplate: "%{text}<extra></extra>",
        line: { width: 1, color: COLOURS[0] }, marker: { size: 6, color: points.map((_, i) => i), colorscale: "Viridis" },
      };
      const square = { range: [-far, far], showticklabels: false, constrain: "domain" };
      const legend = { showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, shapes: [marker] };
      const log = { type: "log", range: losses, title: { text: "loss (nats)" }, exponentformat: "power" };
      return Promise.all([
        Plotly.react(curves, lines, { ...layout(250, { title: { text: "step" } }, log, legend), margin: { l: 60, r: 10, t: 40, b: 40 } }, config),
        Plotly.react(bars, [bar], layout(190, { title: { text: "frequency" } }, { title: { text: "norm (weights)" }, range: [0, 1.05 * highest] }), config),
        Plotly.react(ring, [path], layout(320, { ...square, title: { text: "plane of the last weights" } }, { ...square, scaleanchor: "x" }), config),
      ]);
    }

    slider.addEventListener("input", draw);
    chosen.addEventListener("change", draw);
    return draw().then(() => draw);
  }

  // ---- a maze, and the network whose policy is computed for every cell as cheese and walls are moved ----
  // data: side; block, the side of the square at the top right where cheese lay in training; free, rows from the top; cheese,
  // [row, column] or null; networks, each a name and its packed parameters in torch's order, weights before biases, of the
  // stem, the blocks and the head; patch, the number of a block, from 1, and a packed pattern of the stream after it
  const MOVES = [["up", -1, 0], ["down", 1, 0], ["left", 0, -1], ["right", 0, 1]];
  const WITHIN = 200, LONGEST = 60; // steps of the probabilities that are told, and of the walk that is drawn
  const LEAST_DRAWN = 0.1; // probability of a move that has an arrow
  const BOARD = 360, RIM = 6, CAPTION = 20; // the drawing's width, its margin, and the room for words above and below
  const PATCHES = [["off", 0], ["subtracted at the cheese", -1], ["added twice where no cheese is", 2]]; // each with its factor

  // an array from its shape, scale and the base64 text of its whole numbers of 16 bits, little-endian
  function unpack([shape, scale, text]) {
    const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0)), view = new DataView(bytes.buffer);
    return { shape, values: Float64Array.from({ length: bytes.length / 2 }, (_, i) => scale * view.getInt16(2 * i, true)) };
  }

  // what torch calls a convolution, with zeros around: (ins, side, side) -> (outs, side, side), both flat
  function convolve(x, { shape: [outs, ins, size], values }, bias, side) {
    const cells = side * side, reach = (size - 1) / 2, y = new Float64Array(outs * cells);
    let at = 0; // in the weights, whose axes are output, input, row and column
    for (let o = 0; o < outs; o++) {
      y.fill(bias[o], o * cells, (o + 1) * cells);
      for (let i = 0; i < ins; i++) {
        for (let down = -reach; down <= reach; down++) {
          for (let right = -reach; right <= reach; right++) {
            const weight = values[at++];
            for (let row = Math.max(0, -down); row < Math.min(side, side - down); row++) {
              const to = o * cells + row * side, from = i * cells + (row + down) * side + right;
              for (let column = Math.max(0, -right); column < Math.min(side, side - right); column++) {
                y[to + column] += weight * x[from + column];
              }
            }
          }
        }
      }
    }
    return y;
  }

  // factor times the pattern is added to the stream, centred on a cell; what lies beyond the border is left out
  function addPattern(stream, { pattern, factor, cell }, side) {
    const [width, size] = pattern.shape, reach = (size - 1) / 2, middle = [Math.floor(cell / side), cell % side];
    for (let channel = 0; channel < width; channel++) {
      for (let i = 0; i < size * size; i++) {
        const row = middle[0] + Math.floor(i / size) - reach, column = middle[1] + (i % size) - reach;
        if (Math.min(row, column) < 0 || Math.max(row, column) >= side) continue;
        stream[(channel * side + row) * side + column] += factor * pattern.values[channel * size * size + i];
      }
    }
  }

  // the logits of the moves, flat (moves, side, side), of a picture, flat (2, side, side); patch may be null
  function policyMap(parameters, seen, side, patch) {
    const last = parameters.length / 2 - 1;
    const layer = (k, x) => convolve(x, parameters[2 * k], parameters[2 * k + 1].values, side);
    let stream = layer(0, seen).map((each) => Math.max(0, each));
    for (let k = 1; k < last; k++) {
      const more = layer(k, stream);
      stream = stream.map((each, i) => each + Math.max(0, more[i]));
      if (patch?.layer === k) addPattern(stream, patch, side);
    }
    return layer(last, stream);
  }

  // where a walk from the start is after so many steps: a probability for each cell; it stays where it has ended
  function spread(policy, next, start, ended, steps) {
    let here = new Float64Array(policy.length);
    here[start] = 1;
    for (let step = 0; step < steps; step++) {
      const after = new Float64Array(here.length);
      here.forEach((mass, cell) => {
        if (ended(cell)) after[cell] += mass;
        else if (mass) policy[cell].forEach((p, move) => { after[next(cell, move)] += mass * p; });
      });
      here = after;
    }
    return here;
  }

  function svg(name, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function maze(place, data) {
    const { side } = data, cells = Array.from({ length: side * side }, (_, cell) => cell), size = (BOARD - 2 * RIM) / side;
    const start = (side - 1) * side, corner = side - 1, names = { cheese: "the cheese", phantom: "the added pattern" };
    const networks = data.networks.map(([, entries]) => entries.map(unpack)), pattern = unpack(data.patch[1]);
    const rowOf = (cell) => Math.floor(cell / side), columnOf = (cell) => cell % side;
    const inBlock = (cell) => rowOf(cell) < data.block && columnOf(cell) >= side - data.block;
    const middle = (cell) => [RIM + size * (columnOf(cell) + 0.5), CAPTION + RIM + size * (rowOf(cell) + 0.5)];
    const far = (a, b) => Math.abs(rowOf(a) - rowOf(b)) + Math.abs(columnOf(a) - columnOf(b));
    const where = (cell) => `row ${rowOf(cell) + 1}, column ${columnOf(cell) + 1}`;
    const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

    const square = (cell, less = 0) => {
      const [x, y] = middle(cell).map((each) => each - size / 2 + less);
      return { x, y, width: size - 2 * less, height: size - 2 * less };
    };
    const squares = cells.map((cell) => svg("rect", { ...square(cell), "data-cell": cell }, svg("title")));
    const walked = svg("polyline", { class: "maze-walk", stroke: COLOURS[0], "stroke-width": size / 8 });
    const arrows = svg("g", { class: "maze-arrows" }), cursor = svg("rect", { class: "maze-cursor", rx: 3 });
    const [left, low] = middle(start).map((each, i) => each + (i ? 0.5 : -0.5) * size);
    const extent = data.block * size;
    const board = svg("svg", {
      class: "maze-board", viewBox: `0 0 ${BOARD} ${BOARD + 2 * CAPTION}`, tabindex: 0, role: "application",
      "aria-label": "Maze. Arrow keys move a cursor, space opens or closes a cell, Enter lays the cheese there, Shift and Enter the added pattern.",
    }, ...squares,
    svg("rect", { class: "maze-block", x: BOARD - RIM - extent, y: CAPTION + RIM, width: extent, height: extent, fill: COLOURS[2], stroke: COLOURS[2] }),
    svg("text", { x: BOARD - RIM, y: CAPTION - 1, "text-anchor": "end" }, "the block, where cheese lay in training"),
    svg("text", { x: left, y: low + CAPTION - 4 }, "start"),
    walked, svg("circle", { class: "maze-start", cx: middle(start)[0], cy: middle(start)[1], r: 0.17 * size, fill: COLOURS[0] }), arrows, cursor);
    const frame = element("div", { className: "explorable-map" }, board), grips = {};
    // each thing is drawn in a grip, which a mouse or a finger takes; keys lay it from the board
    for (const [thing, colour] of [["cheese", COLOURS[1]], ["phantom", COLOURS[5]]]) {
      grips[thing] = element("div", { className: `maze-grip maze-${thing}`, title: sentence(names[thing]).slice(0, -1) });
      grips[thing].setAttribute("aria-hidden", "true");
      grips[thing].style.width = `${(100 * size) / BOARD}%`;
      const wedge = { d: "M14 66 L86 30 L86 78 L14 78 Z M14 66 L86 66", fill: colour, stroke: thing === "cheese" ? "#5C3D00" : colour };
      grips[thing].append(svg("svg", { viewBox: "0 0 100 100" }, svg("path", wedge)));
      frame.append(grips[thing]);
    }

    const weights = element("select", {}, ...data.networks.map(([name], i) => element("option", { value: i }, name)));
    const patches = element("select", {}, ...PATCHES.map(([name], i) => element("option", { value: i }, name)));
    const take = element("button", { type: "button" }), again = element("button", { type: "button" }, "Start again");
    const happened = element("output", { className: "explorable-said maze-happened" }), said = element("output", { className: "explorable-said" });
    const mark = element("span", { className: "explorable-mark", style: `background: ${COLOURS[0]}` });
    place.append(element("div", { className: "explorable-maze" }, frame, element("div", {},
      element("div", { className: "explorable-controls" }, element("label", {}, "Weights", weights), element("label", {}, "Pattern of the cheese", patches), take, again),
      said, happened,
      element("p", { className: "maze-hint" }, "Drag the cheese, and tap a cell to open or close it. By keys: arrows move a cursor about the maze, space opens or closes a cell, Enter lays the cheese there, Shift and Enter the added pattern."),
      element("p", { className: "maze-hint" }, `The longer an arrow, the more probable the move; below ${LEAST_DRAWN} it has none.`),
      element("p", { className: "maze-hint" }, mark, "The most probable walk from the start."))));
    place.setAttribute("aria-label", "A maze to play with: the moves of an agent from every cell, for cheese, walls and weights that you change");

    let free, things, last, at; // cells that are no walls; where cheese and phantom lie, or null; where they lay; the cursor

    function begin() {
      free = data.free.flat().map(Boolean);
      last = { cheese: data.cheese ? data.cheese[0] * side + data.cheese[1] : null, phantom: null };
      things = { ...last };
      [weights.value, patches.value, at] = [0, 0, start];
    }

    const next = (cell, move) => {
      const [, down, right] = MOVES[move], row = rowOf(cell) + down, column = columnOf(cell) + right, to = row * side + column;
      return Math.min(row, column) < 0 || Math.max(row, column) >= side || !free[to] ? cell : to;
    };
    const thingAt = (cell) => Object.keys(things).find((thing) => things[thing] === cell);
    const opens = (cell) => free[cell] && !thingAt(cell);

    // a thing comes to where it lay, or else to the free cell that is farthest from the start and the other thing
    function bring(thing) {
      const others = [start, ...Object.values(things).filter((each) => each !== null)];
      const apart = (cell) => Math.min(...others.map((other) => far(cell, other)));
      const lonely = () => cells.filter(opens).reduce((best, cell) => (apart(cell) > apart(best) ? cell : best));
      things[thing] = last[thing] !== null && opens(last[thing]) ? last[thing] : lonely();
      last[thing] = things[thing];
    }

    function lay(thing, cell) {
      if (!free[cell]) return tell(`There is a wall in ${where(cell)}`);
      if (thingAt(cell)) return tell(`${names[thingAt(cell)]} lies in ${where(cell)}`);
      if (thing === "phantom" && things.phantom === null) return tell("the pattern is not added now");
      things[thing] = last[thing] = cell;
      draw();
      return tell(`${names[thing]} lies in ${where(cell)} now`);
    }

    function toggle(cell) {
      if (cell === start || cell === corner) return tell(`the ${cell === start ? "start" : "corner"} stays free`);
      if (thingAt(cell)) return tell(`${names[thingAt(cell)]} lies in ${where(cell)}, which stays free`);
      free[cell] = !free[cell];
      draw();
      return tell(`there is ${free[cell] ? "no" : "a"} wall in ${where(cell)} now`);
    }

    const tell = (text) => { happened.value = text && sentence(text); };

    function point(cell) {
      at = cell;
      for (const [key, value] of Object.entries(square(cell, 2))) cursor.setAttribute(key, value);
    }

    function describe(cell) {
      const what = [...(free[cell] ? [] : ["wall"]), ...(cell === start ? ["start"] : []), ...(thingAt(cell) ? [names[thingAt(cell)]] : [])];
      const moves = free[cell] ? MOVES.map(([name], move) => `${name} ${place.maze.policy[cell][move].toFixed(2)}`) : [];
      return `${where(cell)}: ${[...what, ...moves].join(", ")}`;
    }

    function compute() {
      const seen = new Float64Array(2 * cells.length), [, factor] = PATCHES[patches.value];
      cells.forEach((cell) => { seen[cell] = free[cell] ? 1 : 0; });
      if (things.cheese !== null) seen[cells.length + things.cheese] = 1;
      const cell = factor > 0 ? things.phantom : things.cheese;
      const patch = factor && cell !== null ? { layer: data.patch[0], pattern, factor, cell } : null;
      const flat = policyMap(networks[weights.value], seen, side, patch);
      const logits = MOVES.map((_, move) => [...flat.slice(move * cells.length, (move + 1) * cells.length)]);
      const policy = cells.map((each) => {
        const highest = Math.max(...logits.map((map) => map[each])), parts = logits.map((map) => Math.exp(map[each] - highest));
        const sum = parts.reduce((a, b) => a + b);
        return parts.map((part) => part / sum);
      });
      // cheese in the block is what is looked for there; elsewhere it is in a race with the block
      const race = things.cheese === null || !inBlock(things.cheese);
      const ended = spread(policy, next, start, (each) => each === things.cheese || (race && inBlock(each)), WITHIN);
      const taken = things.cheese === null ? 0 : ended[things.cheese];
      const entered = race ? cells.filter(inBlock).reduce((sum, each) => sum + ended[each], 0) : 0;
      const walk = [start];
      while (walk.at(-1) !== things.cheese && walk.length <= LONGEST) {
        const moves = policy[walk.at(-1)], to = next(walk.at(-1), moves.indexOf(Math.max(...moves)));
        if (walk.includes(to)) break;
        walk.push(to);
      }
      place.maze = { logits, policy, taken, entered, walk, race, free: free.map(Number), ...things };
    }

    // what the probabilities are, in words; exact but for rounding
    function outcome() {
      const { taken, entered, race } = place.maze, reached = new Set([start]), p = (each) => each.toFixed(3);
      for (const cell of reached) MOVES.forEach((_, move) => reached.add(next(cell, move)));
      const words = [], begin = `From the start and within ${WITHIN} steps, the agent`;
      if (things.cheese === null && PATCHES[patches.value][1] < 0) words.push("There is no cheese at which the pattern could be subtracted.");
      if (things.cheese !== null && !reached.has(things.cheese)) words.push("The cheese cannot be reached.");
      if (race && !cells.some((cell) => inBlock(cell) && reached.has(cell))) words.push("The block cannot be reached.");
      if (things.cheese === null) words.push(`${begin} enters the block with probability ${p(entered)}.`);
      else if (!race) words.push(`${begin} takes the cheese, which lies in the block, with probability ${p(taken)}.`);
      else words.push(`${begin} takes the cheese before it enters the block with probability ${p(taken)}, enters the block first with ${p(entered)}, and does neither with ${p(Math.max(0, 1 - taken - entered))}.`);
      return words.join(" ");
    }

    // from the middle of a cell, as long as the move is probable
    function arrow(cell, move, probability) {
      const [, down, right] = MOVES[move], [x, y] = middle(cell), head = size * 0.085;
      const spot = (along, across) => `${x + right * along + down * across} ${y + down * along + right * across}`;
      const tip = size * (0.16 + 0.3 * probability), neck = tip - 1.6 * head;
      return svg("path", {
        d: `M${spot(0, 0)} L${spot(neck, 0)} M${spot(neck, -head)} L${spot(tip, 0)} L${spot(neck, head)} Z`,
        "stroke-width": size * (0.02 + 0.03 * probability),
      });
    }

    function draw() {
      compute();
      const { policy, walk } = place.maze;
      squares.forEach((each, cell) => {
        each.setAttribute("class", free[cell] ? "maze-free" : "maze-wall");
        each.firstChild.textContent = sentence(describe(cell));
      });
      walked.setAttribute("points", walk.map((cell) => middle(cell).join(",")).join(" "));
      const moving = cells.filter((cell) => free[cell] && cell !== things.cheese); // with the cheese a walk has ended
      arrows.replaceChildren(...moving.flatMap((cell) => MOVES.map((_, move) => move)
        .filter((move) => policy[cell][move] >= LEAST_DRAWN).map((move) => arrow(cell, move, policy[cell][move]))));
      for (const [thing, cell] of Object.entries(things)) {
        grips[thing].hidden = cell === null;
        if (cell === null) continue;
        const { x, y } = square(cell);
        grips[thing].style.left = `${(100 * x) / BOARD}%`;
        grips[thing].style.top = `${(100 * y) / (BOARD + 2 * CAPTION)}%`;
      }
      take.textContent = things.cheese === null ? "Put the cheese back" : "Take the cheese away";
      said.value = outcome();
      point(at);
    }

    // the cell under a pointer, null beside the maze
    function under(event) {
      const box = board.getBoundingClientRect(), scale = BOARD / box.width;
      const column = Math.floor(((event.clientX - box.left) * scale - RIM) / size);
      const row = Math.floor(((event.clientY - box.top) * scale - RIM - CAPTION) / size);
      return Math.min(row, column) < 0 || Math.max(row, column) >= side ? null : row * side + column;
    }

    for (const [thing, grip] of Object.entries(grips)) {
      grip.addEventListener("pointerdown", (event) => grip.setPointerCapture(event.pointerId));
      grip.addEventListener("pointermove", (event) => {
        if (!grip.hasPointerCapture(event.pointerId)) return;
        const cell = under(event);
        if (cell !== null && opens(cell)) lay(thing, cell);
      });
    }
    // a press that ends where it began; the browser cancels one that scrolls the page
    let pressed = null;
    board.addEventListener("pointerdown", (event) => { pressed = event.button === 0 ? under(event) : null; });
    board.addEventListener("pointercancel", () => { pressed = null; });
    board.addEventListener("pointerup", (event) => {
      if (pressed !== null && under(event) === pressed) {
        point(pressed);
        toggle(pressed);
      }
      pressed = null;
    });
    board.addEventListener("keydown", (event) => {
      const move = MOVES.findIndex(([name]) => event.key.toLowerCase() === `arrow${name}`), [, down, right] = MOVES[move] ?? [];
      if (event.ctrlKey || event.altKey || event.metaKey || (move < 0 && ![" ", "Enter"].includes(event.key))) return;
      event.preventDefault();
      if (event.key === " ") return toggle(at);
      if (event.key === "Enter") return lay(event.shiftKey ? "phantom" : "cheese", at);
      const within = (each) => Math.min(side - 1, Math.max(0, each));
      point(within(rowOf(at) + down) * side + within(columnOf(at) + right)); // a cursor passes through walls
      tell(describe(at));
    });
    weights.addEventListener("change", () => {
      draw();
      tell("");
    });
    patches.addEventListener("change", () => {
      if (PATCHES[patches.value][1] > 0) bring("phantom");
      else things.phantom = null;
      draw();
      tell(things.phantom === null ? "" : `${names.phantom} lies in ${where(things.phantom)}`);
    });
    take.addEventListener("click", () => {
      if (things.cheese === null) bring("cheese");
      else things.cheese = null;
      draw();
      tell(things.cheese === null ? "the cheese is away" : `the cheese lies in ${where(things.cheese)}`);
    });
    again.addEventListener("click", () => {
      begin();
      draw();
      tell("all is as at first");
    });
    begin();
    draw();
    return Promise.resolve(draw);
  }

  // ---- affine concept editing of two clouds, and a reader of t, their coordinate along r from the mean ----
  // data: harmless and harmful, points [x, y] about their class's mean; mean, that of the harmless, from which
  // r = (1, 0) leads to that of the harmful; slope of the reader's logistic; origin; alpha. A reader moves
  // mean, origin and alpha
  const CLOUDS = [["harmless", COLOURS[0], "circle", "●"], ["harmful", COLOURS[3], "diamond", "◆"]];
  const ALPHAS = [-2, 3], PLANE = [[-4.5, 5.5], [-2.4, 2.4]]; // the slider's range, and the window
  const REACH = { origin: [[-4, 5], [-1.5, 1.5]], mean: [[-2, 2], [-1.2, 1.2]] }; // where each can be moved
  const CURVE = Array.from({ length: 101 }, (_, i) => ALPHAS[0] + (i * (ALPHAS[1] - ALPHAS[0])) / 100);
  // for each method what a reader reads, whether alpha decides, and the edited t
  const EDITS = {
    nothing: ["nothing", false, (t) => t],
    ACE: ["ACE: set to alpha", true, (_, { alpha }) => alpha],
    addition: ["addition: add alpha", true, (t, { alpha }) => t + alpha],
    ablation: ["ablation: set to the origin", false, (_, { star }) => star],
    LEACE: ["LEACE: set to the mean of all", false, (_, { pooled }) => pooled],
  };
  const average = (values) => values.reduce((sum, each) => sum + each, 0) / values.length;
  const within = (value, [least, most]) => Math.min(most, Math.max(least, value));

  // throws where the data are not such as are described above
  function checkSteering(data) {
    const expect = (good, name, wanted) => {
      if (!good) throw new Error(`steering: ${name} ${JSON.stringify(data[name])}: expected ${wanted}`);
    };
    const isPoint = (each) => Array.isArray(each) && each.length === 2 && each.every(Number.isFinite);
    const inside = (value, [least, most]) => Number.isFinite(value) && least <= value && value <= most;
    for (const [name] of CLOUDS) {
      expect(Array.isArray(data[name]) && data[name].length && data[name].every(isPoint), name, "points [x, y]");
    }
    for (const [name, ranges] of Object.entries(REACH)) {
      const good = isPoint(data[name]) && ranges.every((range, i) => inside(data[name][i], range));
      const wanted = ranges.map((range, i) => `${"xy"[i]} from ${range.join(" to ")}`);
      expect(good, name, `[x, y], ${wanted.join(" and ")}`);
    }
    expect(Number.isFinite(data.slope) && data.slope > 0, "slope", "a positive number");
    expect(inside(data.alpha, ALPHAS), "alpha", `a number from ${ALPHAS.join(" to ")}`);
  }

  async function steering(place, data) {
    checkSteering(data);
    const [plane, curve] = ["plane", "curve"].map((name) => element("div", {
      className: `explorable-canvas explorable-${name}`,
    }));
    const method = element("select", {},
      ...Object.entries(EDITS).map(([value, [title]]) => element("option", { value }, title)));
    const slider = element("input", { type: "range", min: ALPHAS[0], max: ALPHAS[1], step: 0.01 });
    const shown = element("span", { className: "explorable-value" });
    const said = element("output", { className: "explorable-said" });
    const again = element("button", { type: "button" }, "Start again"), handles = {};
    for (const name of Object.keys(REACH)) {
      handles[name] = element("button", { className: `explorable-handle explorable-${name}`, type: "button" },
        element("span", {}, name));
      plane.append(handles[name]);
    }
    const mark = ([name, color, , sign]) => element("span", {},
      element("span", { style: `color: ${color}` }, `${sign} `), `${name}, `);
    const hint = (...words) => element("p", { className: "explorable-hint" }, ...words);
    place.append(element("div", { className: "explorable-steering" }, plane, curve),
      element("div", { className: "explorable-controls" },
        element("label", {}, "Method", method), element("label", {}, "Alpha", slider, shown), again), said,
      hint(...CLOUDS.map(mark), "faint before the edit, full after it. Alpha is counted along r from the mean of the "
        + "harmless; affine concept editing (ACE) sets both classes there."),
      hint("Drag the origin and the mean, or move them by arrow keys, with Shift in small steps. Move both by the same "
        + "amount, and what is refused stays as it was: the reader has learnt to expect the mean, and its line moves "
        + "with it. The origin matters to ablation alone."));
    place.setAttribute("aria-label", "Affine concept editing of two clouds of points: an origin and a mean that you "
      + "move, a method and its alpha, and what a reader refuses");

    const coordinates = CLOUDS.map(([name], label) => data[name].map(([x]) => label + x)); // t, wherever the mean is
    const pooled = average(coordinates.flat());
    const refusal = (t) => 1 / (1 + Math.exp(-data.slope * (t - 0.5)));
    const two = (value) => (Math.round(100 * value) / 100 + 0).toFixed(2); // and no negative zero
    let current; // origin, mean and alpha

    function begin() {
      current = { origin: [...data.origin], mean: [...data.mean], alpha: data.alpha };
      [method.value, slider.value] = ["ACE", data.alpha];
    }

    function compute() {
      const [, , edit] = EDITS[method.value], star = current.origin[0] - current.mean[0]; // what ablation sets t to
      const edited = (alpha) => coordinates.map((all) => all.map((t) => edit(t, { alpha, star, pooled })));
      const refused = (alpha) => edited(alpha).map((all) => average(all.map(refusal)));
      const lines = CURVE.map(refused);
      place.steering = {
        ...current, method: method.value, star, edited: edited(current.alpha), refused: refused(current.alpha),
        curves: CLOUDS.map((_, label) => lines.map((each) => each[label])),
      };
    }

    function tell() {
      const { star, refused } = place.steering, percent = refused.map((each) => `${(100 * each).toFixed(1)} %`);
      said.value = `Refused: ${percent[0]} of the harmless, ${percent[1]} of the harmful. `
        + `Alpha* = ${two(star)}: ablation sets both classes there.`;
      shown.textContent = two(current.alpha);
      slider.setAttribute("aria-valuetext", `${shown.textContent}. ${said.value}`);
      slider.disabled = !EDITS[method.value][1]; // what decides nothing now is not offered
      for (const [name, handle] of Object.entries(handles)) {
        const [x, y] = current[name].map(two), title = name === "origin" ? "Origin" : "Mean";
        handle.setAttribute("aria-label", `${title} at x ${x}, y ${y}; arrow keys move it. ${said.value}`);
      }
    }

    // the clouds before and after, the origin's cross and the mean's dot
    function points(colour) {
      const { mean, origin, edited } = place.steering;
      const dots = (name, x, y, marker, opacity = 1) => ({
        x, y, name, mode: "markers", hoverinfo: "skip", opacity, marker: { size: 7, ...marker },
      });
      const clouds = (moment, all, opacity) => CLOUDS.map(([name, color, symbol], label) => {
        const x = all[label].map((t) => mean[0] + t), y = data[name].map(([, each]) => mean[1] + each);
        const size = label ? 6 : 9; // both are seen where an edit lays them on one line
        return dots(`${name} ${moment}`, x, y, { color, symbol, size }, opacity);
      });
      return [
        ...clouds("before", coordinates, 0.3), ...clouds("after", edited, 0.8),
        dots("origin", [origin[0]], [origin[1]], { symbol: "cross-thin", size: 16, line: { color: colour, width: 3 } }),
        dots("mean", [mean[0]], [mean[1]], { symbol: "circle", color: colour }),
      ];
    }

    function draw() {
      compute();
      tell();
      const { mean, star, alpha, curves } = place.steering, border = mean[0] + 0.5;
      const colour = ink(place), layout = layoutIn(colour), config = { responsive: true, displayModeBar: false };
      const upright = (x, dash, more = {}) => ({
        type: "line", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line: { color: colour, width: 1.5, dash }, ...more,
      });
      const words = (text, x, y, more) => ({ text, x, y, showarrow: false, ...more });
      const leftward = { xanchor: "right", xshift: -4 }, rightward = { xanchor: "left", xshift: 4 };
      const roomy = border > 1 ? leftward : rightward;
      const sides = {
        shapes: [upright(border, "dot"), {
          type: "rect", yref: "paper", x0: border, x1: PLANE[0][1], y0: 0, y1: 1, line: { width: 0 },
          fillcolor: "rgba(128, 128, 128, 0.15)", layer: "below",
        }],
        annotations: [
          words("refuses →", border, 1, { yref: "paper", yanchor: "top", ...rightward }),
          words("← answers", border, 1, { yref: "paper", yanchor: "top", ...leftward }),
          words("the reader's line", border, 0, { yref: "paper", yanchor: "bottom", ...roomy }),
          {
            x: mean[0] + 1, y: mean[1], ax: mean[0], ay: mean[1], axref: "x", ayref: "y", text: "", arrowcolor: colour,
            arrowwidth: 3, arrowhead: 2,
          },
          words("<b>r</b>", mean[0] + 1, mean[1], rightward),
        ],
      };
      const lines = curves.map((y, label) => ({
        x: CURVE, y, name: CLOUDS[label][0], mode: "lines",
        hovertemplate: `${CLOUDS[label][0]}, alpha %{x:.2f}: %{y:.3f}<extra></extra>`,
        // both are seen where they are one
        line: { color: CLOUDS[label][1], width: label ? 2.5 : 5, dash: label ? "dash" : "solid" },
      }));
      // a line's name stands at its end, those of lines that end together above each other
      const ends = curves.map((y) => y.at(-1)), apart = Math.max(0.14, Math.abs(ends[1] - ends[0])) / 2;
      const sign = ends[1] < ends[0] - 1e-9 ? -1 : 1, named = within(average(ends), [apart, 1 - apart]);
      const marks = [[alpha, "alpha", "solid", 0], [star, "alpha*", "dash", 16]]
        .filter(([x]) => within(x, ALPHAS) === x);
      const chances = {
        margin: { l: 60, r: 90, t: 42, b: 40 }, shapes: marks.map(([x, , dash]) => upright(x, dash)),
        annotations: [
          ...marks.map(([x, text, , yshift]) => words(text, x, 1, { yref: "paper", yanchor: "bottom", yshift })),
          ...CLOUDS.map(([name, color, , shape], label) => words(
            `<span style="color: ${color}">${shape}</span> ${name}`, 1, named + (label ? 1 : -1) * sign * apart,
            { xref: "paper", xanchor: "left" },
          )),
        ],
      };
      return Promise.all([
        Plotly.react(plane, points(colour), layout(330, { range: PLANE[0], dtick: 1, title: { text: "along r" } },
          { range: PLANE[1], dtick: 1, title: { text: "across r" } }, sides), config),
        Plotly.react(curve, lines, layout(330, { range: ALPHAS, dtick: 1, title: { text: "alpha" } },
          { range: [-0.03, 1.03], title: { text: "mean probability of refusal" } }, chances), config),
      ]).then(settle);
    }

    function settle() {
      for (const [name, handle] of Object.entries(handles)) stand(handle, plane, current[name]);
    }

    for (const [name, handle] of Object.entries(handles)) {
      movable(handle, plane, () => current[name], [0.1, 0.01], (...to) => {
        current[name] = to.map((each, i) => within(each, REACH[name][i]));
        draw();
      });
    }
    method.addEventListener("change", draw);
    slider.addEventListener("input", () => {
      current.alpha = Number(slider.value);
      draw();
    });
    again.addEventListener("click", () => {
      begin();
      draw();
    });
    begin();
    await draw();
    plane.on("plotly_afterplot", settle);
    return draw;
  }

  // each gives what draws it again
  const KINDS = { threshold, saddle, superposition, grokking, interpolation, maze, steering };
  for (const place of document.querySelectorAll(".explorable")) {
    const data = window.explorables?.[place.dataset.explorable];
    if (!data || !window.Plotly || !KINDS[data.kind]) continue;
    const still = place.querySelector("img");
    KINDS[data.kind](place, data).then((draw) => {
      if (still) still.hidden = true;
      new MutationObserver(() => draw()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    });
  }
});
