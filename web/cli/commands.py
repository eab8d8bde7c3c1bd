"""``flask keyfold …``: what operators do from a terminal or a script.

Exit codes: 0 done; 1 refused, not found or something is failing; 2 wrong arguments; 3 the database is away.
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

from ...actors import InvalidEvent, ProjectionRuntime, channel_of
from ...store import StoreError, StoreUnavailable, migrate, pending
from ...store.operator_queries import Queries
from ...store.rows import Head
from ...store.validation import check_key
from ..app_registry import KeyfoldState, current_state
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
    """Return the commands."""
    group = AppGroup("keyfold", help="Keyfold's projections: their tables, keys and dead letters.")
    for one in (
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
        group.add_command(one)
    return group


# -- tables


@command("migrate")
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 if a migration is pending.")
@as_json_option
def _migrate(*, check: bool, as_json: bool) -> None:
    """Bring Keyfold's tables up to date."""
    store = current_state().system.store
    steps = _pending() if check else store.run(lambda: migrate(store.database))  # without a limit
    word = "pending" if check else "done"
    show({word: steps}, as_json=as_json, text="\n".join(f"{step}: {word}" for step in steps) or "up to date")
    if check and steps:
        sys.exit(REFUSED)


@command("status")
@as_json_option
def _status(*, as_json: bool) -> None:
    """Show the projections, what waits for an operator, and the processes that run. Exits with 1 if any does wait."""
    kept: KeyfoldState = current_state()
    system = kept.system
    waiting = _pending()
    totals: dict[str, Any] = {} if waiting else ask(lambda queries: queries.totals(), scans=True)
    processes = [] if waiting else system.ask(system.reporter.others)
    # A process that has just begun has met no key: the reports of the others count.
    degraded = degraded_in([*processes, system.stats()])
    projections: dict[str, dict[str, Any]] = {
        name: {"dead_letters": 0, "parked": 0, "halted": 0}
        | totals.get(name, {})
        | degraded.get(name, NOTHING_DEGRADED)
        for name in sorted({*system.projections, *totals, *degraded})
    }
    facts: dict[str, Any] = {
        "database": system.store.describe(),
        "pending_migrations": waiting,
        "projections": projections,
        "processes": [
            {"host": p["host"], "pid": p["pid"], "reported_ago": p["reported_ago"], "trouble": _trouble_of(p)}
            for p in processes
        ],
    }  # fmt: skip
    rows = [
        (name, _state_of(of), of["halted"], of["degraded"], of["parked"], of["dead_letters"])
        for name, of in projections.items()
    ]
    running = ", ".join(
        f"{process['host']}:{process['pid']}" + (f" ({process['trouble']})" if process["trouble"] else "")
        for process in facts["processes"]
    )
    lines = [
        f"database    {facts['database']}",
        f"migrations  {', '.join(waiting) + ' pending' if waiting else 'up to date'}",
        f"processes   {running or 'none has reported'}",
        "",
        table(rows, "PROJECTION", "STATE", "HALTED KEYS", "DEGRADED KEYS", "PARKED", "DEAD LETTERS"),
    ]
    show(facts, as_json=as_json, text="\n".join(lines))
    if waiting or any(of["halted"] or of["degraded"] for of in projections.values()):
        sys.exit(REFUSED)


def _pending() -> list[str]:
    """Return the migrations that are to be run. It runs none, unlike most questions."""
    system = current_state().system
    return system.ask(lambda: system.store.run(lambda: pending(system.store.database)))


def _state_of(projection: dict[str, Any]) -> str:
    words = [word for word in ("degraded", "halted") if projection[word]]
    return ", ".join(words) or "live"


def _trouble_of(process: dict[str, Any]) -> str | None:
    """Return the trouble that a process reports: its database first, rows that wait, then its Redis."""
    writer, backplane = process["writer"], process["sockets"].get("backplane") or {}
    trouble: str | None = writer.get("trouble")
    if not trouble and writer.get("waiting"):
        trouble = f"{writer['waiting']} rows wait: {writer.get('waiting_reason')}"
    return trouble or (f"Redis: {backplane['trouble']}" if backplane.get("trouble") else None)


# -- keys


@command("show")
@click.argument("name")
@click.argument("key")
@click.option("--raw", is_flag=True, help="Print the row's JSON as it stands, also if it does not load.")
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
    facts: dict[str, Any] = {
        "epoch": snapshot.epoch,
        "version": snapshot.version,
        "updated_at": snapshot.updated_at,
    }
    facts["state"] = state = plain_json.loads(runtime.state_codec.encode(snapshot.state))
    lines = [
        f"version     {snapshot.version}",
        f"epoch       {snapshot.epoch}",
        f"updated at  {snapshot.updated_at:%Y-%m-%d %H:%M:%S %Z}",
        plain_json.dumps(state, indent=2),
    ]
    show(facts, as_json=as_json, text="\n".join(lines))


def _show_raw(runtime: ProjectionRuntime[Any, Any], key: str, *, as_json: bool) -> None:
    kept = current_state()
    facts = kept.system.ask(lambda: kept.overview.raw(runtime, key))
    if facts["raw"] is None:
        end(f"key {key!r} of {runtime.name} has no state", REFUSED)
    show(facts, as_json=as_json, text=facts["raw"])


def _command(*words: str) -> str:
    return shlex.join(["flask", "keyfold", *words])


@command("keys")
@click.argument("name")
@click.option("--prefix", default="", help="Only keys that begin so.")
@click.option("--after", default="", help="Only keys above this one: how to go on where a list ended.")
@click.option("--halted", is_flag=True, help="Only keys that wait for an operator.")
@click.option("--largest", is_flag=True, help="The largest first; reads all rows of the projection.")
@limit_option
@as_json_option
def _keys(name: str, *, as_json: bool, **options: Any) -> None:
    """List the keys of a projection."""
    runtime_of(name)
    facts = ask(lambda queries: queries.keys(name, **options), scans=True)
    rows = [
        (f.key, f.version, f.bytes, "halted" if f.halted else "", f"{f.updated_at:%Y-%m-%d %H:%M:%S}")
        for f in facts
    ]
    show(
        [f._asdict() for f in facts],
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
    """Put the fold of all its events in place of what a key holds.

    Without --events they come from the projection's history(key). A line of the file is an event, or, where
    there are several kinds, {"type": "ItemAdded", "event": {...}}.
    """
    runtime = runtime_of(name)
    source = runtime.projection.history(key) if events is None else _read_events(runtime, events)
    if source is None:
        msg = f"{name} has no history(key): give the events by --events FILE"
        raise click.UsageError(msg)
    confirm(f"Replace the state of {key!r}?", yes=yes)
    with click.progressbar(source, label="folding", file=sys.stderr, show_pos=True) as bar:
        runtime.rebuild(key, bar)
    snapshot = runtime.snapshot(key)
    version = 0 if snapshot is None else snapshot.version
    show({"key": key, "version": version}, as_json=as_json, text=f"{key} is rebuilt, at version {version}")


def _read_events(runtime: ProjectionRuntime[Any, Any], lines: IO[bytes]) -> Iterator[Any]:
    several = len(runtime.event_types) > 1
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if several:
                given = plain_json.loads(line)
                yield runtime.decode_event(plain_json.dumps(given["event"]), given["type"])
            else:
                yield runtime.decode_event(line)
        except (KeyError, TypeError, ValueError, InvalidEvent) as error:
            msg = f"line {number} of the events is none: {error!r}"
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
    """Put a state given as JSON in place of a key's present one, also if that does not load.

    The key keeps its version and gets a new epoch. The state it has now: flask keyfold show NAME KEY --raw.
    """
    runtime = runtime_of(name)
    if file == "-" and not yes:
        msg = "standard input is the state, so nobody can be asked: add --yes"
        raise click.UsageError(msg)
    with click.open_file(file, "rb") as source:
        data = source.read()
    confirm(f"Replace the state of {key!r} by the one of {file}?", yes=yes)
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
    """Forget the state of a key."""
    runtime = runtime_of(name)
    confirm(f"Forget the state of {key!r}?", yes=yes)
    runtime.wipe(key)
    show({"key": key, "version": 0}, as_json=as_json, text=f"{key} is wiped")


@command("new-epoch")
@click.argument("name", required=False)
@click.argument("key", required=False)
@click.option("--all", "everything", is_flag=True, help="All rows of the database.")
@yes_option
@as_json_option
def _new_epoch(name: str | None, key: str | None, *, everything: bool, yes: bool, as_json: bool) -> None:
    """Draw new epochs, after a backup was restored or a replica promoted.

    For one key, for a projection, or with --all for every row. States and versions stay, and events go on
    meanwhile. Clients are brought to the rows by a snapshot, also those that come back from what was lost.
    """
    if everything == (name is not None):
        msg = "say which rows: NAME, or NAME and KEY, or --all"
        raise click.UsageError(msg)
    if name is not None:
        runtime_of(name)
        key = None if key is None else check_key(key, projection=name)
    what = "all rows" if name is None else f"all keys of {name}" if key is None else f"{key!r} of {name}"
    confirm(f"Draw new epochs for {what}? Every client gets a snapshot.", yes=yes)
    kept = current_state()
    drawn, after = 0, ("", "")
    while rows := ask(partial(_epochs, name, key, after)):
        renewed = kept.system.ask(partial(kept.system.store.renew, rows), seconds=SCAN_SECONDS)
        for address in renewed:
            kept.hub.cross_process_sync.hint(channel_of(*address))
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
    """Fold what is parked for a halted key, head first, and let it go on."""
    folded = runtime_of(name).dead_letters.resume(key)
    show(
        {"key": key, "folded": folded}, as_json=as_json, text=f"{folded} parked events folded; {key} goes on"
    )


@command("tail")
@click.argument("name")
@click.argument("key")
@click.option("--url", help="Where the app is served, as https://shop.example: every delta over its socket.")
@click.option("--token", envvar="KEYFOLD_ADMIN_TOKEN", help="The admin token, for keys that are not public.")
@click.option("--count", type=click.IntRange(1), help="End after so many changes.")
@as_json_option
def _tail(
    name: str, key: str, *, url: str | None, token: str | None, count: int | None, as_json: bool
) -> None:
    """Follow a key: its state, then each change. Without --url it looks at the row twice a second."""
    runtime = runtime_of(name)
    for number, change in enumerate(follow(runtime, key, url=url, token=token)):
        if as_json:
            click.echo(json.encode(change))
        else:
            text = json.encode(change["value"]).decode()
            click.echo(f"{change['epoch']}:{change['version']}  {change['kind']:8}  {text}")
        if count is not None and number >= count:
            return
