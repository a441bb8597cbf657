// The two maps: samples as dots, coloured by what is asked for; dragging over one selects.
(function () {
  "use strict";
  const DOTS = 4000, LEVELS = 9, OTHER = "others";
  const SIGNS = { helped: "#2a9d8f", harmed: "#d1495b" };
  const KINDS = { helpful: "#2a9d8f", harmful: "#d1495b", erratic: "#e9a23b", finished: "#8d99ae", "one visit": "#8d99ae" };
  const HUES = ["#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#eeca3b", "#9d755d", "#ff9da6", "#8d99ae"];

  // By a key: the color of each name in the legend, and a sample's name.
  function palette() {
    const d = report.data, by = document.getElementById("color").value;
    if (by === "sign") return { colors: SIGNS, of: function (i) { return d.value[i] < 0 ? "harmed" : "helped"; } };
    if (by === "kind") return { colors: KINDS, of: function (i) { return d.kind[i] < 0 ? "one visit" : d.kinds[d.kind[i]]; } };
    const group = d.groups[Number(by)], counts = group.levels.map(function () { return 0; });
    group.codes.forEach(function (code) { counts[code]++; });
    const largest = counts.map(function (_, k) { return k; }).sort(function (a, b) { return counts[b] - counts[a]; }).slice(0, LEVELS);
    const colors = {};
    largest.sort(function (a, b) { return a - b; }).forEach(function (k, n) { colors[group.levels[k]] = HUES[n]; });
    if (counts.length > LEVELS) colors[OTHER] = HUES[LEVELS];
    return { colors: colors, of: function (i) { const level = group.levels[group.codes[i]]; return level in colors ? level : OTHER; } };
  }

  let order = null;
  report.placed = function (name) {
    return function (rows, chosen) {
      const d = report.data, place = d.places[name], colors = palette();
      if (!order) order = Array.from(report.shuffled(d.ids.length)).slice(0, DOTS);
      words(name, place, d);
      return order.map(function (i) {
        return { x: place.x[i], y: place.y[i], color: colors.of(i), chosen: chosen[i], id: d.ids[i], value: d.value[i] };
      });
    };
  };

  function words(name, place, d) {
    const some = d.ids.length > DOTS ? DOTS.toLocaleString() + " of " + d.ids.length.toLocaleString() + " samples are drawn; a selection takes all. " : "";
    const how = name === "worth"
      ? "Left harms, right helps; high up, a sample's visits disagree. Erratic: the spread is more than twice the mean. Finished: it hardly acts in its late visits. "
      : "Samples near each other are or do nearly the same. " + (place.shown < 1 ? "The two components are " + Math.round(100 * place.shown) + " % of the variance. " : "");
    document.getElementById(name + "-words").textContent = how + some + "Drag over it to select.";
  }

  // The specification with its titles and colours, for `draw`.
  report.colored = function (name, spec) {
    const colors = palette().colors, place = report.data.places[name];
    spec.encoding.color.scale = { domain: Object.keys(colors), range: Object.values(colors) };
    spec.encoding.x.title = place.titles[0];
    spec.encoding.y.title = place.titles[1];
    return spec;
  };

  // Follows the brush; a new one takes the other map's place.
  report.brushed = function (name, view) {
    let waiting;
    view.addSignalListener("brush", function (_, box) {
      clearTimeout(waiting);
      waiting = setTimeout(function () {
        const before = report.state.box, there = box.x && box.y;
        if (!there && !(before && before.name === name)) return;
        report.state.box = there ? { name: name, x: box.x, y: box.y } : null;
        if (before && there && before.name !== name) report.redraw(before.name);
        report.update();
      }, 150);
    });
  };

  report.inBox = function (box, i) {
    function within(range, v) { return v >= Math.min(range[0], range[1]) && v <= Math.max(range[0], range[1]); }
    const place = report.data.places[box.name];
    return within(box.x, place.x[i]) && within(box.y, place.y[i]);
  };

  report.preparePlaces = function () {
    const color = document.getElementById("color");
    [["value", "sign"], ["kind", "kind"]].concat(report.data.groups.map(function (group, k) { return [group.name, String(k)]; })).forEach(function (entry) {
      color.add(new Option(entry[0], entry[1]));
    });
    color.addEventListener("change", function () { report.state.box = null; report.update(); report.redrawMaps(); });
    document.querySelector(".unbrush").addEventListener("click", function () { report.state.box = null; report.update(); report.redrawMaps(); });
  };
})();
