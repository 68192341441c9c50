"""Typed access to the compiled extension `xlnet_fast._C`, which may be absent.

The extension holds no torch header: tensors cross as integers (`Tensor.data_ptr()`), so whoever
calls in here has checked dtype, shape and contiguity, and keeps the tensor alive during the call.
"""

from __future__ import annotations

import functools
import importlib
from typing import Protocol, TypedDict, cast

from xlnet_fast._version import __version__
from xlnet_fast.errors import BackendUnavailable

_HOW_TO_GET_IT = (
    "run `make ext` in a checkout, or reinstall with a C++17 compiler on the path "
    "(`XLNET_FAST_REQUIRE_EXT=1 pip install .` shows what the compiler says)"
)


class BuildInfo(TypedDict):
    """What the extension was built with, and what it picked on this machine."""

    version: str  # of the package it was built from
    compiler: str
    flags: list[str]
    isa_compiled: list[str]  # slowest first; "baseline" is always there
    isa_used: str  # the fastest compiled variant that this CPU runs
    cuda_archs: list[str]
    pybind11: str


class CompiledModule(Protocol):
    """What `csrc/bindings.cpp` exports."""

    def build_info(self) -> BuildInfo: ...

    def isa_available(self) -> list[str]: ...

    def philox_keep_mask(
        self,
        keep: int,
        seed: int,
        threshold: int,
        heads: int,
        batch: tuple[int, int],
        rows: tuple[int, int],
        keys: int,
        threads: int,
        isa: str,
    ) -> None: ...

    def philox4x32(
        self, counter: tuple[int, int, int, int], key: tuple[int, int]
    ) -> tuple[int, int, int, int]: ...


@functools.cache
def _find() -> tuple[CompiledModule | None, str | None]:
    """The module, or None and the reason."""
    try:
        module = cast(CompiledModule, importlib.import_module("xlnet_fast._C"))
    except ModuleNotFoundError as error:
        if error.name != "xlnet_fast._C":
            raise
        return None, f"the extension xlnet_fast._C was not built; to get it, {_HOW_TO_GET_IT}"
    except ImportError as error:
        return None, f"xlnet_fast._C does not load ({error}); to mend it, {_HOW_TO_GET_IT}"
    built = module.build_info()["version"]
    if built != __version__:
        return None, (
            f"xlnet_fast._C was built from version {built} and this is {__version__}; "
            f"to renew it, {_HOW_TO_GET_IT}"
        )
    return module, None


def load() -> CompiledModule | None:
    """The compiled module, or None where it is missing (`why_missing` then tells the reason)."""
    return _find()[0]


def why_missing() -> str | None:
    """Why the extension is missing and how to get it, in one sentence; None where it is loaded."""
    return _find()[1]


def require() -> CompiledModule:
    """The compiled module.

    Raises:
        BackendUnavailable: where it is missing, with the reason and the remedy.
    """
    module, reason = _find()
    if module is None:
        raise BackendUnavailable(str(reason))
    return module


def build_info() -> BuildInfo | None:
    """What the extension was built with, or None where it is missing."""
    module = load()
    return None if module is None else module.build_info()


def philox_keep_mask(
    keep_ptr: int,
    *,
    seed: int,
    threshold: int,
    heads: int,
    batch: tuple[int, int],
    rows: tuple[int, int],
    keys: int,
    threads: int = 1,
    isa: str = "auto",
) -> None:
    """Fill a dropout keep mask; `xlnet_fast.philox` has the definition.

    Args:
        keep_ptr: address of contiguous bytes, shape (b1 - b0, heads, i1 - i0, keys); 1 = kept.
        seed: int64, the Philox key.
        threshold: 0..2**32 - 1; an element is kept where its word is at least this.
        heads: heads in all, N; element (b, n) counts as b*N + n.
        batch: (b0, b1), the batch elements to fill, end excluded.
        rows: (i0, i1), the query rows to fill, end excluded.
        keys: J.
        threads: at most this many threads; small masks use fewer.
        isa: "auto" or one of `isa_available()`.

    Raises:
        BackendUnavailable: where the extension is missing.
        ValueError: for a range that ends before it begins, a negative size, no thread, or an ISA
            that was not compiled or that this CPU lacks.
    """
    module = require()
    module.philox_keep_mask(keep_ptr, seed, threshold, heads, batch, rows, keys, threads, isa)
