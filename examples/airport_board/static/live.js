// The common parts of the pages: formats of texts and numbers.
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

// Draws once per frame of the screen, however many deltas arrive.
export function drawSoon(draw) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; draw(); });
  };
}
