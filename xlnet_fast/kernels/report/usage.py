"""Reading what assemblers say of kernels: registers, spills, shared memory, mangled names."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence

from xlnet_fast.errors import ArgumentError


def parse_ptxas(said: str) -> dict[str, dict[str, int]]:
    """What `ptxas -v` says of each kernel, by mangled name: registers and bytes, as in a `Row`.

    Spills of a function that was not inlined count for the kernel that they are told with.
    """
    usage: dict[str, dict[str, int]] = {}
    blocks = re.split(r"Compiling entry function '([^']+)' for '[^']+'", said)[1:]
    for name, text in zip(blocks[::2], blocks[1::2], strict=True):
        stacks = re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text
        )
        registers = re.search(r"Used (\d+) registers", text)
        if registers is None or not stacks:
            raise ArgumentError(f"ptxas says nothing of the registers of {name}: {text.strip()}")
        shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", text)
        usage[name] = {
            "registers": int(registers[1]),
            "stack_bytes": sum(int(stack) for stack, _, _ in stacks),
            "spill_bytes": sum(int(stored) + int(loaded) for _, stored, loaded in stacks),
            "shared_bytes": int(shared[1]) if shared else 0,
        }
    return usage


def parse_cuobjdump(said: str) -> tuple[int, int]:
    """(registers, bytes of local memory) of a thread, of what `cuobjdump -res-usage` says."""
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    if found is None:
        raise ArgumentError(f"cuobjdump says nothing of registers: {said}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def demangle(names: Sequence[str]) -> dict[str, str]:
    """Mangled -> C++ name, by the c++filt that comes with the linker; without it they stay."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    done = subprocess.run([tool, *names], capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.splitlines(), strict=True))


def short_name(name: str) -> str:
    """A kernel's name without return type, parameters and namespaces."""
    if name.endswith(")"):
        depth, at = 0, len(name)
        while at > 0:
            at -= 1
            depth += {")": 1, "(": -1}.get(name[at], 0)
            if depth == 0:
                break
        name = name[:at]
    name = re.sub(r"(?:\w+|\(anonymous namespace\))::", "", name.removeprefix("void "))
    name = re.sub(r"\((?:bool|char|short|int|long|unsigned(?: \w+)?)\)", "", name)
    return re.sub(r"\b(\d+)[ul]+\b", r"\1", name)
