"""Where answers go: to standard output, or through a file that a later run can go on with.

Answers come out of order, the longest records first, in blocks of records. The unfinished file has
one JSON object a line: what decides the answers, then answers, and behind those of a block where
it ends. It says by itself what is done, wherever a kill cut it off.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.files import written_whole
from xlnet_fast.predict.options import OUTPUT_SUFFIXES, STREAM

_TABLES = {".csv": ",", ".tsv": "\t"}
_LAST = ("cut", "error")  # columns of a table that few rows have
_END = "block_ends"
_CHANGED = "_sha256"


class Answers(Protocol):
    """What takes the answers.

    Attributes:
        done: records of the blocks that are complete: all up to this number.
        answered: the numbers of those beyond that have an answer too.
    """

    done: int
    answered: set[int]

    def add(self, number: int, answer: Mapping[str, Any]) -> None:
        """The answer of a record; raises ``ValueError`` where it holds what is no number."""

    def flush(self) -> None:
        """Nothing that was added is lost from here on, if the process is killed."""

    def end_block(self, last: int) -> None:
        """All records up to this number are answered."""

    def stop(self) -> None:
        """The run ends before its end."""

    def finish(self) -> None:
        """All records are answered."""


def line_of(answer: Mapping[str, Any]) -> str:
    """An answer as a JSON line; raises ``ValueError`` where it holds what is no number."""
    return json.dumps(answer, ensure_ascii=False, allow_nan=False)


class Stream:
    """Answers for standard output, each when those before it are out."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """``say`` gets the lines."""
        self.done, self.answered = 0, set[int]()
        self._say = say
        self._lines: dict[int, str] = {}
        self._said = 0

    def add(self, number: int, answer: Mapping[str, Any]) -> None:
        """See :class:`Answers`."""
        self._lines[number] = line_of(answer)

    def flush(self) -> None:
        """See :class:`Answers`."""
        while (line := self._lines.pop(self._said + 1, None)) is not None:
            self._say(line)
            self._said += 1

    def end_block(self, last: int) -> None:
        """See :class:`Answers`."""
        self.flush()
        self.done = last

    def stop(self) -> None:
        """See :class:`Answers`; those whose predecessors have no answer are not told."""
        self.flush()

    def finish(self) -> None:
        """See :class:`Answers`."""


class Unfinished:
    """Answers for a file, which is there when all are; until then ``.NAME.part`` has them."""

    def __init__(self, output: Path, file: BinaryIO) -> None:
        """See :func:`unfinished`; the file is open behind its first line, to read and write."""
        self.output, self._file = output, file
        self.done, self.answered = 0, set[int]()
        self._read()

    def _read(self) -> None:
        """Learn what is done, and cut off a line that a kill left unfinished."""
        end = self._file.tell()
        for line in self._file:
            try:
                content = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                content = None
            if not isinstance(content, dict):
                break
            if _END in content:
                self.done = content[_END]
                self.answered.clear()
            else:
                self.answered.add(content["row"])
            end += len(line)
        self._file.seek(end)
        self._file.truncate()

    def add(self, number: int, answer: Mapping[str, Any]) -> None:
        """See :class:`Answers`."""
        self._write(line_of(answer))
        self.answered.add(number)

    def _write(self, line: str) -> None:
        try:
            self._file.write(line.encode() + b"\n")
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> XLNetFastError:
        return XLNetFastError(
            f"the answers for {self.output} could not be written: {error.strerror or error}"
        )

    def flush(self) -> None:
        """See :class:`Answers`."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def end_block(self, last: int) -> None:
        """See :class:`Answers`."""
        self._write(json.dumps({_END: last}))
        self.flush()
        self.done = last
        self.answered.clear()

    def stop(self) -> None:
        """See :class:`Answers`."""
        self.flush()

    def finish(self) -> None:
        """Write the output in the order of the records, and take the unfinished file away."""
        self.flush()
        try:
            with written_whole(self.output) as temporary:
                suffix = self.output.suffix.lower()
                if suffix in _TABLES:
                    self._write_table(temporary, _TABLES[suffix])
                else:
                    self._write_json(temporary, suffix == ".json")
        except OSError as error:
            raise self._failed(error) from error
        part_of(self.output).unlink(missing_ok=True)

    def _in_order(self) -> Iterator[str]:
        """The lines of the answers; those of one block are held at a time."""
        self._file.seek(0)
        self._file.readline()
        block: dict[int, str] = {}
        for raw in self._file:
            line = raw.decode().removesuffix("\n")
            content = json.loads(line)
            if _END not in content:
                block[content["row"]] = line
                continue
            yield from (block[number] for number in sorted(block))
            block.clear()

    def _write_json(self, path: Path, listed: bool) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            between = "[\n" if listed else ""
            for line in self._in_order():
                file.write(between + line)
                between = ",\n" if listed else "\n"
            file.write("\n]\n" if listed else "\n")

    def _write_table(self, path: Path, separator: str) -> None:
        names: dict[str, dict[str, None]] = {}  # of each key of the answers, its columns
        for line in self._in_order():
            for key, value in json.loads(line).items():
                names.setdefault(key, {}).update(dict.fromkeys(_flat(key, value)))
        keys = [key for key in names if key not in _LAST] + [key for key in _LAST if key in names]
        columns = [
            # Scores come in another order in each answer; what is repeated in that of the input.
            name for key in keys
            for name in (names[key] if key == "input" else sorted(names[key]))
        ]  # fmt: skip
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter=separator, lineterminator="\n")
            writer.writeheader()
            for line in self._in_order():
                flat: dict[str, Any] = {}
                for key, value in json.loads(line).items():
                    flat |= _flat(key, value)
                writer.writerow({name: _cell(value) for name, value in flat.items()})

    def close(self) -> None:
        """Let the file go."""
        self._file.close()


def _flat(key: str, value: Any) -> dict[str, Any]:
    """Column to value: of an object one column for each of its keys, called ``key.name``."""
    if not isinstance(value, Mapping):
        return {key: value}
    return {f"{key}.{name}": inner for name, inner in value.items()}


def _cell(value: Any) -> str:
    """A text as it is, nothing for null, all else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def part_of(output: Path) -> Path:
    """The unfinished file of an output, beside what a link leads to."""
    real = Path(os.path.realpath(output))
    return real.with_name(f".{real.name}.part")


def is_stream(output: Path | None) -> bool:
    """Whether answers are written out at once: to standard output, a device or a pipe."""
    return output is None or str(output) == STREAM or (output.exists() and not output.is_file())


def check_output(output: Path | None, resume: bool, overwrite: bool) -> None:
    """Look at the output before minutes of work; nothing is made.

    Raises:
        ArgumentError: it cannot be written, is there already, or has nothing to go on with.
    """
    if output is not None and output.is_dir():
        raise ArgumentError(f"the output {output} is a folder, expected the name of a file")
    if output is None or is_stream(output):
        if resume:
            raise ArgumentError("resume goes on with a file, expected --output FILE")
        return
    suffix = output.suffix.lower()
    if suffix not in OUTPUT_SUFFIXES:
        raise ArgumentError(
            f"the output {output} must end in one of {', '.join(OUTPUT_SUFFIXES)}, got {suffix!r}"
        )
    folder = Path(os.path.realpath(output)).parent
    if not folder.is_dir():
        raise ArgumentError(f"the output {output}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise ArgumentError(f"the output {output} cannot be written: {folder} is read-only")
    if output.exists() and not output.stat().st_mode & stat.S_IWUSR:
        raise ArgumentError(f"the output {output} is read-only, expected one that may be replaced")
    if overwrite:
        return
    part = part_of(output)
    if part.exists() and not resume:
        raise ArgumentError(
            f"an earlier run left its answers in {part}: --resume goes on with it, --overwrite "
            "starts anew"
        )
    if output.exists() and not part.exists():
        raise ArgumentError(f"the output {output} is there already: --overwrite replaces it")


def unfinished(output: Path, run: Mapping[str, Any], resume: bool) -> Unfinished:
    """Begin an output, or go on with it.

    Args:
        run: what decides the answers, as JSON values.

    Raises:
        ArgumentError: another process writes it, or the run to go on with was another one.
        XLNetFastError: it could not be written.
    """
    part = part_of(output)
    try:
        file = part.open("r+b" if part.exists() else "x+b")
    except OSError as error:
        raise XLNetFastError(f"{part} could not be opened: {error.strerror}") from error
    try:
        _lock(file, part)
        header = file.readline()
        if not resume or not header.endswith(b"\n"):  # or killed before it was begun
            file.seek(0)
            file.truncate()
            file.write(json.dumps({"run": run}).encode() + b"\n")
            file.flush()
        else:
            _check_same(header, run, part)
        return Unfinished(output, file)
    except BaseException:
        file.close()
        raise


def _lock(file: io.BufferedRandom, part: Path) -> None:
    """Keep other runs out for as long as the file is open."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ArgumentError(f"another run is writing {part}: wait for its end") from error


def _check_same(header: bytes, run: Mapping[str, Any], part: Path) -> None:
    try:
        before = json.loads(header)["run"]
        changed = [name for name in {**before, **run} if before.get(name) != run.get(name)]
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"{part} holds no run that could be resumed, its first line is damaged: --overwrite "
            "starts anew"
        ) from error
    told = [
        f"the {name.removesuffix(_CHANGED)} is another one" if name.endswith(_CHANGED)
        else f"{name} was {before.get(name)!r} and is {run.get(name)!r}"
        for name in changed
    ]  # fmt: skip
    if told:
        raise ArgumentError(
            f"the run in {part} cannot go on differently: {'; '.join(told)}; --overwrite starts "
            "anew"
        )
