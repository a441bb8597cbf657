// Draws the page's charts in the colours of the reader's light or dark setting, again on a change.
(function () {
  "use strict";
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function config() {
    const ink = dark.matches ? "#e6e9ec" : "#1d2329";
    const line = dark.matches ? "#2d353c" : "#dfe2e4";
    return {
      background: "transparent",
      font: "system-ui, sans-serif",
      axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
      legend: { labelColor: ink, titleColor: ink, labelFontSize: 12, orient: "top", title: null, symbolStrokeWidth: 2, labelLimit: 400, columns: window.innerWidth < 560 ? 2 : 0 },
      title: { color: ink, anchor: "start", fontSize: 13, fontWeight: 600 },
      header: { labelColor: ink, titleColor: ink },
      text: { color: ink },
      view: { stroke: "transparent" },
    };
  }

  function draw() {
    document.querySelectorAll("[data-chart]").forEach(function (place) {
      const spec = JSON.parse(JSON.stringify(specs[Number(place.dataset.chart)]));
      delete spec.config;
      window.vegaEmbed(place, spec, { actions: false, renderer: "svg", config: config() });
    });
  }

  draw();
  dark.addEventListener("change", draw);
})();
