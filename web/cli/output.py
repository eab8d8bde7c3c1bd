"""The common parts of the commands: exit codes, errors, tables, confirmation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn

import click
from flask.cli import AppGroup
from msgspec import json

from ...actors import InvalidKey, ProjectionError, ProjectionRuntime
from ...actors.errors import UnknownProjection
from ...store import StoreUnavailable
from ...store.operator_queries import Queries
from ..app_registry import current_state
from ..operator.overview import SCAN_SECONDS

REFUSED, USAGE, AWAY = 1, 2, 3

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
yes_option = click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
limit_option = click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True)


def command(name: str, **options: Any) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command that ends with a documented exit code, and prints an error as one line to stderr."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except (UnknownProjection, InvalidKey) as error:
                end(error, USAGE)
            except StoreUnavailable as error:
                end(error, AWAY)
            except (ProjectionError, ValueError) as error:
                end(error, REFUSED)

        # AppGroup's own decorator gives a command the app context.
        return AppGroup().command(name, help=function.__doc__, **options)(guarded)

    return decorate


def end(error: Exception | str, code: int) -> NoReturn:
    """Print an error as one line to stderr, and exit with this code."""
    click.echo(f"Error: {error}", err=True)
    sys.exit(code)


def show(value: Any, *, as_json: bool, text: str) -> None:
    """Print a value as JSON, for a script, or its text, for people."""
    click.echo(json.encode(value).decode() if as_json else text)


def table(rows: list[tuple[Any, ...]], *headings: str) -> str:
    """Return rows as aligned columns, below a row of headings."""
    cells = [headings, *[tuple(str(cell) for cell in row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def confirm(question: str, *, yes: bool) -> None:
    """Ask, unless ``yes``. The answer no ends the command with exit code 1."""
    if not yes:
        click.confirm(question, abort=True, err=True)


def runtime_of(name: str) -> ProjectionRuntime[Any, Any]:
    """Return a registered projection. Raises UnknownProjection."""
    return current_state().system.runtime(name)


def ask(query: Callable[[Queries], Any], *, scans: bool = False) -> Any:
    """Return the result of a query.

    Args:
        query: The query. It is called on a reader's thread.
        scans: Whether it reads all rows of a projection, or all dead letters, and may take a minute.

    Raises:
        StoreUnavailable: The database cannot be reached, or has not answered in time.
    """
    system = current_state().system
    return system.ask(lambda: query(Queries(system.store)), seconds=SCAN_SECONDS if scans else None)
