"""State becomes rows: models, migrations, the snapshot store, its writer, the codec."""

from .errors import (
    InvalidKey,
    ProjectionError,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    VersionConflict,
)
from .keys import ProjectionKey
from .records import Address, DeadLetter, Position, Row, Save, Snapshot, new_epoch

__all__ = [
    "Address",
    "DeadLetter",
    "InvalidKey",
    "Position",
    "ProjectionError",
    "ProjectionKey",
    "Row",
    "Save",
    "Snapshot",
    "StoreError",
    "StoreRejected",
    "StoreUnavailable",
    "VersionConflict",
    "new_epoch",
]
