"""The keys whose rows do not load, as far as this process has met them."""

from __future__ import annotations

import threading
from itertools import islice
from typing import Any

from ...store import StoreError

MAX_KEYS = 1_000
"""How many keys are kept by name. A count of this many means "at least"."""
_MAX_SHOWN = 20
_MAX_CHARACTERS = 500


class Degraded:
    """The degraded keys of one projection in one process, each with the error of its last load or read.

    A key is noted when its row does not load, and removed when it does. So a key that is neither loaded nor
    read may be out of date; ``ProjectionSystem`` looks at some again with every report. Safe from any thread.
    False in a boolean context if no such key is known.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errors: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._errors)

    def __len__(self) -> int:
        return len(self._errors)

    def note(self, key: str, error: StoreError) -> StoreError:
        """Note that the row of a key does not load, as the newest of all keys, and return the error."""
        with self._lock:
            self._errors.pop(key, None)
            if len(self._errors) < MAX_KEYS:
                self._errors[key] = str(error)[:_MAX_CHARACTERS]
        return error

    def clear(self, key: str) -> None:
        """Remove a key: its row loads, or there is none any more."""
        if self._errors:  # almost every load costs this test only
            with self._lock:
                self._errors.pop(key, None)

    def oldest(self, count: int) -> list[str]:
        """Return the keys that were noted longest ago, ``count`` at most."""
        with self._lock:
            return list(islice(self._errors, count))

    def stats(self) -> dict[str, Any]:
        """Return the count, and the first 20 keys in their order with their errors, JSON-able."""
        if not self._errors:
            return {"degraded": 0, "degraded_keys": {}}
        with self._lock:
            errors = self._errors.copy()
        return {"degraded": len(errors), "degraded_keys": dict(sorted(errors.items())[:_MAX_SHOWN])}
