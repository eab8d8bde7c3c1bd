"""The data of the admin page: the stats of all processes, and the totals of the database."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ...store.operator_queries import Queries
from ...store.rows import Row
from ...store.validation import check_key
from ..live.sources import ReadableBy

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ...actors import ProjectionRuntime, ProjectionSystem
    from ...store.rows import Head
    from ..live.hub import Hub

OVERVIEW = "keyfold.overview"
"""The name of the channel that the admin page watches, for operators only. Its one key is ``all``."""

SCAN_SECONDS = 60.0
"""How long a query may take that reads all rows of a projection, or all dead letters."""
_MAX_KEYS = 10
_MAX_LETTERS = 20
_MAX_CLIENTS = 50
NOTHING_DEGRADED: dict[str, Any] = {"degraded": 0, "degraded_keys": {}}


class Overview:
    """Stats and details for operators. Its methods query the database: call them on a reader's thread.

    It is the source of the channel that the admin page watches.
    """

    readable_by = ReadableBy.OPERATORS
    is_published = False

    def __init__(self, system: ProjectionSystem, hub: Hub) -> None:
        self._system = system
        self._hub = hub
        self._queries = Queries(system.store)
        self._versions = itertools.count(1)

    def submit_read(self, key: str, lost: Head | None) -> Future[Row | None]:  # noqa: ARG002
        """Begin to read the whole overview. It is never lost: each answer is a new version."""
        return self._system.submit(self.row, seconds=SCAN_SECONDS)

    def row(self) -> Row:
        """Return the whole overview as a row that was never saved, with a new version at each call."""
        state = msgspec.json.encode(self.stats())
        return Row(self._system.reporter.process[-8:], next(self._versions), 1, state, datetime.now(UTC))

    def stats(self) -> dict[str, Any]:
        """Return the stats of each process, this one first, and the database's totals per projection."""
        stats = self.stats_of_this_process()
        try:
            stats["processes"] += self._system.reporter.others()
            stats["kept"] = self._queries.totals()
            stats["trouble"] = None
        except Exception:  # an operator needs the page most when the database is away
            return self.stats_of_this_process()
        return stats

    def stats_of_this_process(self) -> dict[str, Any]:
        """Return the part that is known without the database. Safe from any thread."""
        return {
            "this": self._system.reporter.process,
            "at": datetime.now(UTC).isoformat(),
            "processes": [{**self._system.stats(), "reported_ago": 0.0}],
            "on_error": {name: r.projection.on_error for name, r in self._system.projections.items()},
            "kept": {},
            "trouble": "the database can't be asked",
        }

    def detail(self, runtime: ProjectionRuntime[Any, Any], key: str | None) -> dict[str, Any]:
        """Return the details of one projection, and of one of its keys. Raises StoreError, InvalidKey."""
        supervisor = runtime.supervisor
        busiest = [] if supervisor is None else supervisor.context.activity.busiest(_MAX_KEYS)
        name = runtime.name
        processes = [self._system.stats(), *self._system.reporter.others()]
        degraded = degraded_in(processes).get(name, NOTHING_DEGRADED)
        details: dict[str, Any] = {
            "name": name,
            "verified": processes[0]["projections"][name]["verified"],
            "degraded": degraded["degraded"],
            "degraded_keys": [
                {"key": degraded_key, "error": error}
                for degraded_key, error in degraded["degraded_keys"].items()
            ],
            "on_error": runtime.projection.on_error,
            "schema_version": runtime.projection.schema_version,
            "busiest": [{"key": busy, "events": events} for busy, events in busiest],
            "largest": [row._asdict() for row in self._queries.keys(name, largest=True, limit=_MAX_KEYS)],
            "halted": [
                row._asdict()
                | {
                    "head": self._head(name, row.key),
                    "parked": self._queries.count_parked(name, row.key),
                }
                for row in self._queries.keys(name, halted=True, limit=_MAX_KEYS)
            ],
            "letters": [letter._asdict() for letter in self._queries.newest_letters(name, _MAX_LETTERS)],
            "clients": self._hub.connections.describe(
                self._hub.clock(), projection=name, max_count=_MAX_CLIENTS
            ),
            "process": self._system.reporter.process,
        }
        if key is not None:
            details["key"] = self._key(runtime, key)
        return details

    def _head(self, name: str, key: str) -> int | None:
        head = self._queries.first_parked(name, key)
        return None if head is None else head.id

    def raw(self, runtime: ProjectionRuntime[Any, Any], key: str) -> dict[str, Any]:
        """Return the text of a key's row, even if it does not decode. Raises StoreError, InvalidKey."""
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
    """Return the keys that do not load, by projection, combined from the stats of several processes.

    Args:
        processes: The stats of processes. Those of an older release may lack ``degraded``.

    Returns:
        For each projection with such keys: ``degraded``, a lower bound of their number (each process names at
        most 20 of the keys it knows), and ``degraded_keys``, the error by key.
    """
    found: dict[str, dict[str, Any]] = {}
    for process in processes:
        for name, stats in process["projections"].items():
            if stats.get("degraded"):
                combined = found.setdefault(name, {"degraded": 0, "degraded_keys": {}})
                combined["degraded_keys"].update(stats["degraded_keys"])
                combined["degraded"] = max(
                    combined["degraded"], stats["degraded"], len(combined["degraded_keys"])
                )
    return found


def _is_json(text: bytes) -> bool:
    """Return whether a text can be put into JSON unchanged: SQLite stores any text."""
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return False
    return True
