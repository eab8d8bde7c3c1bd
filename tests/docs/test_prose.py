"""The prose of the code and of the docs has full sentences, with nouns as their subjects and objects.

A clause such as "what waits is sent" has to be read twice; "the events that wait are sent" does not. The
words *what*, *who*, *whoever* and *whatever* are counted as a measure of it. Their good uses stay far below
the bound.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.prose import CODE, ROOT, sources, texts

MAX_PER_THOUSAND = 2.0
AREAS: dict[str, tuple[str, ...]] = {
    **{part: (part,) for part in CODE},
    "docs": ("docs", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"),
}
HEADLESS = re.compile(r"\b(?:what|who|whoever|whatever)\b", re.IGNORECASE)
WORD = re.compile(r"[A-Za-z']+")


def _count(file: Path) -> tuple[int, int]:
    """Return (headless words, words) of a file."""
    text = " ".join(texts(file))
    return len(HEADLESS.findall(text)), len(WORD.findall(text))


@pytest.mark.parametrize("area", AREAS)
def test_few_clauses_begin_with_what_or_who(area: str) -> None:
    """At most 2 per 1,000 words; the message names the files that have most of them."""
    counts = {str(file.relative_to(ROOT)): _count(file) for file in sources(*AREAS[area])}
    found = sum(headless for headless, _ in counts.values())
    words = sum(words for _, words in counts.values())
    worst = sorted(((headless, path) for path, (headless, _) in counts.items() if headless), reverse=True)[
        :10
    ]
    assert words
    assert 1000 * found <= MAX_PER_THOUSAND * words, f"{1000 * found / words:.1f} per 1,000 words: {worst}"


def test_the_count_sees_comments_and_docstrings_and_no_code(tmp_path: Path) -> None:
    """Strings and identifiers are no prose, and what stands in backticks is code."""
    file = tmp_path / "sample.py"
    file.write_text('"""Send what waits."""\nwhat = "who"  # whoever comes, ``what``\n')
    assert _count(file) == (2, 5)
    page = tmp_path / "page.md"
    page.write_text("What is it?\n\n```python\nwho = what\n```\n")
    assert _count(page) == (1, 3)
