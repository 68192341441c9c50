"""Reading PTX, the text that Triton hands to the assembler: is scratch memory read in order?

What one thread of a block writes to scratch memory and another reads needs a barrier of the whole
block in between, and so does what is overwritten after it was read. `disorder` follows every way
through a kernel and says where there is none. It trusts the text alone, not the compiler that had
`tl.debug_barrier` for a hint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_STORED, _LOADED = 1, 2  # since the last barrier, on some way to an instruction
_BARRIER = re.compile(r"(bar|barrier)(\.cta)?\.sync(\.aligned)?\s+(0|0x0)$")
_ENDS = ("ret", "exit", "trap")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a kernel: the line it is on, from 1, and its text without a predicate."""

    line: int
    text: str
    predicated: bool

    @property
    def operation(self) -> str:
        """The name with its modifiers: "ld.global.v4.b32"."""
        return self.text.split(maxsplit=1)[0]

    @property
    def family(self) -> str:
        """The name alone: "ld"."""
        return self.operation.partition(".")[0]

    @property
    def is_barrier(self) -> bool:
        """Whether all threads of the block wait here for each other."""
        return not self.predicated and _BARRIER.match(self.text) is not None


def disorder(ptx: str, parameter: int) -> list[str]:
    """Accesses to the memory of a parameter that no barrier keeps from those before them.

    Args:
        ptx: of one kernel.
        parameter: which of the kernel's parameters points to the memory, from 0. Every address
            computed from it counts as one of the same memory.

    Returns:
        A sentence for each load that may follow a store, and each store that may follow a load,
        without a barrier between; for a load that may be served by a cache of constant data; for
        what cannot be followed. A kernel that never stores, or never loads, has a sentence too:
        there is nothing to be in order, so something else was meant.
    """
    code, labels = _instructions(ptx)
    kinds = _accesses(code, _addresses(code, parameter))
    problems = [
        f"line {code[place].line}: {code[place].text}: loads from a cache of constant data"
        for place, kind in kinds.items()
        if kind == _LOADED and ".nc" in code[place].operation
    ]
    problems += [
        f"line {each.line}: {each.text}: where this leads is not in the text"
        for each in code
        if each.family in ("brx", "call")
    ]
    for kind, name in ((_STORED, "stored to"), (_LOADED, "loaded from")):
        if not any(found & kind for found in kinds.values()):
            problems.append(f"parameter {parameter} is never {name}")
    before = _before(code, labels, kinds)
    for place, kind in kinds.items():
        if kind & _LOADED and before[place] & _STORED:
            problems.append(_sentence(code[place], "loads what was stored"))
        if kind & _STORED and before[place] & _LOADED:
            problems.append(_sentence(code[place], "overwrites what was loaded"))
    return problems


def _sentence(instruction: Instruction, deed: str) -> str:
    return f"line {instruction.line}: {instruction.text}: {deed} with no barrier between"


def _instructions(ptx: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions in order, and each label's place: that of the instruction behind it.

    A label without a dollar sign is written in inline assembly, and known in its own braces only:
    it gets their number, here and where a branch goes to it.
    """
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    scopes, opened = [0], 0
    for number, line in enumerate(ptx.splitlines(), start=1):
        text = line.partition("//")[0].strip()
        depth = text.count("{") - text.count("}")
        if depth > 0:
            opened += 1
            scopes.append(opened)
        if label := re.match(r"(\$?\w+):$", text):
            labels[_in_scope(label[1], scopes[-1])] = len(code)
            continue
        for part in text.split(";")[:-1]:
            found = re.match(r"[{\s]*(@!?%?\w+\s+)?([a-z][^@]*)$", part)
            if found is None:
                continue
            words = " ".join(found[2].split())
            if re.match(r"bra[. ]", words):
                operation, target = words.rsplit(maxsplit=1)
                words = f"{operation} {_in_scope(target, scopes[-1])}"
            code.append(Instruction(number, words, found[1] is not None))
        if depth < 0 and len(scopes) > 1:
            scopes.pop()
    return code, labels


def _in_scope(label: str, scope: int) -> str:
    return label if label.startswith("$") else f"{label} of block {scope}"


def _addresses(code: Sequence[Instruction], parameter: int) -> set[str]:
    """The registers that may hold an address computed from the parameter, or a half of one."""
    known: set[str] = set()
    readers: dict[str, list[str]] = {}
    for each in code:
        targets, sources = _operands(each)
        if each.family == "ld":
            if re.search(rf"_param_{parameter}\]$", each.text):
                known.update(targets)
        elif each.family not in ("atom", "setp"):
            for source in sources:
                readers.setdefault(source, []).extend(targets)
    waiting = list(known)
    while waiting:
        for target in readers.get(waiting.pop(), ()):
            if target not in known:
                known.add(target)
                waiting.append(target)
    return known


def _operands(instruction: Instruction) -> tuple[list[str], list[str]]:
    """The registers that it writes, which may be several in braces, and those that it reads."""
    operands = instruction.text.partition(" ")[2]
    if operands.startswith("["):  # it writes memory: that an address is read there says nothing
        return [], re.findall(r"%\w+", operands)
    first = re.match(r"\{[^}]*\}|[^,]*", operands)
    end = first.end() if first else 0
    return re.findall(r"%\w+", operands[:end]), re.findall(r"%\w+", operands[end:])


def _accesses(code: Sequence[Instruction], addresses: set[str]) -> dict[int, int]:
    """What each instruction that meets those addresses does, by its place."""
    kinds = {}
    for place, each in enumerate(code):
        inside = re.findall(r"\[([^\]]*)\]", each.text)
        if addresses.isdisjoint(re.findall(r"%\w+", " ".join(inside))):
            continue
        if each.family in ("ld", "cp"):
            kinds[place] = _LOADED
        elif each.family == "st":
            kinds[place] = _STORED
        else:
            kinds[place] = _STORED | _LOADED
    return kinds


def _before(
    code: Sequence[Instruction], labels: dict[str, int], kinds: dict[int, int]
) -> list[int]:
    """What may have been done since the last barrier when an instruction begins."""
    state: list[int] = [0] * len(code)
    seen = [False] * len(code)
    waiting = [0] if code else []
    if code:
        seen[0] = True
    while waiting:
        place = waiting.pop()
        after = 0 if code[place].is_barrier else state[place] | kinds.get(place, 0)
        for successor in _successors(code, labels, place):
            if not seen[successor] or after & ~state[successor]:
                seen[successor] = True
                state[successor] |= after
                waiting.append(successor)
    return state


def _successors(code: Sequence[Instruction], labels: dict[str, int], place: int) -> Iterator[int]:
    """Where control may be after an instruction."""
    each = code[place]
    goes_on = each.predicated or each.family not in ("bra", *_ENDS)
    if each.family == "bra":
        yield labels[each.text.split(maxsplit=1)[1]]
    if goes_on and place + 1 < len(code):
        yield place + 1
