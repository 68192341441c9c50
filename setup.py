"""Build script: the metadata is in pyproject.toml, this file adds the optional compiled extension.

`pip install .` never fails for want of a compiler: what cannot be built is left out, and one line
says so.

    XLNET_FAST_REQUIRE_EXT=1  a missing or failing compiler is an error
    XLNET_FAST_NO_EXT=1       the extension is not built at all
"""

import importlib.util
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, SetupError

ROOT = Path(__file__).resolve().parent


def load_recipe() -> ModuleType:
    """Sources, flags and folders, which `xlnet-fast build` shares; the package is not imported."""
    path = ROOT / "xlnet_fast" / "builder" / "recipe.py"
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = load_recipe()


def from_root(paths: "list[Path]") -> "list[str]":
    """Paths as setuptools wants them: relative to this file, with slashes."""
    return [path.relative_to(ROOT).as_posix() for path in paths]


def leave_out(reason: str) -> None:
    """Say in one line that there will be no extension, or stop where one is required."""
    line = (
        f"xlnet_fast: the C++ extension is left out ({reason}); pure PyTorch is used instead, "
        f"until `xlnet-fast build` makes it"
    )
    if recipe.is_set("XLNET_FAST_REQUIRE_EXT"):
        raise SetupError(
            f"XLNET_FAST_REQUIRE_EXT is set, but the extension cannot be built: {reason}"
        )
    print(line, file=sys.stderr, flush=True)


def side_by_side(compile_all: Callable[..., "list[str]"]) -> Callable[..., "list[str]"]:
    """setuptools' `compile(sources, ...)`, each source by a compiler process of its own."""

    def compile(sources: "list[str]", *args: object, **kwargs: object) -> "list[str]":
        with ThreadPoolExecutor(recipe.jobs()) as pool:
            objects = pool.map(lambda source: compile_all([source], *args, **kwargs), sources)
            return [name for names in objects for name in names]

    return compile


class OptionalBuildExt(build_ext):
    """Builds the extension with flags for the compiler found; a failure is told, not raised."""

    def build_extension(self, ext: Extension) -> None:
        msvc = self.compiler.compiler_type == "msvc"
        ext.extra_compile_args = recipe.compile_flags(msvc)
        ext.extra_link_args = recipe.link_flags(msvc)
        ext.define_macros = recipe.macros(ext.extra_compile_args)
        if msvc and not self.compiler.initialized:
            self.compiler.initialize()  # before the threads, which would all do it
        compile_all = self.compiler.compile
        self.compiler.compile = side_by_side(compile_all)
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError, OSError) as error:
            leave_out(f"{type(error).__name__}: {str(error).strip()}")
            # What an earlier build left there must not be packed as this one's.
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            self.extensions = [other for other in self.extensions if other is not ext]
        finally:
            self.compiler.compile = compile_all

    def get_outputs(self) -> "list[str]":
        """Only what was really built: a left-out extension must not be looked for in the wheel."""
        return [path for path in super().get_outputs() if Path(path).exists()]


def extensions() -> "list[Extension]":
    if recipe.is_set("XLNET_FAST_NO_EXT"):
        leave_out("XLNET_FAST_NO_EXT is set")
        return []
    include = recipe.pybind11_include()
    if include is None:
        leave_out("neither pybind11 nor torch, which ships its headers, is installed")
        return []
    return [
        Extension(
            "xlnet_fast._C",
            from_root(recipe.sources()),
            include_dirs=[include],
            depends=[*from_root(recipe.inputs()), "setup.py"],
            language="c++",
        )
    ]


def packages() -> "dict[str, str]":
    """Package name -> folder; the top-level benchmarks/ and csrc/ become parts of xlnet_fast."""
    found = find_packages(
        str(ROOT), include=["xlnet_fast", "xlnet_fast.*", "benchmarks", "benchmarks.*"]
    )
    folders = {}
    for name in found:
        installed = f"xlnet_fast.{name}" if name.split(".")[0] == "benchmarks" else name
        folders[installed] = name.replace(".", "/")
    # As data: `xlnet-fast build` compiles them where the package was installed without a compiler.
    folders["xlnet_fast.csrc"] = "csrc"
    return folders


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": OptionalBuildExt},
    packages=list(packages()),
    package_dir=packages(),
    package_data={
        "xlnet_fast": ["py.typed"],
        "xlnet_fast.benchmarks": ["results/**/*"],
        "xlnet_fast.csrc": ["**/*.h", "**/*.cpp", "**/*.cu", "**/*.cuh"],
    },
)
