// Two clients from npm, driven by the test over standard input and output: node clients.mjs ws|sse URL [LAST]
import { createRequire } from "node:module";

const require = createRequire(process.env.NODE_MODULES);
const [kind, url, last] = process.argv.slice(2);
const say = (frame) => process.stdout.write(`${frame}\n`);

if (kind === "ws") {
  const WebSocket = require("ws");
  const socket = new WebSocket(url);
  socket.on("message", (data) => say(data));
  socket.on("close", (code) => say(JSON.stringify({ type: "close", code })));
  process.stdin.on("end", () => socket.close(1000));
} else {
  const { EventSource } = require("eventsource");
  const options = last ? { fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, "Last-Event-ID": last } }) } : {};
  const source = new EventSource(url, options);
  for (const type of ["snapshot", "resumed", "delta"]) {
    source.addEventListener(type, (event) => say(JSON.stringify({ ...JSON.parse(event.data), id: event.lastEventId })));
  }
  process.stdin.on("end", () => source.close());
}
process.stdin.resume();
