import { watch } from "/keyfold/keyfold.js";
import { byId, count, drawSoon, mean, minutes, showClock, showStatus } from "./live.js";

let changes = 0;
let at = "";
const live = new Set();

// Applies a delta as apply does in Python, to the part of the state that a tile shows.
function reduce(board, delta) {
  const state = board ?? { tally: { flights: 0, delay: 0, cancelled: 0 }, latest: [] };
  return delta.row ? { ...state, at: delta.at, tally: delta.tally, latest: [delta.row] } : state;
}

const totals = drawSoon(() => {
  byId("live").textContent = live.size;
  byId("changes").textContent = count(changes);
  showClock(at);
});

for (const tile of byId("wall").children) {
  const { code } = tile.dataset;
  const [, number, , detail] = tile.firstElementChild.children;
  let board = null;
  const draw = drawSoon(() => {
    number.textContent = count(board?.tally.flights ?? 0);
    const flight = board?.latest[0];
    detail.textContent = flight ? `${flight.flight} from ${flight.origin} · ${minutes(mean(board.tally))}` : "no flight yet";
  });
  watch("airports.board", code, {
    reduce,
    onState(state) {
      board = state;
      if (state && state.at > at) at = state.at;
      draw();
      totals();
    },
    onDelta() {
      changes += 1;
      tile.classList.remove("flash");
      void tile.offsetWidth;
      tile.classList.add("flash");
    },
    onStatus(status) {
      live[status === "live" ? "add" : "delete"](code);
      showStatus(live.size === byId("wall").children.length ? "live" : status === "live" ? "connecting" : status);
      totals();
    },
  });
}
