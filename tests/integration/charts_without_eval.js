// Draws charts as the report's page does, in a JavaScript that compiles no strings:
// node --disallow-code-generation-from-strings charts_without_eval.js RENDERER CHARTS OPTIONS
// The browser's document is a stand-in that takes everything; a view draws itself as text.
"use strict";
const fs = require("fs");
const vm = require("vm");
const [renderer, charts, options] = process.argv.slice(2);

const KNOWN = { nodeType: 1, clientWidth: 600, clientHeight: 300, length: 0, then: undefined };

function anything() {
  return new Proxy(function () { return anything(); }, {
    get: function (_, name) {
      if (name === Symbol.toPrimitive) return () => "";
      if (name === Symbol.iterator) return function* () {};
      return name in KNOWN ? KNOWN[name] : anything();
    },
    set: () => true,
    construct: () => anything(),
  });
}

globalThis.window = globalThis;
globalThis.document = anything();
globalThis.getComputedStyle = anything;
globalThis.addEventListener = globalThis.removeEventListener = anything;
globalThis.Element = globalThis.HTMLElement = globalThis.ShadowRoot = function () {};
vm.runInThisContext(fs.readFileSync(renderer, "utf8"));

(async function () {
  let refused = false;
  try { new Function("return 1")(); } catch (error) { refused = error instanceof EvalError; }
  const svg = {};
  for (const [name, spec] of Object.entries(JSON.parse(fs.readFileSync(charts, "utf8")))) {
    const how = Object.assign({ defaultStyle: false }, JSON.parse(options), { renderer: "none" });
    const { view } = await globalThis.vegaEmbed(anything(), spec, how);
    svg[name] = await view.toSVG();
  }
  console.log(JSON.stringify({ refused: refused, svg: svg }));
})().catch(function (error) { console.error(error.stack); process.exit(1); });
