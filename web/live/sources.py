"""Sources: the origin of a channel's row, and who may read it."""

from __future__ import annotations

from concurrent.futures import Future
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from ...actors import ProjectionKey
from ...actors.errors import UnknownProjection

if TYPE_CHECKING:
    from ...actors import ProjectionRuntime, ProjectionSystem
    from ...store.rows import Head, Row, RowKey

_MAX_QUOTED = 200


class ReadableBy(Enum):
    """Who may read the rows of a source."""

    EVERYONE = "everyone"
    """No check is needed."""
    AUTHORIZED = "authorized"
    """The app's ``authorize`` decides. Operators may read too."""
    OPERATORS = "operators"
    """Operators alone. ``authorize`` is not called."""


class Source(Protocol):
    """Supplies the rows of one name: a projection, or the operators' overview page."""

    @property
    def readable_by(self) -> ReadableBy:
        """Who may read the rows. From any thread."""

    @property
    def is_published(self) -> bool:
        """Whether changes are published to the hub, and to the hubs of other processes.

        If not, the row of its one key, ``all``, is read again every second while clients watch it.
        """

    def submit_read(self, key: str, lost: Head | None) -> Future[Row | None]:
        """Begin to read the row of a key. Called on the reactor's thread; must not block.

        Args:
            key: The key.
            lost: A commit that clients were shown. If the row has lost it, the row gets a new epoch first.

        Returns:
            A future with the row, or None if there is none. Its callbacks may run on any thread.
        """


class ProjectionSource:
    """The rows of one projection. Its actors publish the changes."""

    is_published = True

    def __init__(self, system: ProjectionSystem, runtime: ProjectionRuntime[Any, Any]) -> None:
        self._system = system
        self._name = runtime.name
        self.readable_by = ReadableBy.EVERYONE if runtime.projection.public else ReadableBy.AUTHORIZED

    def submit_read(self, key: str, lost: Head | None) -> Future[Row | None]:
        return self._system.submit_read(self._name, key, leaves=lost)


class Sources:
    """The sources of one app by name: those that were added, and every projection of its system."""

    def __init__(self, system: ProjectionSystem) -> None:
        self._system = system
        self._added: dict[str, Source] = {}
        self._projections: dict[str, ProjectionSource] = {}

    def add(self, name: str, source: Source) -> None:
        """Add a source that is no projection.

        Args:
            name: The first part of its row keys. Its channels are ``projection.<name>.<key>``.
            source: Supplies the rows.
        """
        self._added[name] = source

    def get(self, name: str) -> Source:
        """Return the source of a name. From any thread.

        Raises:
            UnknownProjection: Nothing has this name.
        """
        added = self._added.get(name)
        if added is not None:
            return added
        source = self._projections.get(name)
        if source is None:
            source = self._projections[name] = ProjectionSource(self._system, self._system.runtime(name))
        return source

    def is_public(self, name: str) -> bool:
        """Return whether every client may read the rows of a name, so that no check is needed."""
        try:
            return self.get(name).readable_by is ReadableBy.EVERYONE
        except UnknownProjection:
            return False

    def unpublished(self) -> list[str]:
        """Return the names of the sources whose changes are not published."""
        return [name for name, source in self._added.items() if not source.is_published]

    def resolve(self, channel: str | None, projection: str | None, key: str | None) -> RowKey:
        """Return the row key that a client names. From any thread.

        Names and keys may both have dots: of the names that fit a channel, the longest is meant.

        Args:
            channel: The name of a channel. It is used unless projection and key are both given.
            projection: The name of a source.
            key: The key.

        Raises:
            UnknownProjection: No source has this name, or none fits the channel.
            InvalidKey: The key is not well-formed.
        """
        if projection is None or key is None:
            head, _, rest = (channel or "").partition("projection.")
            fitting = [name for name in self._names() if not head and rest.startswith(f"{name}.")]
            projection = max(fitting, key=len, default=None)
            if projection is None:
                msg = f"no registered projection has the channel {(channel or '')[:_MAX_QUOTED]!r}"
                raise UnknownProjection(msg)
            key = rest[len(projection) + 1 :]
        elif projection not in self._names():
            msg = f"no projection is named {projection[:_MAX_QUOTED]!r}"
            raise UnknownProjection(msg, projection=projection)
        return projection, str(ProjectionKey(key))  # JSON encoders need a plain str

    def _names(self) -> set[str]:
        return self._added.keys() | self._system.projections.keys()
