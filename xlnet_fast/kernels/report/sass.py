"""Reading machine code of NVIDIA GPUs, as `nvdisasm` prints it: functions, loops, instructions."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xlnet_fast.errors import ArgumentError, BackendUnavailable

LOCAL = ("LDL", "STL")
"""Loads and stores of local memory, which is where registers are spilled to."""


@dataclass
class Function:
    """The code of one function, and what the file says of it."""

    instructions: list[str] = field(default_factory=list)  # "@!P0 BRA `(.L_x_1)"
    labels: dict[str, int] = field(default_factory=dict)  # to the instruction that follows
    max_threads: int | None = None  # of a block, by the launch bounds


def functions(assembly: str) -> dict[str, Function]:
    """The functions of a disassembled cubin by mangled name; code before any name has ""."""
    found: dict[str, Function] = {"": Function()}
    code = found[""]
    for line in assembly.splitlines():
        if name := re.match(r"\.text\.(\S+):", line):
            code = found.setdefault(name[1], Function())
        elif label := re.match(r"\.(L_x_\d+):", line.strip()):
            code.labels[label[1]] = len(code.instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+([^.\s].*?);", line):
            code.instructions.append(instruction[1].strip())
    for name_of_info, text in re.findall(
        r"^\t\.section\t\.nv\.info\.([^,\s]+),(.*?)(?=^\t\.section\t|\Z)", assembly, re.M | re.S
    ):
        found.setdefault(name_of_info, Function()).max_threads = _max_threads(text)
    return {name: code for name, code in found.items() if name or code.instructions}


def _max_threads(info: str) -> int | None:
    """Threads of a block from a kernel's attributes, three words: x, y, z."""
    _, found, rest = info.partition("EIATTR_MAX_THREADS")
    if not found:
        return None
    x, y, z = (int(word, 16) for word in re.findall(r"\.word\s+(0x[0-9a-f]+)", rest)[:3])
    return x * y * z


def loops(code: Function) -> list[tuple[int, int]]:
    """The loops as (first, last) instruction.

    A loop is what a backward branch spans, the farthest one where several go to the same place.
    One instruction alone is no loop but the trap that every function ends with. What lies behind
    the last EXIT is code moved out of the way, such as for shuffles whose lanes have parted: its
    branches lead back to where it was called from and close no loop.
    """
    spans: dict[int, int] = {}
    exits = [place for place, text in enumerate(code.instructions) if opcode(text) == "EXIT"]
    for end, text in enumerate(code.instructions[: exits[-1]] if exits else code.instructions):
        target = re.search(r"BRA.*`\(\.(L_x_\d+)\)", text)
        begin = code.labels.get(target[1], end) if target else end
        if begin < end:
            spans[begin] = end
    return list(spans.items())


def in_innermost_loops(code: Function, around: str | None = None) -> list[str]:
    """The instructions of all loops that hold no other.

    Args:
        around: an operation; only the loops that have it count then, and those inside which do not
            are part of them.
    """
    found = [
        (begin, end)
        for begin, end in loops(code)
        if around is None or around in map(opcode, code.instructions[begin : end + 1])
    ]
    innermost = [
        (begin, end)
        for begin, end in found
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in found)
    ]
    places = sorted({place for begin, end in innermost for place in range(begin, end + 1)})
    return [code.instructions[place] for place in places]


def opcode(instruction: str) -> str:
    """The operation without predicate and modifiers: "HMMA" of "@P0 HMMA.16816.F32 R4, ..."."""
    words = instruction.split()
    words = words[1:] if words[0].startswith("@") else words
    return words[0].partition(".")[0]


def count(instructions: Iterable[str], names: Sequence[str]) -> dict[str, int]:
    """How many instructions have each of the names, and "all" but those that do nothing."""
    found = [opcode(text) for text in instructions]
    counts = {name: found.count(name) for name in names}
    return counts | {"all": len(found) - found.count("NOP")}


def loop_spills(code: Function) -> int:
    """Loads and stores of local memory in the innermost loops.

    Tiles and stretches of keys are outer loops: what they keep in local memory is read once per
    hundreds of keys.
    """
    return local_accesses(in_innermost_loops(code))


def local_accesses(instructions: Iterable[str]) -> int:
    """How many instructions load or store local memory."""
    return sum(opcode(text) in LOCAL for text in instructions)


def disassemble(tool: str, cubin: Path, compiler: str) -> dict[str, Function]:
    """The functions of a compiled file by `nvdisasm`; ArgumentError where that cannot read it."""
    done = subprocess.run([tool, str(cubin)], capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise ArgumentError(f"{tool} cannot read what {compiler} made: {done.stderr.strip()}")
    return functions(done.stdout)


def nvdisasm() -> str:
    """The disassembler: that on the path, which a toolkit may bring, else the one inside Triton.

    Raises:
        BackendUnavailable: there is none.
    """
    if (path := shutil.which("nvdisasm")) is not None:
        return path
    triton = importlib.util.find_spec("triton")  # found, not imported: that takes seconds
    for folder in (triton.submodule_search_locations or []) if triton else []:
        tool = Path(folder) / "backends" / "nvidia" / "bin" / "nvdisasm"
        if tool.is_file():
            return str(tool)
    raise BackendUnavailable(
        "nvdisasm is neither on the path nor inside Triton; `pip install triton` brings one"
    )
