"""Records of a file or of standard input, one after the other, however many there are.

What is wrong with one record is told with its line, and the next one is read. Where it is not
known where the next one begins, such as after an open quotation mark, reading ends.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.options import STREAM
from xlnet_fast.train.shared.columns import check_header, rows_of_json

LONGEST_LINE = 64 << 20
"""Bytes; a file without line ends would fill the memory."""

TEXT = "text"
"""The one column of a text file."""

_BLOCK = 1 << 20
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_NO_UTF8 = "not UTF-8 (byte 0x{:02x}); convert it, for example with iconv -t UTF-8"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """A record as it stands in the input.

    Attributes:
        number: among the records, from 1.
        place: where it begins, such as "line 3".
        values: column to value; empty where there is an error.
        error: why it could not be read, else "".
    """

    number: int
    place: str
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


class Rows:
    """The records of an input, which can be read several times.

    Attributes:
        name: of the input, for messages.
    """

    def __init__(self, file: BinaryIO, name: str, kind: str, whole: bool = False) -> None:
        """Of a file that can be read from its beginning.

        Args:
            kind: one of ``FORMATS``. whole: whether a text is one record, not one a line.
        """
        self._file, self.name, self._kind, self._whole = file, name, kind, whole

    def __iter__(self) -> Iterator[Row]:
        """From the first one on.

        Raises:
            ArgumentError: nothing can be read from some place on; says where.
        """
        self._file.seek(0)
        found: Iterator[tuple[str, Mapping[str, Any], str]]
        if self._whole:
            found = self._one_text()
        elif self._kind in _SEPARATORS:
            found = self._table(_SEPARATORS[self._kind])
        elif self._kind == "json":
            found = self._json()
        else:
            found = self._json_lines() if self._kind == "jsonl" else self._texts()
        for number, (place, values, error) in enumerate(found, 1):
            yield Row(number, place, {} if error else values, error)

    def digest(self) -> str:
        """The SHA-256 of all bytes."""
        self._file.seek(0)
        digest = hashlib.sha256()
        while block := self._file.read(_BLOCK):
            digest.update(block)
        return digest.hexdigest()

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        number = 0
        while line := self._file.readline(LONGEST_LINE + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(_BOM)
            if len(line) > LONGEST_LINE:
                raise ArgumentError(
                    f"line {number} of {self.name} is longer than {LONGEST_LINE >> 20} MiB"
                )
            yield number, line

    def _texts(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        for number, line in self._lines():
            text, error = _decoded(line.removesuffix(b"\n").removesuffix(b"\r"))
            yield f"line {number}", {TEXT: text}, error

    def _one_text(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        content = self._file.read(LONGEST_LINE + 1).removeprefix(_BOM)
        if len(content) > LONGEST_LINE:
            raise ArgumentError(f"{self.name} is longer than {LONGEST_LINE >> 20} MiB")
        text, error = _decoded(content)
        yield "the text", {TEXT: text}, error

    def _json_lines(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Blank lines are none."""
        for number, line in self._lines():
            if line.strip():
                yield f"line {number}", *_object(line)

    def _json(self) -> Iterator[tuple[str, Mapping[str, Any], str]]:
        """A list, which is read as a whole; or one object a line, whatever the file is called."""
        text, error = _decoded(self._file.read().removeprefix(_BOM))
        if error:
            raise ArgumentError(f"{self.name}: {error}")
        try:
            content = _parsed(text)
        except json.JSONDecodeError as problem:
            if problem.msg == "Extra data":
                self._file.seek(0)
                yield from self._json_lines()
                return
            raise ArgumentError(f"{self.name} is no valid JSON: {problem}") from problem
        except (RecursionError, ValueError) as problem:
            raise ArgumentError(f"{self.name} cannot be read as JSON: {problem}") from problem
        try:
            rows = rows_of_json(content, self.name)
        except (KeyError, TypeError, AttributeError) as problem:
            raise ArgumentError(
                f"{self.name} is nested otherwise than SQuAD: {problem!r}"
            ) from problem
        for number, row in enumerate(rows, 1):
            yield f"item {number}", row, _unwritable(row)

    def _table(self, separator: str) -> Iterator[tuple[str, dict[str, Any], str]]:
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))  # of all readers there are
        # Bytes that are no UTF-8 become what `_unwritable` finds, in the record they stand in.
        lines = (line.decode("utf-8", "surrogateescape") for _, line in self._lines())
        reader = csv.reader(lines, delimiter=separator, strict=True)
        header: list[str] | None = None
        begin = 1
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise ArgumentError(
                    f"{self.name} cannot be read from line {begin} on: {error}; a quotation mark "
                    'within a quoted cell is written twice: "a ""word"""'
                ) from error
            if cells is None:
                return
            place, begin = f"line {begin}", reader.line_num + 1
            if header is None:
                header = cells
                check_header(header, self.name)
            elif len(cells) == len(header):
                values = dict(zip(header, cells, strict=True))
                yield place, values, _unwritable(values)
            elif cells:  # an empty line is no record
                yield place, {}, f"{len(cells)} cells, and the first line has {len(header)}"


def _decoded(line: bytes) -> tuple[str, str]:
    """The text, and what is wrong with it."""
    try:
        return line.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        return "", _NO_UTF8.format(line[error.start])


def _object(line: bytes) -> tuple[dict[str, Any], str]:
    """That of a JSON line, and what is wrong with it."""
    text, error = _decoded(line)
    if error:
        return {}, error
    try:
        content = _parsed(text)
    except json.JSONDecodeError as problem:
        return {}, f"no valid JSON: {problem.msg} at its character {problem.pos + 1}"
    except (RecursionError, ValueError) as problem:  # nested too deep; a number of 5,000 digits
        return {}, f"no readable JSON: {problem}"
    if not isinstance(content, dict):
        return {}, f"JSON, but a {type(content).__name__} and no object such as {{...}}"
    return content, _unwritable(content) if b"\\u" in line else ""


def _parsed(text: str) -> Any:
    # NaN, which is no JSON, stands for what is missing where Python wrote the file.
    return json.loads(text, parse_constant=lambda _: None)


def _unwritable(values: Any) -> str:
    """What is wrong with values that no UTF-8 file can hold, else ""."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return _NO_UTF8.format(code - 0xDC00)
        return f"half of a surrogate pair, \\u{code:04x}, which is no letter"
    return ""


@contextmanager
def open_rows(name: str, kind: str, whole: bool = False) -> Iterator[Rows]:
    """The records of a file; standard input and pipes are first read to their end, onto the disk.

    Args:
        name: of a file, or "-". kind, whole: as of :class:`Rows`.

    Raises:
        ArgumentError: it cannot be opened, is empty, or holds no text.
    """
    shown = "standard input" if name == STREAM else name
    with _opened(name, shown) as file:
        _check_text(file.read(_BLOCK), shown)
        yield Rows(file, shown, kind, whole)


def _opened(name: str, shown: str) -> Any:
    """A binary file that can be read again and again."""
    path = Path(name).expanduser()
    try:
        if name != STREAM and path.is_file():
            return path.open("rb")
        with nullcontext(sys.stdin.buffer) if name == STREAM else path.open("rb") as source:
            copy = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
            shutil.copyfileobj(source, copy, _BLOCK)
        copy.seek(0)
        return copy
    except FileNotFoundError as error:
        raise ArgumentError(f"the input {shown} does not exist") from error
    except OSError as error:
        raise ArgumentError(f"the input {shown} cannot be read: {error.strerror}") from error


def _check_text(beginning: bytes, name: str) -> None:
    if not beginning:
        raise ArgumentError(f"{name} is empty")
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ArgumentError(f"{name} is UTF-16, expected UTF-8: iconv -f UTF-16 -t UTF-8")
    if b"\0" in beginning:
        raise ArgumentError(
            f"{name} is no text but a binary file (it holds zero bytes, the first at byte "
            f"{beginning.index(0)}); give UTF-8 text"
        )
