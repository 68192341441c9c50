"""C++ that tests compile for themselves: objects and modules under the hash of what makes them.

So a changed file compiles itself and what includes it, and two test processes share one build.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from xlnet_fast.builder import compiler, lock
from xlnet_fast.errors import BuildError

ROOT = Path(__file__).resolve().parents[1]
JOBS = 2
TIMEOUT_S = 1200.0
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def built(
    name: str,
    cache: Path,
    objects: Mapping[Path, Path],
    compile_one: Callable[[Path, Path], None],
    link: Sequence[str],
    libraries: Sequence[str] = (),
) -> ModuleType:
    """Compile what is missing, link it and load it.

    Args:
        name: of the module, what PYBIND11_MODULE is called in one of the sources.
        cache: the folder that the objects lie in.
        objects: object -> its source.
        compile_one: makes an object of a source.
        link: the command that links objects, without them and the output.
        libraries: what follows the objects in it.

    Raises:
        BuildError: the compiler's first words.
    """
    digest = digest_of_texts(name, *link, *libraries, *(path.name for path in sorted(objects)))
    module = cache / digest / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    # Everything is written beside its place and moved there, so a process may read without lock.
    if not module.exists():
        cache.mkdir(parents=True, exist_ok=True)
        deadline_s = time.monotonic() + TIMEOUT_S
        with lock.held(cache / "lock", deadline_s, on_wait=lambda: None):
            missing = [(path, objects[path]) for path in objects if not path.exists()]
            with ThreadPoolExecutor(JOBS) as pool:
                list(pool.map(lambda pair: compile_one(*pair), missing))
            module.parent.mkdir(exist_ok=True)
            make(module, [*link, *map(str, objects), *libraries])
    return load(name, module)


def make(target: Path, command: Sequence[str]) -> None:
    """Run a command that writes a file, given as its -o, which is there whole or not at all."""
    partial = target.with_name(f"{os.getpid()}-{target.name}")
    done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[:40])
        raise BuildError(f"{' '.join(command)}\n{said}")
    partial.replace(target)


def load(name: str, path: Path) -> ModuleType:
    """The module of a file."""
    # pybind11 makes one module of one name, whatever its file: a changed copy needs its own.
    full = f"{path.parent.name}.{name}"
    loader = importlib.machinery.ExtensionFileLoader(full, str(path))
    spec = importlib.util.spec_from_file_location(full, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@functools.cache
def compiler_command() -> tuple[str, ...]:
    """The C++ compiler; BuildError where there is none."""
    return tuple(compiler.find_compiler())


@functools.cache
def compiler_version() -> str:
    """What it says of itself."""
    done = subprocess.run(
        [*compiler_command(), "--version"], capture_output=True, text=True, check=True
    )
    return done.stdout


def digest_of(source: Path, said: Iterable[str], root: Path) -> str:
    """A hash of a source with every header of ours that it reaches, and of what else decides.

    Headers lie beside what includes them, or below `root`.
    """
    return digest_of_texts(*said, *(_text(path) for path in sorted(reached(source, root))))


def _text(path: Path) -> str:
    return _text_and_includes(path, path.stat().st_mtime_ns)[0]


@functools.lru_cache(maxsize=512)
def _text_and_includes(path: Path, mtime_ns: int) -> tuple[str, list[str]]:
    """A file as it was then: the sources of one build have most of their headers in common."""
    text = path.read_text(encoding="utf-8")
    return text, _INCLUDE.findall(text)


def reached(source: Path, root: Path) -> set[Path]:
    """The source and every header of ours that it includes, directly or not."""
    found: set[Path] = set()
    waiting = [source.resolve()]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in _text_and_includes(path, path.stat().st_mtime_ns)[1]:
            near = [folder / name for folder in (path.parent, root) if (folder / name).is_file()]
            waiting += [file.resolve() for file in near[:1]]
    return found


def digest_of_texts(*texts: str) -> str:
    """A hash that says apart what was said in another place."""
    total = hashlib.sha256()
    for text in texts:
        total.update(f"{len(text)}\n{text}".encode())
    return total.hexdigest()[:16]
