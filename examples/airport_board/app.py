"""The airport board: a week of real flights on live pages.

Run it with ``python examples/airport_board/app.py``, or with several workers by ``make demo-workers``.
PORT, SPEED, KEYFOLD_DATABASE and KEYFOLD_REDIS are read from the environment.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from flask import Flask, abort, jsonify, render_template, request
from werkzeug.serving import make_server

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from boards import AirportBoard, AirportsOverview  # noqa: E402
from flights import DATA, read_flights, read_names  # noqa: E402
from keyfold import Keyfold  # noqa: E402
from replay import SPEEDS, FlightReplay, as_dict  # noqa: E402

keyfold = Keyfold()
keyfold.register(AirportBoard())
keyfold.register(AirportsOverview())


def create_app() -> Flask:
    """Return the app and start its replay, which runs in one of the processes with the same database."""
    app = Flask(__name__)
    app.config["KEYFOLD_DATABASE"] = os.environ.get("KEYFOLD_DATABASE", f"sqlite:///{HERE / 'board.db'}")
    app.config["KEYFOLD_REDIS"] = os.environ.get("KEYFOLD_REDIS")
    app.config["KEYFOLD_ADMIN_TOKEN"] = os.environ.get("KEYFOLD_ADMIN_TOKEN", "let-me-see")
    keyfold.init_app(app)
    airports, carriers = read_names(DATA / "airports.csv"), read_names(DATA / "airlines.csv")
    flights = read_flights()
    busiest = [code for code, _ in Counter(flight.destination for flight in flights).most_common(40)]
    with app.app_context():
        replay = FlightReplay(keyfold.system, flights, speed=int(os.environ.get("SPEED", SPEEDS[1])))
    app.extensions["replay"] = replay
    replay.start()
    atexit.register(replay.stop)  # it runs before the system's own exit handler, which was registered earlier

    @app.get("/")
    def index() -> str:
        return render_template("index.html", names=airports, speeds=SPEEDS)

    @app.get("/airport/<code>")
    def airport(code: str) -> str:
        if not code.isalnum() or not code.isupper():
            abort(404)
        names = {"airports": airports, "carriers": carriers}
        return render_template("airport.html", code=code, name=airports.get(code, code), names=names)

    @app.get("/wall")
    def wall() -> str:
        return render_template("wall.html", codes=busiest, names=airports)

    @app.get("/replay")
    def status() -> Any:
        return jsonify(as_dict(replay.status()))

    @app.post("/replay")
    def control() -> Any:
        body = request.get_json()
        if body.get("start_over"):
            try:
                return jsonify(as_dict(replay.start_over()))
            except TimeoutError:
                abort(503, "no process replays at the moment; it will start over when one does")
        speed, paused = body.get("speed"), body.get("paused")
        if speed not in (None, *SPEEDS) or paused not in (None, True, False):
            abort(400, f"speed is one of {SPEEDS}, paused is true or false")
        return jsonify(as_dict(replay.control(speed=speed, paused=paused)))

    return app


def main() -> None:
    """Serve until Ctrl-C, then shut down cleanly."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    app = create_app()
    server = make_server("127.0.0.1", int(os.environ.get("PORT", "8000")), app, threaded=True)
    print(
        f"Airport board: http://127.0.0.1:{server.port}   (Ctrl-C ends it; a restart continues from there)",
        flush=True,
    )
    # Set for both signals: a background job of a shell ignores SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        app.extensions["replay"].stop()
        with app.app_context():
            keyfold.system.close()
        server.server_close()


if __name__ == "__main__":
    main()
