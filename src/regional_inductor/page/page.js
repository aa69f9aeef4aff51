"use strict";
// The page of a report. All text from the report goes in as text nodes, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const element = (name, text, attributes = {}) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

// Text that may be broken after the parts of a name.
const breakable = (made, text) => {
  made.replaceChildren(...text.match(/[^._/=+]*[._/=+]*/g).flatMap((piece) => [piece, element("wbr")]));
  return made;
};

// --- light and dark ---
const root = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
var picture = null; // var: tests look at it
function setTheme(theme) {
  root.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", theme === "dark" ? "Light colours" : "Dark colours");
  if (picture) picture.style(pictureStyle());
}
byId("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
prefersDark.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
setTheme(prefersDark.matches ? "dark" : "light");

// --- the table: sortable-tablesort sorts by click; this makes its headings work by key, and filters ---
const table = byId("regions");
for (const heading of table.tHead.rows[0].cells) {
  heading.tabIndex = 0;
  heading.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    heading.click();
  });
}
function filter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...table.tBodies[0].rows];
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  byId("shown").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} regions`;
}
byId("filter").addEventListener("input", filter);
filter();
table.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-region]");
  if (button) showRegion(Number(button.dataset.graph), Number(button.dataset.region));
});

// --- a region's details ---
function showRegion(graph, number) {
  const region = data.graphs[graph].regions[number];
  byId("details-title").textContent = `${region.name} (${region.direction})`;
  const list = element("dl");
  const add = (name, value) => {
    if (value === "" || value === null || value === undefined) return;
    list.append(element("dt", name), element("dd", value));
  };
  add("status", region.reason ? `${region.status}: ${region.reason}` : region.status);
  add("source", region.source);
  add("module", region.module_path);
  add("key", region.key);
  add("places", String(region.shared_by));
  add("inputs", region.inputs.join(", "));
  add("outputs", region.outputs.join(", "));
  if (region.bytes_eager !== null && region.bytes_read !== null) add("bytes", `${region.bytes_eager.toLocaleString("en")} by its operators one by one, ${(region.bytes_read + region.bytes_written).toLocaleString("en")} by one kernel (${region.bytes_read.toLocaleString("en")} read)`);
  if (region.flops) add("flops", region.flops.toLocaleString("en"));
  add("options", Object.entries(region.changed_options).map((pair) => pair.join("=")).join(", "));
  add("operators", region.ops.join(", "));
  if (region.kernels) add("kernels", region.kernels.map((kernel) => `${kernel.name} (${kernel.kind})`).join(", "));
  if (region.not_fused && region.not_fused.length) add("not in the largest kernel", region.not_fused.join(", "));
  add("seconds", Object.entries(region.steps).map(([step, seconds]) => `${step} ${seconds.toFixed(3)}`).join(", "));
  const body = byId("details-body");
  body.replaceChildren(list);
  const code = data.code[region.key];
  if (code === undefined) {
    body.append(element("p", "No generated code was recorded for it.", { class: "hint" }));
  } else {
    const details = element("details", undefined, { id: "code" });
    const pre = element("pre", undefined, { tabindex: "0", "aria-label": "Generated code" });
    details.append(element("summary", "Generated code"), pre);
    details.addEventListener("toggle", () => {
      if (!details.open || pre.firstChild) return;
      const text = element("code", code, { class: "language-python" });
      pre.append(text);
      if (code.length < 300000) hljs.highlightElement(text);
    });
    body.append(details);
  }
  byId("details").showModal();
}

// --- the graph: what is drawn are the boxes at the edge of what is open ---
const COLOURS = ["#9ec9f5", "#f7c08a", "#a9dba3", "#f2a7a5", "#cdb7ec", "#e6cf86", "#f3b3d6", "#9adcd6", "#c9d48c", "#bcc6d2"];
let shown = 0; // which graph
let boxes = []; // of the shown graph: {id, label, parent, children, count, region, operator}
let opened = new Set();

function prepare(graph) {
  boxes = [];
  opened = new Set();
  const operators = graph.operators;
  const visit = (plain, parent) => {
    const id = boxes.length;
    if (typeof plain === "number") {
      const [name, op, region] = operators[plain];
      boxes.push({ id, parent, children: [], count: 1, region, operator: plain, label: `${op.replace(/^aten\./, "")}\n${name}` });
    } else {
      const box = { id, parent, children: [], count: plain.count, region: plain.region, kind: plain.kind, label: plain.label };
      boxes.push(box);
      box.children = plain.children.map((child) => visit(child, id));
    }
    return id;
  };
  for (const plain of graph.boxes) visit(plain, null);
}
const keys = [...new Set(data.graphs.flatMap((graph) => graph.regions.map((region) => region.key || region.name)))];
function colourOf(box) {
  if (box.region === null || box.region === undefined) return null;
  const region = data.graphs[shown].regions[box.region];
  if (!region) return null;
  return COLOURS[keys.indexOf(region.key || region.name) % COLOURS.length];
}
function amountIn(box) {
  const inside = new Set();
  const visit = (id) => {
    const one = boxes[id];
    if (one.region !== null && one.region !== undefined) inside.add(one.region);
    else one.children.forEach(visit);
  };
  if (box.kind === "module" || box.kind === "operators") box.children.forEach(visit);
  const operators = `${box.count} operator${box.count === 1 ? "" : "s"}`;
  return inside.size ? `${operators}, ${inside.size} region${inside.size === 1 ? "" : "s"}` : operators;
}
function visible(box) { // whether all that holds it is open
  for (let at = box.parent; at !== null; at = boxes[at].parent) if (!opened.has(at)) return false;
  return true;
}
function elements() {
  const graph = data.graphs[shown];
  const found = [];
  const drawnFor = new Map(); // operator -> box that stands for it
  for (const box of boxes) {
    if (visible(box)) {
      const open = opened.has(box.id);
      const [name, last] = box.operator !== undefined ? box.label.split("\n") : [box.label, amountIn(box)];
      const text = shortened(name, last);
      found.push({
        data: { id: `b${box.id}`, box: box.id, parent: box.parent === null ? undefined : `b${box.parent}`, label: open ? box.label : text.join("\n"), height: Math.max(44, 15 * text.length + 14), colour: colourOf(box) || "" },
        classes: [open ? "open" : box.operator !== undefined ? "operator" : "closed", colourOf(box) ? "region" : ""].join(" "),
      });
    }
    if (box.operator !== undefined) {
      let stands = box.id;
      for (let at = box.parent; at !== null; at = boxes[at].parent) if (!opened.has(at)) stands = at;
      drawnFor.set(box.operator, stands);
    }
  }
  const edges = new Set();
  graph.operators.forEach((operator, number) => {
    for (const input of operator[3]) {
      const [from, to] = [drawnFor.get(input), drawnFor.get(number)];
      if (from !== to && from !== undefined && to !== undefined) edges.add(`${from} ${to}`);
    }
  });
  for (const edge of edges) {
    const [from, to] = edge.split(" ");
    found.push({ data: { id: `e${from}-${to}`, source: `b${from}`, target: `b${to}` } });
  }
  return found;
}
// A label's lines, broken after the parts of a name; what is too long loses its middle.
const LETTERS = 27;
function lines(text) {
  const found = [];
  for (const line of text.split("\n")) {
    let now = "";
    for (let piece of line.match(/[^._/ +]*[._/ +]*/g)) {
      if (now && (now + piece).trimEnd().length > LETTERS) { found.push(now); now = ""; }
      for (; piece.length > LETTERS; piece = piece.slice(LETTERS)) found.push(piece.slice(0, LETTERS));
      now += piece;
    }
    found.push(now);
  }
  return found;
}
function shortened(label, last) {
  const name = lines(label);
  const kept = name.length > 3 ? [name[0], "…", name[name.length - 1]] : name;
  return [...kept, ...lines(last)];
}
// Edges that would run through a box, which isn't theirs, go around it.
function goAround() {
  const solid = picture.nodes(":childless").map((node) => ({ id: node.id(), ...node.boundingBox({ includeLabels: false, includeOverlays: false }) }));
  const edges = picture.edges();
  if (solid.length * edges.length > 2e6) return;
  const lanes = new Map();
  edges.forEach((edge) => {
    const [from, to] = [edge.source(), edge.target()];
    const [a, b] = [from.position(), to.position()];
    const top = from.boundingBox({ includeLabels: false }).y2, bottom = to.boundingBox({ includeLabels: false }).y1;
    if (bottom - top < 44) return; // neighbours
    const own = new Set([from.id(), to.id(), ...from.descendants().map((one) => one.id()), ...to.descendants().map((one) => one.id())]);
    const between = solid.filter((box) => !own.has(box.id) && box.y1 < bottom && box.y2 > top);
    const at = (y) => a.x + ((y - a.y) / (b.y - a.y)) * (b.x - a.x);
    const crossed = between.filter((box) => [box.y1, box.y2].some((y) => at(y) > box.x1 - 3 && at(y) < box.x2 + 3) || (at(box.y1) < box.x1) !== (at(box.y2) < box.x1));
    if (!crossed.length) return;
    const middle = (a.x + b.x) / 2;
    const beside = (side) => { // the nearest free x on one side
      let x = side < 0 ? Math.min(...crossed.map((box) => box.x1)) - 12 : Math.max(...crossed.map((box) => box.x2)) + 12;
      for (let again = true; again;) {
        again = false;
        for (const box of between) if (x > box.x1 - 6 && x < box.x2 + 6) { x = side < 0 ? box.x1 - 12 : box.x2 + 12; again = true; }
      }
      return x;
    };
    const [left, right] = [beside(-1), beside(1)];
    let x = Math.abs(left - middle) <= Math.abs(right - middle) ? left : right;
    const lane = `${x === left} ${Math.round(x / 6)}`;
    const taken = lanes.get(lane) || 0;
    lanes.set(lane, taken + 1);
    x += (x === left ? -1 : 1) * 5 * (taken % 6);
    const [dx, dy] = [b.x - a.x, b.y - a.y], length = Math.hypot(dx, dy);
    const turns = [[x, top + 18], [x, bottom - 18]].map(([px, py]) => {
      const along = ((px - a.x) * dx + (py - a.y) * dy) / (length * length);
      const off = ((py - a.y) * dx - (px - a.x) * dy) / length;
      return [along.toFixed(4), off.toFixed(2)];
    });
    edge.style({ "curve-style": "round-segments", "edge-distances": "node-position", "segment-radii": 12, "segment-weights": turns.map((turn) => turn[0]).join(" "), "segment-distances": turns.map((turn) => turn[1]).join(" ") });
  });
}
function pictureStyle() {
  const colours = getComputedStyle(root);
  const of = (name) => colours.getPropertyValue(name).trim();
  return [
    { selector: "node", style: { shape: "round-rectangle", label: "data(label)", "text-wrap": "wrap", "text-valign": "center", "font-size": 12, "line-height": 1.15, width: 190, height: "data(height)", "background-color": of("--panel"), "border-width": 1, "border-color": of("--faint"), color: of("--text") } },
    { selector: "node.region", style: { "background-color": "data(colour)", color: "#111" } },
    { selector: "node.closed", style: { "border-width": 2 } },
    { selector: "node.open", style: { "text-valign": "top", "background-opacity": 0.25, color: of("--text"), padding: 14 } },
    { selector: "edge", style: { width: 1, "line-color": of("--faint"), "target-arrow-color": of("--faint"), "target-arrow-shape": "triangle", "arrow-scale": 0.8, "curve-style": "bezier" } },
  ];
}
function draw(fit = true) {
  const found = elements();
  picture.elements().remove();
  picture.add(found);
  picture.layout({ name: "dagre", rankDir: "TB", nodeSep: 24, rankSep: 36, animate: false, fit, padding: 20 }).run();
  goAround();
  if (fit && picture.zoom() < 0.55) { // too small to read: show the beginning, the rest is a drag away
    picture.zoom(0.75);
    const first = picture.nodes(":childless").min((node) => node.boundingBox().y1).ele;
    picture.pan({ x: picture.width() / 2 - 0.75 * first.position("x"), y: 20 - 0.75 * first.boundingBox().y1 });
  }
}
function list() {
  const graph = data.graphs[shown];
  const items = (ids) => {
    const made = element("ul");
    for (const id of ids) {
      const box = boxes[id];
      const item = element("li");
      const colour = colourOf(box);
      if (colour) {
        const swatch = element("span", "", { class: "swatch" });
        swatch.style.background = colour;
        item.append(swatch);
      }
      if (box.operator !== undefined) {
        const [name, op, , , , source, value] = graph.operators[box.operator];
        item.append(breakable(element("span", "", { title: source }), `${op} ${name} ${value}`));
      } else {
        const button = breakable(element("button", "", { type: "button", class: "link", "aria-expanded": String(opened.has(id)), "data-box": String(id) }), `${box.label} (${box.count})`);
        button.addEventListener("click", () => toggle(id));
        item.append(button);
        if (opened.has(id)) item.append(items(box.children));
      }
      made.append(item);
    }
    return made;
  };
  byId("boxes").replaceChildren(items(boxes.filter((box) => box.parent === null).map((box) => box.id)));
}
function toggle(id) {
  if (opened.has(id)) opened.delete(id);
  else opened.add(id);
  draw(false);
  list();
  const node = picture.getElementById(`b${id}`);
  picture.center(node);
  const above = node.renderedBoundingBox().y1;
  if (above < 10) picture.panBy({ x: 0, y: 10 - above }); // its beginning, if not all of it
  const button = byId("boxes").querySelector(`[data-box="${id}"]`);
  if (button) button.focus({ preventScroll: true });
}
function show(number) {
  shown = number;
  prepare(data.graphs[number]);
  list();
  draw();
}
const which = byId("which");
data.graphs.forEach((graph, number) => which.append(element("option", graph.title, { value: number })));
which.addEventListener("change", () => show(Number(which.value)));
byId("fit").addEventListener("click", () => picture.fit(undefined, 20));
byId("collapse").addEventListener("click", () => { opened.clear(); list(); draw(); });
const drawable = data.graphs.findIndex((graph) => graph.operators.length > 0);
if (drawable < 0) {
  byId("cy").textContent = "The report has no operators to draw.";
} else {
  picture = cytoscape({ container: byId("cy"), style: pictureStyle(), minZoom: 0.05, maxZoom: 3 });
  picture.on("tap", "node", (event) => {
    const box = boxes[event.target.data("box")];
    if (box.operator === undefined) toggle(box.id);
  });
  which.value = String(drawable);
  show(drawable);
}
root.dataset.ready = "yes";
