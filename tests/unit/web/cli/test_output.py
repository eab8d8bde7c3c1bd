"""Exit codes, tables and questions of the commands."""

from __future__ import annotations

from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner
from flask import Flask
from flask.cli import ScriptInfo
from keyfold.actors import InvalidKey
from keyfold.actors.errors import LetterNotFound, UnknownProjection
from keyfold.store import StoreRejected, StoreUnavailable
from keyfold.web.cli.output import AWAY, REFUSED, USAGE, command, confirm, show, table


def run(function: Callable[..., None], given: str | None = None) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command."""
    made = command("try")(function)
    result = CliRunner().invoke(made, obj=ScriptInfo(create_app=lambda: Flask("test")), input=given)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownProjection("no such projection"), USAGE),
        (InvalidKey("", "it is empty"), USAGE),
        (StoreUnavailable("the database is away"), AWAY),
        (StoreRejected("refused"), REFUSED),
        (LetterNotFound("there is no dead letter 7"), REFUSED),
        (ValueError("not a position"), REFUSED),
    ],
)
def test_an_error_is_an_exit_code_and_one_line(error: Exception, code: int) -> None:
    """Scripts tell the codes apart; people see no traceback."""

    def fails() -> None:
        raise error

    assert run(fails) == (code, "", f"Error: {error}\n")


def test_a_defect_is_not_hidden() -> None:
    """An error that no command expects keeps its traceback."""

    def fails() -> None:
        raise ZeroDivisionError

    made = command("try")(fails)
    result = CliRunner().invoke(made, obj=ScriptInfo(create_app=lambda: Flask("test")))
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_table_aligns_its_columns_below_their_headings() -> None:
    """No line ends in spaces, and an empty table has its headings."""
    assert table([("pen", 7, ""), ("pencil", 12, "halted")], "KEY", "VERSION", "") == (
        "KEY     VERSION\npen     7\npencil  12       halted"
    )
    assert table([], "KEY", "VERSION") == "KEY  VERSION"


@pytest.mark.parametrize(("as_json", "shown"), [(True, '{"key":"é"}\n'), (False, "the key é\n")])
def test_a_value_is_json_for_scripts_and_text_for_people(*, as_json: bool, shown: str) -> None:
    """One of both, never both."""
    assert run(lambda: show({"key": "é"}, as_json=as_json, text="the key é"))[:2] == (0, shown)


@pytest.mark.parametrize(
    ("yes", "given", "code"), [(True, None, 0), (False, "y\n", 0), (False, "n\n", 1), (False, "", 1)]
)
def test_a_question_is_asked_on_stderr_unless_yes(*, yes: bool, given: str | None, code: int) -> None:
    """So that stdout stays JSON. No answer is a no."""

    def asks() -> None:
        confirm("Replace it?", yes=yes)
        click.echo("done")

    exit_code, out, err = run(asks, given)
    assert (exit_code, out, "Replace it?" in err) == (code, "" if code else "done\n", not yes)
