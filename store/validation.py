"""The rules for keys and projection names."""

from __future__ import annotations

import re
import unicodedata
from typing import Self

from .errors import InvalidKey, ProjectionError

MAX_KEY_LENGTH = 512
MAX_NAME_LENGTH = 128

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")

# Control characters, lone surrogates (which UTF-8 can't encode) and the two line breaks of Unicode would
# break a log line, a header or the database. Format characters are legal: several scripts, and most emoji,
# need them.
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


class ProjectionKey(str):
    """The key of one read model: an opaque string of 1 to 512 printable characters.

    Dots, slashes, spaces and any script are allowed; control characters are not. It compares and hashes as
    the plain string does, so that every function that takes a key takes either.

    Args:
        key: The text.

    Raises:
        InvalidKey: The text is no valid key.
    """

    __slots__ = ()

    def __new__(cls, key: str) -> Self:
        return super().__new__(cls, check_key(key))


def plain(text: str) -> str:
    """Return text as a plain str with the same characters.

    It does not call the ``__str__`` of a subclass, which may return something else, as an Enum's does.
    """
    return text if type(text) is str else str.__str__(text)


def check_key(key: object, *, projection: str | None = None) -> str:
    """Check a key.

    Args:
        key: A str, or an object of a subclass of str, for instance a member of ``class Region(str, Enum)``.
        projection: The projection that the error names.

    Returns:
        The key as a plain str, without the methods that a subclass may have changed.

    Raises:
        InvalidKey: It is empty, too long, unprintable, or not a str.
    """
    if type(key) is not str:
        if not isinstance(key, str):
            raise InvalidKey(key, f"it is a {type(key).__name__}, not a str", projection=projection)
        key = plain(key)
    if not key:
        raise InvalidKey(key, "it is empty", projection=projection)
    if len(key) > MAX_KEY_LENGTH:
        reason = f"it has {len(key)} characters, the limit is {MAX_KEY_LENGTH}"
        raise InvalidKey(key, reason, projection=projection)
    if not key.isprintable():  # False for some legal characters, too
        for position, character in enumerate(key):
            if unicodedata.category(character) in _FORBIDDEN_CATEGORIES:
                reason = f"character {position} is the unprintable U+{ord(character):04X}"
                raise InvalidKey(key, reason, projection=projection)
    return key


def check_name(name: object) -> str:
    """Check the name of a projection.

    Returns:
        The name as a plain str.

    Raises:
        ProjectionError: The name is not valid; the message says why.
    """
    if isinstance(name, str):
        name = plain(name)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        msg = (
            f"{name!r} is not a valid projection name: use letters, digits, '_' and '-', "
            "in parts joined by dots, for instance 'inventory.warehouse'"
        )
        raise ProjectionError(msg)
    if len(name) > MAX_NAME_LENGTH:
        msg = (
            f"the projection name {name[:40]!r}... has {len(name)} characters, the limit is {MAX_NAME_LENGTH}"
        )
        raise ProjectionError(msg)
    return name
