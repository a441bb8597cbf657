// The selection as a file: ids, tables, and what two annotation tools import.
(function () {
  "use strict";

  function download(name, text, type) {
    const link = report.element("a");
    link.href = URL.createObjectURL(new Blob([text], { type: type }));
    link.download = name;
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 10000);
  }

  // A spreadsheet would run a cell that begins like a formula, also behind blanks and behind other
  // separators than the comma: an apostrophe goes there. `defused` in cli/_formulas.py is its twin.
  function csvCell(x) {
    let text = x === null || x === undefined ? "" : String(x);
    if (typeof x === "string" && !/^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/.test(text)) {
      const first = /^([\s|;]*[=+\-@\uff0b\uff0d\uff1d\uff20]|[\t\r])/.test(text);
      text = text.replace(/([|;\t\r\n][\s|;]*)(?=[=+\-@\uff0b\uff0d\uff1d\uff20])/g, "$1'");
      if (first) text = "'" + text;
    }
    return /[",;|\t\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  }

  // A sample as a flat object: what inrun says of it, then its own columns.
  function record(i) {
    const d = report.data, found = {
      sample_id: d.ids[i], value: d.value[i], value_normalised: d.normalised[i], visits: d.visits[i],
      first_step: d.first[i], last_step: d.last[i],
    };
    if (d.worst) { found.worst_target = d.targets[d.worst[i]]; found.worst_value = d.harm[i]; }
    found.confidence = d.confidence[i];
    if (d.text) found.text = d.text[i];
    Object.keys(d.columns).forEach(function (name) { if (!(name in found)) found[name] = d.columns[name][i]; });
    return found;
  }

  function csv(rows) {
    const records = rows.map(record), names = Object.keys(record(0));
    const lines = [names].concat(records.map(function (r) { return names.map(function (name) { return r[name]; }); }));
    return lines.map(function (line) { return line.map(csvCell).join(",") + "\n"; }).join("");
  }

  // One field of one name for all samples: the tools' settings name it, and refuse files without.
  function content(i) {
    const d = report.data;
    if (d.text) return { text: d.text[i] || "" };
    if (d.image) return { image: d.image[i] ? "data:image/png;base64," + d.image[i] : "" };
    return { text: Object.keys(d.columns).map(function (name) { return name + ": " + d.columns[name][i]; }).join("\n") };
  }

  // A suggestion that one can choose: another sample's label, and no number or words on one of several.
  let choices = null;
  function choice(i) {
    const d = report.data, suggested = report.suggestion(i);
    choices = choices || new Set(d.targets.concat((d.columns.label || []).filter(function (name) { return typeof name !== "number" || Number.isInteger(name); }).map(String)));
    return choices.has(suggested) ? suggested : null;
  }

  // `Dataset.records.from_json` of Argilla 2: fields, metadata, a suggestion for the question "label".
  function argilla(rows) {
    return JSON.stringify(rows.map(function (i) {
      const d = report.data, suggested = choice(i), metadata = { value: d.value[i], value_normalised: d.normalised[i], visits: d.visits[i] };
      ["label", "source"].forEach(function (name) { if (d.columns[name] && d.columns[name][i] !== null) metadata["given_" + name] = String(d.columns[name][i]); });
      if (suggested === null && report.suggestion(i) !== null) metadata.suggested_label = String(report.suggestion(i));
      const suggestions = suggested === null ? {} : { label: { value: suggested, score: null, agent: "inrun" } };
      return { id: d.ids[i], fields: content(i), metadata: metadata, suggestions: suggestions, responses: {}, vectors: {} };
    }), null, 1);
  }

  // Label Studio's tasks with predictions: a choice named "label" on what is shown.
  function labelStudio(rows) {
    return JSON.stringify(rows.map(function (i) {
      const d = report.data, shown = content(i), suggested = choice(i), name = Object.keys(shown)[0];
      const result = suggested === null ? [] : [{ from_name: "label", to_name: name, type: "choices", value: { choices: [suggested] } }];
      const data = Object.assign({}, shown, { sample_id: d.ids[i], value: d.value[i] });
      ["label", "source"].forEach(function (column) { if (d.columns[column]) data["given_" + column] = d.columns[column][i]; });
      if (suggested === null && report.suggestion(i) !== null) data.suggested_label = String(report.suggestion(i));
      return { data: data, predictions: [{ model_version: "inrun", result: result }] };
    }), null, 1);
  }

  const formats = {
    ids: { name: "ids", file: "ids.txt", type: "text/plain", of: function (rows) { return rows.map(function (i) { return report.data.ids[i] + "\n"; }).join(""); } },
    csv: { name: "table (CSV)", file: "samples.csv", type: "text/csv", of: csv },
    jsonl: { name: "rows (JSONL)", file: "samples.jsonl", type: "application/jsonl", of: function (rows) { return rows.map(function (i) { return JSON.stringify(record(i)) + "\n"; }).join(""); } },
    argilla: { name: "Argilla", file: "argilla.json", type: "application/json", of: argilla },
    labelstudio: { name: "Label Studio", file: "label-studio.json", type: "application/json", of: labelStudio },
  };

  report.prepareExport = function (chosenRows) {
    const select = document.getElementById("format");
    Object.keys(formats).forEach(function (key) { select.add(new Option(formats[key].name, key)); });
    select.addEventListener("input", function (event) { event.stopPropagation(); }); // it filters nothing
    document.getElementById("export").addEventListener("click", function () {
      const format = formats[select.value];
      download(format.file, format.of(chosenRows()), format.type);
    });
  };
})();
