"""9,000 sockets held by one gunicorn worker, beside the Flask-Sock idiom: ``make bench-held_sockets``.

Threads and resident memory of the serving process, before and while the sockets are open. Each socket watches
one of 100 keys. The other side holds 1,000 sockets, because each of them needs two threads.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from crowd import Crowd, Server, raise_limits
from harness import environment, record, sqlite_file
from support.gunicorns import gunicorn


def usage_of(pid: int) -> tuple[int, int]:
    """Return threads and resident kilobytes of a process."""
    lines = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    return int(lines["Threads"]), int(lines["VmRSS"].split()[0])


def report(figure: str, text: str, pid: int, before: tuple[int, int], count: int) -> None:
    """Print the threads and the memory of the sockets."""
    threads, kilobytes = usage_of(pid)
    each = (kilobytes - before[1]) * 1024 / count
    record(f"{figure}.threads", threads)
    record(f"{figure}.bytes", each)
    print(f"  {text:<34} {count:>6,} sockets   {threads:>5,} threads   {each:>8,.0f} bytes each")


def main() -> None:
    """Print both sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=9_000)
    options = parser.parse_args()
    raise_limits()
    print(environment("keyfold", "gunicorn", "flask-sock"))
    with TemporaryDirectory(prefix="keyfold-bench-") as directory, sqlite_file() as database:
        settings = '{"KEYFOLD_MAX_SOCKETS": 100000, "KEYFOLD_MAX_SOCKETS_PER_ADDRESS": 100000}'
        options_of_gunicorn = ["--worker-class", "gthread", "--threads", "8", "--worker-connections", "10000"]
        with gunicorn(Path(directory), *options_of_gunicorn, DATABASE=database, CONFIG=settings) as server:
            pid = int(server.site.post("/add/0").split('"pid":')[1].split(",")[0])
            warm = Crowd(server.site.port, 50, "/ws/projection/test.totals/0", greeting=True)
            before = usage_of(pid)
            crowds = [
                Crowd(
                    server.site.port,
                    options.sockets // 100,
                    f"/ws/projection/test.totals/{key}",
                    greeting=True,
                )
                for key in range(100)
            ]
            report("keyfold", "keyfold, gunicorn -k gthread", pid, before, options.sockets // 100 * 100)
            for crowd in (warm, *crowds):
                crowd.close()
    idiom = Server("flask_sock_idiom.py")
    before = usage_of(idiom.process.pid)
    crowd = Crowd(idiom.port, 1_000, "/", greeting=False)
    report("flask_sock", "Flask-Sock, one thread per request", idiom.process.pid, before, 1_000)
    crowd.close()
    idiom.close()


if __name__ == "__main__":
    main()
