"""One word has one meaning: docs/glossary.md is compared with the code, the docs and the examples."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from support.prose import CODE, ROOT, identifiers, sources, texts

PAGE = (ROOT / "docs" / "glossary.md").read_text()
NAMES_ONLY, NAMES_AND_TEXTS = "names", "names and texts"


def _table(heading: str) -> list[list[str]]:
    """Return the cells of the rows of the table below a heading, without its two head lines."""
    _, found, text = PAGE.partition(f"## {heading}\n")
    assert found, heading
    lines = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def _split(cell: str) -> list[str]:
    return [word.strip() for word in cell.split(",")]


MEANINGS = [word for word, _ in _table("Words and their meanings")]
UNUSED = [(word, where) for words, _, where in _table("Words not used") for word in _split(words)]
EXCEPTIONS = {
    (word, place.strip("`"))
    for words, places, _ in _table("Exceptions")
    for word in _split(words)
    for place in _split(places)
}


def parts(identifier: str) -> list[str]:
    """Return the words of an identifier, in lower case: ``_sendBuffer_MAX`` is send, buffer, max."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)]


PAGES = ("examples", "docs", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


@cache
def _names() -> dict[str, set[str]]:
    """Return the identifiers of the library and the examples, each with the files that use it."""
    names: dict[str, set[str]] = {}
    for file in sources(*CODE, "examples"):
        for name in identifiers(file):
            names.setdefault(name, set()).add(str(file.relative_to(ROOT)))
    return names


@cache
def _texts() -> dict[str, str]:
    """Return the prose of each file, in lower case and without code."""
    return {
        str(file.relative_to(ROOT)): " ".join(texts(file, messages=True)).lower()
        for file in sources(*CODE, *PAGES)
    }


def _excepted(word: str, place: str) -> bool:
    return (word, place) in EXCEPTIONS or place == "docs/glossary.md"


@pytest.mark.parametrize("word", MEANINGS)
def test_a_word_with_a_meaning_is_used(word: str) -> None:
    """In an identifier, a comment or a docstring of the library: else its line in the page is dead."""
    in_names = [" ".join(parts(name)) for name in _names()]
    in_texts = [text for path, text in _texts().items() if path.startswith(CODE)]
    wanted = re.compile(rf"\b{re.escape(word)}(?:s|ed|ing)?\b")
    assert next(filter(wanted.search, [*in_names, *in_texts]), None), f"{word!r} is not used in the library"


@pytest.mark.parametrize(("word", "where"), UNUSED)
def test_a_word_that_is_not_used_does_not_come_back(word: str, where: str) -> None:
    """Neither as an identifier nor, where the page says so, in prose."""
    assert where in {NAMES_ONLY, NAMES_AND_TEXTS}
    found = []
    for name, files in sorted(_names().items()):
        hit = name.lower() == word.strip("`") if word.startswith("`") else word in parts(name)
        if hit and not _excepted(word, name.lower()):
            found += [f"{file}: {name}" for file in sorted(files) if not _excepted(word, file)]
    if where == NAMES_AND_TEXTS:
        found += [
            f"{path}: {hit.group(0)!r}"
            for path, text in sorted(_texts().items())
            if not _excepted(word, path)
            for hit in re.finditer(rf"(?:\S+ )?\b{re.escape(word)}\b(?: \S+)?", text)
        ]
    assert not found, "\n".join(found)


def test_an_exception_is_still_needed() -> None:
    """A place where the word is no longer used leaves the table."""
    for word, place in EXCEPTIONS:
        if (ROOT / place).is_file():
            assert word in _texts()[place] or word in (ROOT / place).read_text().lower(), (word, place)
        else:
            assert any(place == name.lower() and word in parts(name) for name in _names()), (word, place)


def test_each_table_is_in_order_and_has_no_word_twice() -> None:
    """By the alphabet, so that a reader finds a word; no word has a meaning and is not used."""
    assert sorted(MEANINGS) == MEANINGS
    unused = [word for word, _ in UNUSED]
    assert len(set(unused)) == len(unused)
    assert not set(MEANINGS) & set(unused)


def test_the_words_of_an_identifier_are_found() -> None:
    """In snake case, camel case and capitals."""
    assert parts("_most_OUTBOX_frames") == ["most", "outbox", "frames"]
    assert parts("SendBuffer") == ["send", "buffer"]
    assert parts("HTTPError") == ["http", "error"]
    assert Path(__file__).is_file()
