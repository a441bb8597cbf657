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
    sure: { name: "surely harmful (95 %)", test: function (i) { return report.data.confidence[i] >= 0.95; } },
    copies: { name: "duplicates", test: function (i) { return report.data.copies[i] >= 0; } },
    outliers: { name: "outliers", test: function (i) { return report.data.outlier[i] === 1; } },
  };

  function fresh() {
    return { rank: "normalised", show: "all", search: "", low: null, high: null, groups: {} };
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
      if (wanted && !report.haystack[i].includes(wanted)) continue;
      rows.push(i);
    }
    return rows;
  };

  report.format = function (x) {
    if (x === null || x === undefined) return "";
    if (x === 0) return "0";
    const size = Math.abs(x);
    const text = size >= 1e-3 && size < 1e5 ? Number(x.toPrecision(3)).toString() : x.toExponential(2);
    return (x > 0 ? "+" : "") + text.replace("-", "\u2212");
  };

  report.open = async function () {
    report.data = await unpack();
    report.ranks = ranks;
    report.shows = shows;
    report.fresh = fresh;
    report.state = fresh();
    if (!report.data.harm) delete ranks.harm;
    const d = report.data, visits = d.by_visit;
    report.visitsOf = Array.from({ length: d.ids.length }, function () { return []; });
    for (let v = 0; v < visits.row.length; v++) report.visitsOf[visits.row[v]].push(v);
  };
})();
