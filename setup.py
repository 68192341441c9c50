"""Build script: the metadata is in pyproject.toml, this file adds the optional compiled extension.

`pip install .` never fails for want of a compiler: what cannot be built is left out, and one line
says so. The same goes for the CUDA kernels, which take nvcc minutes: they are compiled where
PyTorch sees a GPU, or where they are asked for.

    XLNET_FAST_REQUIRE_EXT=1    a missing or failing compiler is an error, and so is a failing nvcc
    XLNET_FAST_NO_EXT=1         the extension is not built at all
    XLNET_FAST_CUDA=1           it is built with the CUDA kernels, GPU or not
    XLNET_FAST_CUDA_ARCHS=...   the same, for these chips: "80 90a", unless said otherwise
    XLNET_FAST_NO_CUDA=1        it is built without them
"""

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError, SetupError

ROOT = Path(__file__).resolve().parent
ASK = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("xlnet_fast._C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print("built", json.dumps(module.build_info()))
"""


def load_builder(name: str) -> ModuleType:
    """Part of what `xlnet-fast build` shares with this file; the package is not imported."""
    path = ROOT / "xlnet_fast" / "builder" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe, nvcc, progress = map(load_builder, ("recipe", "nvcc", "progress"))


def tell(line: str) -> None:
    """A line on stderr, which pip shows with -v."""
    print(f"xlnet_fast: {line}", file=sys.stderr, flush=True)


def from_root(paths: "list[Path]") -> "list[str]":
    """Paths as setuptools wants them: relative to this file, with slashes."""
    return [path.relative_to(ROOT).as_posix() for path in paths]


def leave_out(reason: str) -> None:
    """Say in one line that there will be no extension, or stop where one is required."""
    line = (
        f"the C++ extension is left out ({reason}); pure PyTorch is used instead, "
        f"until `xlnet-fast build` makes it"
    )
    if recipe.is_set("XLNET_FAST_REQUIRE_EXT"):
        raise SetupError(
            f"XLNET_FAST_REQUIRE_EXT is set, but the extension cannot be built: {reason}"
        )
    tell(line)


def leave_cuda_out(reason: str, fault: bool) -> None:
    """Say in one line that there will be no CUDA kernels; stop if nvcc is at fault and required."""
    if fault and recipe.is_set("XLNET_FAST_REQUIRE_EXT"):
        raise SetupError(
            f"XLNET_FAST_REQUIRE_EXT is set, but the CUDA kernels cannot be built: {reason}"
        )
    tell(f"the CUDA kernels are left out of the C++ extension ({reason})")


def find_nvcc() -> "tuple[NamedTuple | None, tuple[str, ...] | None]":
    """(what compiles the CUDA kernels, or None; the architectures to have, None if any will do)."""
    if not recipe.cuda_sources():
        return None, None
    try:
        cuda = nvcc.find_wanted()
    except ValueError as error:
        raise SetupError(str(error)) from error
    except nvcc.Unwanted as error:
        leave_cuda_out(str(error), fault=False)
        return None, ()
    except nvcc.LeftOut as error:  # kernels that were compiled before may stay
        leave_cuda_out(str(error), isinstance(error, nvcc.Broken))
        return None, None
    return cuda, cuda.archs


def is_stale(extension: Path, flags: "list[str]", archs: "tuple[str, ...] | None") -> bool:
    """Whether a built extension, asked in a process of its own, has other flags or kernels."""
    done = subprocess.run([sys.executable, "-c", ASK, str(extension)], capture_output=True)
    for line in done.stdout.decode().splitlines():
        if line.startswith("built "):
            info = json.loads(line.removeprefix("built "))
            other_archs = archs is not None and set(archs) != set(info["cuda_archs"])
            return other_archs or info["flags"] != " ".join(flags).split()
    return True  # it cannot even be loaded


class SideBySide:
    """In the place of setuptools' `compile`: each source by a process of its own, nvcc's too.

    Args:
        command: the running build_ext.
        ext: gets the libraries to link with.
        cuda: what compiles the CUDA kernels, or None.
    """

    def __init__(self, command: build_ext, ext: Extension, cuda: "NamedTuple | None"):
        self.command, self.ext, self.cuda = command, ext, cuda
        self.compile_all = command.compiler.compile

    def __call__(self, sources: "list[str]", **options: object) -> "list[str]":
        """Compile all sources, and the CUDA kernels if nvcc can; the objects."""
        kernels = recipe.cuda_sources() if self.cuda else []
        count, jobs = len(kernels) + len(sources), recipe.jobs()
        with (
            progress.Progress(tell, count) as self.progress,
            ThreadPoolExecutor(jobs) as pool,
        ):
            self.progress.say(f"compiling {count} files, {jobs} at a time")
            try:
                # The kernels first: they take longest.
                kernels = [pool.submit(self.compile_kernel, source) for source in kernels]
                plain = [pool.submit(self.compile_one, source, options) for source in sources]
                wait([*kernels, *plain], return_when=FIRST_EXCEPTION)
                failed = [future for future in kernels if future.done() and future.exception()]
                if failed:
                    for future in kernels:
                        future.cancel()
                    leave_cuda_out(str(failed[0].exception()), fault=True)
                objects = [name for future in plain for name in future.result()]
                if failed:
                    self.cuda = None
                    for source in sources:
                        if Path(source).name == recipe.BINDINGS:
                            self.compile_one(source, options)
                elif self.cuda is not None:
                    self.ext.extra_link_args += nvcc.link_flags(self.cuda)
                    objects += [future.result() for future in kernels]
                return objects
            finally:
                pool.shutdown(cancel_futures=True)

    def compile_one(self, source: str, options: "dict[str, object]") -> "list[str]":
        """The object of a C++ source."""
        of_cuda = (self.cuda.archs, self.cuda.version) if self.cuda else ()
        macros = recipe.macros(self.ext.extra_compile_args, *of_cuda)
        with self.progress.piece(Path(source).as_posix()):
            return self.compile_all([source], **options | {"macros": macros})

    def compile_kernel(self, source: Path) -> str:
        """The object of a CUDA source."""
        relative = source.relative_to(ROOT)
        target = Path(self.command.build_temp) / relative.with_suffix(".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        words = nvcc.compile_command(self.cuda, source, target)
        self.command.announce(shlex.join(words), level=2)
        with self.progress.piece(relative.as_posix()):
            done = subprocess.run(
                words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            )
            if done.returncode != 0:
                raise CompileError(
                    f"nvcc fails on {relative.as_posix()} with exit code {done.returncode}"
                    f"{nvcc.last_lines(done.stdout)}"
                )
        return str(target)


class OptionalBuildExt(build_ext):
    """Builds the extension with flags for the compiler found; a failure is told, not raised."""

    def build_extension(self, ext: Extension) -> None:
        msvc = self.compiler.compiler_type == "msvc"
        ext.extra_compile_args = recipe.compile_flags(msvc)
        ext.extra_link_args = recipe.link_flags(msvc)
        if msvc and not self.compiler.initialized:
            self.compiler.initialize()  # before the threads, which would all do it
        there = Path(self.get_ext_fullpath(ext.name))
        beside = recipe.PACKAGE / recipe.extension_name()
        if self.editable_mode and beside.exists():  # an editable install begins in an empty folder
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(beside, there)
        cuda, archs = find_nvcc()
        if there.exists() and is_stale(there, ext.extra_compile_args, archs):
            self.force = True
        compile_all = self.compiler.compile
        self.compiler.compile = SideBySide(self, ext, cuda)
        try:
            super().build_extension(ext)
        except SetupError:
            raise
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
        "xlnet_fast.kernels.triton": ["*.json"],
        "xlnet_fast.serve.protocols": ["page/*"],
        "xlnet_fast.benchmarks": ["results/**/*"],
        "xlnet_fast.csrc": ["**/*.h", "**/*.cpp", "**/*.cu", "**/*.cuh"],
    },
)
