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

  // how many of the values are at least the threshold
  const above = (values, threshold) => values.filter((value) => value >= threshold).length;

  function layout(place, threshold, length) {
    const colour = getComputedStyle(place).color;
    const axis = { type: "log", fixedrange: true, color: colour, gridcolor: "rgba(128, 128, 128, 0.25)" };
    return {
      height: 380, margin: { l: 55, r: 10, t: 10, b: 45 }, showlegend: false, dragmode: false, font: { size: 14 },
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
    return update();
  }

  const KINDS = { threshold };
  for (const place of document.querySelectorAll(".explorable")) {
    const data = window.explorables?.[place.dataset.explorable];
    if (!data || !window.Plotly || !KINDS[data.kind]) continue;
    const still = place.querySelector("img");
    KINDS[data.kind](place, data).then(() => { if (still) still.hidden = true; });
  }
});
