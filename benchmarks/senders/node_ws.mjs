// The ws package of Node.js, without compression: a loop over its clients.
import { createRequire } from "node:module";
import readline from "node:readline";

const require = createRequire(process.env.NODE_MODULES);
const { WebSocketServer } = require("ws");
const PAYLOAD = JSON.stringify({
  type: "delta", channel: "projection.bench.counter.a", epoch: "abcdefghijkl", prev: 123456,
  version: 123457, event: "delta", data: { sku: "apple", total: 4711 },
}).padEnd(Number(process.argv[2]), " ");
const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const server = new WebSocketServer({ port: 0, host: "127.0.0.1", perMessageDeflate: false, backlog: 4096 });
server.on("listening", () => say(server.address().port));
for await (const line of readline.createInterface({ input: process.stdin })) {
  const [rounds, burst] = line.split(" ").map(Number);
  const started = performance.now();
  for (let round = 0; round < rounds; round++) {
    for (let one = 0; one < burst; one++) for (const client of server.clients) client.send(PAYLOAD);
    await new Promise(setImmediate);
  }
  say((performance.now() - started) / 1000);
}
