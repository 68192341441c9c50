"""AOTInductor: the program compiled to a library of C++, in a package ``.pt2``."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from xlnet_fast.builder.compiler import find_compiler
from xlnet_fast.checkpoint import first_line
from xlnet_fast.errors import BuildError, XLNetFastError
from xlnet_fast.export.check import Ranges, Run
from xlnet_fast.export.program import as_tuple, traced
from xlnet_fast.export.source import Source

FILE = "model.pt2"


def require() -> None:
    """Before minutes of work: is there a compiler?

    Raises:
        XLNetFastError: there is none.
    """
    try:
        find_compiler()
    except BuildError as error:
        raise XLNetFastError(
            f"AOTInductor compiles C++, and that cannot be done here: {error}; --format torch "
            "needs no compiler"
        ) from error


def write(source: Source, ranges: Ranges, path: Path) -> None:
    """Compile, which takes about a minute, and write the package.

    Raises:
        XLNetFastError: the compiler fails.
    """
    program = traced(source, ranges)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about itself
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:  # of the compiler, and of whatever PyTorch wraps it in
        raise XLNetFastError(
            f"AOTInductor could not compile the model: {first_line(error)}"
        ) from error


def load(path: Path) -> Run:
    """The library of a package, as a function."""
    run = torch._inductor.aoti_load_package(str(path))
    return lambda *given: as_tuple(run(*given))


def example(file: str, portable: bool) -> list[str]:
    """Lines of Python that load a file and define ``run``."""
    ops = [] if portable else ["import xlnet_fast.ops"]
    return ["import torch", *ops, f'run = torch._inductor.aoti_load_package("{file}")']
