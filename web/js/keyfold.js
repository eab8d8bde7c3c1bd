// Keyfold's client for browsers: live keys over one shared WebSocket, or over Server-Sent Events where
// WebSockets are blocked. An ES module without a build step; the types are in keyfold.d.ts.
//
// A Link compares what the page wants with what the server has been asked for, and does what is missing: `run` is
// the only place that sends, connects or waits. Frames, timers, tickets and the page's own calls note what has
// happened and plan a run. The table of states is in docs/live.md.

const FRAMES_A_SECOND = 16; // the server closes a socket that sends more than 20 a second, pongs included,
const FRAMES_AT_ONCE = 100; // above its first 120
const FEWEST_AT_ONCE = 8;
const FIRST_PAUSE_MS = 2_000;
const LONGEST_PAUSE_MS = 30_000;
const FORGET_MS = 30_000; // a pause that was followed by no other for so long is forgotten
const PATIENCE_MS = 15_000; // for a handshake, a response, a ticket
const QUIET_MS = 30_000; // a socket that is silent for so long is sent a ping, and is dead if no answer comes for as long
const SILENCE_MS = 60_000; // a stream beats every 25 s: a longer silence is a dead connection
const SOON = -2; // as an attempt of backoff(): below half a second
const FAILURES_BEFORE_STREAMS = 2;
const SOCKET_AGAIN_MS = 60_000;
const STREAMS = 4; // over HTTP/1.1 a browser has six connections, and the page needs some of them itself
const STREAMS_MULTIPLEXED = 40;
const TICKET_BYTES = 16_384; // as JSON: with the longest name and key a subscribe stays below the 32 KiB of a frame
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

// Full jitter: a crowd that lost its server together does not come back together.
export function backoff(attempt, random = Math.random) {
  return random() * Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** attempt);
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

// One call of watch(). After close() nothing of it is called.
class Watch {
  state = null;
  position = null;
  status = null;
  isStale = true; // nothing but a snapshot can be taken
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

  // Takes a frame of the channel. False: something is missing, a snapshot is needed.
  take(frame) {
    if (this.isClosed) return true;
    if (!this.#follow(frame)) this.isStale = true;
    else if (!this.isStale) this.say("live");
    return !this.isStale;
  }

  #follow({ type, epoch, prev, version, from, state, data }) {
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

// What a page watches of one key, and how far that has come with the server.
class Channel {
  watches = new Set();
  phase = "idle"; // idle, ticket, asked, live, leaving
  pause = new Pause(); // before the next subscribe. Due in infinity: refused
  resyncs = new Pause();
  isFull = false; // refused as the server has no room: another that leaves may make some
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

  // To be asked for at once: by another watch, over another connection, or as there may be room now.
  restart() {
    this.enter("idle");
    this.isFull = false;
    this.pause.due = Math.min(this.pause.due, now());
  }

  // It could not go on. What was live for a while did not fail: its pauses begin small again.
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

  // Where all watches stand, if that is one place.
  get since() {
    const places = [...this.watches].map(({ isStale, position: here }) => !isStale && `${here.epoch}:${here.version}`);
    return (places.every((place) => place === places[0]) && places[0]) || undefined;
  }

  take(text, frame = JSON.parse(text)) {
    if (frame.type === "snapshot") this.isSnapshotNeeded = false;
    this.isSnapshotComing &&= frame.type === "delta";
    for (const watch of [...this.watches]) {
      if (!watch.take(frame ?? JSON.parse(text))) this.isSnapshotNeeded = true;
      frame = null; // each watch gets objects of its own: reduce may change them in place
    }
  }
}

class Link {
  channels = new Map(); // by name and key
  holders = new Map(); // by text, as frames name it: the channel that has it. Two names may make one text
  pause = new Pause(); // before the next WebSocket
  failures = 0; // WebSockets in a row that carried nothing
  isBlocked = false; // the last one of them failed while a stream was open
  isOpen = false; // channels are asked for over the socket
  isProven = false; // the socket has carried a message
  socket = null;
  most = FRAMES_AT_ONCE;

  constructor(base) {
    this.base = base;
  }

  add(name, key, options) {
    const watch = new Watch(options);
    const wanted = new Channel(name, key);
    const channel = this.channels.get(wanted.id) ?? wanted;
    const flaw = flawOf(name, key);
    if (flaw) {
      queueMicrotask(() => watch.say("refused", flaw));
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

  // True: it is too early for this. The link runs again when it is due.
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
    if (this.holders.get(channel.text) === channel) this.holders.delete(channel.text);
    this.makeRoom();
  }

  rest() {
    for (const channel of this.channels.values()) channel.enter("idle");
    this.channels.clear();
    this.holders.clear();
    this.dropSocket();
  }

  // -- how a channel is asked for, and how that ends

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
      const ticket = await ticketed[channel.pause.attempt % ticketed.length].options.ticket(); // they take turns
      const flaw = flawOfTicket(ticket);
      if (flaw) throw new TypeError(flaw);
      if (!signal.aborted) channel.ticket = ticket;
    } catch (error) {
      if (signal.aborted) return;
      report(error);
      this.failed(channel, `ticket() failed: ${error}`);
    }
    this.plan();
  }

  // Something went wrong that may go well next time.
  failed(channel, message) {
    channel.interrupt();
    channel.pause.again();
    channel.say("reconnecting", message);
    this.makeRoom();
  }

  // The server has said no.
  refused(channel, code, message) {
    const wasLive = channel.phase === "live";
    const isFresh = channel.interrupt();
    const hasTickets = channel.ticketed.length > 0;
    const isFull = code === "limit";
    if (!hasTickets || !(isFull || code === "forbidden")) channel.pause.due = Infinity;
    else if (isFresh) channel.pause.due = now() + backoff(SOON);
    else channel.pause.again();
    if (isFull) {
      channel.isFull = true;
      this.channels.delete(channel.id); // to the end of those that wait for room
      this.channels.set(channel.id, channel);
    }
    // The right of a ticket ends regularly, and the next ticket has not been refused.
    channel.say(wasLive && channel.pause.due < Infinity ? "reconnecting" : "refused", message);
    // With a ticket it may be its user who has no room: then another channel finds some. Those with tickets ask again by
    // themselves: handed to each other, the room that there isn't would be asked for without an end.
    if (!isFull) this.makeRoom();
    else if (hasTickets) this.makeRoom((other) => !other.ticketed.length);
    this.plan();
  }

  // Called whenever a channel ends, or no longer asks: there may be room for one that was refused for want of it.
  makeRoom(isMeant = () => true) {
    [...this.channels.values()].find((channel) => channel.isFull && channel.watches.size && isMeant(channel))?.restart();
    this.plan();
  }

  // -- one WebSocket for all

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
      Object.assign(this, { allowance: this.most, counted: now() });
      this.ping(); // so that something comes in any case: a socket may open and carry nothing
      if (this.failures < FAILURES_BEFORE_STREAMS) this.opened(); // else the streams stay until it has
    };
    this.socket.onmessage = ({ data }) => this.receive(data);
    this.socket.onclose = ({ code }) => this.lost(code);
  }

  opened() {
    this.isOpen = true;
    for (const channel of this.channels.values()) channel.restart();
    this.plan();
  }

  // A socket that the page has no use for, or that is dead, shall not be heard any more.
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
    if (code === 4429) this.most = Math.max(FEWEST_AT_ONCE, this.most / 2);
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
    const gained = ((now() - this.counted) * FRAMES_A_SECOND) / 1000;
    Object.assign(this, { allowance: Math.min(this.most, this.allowance + gained), counted: now() });
    const channels = [...this.channels.values()];
    this.spare = this.allowance - channels.filter(({ phase }) => phase === "ticket").length; // each will be sent
    for (const channel of channels) {
      const { phase, watches } = channel;
      if (watches.size || (phase !== "asked" && phase !== "live") || !this.hasSpare()) continue;
      this.send({ type: "unsubscribe", channel: channel.text });
      channel.enter("leaving");
    }
    for (const channel of channels) {
      if (channel.watches.size) this.ask(channel, () => this.takesText(channel), () => this.subscribe(channel));
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

  // One name at a time: frames tell the text alone, and another row's state shall never be shown.
  takesText(channel) {
    const holder = this.holders.get(channel.text) ?? channel;
    if (holder.phase === "idle") return this.hasSpare() && Boolean(this.holders.set(channel.text, channel));
    if (holder.watches.size) channel.say("refused", `${channel.text} is watched as a key of ${holder.name} already`);
    return false;
  }

  hasSpare() {
    if (this.spare >= 1) return (this.spare -= 1) >= 0;
    this.wait = Math.min(this.wait, 1000 / FRAMES_A_SECOND);
    return false;
  }

  send(message) {
    this.allowance -= 1;
    this.socket.send(JSON.stringify(message));
  }

  subscribe(channel) {
    const { name: projection, key, since, ticket } = channel; // apart, as both may have dots
    this.send({ type: "subscribe", projection, key, since, ticket: ticket ?? undefined });
    channel.enter("asked");
  }

  receive(text) {
    Object.assign(this, { isPinged: false, quietSince: Date.now() });
    if (!this.isProven) {
      Object.assign(this, { isProven: true, isBlocked: false, failures: 0 });
      if (!this.isOpen) this.opened();
    }
    const frame = JSON.parse(text);
    const { type, code, message, channel: about } = frame;
    const isLive = type === "subscribed" || DATA.includes(type);
    if (isLive && !this.holders.has(about)) this.discover(about);
    const channel = this.holders.get(about);
    if (!channel) return;
    const { phase } = channel;
    if (type === "unsubscribed" || code === "not_subscribed") {
      channel.enter("idle");
      this.plan();
    } else if (phase === "leaving") {
      return; // it crossed the unsubscribe
    } else if (isLive || code === "subscribed_already") {
      if (phase !== "live") channel.enter("live");
      if (code) Object.assign(channel, { isSnapshotNeeded: true, isSnapshotComing: false });
      if (DATA.includes(type)) channel.take(text, frame);
      if (phase !== "live" || channel.isSnapshotNeeded) this.plan();
    } else if (type === "error" && (phase === "asked" || phase === "live")) {
      this.refused(channel, code, message);
    }
  }

  // The server holds a channel that was not asked for: without a watch it will be unsubscribed.
  discover(text) {
    const channel = new Channel("", text, text);
    this.channels.set(channel.id, channel);
    this.holders.set(text, channel);
  }

  // -- a stream for each, where there are no WebSockets

  streams() {
    return [...this.channels.values()].filter(({ phase }) => phase !== "idle");
  }

  useStreams() {
    const most = isMultiplexed(this.base) ? STREAMS_MULTIPLEXED : STREAMS;
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
        if (this.streams().length < most) return true;
        if (this.isBlocked) channel.say("refused", `WebSockets are blocked, and a page may have ${most} streams`);
        return false;
      };
      this.ask(channel, hasRoom, () => this.listen(channel));
    }
  }

  // By fetch, as an EventSource does not tell the status of a refusal.
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
      // The server is there: if it was away when the WebSockets failed, they work by now.
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

function flawOf(name, key) {
  if (name.length > 128 || !NAME.test(name)) return `${name.slice(0, 50)} can't be the name of a projection`;
  return KEY.test(key) ? null : `a key has 1 to 512 printable characters, this one has ${[...key].length}`;
}

function flawOfTicket(ticket) {
  if (typeof ticket !== "string") return `it has to return a string, and returned ${typeof ticket}`;
  const { length } = new TextEncoder().encode(JSON.stringify(ticket));
  return length > TICKET_BYTES ? `a ticket has at most ${TICKET_BYTES} bytes, this one has ${length}` : null;
}

function isStream(answer) {
  return answer.status === 200 && /^text\/event-stream/.test(answer.headers.get("Content-Type"));
}

function isMultiplexed(base) {
  const { origin } = new URL(base);
  const entries = performance.getEntries().filter(({ nextHopProtocol }) => /^h[23]/.test(nextHopProtocol));
  return entries.some(({ name }) => new URL(name).origin === origin);
}
