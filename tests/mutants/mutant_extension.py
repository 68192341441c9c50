"""Builds the C++ extension of a changed tree, compiling only what a fault reaches.

Objects lie in one folder under the hash of what goes into them (source, the headers it includes,
the compiler's words), so nothing is compiled twice. The CUDA kernels are left out.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def build(cache: Path, changed: Path | None = None, only: Sequence[str] = ()) -> None:
    """Put the extension of the tree that ``xlnet_fast`` is imported from in its place there.

    Args:
        cache: the folder of the objects.
        changed: the file with the fault; None for the tree as it is, which has to be built first.
        only: stems of the sources that are compiled with the fault; () means all that include it.

    Raises:
        RuntimeError: what the compiler said.
    """
    from xlnet_fast.builder import compiler, recipe

    cache.mkdir(parents=True, exist_ok=True)
    command = compiler.find_compiler()
    objects = []
    for source, step in zip(recipe.sources(), compiler.cpp_steps(command, cache), strict=True):
        files, words = _reached(source), step.command[: step.command.index("-o")]
        name = f"{source.stem}-{_digest(words, files)}.o"
        unchanged = cache / f"{source.stem}.unchanged"  # the name of its object without a fault
        if changed is None:
            unchanged.write_text(name)
        elif changed not in files or (only and source.stem not in only):
            name = unchanged.read_text()
        if not (cache / name).exists():
            _make(cache / name, [*words, "-c", str(source)])
        objects.append(str(cache / name))
    target = recipe.PACKAGE / recipe.extension_name()
    _make(target, [*command, "-shared", *objects, *recipe.link_flags()])


def _make(target: Path, words: Sequence[str]) -> None:
    partial = target.with_name(f"{os.getpid()}-{target.name}")
    done = subprocess.run([*words, "-o", str(partial)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError("\n".join(done.stderr.splitlines()[:20]))
    partial.replace(target)


def _reached(source: Path) -> set[Path]:
    """The source and every header of ours that it includes, directly or not."""
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        path = waiting.pop().resolve()
        if path not in found:
            found.add(path)
            near = (path.parent / name for name in _INCLUDE.findall(path.read_text()))
            waiting += [file for file in near if file.is_file()]
    return found


def _digest(words: Sequence[str], files: set[Path]) -> str:
    total = hashlib.sha256(" ".join(words).encode())
    for path in sorted(files):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:16]
