// Draws each interactive figure over its static picture, which stays where WebGL or the script fails.
document.addEventListener("DOMContentLoaded", () => {
  for (const figure of document.querySelectorAll("div.interactive")) {
    const picture = figure.querySelector("img");
    const { data, layout, config, frames } = window.figures[figure.dataset.figure];
    const canvas = document.createElement("div");
    canvas.className = "interactive-canvas";
    canvas.style.height = figure.dataset.height + "px";
    figure.append(canvas);
    const keepPicture = () => { if (picture) canvas.remove(); };
    Plotly.newPlot(canvas, { data, layout, config, frames }).then(() => {
      if (canvas.querySelector(".no-webgl")) keepPicture();
      else if (picture) picture.hidden = true;
    }, keepPicture);
  }
});
