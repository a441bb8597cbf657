// The table of samples, the filters; and the start of it all.
(function () {
  "use strict";
  const sort = { key: "score", descending: false };
  const ticked = new Set();
  let page = 0, ordered = [];

  function columns() {
    const d = report.data, found = [{ key: "id", title: "id" }];
    if (d.text || d.image) found.push({ key: "content", title: d.text ? "text" : "image", fixed: !d.text });
    d.groups.slice(0, 4).forEach(function (group, k) { found.push({ key: "group" + k, title: group.name, group: group }); });
    found.push({ key: "score", title: "score", of: report.score() });
    found.push({ key: "value", title: "value", of: d.value }, { key: "normalised", title: "normalised", of: d.normalised });
    if (d.worst) found.push({ key: "worst", title: "harms most", of: d.worst, names: d.targets });
    if (d.confidence.some(function (c) { return c !== null; })) found.push({ key: "confidence", title: "surely harmful", of: d.confidence });
    found.push({ key: "visits", title: "visits", of: d.visits }, { key: "first", title: "first step", of: d.first });
    return found;
  }

  function comparer(column) {
    const d = report.data;
    if (column.key === "id") return function (a, b) { return a - b; };
    if (column.key === "content") return function (a, b) { return (d.text[a] || "").localeCompare(d.text[b] || "") || a - b; };
    const of = column.group ? column.group.codes : column.of;
    return function (a, b) { return of[a] - of[b] || a - b; };
  }

  function order() {
    const column = columns().find(function (c) { return c.key === sort.key; });
    ordered = report.rows.slice().sort(comparer(column));
    if (sort.descending) ordered.reverse();
  }

  report.beside = function (by) { return ordered[ordered.indexOf(report.opened) + by]; };

  function head() {
    const line = report.element("tr"), tick = report.element("th", "", "");
    tick.append(report.element("span", "", "\u2713"));
    line.append(tick);
    columns().forEach(function (column) {
      const cell = report.element("th", column.of && !column.names ? "number" : "");
      cell.scope = "col";
      if (column.fixed) { cell.textContent = column.title; line.append(cell); return; }
      const button = report.element("button", "", column.title);
      button.type = "button";
      button.dataset.sort = column.key;
      if (sort.key === column.key) cell.setAttribute("aria-sort", sort.descending ? "descending" : "ascending");
      button.addEventListener("click", function () {
        sort.descending = sort.key === column.key && !sort.descending;
        sort.key = column.key;
        page = 0;
        order();
        draw();
        document.querySelector('#table [data-sort="' + column.key + '"]').focus();
      });
      cell.append(button);
      line.append(cell);
    });
    return line;
  }

  function cell(column, row) {
    const d = report.data;
    if (column.key === "id") {
      const made = report.element("td"), open = report.element("button", "open", d.ids[row]);
      open.type = "button";
      open.addEventListener("click", function () { report.openSample(row); });
      made.append(open);
      return made;
    }
    if (column.key === "content") {
      const made = report.element("td");
      made.append(report.content(row, false));
      return made;
    }
    if (column.group) return report.element("td", "", column.group.levels[column.group.codes[row]]);
    if (column.names) return report.element("td", "", column.names[column.of[row]]);
    const x = column.of[row];
    if (column.key === "confidence") return report.element("td", "number", x === null ? "" : Math.floor(100 * x) + " %");
    if (column.key === "visits" || column.key === "first") return report.element("td", "number", String(x));
    return report.element("td", "number " + (x < 0 ? "bad" : "good"), report.scientific(x));
  }

  function draw() {
    const size = Number(document.getElementById("rows").value), pages = Math.max(1, Math.ceil(ordered.length / size));
    page = Math.min(page, pages - 1);
    const shown = columns(), body = document.querySelector("#table tbody");
    document.querySelector("#table thead").replaceChildren(head());
    body.replaceChildren.apply(body, ordered.slice(page * size, (page + 1) * size).map(function (row) {
      const line = report.element("tr"), tick = report.element("td"), box = report.element("input");
      box.type = "checkbox";
      box.checked = ticked.has(row);
      box.setAttribute("aria-label", "Tick sample " + report.data.ids[row]);
      box.addEventListener("change", function () { if (box.checked) ticked.add(row); else ticked.delete(row); status(); });
      tick.append(box);
      line.append(tick);
      shown.forEach(function (column) { line.append(cell(column, row)); });
      return line;
    }));
    document.getElementById("page").textContent = "Page " + (page + 1).toLocaleString() + " of " + pages.toLocaleString();
    document.getElementById("before").disabled = page === 0;
    document.getElementById("after").disabled = page >= pages - 1;
  }

  function status() {
    const d = report.data, rows = report.rows, n = d.ids.length;
    const sum = rows.reduce(function (total, i) { return total + d.value[i]; }, 0);
    const tick = ticked.size ? "; " + ticked.size.toLocaleString() + " ticked" : "";
    document.getElementById("status").textContent = rows.length.toLocaleString() + " of " + n.toLocaleString() + " samples; they took " + report.format(sum) + " off the validation loss" + tick;
    document.getElementById("filtered").textContent = rows.length < n ? "(" + rows.length.toLocaleString() + " of " + n.toLocaleString() + ")" : "";
  }

  // Everything but the charts.
  function summarise() {
    report.rows = report.select();
    page = 0;
    order();
    status();
    draw();
    report.updateLists(report.rows);
    report.updateIssues(report.rows);
  }

  report.update = function () {
    summarise();
    return report.updateCharts(report.rows);
  };

  function chosenRows() { return ticked.size ? ordered.filter(function (i) { return ticked.has(i); }) : ordered; }

  function options(select, entries) {
    Object.keys(entries).forEach(function (key) { select.add(new Option(entries[key].name, key)); });
  }

  function controls() {
    const form = document.getElementById("filters"), get = function (id) { return document.getElementById(id); };
    options(get("rank"), report.ranks);
    options(get("show"), report.shows);
    report.data.groups.slice(0, 4).forEach(function (group, k) {
      const label = report.element("label", "", group.name + " "), select = report.element("select");
      select.dataset.group = k;
      select.add(new Option("all", ""));
      group.levels.forEach(function (level, code) { select.add(new Option(level, String(code))); });
      label.append(select);
      get("group-filters").append(label);
    });
    let waiting;
    function read() {
      const s = report.state, number = function (id) { return get(id).value === "" ? null : Number(get(id).value); };
      s.rank = get("rank").value; s.show = get("show").value; s.search = get("search").value;
      s.low = number("low"); s.high = number("high"); s.groups = {};
      form.querySelectorAll("[data-group]").forEach(function (select) {
        if (select.value !== "") s.groups[select.dataset.group] = Number(select.value);
      });
      report.update();
    }
    form.addEventListener("input", function () { clearTimeout(waiting); waiting = setTimeout(read, 120); });
    form.addEventListener("submit", function (event) { event.preventDefault(); read(); });
    form.addEventListener("reset", function () { ticked.clear(); report.state.box = null; setTimeout(function () { read(); report.redrawMaps(); }, 0); });
    report.show = function (key) { get("show").value = key; read(); };
    get("before").addEventListener("click", function () { page--; draw(); });
    get("after").addEventListener("click", function () { page++; draw(); });
    get("rows").addEventListener("change", function () { page = 0; draw(); });
    if (window.innerWidth < 640) { get("more").open = false; get("rows").value = "10"; }
  }

  report.open().then(function () {
    controls();
    report.prepareCharts();
    report.preparePlaces();
    report.prepareLists();
    report.prepareExport(chosenRows);
    summarise();
    report.onRedraw.push(function () {
      report.drawLive(report.rows).then(function () { document.getElementById("samples").dataset.ready = "yes"; });
    });
    report.drawAll();
  }).catch(function (error) {
    document.getElementById("status").textContent = "The samples could not be read (" + error.message + "). The page needs a browser of 2023 or later.";
  });
})();
