"""The commands of ``flask keyfold dead-letters``."""

from __future__ import annotations

import sys
from typing import Any

import click
from flask.cli import AppGroup

from ...actors import ProjectionError
from ...store import StoreUnavailable
from ..live.protocol.messages import parse_position
from .output import (
    REFUSED,
    as_json_option,
    ask,
    command,
    confirm,
    limit_option,
    runtime_of,
    show,
    table,
    yes_option,
)

letters = AppGroup("dead-letters", help="Events that could not be folded.")


@command("list")
@click.option("--name", help="Only those of this projection.")
@click.option("--key", help="Only those of this key.")
@click.option("--parked", is_flag=True, help="Only those that wait until their key is resumed.")
@click.option("--after", type=int, default=0, help="Only ids above this one.")
@limit_option
@as_json_option
def _list(*, as_json: bool, **options: Any) -> None:
    """List dead letters, oldest first."""
    found = ask(lambda queries: queries.letters(options.pop("name"), options.pop("key"), **options))
    rows = [
        (
            letter.id,
            f"{letter.at:%Y-%m-%d %H:%M:%S}",
            letter.name,
            letter.key,
            "parked" if letter.parked else "",
            letter.error[:60],
        )
        for letter in found
    ]
    text = table(rows, "ID", "AT (UTC)", "PROJECTION", "KEY", "", "ERROR")
    show([letter._asdict() for letter in found], as_json=as_json, text=text)


@command("retry")
@click.argument("name")
@click.argument("ids", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of the projection that are not parked.")
@as_json_option
def _retry(name: str, ids: tuple[int, ...], *, everything: bool, as_json: bool) -> None:
    """Fold the events of dead letters. Exits with 1 if any of them fails again; the others are folded."""
    dead_letters = runtime_of(name).dead_letters
    if bool(ids) == everything:
        msg = "give the ids, or --all"
        raise click.UsageError(msg)
    numbers = list(ids)
    after = 0
    while everything and (page := dead_letters.find(after=after)):
        numbers += [letter.id for letter in page if not letter.parked]
        after = page[-1].id
    folded, failed = [], {}
    with click.progressbar(numbers, label="retrying", file=sys.stderr, show_pos=True) as bar:
        for number in bar:
            try:
                dead_letters.retry(number)
                folded.append(number)
            except StoreUnavailable:
                raise
            except ProjectionError as error:
                failed[number] = str(error)
    lines = [f"{len(folded)} folded", *[f"{number}: {error}" for number, error in failed.items()]]
    show({"folded": folded, "failed": failed}, as_json=as_json, text="\n".join(lines))
    if failed:
        sys.exit(REFUSED)


@command("skip")
@click.argument("name")
@click.argument("number", metavar="ID", type=int)
@click.option("--position", help="Only if the key is still at EPOCH:VERSION.")
@yes_option
@as_json_option
def _skip(name: str, number: int, *, position: str | None, yes: bool, as_json: bool) -> None:
    """Remove a dead letter: its event will never be folded."""
    dead_letters = runtime_of(name).dead_letters
    expected = None if position is None else parse_position(position)
    letter = dead_letters.get(number)
    confirm(f"Never fold {letter.event_type} {letter.event[:200]}?", yes=yes)
    dead_letters.skip(number, position=expected)
    show({"skipped": number}, as_json=as_json, text=f"{number} is removed")


for each in (_list, _retry, _skip):
    letters.add_command(each)
