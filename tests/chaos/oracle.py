"""Judges a round by the journals of its processes and by the rows and letters in the end.

Each event has a name; a *part* is one event for one key. The Receipt, the broadcaster and the final row each
tell the place (epoch, version) at which a part was folded. All of them must agree.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from math import inf
from operator import itemgetter
from typing import Any, NamedTuple

from journal import Line
from world import ILL_TYPED, OWN, Halts, Letters

_LETTER_ERRORS = {"ApplyError", "KeyHalted"}
_REFUSALS = {"MailboxFull", "Closed", "InvalidEvent", "InvalidKey"}
_TOLD = _LETTER_ERRORS | _REFUSALS | {"BroadcastError"}
_UNCERTAIN = {"StoreError", "StoreUnavailable", "ProjectionError", "Closed", "CommitInDoubt"}
_CLOSED_IN_BETWEEN = {"StoreError", "StoreUnavailable", "CommitInDoubt"}
_RELEASES = {"resume", "retry", "skip"}
_STILL_HALTED = {"ApplyError", "KeyHalted", "InvalidEvent"}
"""After a resume or a retry. (LetterNotFound may mean that the key was no longer halted.)"""
_LATE = 3.0
_SHOWN = 30

Part = tuple[str, str, str]
"""Projection, key, event."""
Place = tuple[str, int]
"""Epoch, version."""


class Row(NamedTuple):
    """A row of projection_snapshots in the end."""

    epoch: str
    version: int
    state: dict[str, Any] | None
    halted: bool


class Letter(NamedTuple):
    """A row of projection_dead_letters in the end."""

    id: int
    projection: str
    key: str
    event: str
    parked: bool


@dataclass
class Final:
    """The tables after the round."""

    rows: dict[tuple[str, str], Row]
    letters: list[Letter]


class Violation(NamedTuple):
    """A broken promise, and the journal's lines about it."""

    promise: str
    what: str
    lines: list[Line]

    def __str__(self) -> str:
        shown = [
            f"    {line['in']}: {json.dumps({k: v for k, v in line.items() if k != 'in'})}"
            for line in self.lines
        ]
        if len(shown) > _SHOWN:
            shown[_SHOWN // 2 : -_SHOWN // 2] = [f"    ... {len(shown) - _SHOWN} lines ..."]
        return "\n".join([f"{self.promise}: {self.what}", *(line[:400] for line in shown)])


@dataclass
class Told:
    """An event, and the answers that its process got."""

    projection: str
    keys: list[str]
    thread: str
    then: str
    size: int
    system: str
    refused: str | None = None
    accepted: bool = False
    done: bool = False
    ended: dict[str, Line] = field(default_factory=dict)


class Oracle:
    """Call ``judge`` once."""

    def __init__(self, lines: list[Line], final: Final, *, killed: set[str]) -> None:
        self.lines, self.final, self.killed = lines, final, killed
        self.violations: list[Violation] = []
        self.events: dict[str, Told] = {}
        self.places: dict[Part, set[Place]] = defaultdict(set)
        self.published: set[tuple[str, str, str, int]] = set()
        self.skipped: Counter[Part] = Counter()
        self.letters: Counter[Part] = Counter()
        self.rebuilt: set[str] = set()
        self.replaced: set[tuple[str, str]] = set()
        """Keys that a process tried to rebuild or wipe."""
        self.uncertain: set[tuple[str, str]] = set()
        """Keys on which an operator's command has no known outcome."""
        self.uncertain_ids: set[str] = set()

    def judge(self) -> list[Violation]:
        """Return the violations."""
        self._read_journals()
        self._read_final()
        self._judge_processes()
        self._judge_rows()
        self._judge_letters()
        for part, places in list(self.places.items()):
            self._judge_places(part, places)
        for id_, told in self.events.items():
            for key in told.keys:
                self._judge_part(id_, told, key)
        self._judge_versions()
        self._judge_published()
        self._judge_order()
        self._judge_halts()
        self._judge_own()
        return self.violations

    def counts(self) -> dict[str, int]:
        """Return figures of the round."""
        ends = Counter(line.get("error", "committed") for line in self.lines if line["what"] == "ended")
        done = Counter(line["of"] for line in self.lines if line["what"] == "attempt")
        rows = sum(
            len((row.state or {}).get("log", ())) for (name, _), row in self.final.rows.items() if name != OWN
        )
        return {"events in rows": rows, "letters": len(self.final.letters), **ends, **done}

    # -- evidence

    def _read_journals(self) -> None:
        attempts: dict[str, Line] = {}
        for line in self.lines:
            if line["what"] == "try":
                facts = {name: line[name] for name in ("projection", "keys", "thread", "then", "size")}
                self.events[line["id"]] = Told(**facts, system=line["id"].partition(".")[0])
        for line in self.lines:  # another process may speak of these events, too
            match line["what"]:
                case "refused":
                    self.events[line["id"]].refused = line["error"]
                case "accepted":
                    self.events[line["id"]].accepted = True
                case "done":
                    self.events[line["id"]].done = True
                case "ended":
                    self.events[line["id"]].ended[line["key"]] = line
                    if "epoch" in line:
                        self._place(line)
                case "retried":
                    self._place(line)
                case "published":
                    for number, id_ in enumerate(line["ids"], line["base"] + 1):
                        self.places[line["projection"], line["key"], id_].add((line["epoch"], number))
                        self.published.add((line["projection"], line["key"], line["epoch"], number))
                case "attempt":
                    attempts[line["number"]] = line
                    self._attempt(line)
                case "attempted":
                    self._attempted(attempts.pop(line["number"]), line)
        for line in attempts.values():
            self._unsure(line)

    def _place(self, line: Line) -> None:
        id_ = line["id"]
        self.places[self.events[id_].projection, line["key"], id_].add((line["epoch"], line["version"]))
        if line["delta"] != id_:
            self._violated(
                "the Receipt shows its own delta", f"{id_} was shown the delta of {line['delta']}", id_
            )

    def _attempt(self, line: Line) -> None:
        if line["of"] in ("rebuild", "wipe"):
            self.replaced.add((line["projection"], line["key"]))
            self.rebuilt |= set(line["ids"])

    def _attempted(self, attempt: Line, outcome: Line) -> None:
        error = outcome.get("error")
        if attempt["of"] == "skip" and error is None:
            self.skipped[attempt["projection"], attempt["key"], attempt["id"]] += 1
        elif attempt["of"] == "skip" and error != "VersionConflict":
            self._unsure(
                attempt
            )  # LetterNotFound too: its own commit may have removed it, and only the answer was lost
        elif error in _UNCERTAIN and attempt["of"] in ("retry", "resume"):
            self._unsure(attempt)

    def _unsure(self, attempt: Line) -> None:
        if attempt["of"] in ("skip", "retry"):
            self.uncertain_ids.add(attempt["id"])
        elif attempt["of"] == "resume":
            self.uncertain.add((attempt["projection"], attempt["key"]))

    def _read_final(self) -> None:
        for (name, key), row in self.final.rows.items():
            if name != OWN and row.state is not None:
                for version, id_ in enumerate(row.state["log"], 1):
                    self.places[name, key, id_].add((row.epoch, version))
        for letter in self.final.letters:
            try:
                event = json.loads(letter.event)
            except ValueError:
                what = f"letter {letter.id} of {letter.key!r} is no JSON: {letter.event[:100]}"
                self._violated("letters are kept whole", what)
                continue
            self.letters[letter.projection, letter.key, event["id"]] += 1
            told = self.events.get(event["id"])
            if told is None or len(event["pad"]) != told.size:
                what = f"letter {letter.id} of {event['id']} is not as it was dispatched"
                self._violated("letters are kept whole", what, event["id"])

    # -- promises

    def _judge_processes(self) -> None:
        ended = set()
        for line in self.lines:
            process = line["in"].partition(":")[0]
            match line["what"]:
                case "stuck" | "crashed" | "half read":
                    self._violated("the process goes on", str(line))
                case "settled":
                    if not line["settled"] or line["undone"] or line["in_flight"]:
                        self._violated("settle() ends with nothing under way", str(line), *line["undone"][:1])
                    for name, (spawned, retired, live) in line["actors"].items():
                        if spawned - retired != live:
                            self._violated(
                                "actors are counted", f"{name}: {spawned} - {retired} is not {live}"
                            )
                case "closed":
                    if line["undone"] or line["in_flight"]:
                        what = (
                            f"{len(line['undone'])} Receipts never end, {line['in_flight']} in flight: {line}"
                        )
                        self._violated("close() ends every Receipt", what, *line["undone"][:1])
                    if line["took"] > line["timeout"] + _LATE:
                        self._violated("close() keeps its timeout", str(line))
                case "ended well":
                    ended.add(process)
                    if line["threads"] or line["connections"]:
                        self._violated("nothing is left after close()", str(line))
        for process in sorted({line["in"].partition(":")[0] for line in self.lines} - ended - self.killed):
            self._violated("the process goes on", f"{process} ended without a word")

    def _judge_rows(self) -> None:
        for (name, key), row in self.final.rows.items():
            if name == OWN or row.state is None:
                continue
            log = row.state["log"]
            if row.version != len(log):
                self._violated(
                    "the version is the number of events", f"{name} {key!r}: {row.version}, not {len(log)}"
                )
            if row.state["half"] or row.state["text"] or row.state["number"] != 0.0 or row.state["extra"]:
                what = {word: value for word, value in row.state.items() if word != "log"}
                self._violated(
                    "no half changed or ill-typed state is saved",
                    f"{name} {key!r} holds {what}",
                    row.state["half"],
                )
            for id_, count in Counter(log).items():
                if count > 1:
                    self._violated("each event once", f"{id_} is {count} times in {name} {key!r}", id_)

    def _judge_letters(self) -> None:
        for (_, key, id_), count in self.letters.items():
            if count > 1:
                self._violated("one letter for each event", f"{count} letters of {id_} for {key!r}", id_)

    def _judge_places(self, part: Part, places: set[Place]) -> None:
        name, key, id_ = part
        told = self.events.get(id_)
        row = self.final.rows.get((name, key))
        if told is None and id_ not in self.rebuilt:
            self._violated("no event from nowhere", f"{id_} is in {name} {key!r}", id_)
        if told is not None and (name != told.projection or key not in told.keys):
            self._violated(
                "an event reaches its own keys", f"{id_} for {told.keys} is in {name} {key!r}", id_
            )
        if len(places) > 1:
            self._violated(
                "each event once", f"{id_} was folded into {name} {key!r} at {sorted(places)}", id_
            )
        for epoch, version in places:
            if row is not None and epoch == row.epoch:
                log = [] if row.state is None else row.state["log"]
                if log[version - 1 : version] != [id_]:
                    what = f"{id_} was version {version} of {name} {key!r}, not {log[version - 1 : version]}"
                    self._violated("committed is committed", what, id_)
            elif (name, key) not in self.replaced:
                what = (
                    f"{id_} was at {epoch}:{version} of {name} {key!r}, which is at {row and row.epoch} now"
                )
                self._violated("committed is committed", what, id_)

    def _judge_part(self, id_: str, told: Told, key: str) -> None:
        part = (told.projection, key, id_)
        folded, letters, skipped = len(self.places.get(part, ())), self.letters[part], self.skipped[part]
        found = (
            f"{id_} for {key!r} of {told.projection}: folded {folded}, letters {letters}, skipped {skipped}"
        )
        ended = told.ended.get(key)
        error = None if ended is None else ended.get("error")
        if folded + letters + skipped > 1:
            self._violated("folded, a letter, or skipped: one of these", found, id_)
        if told.then in ILL_TYPED and folded:
            self._violated("what is committed can be read back", f"{told.then} was committed: {found}", id_)
        if told.refused is not None:
            if folded + letters:
                self._violated("refused is refused", f"{found}, dispatch raised {told.refused}", id_)
            if told.refused not in _REFUSALS | {"StoreUnavailable", "StoreError"}:
                self._violated(
                    "dispatch raises its own errors", f"{found}, dispatch raised {told.refused}", id_
                )
        elif told.accepted and not told.done and self._process_of(id_) not in self.killed:
            self._violated("every Receipt ends", f"{found}, and its Receipt never ended", id_)
        unsure = (told.projection, key) in self.uncertain or id_ in self.uncertain_ids
        if error in _LETTER_ERRORS and not folded + letters + skipped and not unsure:
            self._violated("what raised is a letter", f"{found}, its Receipt raised {error}", id_)
        if error == "BroadcastError" and not folded:
            self._violated("a failed broadcast loses nothing", found, id_)
        if error in _REFUSALS and folded + letters:
            self._violated("refused is refused", f"{found}, its Receipt raised {error}", id_)
        if error is not None and error not in _TOLD and "m" not in told.system:
            self._violated(
                "a Receipt of a system that is not closed tells the outcome", f"{found}, {error}", id_
            )

    def _judge_versions(self) -> None:
        at: dict[tuple[str, str, str, int], set[str]] = defaultdict(set)
        for (name, key, id_), places in self.places.items():
            for epoch, version in places:
                at[name, key, epoch, version].add(id_)
        for (name, key, epoch, version), ids in at.items():
            if len(ids) > 1:
                self._violated(
                    "one event, one version", f"{name} {key!r} {epoch}:{version} is {sorted(ids)}", *ids
                )

    def _judge_published(self) -> None:
        reached: dict[tuple[str, ...], int] = {}
        for line in self.lines:
            if line["what"] == "published":
                address = (
                    line["in"].partition(":")[0],
                    line["system"],
                    line["projection"],
                    line["key"],
                    line["epoch"],
                )
                if line["base"] < reached.get(address, 0):
                    self._violated("published versions never go back", str(line), *line["ids"])
                reached[address] = line["base"] + len(line["ids"])
        for (name, key), row in self.final.rows.items():
            log = [] if name == OWN or row.state is None else row.state["log"]
            for version, id_ in enumerate(log, 1):
                if (name, key, row.epoch, version) not in self.published and not self._untold(name, key, id_):
                    what = f"version {version} of {name} {key!r}, {id_}, was never published"
                    self._violated("what is committed is published", what, id_)

    def _untold(self, name: str, key: str, id_: str) -> bool:
        """Return whether it is in order that nobody was told of an event that is committed."""
        told = self.events.get(id_)
        if told is None or (name, key) in self.uncertain or id_ in self.uncertain_ids:
            return True  # of a rebuild; or by an operator's process that was killed
        ended = told.ended.get(key, {})
        return self._process_of(id_) in self.killed or ended.get("error") in _CLOSED_IN_BETWEEN

    def _judge_order(self) -> None:
        last: dict[tuple[str, str, str, str], tuple[int, str]] = {}
        for id_, told in self.events.items():  # in the order of dispatch, for each thread
            for key in told.keys:
                error = told.ended.get(key, {}).get("error")
                if told.projection == Letters.name and error not in (None, "BroadcastError"):
                    continue  # a letter, retried later if at all
                for epoch, version in self.places.get((told.projection, key, id_), ()):
                    before, other = last.get((told.projection, key, epoch, told.thread), (0, ""))
                    if version <= before:
                        what = f"{other} was dispatched before {id_}: versions {before}, {version} of {key!r}"
                        self._violated("the order of a thread is kept", what, other, id_)
                    last[told.projection, key, epoch, told.thread] = (version, id_)

    def _judge_halts(self) -> None:
        """Between an event that halted its key and an operator's success nothing is folded into that key."""
        releases: dict[str, list[tuple[float, float]]] = defaultdict(list)
        under_way: dict[str, Line] = {}
        for line in self.lines:
            if line["what"] == "attempt" and line["of"] in _RELEASES and line["projection"] == Halts.name:
                under_way[line["number"]] = line
            elif line["what"] == "attempted":
                attempt = under_way.pop(line["number"], None)
                if attempt is not None and line.get("error") not in _STILL_HALTED:
                    releases[attempt["key"]].append((attempt["at"], line["at"]))
        for unknown in under_way.values():
            releases[unknown["key"]].append((unknown["at"], inf))
        tried = {line["id"]: line["at"] for line in self.lines if line["what"] == "try"}
        ends = [(line, self.events[line["id"]]) for line in self.lines if line["what"] == "ended"]
        halts: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for line, told in ends:
            if told.projection == Halts.name and line.get("error") in _LETTER_ERRORS:
                began, asked = line["at"], tried[line["id"]]
                # A success since the dispatch may have come after the halt, of which the Receipt tells later.
                until = min(
                    (max(start, began) for start, end in releases[line["key"]] if end > asked), default=inf
                )
                halts[line["key"]].append((began, until))
        for line, told in ends:
            if told.projection == Halts.name and "epoch" in line:
                for began, until in halts[line["key"]]:
                    if began < tried[line["id"]] and line["at"] < until:
                        what = f"{line['id']} was folded into {line['key']!r}, halted from {began} to {until}"
                        self._violated("a halted key waits", what, line["id"])
                        break

    def _judge_own(self) -> None:
        written: dict[str, Counter[int]] = defaultdict(Counter)
        maybe: Counter[str] = Counter()
        open_: dict[str, str] = {}
        for line in self.lines:
            process = line["in"].partition(":")[0]
            match line["what"]:
                case "writing":
                    open_[process] = line["key"]
                case "written":
                    written[line["key"]][line["count"]] += 1
                    open_.pop(process, None)
                case "maybe written":
                    maybe[line["key"]] += 1
                    open_.pop(process, None)
                case "not written":
                    open_.pop(process, None)
        for key in open_.values():
            maybe[key] += 1
        for key, counts in written.items():
            row = self.final.rows[OWN, key]
            count = (row.state or {})["count"]
            if max(counts.values()) > 1 or not counts.total() <= count <= counts.total() + maybe[key]:
                what = f"{key!r} is {count} after {counts.total()} writes and {maybe[key]} in doubt"
                self._violated("no lost update of a value of one's own", what)

    # -- how

    def _process_of(self, id_: str) -> str:
        return id_.partition(".")[0].partition("m")[0]

    def _violated(self, promise: str, what: str, *ids: str) -> None:
        lines: list[Line] = []
        if ids and len(self.violations) < _SHOWN:  # looking for lines takes long
            wanted = {id_ for id_ in ids if id_}
            numbers = {
                line["number"]
                for line in self.lines
                if line["what"] == "attempt" and line.get("id") in wanted
            }
            lines = [
                line for line in self.lines
                if line.get("id") in wanted
                or line.get("number") in numbers
                or wanted & set(line.get("ids", ()))
            ]  # fmt: skip
        self.violations.append(Violation(promise, what, sorted(lines, key=itemgetter("at"))))
