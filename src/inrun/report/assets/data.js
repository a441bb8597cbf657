// The samples: unpacked, filtered, sorted. Rows are numbers 0 to n - 1, in the order of ids.
(function () {
  "use strict";

  async function unpack() {
    const packed = atob(document.getElementById("data").textContent.trim());
    const bytes = Uint8Array.from(packed, function (c) { return c.charCodeAt(0); });
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  const ranks = {
    normalised: { name: "normalised value", of: function (d) { return d.normalised; } },
    value: { name: "total value", of: function (d) { return d.value; } },
    harm: { name: "worst-harmed target", of: function (d) { return d.harm; } },
  };

  const shows = {
    all: { name: "all samples", test: function () { return true; } },
    harmful: { name: "harmful (value below 0)", test: function (i) { return report.data.value[i] < 0; } },
    helpful: { name: "helpful (value above 0)", test: function (i) { return report.data.value[i] > 0; } },
    labels: { name: "as many labels as are probably wrong", test: function (i) { return report.data.suspect[i]; }, worst: function (i) { return report.data.wrong[i]; }, todo: "Look at each and put the right label in; Argilla and Label Studio take them with the suggested one." },
    sure: { name: "surely harmful (95 %)", test: function (i) { return report.data.confidence[i] >= 0.95; }, todo: "Train without them and compare: inrun prune --confidence 0.95 --check." },
    erratic: { name: "erratic: helps and harms in turn", test: function (i) { return report.data.kind[i] === 2; }, todo: "Ambiguous or noisy: look at a few before deciding on any." },
    finished: { name: "finished: hardly acts any more", test: function (i) { return report.data.kind[i] === 3; }, todo: "Learned, or without effect: they may be visited less often." },
    contradicting: { name: "same content, several labels", test: function (i) { return report.contradicts[i] === 1; }, todo: "Decide on one label for each content." },
    copies: { name: "duplicates", test: function (i) { return report.data.copies[i] >= 0; }, todo: "Keep one of each, unless the repetition is meant." },
    near: { name: "near duplicates", test: function (i) { return report.data.near[i] >= 0 && report.data.copies[i] < 0; }, todo: "Look at a few: templates and quotations repeat." },
    outliers: { name: "outliers", test: function (i) { return report.data.outlier[i] === 1; }, worst: function (i) { return Math.abs(report.data.value[i]); }, todo: "Very long, rare or broken rows: look at them before their sums are believed." },
  };

  function fresh() {
    return { rank: "normalised", show: "all", search: "", low: null, high: null, groups: {}, box: null };
  }

  // What a sample's search runs over: its id, text and every other column, in lower case.
  function haystack(d) {
    const columns = Object.values(d.columns);
    return d.ids.map(function (id, i) {
      const parts = [id, d.text ? d.text[i] : ""];
      columns.forEach(function (column) { parts.push(column[i]); });
      return parts.join("\n").toLowerCase();
    });
  }

  report.score = function () { return ranks[report.state.rank].of(report.data); };

  report.select = function () {
    const d = report.data, s = report.state, score = report.score(), test = shows[s.show].test;
    const wanted = s.search.trim().toLowerCase();
    if (wanted && !report.haystack) report.haystack = haystack(d);
    const groups = Object.keys(s.groups).map(function (g) { return [d.groups[g].codes, s.groups[g]]; });
    const rows = [];
    for (let i = 0; i < d.ids.length; i++) {
      if (s.low !== null && score[i] < s.low) continue;
      if (s.high !== null && score[i] > s.high) continue;
      if (!groups.every(function (g) { return g[0][i] === g[1]; })) continue;
      if (!test(i)) continue;
      if (s.box && !report.inBox(s.box, i)) continue;
      if (wanted && !report.haystack[i].includes(wanted)) continue;
      rows.push(i);
    }
    return rows;
  };

  // For reading: three digits, small ones per million. For a table: the same, or scientific.
  report.format = function (x) { return written(x, function (small) { return Number((small * 1e6).toPrecision(3)).toLocaleString() + " per million"; }); };
  report.scientific = function (x) { return written(x, function (small) { return small.toExponential(2); }); };

  function written(x, small) {
    if (x === null || x === undefined) return "";
    if (x === 0) return "0";
    const size = Math.abs(x);
    const text = size < 1e-9 ? x.toExponential(2) : size < 1e-3 ? small(x) : Number(x.toPrecision(3)).toLocaleString(undefined, { maximumFractionDigits: 6 });
    return (x > 0 ? "+" : "") + text.replace("-", "\u2212");
  }

  // The unit in which the largest of some losses is a plain number, and how many of it are one.
  report.unit = function (largest) {
    if (report.state.rank !== "value") return { factor: 1, name: "in mean sizes of a step's values" };
    return report.lossUnit(largest);
  };
  report.lossUnit = function (largest) {
    if (largest >= 0.1 || !(largest > 0)) return { factor: 1, name: "in units of the validation loss" };
    return largest >= 1e-4 ? { factor: 1e3, name: "in thousandths of the validation loss" } : { factor: 1e6, name: "in millionths of the validation loss" };
  };

  // Rows whose content comes under several labels.
  function contradicting(d) {
    const labels = new Map(), found = new Uint8Array(d.ids.length), label = d.columns.label;
    if (!label) return found;
    d.copies.forEach(function (code, i) {
      if (code < 0) return;
      if (!labels.has(code)) labels.set(code, new Set());
      labels.get(code).add(label[i]);
    });
    d.copies.forEach(function (code, i) { found[i] = code >= 0 && labels.get(code).size > 1 ? 1 : 0; });
    return found;
  }

  report.open = async function () {
    report.data = await unpack();
    report.ranks = ranks;
    report.shows = shows;
    report.fresh = fresh;
    report.state = fresh();
    if (!report.data.harm) delete ranks.harm;
    if (!report.data.wrong) delete shows.labels;
    report.contradicts = contradicting(report.data);
    const d = report.data, visits = d.by_visit;
    report.visitsOf = Array.from({ length: d.ids.length }, function () { return []; });
    for (let v = 0; v < visits.row.length; v++) report.visitsOf[visits.row[v]].push(v);
  };
})();
