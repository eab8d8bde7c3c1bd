import { watch } from "/keyfold/keyfold.js";
import { byId, count, drawSoon, element, mean, minutes, names, showClock, showStatus } from "./live.js";

const HUBS = ["EWR", "JFK", "LGA"];
const empty = () => ({ upto: 0, at: "", total: { flights: 0, delay: 0, cancelled: 0 }, airports: {} });
let state = empty();
const rows = new Map();
const changed = new Set();

function row(code) {
  if (!rows.has(code)) {
    const hub = HUBS.includes(code);
    const link = element("a", hub ? "hub" : "place");
    link.href = `/airport/${code}`;
    const parts = {
      link,
      count: element("b", "num"),
      detail: element("span", "muted"),
      bar: element("i", "bar"),
    };
    const text = element("span", "text");
    text.append(element("span", "code", code), element("span", "name", names[code] ?? code));
    link.append(text, parts.count, parts.detail, parts.bar);
    if (hub) {
      byId("hubs").append(link);
    } else {
      const item = element("li");
      item.append(link);
      byId("list").append(item);
    }
    rows.set(code, parts);
  }
  return rows.get(code);
}

const draw = drawSoon(() => {
  showClock(state.at);
  byId("flights").textContent = count(state.total.flights);
  byId("cancelled").textContent = count(state.total.cancelled);
  byId("delay").textContent = minutes(mean(state.total));
  byId("places").textContent = count(Object.keys(state.airports).length);
  const max = Math.max(1, ...Object.entries(state.airports).map(([code, t]) => (HUBS.includes(code) ? 0 : t.flights)));
  const order = Object.entries(state.airports).sort(([a, s], [b, t]) => t.flights - s.flights || a.localeCompare(b));
  for (const code of HUBS) row(code);
  for (const [code, tally] of order) {
    const parts = row(code);
    parts.count.textContent = count(tally.flights);
    const cancelled = tally.cancelled ? ` · ${count(tally.cancelled)} cancelled` : "";
    parts.detail.textContent = `${minutes(mean(tally))} mean delay${cancelled}`;
    parts.bar.style.setProperty("--share", HUBS.includes(code) ? 0 : tally.flights / max);
    if (changed.has(code)) {
      parts.link.classList.remove("flash");
      void parts.link.offsetWidth;
      parts.link.classList.add("flash");
    }
  }
  order.filter(([code]) => !HUBS.includes(code)).forEach(([code], place) => {
    const item = rows.get(code).link.parentElement;
    const list = byId("list");
    if (list.children[place] !== item) list.insertBefore(item, list.children[place] ?? null);
  });
  changed.clear();
});

watch("airports.overview", "all", {
  onStatus: showStatus,
  onState(whole) {
    state = whole ?? empty();
    if (!whole) {
      rows.clear();
      byId("hubs").replaceChildren();
      byId("list").replaceChildren();
    }
    draw();
  },
  onDelta(delta) {
    if (!delta.airports) return;
    state.at = delta.at;
    state.total = delta.total;
    for (const [code, tally] of Object.entries(delta.airports)) {
      state.airports[code] = tally;
      changed.add(code);
    }
    draw();
  },
});

async function replay(order) {
  const answer = await fetch("/replay", order && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(order),
  });
  const status = await answer.json();
  byId("pause").textContent = status.paused ? "Go on" : "Pause";
  byId("pause").dataset.paused = status.paused;
  for (const radio of document.querySelectorAll("[name=speed]")) radio.checked = Number(radio.value) === status.speed;
}
byId("pause").onclick = () => replay({ paused: byId("pause").dataset.paused !== "true" });
byId("over").onclick = () => replay({ start_over: true });
byId("controls").onchange = (event) => replay({ speed: Number(event.target.value) });
replay();
