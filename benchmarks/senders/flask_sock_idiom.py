"""The usual code with Flask-Sock: a list of sockets, and a loop of ws.send."""

from __future__ import annotations

import logging
import threading
from typing import Any

from flask import Flask
from flask_sock import Sock
from orders import PAYLOAD, serve_orders
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)
app = Flask("bench")
sock = Sock(app)
clients: list[Any] = []


@sock.route("/")
def socket(ws: Any) -> None:
    clients.append(ws)
    ws.receive()


def fan_out(rounds: int, burst: int) -> None:
    for _ in range(rounds * burst):
        for ws in clients:
            ws.send(PAYLOAD)


server = make_server("127.0.0.1", 0, app, threaded=True)
server.socket.listen(4096)
threading.Thread(target=server.serve_forever, daemon=True).start()
serve_orders(server.port, fan_out)
