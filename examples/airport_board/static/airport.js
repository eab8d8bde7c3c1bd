import { watch } from "/keyfold/keyfold.js";
import { byId, count, drawSoon, element, mean, minutes, names, showClock, showStatus } from "./live.js";

const code = byId("airport").dataset.code;
const empty = () => ({ at: "", tally: { flights: 0, delay: 0, cancelled: 0 }, carriers: {}, latest: [] });
const LATEST = 14;
let state = empty();
let lags = [];
let newest = 0;

function statusOf(flight) {
  if (flight.delay === null) return ["cancelled", "✕ cancelled"];
  if (flight.delay <= 0) return ["early", flight.delay ? `${-flight.delay} min early` : "on time"];
  return [flight.delay < 15 ? "late" : "very-late", `+${flight.delay} min`];
}

function flightRow(flight) {
  const row = element("tr");
  const leaving = flight.origin === code;
  const other = leaving ? flight.destination : flight.origin;
  const where = element("td", "where");
  const link = element("a");
  link.href = `/airport/${other}`;
  link.append(element("span", "code", other), element("span", "name", names.airports[other] ?? other));
  where.append(link);
  const [kind, text] = statusOf(flight);
  row.append(element("td", "time", flight.scheduled), element("td", "flight", flight.flight), where, element("td", `num ${kind}`, text));
  if (flight.number > newest && newest) row.className = "flash";
  return row;
}

function carrierRow([carrier, tally], max) {
  const item = element("li");
  const bar = element("i", "bar");
  bar.style.setProperty("--share", tally.flights / max);
  item.append(
    element("span", "name", names.carriers[carrier] ?? carrier),
    element("b", "num", count(tally.flights)),
    element("span", "muted", `${minutes(mean(tally))}${tally.cancelled ? ` · ${count(tally.cancelled)} cancelled` : ""}`),
    bar,
  );
  return item;
}

const draw = drawSoon(() => {
  showClock(state.at);
  byId("flights").textContent = count(state.tally.flights);
  byId("cancelled").textContent = count(state.tally.cancelled);
  byId("delay").textContent = minutes(mean(state.tally));
  const inbound = state.latest.length > 0 && state.latest[0].origin !== code;
  byId("flights-label").textContent = inbound ? "flights on their way here" : "departures so far";
  byId("where").textContent = inbound ? "From" : "To";
  byId("latest").replaceChildren(...state.latest.map(flightRow));
  byId("empty").hidden = state.latest.length > 0;
  newest = state.latest.length ? state.latest[0].number : 0;
  const carriers = Object.entries(state.carriers).sort(([, a], [, b]) => b.flights - a.flights);
  const max = Math.max(1, ...carriers.map(([, tally]) => tally.flights));
  byId("carriers").replaceChildren(...carriers.map((entry) => carrierRow(entry, max)));
  if (lags.length) {
    const median = [...lags].sort((a, b) => a - b)[lags.length >> 1];
    byId("lag").textContent = `${Math.max(0, median).toFixed(median < 10 ? 1 : 0)} ms`;
  }
});

watch("airports.board", code, {
  onStatus: showStatus,
  onState(whole) {
    state = whole ?? empty();
    newest = 0;
    draw();
  },
  onDelta(delta) {
    if (!delta.row) return;
    lags = [...lags.slice(-20), performance.timeOrigin + performance.now() - delta.sent_at];
    state.at = delta.at;
    state.tally = delta.tally;
    state.carriers[delta.carrier] = delta.carrier_tally;
    state.latest = [delta.row, ...state.latest.slice(0, LATEST - 1)];
    draw();
  },
});
