// The live charts: rows summed up from the samples that the filters leave.
(function () {
  "use strict";
  const MOST_BINS = 48, DOTS = 4000, LEVELS = 24;
  const LINES = { groups: 22, harm: 24 }; // pixels a group: these charts' heights follow their rows
  const views = {};

  function sign(x) { return x < 0 ? "harmed" : "helped"; }

  function sorted(numbers) { return Float64Array.from(numbers).sort(); }

  // Bins over the middle 99 % of all samples; the outermost take what is beyond.
  function distribution(rows) {
    const score = report.score(), all = sorted(score), n = all.length;
    const BINS = Math.max(10, Math.min(MOST_BINS, Math.ceil(2 * Math.sqrt(n))));
    let low = all[Math.floor(0.005 * (n - 1))], high = all[Math.ceil(0.995 * (n - 1))];
    if (low === high) { low -= 0.5; high += 0.5; }
    const bins = Array.from({ length: BINS }, function (_, k) {
      const from = low + (high - low) * k / BINS, to = low + (high - low) * (k + 1) / BINS;
      return { from: from, to: to, samples: 0, every: 0, sign: sign(from + to) };
    });
    function bin(x) { return bins[Math.max(0, Math.min(BINS - 1, Math.floor(BINS * (x - low) / (high - low))))]; }
    for (let i = 0; i < n; i++) bin(score[i]).every++;
    rows.forEach(function (i) { bin(score[i]).samples++; });
    const negative = rows.filter(function (i) { return score[i] < 0; }).length;
    document.getElementById("distribution-words").textContent =
      "Samples by " + report.ranks[report.state.rank].name + ". " + share(negative, rows.length) +
      " are below 0. The outermost bars hold everything beyond; grey is the whole run.";
    return bins;
  }

  function share(part, whole) { return whole ? (100 * part / whole).toFixed(1) + " %" : "None"; }

  // A fixed random order, so that filters do not make dots jump.
  report.shuffled = function (n) {
    const order = new Uint32Array(n);
    let seed = 1;
    for (let k = 0; k < n; k++) {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      const j = seed % (k + 1);
      order[k] = order[j];
      order[j] = k;
    }
    return order;
  };

  function steps(rows, chosen) {
    const d = report.data, v = d.by_visit, dots = [];
    if (!report.order) report.order = report.shuffled(v.row.length);
    let found = 0;
    for (let k = 0; k < report.order.length; k++) {
      const at = report.order[k], row = v.row[at];
      if (!chosen[row]) continue;
      found++;
      if (dots.length < DOTS) dots.push({ step: v.step[at], value: v.value[at], sign: sign(v.value[at]), id: d.ids[row] });
    }
    document.getElementById("steps-words").textContent = found > DOTS
      ? DOTS.toLocaleString() + " of " + found.toLocaleString() + " visits, drawn at random."
      : "All " + found.toLocaleString() + " visits.";
    return dots;
  }

  function groupOf() {
    const by = document.getElementById("by").value, group = report.data.groups[Number(by)];
    return group || { name: "", levels: ["all samples"], codes: null };
  }

  // Sums by group with n times Student's interval of the mean (normal quantile).
  function groups(rows) {
    const total = report.state.rank === "value", score = total ? report.data.value : report.data.normalised, group = groupOf(), sums = group.levels.map(function (level) {
      return { group: level, samples: 0, value: 0, squares: 0 };
    });
    rows.forEach(function (i) {
      const s = sums[group.codes ? group.codes[i] : 0];
      s.samples++; s.value += score[i]; s.squares += score[i] * score[i];
    });
    const there = sums.filter(function (s) { return s.samples; });
    there.forEach(function (s) {
      const n = s.samples, variance = Math.max(0, (s.squares - s.value * s.value / n) / Math.max(1, n - 1));
      const half = n > 1 ? 1.96 * Math.sqrt(n * variance) : 0;
      s.low = s.value - half; s.high = s.value + half; s.sign = sign(s.value);
    });
    there.sort(function (a, b) { return b.value - a.value; });
    const shown = there.length > LEVELS ? there.slice(0, LEVELS / 2).concat(there.slice(-LEVELS / 2)) : there;
    document.getElementById("groups-words").textContent =
      "Sums of " + (total ? "values, which add up to the books' samples," : "normalised values") + " with 95 % intervals: how far a sum would move with other rows of the same kind." +
      (shown.length < there.length ? " The " + LEVELS / 2 + " highest and lowest of " + there.length + "." : "");
    return shown;
  }

  function harm(rows) {
    const d = report.data, group = groupOf(), cells = [];
    if (!d.harms) return cells;
    const counts = group.levels.map(function () { return 0; });
    rows.forEach(function (i) { counts[group.codes ? group.codes[i] : 0]++; });
    const sums = d.targets.map(function (_, k) {
      const of = group.levels.map(function () { return 0; });
      rows.forEach(function (i) { of[group.codes ? group.codes[i] : 0] += d.harms[k][i]; });
      return of;
    });
    const there = group.levels.map(function (_, g) { return g; }).filter(function (g) { return counts[g]; });
    const worst = group.levels.map(function (_, g) {
      return Math.min.apply(null, sums.map(function (of) { return of[g] / counts[g]; }));
    });
    const shown = there.length > LEVELS ? there.slice().sort(function (a, b) { return worst[a] - worst[b]; }).slice(0, LEVELS) : there;
    document.getElementById("harm-words").textContent = shown.length < there.length ? "The " + LEVELS + " groups that harm one target most, of " + there.length + "." : "";
    shown.forEach(function (g) {
      const level = group.levels[g];
      d.targets.forEach(function (target, k) {
        cells.push({ group: level, target: target, value: sums[k][g] / counts[g], samples: counts[g] });
      });
    });
    return cells;
  }

  // The chosen samples' own running sum, over the books' own steps.
  function books(rows, chosen) {
    const v = report.data.by_visit, perStep = new Map(), line = [];
    const words = document.getElementById("books-words");
    const every = rows.length === report.data.ids.length;
    words.textContent = "The dashed line is how far the loss really fell.";
    if (every || !v.complete) return line;
    for (let k = 0; k < v.row.length; k++) {
      if (chosen[v.row[k]]) perStep.set(v.step[k], (perStep.get(v.step[k]) || 0) + v.value[k]);
    }
    let sum = 0;
    Array.from(perStep.keys()).sort(function (a, b) { return a - b; }).forEach(function (step) {
      sum += perStep.get(step);
      line.push({ step: step, fall: sum });
    });
    words.textContent += " The solid line is what the samples that the filters leave took off, " + report.format(sum) + " in all.";
    return thinned(line);
  }

  function thinned(line) {
    const every = Math.ceil(line.length / 1500);
    return line.filter(function (_, k) { return k % every === 0 || k === line.length - 1; });
  }

  const makers = { distribution: distribution, steps: steps, groups: groups, harm: harm, books: books, map: report.placed("map"), worth: report.placed("worth") };
  const MAPS = ["map", "worth"];

  function marks(rows) {
    const chosen = new Uint8Array(report.data.ids.length);
    rows.forEach(function (i) { chosen[i] = 1; });
    return chosen;
  }

  report.updateCharts = function (rows) {
    const chosen = marks(rows);
    return Promise.all(Object.keys(views).map(function (name) {
      const made = makers[name](rows, chosen);
      if (LINES[name] || name === "distribution") return draw(name, made);
      return views[name].then(function (view) { return view.data("rows", made).resize().runAsync(); });
    }));
  };

  // Of what its axis of values shows.
  function unitOf(name, made) {
    if (name === "steps") return report.lossUnit(10 * report.constant);
    const ends = name === "distribution" ? ["from", "to"] : ["low", "high"];
    return report.unit(made.reduce(function (most, row) { return Math.max(most, Math.abs(row[ends[0]]), Math.abs(row[ends[1]])); }, 0));
  }

  function ready(name, made) {
    const unit = unitOf(name, made);
    const spec = JSON.parse(JSON.stringify(report.live[name]).replaceAll("[unit]", unit.name).replaceAll("[factor]", String(unit.factor)));
    spec.datasets = { rows: made };
    if (LINES[name]) spec.height = LINES[name] * Math.max(2, new Set(made.map(function (row) { return row.group; })).size);
    if (name === "steps") spec.params[0].value = report.constant;
    if (name === "harm" && report.dark()) spec.encoding.color.scale.range[1] = "#2a3138";
    return MAPS.includes(name) ? report.colored(name, spec) : spec;
  }

  report.drawLive = function (rows) {
    const chosen = marks(rows);
    return Promise.all(Object.keys(makers).map(function (name) {
      if (!report.live[name] || (MAPS.includes(name) && !report.data.places[name])) { document.querySelector("." + name).hidden = true; return null; }
      return draw(name, makers[name](rows, chosen));
    }));
  };

  function draw(name, made) {
    const place = document.querySelector('[data-live="' + name + '"]');
    views[name] = report.embed(place, ready(name, made), name === "steps" || MAPS.includes(name) ? "canvas" : "svg");
    if (MAPS.includes(name)) views[name].then(function (view) { report.brushed(name, view); });
    return views[name];
  }

  report.redraw = function (name) { return draw(name, makers[name](report.rows, marks(report.rows))); };
  report.redrawMaps = function () { MAPS.filter(function (name) { return views[name]; }).forEach(report.redraw); };

  // What a chart was given to draw, for whoever looks at the page from its console.
  report.rowsOf = function (name) {
    return views[name].then(function (view) { return view.data("rows").map(function (row) { return Object.assign({}, row); }); });
  };

  // A sample's own visits, for the sample that is opened.
  report.history = function (place, row) {
    const v = report.data.by_visit, dots = report.visitsOf[row].map(function (at) {
      return { step: v.step[at], value: v.value[at], sign: sign(v.value[at]), id: report.data.ids[row] };
    });
    const spec = ready("steps", dots);
    spec.height = 150;
    spec.mark.size = 60;
    return report.embed(place, spec);
  };

  report.prepareCharts = function () {
    const sizes = sorted(report.data.by_visit.value.map(Math.abs));
    report.constant = sizes[Math.floor(sizes.length / 2)] || 1e-9;
    const by = document.getElementById("by");
    report.data.groups.forEach(function (group, k) { by.add(new Option(group.name, String(k))); });
    if (!report.data.groups.length) by.parentElement.hidden = true;
    by.addEventListener("change", function () { report.update(); });
  };
})();
