// What the operator's page is made of: cells, tables that change in place, questions and actions.

export const { root } = document.documentElement.dataset;
const csrf = document.querySelector('meta[name="csrf"]').content;

export function cell(text, kind = "", title = "") {
  const td = document.createElement("td");
  td.textContent = text;
  if (kind) td.className = kind;
  if (title) td.title = title;
  return td;
}

export const number = (value, title = "", kind = "") => cell(value.toLocaleString(undefined, { maximumFractionDigits: 1 }), `number ${kind}`.trim(), title);
export const when = (moment) => new Date(moment).toLocaleString();
export const size = (bytes) => (bytes < 1000 ? `${bytes} B` : bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

export function button(label, onclick) {
  return Object.assign(document.createElement("button"), { type: "button", textContent: label, onclick });
}

// A bar a second. The numbers are in its title, for those who can't see it.
export function spark(values) {
  const most = Math.max(1, ...values);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", `0 0 ${values.length} 24`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `events in each of the last ${values.length} s: at most ${Math.max(...values)}, now ${values.at(-1)}`);
  const path = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  path.setAttribute("d", values.map((value, x) => (value ? `M${x} 24V${24 - Math.max(1, (23 * value) / most)}h.8V24z` : "")).join(""));
  const td = document.createElement("td");
  td.append(svg);
  return td;
}

// Changes rows and cells in place, so that neither the focus nor an opened detail is lost while numbers move.
export function fill(table, items, keyOf, draws, titles = null) {
  if (titles && !table.tHead.rows.length) {
    const head = table.tHead.insertRow();
    for (const title of titles) head.append(Object.assign(document.createElement("th"), { textContent: title, scope: "col" }));
  }
  const body = table.tBodies[0];
  const rows = new Map([...body.rows].map((tr) => [tr.dataset.key, tr]));
  items.forEach((item, place) => {
    const key = keyOf(item);
    const tr = rows.get(key) ?? document.createElement("tr");
    rows.delete(key);
    tr.dataset.key = key;
    draws.forEach((draw, column) => {
      const seen = JSON.stringify([item, column]);
      const td = draw(item);
      const old = tr.cells[column];
      if (!old) tr.append(td);
      else if (old.outerHTML !== td.outerHTML && (old.dataset.seen !== seen || !old.querySelector("details, button"))) old.replaceWith(td);
      tr.cells[column].dataset.seen = seen;
    });
    if (body.rows[place] !== tr) body.insertBefore(tr, body.rows[place] ?? null);
  });
  for (const tr of rows.values()) tr.remove();
  if (titles && !items.length) {
    const tr = body.insertRow();
    const td = tr.appendChild(cell("none", "none"));
    td.colSpan = titles.length;
  }
}

export async function ask(url) {
  const response = await fetch(url, { credentials: "same-origin" });
  if (!response.ok) throw new Error(`the server answers ${response.status}`);
  return response.json();
}

export async function act(url, wish) {
  const headers = { "Content-Type": "application/json", "X-Keyfold-CSRF": csrf };
  const response = await fetch(url, { method: "POST", headers, body: JSON.stringify(wish), credentials: "same-origin" });
  const body = await response.json();
  return response.ok ? body.message : `Refused: ${body.error.message}`;
}

// Resolves to whether the operator agrees.
export function answer(question, label, evidence) {
  const dialog = document.querySelector("#confirm");
  dialog.querySelector("#question").textContent = question;
  const pre = dialog.querySelector("#evidence");
  pre.textContent = evidence;
  pre.hidden = !evidence;
  dialog.querySelector("#yes").textContent = label;
  return agreed(dialog);
}

// Resolves to the text as the operator has changed it, or to null.
export async function edit(question, label, text) {
  const dialog = document.querySelector("#editor");
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
