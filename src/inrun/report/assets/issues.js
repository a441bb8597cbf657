// What may be wrong with samples: a table of issues, each of which selects its samples; the contents
// that are there more than once; samples whose values stand out.
(function () {
  "use strict";
  const element = report.element, WORST = 3, MOST = window.innerWidth < 640 ? 5 : 20;

  function sum(rows) { return rows.reduce(function (total, i) { return total + report.data.value[i]; }, 0); }

  function opener(row) {
    const open = element("button", "open", report.data.ids[row]);
    open.type = "button";
    open.addEventListener("click", function () { report.openSample(row); });
    return open;
  }

  function issues(rows) {
    const body = document.querySelector("#issues tbody"), score = report.score();
    const asked = Object.keys(report.shows).filter(function (key) { return report.shows[key].todo; });
    const none = asked.filter(function (key) { return !rows.some(report.shows[key].test); });
    document.getElementById("issues-words").textContent = (none.length < asked.length ? "A name selects its samples; everything else follows. " : "") +
      (none.length ? "None of: " + none.map(function (key) { return report.shows[key].name; }).join("; ") + "." : "");
    document.getElementById("issues").hidden = none.length === asked.length;
    body.replaceChildren.apply(body, asked.filter(function (key) { return !none.includes(key); }).map(function (key) {
      const issue = report.shows[key], found = rows.filter(issue.test), line = element("tr"), first = element("td"), worst = element("td");
      const select = element("button", "open", issue.name);
      select.type = "button";
      select.dataset.issue = key;
      select.addEventListener("click", function () { report.show(key); });
      first.append(select);
      found.slice().sort(function (a, b) { return issue.worst ? issue.worst(b) - issue.worst(a) : score[a] - score[b]; }).slice(0, WORST).forEach(function (i) { worst.append(opener(i), " "); });
      line.append(first, element("td", "number", found.length.toLocaleString()), element("td", "number", report.format(sum(found))), worst, element("td", "", issue.todo));
      return line;
    }));
  }

  function grouped(rows, codes) {
    const groups = new Map();
    rows.forEach(function (i) {
      if (codes[i] < 0) return;
      if (!groups.has(codes[i])) groups.set(codes[i], []);
      groups.get(codes[i]).push(i);
    });
    return Array.from(groups.values());
  }

  function counted(n, one, several) {
    return n.toLocaleString() + " " + (n === 1 ? one : several);
  }

  function copies(rows) {
    const d = report.data, body = document.querySelector("#copies tbody"), exact = grouped(rows, d.copies);
    const near = grouped(rows, d.near).filter(function (members) {
      return members.some(function (i) { return d.copies[i] < 0 || d.copies[i] !== d.copies[members[0]]; });
    });
    const many = exact.map(function (of) { return { rows: of, alike: "exactly", value: sum(of) }; })
      .concat(near.map(function (of) { return { rows: of, alike: "nearly", value: sum(of) }; }))
      .sort(function (a, b) { return Math.abs(b.value) - Math.abs(a.value); });
    const extra = exact.reduce(function (total, of) { return total + of.length - 1; }, 0);
    document.getElementById("copies-words").textContent = many.length
      ? counted(exact.length, "content is", "contents are") + " there more than once, in " + counted(extra, "sample", "samples") + " too many; " + counted(near.length, "group is", "groups are") + " nearly the same. They share what their content is worth: each has the part that its own visits earned, so one's small value does not say that the content is worth little."
      : "No two of these samples have the same content.";
    document.getElementById("copies").hidden = !many.length;
    body.replaceChildren.apply(body, many.slice(0, MOST).map(function (group) {
      const line = element("tr"), first = element("td"), open = opener(group.rows[0]);
      open.textContent = "id " + group.rows.map(function (i) { return d.ids[i]; }).slice(0, 6).join(", ");
      first.append(report.content(group.rows[0], false), open);
      line.append(first, element("td", "number", String(group.rows.length)), element("td", "", group.alike), element("td", "number", report.format(group.value)), element("td", "", named(group.rows, "label")), element("td", "", named(group.rows, "source")));
      return line;
    }));
  }

  // The levels that a content comes under; several labels contradict each other.
  function named(rows, name) {
    const column = report.data.columns[name];
    if (!column) return "";
    const levels = Array.from(new Set(rows.map(function (i) { return String(column[i]); })));
    return levels.join(" / ") + (name === "label" && levels.length > 1 ? " (contradicting)" : "");
  }

  function outliers(rows) {
    const d = report.data, found = rows.filter(function (i) { return d.outlier[i]; });
    found.sort(function (a, b) { return Math.abs(d.value[b]) - Math.abs(d.value[a]); });
    const size = function (of) { return of.reduce(function (total, i) { return total + Math.abs(d.value[i]); }, 0); };
    document.getElementById("outliers-words").textContent = found.length
      ? found.length.toLocaleString() + " samples have a total value of more than 20 times the median size; they make " + (100 * size(found) / size(rows)).toFixed(1) + " % of the size of all values here."
      : "No sample's value is out of proportion to the others'.";
    report.fill("outliers", found, 8, d.value);
  }

  report.updateIssues = function (rows) { issues(rows); copies(rows); outliers(rows); };
})();
