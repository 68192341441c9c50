"""nvcc: when it is wanted, where it is, the chips it compiles for, and its command lines.

`setup.py` executes this file by its path, as it does `recipe.py`: nothing but the standard library,
and no name of the package. Whether there is anything to compile, `recipe.cuda_sources` knows.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

DEFAULT_ARCHS = ("80", "90a")
OLDEST = 80  # of mma.sync with bfloat16 and of cp.async
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-Xcompiler", "-fPIC,-fvisibility=hidden")
RUNTIME = "libcudart_static.a"
DRIVER = "libcuda.so.1"
LINES_SHOWN = 15
_ASK_TIMEOUT_S = 60.0


class LeftOut(Exception):
    """Why the CUDA kernels are not compiled, in one sentence."""


class Unwanted(LeftOut):
    """`XLNET_FAST_NO_CUDA` asks for that."""


class NoGpu(LeftOut):
    """Nobody asks for them, and there is no GPU to run them."""


class Missing(LeftOut):
    """There is no nvcc, or none for this system."""


class Broken(LeftOut):
    """There is an nvcc, and it cannot be used."""


class Nvcc(NamedTuple):
    """An nvcc that answers, and what is asked of it."""

    command: tuple[str, ...]
    version: str  # "13.0.88"
    archs: tuple[str, ...]  # "80", "90a"
    runtime: Path  # the static CUDA runtime library of its toolkit


def find_wanted() -> Nvcc:
    """What :func:`find` gives, where the extension shall have CUDA kernels.

    That is where PyTorch sees a GPU, or `XLNET_FAST_CUDA=1` or `XLNET_FAST_CUDA_ARCHS` asks for
    them: they take minutes, and a machine without a GPU cannot run them.

    Raises:
        ValueError: as :func:`find`; or `XLNET_FAST_NO_CUDA` is set beside `XLNET_FAST_CUDA`.
        LeftOut: one of its kinds.
    """
    refused, asked = _is_set("XLNET_FAST_NO_CUDA"), _is_set("XLNET_FAST_CUDA")
    if refused and asked:
        raise ValueError("XLNET_FAST_CUDA and XLNET_FAST_NO_CUDA are both set: unset one")
    names_archs = bool(os.environ.get("XLNET_FAST_CUDA_ARCHS", "").strip())
    if not (refused or asked or names_archs or sees_gpu()):
        raise NoGpu("no GPU is seen; XLNET_FAST_CUDA=1 compiles them all the same")
    return find()


def sees_gpu() -> bool:
    """Whether PyTorch would see a GPU here.

    It is not asked, since importing it takes seconds: its file says whether it was built for CUDA,
    and the driver how many GPUs this process may use. Where there is no PyTorch, as in pip's
    isolated builds, the driver alone decides.
    """
    return _torch_is_for_cuda() and _gpus() > 0


def find() -> Nvcc:
    """The nvcc to compile with: `CUDACXX`, else that on the path, else that of `CUDA_HOME`.

    Raises:
        ValueError: `XLNET_FAST_CUDA_ARCHS` names what is no architecture, or one that this nvcc
            does not know.
        LeftOut: one of its kinds, where there is none to compile with.
    """
    if _is_set("XLNET_FAST_NO_CUDA"):
        raise Unwanted("XLNET_FAST_NO_CUDA is set")
    asked = parse_archs(os.environ.get("XLNET_FAST_CUDA_ARCHS", ""))
    if not sys.platform.startswith("linux"):
        raise Missing(f"they are compiled on Linux only, and this is {sys.platform}")
    command = _command()
    said = _ask(command, "--version")
    version = re.search(r"\bV(\d+(?:\.\d+)+)", said) or re.search(r"release (\d+\.\d+)", said)
    if version is None:
        raise Broken(f"`{shlex.join(command)} --version` does not tell a version")
    archs = _choose(asked, known_archs(command), version[1])
    return Nvcc(command, version[1], archs, _runtime(command))


def known_archs(command: tuple[str, ...]) -> set[str]:
    """The architectures that an nvcc knows, without suffixes."""
    return set(re.findall(r"compute_(\d+)", _ask(command, "--list-gpu-arch")))


def parse_archs(text: str) -> tuple[str, ...]:
    """The architectures of `XLNET_FAST_CUDA_ARCHS`, "80 90a" or "80;90a"; none for an empty text.

    Raises:
        ValueError: a word that is no architecture, or an architecture older than `OLDEST`.
    """
    words = [word for word in re.split(r"[\s;,]+", text) if word]
    for word in words:
        number = re.fullmatch(r"(\d{2,3})[af]?", word)
        if number is None:
            raise ValueError(
                f"XLNET_FAST_CUDA_ARCHS has {word!r}, which is no architecture; give compute "
                f'capabilities without the dot, such as "80 90a"'
            )
        if int(number[1]) < OLDEST:
            raise ValueError(
                f"XLNET_FAST_CUDA_ARCHS has {word!r}, but the CUDA kernels need compute "
                f"capability 8.0 or newer, such as {OLDEST}"
            )
    return tuple(dict.fromkeys(words))


def gencode(archs: Sequence[str]) -> list[str]:
    """Machine code for each architecture, and PTX of the newest that has no suffix.

    A driver compiles the PTX for newer chips; code for "90a" is for no other chip than that.
    """
    plain = [arch for arch in archs if arch.isdigit()]
    newest = max(plain, key=int) if plain else None
    flags = []
    for arch in archs:
        code = f"[sm_{arch},compute_{arch}]" if arch == newest else f"sm_{arch}"
        flags.append(f"-gencode=arch=compute_{arch},code={code}")
    return flags


def compile_command(nvcc: Nvcc, source: Path, target: Path) -> tuple[str, ...]:
    """One source into one object."""
    return (
        *nvcc.command, *FLAGS, *gencode(nvcc.archs), "-c", str(source), "-o", str(target),
    )  # fmt: skip


def link_flags(nvcc: Nvcc) -> list[str]:
    """The CUDA runtime, for the C++ linker, after the objects.

    It is linked statically, and its names are not exported: torch brings a runtime of its own,
    perhaps of another version.
    """
    return [str(nvcc.runtime), f"-Wl,--exclude-libs,{RUNTIME}", "-ldl", "-lrt", "-lpthread"]


def last_lines(said: str) -> str:
    """The end of what a compiler said, indented, each line after a line break."""
    lines = said.rstrip().splitlines()[-LINES_SHOWN:]
    return "".join(f"\n    {line}" for line in lines)


def _is_set(variable: str) -> bool:
    """As `recipe.is_set`."""
    return os.environ.get(variable, "0") not in ("", "0")


def _torch_is_for_cuda() -> bool:
    """Whether the PyTorch here was built for CUDA; true where there is none to ask."""
    torch = importlib.util.find_spec("torch")  # found, not imported
    for folder in (torch.submodule_search_locations or []) if torch else []:
        if (version := Path(folder, "version.py")).is_file():
            text = version.read_text(encoding="utf-8")
            return re.search(r"^cuda\b[^=]*= *['\"]", text, flags=re.MULTILINE) is not None
    return True


def _gpus() -> int:
    """How many GPUs NVIDIA's driver gives this process; 0 without a driver."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL(DRIVER)
        failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):
        return 0
    return 0 if failed else count.value


def _command() -> tuple[str, ...]:
    asked = tuple(shlex.split(os.environ.get("CUDACXX", "")))
    if asked:
        if shutil.which(asked[0]) is None:
            raise Broken(f"CUDACXX names {asked[0]!r}, which is not there")
        return asked
    folders = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for name in ["nvcc", *(str(Path(folder) / "bin" / "nvcc") for folder in folders)]:
        if (path := shutil.which(name)) is not None:
            return (path,)
    raise Missing("there is no nvcc on the path, nor in CUDA_HOME or CUDA_PATH")


def _ask(command: tuple[str, ...], *question: str) -> str:
    """What nvcc answers, on both streams."""
    asked = shlex.join((*command, *question))
    try:
        done = subprocess.run(
            [*command, *question],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_ASK_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Broken(f"`{asked}` cannot be run ({error})") from error
    if done.returncode != 0:
        raise Broken(f"`{asked}` fails with exit code {done.returncode}{last_lines(done.stdout)}")
    return done.stdout


def _choose(asked: tuple[str, ...], known: set[str], version: str) -> tuple[str, ...]:
    """The architectures asked for, all of them known; else those of the default that are."""
    strangers = [arch for arch in asked if arch.rstrip("af") not in known]
    if strangers:
        raise ValueError(
            f"XLNET_FAST_CUDA_ARCHS has {strangers[0]!r}, which nvcc {version} does not know; it "
            f"knows {', '.join(sorted(known, key=int))}"
        )
    archs = asked or tuple(arch for arch in DEFAULT_ARCHS if arch.rstrip("af") in known)
    if not archs:
        raise Broken(f"nvcc {version} knows none of the architectures {', '.join(DEFAULT_ARCHS)}")
    return archs


def _runtime(command: tuple[str, ...]) -> Path:
    """The static runtime that this nvcc would link with.

    What is on the path may be a wrapper or a link into another folder. A dry run prints the folders
    of the toolkit and compiles nothing.
    """
    said = _ask(command, "--dryrun", "-x", "cu", "-c", os.devnull)
    values = dict(re.findall(r"^#\$ (LIBRARIES|TOP)=(.*)$", said, flags=re.MULTILINE))
    words = shlex.split(values.get("LIBRARIES", ""))
    folders = [os.path.normpath(word[2:]) for word in words if word.startswith("-L")]
    if top := values.get("TOP", "").strip():
        folders += [os.path.normpath(f"{top}/{name}") for name in ("lib64", "lib")]
    for folder in folders:
        if (path := Path(folder, RUNTIME)).is_file():
            return path
    raise Broken(
        f"{RUNTIME}, which comes with the CUDA toolkit of {shlex.join(command)}, is not in "
        f"{', '.join(folders) or 'any folder it names'}"
    )
