"""State becomes rows: the snapshot store, its tables and migrations, and the errors of a database.

The names here are for apps. The runtime imports the internal ones (the writer and its messages, the records,
the codec) from their modules.
"""

from .codec import DecodeError, EncodeError
from .connect.database import open_database
from .errors import (
    CommitInDoubt,
    InvalidKey,
    ProjectionError,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    VersionConflict,
)
from .rows import Position, Snapshot, StoredLetter
from .schema.migrations import CreateProjectionSnapshotsTable, migrate, pending, rollback
from .schema.models import ProjectionDeadLetter, ProjectionSnapshot, ProjectionWriter
from .snapshot_store import SnapshotStore
from .validation import ProjectionKey

__all__ = [
    "CommitInDoubt",
    "CreateProjectionSnapshotsTable",
    "DecodeError",
    "EncodeError",
    "InvalidKey",
    "Position",
    "ProjectionDeadLetter",
    "ProjectionError",
    "ProjectionKey",
    "ProjectionSnapshot",
    "ProjectionWriter",
    "Snapshot",
    "SnapshotStore",
    "StoreError",
    "StoreRejected",
    "StoreUnavailable",
    "StoredLetter",
    "VersionConflict",
    "migrate",
    "open_database",
    "pending",
    "rollback",
]
