// The page's charts in the colours of its light or dark setting, and the switch between the two.
// `report` is what the page's scripts share; nothing else is global.
const report = { onRedraw: [] };
(function () {
  "use strict";
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const preferred = window.matchMedia("(prefers-color-scheme: dark)");

  report.dark = function () {
    const set = document.documentElement.dataset.theme;
    return set ? set === "dark" : preferred.matches;
  };

  report.config = function () {
    const ink = report.dark() ? "#e6e9ec" : "#1d2329";
    const line = report.dark() ? "#2d353c" : "#dfe2e4";
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
  };

  // Draws a specification into a place; a promise of its view.
  report.embed = function (place, spec, renderer) {
    const copy = JSON.parse(JSON.stringify(spec));
    delete copy.config;
    // ast: expressions are walked through, not compiled, so that the page's policy allows no eval
    const options = { ast: true, actions: false, logLevel: 1, renderer: renderer || "svg", config: report.config() };
    return window.vegaEmbed(place, copy, options).then(function (result) { return result.view; });
  };

  report.live = specs.live;

  function drawAll() {
    document.querySelectorAll("[data-chart]").forEach(function (place) {
      report.embed(place, specs.fixed[Number(place.dataset.chart)]);
    });
    report.onRedraw.forEach(function (draw) { draw(); });
  }

  document.getElementById("theme").addEventListener("click", function () {
    document.documentElement.dataset.theme = report.dark() ? "light" : "dark";
    drawAll();
  });
  preferred.addEventListener("change", drawAll);

  // Parts fold: on a phone those behind the samples are closed at first. A chart in a closed one has
  // no width to be drawn in, so opening tells it, and so does a link that leads there.
  const phone = window.innerWidth < 640;
  document.querySelectorAll("details.part").forEach(function (part) {
    if (phone && part.id.startsWith("part-")) part.open = false;
    if (!phone && part.classList.contains("contents")) part.open = true;
    part.addEventListener("toggle", function () { window.dispatchEvent(new Event("resize")); });
  });
  document.querySelectorAll("nav a").forEach(function (link) {
    link.addEventListener("click", function () { document.querySelector(link.getAttribute("href")).open = true; });
  });
  report.drawAll = drawAll;
  if (!document.getElementById("data")) drawAll();
})();
