// Keyfold's client for browsers: live keys over one shared WebSocket, or over Server-Sent Events where
// WebSockets are blocked. An ES module without a build step; the types are in keyfold.d.ts.

const SILENCE_MS = 60_000; // a channel beats every 25 s, so a longer silence is a dead connection
const FAILURES_BEFORE_STREAMS = 2;
const links = new Map();

export function watch(name, key, options = {}) {
  const base = new URL(options.url ?? "../", options.url ? location.href : import.meta.url).href;
  if (!links.has(base)) links.set(base, new Link(base));
  return links.get(base).add(new Watch(name, key, options));
}

// Full jitter: a crowd that lost its server together does not come back together.
export function backoff(attempt, random = Math.random) {
  return random() * Math.min(30_000, 300 * 2 ** attempt);
}

class Watch {
  constructor(name, key, { onState, onDelta, onStatus, reduce, ticket }) {
    Object.assign(this, { name, key, onState, onDelta, onStatus, reduce, ticket });
    this.channel = `projection.${name}.${key}`;
    this.position = null;
    this.state = null;
    this.status = null;
    this.attempt = 0;
  }

  get since() {
    return this.position && `${this.position.epoch}:${this.position.version}`;
  }

  say(status, message) {
    if (this.status === status) return;
    this.status = status;
    this.onStatus?.(status, message);
  }

  // Takes a frame of the channel. False: something is missing, a snapshot is needed.
  take({ type, epoch, prev, version, from, state, data }) {
    const here = this.position;
    if (type === "snapshot") {
      this.position = { epoch, version };
      this.state = state;
      this.onState?.(state, this.position);
    } else if (type === "delta") {
      const follows = here && here.version === prev && (here.epoch === epoch || (!here.epoch && !prev));
      if (!follows) return Boolean(here && here.epoch === epoch && version <= here.version);
      this.position = { epoch, version };
      if (this.reduce) {
        this.state = this.reduce(this.state, data);
        this.onState?.(this.state, this.position);
      }
      this.onDelta?.(data, this.position);
    } else if (type === "resumed" ? here?.version !== from : here?.epoch !== epoch || here.version !== version) {
      return false;
    }
    this.attempt = 0;
    this.say("live");
    return true;
  }
}

class Link {
  constructor(base) {
    this.base = base;
    this.watches = new Map(); // channel -> set of watches
    this.streams = new Map(); // watch -> EventSource
    this.socket = null;
    this.attempt = this.failures = this.heard = 0;
    addEventListener("online", () => this.timer && this.connect());
  }

  add(watch) {
    const others = this.watches.get(watch.channel);
    if (others) others.add(watch);
    else this.watches.set(watch.channel, new Set([watch]));
    watch.say("connecting");
    if (this.streams.size) this.stream(watch);
    else if (this.socket?.readyState === WebSocket.OPEN) others ? this.resync(watch) : this.subscribe(watch);
    else if (!this.socket && !this.timer) this.connect();
    return {
      get state() { return watch.state; }, get position() { return watch.position; },
      get status() { return watch.status; },
      close: () => this.remove(watch),
    };
  }

  remove(watch) {
    const others = this.watches.get(watch.channel);
    if (!others?.delete(watch)) return;
    this.streams.get(watch)?.close();
    this.streams.delete(watch);
    if (others.size) return;
    this.watches.delete(watch.channel);
    this.send({ type: "unsubscribe", channel: watch.channel });
    if (!this.watches.size) this.socket?.close();
  }

  all() {
    return [...this.watches.values()].flatMap((watches) => [...watches]);
  }

  // -- a WebSocket for all

  connect() {
    clearTimeout(this.timer);
    this.timer = null;
    if (this.socket || !this.watches.size) return;
    let opened = false;
    const socket = (this.socket = new WebSocket(`${this.base.replace(/^http/, "ws")}ws/projection`));
    const pulse = setInterval(() => Date.now() - this.heard > SILENCE_MS && this.lost(socket), SILENCE_MS / 4);
    socket.onopen = () => {
      opened = true;
      this.failures = 0;
      this.heard = Date.now();
      for (const [watch] of this.watches.values()) this.subscribe(watch);
    };
    socket.onmessage = (message) => {
      this.heard = Date.now();
      this.receive(JSON.parse(message.data));
    };
    socket.onclose = () => {
      clearInterval(pulse);
      if (this.socket !== socket) return;
      this.socket = null;
      if (!opened && ++this.failures >= FAILURES_BEFORE_STREAMS) this.all().forEach((watch) => this.stream(watch));
      else this.again();
    };
  }

  lost(socket) {
    socket.onclose(); // a dead connection may take minutes to close by itself
    socket.close();
  }

  again() {
    for (const watch of this.all()) watch.say("reconnecting");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.connect(), backoff(this.attempt++));
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  async subscribe(watch) {
    const { name: projection, key, channel } = watch;
    const ticket = watch.ticket && (await watch.ticket());
    const agree = [...(this.watches.get(channel) ?? [])].every(({ since }) => since === watch.since);
    const since = (agree && watch.since) || undefined;
    this.send({ type: "subscribe", channel, projection, key, since, ticket });
  }

  resync(watch) {
    watch.position = null;
    this.send({ type: "resync", channel: watch.channel });
  }

  receive(frame) {
    const watches = [...(this.watches.get(frame.channel) ?? [])];
    if (frame.type === "error") return watches.forEach((watch) => this.refused(watch, frame));
    if (!["snapshot", "resumed", "delta", "heartbeat"].includes(frame.type)) return;
    this.attempt = 0;
    const behind = watches.filter((watch) => !watch.take(frame)).find((watch) => watch.position);
    if (behind) this.resync(behind);
  }

  refused(watch, { code, message }) {
    watch.say("refused", message);
    if (watch.ticket && code === "forbidden") setTimeout(() => this.subscribe(watch), backoff(watch.attempt++));
  }

  // -- a stream for each, where there are no WebSockets

  async stream(watch) {
    const url = new URL(`sse/projection/${watch.name}/${encodeURIComponent(watch.key)}`, this.base);
    if (watch.since) url.searchParams.set("since", watch.since);
    if (watch.ticket) url.searchParams.set("ticket", await watch.ticket());
    this.streams.get(watch)?.close();
    const source = new EventSource(url, { withCredentials: true });
    this.streams.set(watch, source);
    for (const type of ["snapshot", "resumed", "delta", "heartbeat"]) {
      source.addEventListener(type, (event) => {
        this.attempt = 0;
        if (watch.take(JSON.parse(event.data))) return;
        watch.position = null;
        this.stream(watch);
      });
    }
    // Whatever ended it: begin anew with a WebSocket, which may be possible by now.
    source.onerror = () => {
      if (this.streams.get(watch) !== source) return;
      for (const other of this.streams.values()) other.close();
      this.streams.clear();
      this.again();
    };
  }
}
