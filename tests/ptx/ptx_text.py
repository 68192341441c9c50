"""Reading PTX: a text becomes kernels of instructions, each with its operands apart.

Names stay names here; the machine (`ptx_machine`) gives registers and symbols their places.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import NamedTuple

TYPE_BYTES = {f"{kind}{bits}": bits // 8 for kind in "busf" for bits in (8, 16, 32, 64, 128)} | {
    "f16x2": 4,
    "bf16": 2,
    "bf16x2": 4,
    "tf32": 4,
}
"""Bytes of a PTX type; a predicate has none."""


class TextError(ValueError):
    """A text that is not understood: the message begins with its line."""


class Operand(NamedTuple):
    """One of an instruction's operands, between commas.

    Attributes:
        values: names of registers or symbols, numbers as they are written, "_"; "!" before a
            predicate that is negated. One value, or those in braces or with "|" between them.
        is_address: it stood in square brackets.
        offset: bytes to add to an address, or to a symbol.
    """

    values: tuple[str, ...]
    is_address: bool = False
    offset: int = 0


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        line: of the text, from 1.
        text: as it stands there, spaces made one.
        name: "ld.global.v4.b32".
        operands: first what is written.
        guard: the predicate it depends on, "!%p1" where that is negated, or None.
    """

    line: int
    text: str
    name: str
    operands: tuple[Operand, ...]
    guard: str | None = None


@dataclass(frozen=True)
class Register:
    """A declaration of registers: `.reg .b32 %r<10>` is ten of "%r", `.reg .pred p` one of "p"."""

    name: str
    bytes: int  # of each; 0 for a predicate
    count: int | None = None  # None: the name is the register's own, with no number behind it


@dataclass(frozen=True)
class Symbol:
    """A variable: memory with a name."""

    line: int
    name: str
    space: str  # "shared", "local", "global", "const"
    align: int
    bytes: int | None  # None: as much as the launch gives
    content: tuple[tuple[str, ...], int] | None = None  # initial numbers, and bytes of each


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel, at an offset in bytes."""

    name: str
    offset: int
    bytes: int


@dataclass
class Kernel:
    """An entry of a module.

    Attributes:
        name: as it is exported.
        line: where it begins.
        parameters: in order.
        threads: of a block, x, y and z, where the text fixes them (.reqntid), else None.
        most_threads: the product of .maxntid, or None.
        registers: all declarations.
        symbols: of its own and of the module.
        instructions: in order.
        labels: name -> index of the instruction behind it.
        tables: name of a .branchtargets -> its labels.
    """

    name: str
    line: int
    parameters: list[Parameter]
    threads: tuple[int, int, int] | None = None
    most_threads: int | None = None
    registers: list[Register] = field(default_factory=list)
    symbols: list[Symbol] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def parameter_bytes(self) -> int:
        """How many bytes a launch passes."""
        return max((each.offset + each.bytes for each in self.parameters), default=0)


@dataclass
class Module:
    """What a text has.

    Attributes:
        target: "sm_80".
        kernels: by name.
    """

    target: str
    kernels: dict[str, Kernel]


_NAME = r"[A-Za-z_$%][\w$]*"
_TOKEN = re.compile(
    rf"""(?P<skip>\s+|\.(?:loc|file)\b[^\n]*|\.pragma[^;]*;)
    |(?P<label>{_NAME}):(?!:)
    |(?P<instruction>(?:@!?{_NAME}\s+)?[a-z][\w.:]*[^;]*;)\s*
    |(?P<open>\{{)|(?P<close>\}})
    |(?P<directive>\.[a-z]\w*)""",
    re.VERBOSE,
)
_INSTRUCTION = re.compile(rf"(?:@(!?{_NAME})\s+)?([a-z][\w.:]*)\s*([^;]*);")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_REGISTER = re.compile(rf"({_NAME})(?:<(\d+)>)?$")
_VARIABLE = re.compile(
    rf"""((?:\.\w+\s+)*?)\.(shared|local|global|const)\s+((?:\.\w+\s+(?:\d+\s+)?)*?)\.(\w+)\s+
    ({_NAME})\s*((?:\[\s*\d*\s*\])*)\s*(?:=\s*(.*))?$""",
    re.VERBOSE | re.DOTALL,
)
_PARAMETER = re.compile(
    rf"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?)?"
    rf"({_NAME})\s*(?:\[\s*(\d+)\s*\])?$"
)
_ENTRY = re.compile(rf"\.entry\s+({_NAME})\s*(?:\(([^)]*)\))?([^{{;]*)\{{", re.DOTALL)
_ADDRESS = re.compile(r"(?P<base>[\w$%.]+?)\s*(?:(?P<sign>[+-])\s*(?P<offset>-?\w+))?$")
_OPERANDS = re.compile(r"\s*(\{[^}]*\}|\[[^\]]*\]|[^,\[\]{}]+)\s*(,|$)")


def parse(text: str) -> Module:
    """Read a module.

    Raises:
        TextError: at what is not understood; its message begins with the line.
    """
    return _Reader(text).module()


class _Reader:
    """Goes through a text once."""

    def __init__(self, text: str) -> None:
        self.text = _COMMENT.sub(lambda found: "\n" * found[0].count("\n"), text)
        self.counted, self.line = 0, 1
        self.target = ""
        self.kernels: dict[str, Kernel] = {}
        self.symbols: list[Symbol] = []

    def line_of(self, place: int) -> int:
        """The line of a place that is not before the last one asked for."""
        self.line += self.text.count("\n", self.counted, place)
        self.counted = place
        return self.line

    def wrong(self, place: int, what: str) -> TextError:
        line = self.text.count("\n", 0, place) + 1
        return TextError(f"line {line}: {what}")

    def module(self) -> Module:
        place = 0
        while (place := self.next_of(place)) < len(self.text):
            place = self.top(place)
        for kernel in self.kernels.values():
            own = {symbol.name for symbol in kernel.symbols}
            kernel.symbols += [symbol for symbol in self.symbols if symbol.name not in own]
        return Module(self.target, self.kernels)

    def next_of(self, place: int) -> int:
        """Where the next thing begins."""
        while (found := _TOKEN.match(self.text, place)) is not None and found["skip"]:
            place = found.end()
        return place

    def top(self, place: int) -> int:
        """Read one thing outside of kernels; returns where it ends."""
        found = re.compile(r"\.([a-z]\w*)").match(self.text, place)
        if found is None:
            raise self.wrong(place, f"not understood: {self.excerpt(place)}")
        word = found[1]
        if word in ("version", "address_size", "target"):
            end = self.end_of_line(place)
            if word == "target":
                self.target = self.text[found.end() : end].split(",")[0].strip()
            if word == "address_size" and self.text[found.end() : end].strip() != "64":
                raise self.wrong(place, "addresses are not of 64 bits")
            return end
        if word == "section":
            return self.after_braces(place)
        statement = re.compile(r"[^;{]*").match(self.text, place)
        assert statement is not None
        if ".entry" in statement[0].split():
            return self.entry(place)
        if ".func" in statement[0].split():
            return self.function(place)
        return self.variable(place, self.symbols)

    def function(self, place: int) -> int:
        """A declaration is passed over: who calls it is found later. A body has nobody to run."""
        end = re.compile(r"[^;{]*").match(self.text, place).end()  # type: ignore[union-attr]
        if self.text[end : end + 1] == "{":
            return self.after_braces(place)
        return end + 1

    def excerpt(self, place: int) -> str:
        return " ".join(self.text[place : place + 80].split())

    def end_of_line(self, place: int) -> int:
        end = self.text.find("\n", place)
        return len(self.text) if end < 0 else end

    def after_braces(self, place: int) -> int:
        """Behind the braces that open next, with those inside."""
        depth = 0
        for found in re.compile(r"[{}]").finditer(self.text, place):
            depth += 1 if found[0] == "{" else -1
            if depth == 0:
                return found.end()
        raise self.wrong(place, "braces that do not close")

    def variable(self, place: int, symbols: list[Symbol]) -> int:
        end = self.text.find(";", place)
        statement = self.text[place : end if end >= 0 else None].strip()
        found = _VARIABLE.match(statement)
        if found is None or found[4] not in TYPE_BYTES:
            raise self.wrong(place, f"not understood: {self.excerpt(place)}")
        each = TYPE_BYTES[found[4]]
        align = re.search(r"\.align\s+(\d+)", found[3])
        vector = re.search(r"\.v([24])\b", found[3])
        count: int | None = int(vector[1]) if vector else 1
        for size in re.findall(r"\[\s*(\d*)\s*\]", found[6]):
            count = count * int(size) if size and count is not None else None
        content = None
        if found[7] is not None:
            content = (tuple(re.findall(r"[^\s,{}]+", found[7])), each)
            count = max(count or 0, len(content[0]))
        size_bytes = None if count is None else count * each
        symbols.append(
            Symbol(
                self.text.count("\n", 0, place) + 1,
                found[5],
                found[2],
                int(align[1]) if align else each * (int(vector[1]) if vector else 1),
                size_bytes,
                content,
            )
        )
        return end + 1

    def entry(self, place: int) -> int:
        found = _ENTRY.search(self.text, place)
        if found is None:
            raise self.wrong(place, f"not understood: {self.excerpt(place)}")
        kernel = Kernel(found[1], self.line_of(place), self.parameters(found))
        limits = {
            word: tuple(map(int, numbers.split(",")))
            for word, numbers in re.findall(r"\.(\w+)\s+(\d+(?:\s*,\s*\d+)*)", found[3])
        }
        if "reqntid" in limits:
            x, y, z = (*limits["reqntid"], 1, 1)[:3]
            kernel.threads = (x, y, z)
        if "maxntid" in limits:
            kernel.most_threads = functools.reduce(int.__mul__, limits["maxntid"])
        end = _Body(self, kernel).read(found.end())
        self.kernels[kernel.name] = kernel
        return end

    def parameters(self, entry: re.Match[str]) -> list[Parameter]:
        parameters = []
        offset = 0
        for part in (entry[2] or "").split(","):
            if not part.strip():
                continue
            found = _PARAMETER.match(part.strip())
            if found is None or found[2] not in TYPE_BYTES:
                raise self.wrong(entry.start(2), f"a parameter is not understood: {part.strip()}")
            each = TYPE_BYTES[found[2]]
            align = int(found[1] or each)
            offset = -(-offset // align) * align
            size = each * int(found[4] or 1)
            parameters.append(Parameter(found[3], offset, size))
            offset += size
        return parameters


@dataclass
class _Scope:
    """Inner braces: what their names are called in the kernel, and where they begin."""

    number: int
    first: int
    names: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def own(self, name: str) -> str:
        return f"{name}#{self.number}"


class _Body:
    """A kernel's body, with names that hold inside of braces only."""

    def __init__(self, reader: _Reader, kernel: Kernel) -> None:
        self.reader, self.kernel = reader, kernel
        self.scopes: list[_Scope] = []
        self.count = 0

    def read(self, place: int) -> int:
        """From behind the brace that opens; returns the place behind the one that closes."""
        reader, text = self.reader, self.reader.text
        while True:
            found = _TOKEN.match(text, place)
            if found is None:
                raise reader.wrong(place, f"not understood: {reader.excerpt(place)}")
            place = found.end()
            kind = found.lastgroup
            if kind == "skip":
                continue
            if kind == "instruction":
                self.instruction(found)
            elif kind == "label":
                self.label(found)
                table = re.compile(r"\s*\.branchtargets\s+([^;]*);").match(text, place)
                if table is not None:
                    labels = tuple(self.inner(part.strip()) for part in table[1].split(","))
                    self.kernel.tables[found["label"]] = labels
                    place = table.end()
            elif kind == "open":
                self.count += 1
                self.scopes.append(_Scope(self.count, len(self.kernel.instructions)))
            elif kind == "close":
                if not self.scopes:
                    return place
                self.leave(self.scopes.pop())
            else:
                place = self.directive(found)

    def label(self, found: re.Match[str]) -> None:
        name = found["label"]
        if self.scopes:
            scope = self.scopes[-1]
            scope.labels[name] = scope.own(name)
            name = scope.labels[name]
        if name in self.kernel.labels:
            raise self.reader.wrong(found.start("label"), f"a label is there twice: {name}")
        self.kernel.labels[name] = len(self.kernel.instructions)

    def leave(self, scope: _Scope) -> None:
        """Braces close: branches between them to a label of theirs mean that one."""
        code = self.kernel.instructions
        for place in range(scope.first, len(code) if scope.labels else 0):
            each = code[place]
            if each.name.split(".")[0] == "bra" and each.operands[0].values[0] in scope.labels:
                target = Operand((scope.labels[each.operands[0].values[0]],))
                code[place] = each._replace(operands=(target,))

    def directive(self, found: re.Match[str]) -> int:
        reader, place = self.reader, found.start()
        if found["directive"] == ".reg":
            end = reader.text.find(";", place)
            words = reader.text[found.end() : end].split(None, 1)
            kind = words[0].lstrip(".")
            if len(words) != 2 or (kind != "pred" and kind not in TYPE_BYTES):
                raise reader.wrong(place, f"not understood: {reader.excerpt(place)}")
            for name in words[1].split(","):
                self.register(place, name.strip(), 0 if kind == "pred" else TYPE_BYTES[kind])
            return end + 1
        return reader.variable(place, self.kernel.symbols)

    def register(self, place: int, text: str, size: int) -> None:
        found = _REGISTER.match(text)
        if found is None:
            raise self.reader.wrong(place, f"a register is not understood: {text}")
        count = None if found[2] is None else int(found[2])
        # A byte alone is held in a register of two.
        size = max(size, 2) if size else 0
        name = found[1]
        if self.scopes and count is None:
            scope = self.scopes[-1]
            scope.names[name] = scope.own(name)
            name = scope.names[name]
        elif self.scopes:
            for number in range(count or 0):
                inner = f"{name}{number}"
                own = self.scopes[-1].own(inner)
                self.scopes[-1].names[inner] = own
                self.kernel.registers.append(Register(own, size))
            return
        self.kernel.registers.append(Register(name, size, count))

    def inner(self, name: str) -> str:
        """What a name means here, in the innermost braces that have it."""
        for scope in reversed(self.scopes):
            bare = name.removeprefix("!")
            if bare in scope.names:
                return name[: len(name) - len(bare)] + scope.names[bare]
        return name

    def instruction(self, found: re.Match[str]) -> None:
        line = self.reader.line_of(found.start())
        try:
            text, name, operands, guard = _instruction(found["instruction"])
        except ValueError as problem:
            raise TextError(f"line {line}: {problem}") from None
        if self.scopes:
            guard = None if guard is None else self.inner(guard)
            operands = tuple(
                each._replace(values=tuple(map(self.inner, each.values))) for each in operands
            )
        self.kernel.instructions.append(Instruction(line, text, name, operands, guard))


# The same lines come again: in another tile's text, and in a text with one line changed.
@functools.lru_cache(maxsize=1 << 16)
def _instruction(text: str) -> tuple[str, str, tuple[Operand, ...], str | None]:
    """What an `Instruction` has but for its line."""
    found = _INSTRUCTION.fullmatch(text)
    assert found is not None
    guard, name, operands = found.groups()
    shown = " ".join(text.split())
    try:
        return shown, name, _operands(operands), guard
    except ValueError as problem:
        raise ValueError(f"{shown} {problem}") from None


def _operands(text: str) -> tuple[Operand, ...]:
    return tuple(map(_operand, _parts(text.strip())))


def _parts(text: str) -> list[str]:
    """What stands between the commas that are in no brackets."""
    if not any(bracket in text for bracket in "[]{}"):
        parts = [part.strip() for part in text.split(",")] if text else []
    else:
        parts = []
        place = 0
        while place < len(text):
            found = _OPERANDS.match(text, place)
            if found is None or (found[2] == "," and found.end() == len(text)):
                raise ValueError(f"has operands that are not understood: {text[place:]}")
            parts.append(found[1].strip())
            place = found.end()
    if not all(parts):
        raise ValueError(f"has operands that are not understood: {text}")
    return parts


@functools.lru_cache(maxsize=1 << 16)
def _operand(text: str) -> Operand:
    if text[0] == "[":
        values, offset = _address(text[1:-1].strip())
        return Operand(values, True, offset)
    if text[0] == "{":
        return Operand(tuple(part.strip() for part in text[1:-1].split(",")))
    if "|" in text:
        return Operand(tuple(part.strip() for part in text.split("|")))
    if "+" in text:
        values, offset = _address(text)
        return Operand(values, False, offset)
    return Operand((" ".join(text.split()),))


def _address(text: str) -> tuple[tuple[str, ...], int]:
    found = _ADDRESS.match(text)
    if found is None:
        raise ValueError(f"has an address that is not understood: {text}")
    offset = int(found["offset"], 0) if found["offset"] else 0
    return (found["base"],), -offset if found["sign"] == "-" else offset
