// The operator's page. It watches a channel of the library itself, and polls over HTTP while that is not live.
import { watch } from "./keyfold.js";
import {
  act, age, ask, button, cell, confirmed, count, duration, edit, fill, find, h, headings, number, paint, root, say, setAttribute, setChildren,
  show, showAbove, size, spark, when,
} from "./admin_parts.js";

const { view, name } = document.documentElement.dataset;
const POLL_MS = 2000;
const params = () => new URLSearchParams(location.search);

function setParams(changes) {
  const query = params();
  for (const [word, value] of Object.entries(changes)) value ? query.set(word, value) : query.delete(word);
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
}

// -- all projections

const SUMS = [
  "live", "spawned", "retired", "mailbox_depth", "events", "events_per_second", "conflicts", "broadcast_errors",
  "subscribers", "resyncs",
];
const MAXIMA = ["oldest_seconds", "commit_events_p50", "commit_events_p95", "commit_ms_p50", "commit_ms_p95", "snapshot_bytes_p95"];
const COLUMNS = [
  ["name", "Projection", (p) => h("td", {}, h("a", { href: `${root}/admin/projections/of/${encodeURIComponent(p.name)}` }, p.name))],
  ["state", "State", (p) => cell(`${SHAPES[p.state]} ${p.state}`, CLASSES[p.state], p.why)],
  ["live", "Live actors", (p) => number(p.live, `spawned ${p.spawned}, retired ${p.retired}`)],
  ["spawned", "Spawned", (p) => number(p.spawned)],
  ["retired", "Retired", (p) => number(p.retired)],
  ["mailbox_depth", "Waiting", (p) => number(p.mailbox_depth)],
  ["oldest_seconds", "Oldest", (p) => cell(p.mailbox_depth ? duration(p.oldest_seconds) : "–", "number")],
  ["events_per_second", "Events/s", (p) => number(p.events_per_second)],
  ["recent", "Last minute", (p) => spark(p.recent)],
  ["commit_events_p95", "Events per commit", (p) => cell(`${p.commit_events_p50} / ${p.commit_events_p95}`, "number", "p50 / p95")],
  ["commit_ms_p95", "Commit ms", (p) => cell(`${p.commit_ms_p50.toFixed(1)} / ${p.commit_ms_p95.toFixed(1)}`, "number", "p50 / p95")],
  ["conflicts", "Conflicts", (p) => number(p.conflicts)],
  ["dead_letters", "Dead letters", (p) => number(p.dead_letters, "", p.dead_letters ? "warn" : "")],
  ["degraded", "Degraded", (p) => number(p.degraded, "keys whose rows do not load (a lower bound)", p.degraded ? "bad" : "")],
  ["parked", "Parked", (p) => number(p.parked, `for ${p.halted} halted keys`, p.parked ? "bad" : "")],
  ["subscribers", "Subscribers", (p) => number(p.subscribers)],
  ["resyncs", "Resyncs", (p) => number(p.resyncs)],
  ["snapshot_bytes_p95", "Snapshot", (p) => cell(size(p.snapshot_bytes_p95), "number", "p95 of recently saved states")],
];
const SHAPES = { live: "●", degraded: "▲", halted: "■" };
const CLASSES = { live: "good", degraded: "warn", halted: "bad" };
let overview = null;

// One row per projection, combined over the chosen processes.
function merge(processes) {
  const rows = new Map();
  for (const process of processes) {
    const troubles = [process.writer.trouble && "can't write", ...Object.entries(process.loops)
      .filter(([, trouble]) => trouble).map(([loop, trouble]) => `${loop} ${trouble}`)].filter(Boolean);
    for (const [of, part] of Object.entries(process.projections)) {
      const row = rows.get(of) ?? { name: of, recent: [], why: "", known: {}, degraded: 0 };
      rows.set(of, row);
      const sockets = process.sockets.projections?.[of] ?? {};
      const all = { ...part, subscribers: sockets.subscribers ?? 0, resyncs: sockets.resyncs ?? 0 };
      for (const word of SUMS) row[word] = (row[word] ?? 0) + all[word];
      for (const word of MAXIMA) row[word] = Math.max(row[word] ?? 0, all[word]);
      row.recent = part.recent.map((events, second) => events + (row.recent[second] ?? 0));
      Object.assign(row.known, part.degraded_keys); // several processes know the same key
      row.degraded = Math.max(row.degraded, part.degraded ?? 0, Object.keys(row.known).length);
      for (const trouble of troubles) row.why ||= `${process.host}:${process.pid} ${trouble}`;
    }
  }
  for (const row of rows.values()) {
    const totals = overview["kept"][row.name] ?? { dead_letters: 0, parked: 0, halted: 0 };
    Object.assign(row, { dead_letters: totals.dead_letters - totals.parked, parked: totals.parked, halted: totals.halted });
    const unloaded = row.degraded ? `${row.degraded} keys do not load` : "";
    row.state = totals.halted ? "halted" : row.why || unloaded || row.broadcast_errors ? "degraded" : "live";
    if (totals.halted) row.why = [`${totals.halted} halted keys, ${totals.parked} events parked`, unloaded].filter(Boolean).join("; ");
    else if (unloaded) row.why = [unloaded, row.why].filter(Boolean).join("; ");
    else if (row.broadcast_errors && !row.why) row.why = `${row.broadcast_errors} failed broadcasts`;
  }
  return [...rows.values()];
}

function sortBy(column) {
  const here = params();
  const down = here.get("sort") === column && here.get("dir") !== "down";
  setParams({ sort: column, dir: down ? "down" : "" });
  paint(drawOverview, { asked: true });
}

function drawOverview() {
  if (!overview) return;
  drawProcessChoice();
  const query = params();
  const process = query.get("process") ?? "";
  const chosen = overview.processes.filter((one) => !process || one.process === process);
  const rows = merge(chosen.length ? chosen : overview.processes);
  tiles(rows, chosen);
  say("#trouble", overview.trouble ?? "");
  const wanted = (query.get("filter") ?? "").toLowerCase();
  const shown = rows.filter((row) => `${row.name} ${row.state}`.toLowerCase().includes(wanted));
  const sort = query.get("sort") ?? "name";
  const value = (row) => (sort === "recent" ? row.events_per_second : row[sort]);
  shown.sort((a, b) => (typeof value(a) === "string" ? value(a).localeCompare(value(b)) : value(a) - value(b)) || a.name.localeCompare(b.name));
  if (query.get("dir") === "down") shown.reverse();
  for (const th of find("#projections thead").rows[0].cells) {
    setAttribute(th, "aria-sort", th.dataset.column === sort && (query.get("dir") === "down" ? "descending" : "ascending"));
  }
  fill(find("#projections"), shown, (row) => row.name, COLUMNS.map(([, , draw]) => draw));
  showAbove("#empty", shown.length === 0);
  fill(find("#processes"), overview.processes, (one) => one.process, [
    (one) => cell(`${one.host}:${one.pid}${one.process === overview.this ? " (serves this page)" : ""}`),
    (one) => cell(age(Date.now() / 1000 - one.started_at), "number"),
    (one) => number(Object.values(one.projections).reduce((sum, part) => sum + part.live, 0)),
    (one) => number(Object.values(one.projections).reduce((sum, part) => sum + part.events_per_second, 0)),
    (one) => number(one.in_flight),
    (one) => cell(`${(one.writer.commit_ms_p50 ?? 0).toFixed(1)} / ${(one.writer.commit_ms_p95 ?? 0).toFixed(1)}`, "number"),
    (one) => number(one.sockets.open ?? 0, `${one.sockets.carried ?? 0} are served by request threads`),
    (one) => between(one),
    (one) => health(one),
    (one) => cell(reported(one.reported_ago), "number"),
  ]);
}

// In steps of ten seconds: a process reports every few seconds, and only an overdue report matters.
const reported = (ago) => (ago < 10 ? "now" : ago < 120 ? `${Math.floor(ago / 10) * 10} s ago` : `${age(ago)} ago`);

// The way in which a process learns of the commits of the others.
function between(one) {
  const redis = one.sockets.backplane;
  if (!redis) return overview.processes.length > 1 ? cell("▲ none: sockets lag", "warn", "KEYFOLD_REDIS is not set: commits of other processes are seen at the next heartbeat") : cell("–");
  if (redis.trouble) return cell("▲ away: sockets lag", "warn", redis.trouble);
  const title = `messages sent and received; dropped ${redis.dropped}, reconnects ${redis.reconnects}, waiting ${redis.waiting}`;
  return cell(`● ${count(redis.published)} out, ${count(redis.received)} in`, "good", title);
}

function health(one) {
  const hung = Object.entries(one.loops).filter(([, trouble]) => trouble).map(([loop, trouble]) => `${loop} ${trouble}`);
  const waiting = one.writer.waiting ? [`${one.writer.waiting} rows wait: ${one.writer.waiting_reason ?? "locked"}`] : [];
  const troubles = [...(one.writer.trouble ? [`writer: ${one.writer.trouble}`] : []), ...waiting, ...hung];
  return troubles.length ? cell(`▲ ${troubles.join("; ")}`, "wide warn") : cell("● all threads are running", "good");
}

function tiles(rows, processes) {
  const sum = (word) => rows.reduce((total, row) => total + row[word], 0);
  const all = [
    ["Events/s", count(sum("events_per_second"))], ["Live actors", count(sum("live"))],
    ["Waiting", count(sum("mailbox_depth"))], ["Subscribers", count(sum("subscribers"))],
    ["Halted keys", count(sum("halted"))], ["Degraded keys", count(sum("degraded"))], ["Dead letters", count(sum("dead_letters"))],
    ["Conflicts", count(sum("conflicts"))], ["Processes", processes.length],
  ];
  setChildren(find("#tiles"), ...all.map(term));
}

const term = ([label, text]) => h("div", {}, h("dt", {}, label), h("dd", {}, text));

function drawProcessChoice() {
  const { process } = find("#filters").elements;
  const known = [...process.options].map((option) => option.value);
  for (const one of overview.processes) if (!known.includes(one.process)) process.add(new Option(`${one.host}:${one.pid}`, one.process));
  for (const option of [...process.options]) if (option.value && !overview.processes.some((one) => one.process === option.value)) option.remove();
  const chosen = params().get("process") ?? "";
  if (process.value !== chosen) process.value = chosen; // an assignment would reset the highlighted option of an opened list
}

function startOverview() {
  const sorter = ([column, label]) => h("th", { scope: "col", "data-column": column }, button(label, () => sortBy(column)));
  setChildren(find("#projections thead"), h("tr", {}, ...COLUMNS.map(sorter)));
  const titles = ["Process", "Up for", "Live actors", "Events/s", "In flight", "Commit ms", "Sockets", "Redis", "Health", "Reported"];
  setChildren(find("#processes thead"), headings(titles));
  const { filter, process } = find("#filters").elements;
  filter.value = params().get("filter") ?? "";
  filter.addEventListener("input", () => { setParams({ filter: filter.value }); paint(drawOverview, { asked: true }); });
  process.addEventListener("change", () => { setParams({ process: process.value }); paint(drawOverview, { asked: true }); });
  find("#filters").addEventListener("submit", (event) => event.preventDefault());
  const take = (state) => {
    overview = state;
    paint(drawOverview);
  };
  let live = false;
  watch("keyfold.overview", "all", {
    onState: (state) => state && take(state),
    onStatus: (status, message) => {
      live = status === "live";
      say("#connection", live ? "● live" : `▲ ${message ?? status}, asking every ${POLL_MS / 1000} s`);
    },
  });
  setInterval(async () => !live && take(await ask(`${root}/admin/projections/overview`)), POLL_MS);
}

// -- one projection

let watching = null;
let watchedKey = null;
let detail = null;
let lookedUp = null;
let asks = 0;
let newest = 0;
const base = `${root}/admin/projections/of/${encodeURIComponent(name)}`;

// Answers may arrive in another order than their requests: an older one is not drawn over a newer one.
async function refresh({ asked = false } = {}) {
  const mine = ++asks;
  const key = params().get("key");
  const received = await ask(`${base}/facts${key ? `?key=${encodeURIComponent(key)}` : ""}`);
  if (mine < newest) return;
  newest = mine;
  detail = received;
  lookedUp = key;
  say("#connection", "● live");
  paint(drawDetail, { asked });
}

function drawDetail() {
  if (lookedUp) drawKey(lookedUp, detail.key);
  const open = (key) => button(key, () => lookUp(key));
  const wrap = (element) => h("td", {}, element);
  show("#unverified", !detail.verified);
  showAbove("#degraded", Boolean(detail.degraded));
  say("#degraded-more", detail.degraded > detail.degraded_keys.length ? `${detail.degraded_keys.length} of at least ${detail.degraded} are shown.` : "");
  fill(find("#degraded-keys"), detail.degraded_keys, (one) => one.key, [
    (one) => wrap(open(one.key)), (one) => cell(one.error, "wide"), (one) => wrap(button("Repair", () => repair(one.key))),
  ], ["Key", "Why it does not load", ""]);
  fill(find("#halted"), detail.halted, (one) => one.key, [
    (one) => wrap(open(one.key)), (one) => cell(`${one.epoch}:${one.version}`), (one) => cell(one.head === null ? "–" : `letter ${one.head}`), (one) => number(one.parked),
    (one) => wrap(button("Resume", () => run({ action: "resume", key: one.key }, `Fold the parked events of ${one.key}, oldest first?`, "Resume"))),
  ], ["Key", "Position", "Head", "Parked", ""]);
  const positions = new Map(detail.halted.map((one) => [one.key, `${one.epoch}:${one.version}`]));
  fill(find("#letters"), detail.letters, (one) => `${one.id}`, [
    (one) => number(one.id), (one) => cell(when(one.at)), (one) => wrap(open(one.key)),
    (one) => cell(one.parked ? "■ parked" : "", "bad"), (one) => letter(one),
    (one) => actions(
      ["Retry", { action: "retry", letter: one.id }, `Fold this event into ${one.key} now?`, one.event],
      ["Skip", { action: "skip", letter: one.id, position: one.parked ? positions.get(one.key) : undefined }, "Remove this event? It will never be folded.", one.event],
    ),
  ], ["Id", "At", "Key", "", "Error", ""]);
  fill(find("#busiest"), detail.busiest, (one) => one.key, [(one) => wrap(open(one.key)), (one) => number(one.events)], ["Key", "Events"]);
  fill(find("#largest"), detail.largest, (one) => one.key, [(one) => wrap(open(one.key)), (one) => cell(size(one.bytes), "number"), (one) => number(one.version)], ["Key", "State", "Version"]);
  fill(find("#clients"), detail.clients, (one) => `${detail.process} ${one.id}`, [
    (one) => cell(one.address), (one) => cell(one.user ?? "–"), (one) => cell(one.kind),
    (one) => cell(one.keys.join(", ") + (one.more_keys ? ` and ${one.more_keys} more` : ""), "wide"),
    (one) => cell(age(one.open_seconds), "number"), (one) => cell(size(one.waiting_bytes), "number"),
    (one) => actions(["Drop", { action: "drop", client: one.id, process: detail.process }, `Close the connection of ${one.user ?? one.address}?`]),
  ], ["Address", "User", "Kind", "Keys", "Open for", "Unsent", ""]);
}

const actions = (...all) => h("td", {}, ...all.flatMap(([label, action, question, evidence]) => [
  button(label, () => run(action, question, label, evidence)), " ",
]));

const letter = (one) => h("td", { class: "wide" }, h("details", {},
  h("summary", {}, `${one.event_type.split(".").pop()}: ${one.error}`),
  ...[one.event, one.traceback].filter(Boolean).map((text) => h("pre", {}, text))));

async function run(action, question, label, evidence = "") {
  if (await confirmed(question, label, evidence)) await carryOut(action);
}

async function carryOut(action) {
  say("#outcome", `${action.action} …`); // so that a second, equal outcome is announced too
  try {
    say("#outcome", await act(`${base}/actions`, action));
    await refresh({ asked: true });
  } catch (error) {
    say("#outcome", `Failed, or the outcome is unknown: ${error.message}`);
  }
}

// The editor shows the row's own text, so that numbers too long for JavaScript are not changed.
async function repair(key) {
  let raw;
  try {
    ({ raw } = await ask(`${base}/raw?key=${encodeURIComponent(key)}`));
  } catch (error) {
    say("#outcome", `The row cannot be read: ${error.message}`);
    return;
  }
  const question = `Replace the state of ${key} by this one? It overwrites events that are committed meanwhile.`;
  const state = await edit(question, "Repair", raw ?? "");
  if (state !== null) await carryOut({ action: "repair", key, state });
}

function lookUp(key) {
  setParams({ key });
  find("#lookup").elements.key.value = key;
  again();
}

function drawKey(key, row) {
  show("#key", true);
  say("#key-name", key);
  const terms = row ? [
    ["version", row.version], ["epoch", row.epoch], ["state", [row.halted && "■ halted", row.error && "▲ does not load"].filter(Boolean).join(", ") || "● live"], ["subscribers here", row.subscribers],
    ["size", size(row.bytes)], ["schema", row.schema_version], ["updated", when(row.updated_at)],
  ] : [["no row", "no event was folded into this key"]];
  setChildren(find("#key-facts"), ...terms.map(term));
  say("#key-error", row?.error ?? "");
  say("#state", JSON.stringify(row?.state ?? null, null, 2));
  setChildren(find("#key-actions"),
    button("Rebuild", () => run({ action: "rebuild", key }, `Replace the state of ${key} by the fold of its history?`, "Rebuild")), " ",
    button("Wipe", () => run({ action: "wipe", key }, `Delete the state of ${key}?`, "Wipe")), " ",
    button("Repair", () => repair(key)),
  );
  if (watchedKey === key) return;
  watchedKey = key;
  find("#deltas").replaceChildren();
  watching?.close();
  const log = (kind, value, { version }) => {
    const li = document.createElement("li");
    const text = JSON.stringify(value);
    li.textContent = `${version}  ${kind}  ${text.length > 300 ? `${text.slice(0, 300)}…` : text}`;
    find("#deltas").prepend(li);
    while (find("#deltas").children.length > 30) find("#deltas").lastChild.remove();
  };
  watching = watch(name, key, { onState: (state, position) => log("snapshot", state, position), onDelta: (delta, position) => log("delta", delta, position) });
}

const again = () => refresh().catch((error) => say("#connection", `▲ ${error.message}`));

function startDetail() {
  find("#lookup").elements.key.value = params().get("key") ?? "";
  find("#lookup").addEventListener("submit", (event) => { event.preventDefault(); lookUp(event.target.elements.key.value); });
  again();
  setInterval(() => document.visibilityState === "visible" && again(), POLL_MS);
}

// A page that only listens sends a request now and then, which keeps its operator signed in.
if (view !== "login") setInterval(() => fetch(location.href, { method: "HEAD" }).catch(() => null), 20 * 60_000);
if (view === "overview") startOverview();
if (view === "projection") startDetail();
