"""What the admin page shows: all processes, and what the database knows besides."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ..store import Queries, Row

if TYPE_CHECKING:
    from ..actors import ProjectionRuntime, ProjectionSystem
    from .hub import Hub

OVERVIEW = "keyfold.overview"
"""The name of the channel that the admin page watches, for operators only. Its one key is ``all``."""

_MOST = 10
_MOST_LETTERS = 20
_MOST_CLIENTS = 50


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
        facts: dict[str, Any] = {"this": self._system.reporter.process, "at": datetime.now(UTC).isoformat()}
        facts["processes"] = [{**self._system.stats(), "reported_ago": 0.0}]
        facts["on_error"] = {name: r.projection.on_error for name, r in self._system.projections.items()}
        try:
            facts["processes"] += self._system.reporter.others()
            facts["kept"] = self._queries.totals()
            facts["trouble"] = None
        except Exception:  # an operator needs the page most when the database is away
            facts["kept"] = {}
            facts["trouble"] = "the database can't be asked"
        return facts

    def detail(self, runtime: ProjectionRuntime[Any, Any], key: str | None) -> dict[str, Any]:
        """Return more of one projection, and of a key of it. Raises StoreError, InvalidKey."""
        supervisor = runtime.supervisor
        busiest = [] if supervisor is None else supervisor.props.activity.busiest(_MOST)
        name = runtime.name
        facts: dict[str, Any] = {
            "name": name,
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
            facts["key"] = self._key(name, key)
        return facts

    def _head(self, name: str, key: str) -> int | None:
        head = self._queries.first_parked(name, key)
        return None if head is None else head.id

    def _key(self, name: str, key: str) -> dict[str, Any] | None:
        row = self._system.store.row(name, key)
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
            "state": None if row.is_tombstone else msgspec.Raw(row.state),
            "subscribers": self._hub.channels.subscribers(name, key),
        }
