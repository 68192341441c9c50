"""What the C++ extension is made of (sources, flags, headers), and where a built one lies.

`setup.py` executes this file by its path, when neither the package nor torch can be imported; the
package imports it. So it knows nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
BINDINGS = "bindings.cpp"  # the only source that `XLNET_FAST_CUDA` changes
MSVC_FLAGS = ("/std:c++17", "/O2", "/EHsc")
UNIX_FLAGS = (
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    # Nobody reads errno or the floating-point traps, and without them more loops vectorise.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
)


def is_set(variable: str) -> bool:
    """Whether an environment variable is given and neither empty nor 0."""
    return os.environ.get(variable, "0") not in ("", "0")


def version() -> str:
    """The package's version, read without importing the package."""
    namespace: dict[str, str] = {}
    exec((PACKAGE / "_version.py").read_text(encoding="utf-8"), namespace)
    return namespace["__version__"]


def is_checkout() -> bool:
    """Whether the package lies in its repository and not among installed packages."""
    return all((PACKAGE.parent / name).exists() for name in ("setup.py", "csrc"))


def csrc() -> Path:
    """The folder of the C++ sources: beside the package in a checkout, inside it once installed."""
    return (PACKAGE.parent if is_checkout() else PACKAGE) / "csrc"


def sources() -> list[Path]:
    """What is compiled, each file into an object of its own; empty where there are no sources."""
    folder = csrc()
    return sorted([*folder.glob(BINDINGS), *folder.glob("cpu/*.cpp")])


def cuda_sources() -> list[Path]:
    """What nvcc compiles, where there is one; empty where there are no such sources."""
    return _cuda_files("*.cu")


def _cuda_files(pattern: str) -> list[Path]:
    """Files below `csrc/cuda`; the emulation of a GPU is for tests, not of the extension."""
    folder = csrc() / "cuda"
    return sorted({*folder.rglob(pattern)} - {*(folder / "emulation").rglob(pattern)})


def headers() -> list[Path]:
    """What the sources include of our own: a change in one makes every object stale."""
    own = [*csrc().glob("*.h"), *csrc().glob("cpu/**/*.h")]
    return sorted([*own, *_cuda_files("*.h"), *_cuda_files("*.cuh")])


def inputs() -> list[Path]:
    """Every file that decides what the extension does, be nvcc there or not."""
    here = Path(__file__).resolve()
    own = [PACKAGE / "_version.py", here, here.with_name("nvcc.py")]
    return [*sources(), *cuda_sources(), *headers(), *own]


def compile_flags(msvc: bool = False) -> list[str]:
    """The flags added to Python's own; `XLNET_FAST_CXXFLAGS` comes last, so it wins."""
    added = shlex.split(os.environ.get("XLNET_FAST_CXXFLAGS", ""))
    return [*(MSVC_FLAGS if msvc else UNIX_FLAGS), *added]


def link_flags(msvc: bool = False) -> list[str]:
    """Libraries to link with: threads, and dlsym, which is apart from libc before glibc 2.34."""
    if msvc:
        return []
    return ["-pthread", "-ldl"] if sys.platform.startswith("linux") else ["-pthread"]


def macros(
    flags: list[str], cuda_archs: Sequence[str] = (), cuda_compiler: str = ""
) -> list[tuple[str, str]]:
    """What `csrc/build_info.h` and the bindings read, as C string literals.

    `XLNET_FAST_CUDA`, their architectures, is there only where the CUDA kernels are. Plain words
    turned into strings by the preprocessor would be expanded before: `-fno-math-errno` has `errno`
    in it.
    """
    texts = {"XLNET_FAST_VERSION": version(), "XLNET_FAST_FLAGS": " ".join(flags)}
    if cuda_archs:
        texts["XLNET_FAST_CUDA"] = " ".join(cuda_archs)
        texts["XLNET_FAST_CUDA_COMPILER"] = cuda_compiler
    escaped = {name: text.replace("\\", "\\\\").replace('"', '\\"') for name, text in texts.items()}
    return [(name, f'"{text}"') for name, text in escaped.items()]


def pybind11_include() -> str | None:
    """The folder with pybind11's headers: its own package's, or else the copy inside torch."""
    if importlib.util.find_spec("pybind11") is not None:
        import pybind11

        return str(pybind11.get_include())
    torch = importlib.util.find_spec("torch")  # found, not imported: that takes seconds
    for folder in (torch.submodule_search_locations or []) if torch else []:
        include = Path(folder) / "include"
        if (include / "pybind11" / "pybind11.h").is_file():
            return str(include)
    return None


def jobs() -> int:
    """How many compilers run side by side: one per core, at least 2 and at most 16."""
    return max(2, min(16, os.cpu_count() or 2))


def extension_name() -> str:
    """The file name that this interpreter imports as `xlnet_fast._C`."""
    return f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def digest() -> str:
    """A hash of every input, names included, as 16 hexadecimal digits."""
    total = hashlib.sha256()
    for path in inputs():
        content = path.read_bytes()
        total.update(f"{path.name} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()[:16]


def cache_root() -> Path | None:
    """The user's folder for built extensions; None where the user has no home.

    `XLNET_FAST_CACHE` names it; else it is `xlnet_fast` in the platform's cache folder, which on
    Linux is `XDG_CACHE_HOME` or `~/.cache`.
    """
    own = os.environ.get("XLNET_FAST_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():  # the standard says that a relative one is to be ignored
        return xdg / "xlnet_fast"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else home / "AppData" / "Local") / "xlnet_fast" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "xlnet_fast"
    return home / ".cache" / "xlnet_fast"


def cached_extension() -> Path | None:
    """Where an extension of these very sources for this interpreter would lie in the cache.

    The folder's name holds version, Python ABI, platform and `digest`, so another version's or
    another source's extension is never found. None without a home or without sources.
    """
    root = cache_root()
    if root is None or not sources():
        return None
    abi = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag
    key = f"{version()}-{abi}-{sysconfig.get_platform()}-{digest()}"
    return root / key / extension_name()
