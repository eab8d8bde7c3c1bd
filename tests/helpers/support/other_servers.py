"""Serves the module ``shop`` of the working directory: ``python -m support.other_servers KIND``.

Prints the port. Ends when its standard input does.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from typing import Any

KIND = sys.argv[1]

if KIND == "eventlet":
    import eventlet

    eventlet.monkey_patch()
elif KIND == "pywsgi":
    from gevent import monkey

    monkey.patch_all()


def start(app: Any) -> int:
    """Start the server and return its port."""
    if KIND.startswith("werkzeug"):
        from werkzeug.serving import make_server  # noqa: PLC0415

        tls = ("cert.pem", "key.pem") if KIND == "werkzeug-tls" else None
        server: Any = make_server("127.0.0.1", 0, app, threaded=True, ssl_context=tls)
        in_thread(server.serve_forever)
        return int(server.port)
    if KIND == "waitress":
        from waitress.server import create_server  # noqa: PLC0415

        server = create_server(app, host="127.0.0.1", port=0, threads=4)
        in_thread(server.run)
        return int(server.effective_port)
    if KIND == "cheroot":
        from cheroot.wsgi import Server  # noqa: PLC0415

        server = Server(("127.0.0.1", 0), app)
        server.prepare()
        in_thread(server.serve)
        return int(server.bind_addr[1])
    if KIND == "pywsgi":
        from gevent.pywsgi import WSGIServer  # noqa: PLC0415

        server = WSGIServer(("127.0.0.1", 0), app, log=None)
        server.start()
        return int(server.server_port)
    import eventlet.wsgi  # noqa: PLC0415

    listener = eventlet.listen(("127.0.0.1", 0))
    eventlet.spawn(eventlet.wsgi.server, listener, app, log_output=False)
    return int(listener.getsockname()[1])


def in_thread(function: Any) -> None:
    """Run it beside us."""
    threading.Thread(target=function, daemon=True).start()


def wait_for_end_of_input() -> None:
    """Let greenlets run meanwhile."""
    if KIND == "pywsgi":
        from gevent.os import tp_read  # noqa: PLC0415

        tp_read(0, 1)
    elif KIND == "eventlet":
        from eventlet import tpool  # noqa: PLC0415

        tpool.execute(os.read, 0, 1)
    else:
        sys.stdin.read(1)


if __name__ == "__main__":
    shop: Any = importlib.import_module("shop")
    sys.stdout.write(f"{start(shop.app)}\n")
    sys.stdout.flush()
    wait_for_end_of_input()
    shop.keyfold.system.close()
    os._exit(0)
