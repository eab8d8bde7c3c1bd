"""The words of the repository: identifiers, comments, docstrings, messages and pages, file by file."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
CODE = ("actors", "store", "web", "front")
_SUFFIXES = {".py", ".js", ".mjs", ".ts", ".css", ".html", ".md"}
_MARKUP = re.compile(r"```.*?```|``[^`]*``|`[^`]*`|\]\([^)]*\)|https?://\S+", re.DOTALL)
_SQL = re.compile(r"\s*[rbf]*[\"']+\s*(?:SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|WITH|PRAGMA|BEGIN|SET)\b")
_WORDS_OF_A_MESSAGE = 3


def sources(*below: str) -> list[Path]:
    """Return the source files and pages of the repository below the folders, or the files themselves.

    Asks git, so that built files are left out; without git all files count.
    """
    asked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *below],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if asked.returncode == 0:
        files = [ROOT / line for line in asked.stdout.splitlines()]
    else:
        files = [
            file
            for one in below
            for file in ([ROOT / one] if (ROOT / one).is_file() else (ROOT / one).rglob("*"))
        ]
    return sorted(
        file for file in files if file.suffix in _SUFFIXES and file.is_file() and not file.is_symlink()
    )


def identifiers(file: Path) -> Iterator[str]:
    """Yield the identifiers of a Python or JavaScript file."""
    source = file.read_text()
    if file.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NAME:
                yield token.string
    elif file.suffix in {".js", ".mjs", ".ts"}:
        bare = re.sub(r"/\*.*?\*/|//[^\n]*|\"[^\"\n]*\"|'[^'\n]*'|`[^`]*`", " ", source, flags=re.DOTALL)
        yield from re.findall(r"[A-Za-z_$][\w$]*", bare)


def texts(file: Path, *, messages: bool = False) -> list[str]:
    """Return the comments and docstrings of a file, or the text of a page, without code and addresses.

    Args:
        file: a source file or a Markdown page.
        messages: with the strings that have several words, such as log messages; SQL is left out.
    """
    source = file.read_text()
    if file.suffix == ".py":
        found = list(_python(source, messages=messages))
    elif file.suffix == ".md":
        found = [source]
    else:
        found = re.findall(r"/\*.*?\*/|(?<!:)//[^\n]*|<!--.*?-->", source, re.DOTALL)
    return [_MARKUP.sub(" ", text) for text in found]


def _python(source: str, *, messages: bool) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.lstrip("# ")
        elif messages and token.type == tokenize.STRING and _is_message(token.string):
            yield token.string
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            match statement:
                case ast.Expr(value=ast.Constant(value=str() as docstring)):
                    yield docstring


def _is_message(literal: str) -> bool:
    """Whether a literal is a text of several words; docstrings are found elsewhere."""
    return (
        len(literal.split()) >= _WORDS_OF_A_MESSAGE
        and not literal.endswith('"""')
        and not _SQL.match(literal)
    )
