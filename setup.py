"""Build script: the metadata is in pyproject.toml, this file adds the optional compiled extension.

`pip install .` never fails for want of a compiler: what cannot be built is left out, and one line
says so.

    XLNET_FAST_REQUIRE_EXT=1  a missing or failing compiler is an error
    XLNET_FAST_NO_EXT=1       the extension is not built at all
"""

import importlib.util
import os
import shlex
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, SetupError

ROOT = Path(__file__).resolve().parent
SOURCES = ["csrc/bindings.cpp", "csrc/cpu/philox.cpp"]
HEADERS = [
    "csrc/build_info.h",
    "csrc/params.h",
    "csrc/cpu/philox.h",
    "csrc/cpu/philox_core.h",
    "csrc/cpu/philox_x86.h",
]
MSVC_FLAGS = ["/std:c++17", "/O2", "/EHsc"]
UNIX_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"]


def wanted(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def version() -> str:
    namespace: dict[str, str] = {}
    exec((ROOT / "xlnet_fast" / "_version.py").read_text(encoding="utf-8"), namespace)
    return namespace["__version__"]


def pybind11_include() -> "str | None":
    """The folder holding pybind11's headers: its own package, or else the copy inside torch."""
    if importlib.util.find_spec("pybind11") is not None:
        import pybind11

        return pybind11.get_include()
    torch = importlib.util.find_spec("torch")  # found, not imported: that takes seconds
    for folder in (torch.submodule_search_locations or []) if torch else []:
        include = Path(folder) / "include"
        if (include / "pybind11" / "pybind11.h").is_file():
            return str(include)
    return None


def leave_out(reason: str) -> None:
    """Say in one line that there will be no extension, or stop where one is required."""
    line = f"xlnet_fast: the C++ extension is left out ({reason}); pure PyTorch is used instead"
    if wanted("XLNET_FAST_REQUIRE_EXT"):
        raise SetupError(
            f"XLNET_FAST_REQUIRE_EXT is set, but the extension cannot be built: {reason}"
        )
    print(line, file=sys.stderr, flush=True)


class OptionalBuildExt(build_ext):
    """Builds the extension with flags for the compiler found; a failure is told, not raised."""

    def build_extension(self, ext: Extension) -> None:
        msvc = self.compiler.compiler_type == "msvc"
        flags = MSVC_FLAGS if msvc else UNIX_FLAGS
        ext.extra_compile_args = [*flags, *shlex.split(os.environ.get("XLNET_FAST_CXXFLAGS", ""))]
        ext.extra_link_args = [] if msvc else ["-pthread"]
        ext.define_macros = [
            ("XLNET_FAST_VERSION", version()),
            ("XLNET_FAST_FLAGS", " ".join(ext.extra_compile_args)),
        ]
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError, OSError) as error:
            leave_out(f"{type(error).__name__}: {str(error).strip()}")
            # What an earlier build left there must not be packed as this one's.
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            self.extensions = [other for other in self.extensions if other is not ext]

    def get_outputs(self) -> "list[str]":
        """Only what was really built: a left-out extension must not be looked for in the wheel."""
        return [path for path in super().get_outputs() if Path(path).exists()]


def extensions() -> "list[Extension]":
    if wanted("XLNET_FAST_NO_EXT"):
        leave_out("XLNET_FAST_NO_EXT is set")
        return []
    include = pybind11_include()
    if include is None:
        leave_out("neither pybind11 nor torch, which ships its headers, is installed")
        return []
    return [
        Extension(
            "xlnet_fast._C",
            SOURCES,
            include_dirs=[include],
            depends=[*HEADERS, "setup.py", "xlnet_fast/_version.py"],
            language="c++",
        )
    ]


def packages() -> "dict[str, str]":
    """Package name -> folder; the top-level folder benchmarks/ becomes xlnet_fast.benchmarks."""
    found = find_packages(
        str(ROOT), include=["xlnet_fast", "xlnet_fast.*", "benchmarks", "benchmarks.*"]
    )
    folders = {}
    for name in found:
        installed = f"xlnet_fast.{name}" if name.split(".")[0] == "benchmarks" else name
        folders[installed] = name.replace(".", "/")
    return folders


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": OptionalBuildExt},
    packages=list(packages()),
    package_dir=packages(),
    package_data={
        "xlnet_fast": ["py.typed"],
        "xlnet_fast.benchmarks": ["results/**/*"],
    },
)
