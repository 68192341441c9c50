"""Typed access to the compiled extension `xlnet_fast._C`, which may be absent.

The extension holds no torch header: tensors cross as integers (`Tensor.data_ptr()`), so whoever
calls in here has checked dtype, shape and contiguity, and keeps the tensor alive during the call.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast

from xlnet_fast._version import __version__
from xlnet_fast.builder import recipe
from xlnet_fast.errors import BackendUnavailable, PerformanceWarning

_NAME = "xlnet_fast._C"
_HOW_TO_GET_IT = (
    "run `xlnet-fast build`, which needs a C++17 compiler and shows what it says "
    "(in a checkout `make ext` does the same)"
)


class BuildInfo(TypedDict):
    """What the extension was built with, and what it picked on this machine."""

    version: str  # of the package it was built from
    compiler: str
    flags: list[str]
    isa_compiled: list[str]  # slowest first; "baseline" is always there
    isa_used: str  # the fastest compiled variant that this CPU runs
    attention_isa: list[str]  # of the attention kernels, those that this CPU runs, slowest first
    thread_runtime: str  # whose threads they use: "openmp" is torch's own pool
    cuda_archs: list[str]  # of the CUDA kernels, as nvcc names them: "80", "90a"; none without
    cuda_compiler: str  # nvcc's version; "" without
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

    def attention_isa_available(self) -> list[str]: ...

    def attention_isa_emulated(self) -> list[str]: ...

    def thread_runtime(self) -> str: ...

    def rel_attention_forward(
        self, keys: dict[str, Any], streams: list[dict[str, Any]], threads: int, isa: str
    ) -> None: ...

    def rel_attention_backward(
        self,
        keys: dict[str, Any],
        streams: list[dict[str, Any]],
        gradients: dict[str, Any],
        threads: int,
        isa: str,
    ) -> None: ...

    def cached_attention(self, *arguments: Any) -> None: ...

    def dropout(self, arguments: dict[str, Any], threads: int, isa: str) -> None: ...

    def linear_takes(self, dtype: int, isa: str) -> bool: ...

    def linear(
        self,
        dtype: int,
        rows: int,
        terms: int,
        columns: int,
        x: int,
        x_row: int,
        x_term: int,
        weight: int,
        weight_column: int,
        weight_term: int,
        bias: int,  # 0 without one
        residual: int,  # 0 without one
        residual_row: int,
        out: int,
        out_row: int,
        gelu: bool,
        threads: int,
        isa: str,
    ) -> None: ...

    def masked_softmax_forward(self, arguments: dict[str, Any], threads: int, isa: str) -> None: ...

    def masked_softmax_backward(
        self, arguments: dict[str, Any], threads: int, isa: str
    ) -> None: ...

    def philox4x32(
        self, counter: tuple[int, int, int, int], key: tuple[int, int]
    ) -> tuple[int, int, int, int]: ...


@functools.cache
def _find() -> tuple[CompiledModule | None, str | None]:
    """The module, or None and the reason: first in the package's folder, then in the cache."""
    module, reason = _from_package()
    if module is None and (cached := _cached_file()) is not None:
        return _from_cache(cached)
    return module, reason


def _from_package() -> tuple[CompiledModule | None, str | None]:
    # An editable installation's finder would give any other copy of the package its own extension.
    spec = importlib.machinery.PathFinder.find_spec(_NAME, [str(Path(__file__).parent)])
    if sys.modules.get(_NAME, spec) is None:
        return None, f"the extension {_NAME} was not built; to get it, {_HOW_TO_GET_IT}"
    try:
        module = cast(CompiledModule, importlib.import_module(_NAME))
    except ImportError as error:
        return None, f"{_NAME} does not load ({error}); to mend it, {_HOW_TO_GET_IT}"
    return _checked(module)


def _cached_file() -> Path | None:
    """The file that `xlnet-fast build` made from these very sources, if there is one."""
    try:
        file = recipe.cached_extension()
        return file if file is not None and file.is_file() else None
    except OSError:  # unreadable sources or cache: as good as none
        return None


def _from_cache(file: Path) -> tuple[CompiledModule | None, str | None]:
    try:
        module = load_file(str(file))
    except ImportError as error:
        return None, (
            f"{file} does not load ({error}); to renew it, run `xlnet-fast build --force`, which "
            f"needs a C++17 compiler"
        )
    sys.modules[_NAME] = module  # type: ignore[assignment]
    return _checked(module)


def load_file(file: str) -> CompiledModule:
    """The extension in a file, loaded without making it the one that this module uses.

    Raises:
        ImportError: it does not load.
    """
    spec = importlib.util.spec_from_file_location(_NAME, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} has not the name of an extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast(CompiledModule, module)


def _checked(module: CompiledModule) -> tuple[CompiledModule | None, str | None]:
    built = module.build_info()["version"]
    if built != __version__:
        return None, (
            f"{_NAME} was built from version {built} and this is {__version__}; "
            f"to renew it, {_HOW_TO_GET_IT}"
        )
    entries = (name for name in vars(CompiledModule) if not name.startswith("_"))
    if lacking := [name for name in entries if not hasattr(module, name)]:
        return None, (
            f"{_NAME} was built from older sources and lacks {', '.join(lacking)}; "
            f"to renew it, {_HOW_TO_GET_IT}"
        )
    return module, None


def forget() -> None:
    """Look for the extension anew at the next call; one that is loaded stays loaded."""
    if load() is None:
        sys.modules.pop(_NAME, None)
        _find.cache_clear()


def load() -> CompiledModule | None:
    """The compiled module, or None where it is missing (`why_missing` then tells the reason)."""
    return _find()[0]


def why_missing() -> str | None:
    """Why the extension is missing and how to get it, in one sentence; None where it is loaded."""
    return _find()[1]


def path() -> str | None:
    """The file that the extension was loaded from, or None where it is missing."""
    return getattr(load(), "__file__", None)


_told = False


def tell_once() -> None:
    """Warn, once in this process, that the extension is missing, and say how to get it.

    For whoever would have taken a CPU kernel and takes the sdpa backend in its place. Silent where
    the extension is there, with `XLNET_FAST_NO_WARN=1`, and while torch.compile traces.

    Warns:
        PerformanceWarning: the reason and the remedy.
    """
    import torch  # not at the top: what only builds or inspects the extension needs no torch

    global _told
    if torch.compiler.is_compiling() or _told or load() is not None:
        return
    _told = True
    if not recipe.is_set("XLNET_FAST_NO_WARN"):
        warnings.warn(
            f"attention on the CPU runs on the slower sdpa backend: {why_missing()}. "
            f"XLNET_FAST_NO_WARN=1 silences this",
            PerformanceWarning,
            stacklevel=2,
        )


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
