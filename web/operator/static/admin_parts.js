// The parts of the operator's page: descriptions of elements, updates of the page, dialogs and requests.

export const { root } = document.documentElement.dataset;
const csrf = document.querySelector('meta[name="csrf"]').content;
export const find = (selector) => document.querySelector(selector);

// -- numbers and times

const plain = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const moments = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
export const count = (value) => plain.format(value);
export const when = (moment) => moments.format(new Date(moment));
export const size = (bytes) => (bytes < 1000 ? `${bytes} B` : bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

// An age, in steps of at least a minute: a number that changes often would suggest that something happens.
export function age(seconds) {
  if (seconds < 60) return "under 1 min";
  return seconds < 7200 ? `${Math.floor(seconds / 60)} min` : `${Math.floor(seconds / 3600)} h`;
}

// -- elements

// Describes an element. An attribute that is null, false or undefined is absent; a function is a handler, like onclick.
export const h = (tag, attributes, ...children) => ({ tag, attributes, children });
export const cell = (text, kind = null, title = null) => h("td", { class: kind || null, title: title || null }, text);
export const number = (value, title = null, kind = "") => cell(count(value), `number ${kind}`.trim(), title);
export const button = (label, onclick) => h("button", { type: "button", onclick }, label);
export const headings = (titles) => h("tr", {}, ...titles.map((title) => h("th", { scope: "col" }, title)));

// One bar per second. Its label has the numbers, for screen readers.
export function spark(values) {
  const max = Math.max(1, ...values);
  const d = values.map((value, x) => (value ? `M${x} 24V${24 - Math.max(1, (23 * value) / max)}h.8V24z` : "")).join("");
  const label = `events in each of the last ${values.length} s: at most ${Math.max(...values)}, now ${values.at(-1)}`;
  const frame = { class: "spark", viewBox: `0 0 ${values.length} 24`, preserveAspectRatio: "none", role: "img", "aria-label": label };
  return h("td", {}, h("svg", frame, h("path", { d })));
}

const SVG = new Set(["svg", "path"]);

function make(wanted) {
  if (!wanted.tag) return document.createTextNode(wanted);
  const namespace = SVG.has(wanted.tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  return patch(document.createElementNS(namespace, wanted.tag), wanted);
}

// Changes an element to match a description. Equal parts are not touched: their nodes stay, with their focus, their
// listeners and all attributes that the description does not name, like the open attribute of details.
export function patch(element, { attributes, children }) {
  for (const [name, value] of Object.entries(attributes)) setAttribute(element, name, value);
  setChildren(element, ...children);
  return element;
}

// Setting an attribute to its present value is a mutation too, and a screen reader may read a live region again.
export function setAttribute(element, name, value) {
  if (typeof value === "function") element[name] = value;
  else if (value === null || value === undefined || value === false) element.hasAttribute(name) && element.removeAttribute(name);
  else if (element.getAttribute(name) !== `${value === true ? "" : value}`) element.setAttribute(name, value === true ? "" : value);
}

export function setChildren(element, ...children) {
  children.forEach((child, place) => {
    const wanted = child?.tag ? child : `${child}`;
    const old = element.childNodes[place];
    if (!old) element.append(make(wanted));
    else if (old.nodeName.toLowerCase() !== (wanted.tag ?? "#text")) old.replaceWith(make(wanted));
    else if (wanted.tag) patch(old, wanted);
    else if (old.data !== wanted && !selectionEnds.includes(old)) old.data = wanted;
  });
  while (element.childNodes.length > children.length) element.lastChild.remove();
}

export const show = (selector, visible) => setAttribute(find(selector), "hidden", !visible);
export const say = (selector, text) => setChildren(find(selector), text);

// The text nodes at the two ends of a selection. Writing to one of them would move that end, so they are written after
// the selection has gone. They are recorded when they change: reading them between two writes forces a layout each time.
let selectionEnds = [];
document.addEventListener("selectionchange", () => {
  const { isCollapsed, anchorNode, focusNode } = getSelection();
  selectionEnds = isCollapsed ? [] : [anchorNode, focusNode];
});

// -- when the page may change

const STILL_MS = 30_000;
const ACTIVE_ROW = 'tbody tr:not([data-key=""]):is(:hover, :has(:focus-visible)), dialog[open]';
let lastInput = -Infinity;
let pressed = false;
let releasing = null;
let postponed = null;
let rowsStandStill = false;
let answersTheOperator = false;
let someRowsWait = false;

for (const kind of ["pointermove", "pointerdown", "wheel", "keydown"]) {
  addEventListener(kind, () => { lastInput = performance.now(); }, { capture: true, passive: true });
}

// A press and its release make a click only on the same node, so nothing is drawn between them. The click comes between
// the release and the next task. A browser may not report the release, for instance after its own menu: then a move
// without a pressed button shows it.
addEventListener("pointerdown", ({ button: which }) => { clearTimeout(releasing); pressed = which === 0; }, true);
addEventListener("click", () => { pressed = false; }, true);
addEventListener("pointermove", ({ buttons }) => pressed && !buttons && release(), true);
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => { releasing = setTimeout(release); }, true);
addEventListener("blur", () => pressed && release());

function release() {
  pressed = false;
  if (!postponed) return;
  const [draw, asked] = postponed;
  postponed = null;
  paint(draw, { asked });
}

// Draws now, or when the pointer is released. The answer to a request of the operator is drawn in any case.
export function paint(draw, { asked = false } = {}) {
  if (pressed) {
    postponed = [draw, asked || Boolean(postponed?.[1])];
    return;
  }
  if (asked) lastInput = -Infinity;
  answersTheOperator = asked;
  rowsStandStill = performance.now() - lastInput < STILL_MS && Boolean(find(ACTIVE_ROW));
  someRowsWait = false;
  draw();
  show("#still", someRowsWait);
}

// Shows or hides an element above rows, which would shift them.
export function showAbove(selector, visible) {
  if (!rowsStandStill) show(selector, visible);
  else someRowsWait ||= find(selector).hidden === visible;
}

// Updates the rows of a table. The node of a row stays the same as long as its key is listed. While the operator is
// about to act on a row, no row is added, removed or moved; rows that are no longer listed are struck through.
export function fill(table, items, keyOf, draws, titles = null) {
  if (titles && !table.tHead.rows.length) table.tHead.append(make(headings(titles)));
  const body = table.tBodies[0];
  const old = [...body.rows];
  const known = new Map(old.map((tr) => [tr.dataset.key, tr]));
  const wanted = items.map((item) => [keyOf(item), draws.map((draw) => draw(item))]);
  if (titles && !items.length) wanted.push(["", [h("td", { class: "none", colspan: titles.length }, "none")]]);
  const listed = new Set(wanted.map(([key]) => key));
  for (const tr of old) {
    const gone = !listed.has(tr.dataset.key);
    setAttribute(tr, "class", gone && "gone");
    setAttribute(tr, "title", gone && "no longer listed");
  }
  const rows = wanted.map(([key, cells]) => {
    const tr = known.get(key);
    const row = h("tr", { "data-key": key }, ...cells);
    return tr ? patch(tr, row) : rowsStandStill ? null : make(row);
  });
  if (rowsStandStill) someRowsWait ||= rows.length !== old.length || rows.some((tr, place) => tr !== old[place]);
  else arrange(body, old, rows);
}

// The row that has the focus is not moved, because it would lose the focus: the others are moved around it. It is
// removed only after an action of the operator; then the focus goes to the same control of the row in its place.
function arrange(body, old, rows) {
  const focused = old.find((tr) => tr.contains(document.activeElement));
  const place = old.indexOf(focused);
  const control = focused ? controls(focused).indexOf(document.activeElement) : -1;
  const gone = focused && !rows.includes(focused);
  if (gone && !answersTheOperator) rows.splice(place, 0, focused);
  for (const tr of old) if (!rows.includes(tr)) tr.remove();
  const staying = inOrder(rows, old, focused?.isConnected ? focused : null);
  rows.reduceRight((next, tr) => {
    if (!staying.has(tr)) body.insertBefore(tr, next);
    return tr;
  }, null);
  if (gone && !focused.isConnected) {
    const heir = body.rows[Math.min(place, body.rows.length - 1)];
    (controls(heir)[control] ?? find("#main")).focus({ preventScroll: true });
  }
}

// Returns the largest set of rows that need not move: the longest increasing run of their old places.
function inOrder(rows, old, focused) {
  const place = new Map(old.map((tr, at) => [tr, at]));
  const middle = rows.indexOf(focused);
  const runs = []; // for each row that may stay, the longest run that ends with it
  rows.forEach((tr, at) => {
    const from = place.get(tr);
    if (from === undefined || (focused && Math.sign(from - place.get(focused)) !== Math.sign(at - middle))) return;
    const earlier = runs.filter((run) => run.from < from).reduce((best, run) => (run.length > (best?.length ?? 0) ? run : best), null);
    runs.push({ tr, from, earlier, length: 1 + (earlier?.length ?? 0) });
  });
  const staying = new Set();
  let run = runs.reduce((best, one) => (one.length > (best?.length ?? 0) ? one : best), null);
  for (; run; run = run.earlier) staying.add(run.tr);
  return staying;
}

const controls = (tr) => [...tr.querySelectorAll("a, button, summary")];

// -- requests and dialogs

export async function ask(url) {
  const response = await fetch(url, { credentials: "same-origin" });
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  return response.json();
}

export async function act(url, action) {
  const headers = { "Content-Type": "application/json", "X-Keyfold-CSRF": csrf };
  const response = await fetch(url, { method: "POST", headers, body: JSON.stringify(action), credentials: "same-origin" });
  const body = await response.json();
  return response.ok ? body.message : `Refused: ${body.error.message}`;
}

// Resolves to true if the operator agrees, else to false.
export function confirmed(question, label, evidence) {
  const dialog = find("#confirm");
  dialog.querySelector("#question").textContent = question;
  const pre = dialog.querySelector("#evidence");
  pre.textContent = evidence;
  pre.hidden = !evidence;
  dialog.querySelector("#yes").textContent = label;
  return agreed(dialog);
}

// Resolves to the text that the operator has edited, or to null.
export async function edit(question, label, text) {
  const dialog = find("#editor");
  dialog.querySelector("#editor-question").textContent = question;
  dialog.querySelector("#editor-yes").textContent = label;
  const field = dialog.querySelector("#editor-text");
  field.value = text;
  return (await agreed(dialog)) ? field.value : null;
}

function agreed(dialog) {
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}
