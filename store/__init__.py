"""State becomes rows: models, migrations, the snapshot store, its writer, the codec."""

from .codec import Codec, DecodeError, EncodeError
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
from .operator_queries import KeyFacts, Queries
from .processes import Processes
from .rows import (
    Amendment,
    DeadLetter,
    Head,
    Position,
    Row,
    RowKey,
    Save,
    Snapshot,
    StoredLetter,
    differ,
    new_commit_id,
    new_epoch,
)
from .schema.migrations import CreateProjectionSnapshotsTable, migrate, pending, rollback
from .schema.models import ProjectionDeadLetter, ProjectionSnapshot, ProjectionWriter
from .snapshot_store import SnapshotStore
from .validation import ProjectionKey, check_key, check_name
from .writing.ledger import Ledger
from .writing.writer import SnapshotWriter
from .writing.writer_facts import WriterFacts, quantile
from .writing.writer_messages import (
    CONFLICT,
    SAVED,
    Amend,
    Answer,
    Conflict,
    Load,
    Loaded,
    Rejected,
    Saved,
    Write,
)

__all__ = [
    "CONFLICT",
    "SAVED",
    "Amend",
    "Amendment",
    "Answer",
    "Codec",
    "CommitInDoubt",
    "Conflict",
    "CreateProjectionSnapshotsTable",
    "DeadLetter",
    "DecodeError",
    "EncodeError",
    "Head",
    "InvalidKey",
    "KeyFacts",
    "Ledger",
    "Load",
    "Loaded",
    "Position",
    "Processes",
    "ProjectionDeadLetter",
    "ProjectionError",
    "ProjectionKey",
    "ProjectionSnapshot",
    "ProjectionWriter",
    "Queries",
    "Rejected",
    "Row",
    "RowKey",
    "Save",
    "Saved",
    "Snapshot",
    "SnapshotStore",
    "SnapshotWriter",
    "StoreError",
    "StoreRejected",
    "StoreUnavailable",
    "StoredLetter",
    "VersionConflict",
    "Write",
    "WriterFacts",
    "check_key",
    "check_name",
    "differ",
    "migrate",
    "new_commit_id",
    "new_epoch",
    "open_database",
    "pending",
    "quantile",
    "rollback",
]
