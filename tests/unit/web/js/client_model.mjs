// A model of keyfold.js: the module as it is, between a simulated page and a simulated server, on a clock of its own.
// node client_model.mjs MODULE SCENARIO        plays one of the scenarios below
// node client_model.mjs MODULE --any RUNS [SEED]   plays any order of steps, by fast-check; a failure prints its seed
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const NAME = "shop";
const AT_ONCE = 120; // the server's limit per socket: 20 messages per second, and one for each of 100 channels at once
const A_SECOND = 20;
const BEAT_MS = 25_000;
const MOST_STREAMS = 4;
const LONG = "k".repeat(2_100);
const OTHER = "shop.eu"; // its key x has the same channel as the key eu.x of the first
const tick = () => new Promise(setImmediate);
const textOf = (name, key) => `projection.${name}.${key}`;
const rowOf = (name, key) => textOf(name, key) + (name === NAME ? "" : `@${name}`);
const channelOf = (row) => row.replace(/@shop.eu$/, "");

// -- time: of the client's own timers it has to be known whether any is left

class Time {
  now = 1_000_000;
  timers = new Map();
  number = 0;

  after(ms, call, owner = "server") {
    this.timers.set(++this.number, { due: this.now + Math.max(0, ms), call, owner, number: this.number });
    return this.number;
  }

  left(owner) {
    return [...this.timers.values()].filter((timer) => timer.owner === owner).length;
  }

  async pass(ms) {
    const until = this.now + ms;
    await tick();
    for (let calls = 0; ; calls += 1) {
      assert.ok(calls < 200_000, "the client does not come to rest");
      let next = null;
      for (const timer of this.timers.values()) if (!next || timer.due < next.due) next = timer;
      if (!next || next.due > until) break;
      this.timers.delete(next.number);
      this.now = Math.max(this.now, next.due);
      next.call();
      await tick();
    }
    this.now = until;
    await tick();
  }
}

// -- the server

class Server {
  constructor(time, { channels, latency }) {
    Object.assign(this, { time, channels, latency });
    this.rows = new Map(); // every state it ever had, by position
    this.connections = new Set(); // sockets and streams that are open here
    this.opened = this.closed4429 = this.frames = this.mostStreams = this.tickets = 0;
    this.isUp = this.isOpenForSockets = true;
    this.isSignedIn = false;
    this.isUserFull = false; // the user in the tickets
    this.isDeaf = false; // further sockets open, and nothing gets through
    this.checks = 0; // ms that a check takes
    this.handshake = 0;
    this.loses = 0; // deltas that get lost on the way
    this.valid = new Set();
    this.violations = [];
    this.beat();
  }

  beat() {
    this.time.after(BEAT_MS, () => {
      for (const connection of this.connections) {
        for (const sub of connection.subs.values()) if (sub.isLive) connection.tell(this.head("heartbeat", sub.row));
      }
      this.beat();
    });
  }

  row(text) {
    if (!this.rows.has(text)) this.rows.set(text, { epoch: "", version: 0, states: new Map([[":0", null]]) });
    return this.rows.get(text);
  }

  head(type, text) {
    const { epoch, version } = this.row(text);
    return { type, channel: channelOf(text), epoch, version };
  }

  snapshot(text, reason) {
    const row = this.row(text);
    return { ...this.head("snapshot", text), state: row.states.get(`${row.epoch}:${row.version}`), reason };
  }

  commit(text) {
    const row = this.row(text);
    const prev = row.version;
    const before = row.states.get(`${row.epoch}:${prev}`);
    row.epoch ||= `e${text.length}`;
    row.version += 1;
    row.states.set(`${row.epoch}:${row.version}`, { total: (before?.total ?? 0) + row.version });
    const frame = { ...this.head("delta", text), prev, event: "delta", data: { add: row.version } };
    if (this.loses > 0) return void (this.loses -= 1);
    this.tell(text, frame);
  }

  rebuild(text) {
    const row = this.row(text);
    row.epoch = `r${(this.rebuilt = (this.rebuilt ?? 0) + 1)}`;
    row.version = 1;
    row.states.set(`${row.epoch}:1`, { total: 1000 });
    this.tell(text, this.snapshot(text, "rebuild"));
  }

  tell(text, frame) {
    for (const connection of this.connections) {
      for (const sub of connection.subs.values()) if (sub.isLive && sub.row === text) connection.tell(frame);
    }
  }

  // The first messages: resumed and the deltas, or a snapshot.
  first(text, since) {
    const row = this.row(text);
    const [epoch, version] = (since ?? "").split(":");
    const canResume = since !== undefined && since !== null && (epoch === row.epoch || since === ":0") && row.epoch && Number(version) <= row.version && row.version - version < 5;
    if (!canResume) return [this.snapshot(text, since ? "expired" : "initial")];
    const frames = [{ ...this.head("resumed", text), from: Number(version) }];
    for (let next = Number(version) + 1; next <= row.version; next += 1) {
      const known = row.states.has(`${row.epoch}:${next - 1}`) || next === 1;
      if (!known || !row.states.has(`${row.epoch}:${next}`) || row.epoch.startsWith("r")) return [this.snapshot(text, "expired")];
      frames.push({ type: "delta", channel: channelOf(text), epoch: row.epoch, prev: next - 1, version: next, event: "delta", data: { add: next } });
    }
    return frames;
  }

  may(key, ticket) {
    if (key.startsWith("ticket")) return this.valid.delete(ticket);
    return !key.startsWith("private") || this.isSignedIn;
  }

  ticket() {
    const ticket = `t${(this.tickets += 1)}`;
    this.valid.add(ticket);
    return ticket;
  }

  revoke(key) {
    for (const connection of [...this.connections]) connection.revoke(textOf(NAME, key));
  }

  // Their networks have gone, and nobody is told.
  mute() {
    for (const connection of this.connections) connection.isDead = true;
  }

  drop(code = 1006) {
    for (const connection of [...this.connections]) connection.end(code);
  }
}

// A socket at the server's end.
class ServerSocket {
  constructor(server, client) {
    Object.assign(this, { server, client, subs: new Map(), allowance: AT_ONCE, counted: server.time.now, isDead: server.isDeaf });
  }

  say(frame) {
    if (this.server.connections.has(this) && !this.isDead) this.client.comes(JSON.stringify(frame));
  }

  tell(frame) {
    this.say(frame);
  }

  end(code) {
    if (!this.server.connections.delete(this)) return;
    this.client.ends(code);
  }

  revoke(text) {
    if (this.subs.get(text)?.isLive && this.subs.delete(text)) this.error("forbidden", text);
  }

  error(code, channel) {
    this.say({ type: "error", code, message: `${code}: ${channel?.slice(0, 40)}`, channel });
  }

  received(text) {
    const { server, subs } = this;
    if (!server.connections.has(this) || this.isDead) return;
    this.allowance = Math.min(AT_ONCE, this.allowance + ((server.time.now - this.counted) * A_SECOND) / 1000) - 1;
    this.counted = server.time.now;
    if (this.allowance < 0) {
      server.violations.push("more frames than a socket is allowed");
      server.closed4429 += 1;
      return this.end(4429);
    }
    if (Buffer.byteLength(text) > 32_768) {
      server.violations.push("a frame that is too long");
      return this.end(1009);
    }
    const message = JSON.parse(text);
    if (message.type === "ping") return this.say({ type: "pong" });
    server.frames += 1;
    const about = message.channel ?? textOf(message.projection, message.key);
    if (message.type === "subscribe") return this.subscribe(message, about);
    if (message.type === "unsubscribe") {
      if (subs.delete(about)) return this.say({ type: "unsubscribed", channel: about });
      return this.error("not_subscribed", about);
    }
    if (message.type === "resync" && subs.get(about)?.isLive) this.say(server.snapshot(subs.get(about).row, "resync"));
  }

  subscribe({ key, projection, since, ticket }, about) {
    const { server, subs } = this;
    const { length } = [...(key ?? about.slice(textOf(NAME, "").length))]; // in characters, as in Python
    if (length < 1 || length > 512) {
      server.violations.push("a key that can't be one was sent");
      return this.error("malformed", about);
    }
    if (!about.startsWith(textOf(NAME, ""))) return this.error("unknown_projection", about);
    if (subs.has(about)) return this.error("subscribed_already", about);
    if (subs.size >= server.channels) return this.error("limit", about);
    if (ticket && server.isUserFull) return this.error("limit", about);
    const sub = { isLive: false, row: rowOf(projection ?? NAME, key ?? about.slice(textOf(NAME, "").length)) };
    subs.set(about, sub);
    server.time.after(server.checks, () => {
      if (subs.get(about) !== sub) return;
      if (!server.may(key ?? about.slice(textOf(NAME, "").length), ticket)) {
        subs.delete(about);
        return this.error("forbidden", about);
      }
      sub.isLive = true;
      this.say({ type: "subscribed", channel: about });
      for (const frame of server.first(sub.row, since)) this.say(frame);
    });
  }
}

// -- the browser: WebSocket and fetch, by which the client reaches the server

function browser(world) {
  const { time, server } = world;

  class WebSocket {
    static OPEN = 1;
    readyState = 0;

    constructor() {
      world.sockets.add(this);
      server.opened += 1;
      this.arrives = time.now;
      time.after(server.latency + server.handshake, () => {
        if (this.readyState !== 0) return;
        if (!server.isUp || !server.isOpenForSockets) return this.#closed(1006);
        this.readyState = 1;
        this.end = new ServerSocket(server, this);
        server.connections.add(this.end);
        this.onopen?.({});
      });
    }

    // In order, each after the latency.
    #queue(call) {
      time.after(server.latency, call);
    }

    comes(data) {
      this.#queue(() => this.readyState === 1 && this.onmessage?.({ data }));
    }

    ends(code) {
      this.#queue(() => this.#closed(code));
    }

    send(text) {
      assert.equal(this.readyState, 1, "sent on a socket that is not open");
      this.#queue(() => this.end.received(text));
    }

    close() {
      if (this.readyState > 1) return;
      this.readyState = 2;
      world.sockets.delete(this);
      this.#queue(() => {
        server.connections.delete(this.end);
        this.#closed(this.end ? 1000 : 1006);
      });
    }

    #closed(code) {
      if (this.readyState === 3) return;
      this.readyState = 3;
      world.sockets.delete(this);
      this.onclose?.({ code });
    }
  }

  async function fetch(input, { signal } = {}) {
    const url = new URL(input);
    const [, , , name, key] = url.pathname.split("/").map(decodeURIComponent);
    const [text, row] = [textOf(name, key), rowOf(name, key)];
    const queue = [];
    let wake = () => {};
    const stream = {
      subs: new Map(),
      tell: (frame) => !stream.isDead && queue.push(frame) && wake(),
      revoke: (revoked) => revoked === text && stream.end(),
      end: () => { server.connections.delete(stream); queue.push(null); wake(); },
    };
    world.streams.add(stream);
    server.mostStreams = Math.max(server.mostStreams, world.streams.size);
    const leave = () => { world.streams.delete(stream); server.connections.delete(stream); wake(); };
    signal.addEventListener("abort", leave);
    await new Promise((go) => { wake = go; time.after(server.latency, go); });
    signal.throwIfAborted();
    if (!server.isUp) return leave(), Promise.reject(new TypeError("Failed to fetch"));
    const status = name === NAME || name === OTHER ? (server.may(key, url.searchParams.get("ticket")) ? 200 : 403) : 404;
    if (status !== 200) leave();
    else {
      server.connections.add(stream);
      stream.subs.set(text, { isLive: true, row });
      queue.push(...server.first(row, url.searchParams.get("since")));
    }
    const read = async () => {
      while (!queue.length && !signal.aborted) await new Promise((go) => { wake = go; });
      signal.throwIfAborted();
      const frame = queue.shift();
      if (frame === null) return leave(), { done: true };
      const line = `id: ${frame.epoch}:${frame.version}\nevent: ${frame.type}\ndata: ${JSON.stringify(frame)}\n\n`;
      const cut = line.length >> 1;
      const bytes = new TextEncoder().encode(line);
      if (!frame.cut) queue.unshift({ ...frame, cut: bytes.slice(cut) });
      return { done: false, value: frame.cut ?? bytes.slice(0, cut) };
    };
    return {
      status, ok: status === 200, headers: new Headers({ "Content-Type": status === 200 ? "text/event-stream; charset=utf-8" : "application/json" }),
      json: async () => ({ error: { code: "forbidden", message: `HTTP ${status} for ${key.slice(0, 40)}` } }),
      body: { getReader: () => ({ read }) },
    };
  }

  return {
    WebSocket, fetch,
    reportError: (error) => world.reported.push(error),
    performance: { now: () => time.now, getEntries: () => [] },
    setTimeout: (call, ms) => time.after(ms, call, "client"),
    clearTimeout: (number) => time.timers.delete(number),
    setInterval: (call, ms) => {
      const number = time.after(ms, function again() {
        time.timers.set(number, { due: time.now + ms, call: again, owner: "client", number });
        call();
      }, "client");
      return number;
    },
    clearInterval: (number) => time.timers.delete(number),
    location: { href: "http://shop.test/" },
    addEventListener: () => {},
  };
}

// -- a page, which holds the client to its promises at each call

class Page {
  constructor(server, watch, reported) {
    Object.assign(this, { server, watch, reported, all: [] });
  }

  get open() {
    return this.all.filter((one) => !one.isClosed);
  }

  add(key, { name = NAME, throws = {}, ticket = "good", reduces = true, then = {} } = {}) {
    const { server } = this;
    const text = textOf(name, key);
    const row = rowOf(name, key);
    const one = { key, name, text, row, throws: { ...throws }, ticket, reduces, isClosed: false, log: [], states: 0, last: null };
    const called = (callback) => {
      assert.ok(!one.isClosed, `${callback} of ${key.slice(0, 40)} was called after close()`);
      one.log.push(callback);
      then[callback]?.();
      if (one.throws[callback] > 0) {
        one.throws[callback] -= 1;
        throw new Error(`thrown by ${callback}`);
      }
    };
    const options = {
      url: "http://shop.test/",
      onStatus: (status, message) => { Object.assign(one, { status, message }); called("onStatus"); },
      onState: (state, position) => {
        one.states += 1;
        const { epoch, version } = position;
        assert.deepEqual(state, server.row(row).states.get(`${epoch}:${version}`), `a state of ${key} that the row never had there`);
        one.last = position;
        called("onState");
      },
      onDelta: (delta, { epoch, version }) => {
        if (!reduces) {
          assert.equal(version, one.last.version + 1, `a delta of ${key} out of order`);
          one.last = { epoch, version };
        }
        assert.equal(delta.add, version);
        called("onDelta");
      },
    };
    if (reduces) {
      // In place, as the page may.
      options.reduce = (state, { add }) => {
        called("reduce");
        const next = state ?? { total: 0 };
        next.total += add;
        return next;
      };
    }
    if (key.startsWith("ticket")) {
      options.ticket = async () => {
        called("ticket");
        if (one.ticket === "hangs") await new Promise(() => {});
        if (one.ticket === "late") await new Promise((go) => server.time.after(3_000, go));
        if (one.ticket === "none") return undefined;
        if (one.ticket === "page") return `<html>${"x".repeat(40_000)}`;
        if (one.ticket === "widest") return "\ud800".repeat(6_000); // 36 KB as JSON
        return server.ticket();
      };
    }
    one.handle = this.watch(name, key, options);
    this.all.push(one);
    return one;
  }

  close(one) {
    one?.handle.close();
    if (one) one.isClosed = true;
  }

  check() {
    // The client catches the errors of callbacks, including failed assertions.
    for (const error of this.reported) if (!/^thrown by|^it has to return a string|^a ticket has at most/.test(error.message)) throw error;
    for (const one of this.open) {
      const { state, position } = one.handle;
      if (!one.reduces || !position) continue;
      const then = this.server.row(one.row).states.get(`${position.epoch}:${position.version}`);
      assert.deepEqual(state, then, `state and position of ${one.key} do not belong together`);
    }
    assert.ok(this.server.mostStreams <= MOST_STREAMS, `${this.server.mostStreams} streams at once`);
    assert.deepEqual(this.server.violations, []);
  }
}

// -- how every play ends

async function end({ time, server, page, sockets, streams }) {
  Object.assign(server, { isUp: true, isOpenForSockets: true, isDeaf: false, isUserFull: false, checks: 0, handshake: 0, loses: 0 });
  for (const one of page.open) Object.assign(one, { throws: {}, ticket: "good" });
  await time.pass(240_000);
  for (const text of server.rows.keys()) server.commit(text);
  await time.pass(60_000);
  page.check();
  const [opened, frames] = [server.opened, server.frames];
  const live = new Set(page.open.filter(({ handle }) => handle.status === "live").map(({ text }) => text));
  for (const one of page.open) {
    const { key, row, handle } = one;
    const about = `${key.slice(0, 40)}: ${handle.status} ${one.message ?? ""}`;
    assert.equal(one.status, handle.status);
    if (handle.status === "live") {
      const { epoch, version, states } = server.row(row);
      assert.deepEqual(handle.position, { epoch, version }, `${about}, not where the row is`);
      if (one.reduces) assert.deepEqual(handle.state, states.get(`${epoch}:${version}`), about);
      assert.ok(one.states > 0, `${about}, and no state was told`);
    } else {
      assert.equal(handle.status, "refused", about);
      const isTaken = page.open.some(({ name, text, handle: { status } }) => text === one.text && name !== one.name && status === "live");
      const isRefused = isTaken || ![NAME, OTHER].includes(one.name) || key.length > 512 || !key || key.startsWith("private");
      const isFull = /^limit/.test(one.message) && live.size === server.channels;
      assert.ok(isRefused || isFull, `${about}, which is not true`);
    }
  }
  const held = [...server.connections].flatMap(({ subs }) => [...subs.keys()]);
  assert.deepEqual(held.sort(), [...live].sort(), "the server holds other channels than the page watches");
  assert.ok(server.connections.size <= 1 && (!live.size || server.connections.size === 1));
  await time.pass(120_000);
  // Except for channels that ask with a new ticket, because their user may have room by now.
  const asking = new Set(page.open.filter(({ key, handle }) => key.startsWith("ticket") && handle.status !== "live").map(({ text }) => text));
  assert.equal(server.opened, opened, "a page at rest is quiet");
  assert.ok(server.frames - frames <= 40 * asking.size, `${server.frames - frames} frames of a page at rest`);
  for (const one of page.open) page.close(one);
  await time.pass(100);
  assert.equal(time.left("client"), 0, "a timer was left");
  assert.deepEqual([sockets.size, streams.size, server.connections.size], [0, 0, 0], "a connection was left");
  await time.pass(120_000);
  assert.equal(server.opened, opened, "a closed page connects");
  page.check();
}

async function play(module, { channels = 100, latency = 5, random = 1 }, act) {
  const time = new Time();
  const server = new Server(time, { channels, latency });
  const world = { time, server, sockets: new Set(), streams: new Set(), reported: [] };
  const fakes = { ...browser(world) };
  const real = Object.fromEntries(Object.keys(fakes).map((name) => [name, Object.getOwnPropertyDescriptor(globalThis, name)]));
  const { now } = Date;
  const { random: chance } = Math;
  for (const [name, value] of Object.entries(fakes)) Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  Date.now = () => time.now + (time.offset ?? 0);
  let seed = random;
  Math.random = () => (seed = (seed * 48_271) % 2_147_483_647) / 2_147_483_647;
  try {
    // A copy of the module for each play, so that no state is left for the next one.
    const { watch } = await import(`${module}?play=${(play.count = (play.count ?? 0) + 1)}`);
    world.page = new Page(server, watch, world.reported);
    await act(world);
    world.page.check();
    await end(world);
  } finally {
    for (const [name, descriptor] of Object.entries(real)) {
      if (descriptor) Object.defineProperty(globalThis, name, descriptor);
      else delete globalThis[name];
    }
    Date.now = now;
    Math.random = chance;
  }
}

// -- a scenario for each way in which it once went wrong

const many = (count, one) => Array.from({ length: count }, (_, number) => one(number));
const statuses = (page) => page.open.map(({ handle }) => handle.status);
const count = (page, status) => statuses(page).filter((one) => one === status).length;

// An hour of a right that ends a while after it was given: a page that fetches the next one has not been refused.
async function expire({ page, server, time }, ms, share = 0.95) {
  const one = page.add("ticket a");
  page.add("b");
  await time.pass(20_000);
  const looks = [];
  for (let since = null; looks.length < 36_000; looks.push(one.handle.status)) {
    await time.pass(100);
    if (one.handle.status !== "live") since = null;
    else if (time.now - (since ??= time.now) >= ms) server.revoke("ticket a");
  }
  const live = looks.filter((status) => status === "live").length;
  assert.ok(live > share * looks.length, `${live} of ${looks.length}`);
  assert.ok(!looks.includes("refused"));
}

const scenarios = {
  async "watch, close and watch again while the check is under way"({ page, server, time }) {
    page.add("other");
    await time.pass(100);
    server.checks = 300;
    page.close(page.add("a"));
    await time.pass(10);
    page.close(page.add("a"));
    await time.pass(100);
    const again = page.add("a");
    await time.pass(2_000);
    assert.equal(again.handle.status, "live");
  },
  async "watch, close and watch again after the unsubscribe was sent"({ page, server, time }) {
    server.latency = 50;
    page.add("other");
    const first = page.add("a");
    await time.pass(500);
    page.close(first);
    await time.pass(10);
    const again = page.add("a");
    await time.pass(500);
    assert.deepEqual([again.handle.status, again.log.includes("onState")], ["live", true]);
    assert.equal(server.opened, 1);
  },
  async "watched twice in one turn is asked for once"({ page, server, time }) {
    page.close(page.add("a"));
    const again = page.add("a");
    await time.pass(100);
    assert.deepEqual([server.frames, again.log], [1, ["onStatus", "onState", "onStatus"]]);
  },
  async "a list that scrolls"({ page, server, time }) {
    const last = page.add("last");
    for (let number = 0; number < 150; number += 1) {
      page.close(page.add(`row ${number}`));
      await time.pass(number % 7 ? 0 : 10);
    }
    const shown = page.add("shown");
    await time.pass(30_000);
    assert.deepEqual([last.handle.status, shown.handle.status, server.opened], ["live", "live", 1]);
  },
  async "200 watches"({ page, server, time }) {
    many(200, (number) => page.add(`k${number}`));
    await time.pass(20_000);
    assert.deepEqual([count(page, "live"), count(page, "refused"), server.opened], [100, 100, 1]);
    for (const one of page.open.slice(0, 30)) page.close(one);
    await time.pass(20_000);
    assert.deepEqual([count(page, "live"), count(page, "refused"), server.opened], [100, 70, 1]);
  },
  async "a server that closes with 4429 is sent less at once, and later"({ page, server, time }) {
    many(100, (number) => page.add(`k${number}`));
    const real = ServerSocket.prototype.received;
    let frames = 0;
    const sockets = [];
    ServerSocket.prototype.received = function received(text) {
      if (sockets.at(-1) !== this) frames = sockets.push(this) && 0;
      if ((frames += 1) > 60 && this.counted === server.time.now) return this.end(4429);
      return real.call(this, text);
    };
    try {
      await time.pass(30_000);
    } finally {
      ServerSocket.prototype.received = real;
    }
    assert.deepEqual([count(page, "live"), server.opened], [100, 2]);
  },
  async "a socket that is lost again and again is asked for less and less often"({ page, server, time }) {
    page.add("a");
    for (let beat = 0; beat < 600; beat += 1) {
      await time.pass(500);
      server.drop();
    }
    assert.ok(server.opened < 40, `${server.opened} sockets in 300 s`);
  },
  async "a callback that throws"({ page, server, time }) {
    page.add("a", { throws: { onState: 1 } });
    page.add("a", { throws: { onDelta: 1 }, reduces: false });
    page.add("a", { throws: { onStatus: 5 } });
    page.add("a");
    await time.pass(100);
    server.commit(textOf(NAME, "a"));
    await time.pass(100);
    assert.deepEqual(page.open.map(({ handle, states }) => [handle.status, handle.position?.version, states > 0]), many(4, () => ["live", 1, true]));
  },
  async "reduce that throws"({ page, server, time }) {
    const [bad, good] = [page.add("a", { throws: { reduce: 1 } }), page.add("a")];
    await time.pass(100);
    server.commit(textOf(NAME, "a"));
    await time.pass(5_000);
    assert.deepEqual([bad, good].map(({ handle }) => [handle.status, handle.state]), many(2, () => ["live", { total: 1 }]));
  },
  async "reduce that always throws leaves the others their frames"({ page, server, time }) {
    page.add("a", { throws: { reduce: 1e9 } });
    await time.pass(100);
    const before = server.frames;
    for (let number = 0; number < 500; number += 1) {
      server.commit(textOf(NAME, "a"));
      await time.pass(20);
    }
    assert.ok(server.frames - before < 12, `${server.frames - before} resyncs in 10 s`);
  },
  async "two watches with different tickets"({ page, server, time }) {
    page.add("ticket a", { throws: { ticket: 1e9 } });
    const good = page.add("ticket a");
    await time.pass(20_000);
    assert.equal(good.handle.status, "live");
  },
  async "ticket() that rejects, over a socket"({ page, server, time, reported }) {
    const one = page.add("ticket a", { throws: { ticket: 3 } });
    page.add("b");
    await time.pass(20);
    assert.equal(one.handle.status, "reconnecting");
    assert.ok(reported.length > 0);
    await time.pass(60_000);
    assert.equal(one.handle.status, "live");
    server.drop();
    one.throws.ticket = 2;
    await time.pass(60_000);
    assert.equal(one.handle.status, "live");
  },
  async "ticket() that rejects, over a stream"({ page, server, time }) {
    server.isOpenForSockets = false;
    const one = page.add("ticket a", { throws: { ticket: 3 } });
    const other = page.add("b");
    await time.pass(60_000);
    assert.deepEqual([one.handle.status, other.handle.status], ["live", "live"]);
  },
  async "ticket() that never answers"({ page, server, time }) {
    const hanging = many(100, (number) => page.add(`ticket ${number}`, { ticket: "hangs" }));
    await time.pass(100);
    const other = page.add("b");
    for (const one of hanging.slice(0, 50)) page.close(one);
    await time.pass(1_000);
    assert.equal(other.handle.status, "live");
    for (const one of hanging.slice(50)) one.ticket = "good";
    await time.pass(60_000);
    assert.equal(count(page, "live"), 51);
  },
  async "tickets that come late keep to the allowance"({ page, server, time }) {
    many(100, (number) => page.add(`ticket ${number}`, { ticket: "late" }));
    await time.pass(2_900);
    many(100, (number) => page.add(`k${number}`));
    await time.pass(20_000);
    assert.deepEqual([count(page, "live"), server.opened], [100, 1]);
  },
  async "one refused key over streams"({ page, server, time }) {
    server.isOpenForSockets = false;
    page.add("a");
    page.add("b");
    const bad = page.add("private");
    await time.pass(30_000);
    assert.deepEqual(statuses(page), ["live", "live", "refused"]);
    assert.match(bad.message, /403/);
    const logs = page.open.map(({ log }) => log.length);
    await time.pass(20_000);
    assert.deepEqual(page.open.map(({ log }) => log.length), logs, "and nobody hears of it");
  },
  async "a stream that breaks"({ page, server, time }) {
    server.isOpenForSockets = false;
    const [one, other] = [page.add("a"), page.add("b")];
    await time.pass(30_000);
    const before = other.log.length;
    for (const stream of [...server.connections]) if (stream.subs.has(one.text)) stream.end();
    await time.pass(10);
    assert.equal(one.handle.status, "reconnecting");
    server.commit(one.text);
    await time.pass(10_000);
    assert.deepEqual([one.handle.status, one.handle.position.version, one.states, other.log.length], ["live", 1, 2, before]);
  },
  async "more keys than streams"({ page, server, time }) {
    server.isOpenForSockets = false;
    many(8, (number) => page.add(`k${number}`));
    await time.pass(30_000);
    assert.deepEqual([count(page, "live"), count(page, "refused"), server.mostStreams], [4, 4, 4]);
    server.isOpenForSockets = true;
    await time.pass(120_000);
    assert.deepEqual([count(page, "live"), server.connections.size], [8, 1]);
  },
  async "the page's own close is no failure of WebSockets"({ page, server, time }) {
    server.handshake = 700;
    for (let route = 0; route < 3; route += 1) {
      const one = page.add(`route ${route}`);
      await time.pass(300);
      page.close(one);
      await time.pass(1);
    }
    many(8, (number) => page.add(`k${number}`));
    await time.pass(5_000);
    assert.deepEqual([count(page, "live"), server.mostStreams], [8, 0]);
  },
  async "a server that was away comes back to WebSockets at once"({ page, server, time }) {
    many(40, (number) => page.add(`k${number}`));
    await time.pass(1_000);
    server.isUp = false;
    server.drop();
    await time.pass(20_000);
    server.isUp = true;
    await time.pass(35_000);
    assert.deepEqual([count(page, "live"), server.connections.size], [40, 1]);
    assert.ok(page.open.every(({ message }) => !/blocked/.test(message ?? "")));
  },
  async "keys that can't be"({ page, server, time }) {
    const good = page.add("a");
    page.add(LONG);
    page.add("\ud800");
    page.add("a\nb");
    page.add("");
    page.add("a", { name: "no name" });
    const widest = page.add("\u{1f40d}".repeat(512));
    await time.pass(1_000);
    assert.deepEqual(statuses(page), ["live", "refused", "refused", "refused", "refused", "refused", "live"]);
    assert.deepEqual([server.opened, good.handle.position.version, widest.handle.state], [1, 0, null]);
    for (const one of page.open.slice(2, 4)) page.close(one);
    page.close(widest);
  },
  async "two names that make one channel"({ page, time }) {
    const one = page.add("eu.x");
    const other = page.add("x", { name: "shop.eu" });
    await time.pass(100);
    assert.deepEqual([one.handle.status, other.handle.status], ["live", "refused"]);
    page.close(one);
    await time.pass(100);
    assert.equal(other.handle.status, "live");
  },
  async "two names that make one channel, one after the other"({ page, server, time }) {
    page.add("b");
    const one = page.add("eu.x");
    await time.pass(100);
    server.commit(one.row);
    await time.pass(100);
    page.close(one);
    const other = page.add("x", { name: OTHER });
    server.commit(one.row);
    await time.pass(1_000);
    assert.deepEqual([other.handle.status, other.handle.position.version], ["live", 0]);
    page.close(other);
    page.close(page.add("eu.x"));
    const again = page.add("x", { name: OTHER });
    await time.pass(1_000);
    server.commit(again.row);
    await time.pass(100);
    assert.deepEqual([again.handle.status, again.handle.position.version, server.opened], ["live", 1, 1]);
  },
  async "two names that make one channel, one after the other, over streams"({ page, server, time }) {
    server.isOpenForSockets = false;
    page.add("b");
    const one = page.add("eu.x");
    await time.pass(30_000);
    server.commit(one.row);
    await time.pass(100);
    page.close(one);
    const other = page.add("x", { name: OTHER });
    server.commit(one.row);
    await time.pass(10_000);
    assert.deepEqual([other.handle.status, other.handle.position.version], ["live", 0]);
  },
  async "ticket() that returns something else"({ page, server, time }) {
    const good = page.add("a");
    const bad = ["none", "page", "widest"].map((ticket, number) => page.add(`ticket ${number}`, { ticket }));
    await time.pass(60_000);
    assert.deepEqual([statuses(page), server.opened], [["live", ...many(3, () => "reconnecting")], 1]);
    assert.match(bad[0].message, /has to return a string, and returned undefined/);
    assert.match(bad[1].message, /at most 16384 bytes, this one has 40008/);
    assert.equal(good.log.length, 3, "and nobody else hears of it");
  },
  async "ticket() that returns something else, over a stream"({ page, server, time }) {
    server.isOpenForSockets = false;
    page.add("ticket a", { ticket: "none" });
    await time.pass(60_000);
    assert.deepEqual(statuses(page), ["reconnecting"]);
  },
  async "a ticket's channel that is refused as its user has no room"({ page, server, time }) {
    server.isUserFull = true;
    const one = page.add("ticket a");
    page.add("b");
    await time.pass(20);
    assert.deepEqual(statuses(page), ["refused", "live"]);
    server.isUserFull = false;
    await time.pass(60_000);
    assert.equal(one.handle.status, "live");
  },
  async "room that a ticket's channel can't use, as its user has none"({ page, server, time }) {
    server.channels = 1;
    server.isUserFull = true;
    const first = page.add("a");
    await time.pass(100);
    page.add("ticket a");
    page.add("ticket b");
    await time.pass(10);
    const last = page.add("b");
    await time.pass(11);
    page.close(first);
    await time.pass(100);
    assert.equal(last.handle.status, "live");
  },
  async "more tickets than room are asked for now and then"({ page, server, time }) {
    server.channels = 2;
    many(10, (number) => page.add(`ticket ${number}`));
    await time.pass(30_000);
    const { frames } = server;
    await time.pass(60_000);
    assert.deepEqual([count(page, "live"), count(page, "refused")], [2, 8]);
    assert.ok(server.frames - frames < 80, `${server.frames - frames} frames in 60 s`);
    for (const one of page.open.filter(({ handle }) => handle.status === "live")) page.close(one);
    await time.pass(1_000);
    assert.deepEqual([count(page, "live"), count(page, "refused")], [2, 6]);
  },
  async "room of a watch that is closed while its ticket is under way"({ page, server, time }) {
    server.channels = 1;
    const first = page.add("a");
    await time.pass(100);
    const second = page.add("ticket a", { ticket: "late" });
    await time.pass(20);
    const third = page.add("b");
    await time.pass(6_000);
    page.close(first);
    await time.pass(500);
    page.close(second);
    await time.pass(500);
    assert.equal(third.handle.status, "live");
  },
  async "room of a watch with a ticket() that fails"({ page, server, time }) {
    server.channels = 1;
    const first = page.add("a");
    await time.pass(100);
    const second = page.add("ticket a");
    await time.pass(20);
    const third = page.add("b");
    await time.pass(1_000);
    second.throws.ticket = 1e9;
    page.close(first);
    await time.pass(60_000);
    assert.equal(third.handle.status, "live");
  },
  async "a right that ends every 10 s"(world) {
    await expire(world, 10_000);
  },
  async "a right that ends every 10 s, over a stream"(world) {
    world.server.isOpenForSockets = false;
    await expire(world, 10_000, 0.85); // it can't be told from a server that went away: below 2 s
  },
  async "a right that ends as soon as it is given is asked for less and less often"({ page, server, time }) {
    page.add("ticket a");
    for (let number = 0; number < 600; number += 1) {
      await time.pass(500);
      server.revoke("ticket a");
    }
    assert.ok(server.tickets < 40, `${server.tickets} tickets in 300 s`);
  },
  async "a right that ends and is not given again"({ page, server, time }) {
    server.isSignedIn = true;
    const one = page.add("ticket a");
    await time.pass(20_000);
    const { may } = server;
    server.may = () => false;
    server.revoke("ticket a");
    await time.pass(10);
    assert.equal(one.handle.status, "reconnecting");
    await time.pass(600);
    assert.equal(one.handle.status, "refused");
    server.may = may;
  },
  async "the timers of a hidden page"({ page, server, time }) {
    page.add("private");
    await time.pass(1_000);
    const real = globalThis.setTimeout;
    const wholeMinute = (due) => Math.ceil(due / 60_000) * 60_000 + (due % 300);
    globalThis.setTimeout = (call, ms) => real(call, wholeMinute(time.now + ms) - time.now);
    for (const timer of time.timers.values()) if (timer.owner === "client") timer.due = wholeMinute(timer.due);
    await time.pass(1_800_000);
    globalThis.setTimeout = real;
    assert.equal(server.opened, 1);
  },
  async "a clock that is set forward, and back"({ page, server, time }) {
    const one = page.add("a");
    await time.pass(20_000);
    time.offset = 600_000;
    await time.pass(60_000);
    assert.equal(server.opened, 1);
    time.offset = -3_600_000;
    server.mute();
    server.commit(one.text);
    await time.pass(95_000);
    assert.deepEqual([one.handle.status, one.handle.position.version, server.opened], ["live", 1, 2]);
  },
  async "a clock that is set back, over a stream"({ page, server, time }) {
    server.isOpenForSockets = false;
    const one = page.add("a");
    await time.pass(30_000);
    time.offset = -3_600_000;
    server.mute();
    server.commit(one.text);
    await time.pass(150_000);
    assert.deepEqual([one.handle.status, one.handle.position.version], ["live", 1]);
  },
  async "a computer that has slept"({ page, server, time }) {
    const one = page.add("a");
    await time.pass(20_000);
    time.offset = 3_600_000; // neither timers nor performance.now went on
    server.drop = () => {};
    server.mute();
    server.commit(one.text);
    await time.pass(65_000);
    assert.deepEqual([one.handle.status, one.handle.position.version], ["live", 1]);
  },
  async "sockets that open and carry nothing"({ page, server, time }) {
    server.isDeaf = true;
    const one = page.add("a");
    await time.pass(90_000);
    let live = 0;
    for (let second = 0; second < 600; second += 1) {
      server.commit(one.row);
      await time.pass(1_000);
      live += one.handle.status === "live" && one.handle.position.version === second + 1;
    }
    assert.equal(live, 600, "the stream stays while sockets are tried");
    server.isDeaf = false;
    await time.pass(120_000);
    assert.deepEqual([server.connections.size, [...server.connections][0] instanceof ServerSocket], [1, true]);
  },
  async "sockets that open and are closed at once"({ page, server, time }) {
    const real = ServerSocket.prototype.received;
    ServerSocket.prototype.received = function received() { this.end(1006); };
    const one = page.add("a");
    await time.pass(30_000);
    assert.deepEqual([one.handle.status, server.mostStreams], ["live", 1]);
    ServerSocket.prototype.received = real;
  },
  async "a watch that is closed while its ticket is under way"({ page, server, time }) {
    page.add("b");
    await time.pass(100);
    const one = page.add("ticket a", { ticket: "late" });
    await time.pass(100);
    page.close(one);
    await time.pass(10_000);
    assert.deepEqual([server.frames, [...server.connections][0].subs.size], [1, 1]);
    const again = page.add("ticket a");
    await time.pass(1_000);
    assert.equal(again.handle.status, "live");
  },
  async "a watch that is closed while its ticket is under way, over a stream"({ page, server, time }) {
    server.isOpenForSockets = false;
    page.add("b");
    await time.pass(30_000);
    const one = page.add("ticket a", { ticket: "late" });
    await time.pass(100);
    page.close(one);
    await time.pass(10_000);
    assert.equal(server.connections.size, 1);
  },
  async "a watch that is closed while it waits to ask again"({ page, server, time }) {
    page.add("b");
    const one = page.add("ticket a");
    await time.pass(1_000);
    server.revoke("ticket a");
    await time.pass(10);
    assert.equal(one.handle.status, "reconnecting");
    page.close(one);
    const { tickets } = server;
    await time.pass(60_000);
    assert.deepEqual([server.tickets, [...server.connections][0].subs.size], [tickets, 1]);
  },
  async "a second watch after the user has signed in"({ page, server, time }) {
    const first = page.add("private");
    await time.pass(1_000);
    assert.equal(first.handle.status, "refused");
    server.isSignedIn = true;
    const second = page.add("private");
    await time.pass(1_000);
    assert.deepEqual([first.handle.status, second.handle.status], ["live", "live"]);
  },
  async "a callback that closes and watches"({ page, server, time }) {
    const closeAll = () => { for (const one of page.open) if (one !== first) page.close(one); };
    let third = null;
    const watchAgain = () => { page.close(first); third ??= page.add("a"); };
    const first = page.add("a", { then: { reduce: closeAll, onDelta: watchAgain } });
    const second = page.add("a");
    await time.pass(100);
    server.commit(textOf(NAME, "a"));
    await time.pass(100);
    assert.deepEqual([first, second, third].map(({ handle }) => handle.position.version), [1, 0, 1]);
  },
  async "a second watch of a live key has its state at once"({ page, time }) {
    page.add("a", { reduces: false });
    await time.pass(100);
    const second = page.add("a");
    await time.pass(100);
    assert.deepEqual([second.handle.status, second.states], ["live", 1]);
  },
  async "the server holds a channel that the page does not know of"({ page, server, time }) {
    page.add("b");
    await time.pass(100);
    const [{ subs }] = server.connections;
    for (const key of ["a", "c"]) subs.set(textOf(NAME, key), { isLive: true, row: textOf(NAME, key) });
    server.commit(textOf(NAME, "c"));
    const one = page.add("a");
    await time.pass(100);
    assert.deepEqual([one.handle.status, one.states, [...subs.keys()]], ["live", 1, [textOf(NAME, "b"), textOf(NAME, "a")]]);
  },
  async "a socket that falls silent"({ page, server, time }) {
    const one = page.add("a");
    await time.pass(1_000);
    server.mute();
    server.commit(one.text);
    await time.pass(65_000);
    assert.deepEqual([one.handle.status, one.handle.position.version, server.opened], ["live", 1, 2]);
  },
  async "a stream that falls silent"({ page, server, time }) {
    server.isOpenForSockets = false;
    const one = page.add("a");
    await time.pass(30_000);
    server.mute();
    server.commit(one.text);
    await time.pass(70_000);
    assert.deepEqual([one.handle.status, one.handle.position.version], ["live", 1]);
  },
};

// -- any order

async function explore(module, runs, seed) {
  const fc = createRequire(process.env.NODE_MODULES)("fast-check");
  const keys = ["a", "b", "c", "d", "private", "ticket a", "ticket b", LONG, "eu.x", "x"];
  const nameOf = (key) => (key === "x" ? OTHER : NAME);
  const key = fc.nat(keys.length - 1);
  const callback = fc.constantFrom("onState", "onDelta", "onStatus", "reduce", "ticket");
  const one = (weight, step, ...values) => ({ weight, arbitrary: fc.tuple(fc.constant(step), ...values) });
  const step = fc.oneof(
    one(8, "watch", key, fc.boolean(), fc.constantFrom("good", "late", "hangs", "none", "page"), fc.dictionary(callback, fc.integer({ min: 1, max: 3 }), { maxKeys: 2 })),
    one(4, "close", fc.nat(9)),
    one(6, "commit", key),
    one(1, "rebuild", key),
    one(6, "pass", fc.constantFrom(0, 1, 20, 400, 3_000, 70_000)),
    one(2, "drop", fc.constantFrom(1006, 1001, 1013, 4401, 4429)),
    one(1, "mute"),
    one(2, "up", fc.boolean()),
    one(2, "sockets", fc.boolean()),
    one(1, "checks", fc.constantFrom(0, 300)),
    one(1, "handshake", fc.constantFrom(0, 700)),
    one(1, "lose", fc.constantFrom(1, 2)),
    one(1, "revoke", fc.constantFrom("private", "ticket a")),
    one(1, "sign in", fc.boolean()),
    one(1, "scroll", fc.integer({ min: 2, max: 150 }), fc.constantFrom(0, 1, 20)),
    one(1, "user full", fc.boolean()),
    one(1, "deaf", fc.boolean()),
    one(1, "clock", fc.constantFrom(-3_600_000, 0, 600_000)),
    one(1, "throw", fc.nat(9), callback),
  );
  const steps = {
    watch: ({ page }, number, reduces, ticket, throws) => page.add(keys[number], { name: nameOf(keys[number]), reduces, ticket, throws }),
    close: ({ page }, number) => page.close(page.open[number % (page.open.length || 1)]),
    commit: ({ server }, number) => server.commit(rowOf(nameOf(keys[number]), keys[number])),
    rebuild: ({ server }, number) => server.rebuild(rowOf(nameOf(keys[number]), keys[number])),
    pass: ({ time }, ms) => time.pass(ms),
    drop: ({ server }, code) => server.drop(code),
    mute: ({ server }) => server.mute(),
    up: ({ server }, isUp) => { server.isUp = isUp; if (!isUp) server.drop(); },
    sockets: ({ server }, isOpen) => { server.isOpenForSockets = isOpen; },
    checks: ({ server }, ms) => { server.checks = ms; },
    handshake: ({ server }, ms) => { server.handshake = ms; },
    lose: ({ server }, deltas) => { server.loses = deltas; },
    revoke: ({ server }, about) => server.revoke(about),
    "sign in": ({ server }, isSignedIn) => { server.isSignedIn = isSignedIn; },
    "user full": ({ server }, isFull) => { server.isUserFull = isFull; },
    deaf: ({ server }, isDeaf) => { server.isDeaf = isDeaf; },
    clock: ({ time }, offset) => { time.offset = offset; },
    async scroll({ page, time }, times, ms) {
      for (let number = 0; number < times; number += 1) {
        page.close(page.add(`row ${number % 40}`));
        if (ms) await time.pass(ms);
      }
    },
    throw: ({ page }, number, about) => { const watch = page.open[number % (page.open.length || 1)]; if (watch) watch.throws[about] = 1; },
  };
  const settings = fc.record({ channels: fc.constantFrom(1, 2, 4, 100), latency: fc.constantFrom(1, 5, 60), random: fc.integer({ min: 1, max: 2_147_483_646 }) });
  const property = fc.asyncProperty(settings, fc.array(step, { minLength: 1, maxLength: 40 }), (set, taken) =>
    play(module, set, async (world) => {
      for (const [name, ...values] of taken) {
        await steps[name](world, ...values);
        world.page.check();
      }
    }),
  );
  await fc.assert(property, { numRuns: runs, ...(seed === undefined ? {} : { seed }) });
}

const [module, scenario, runs, seed] = process.argv.slice(2);
if (scenario === "--list") console.log(JSON.stringify(Object.keys(scenarios)));
else if (scenario === "--any") await explore(module, Number(runs), seed === undefined ? undefined : Number(seed));
else await play(module, {}, scenarios[scenario]);
