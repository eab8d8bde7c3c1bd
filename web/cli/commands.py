"""The commands of ``flask keyfold``, for operators at a terminal and for scripts.

Exit codes: 0 done; 1 refused, not found or failing; 2 wrong arguments; 3 the database cannot be reached.
"""

from __future__ import annotations

import json as plain_json
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from typing import IO, Any

import click
from flask.cli import AppGroup
from msgspec import json

from ...actors import InvalidEvent, ProjectionRuntime
from ...actors.broadcaster import channel_of
from ...store import StoreError, StoreUnavailable, migrate, pending
from ...store.operator_queries import Queries
from ...store.rows import Head
from ...store.validation import check_key
from ..app_registry import current_state
from ..operator.overview import NOTHING_DEGRADED, SCAN_SECONDS, degraded_in
from .dead_letters import letters
from .follow import follow
from .output import (
    REFUSED,
    as_json_option,
    ask,
    command,
    confirm,
    end,
    limit_option,
    runtime_of,
    show,
    table,
    yes_option,
)


def make_cli() -> AppGroup:
    """Return the group of all commands, for ``app.cli``."""
    group = AppGroup("keyfold", help="Keyfold's projections: their tables, keys and dead letters.")
    for each in (
        _migrate,
        _status,
        _show,
        _keys,
        _rebuild,
        _repair,
        _wipe,
        _new_epoch,
        _resume,
        _tail,
        letters,
    ):
        group.add_command(each)
    return group


# -- tables


@command("migrate")
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 if a migration is pending.")
@as_json_option
def _migrate(*, check: bool, as_json: bool) -> None:
    """Bring Keyfold's tables up to date."""
    store = current_state().system.store
    steps = _pending() if check else store.run(lambda: migrate(store.database))  # without a time limit
    word = "pending" if check else "done"
    show({word: steps}, as_json=as_json, text="\n".join(f"{step}: {word}" for step in steps) or "up to date")
    if check and steps:
        sys.exit(REFUSED)


@command("status")
@as_json_option
def _status(*, as_json: bool) -> None:
    """Show projections, processes and pending migrations. Exits with 1 if a key waits for an operator."""
    system = current_state().system
    migrations = _pending()
    totals: dict[str, Any] = {} if migrations else ask(lambda queries: queries.totals(), scans=True)
    processes = [] if migrations else system.ask(system.reporter.others)
    # This process has just started and has loaded no key: the reports of the others count.
    degraded = degraded_in([*processes, system.stats()])
    projections: dict[str, dict[str, Any]] = {
        name: {"dead_letters": 0, "parked": 0, "halted": 0}
        | totals.get(name, {})
        | degraded.get(name, NOTHING_DEGRADED)
        for name in sorted({*system.projections, *totals, *degraded})
    }
    status: dict[str, Any] = {
        "database": system.store.describe(),
        "pending_migrations": migrations,
        "projections": projections,
        "processes": [
            {"host": p["host"], "pid": p["pid"], "reported_ago": p["reported_ago"], "trouble": _trouble_of(p)}
            for p in processes
        ],
    }  # fmt: skip
    rows = [
        (name, _state_of(p), p["halted"], p["degraded"], p["parked"], p["dead_letters"])
        for name, p in projections.items()
    ]
    running = ", ".join(
        f"{process['host']}:{process['pid']}" + (f" ({process['trouble']})" if process["trouble"] else "")
        for process in status["processes"]
    )
    lines = [
        f"database    {status['database']}",
        f"migrations  {', '.join(migrations) + ' pending' if migrations else 'up to date'}",
        f"processes   {running or 'no process has reported'}",
        "",
        table(rows, "PROJECTION", "STATE", "HALTED KEYS", "DEGRADED KEYS", "PARKED", "DEAD LETTERS"),
    ]
    show(status, as_json=as_json, text="\n".join(lines))
    if migrations or any(p["halted"] or p["degraded"] for p in projections.values()):
        sys.exit(REFUSED)


def _pending() -> list[str]:
    """Return the pending migrations. Unlike most queries, it does not run them."""
    system = current_state().system
    return system.ask(lambda: system.store.run(lambda: pending(system.store.database)))


def _state_of(projection: dict[str, Any]) -> str:
    words = [word for word in ("degraded", "halted") if projection[word]]
    return ", ".join(words) or "live"


def _trouble_of(process: dict[str, Any]) -> str | None:
    """Return the trouble that a process reports: first its database, then rows that wait, then its Redis."""
    writer, backplane = process["writer"], process["sockets"].get("backplane") or {}
    trouble: str | None = writer.get("trouble")
    if not trouble and writer.get("waiting"):
        trouble = f"{writer['waiting']} rows wait: {writer.get('waiting_reason')}"
    return trouble or (f"Redis: {backplane['trouble']}" if backplane.get("trouble") else None)


# -- keys


@command("show")
@click.argument("name")
@click.argument("key")
@click.option("--raw", is_flag=True, help="Print the row's text unchanged, even if it does not load.")
@as_json_option
def _show(name: str, key: str, *, raw: bool, as_json: bool) -> None:
    """Show the committed state of a key."""
    runtime = runtime_of(name)
    if raw:
        _show_raw(runtime, key, as_json=as_json)
        return
    try:
        snapshot = runtime.snapshot(key)
    except StoreUnavailable:
        raise
    except StoreError as error:
        look = _command("show", name, key, "--raw")
        repair = _command("repair", name, key, "--from-json", "FILE")
        end(f"{error}. See {look} and {repair}", REFUSED)
    if snapshot is None:
        end(f"key {key!r} of {name} has no state", REFUSED)
    state = plain_json.loads(runtime.codec.state.encode(snapshot.state))
    shown: dict[str, Any] = {
        "epoch": snapshot.epoch,
        "version": snapshot.version,
        "updated_at": snapshot.updated_at,
        "state": state,
    }
    lines = [
        f"version     {snapshot.version}",
        f"epoch       {snapshot.epoch}",
        f"updated at  {snapshot.updated_at:%Y-%m-%d %H:%M:%S %Z}",
        plain_json.dumps(state, indent=2),
    ]
    show(shown, as_json=as_json, text="\n".join(lines))


def _show_raw(runtime: ProjectionRuntime[Any, Any], key: str, *, as_json: bool) -> None:
    state = current_state()
    row = state.system.ask(lambda: state.overview.raw(runtime, key))
    if row["raw"] is None:
        end(f"key {key!r} of {runtime.name} has no state", REFUSED)
    show(row, as_json=as_json, text=row["raw"])


def _command(*words: str) -> str:
    return shlex.join(["flask", "keyfold", *words])


@command("keys")
@click.argument("name")
@click.option("--prefix", default="", help="Only keys with this prefix.")
@click.option("--after", default="", help="Only keys after this one, to continue a list.")
@click.option("--halted", is_flag=True, help="Only keys that wait for an operator.")
@click.option("--largest", is_flag=True, help="Largest first; reads all rows of the projection.")
@limit_option
@as_json_option
def _keys(name: str, *, as_json: bool, **options: Any) -> None:
    """List the keys of a projection."""
    runtime_of(name)
    found = ask(lambda queries: queries.keys(name, **options), scans=True)
    rows = [
        (
            row.key,
            row.version,
            row.bytes,
            "halted" if row.halted else "",
            f"{row.updated_at:%Y-%m-%d %H:%M:%S}",
        )
        for row in found
    ]
    show(
        [row._asdict() for row in found],
        as_json=as_json,
        text=table(rows, "KEY", "VERSION", "BYTES", "", "UPDATED (UTC)"),
    )


@command("rebuild")
@click.argument("name")
@click.argument("key")
@click.option("--events", type=click.File("rb"), help="JSON lines, oldest event first; - for standard input.")
@yes_option
@as_json_option
def _rebuild(name: str, key: str, *, events: IO[bytes] | None, yes: bool, as_json: bool) -> None:
    """Replace the state of a key by the fold of its events.

    Without --events, the events come from the projection's history(key). Each line of the file is one event,
    or {"type": "ItemAdded", "event": {...}} if the projection folds several types of events.
    """
    runtime = runtime_of(name)
    history = runtime.projection.history(key) if events is None else _read_events(runtime, events)
    if history is None:
        msg = f"{name} has no history(key): give the events with --events FILE"
        raise click.UsageError(msg)
    confirm(f"Replace the state of {key!r}?", yes=yes)
    with click.progressbar(history, label="folding", file=sys.stderr, show_pos=True) as bar:
        runtime.rebuild(key, bar)
    snapshot = runtime.snapshot(key)
    version = 0 if snapshot is None else snapshot.version
    show({"key": key, "version": version}, as_json=as_json, text=f"{key} is rebuilt, at version {version}")


def _read_events(runtime: ProjectionRuntime[Any, Any], lines: IO[bytes]) -> Iterator[Any]:
    has_types = len(runtime.event_types) > 1
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if has_types:
                given = plain_json.loads(line)
                yield runtime.decode_event(plain_json.dumps(given["event"]), given["type"])
            else:
                yield runtime.decode_event(line)
        except (KeyError, TypeError, ValueError, InvalidEvent) as error:
            msg = f"line {number} is not an event: {error!r}"
            raise InvalidEvent(msg, event=line, projection=runtime.name) from None


@command("repair")
@click.argument("name")
@click.argument("key")
@click.option(
    "--from-json",
    "file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    required=True,
    help="The state, as JSON; - for standard input.",
)
@yes_option
@as_json_option
def _repair(name: str, key: str, *, file: str, yes: bool, as_json: bool) -> None:
    """Replace the state of a key by one given as JSON, even if the present one does not load.

    The key keeps its version and gets a new epoch. Its present state: flask keyfold show NAME KEY --raw.
    """
    runtime = runtime_of(name)
    if file == "-" and not yes:
        msg = "standard input is the state, so the command cannot ask for confirmation: add --yes"
        raise click.UsageError(msg)
    with click.open_file(file, "rb") as source:
        data = source.read()
    confirm(f"Replace the state of {key!r} by the one in {file}?", yes=yes)
    runtime.repair(key, data)
    snapshot = runtime.snapshot(key)
    version = 0 if snapshot is None else snapshot.version
    show({"key": key, "version": version}, as_json=as_json, text=f"{key} is repaired, at version {version}")


@command("wipe")
@click.argument("name")
@click.argument("key")
@yes_option
@as_json_option
def _wipe(name: str, key: str, *, yes: bool, as_json: bool) -> None:
    """Delete the state of a key."""
    runtime = runtime_of(name)
    confirm(f"Delete the state of {key!r}?", yes=yes)
    runtime.wipe(key)
    show({"key": key, "version": 0}, as_json=as_json, text=f"{key} is wiped")


@command("new-epoch")
@click.argument("name", required=False)
@click.argument("key", required=False)
@click.option("--all", "everything", is_flag=True, help="All rows of the database.")
@yes_option
@as_json_option
def _new_epoch(name: str | None, key: str | None, *, everything: bool, yes: bool, as_json: bool) -> None:
    """Draw new epochs, after a backup was restored or a replica was promoted.

    For one key, for all keys of a projection, or with --all for every row. States and versions stay, and
    events are folded meanwhile. Every client gets a snapshot, even one that had seen changes that are lost.
    """
    if everything == (name is not None):
        msg = "say which rows: NAME, or NAME and KEY, or --all"
        raise click.UsageError(msg)
    if name is not None:
        runtime_of(name)
        key = None if key is None else check_key(key, projection=name)
    rows_text = "all rows" if name is None else f"all keys of {name}" if key is None else f"{key!r} of {name}"
    confirm(f"Draw new epochs for {rows_text}? Every client gets a snapshot.", yes=yes)
    state = current_state()
    drawn, after = 0, ("", "")
    while rows := ask(partial(_epochs, name, key, after)):
        renewed = state.system.ask(partial(state.system.store.renew, rows), seconds=SCAN_SECONDS)
        for row_key in renewed:
            state.hub.cross_process_sync.hint(channel_of(*row_key))
        drawn, after = drawn + len(renewed), rows[-1][:2]
    if key is not None and not drawn:
        end(f"key {key!r} of {name} has no row", REFUSED)
    show({"drawn": drawn}, as_json=as_json, text=f"{drawn} new epochs")


def _epochs(name: str | None, key: str | None, after: tuple[str, str], queries: Queries) -> Any:
    return [(name, key, Head.end_of(epoch)) for name, key, epoch in queries.epochs(name, key, after=after)]


@command("resume")
@click.argument("name")
@click.argument("key")
@as_json_option
def _resume(name: str, key: str, *, as_json: bool) -> None:
    """Fold the events that are parked for a halted key, oldest first, and resume the key."""
    folded = runtime_of(name).dead_letters.resume(key)
    show(
        {"key": key, "folded": folded},
        as_json=as_json,
        text=f"{folded} parked events folded; {key} is resumed",
    )


@command("tail")
@click.argument("name")
@click.argument("key")
@click.option(
    "--url", help="The URL of the app, as https://shop.example: follow every delta over a WebSocket."
)
@click.option("--token", envvar="KEYFOLD_ADMIN_TOKEN", help="The admin token, for keys that are not public.")
@click.option("--count", type=click.IntRange(1), help="End after this number of changes.")
@as_json_option
def _tail(
    name: str, key: str, *, url: str | None, token: str | None, count: int | None, as_json: bool
) -> None:
    """Follow a key: its state, then each change. Without --url, it reads the row twice per second."""
    runtime = runtime_of(name)
    for number, change in enumerate(follow(runtime, key, url=url, token=token)):
        if as_json:
            click.echo(json.encode(change))
        else:
            text = json.encode(change["value"]).decode()
            click.echo(f"{change['epoch']}:{change['version']}  {change['kind']:8}  {text}")
        if count is not None and number >= count:
            return
