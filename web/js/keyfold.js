// Keyfold's client for browsers: live keys over one shared WebSocket, or over Server-Sent Events where
// WebSockets are blocked. An ES module without a build step; the types are in keyfold.d.ts.
//
// A Link compares the keys that the page watches with the keys that the server has been asked for, and takes the next
// step. `run` is the only place that sends, connects or waits. Messages, timers, tickets and the page's own calls only
// record an event and plan a run. The table of states is in docs/live.md.

const MESSAGES_PER_SECOND = 16; // the server closes a socket that sends more than 20 per second, pongs included,
const MAX_BURST = 100; // after a first burst of 120
const MIN_BURST = 8;
const FIRST_PAUSE_MS = 2_000;
const MAX_PAUSE_MS = 30_000;
const FORGET_MS = 30_000; // after so long without another pause, the pauses start small again
const PATIENCE_MS = 15_000; // for a handshake, a response, a ticket
const QUIET_MS = 30_000; // a socket that is silent for so long is pinged, and is dead after another such silence
const SILENCE_MS = 60_000; // a stream has a heartbeat every 25 s: a longer silence means a dead connection
const NEXT_TICKET = -2; // as an attempt of backoff(): below half a second
const FAILURES_BEFORE_STREAMS = 2;
const SOCKET_AGAIN_MS = 60_000;
const MAX_STREAMS = 4; // over HTTP/1.1 a browser has six connections per host, and the page itself needs some of them
const MAX_STREAMS_MULTIPLEXED = 40;
const MAX_TICKET_BYTES = 16_384; // as JSON: with the longest name and key, a subscribe stays below the server's 32 KiB
const DATA = ["snapshot", "resumed", "delta", "heartbeat"];
const NAME = /^[\w-]+(\.[\w-]+)*$/;
const KEY = /^[^\p{Cc}\p{Cs}\p{Zl}\p{Zp}]{1,512}$/u;

const links = new Map();
const now = () => performance.now();
const report = (error) => (globalThis.reportError ?? console.error)(error);

export function watch(name, key, options = {}) {
  const base = new URL(options.url ?? "../", options.url ? location.href : import.meta.url).href;
  if (!links.has(base)) links.set(base, new Link(base));
  return links.get(base).add(String(name), String(key), options);
}

// Full jitter: clients that lost their server at the same moment do not reconnect at the same moment.
export function backoff(attempt, random = Math.random) {
  return random() * Math.min(MAX_PAUSE_MS, FIRST_PAUSE_MS * 2 ** attempt);
}

globalThis.addEventListener?.("online", () => links.forEach((link) => link.hurry()));

class Pause {
  attempt = 0;
  due = -Infinity;

  again() {
    if (now() - this.due > FORGET_MS) this.attempt = 0;
    this.due = now() + backoff(this.attempt++);
  }
}

// One call of watch(). After close() none of its callbacks is called.
class Watch {
  state = null;
  position = null;
  status = null;
  isStale = true; // only a snapshot can be applied
  isClosed = false;

  constructor(options) {
    this.options = options;
  }

  call(callback, ...values) {
    if (this.isClosed) return;
    try {
      this.options[callback]?.(...values);
    } catch (error) {
      report(error);
    }
  }

  say(status, message) {
    if (this.isClosed || (this.status === status && this.message === message)) return;
    Object.assign(this, { status, message });
    this.call("onStatus", status, message);
  }

  // Applies a message of the channel. Returns false if a delta is missing: a snapshot is needed.
  take(message) {
    if (this.isClosed) return true;
    if (!this.#apply(message)) this.isStale = true;
    else if (!this.isStale) this.say("live");
    return !this.isStale;
  }

  #apply({ type, epoch, prev, version, from, state, data }) {
    const here = this.position;
    if (type === "snapshot") {
      Object.assign(this, { state, position: { epoch, version }, isStale: false });
      this.call("onState", state, this.position);
      return true;
    }
    if (this.isStale) return false;
    if (type === "resumed") return here.version === from;
    if (type === "heartbeat") return here.epoch === epoch && here.version === version;
    const follows = here.version === prev && (here.epoch === epoch || (!here.epoch && !prev));
    if (!follows) return here.epoch === epoch && version <= here.version;
    const reduces = Boolean(this.options.reduce);
    try {
      if (reduces) this.state = this.options.reduce(this.state, data);
    } catch (error) {
      report(error);
      this.say("reconnecting", `reduce failed: ${error}`);
      return false;
    }
    this.position = { epoch, version };
    if (reduces) this.call("onState", this.state, this.position);
    this.call("onDelta", data, this.position);
    return true;
  }
}

// All watches of one key, and the phase of its subscription on the server.
class Channel {
  watches = new Set();
  phase = "idle"; // idle, ticket, asked, live, leaving
  pause = new Pause(); // before the next subscribe; due at Infinity after a refusal
  resyncs = new Pause();
  isFull = false; // refused for lack of room: the end of another subscription may make room
  isSnapshotNeeded = false;
  isSnapshotComing = false;

  constructor(name, key, text = `projection.${name}.${key}`) {
    Object.assign(this, { name, key, text, id: `${name}/${key}` });
  }

  enter(phase) {
    Object.assign(this, { phase, entered: now(), heard: Date.now() });
    if (phase === "idle") this.cancel?.abort();
    else this.isFull = false;
    if (phase === "idle" || phase === "ticket") this.isSnapshotNeeded = false;
    if (phase === "ticket") Object.assign(this, { cancel: new AbortController(), ticket: undefined });
    this.isSnapshotComing = phase === "asked" || (phase === "live" && this.isSnapshotComing);
  }

  // Subscribes as soon as possible: for another watch, over a new connection, or because there may be room now.
  restart() {
    this.enter("idle");
    this.isFull = false;
    this.pause.due = Math.min(this.pause.due, now());
  }

  // Ends a subscription that failed or was refused. If it was live for a while, its pauses start small again.
  interrupt() {
    const isFresh = this.phase === "live" && now() - this.entered >= FIRST_PAUSE_MS;
    this.enter("idle");
    if (isFresh) this.pause.attempt = 0;
    return isFresh;
  }

  say(status, message) {
    for (const watch of [...this.watches]) watch.say(status, message);
  }

  get ticketed() {
    return [...this.watches].filter((watch) => watch.options.ticket);
  }

  // The position of all watches, if it is the same for all.
  get since() {
    const places = [...this.watches].map(({ isStale, position: here }) => !isStale && `${here.epoch}:${here.version}`);
    return (places.every((place) => place === places[0]) && places[0]) || undefined;
  }

  take(text, message = JSON.parse(text)) {
    if (message.type === "snapshot") this.isSnapshotNeeded = false;
    this.isSnapshotComing &&= message.type === "delta";
    for (const watch of [...this.watches]) {
      if (!watch.take(message ?? JSON.parse(text))) this.isSnapshotNeeded = true;
      message = null; // each watch gets its own objects: reduce may change them in place
    }
  }
}

class Link {
  channels = new Map(); // by name and key
  byText = new Map(); // the subscribed channel by its text, as messages name it. Two names can make the same text
  pause = new Pause(); // before the next WebSocket
  failures = 0; // consecutive WebSockets that carried no message
  isBlocked = false; // the last of these failed while a stream was open
  isOpen = false; // channels are subscribed over the socket
  isProven = false; // the socket has carried a message
  socket = null;
  maxBurst = MAX_BURST;

  constructor(base) {
    this.base = base;
  }

  add(name, key, options) {
    const watch = new Watch(options);
    const wanted = new Channel(name, key);
    const channel = this.channels.get(wanted.id) ?? wanted;
    const problem = problemWith(name, key);
    if (problem) {
      queueMicrotask(() => watch.say("refused", problem));
    } else {
      if (channel.phase === "idle") channel.restart();
      if (channel.phase === "live") channel.isSnapshotNeeded = true;
      this.channels.set(channel.id, channel);
      channel.watches.add(watch);
      this.plan();
    }
    watch.say("connecting");
    return {
      get state() { return watch.state; }, get position() { return watch.position; },
      get status() { return watch.status; },
      close: () => {
        watch.isClosed = true;
        if (channel.watches.delete(watch)) this.plan();
      },
    };
  }

  hurry() {
    this.pause.due = Math.min(this.pause.due, now());
    this.plan();
  }

  plan() {
    if (this.isPlanned) return;
    this.isPlanned = true;
    queueMicrotask(() => this.run());
  }

  run() {
    this.isPlanned = false;
    clearTimeout(this.timer);
    this.wait = Infinity;
    for (const channel of this.channels.values()) this.tidy(channel);
    if (![...this.channels.values()].some((channel) => channel.watches.size)) return this.rest();
    this.keepSocket();
    if (this.isOpen) this.useSocket();
    else if (this.failures >= FAILURES_BEFORE_STREAMS) this.useStreams();
    if (this.wait < Infinity) this.timer = setTimeout(() => this.run(), Math.ceil(this.wait));
  }

  // Returns true if it is too early. The link runs again at the time that is due.
  isEarly(due, clock = now) {
    const left = due - clock();
    if (left > 0) this.wait = Math.min(this.wait, left);
    return left > 0;
  }

  tidy(channel) {
    const isKnownToServer = this.isOpen && channel.phase !== "idle" && channel.phase !== "ticket";
    if (channel.watches.size || isKnownToServer) return;
    channel.enter("idle");
    this.channels.delete(channel.id);
    if (this.byText.get(channel.text) === channel) this.byText.delete(channel.text);
    this.makeRoom();
  }

  rest() {
    for (const channel of this.channels.values()) channel.enter("idle");
    this.channels.clear();
    this.byText.clear();
    this.dropSocket();
  }

  // -- subscribing one channel, and the end of a subscription

  ask(channel, hasRoom, send) {
    if (channel.phase === "idle" && !this.isEarly(channel.pause.due) && hasRoom()) {
      channel.enter("ticket");
      this.fetchTicket(channel);
    }
    if (channel.phase !== "ticket") return;
    if (channel.ticket !== undefined) send();
    else if (!this.isEarly(channel.entered + PATIENCE_MS)) this.failed(channel, "ticket() took too long");
  }

  async fetchTicket(channel) {
    const { ticketed, cancel: { signal } } = channel;
    if (!ticketed.length) return (channel.ticket = null);
    try {
      const ticket = await ticketed[channel.pause.attempt % ticketed.length].options.ticket(); // the watches alternate
      const problem = problemWithTicket(ticket);
      if (problem) throw new TypeError(problem);
      if (!signal.aborted) channel.ticket = ticket;
    } catch (error) {
      if (signal.aborted) return;
      report(error);
      this.failed(channel, `ticket() failed: ${error}`);
    }
    this.plan();
  }

  // A failure that may not happen again.
  failed(channel, message) {
    channel.interrupt();
    channel.pause.again();
    channel.say("reconnecting", message);
    this.makeRoom();
  }

  // A refusal by the server.
  refused(channel, code, message) {
    const wasLive = channel.phase === "live";
    const isFresh = channel.interrupt();
    const hasTickets = channel.ticketed.length > 0;
    const isFull = code === "limit";
    if (!hasTickets || !(isFull || code === "forbidden")) channel.pause.due = Infinity;
    else if (isFresh) channel.pause.due = now() + backoff(NEXT_TICKET);
    else channel.pause.again();
    if (isFull) {
      channel.isFull = true;
      this.channels.delete(channel.id); // it goes to the end of the channels that wait for room
      this.channels.set(channel.id, channel);
    }
    // The time of a ticket ends regularly, and the next ticket has not been refused.
    channel.say(wasLive && channel.pause.due < Infinity ? "reconnecting" : "refused", message);
    // With a ticket, the limit may be that of its user, so another channel may find room. Channels with tickets ask
    // again by themselves: if each also let the others ask, they would never stop.
    if (!isFull) this.makeRoom();
    else if (hasTickets) this.makeRoom((other) => !other.ticketed.length);
    this.plan();
  }

  // Called when a channel ends or no longer asks: a channel that was refused for lack of room may find some now.
  makeRoom(isEligible = () => true) {
    const waits = (channel) => channel.isFull && channel.watches.size && isEligible(channel);
    [...this.channels.values()].find(waits)?.restart();
    this.plan();
  }

  // -- one WebSocket for all channels

  keepSocket() {
    if (this.isOpen) {
      this.quietSince = Math.min(this.quietSince, Date.now()); // the clock may have been set back
      if (this.isEarly(this.quietSince + QUIET_MS, Date.now)) return;
      if (this.isPinged) this.lost();
      else this.ping();
    } else if (this.socket) {
      if (!this.isEarly(this.begun + PATIENCE_MS)) this.lost();
    } else if (!this.isEarly(this.pause.due)) {
      this.connect();
    }
  }

  connect() {
    this.begun = now();
    try {
      this.socket = new WebSocket(`${this.base.replace(/^http/, "ws")}ws/projection`);
    } catch {
      return this.lost();
    }
    this.socket.onopen = () => {
      Object.assign(this, { allowance: this.maxBurst, counted: now() });
      this.ping(); // its pong shows that the socket works: a blocked one may open and carry nothing
      if (this.failures < FAILURES_BEFORE_STREAMS) this.opened(); // else the streams stay until the pong
    };
    this.socket.onmessage = ({ data }) => this.receive(data);
    this.socket.onclose = ({ code }) => this.lost(code);
  }

  opened() {
    this.isOpen = true;
    for (const channel of this.channels.values()) channel.restart();
    this.plan();
  }

  // Ignores the events of a socket that is not needed any more, or dead.
  dropSocket() {
    const { socket } = this;
    Object.assign(this, { socket: null, isOpen: false, isProven: false });
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  lost(code) {
    const { isOpen, isProven } = this;
    this.dropSocket();
    if (isOpen) for (const channel of this.channels.values()) channel.restart();
    if (!isProven) this.failures += 1;
    if (code === 4429) this.maxBurst = Math.max(MIN_BURST, this.maxBurst / 2);
    this.isBlocked = !isOpen && this.streams().some(({ phase }) => phase === "live");
    if (this.isBlocked) this.pause.due = now() + SOCKET_AGAIN_MS * (0.5 + Math.random());
    else this.pause.again();
    for (const { phase, watches } of this.channels.values()) {
      for (const watch of [...watches]) if (phase === "idle" && watch.status !== "refused") watch.say("reconnecting");
    }
    this.plan();
  }

  ping() {
    Object.assign(this, { isPinged: true, quietSince: Date.now() });
    this.send({ type: "ping" });
    this.plan();
  }

  useSocket() {
    const gained = ((now() - this.counted) * MESSAGES_PER_SECOND) / 1000;
    Object.assign(this, { allowance: Math.min(this.maxBurst, this.allowance + gained), counted: now() });
    const channels = [...this.channels.values()];
    this.spare = this.allowance - channels.filter(({ phase }) => phase === "ticket").length; // each will send one
    for (const channel of channels) {
      const { phase, watches } = channel;
      if (watches.size || (phase !== "asked" && phase !== "live") || !this.hasSpare()) continue;
      this.send({ type: "unsubscribe", channel: channel.text });
      channel.enter("leaving");
    }
    for (const channel of channels) {
      if (channel.watches.size) this.ask(channel, () => this.reservesText(channel), () => this.subscribe(channel));
    }
    for (const channel of channels) {
      const { phase, watches, resyncs } = channel;
      if (phase !== "live" || !watches.size || !channel.isSnapshotNeeded || channel.isSnapshotComing) continue;
      if (this.isEarly(resyncs.due) || !this.hasSpare()) continue;
      this.send({ type: "resync", channel: channel.text });
      resyncs.again();
      channel.isSnapshotComing = true;
    }
  }

  // One channel per text at a time: messages have only the text, and the state of another row must never be shown.
  reservesText(channel) {
    const holder = this.byText.get(channel.text) ?? channel;
    if (holder.phase === "idle") return this.hasSpare() && Boolean(this.byText.set(channel.text, channel));
    if (holder.watches.size) channel.say("refused", `${channel.text} is watched as a key of ${holder.name} already`);
    return false;
  }

  hasSpare() {
    if (this.spare >= 1) return (this.spare -= 1) >= 0;
    this.wait = Math.min(this.wait, 1000 / MESSAGES_PER_SECOND);
    return false;
  }

  send(message) {
    this.allowance -= 1;
    this.socket.send(JSON.stringify(message));
  }

  subscribe(channel) {
    const { name: projection, key, since, ticket } = channel; // as two fields, because both may contain dots
    this.send({ type: "subscribe", projection, key, since, ticket: ticket ?? undefined });
    channel.enter("asked");
  }

  receive(text) {
    Object.assign(this, { isPinged: false, quietSince: Date.now() });
    if (!this.isProven) {
      Object.assign(this, { isProven: true, isBlocked: false, failures: 0 });
      if (!this.isOpen) this.opened();
    }
    const received = JSON.parse(text);
    const { type, code, message, channel: about } = received;
    const isLive = type === "subscribed" || DATA.includes(type);
    if (isLive && !this.byText.has(about)) this.discover(about);
    const channel = this.byText.get(about);
    if (!channel) return;
    const { phase } = channel;
    if (type === "unsubscribed" || code === "not_subscribed") {
      channel.enter("idle");
      this.plan();
    } else if (phase === "leaving") {
      return; // it was on its way when the unsubscribe was sent
    } else if (isLive || code === "subscribed_already") {
      if (phase !== "live") channel.enter("live");
      if (code) Object.assign(channel, { isSnapshotNeeded: true, isSnapshotComing: false });
      if (DATA.includes(type)) channel.take(text, received);
      if (phase !== "live" || channel.isSnapshotNeeded) this.plan();
    } else if (type === "error" && (phase === "asked" || phase === "live")) {
      this.refused(channel, code, message);
    }
  }

  // The server sends a channel that was not asked for. It has no watch, so it will be unsubscribed.
  discover(text) {
    const channel = new Channel("", text, text);
    this.channels.set(channel.id, channel);
    this.byText.set(text, channel);
  }

  // -- one stream per channel, where WebSockets are blocked

  streams() {
    return [...this.channels.values()].filter(({ phase }) => phase !== "idle");
  }

  useStreams() {
    const max = isMultiplexed(this.base) ? MAX_STREAMS_MULTIPLEXED : MAX_STREAMS;
    for (const channel of this.channels.values()) {
      const { phase, resyncs } = channel;
      if (phase === "asked" && !this.isEarly(channel.entered + PATIENCE_MS)) this.failed(channel, "no answer");
      if (phase !== "live") continue;
      channel.heard = Math.min(channel.heard, Date.now()); // the clock may have been set back
      if (!this.isEarly(channel.heard + SILENCE_MS, Date.now)) this.failed(channel, "the stream is silent");
      else if (channel.isSnapshotNeeded && !this.isEarly(resyncs.due)) {
        resyncs.again();
        channel.enter("idle");
      }
    }
    for (const channel of this.channels.values()) {
      const hasRoom = () => {
        if (this.streams().length < max) return true;
        if (this.isBlocked) channel.say("refused", `WebSockets are blocked, and a page may have ${max} streams`);
        return false;
      };
      this.ask(channel, hasRoom, () => this.listen(channel));
    }
  }

  // With fetch, because an EventSource does not give the status of a refusal.
  async listen(channel) {
    const { name, key, since, ticket, cancel: { signal } } = channel;
    const url = new URL(`sse/projection/${name}/${encodeURIComponent(key)}`, this.base);
    if (since) url.searchParams.set("since", since);
    if (ticket !== null) url.searchParams.set("ticket", ticket);
    channel.enter("asked");
    try {
      const answer = await fetch(url, { credentials: "include", cache: "no-store", signal });
      if (!isStream(answer)) return await this.declined(channel, answer, signal);
      if (signal.aborted) return;
      // The server answers. If it was down when the WebSockets failed, they may work now.
      if (!this.streams().some(({ phase }) => phase === "live")) this.hurry();
      channel.enter("live");
      await this.read(channel, answer.body.getReader(), signal);
      throw new Error("the stream ended");
    } catch (error) {
      if (!signal.aborted) this.failed(channel, String(error));
    }
  }

  async declined(channel, answer, signal) {
    const { status } = answer;
    const message = (await answer.json().catch(() => null))?.error?.message ?? `HTTP ${status}`;
    if (signal.aborted) return;
    const isFinal = status >= 400 && status < 500 && ![408, 425, 429].includes(status);
    if (isFinal) this.refused(channel, status === 401 || status === 403 ? "forbidden" : "", message);
    else this.failed(channel, message);
  }

  async read(channel, reader, signal) {
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (signal.aborted || done) return;
      channel.heard = Date.now();
      const piece = decoder.decode(value, { stream: true });
      rest += piece;
      if (!piece.includes("\n")) continue;
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:") && !signal.aborted) channel.take(line.slice(5));
      if (channel.isSnapshotNeeded) this.plan();
    }
  }
}

function problemWith(name, key) {
  if (name.length > 128 || !NAME.test(name)) return `${name.slice(0, 50)} can't be the name of a projection`;
  return KEY.test(key) ? null : `a key has 1 to 512 printable characters, this one has ${[...key].length}`;
}

function problemWithTicket(ticket) {
  if (typeof ticket !== "string") return `it has to return a string, and returned ${typeof ticket}`;
  const { length } = new TextEncoder().encode(JSON.stringify(ticket));
  return length > MAX_TICKET_BYTES ? `a ticket has at most ${MAX_TICKET_BYTES} bytes, this one has ${length}` : null;
}

function isStream(answer) {
  return answer.status === 200 && /^text\/event-stream/.test(answer.headers.get("Content-Type"));
}

function isMultiplexed(base) {
  const { origin } = new URL(base);
  const entries = performance.getEntries().filter(({ nextHopProtocol }) => /^h[23]/.test(nextHopProtocol));
  return entries.some(({ name }) => new URL(name).origin === origin);
}
