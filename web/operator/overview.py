"""What the admin page shows: all processes, and what the database knows besides."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ...store.operator_queries import Queries
from ...store.rows import Row
from ...store.validation import check_key

if TYPE_CHECKING:
    from ...actors import ProjectionRuntime, ProjectionSystem
    from ..live.hub import Hub

OVERVIEW = "keyfold.overview"
"""The name of the channel that the admin page watches, for operators only. Its one key is ``all``."""

SCAN_SECONDS = 60.0
"""How long a question may take that reads all rows of a projection, or all dead letters."""
_MOST = 10
_MOST_LETTERS = 20
_MOST_CLIENTS = 50
NOTHING_DEGRADED: dict[str, Any] = {"degraded": 0, "degraded_keys": {}}


class Overview:
    """Facts for operators. It asks the database: call it on a reader's thread."""

    def __init__(self, system: ProjectionSystem, hub: Hub) -> None:
        self._system = system
        self._hub = hub
        self._queries = Queries(system.store)
        self._versions = itertools.count(1)

    def row(self) -> Row:
        """Return the whole page as a row that was never saved: a new version each time."""
        state = msgspec.json.encode(self.facts())
        return Row(self._system.reporter.process[-8:], next(self._versions), 1, state, datetime.now(UTC))

    def facts(self) -> dict[str, Any]:
        """Return what each process does, this one first, and what is kept of each projection."""
        facts = self.facts_of_this_process()
        try:
            facts["processes"] += self._system.reporter.others()
            facts["kept"] = self._queries.totals()
            facts["trouble"] = None
        except Exception:  # an operator needs the page most when the database is away
            return self.facts_of_this_process()
        return facts

    def facts_of_this_process(self) -> dict[str, Any]:
        """Return the same as far as it is known without the database. From any thread."""
        return {
            "this": self._system.reporter.process,
            "at": datetime.now(UTC).isoformat(),
            "processes": [{**self._system.stats(), "reported_ago": 0.0}],
            "on_error": {name: r.projection.on_error for name, r in self._system.projections.items()},
            "kept": {},
            "trouble": "the database can't be asked",
        }

    def detail(self, runtime: ProjectionRuntime[Any, Any], key: str | None) -> dict[str, Any]:
        """Return more of one projection, and of a key of it. Raises StoreError, InvalidKey."""
        supervisor = runtime.supervisor
        busiest = [] if supervisor is None else supervisor.context.activity.busiest(_MOST)
        name = runtime.name
        processes = [self._system.stats(), *self._system.reporter.others()]
        degraded = degraded_in(processes).get(name, NOTHING_DEGRADED)
        facts: dict[str, Any] = {
            "name": name,
            "verified": processes[0]["projections"][name]["verified"],
            "degraded": degraded["degraded"],
            "degraded_keys": [{"key": at, "error": error} for at, error in degraded["degraded_keys"].items()],
            "on_error": runtime.projection.on_error,
            "schema_version": runtime.projection.schema_version,
            "busiest": [{"key": busy, "events": events} for busy, events in busiest],
            "largest": [fact._asdict() for fact in self._queries.keys(name, largest=True, limit=_MOST)],
            "halted": [
                fact._asdict()
                | {
                    "head": self._head(name, fact.key),
                    "parked": self._queries.count_parked(name, fact.key),
                }
                for fact in self._queries.keys(name, halted=True, limit=_MOST)
            ],
            "letters": [letter._asdict() for letter in self._queries.newest_letters(name, _MOST_LETTERS)],
            "clients": self._hub.connections.describe(self._hub.clock(), projection=name, most=_MOST_CLIENTS),
            "process": self._system.reporter.process,
        }
        if key is not None:
            facts["key"] = self._key(runtime, key)
        return facts

    def _head(self, name: str, key: str) -> int | None:
        head = self._queries.first_parked(name, key)
        return None if head is None else head.id

    def raw(self, runtime: ProjectionRuntime[Any, Any], key: str) -> dict[str, Any]:
        """Return the text of a key's row, decodable or not. Raises StoreError, InvalidKey."""
        row = self._system.store.row(runtime.name, check_key(key, projection=runtime.name))
        if row is None or row.is_tombstone:
            return {"position": None, "raw": None}
        return {"position": str(row.position), "raw": row.state.decode(errors="replace")}

    def _key(self, runtime: ProjectionRuntime[Any, Any], key: str) -> dict[str, Any] | None:
        name = runtime.name
        row = self._system.store.row(name, check_key(key, projection=name))
        error = runtime.examine(key, row)
        if row is None:
            return None
        return {
            "key": key,
            "epoch": row.epoch,
            "version": row.version,
            "schema_version": row.schema_version,
            "halted": row.halted,
            "updated_at": row.updated_at,
            "bytes": len(row.state),
            "state": None if row.is_tombstone or not _is_json(row.state) else msgspec.Raw(row.state),
            "error": error,
            "subscribers": self._hub.channels.subscribers(name, key),
        }


def degraded_in(processes: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the keys that do not load, by projection, as all these processes know them together.

    Args:
        processes: The stats of processes. Those of an older release may say nothing about it.

    Returns:
        For each projection that has any, ``degraded``, their number (at least so many: each process names
        20 of those it knows), and ``degraded_keys``, the errors by key.
    """
    found: dict[str, dict[str, Any]] = {}
    for process in processes:
        for name, facts in process["projections"].items():
            if facts.get("degraded"):
                of = found.setdefault(name, {"degraded": 0, "degraded_keys": {}})
                of["degraded_keys"].update(facts["degraded_keys"])
                of["degraded"] = max(of["degraded"], facts["degraded"], len(of["degraded_keys"]))
    return found


def _is_json(text: bytes) -> bool:
    """Say whether it can stand in an answer as it is: SQLite keeps any text."""
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return False
    return True
