"""State becomes rows: models, migrations, the snapshot store, its writer, the codec."""

from .codec import Codec, DecodeError, EncodeError
from .database import open_database
from .errors import (
    CommitInDoubt,
    InvalidKey,
    ProjectionError,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    VersionConflict,
)
from .keys import ProjectionKey, check_key, check_name
from .ledger import Ledger
from .messages import CONFLICT, SAVED, Amend, Answer, Conflict, Load, Loaded, Rejected, Saved, Write
from .migrations import CreateProjectionSnapshotsTable, migrate, pending, rollback
from .models import ProjectionDeadLetter, ProjectionSnapshot, ProjectionWriter
from .processes import Processes
from .queries import KeyFacts, Queries
from .records import (
    Address,
    Amendment,
    DeadLetter,
    Head,
    Position,
    Row,
    Save,
    Snapshot,
    StoredLetter,
    differ,
    new_commit_id,
    new_epoch,
)
from .snapshot_store import SnapshotStore
from .writer import SnapshotWriter
from .writer_facts import WriterFacts, quantile

__all__ = [
    "CONFLICT",
    "SAVED",
    "Address",
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
