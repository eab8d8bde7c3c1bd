// A watched key: snapshot first, then every version after it. A gap asks for a new snapshot; a lost
// connection comes back by itself, after a random pause that grows, so that a crowd does not return at once.
export function watch(name, key, { onState, onDelta, onStatus }) {
  let socket, position = null, attempt = 0;

  function connect() {
    onStatus("connecting");
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const path = key.split("/").map(encodeURIComponent).join("/");
    socket = new WebSocket(`${scheme}://${location.host}/ws/projection/${name}/${path}`);
    socket.onmessage = (message) => receive(JSON.parse(message.data));
    socket.onclose = () => {
      onStatus("reconnecting");
      setTimeout(connect, Math.random() * Math.min(10_000, 300 * 2 ** attempt++));
    };
  }

  function receive(frame) {
    if (frame.type === "snapshot") {
      position = { epoch: frame.epoch, version: frame.version };
      attempt = 0;
      onStatus("live");
      onState(frame.state);
    } else if (frame.type === "delta") {
      const first = position.version === 0 && position.epoch === "";
      if ((frame.epoch !== position.epoch && !first) || frame.prev !== position.version) {
        socket.send('{"type":"resync"}');
        return;
      }
      position = { epoch: frame.epoch, version: frame.version };
      onDelta(frame.data);
    }
  }

  connect();
}

export const byId = (id) => document.getElementById(id);
export const names = JSON.parse(byId("names").textContent);
const number = new Intl.NumberFormat("en-US");
export const count = (value) => number.format(value);
export const mean = (tally) => (tally.flights ? tally.delay / tally.flights : 0);
export const minutes = (value) => `${value < 0 ? "−" : ""}${Math.abs(value).toFixed(1)} min`;

export function showStatus(status) {
  const shown = byId("status");
  if (shown.dataset.status !== status) {
    shown.dataset.status = status;
    shown.textContent = status;
  }
}

const clockFormat = new Intl.DateTimeFormat("en-GB", {
  weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", timeZone: "UTC",
});
export function showClock(at) {
  if (at) byId("clock").textContent = clockFormat.format(new Date(`${at}Z`));
}

export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Many deltas between two frames of the screen are drawn once.
export function drawSoon(draw) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; draw(); });
  };
}
