"""What a child tells its parent: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.ops.qualification.record import SCHEMA, Identity, Record, Row, checksum, parse
from xlnet_fast.qualifier.tasks import Task

READY, BEGIN, TILES, ROW, FATAL, DONE = "ready", "begin", "tiles", "row", "fatal", "done"

CHECK, COMPILE = "check", "compile"
"""Modes of a child: verdicts and times, or each call once, for the compiler's cache."""


@dataclass(frozen=True)
class Order:
    """What a child is to do.

    Attributes:
        device: "cpu" or "cuda:1". seconds: after which it begins nothing new.
        full: larger calls, too. mode: of the above.
    """

    device: str
    backend: str
    tasks: tuple[Task, ...]
    seconds: float
    full: bool = False
    mode: str = CHECK

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        """Undo :meth:`to_json`."""
        content = json.loads(text)
        tasks = tuple(Task(**task) for task in content.pop("tasks"))
        return cls(tasks=tasks, **content)


def line(kind: str, **content: Any) -> str:
    """One message."""
    return json.dumps({"kind": kind, **content})


class Garbage(Exception):
    """A child sent something that is no message."""


@dataclass(frozen=True)
class Message:
    """One message, read: ``text`` of BEGIN and FATAL, the others as named.

    ``tiles``: as ``Record.tiles``; those that the kernels are proved with.
    """

    kind: str
    text: str = ""
    identity: Identity | None = None
    row: Row | None = None
    tiles: Mapping[str, tuple[int, ...]] | None = None


_NOBODY = Identity("cpu", "", "", 0, "", "", "", "", "", "")


def read_line(text: str) -> Message:
    """A message, its row checked as strictly as one in a record that somebody edited.

    Raises:
        Garbage: it is none.
    """
    try:
        content = json.loads(text)
        kind = content["kind"]
        if kind in (BEGIN, FATAL):
            return Message(kind, text=str(content["text"]))
        if kind == DONE:
            return Message(kind)
        if kind == READY:
            return Message(kind, identity=checked(content["identity"], []).identity)
        if kind == TILES:
            found = checked(asdict(_NOBODY), [], content["tiles"])
            return Message(kind, tiles=found.tiles)
        if kind == ROW:
            return Message(kind, row=checked(asdict(_NOBODY), [content["row"]]).rows[0])
    except (ValueError, TypeError, KeyError, ArgumentError) as error:
        raise Garbage(f"{text[:80]!r}: {error}") from None
    raise Garbage(repr(text[:80]))


def checked(identity: object, rows: Iterable[object], tiles: object = None) -> Record:
    """A record of these parts as plain data, by the reader of records."""
    whole = {
        "schema": SCHEMA, "identity": identity, "rows": list(rows), "created": "", "seconds": 0.0,
        "full": False, "tiles": {} if tiles is None else tiles,
    }  # fmt: skip
    return parse(json.dumps({**whole, "checksum": checksum(whole)}), "the message")
