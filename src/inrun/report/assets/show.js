// A sample shown as what it is: text shaded by token, an image, or a table's row; cards; the opened
// sample. Everything from the data is put in as text, never as HTML.
(function () {
  "use strict";
  const FIRST = window.innerWidth < 640 ? 3 : 12, TOP = 10;
  const shown = { labels: FIRST, harmful: FIRST, helpful: FIRST };

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }
  report.element = element;

  function shaded(place, tokens, values) {
    const most = Math.max.apply(null, values.map(Math.abs)) || 1;
    tokens.forEach(function (token, k) {
      const span = element("span", "token", token), strength = Math.abs(values[k]) / most;
      const color = values[k] < 0 ? "209 73 91" : "42 157 143";
      span.style.backgroundColor = "rgb(" + color + " / " + (0.75 * strength).toFixed(3) + ")";
      span.title = token + ": " + report.format(values[k]);
      place.append(span);
    });
  }

  // What stands for the sample, by what there is of it.
  report.content = function (row, whole) {
    const d = report.data, place = element("div", "content");
    let any = false;
    if (d.image && d.image[row]) {
      const image = element("img");
      image.alt = "Sample " + d.ids[row];
      image.addEventListener("load", function () { if (image.naturalWidth <= 64) image.classList.add("tiny"); });
      image.src = "data:image/png;base64," + d.image[row];
      place.append(image);
      any = true;
    } else if (d.image && whole) {
      place.append(element("p", "facts", "Its image did not fit into this page."));
    }
    if (d.tokens[row] && (whole || !d.image)) {
      shaded(place, d.tokens[row][0], d.tokens[row][1]);
      any = true;
    } else if (d.text && d.text[row] !== null) {
      place.append(element("span", "", d.text[row]));
      any = true;
    }
    if (!any || whole) {
      const list = element("dl");
      Object.keys(d.columns).slice(0, whole ? 30 : 6).forEach(function (name) {
        const value = d.columns[name][row];
        if (value === null) return;
        list.append(element("dt", "", name), element("dd", "", String(value)));
      });
      if (list.childElementCount) place.append(list);
    }
    return place;
  };

  function facts(row) {
    const d = report.data, facts = [];
    if (d.worst) facts.push("harms most: " + d.targets[d.worst[row]]);
    if (d.confidence[row] >= 0.5) facts.push("surely harmful: " + Math.floor(100 * d.confidence[row]) + " %");
    if (d.outlier[row]) facts.push("outlier");
    if (d.copies[row] >= 0) facts.push("has duplicates");
    return facts;
  }

  function groupsOf(row) {
    return report.data.groups.slice(0, 3).map(function (group) { return group.name + ": " + group.levels[group.codes[row]]; });
  }

  // How a list says its score: a value as it is, a doubt as a share of what it could be.
  function scored(score) {
    return element("span", "score " + (score < 0 ? "bad" : "good"), report.format(score));
  }

  function card(row, shown, said) {
    const item = element("li"), button = element("button");
    button.type = "button";
    button.dataset.row = row;
    button.append(shown, report.content(row, false));
    const rest = groupsOf(row).concat(facts(row)).filter(function (fact) {
      return !said.length || !/^(label|suggested_label|harms most): /.test(fact); // what was said already
    });
    said.concat(["id " + report.data.ids[row]].concat(rest).join(" \u00b7 ")).forEach(function (fact) {
      button.append(element("span", "facts", fact));
    });
    button.addEventListener("click", function () { report.openSample(row); });
    item.append(button);
    return item;
  }

  function fill(name, rows, most, score, says, shows) {
    const list = document.getElementById(name);
    list.replaceChildren.apply(list, rows.slice(0, most).map(function (row) {
      return card(row, shows ? shows(row) : scored(score[row]), says ? [says(row)] : []);
    }));
    list.classList.toggle("pictured", Boolean(report.data.image) && !report.data.text);
    const button = document.querySelector('.further[data-list="' + name + '"]');
    if (button) button.hidden = rows.length <= most;
  }

  report.fill = fill;

  function lists(rows) {
    const score = report.score(), ordered = rows.slice().sort(function (a, b) { return score[a] - score[b]; });
    const harmful = ordered.filter(function (i) { return score[i] < 0; });
    // Nearly every sample harms some target a little: what helps is judged over all targets.
    const byHarm = report.state.rank === "harm", good = byHarm ? report.data.normalised : score;
    const helpful = rows.filter(function (i) { return good[i] > 0; }).sort(function (a, b) { return good[b] - good[a]; });
    document.getElementById("helpful-words").textContent = helpful.length
      ? "By " + report.ranks[byHarm ? "normalised" : report.state.rank].name + "."
      : "None of these samples is above 0.";
    document.getElementById("harmful-words").textContent = harmful.length
      ? "By " + report.ranks[report.state.rank].name + "."
      : "None of these samples is below 0.";
    fill("harmful", harmful, shown.harmful, score);
    fill("helpful", helpful, shown.helpful, good);
  }

  // What a label should perhaps be, or null: the stated suggestion, or the class that is harmed most.
  report.suggestion = function (row) {
    const d = report.data, stated = d.columns.suggested_label;
    if (stated) return stated[row] === null ? null : String(stated[row]);
    if (!d.columns.label || !d.harm || d.harm[row] >= 0) return null;
    const target = d.targets[d.worst[row]];
    return own(target, d.columns.label[row]) ? null : target;
  };

  // Labels that look wrong: by what the run's samples say of their labels, or by the harm profile.
  function labels(rows) {
    const d = report.data, given = d.columns.label, doubt = d.columns.doubt_rank, wrong = d.wrong;
    const words = document.getElementById("labels-words"), by = wrong || d.harm;
    let doubtful = [], shows = null;
    if (given && (wrong || doubt)) {
      const known = wrong || doubt, sign = wrong ? -1 : 1;
      doubtful = rows.filter(function (i) { return known[i] !== null; }).sort(function (a, b) { return sign * (known[a] - known[b]); });
      shows = function (i) { return element("span", "score", wrong ? "probably wrong: " + Math.round(100 * wrong[i]) + " %" : "doubt " + doubt[i].toLocaleString() + " of " + d.ids.length.toLocaleString()); };
      words.textContent = wrong ? "By the probability that the label is wrong." : "By rank of doubt, the most doubtful first: where to look, not how probably a label is wrong.";
    } else if (given && d.harm) {
      doubtful = rows.filter(function (i) { return report.suggestion(i) !== null; });
      doubtful.sort(function (a, b) { return d.harm[a] - d.harm[b]; });
      words.textContent = "By the harm to one target, where that is not the label's own: with one target a class, it is the label that the sample may deserve.";
    } else {
      words.textContent = "This needs labels, and one target of the utility a class.";
    }
    const says = function (i) { return "labelled " + given[i] + ", perhaps " + report.suggestion(i); };
    fill("labels", doubtful, shown.labels, by, says, shows);
    first(doubtful.slice(0, TOP), says);
  }

  // The first ones again, as a line each, on the first screen.
  function first(rows, says) {
    const d = report.data, list = document.getElementById("first-labels");
    if (!list) return;
    list.replaceChildren.apply(list, rows.map(function (row) {
      const item = element("li"), button = element("button");
      button.type = "button";
      if (d.image && d.image[row]) {
        const image = element("img");
        image.alt = "";
        image.src = "data:image/png;base64," + d.image[row];
        button.append(image);
      }
      button.append(element("span", "", d.columns.label[row] + " \u2192 " + report.suggestion(row) + (d.text ? ": " + (d.text[row] || "").slice(0, 80) : " (id " + d.ids[row] + ")")));
      button.title = says(row);
      button.addEventListener("click", function () { report.openSample(row); });
      item.append(button);
      return item;
    }));
  }

  // Whether a target is that of a label: 'digit 3' is that of 3.
  function own(target, label) { return target === String(label) || target.endsWith(" " + label); }

  report.updateLists = function (rows) { labels(rows); lists(rows); };

  report.prepareLists = function () {
    document.querySelectorAll(".further").forEach(function (button) {
      button.addEventListener("click", function () {
        shown[button.dataset.list] += 2 * FIRST;
        report.updateLists(report.rows);
      });
    });
    const dialog = document.getElementById("sample");
    document.getElementById("close").addEventListener("click", function () { dialog.close(); });
    [["previous", -1], ["next", 1]].forEach(function (pair) {
      document.getElementById(pair[0]).addEventListener("click", function () { report.openSample(report.beside(pair[1])); });
    });
    dialog.addEventListener("keydown", function (event) {
      if (event.target.closest("input, select, textarea")) return;
      if (event.key === "ArrowLeft") report.openSample(report.beside(-1));
      if (event.key === "ArrowRight") report.openSample(report.beside(1));
    });
  };

  report.openSample = function (row) {
    if (row === undefined) return;
    const d = report.data, dialog = document.getElementById("sample"), place = document.getElementById("sample-content");
    report.opened = row;
    document.getElementById("sample-title").textContent = "Sample " + d.ids[row];
    const numbers = [["total value", d.value[row]], ["normalised", d.normalised[row]]];
    if (d.harm) numbers.push(["worst-harmed target", d.harm[row]]);
    const scores = element("p", "facts", numbers.map(function (n) { return n[0] + " " + report.format(n[1]); }).concat(
      d.visits[row] + " visits, steps " + d.first[row] + " to " + d.last[row], facts(row)).join(" · "));
    const parts = [report.content(row, true), scores];
    if (d.tokens[row]) parts.push(element("p", "facts", "Shading: what each token took off the validation loss (green) or put on (red), over the sample's visits."));
    const history = element("div", "chart");
    if (report.visitsOf[row].length) parts.push(element("h3", "", "Its visits"), history);
    if (d.harms) parts.push(element("h3", "", "By target (normalised)"), profile(row));
    if (d.copies[row] >= 0) parts.push(element("h3", "", "Same content"), siblings(row));
    place.replaceChildren.apply(place, parts);
    if (!dialog.open) dialog.showModal();
    if (report.visitsOf[row].length) report.history(history, row);
  };

  function profile(row) {
    const d = report.data, table = element("table"), order = d.targets.map(function (_, k) { return k; });
    order.sort(function (a, b) { return d.harms[a][row] - d.harms[b][row]; });
    order.forEach(function (k) {
      const line = element("tr"), value = d.harms[k][row];
      line.append(element("th", "", d.targets[k]), element("td", "number " + (value < 0 ? "bad" : "good"), report.format(value)));
      line.firstChild.scope = "row";
      table.append(line);
    });
    return table;
  }

  function siblings(row) {
    const d = report.data, list = element("p");
    for (let i = 0; i < d.ids.length; i++) {
      if (i === row || d.copies[i] !== d.copies[row]) continue;
      const link = element("button", "link", d.ids[i] + " (" + report.format(d.value[i]) + ")");
      link.type = "button";
      link.addEventListener("click", function () { report.openSample(i); });
      list.append(link, " ");
    }
    return list;
  }
})();
