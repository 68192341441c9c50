"""Tile and launch shapes: measured ones where there are any, safe ones everywhere else.

Safe ones spill in no loop and fit the chip, as the kernels report found by compiling them. That
depends on the compiler, so `safe_tiles.json` has a table of them for each release of Triton, which
`tile_search.py` makes. A release without one takes that of another, and it is said.

Beside them stand tiles of which two programs share a multiprocessor. They may spill a few registers
in a loop; whether the second program is worth that, nothing but a clock tells, so they are taken
where they were measured to be the faster, and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType

import torch

from xlnet_fast.errors import ArgumentError, PerformanceWarning
from xlnet_fast.kernels.triton import triton

KERNELS = ("forward", "backward_q", "backward_kv")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 128
MAX_REGISTERS = 255  # of a thread, on every chip
LONG_KEYS = 1024  # a call with more keys than this is "long"
TUNED_FILE = Path(__file__).with_name("tuned.json")
SAFE_FILE = Path(__file__).with_name("safe_tiles.json")
_NOTHING: Mapping[str, Sequence[int]] = MappingProxyType({})


def _nothing_recorded(device: torch.device) -> Mapping[str, Sequence[int]]:
    return _NOTHING


recorded_on: Callable[[torch.device], Mapping[str, Sequence[int]]] = _nothing_recorded
"""What a qualification chose on a device; `ops` puts its reader of records here."""


@dataclass(frozen=True)
class Config:
    """Tile and launch shape of one compiled kernel.

    Attributes:
        maxnreg: registers that a thread may have.
        registers, shared_bytes: what the kernel takes per thread and per block when compiled with
            every argument, the most of any chip of its class; 0 where it was never compiled. They
            tell how many programs fit, and two tiles that differ in them alone are the same.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    maxnreg: int = MAX_REGISTERS
    registers: int = field(default=0, compare=False)
    shared_bytes: int = field(default=0, compare=False)

    @property
    def options(self) -> dict[str, int | bool]:
        """Compiler options.

        Fused multiply-add is asked for, as its default differs between Triton versions. A register
        limit, even the chip's own, stops ptxas from spilling to fit more blocks on a chip.
        """
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
            "maxnreg": self.maxnreg,
        }


@dataclass(frozen=True)
class Table:
    """The safe tiles of one release of Triton.

    Attributes:
        release: "3.6".
        archs: chips that every tile of its class was compiled for, 90 for sm_90.
        tiles: `safe_key` -> tiles, the preferred one first.
        spilling: the keys of `tiles` for which no candidate was clean; what spills least is there.
        paired: `safe_key` -> tiles of which two programs share a multiprocessor, which may spill in
            a loop: to be timed, never taken untimed.
    """

    release: str
    archs: tuple[int, ...]
    tiles: Mapping[str, tuple[Config, ...]]
    spilling: tuple[str, ...] = ()
    paired: Mapping[str, tuple[Config, ...]] = field(default_factory=dict)


def block_d(head_dim: int) -> int:
    """Head dim of the tile: the next power of two, at least 32."""
    return max(32, 1 << (head_dim - 1).bit_length())


def shape_class(rows: int, keys: int) -> str:
    """Whether a call is "long", with more than LONG_KEYS rows or keys, or "short"."""
    return "long" if max(rows, keys) > LONG_KEYS else "short"


def choose_config(
    kernel: str,
    dtype: torch.dtype,
    head_dim: int,
    heavy: bool,
    arch: int,
    shape: str = "long",
    gpu: str | None = None,
    recorded: Mapping[str, Sequence[int]] = _NOTHING,
) -> Config:
    """The tile of a kernel: forced by `using`, else measured on this GPU, else safe on the chip.

    Args:
        kernel: one of `KERNELS`.
        dtype: torch.float16, bfloat16 or float32.
        head_dim: 1..128.
        heavy: whether something takes part that costs registers: dropout, ranks, bits, positions,
            a second stream, or padding without `see_self`.
        arch: compute capability as one number, 90 for 9.0; at least 80.
        shape: "short" or "long", see `shape_class`.
        gpu: what the driver calls it, as in the table of measured tiles.
        recorded: what a qualification of this GPU chose: `entry_key` -> fields of `Config`.

    Raises:
        ArgumentError: a kernel, dtype, head dim or chip there is no tile for.
    """
    _check(kernel, dtype, head_dim, arch)
    if kernel in _forced:
        return _forced[kernel]
    measured = recorded.get(entry_key(kernel, dtype, head_dim, heavy))
    if measured is None and gpu:
        key = tuned_key(kernel, dtype, head_dim, heavy, shape)
        measured = load_tuned().get(tuned_gpu(gpu), {}).get(key)
    if measured is not None:
        return Config(*measured)
    _warn_of_another_release()
    return safe_tiles(kernel, dtype, head_dim, heavy, arch)[0]


def safe_tiles(
    kernel: str, dtype: torch.dtype, head_dim: int, heavy: bool, arch: int
) -> tuple[Config, ...]:
    """Tiles that fit the chip and spill in no loop, the preferred one first.

    Raises:
        ArgumentError: a kernel, dtype, head dim or chip there is no tile for.
    """
    _check(kernel, dtype, head_dim, arch)
    table, _ = installed_table()
    return table.tiles[safe_key(chip_class(arch), kernel, dtype, head_dim, heavy)]


def paired_tiles(
    kernel: str, dtype: torch.dtype, head_dim: int, heavy: bool, arch: int
) -> tuple[Config, ...]:
    """Tiles of which two programs share a multiprocessor of the chip, to be timed first.

    Raises:
        ArgumentError: a kernel, dtype, head dim or chip there is no tile for.
    """
    _check(kernel, dtype, head_dim, arch)
    table, _ = installed_table()
    return table.paired.get(safe_key(chip_class(arch), kernel, dtype, head_dim, heavy), ())


def candidates(
    kernel: str, dtype: torch.dtype, head_dim: int, heavy: bool, arch: int
) -> tuple[Config, ...]:
    """What may be chosen by measurement: `safe_tiles`, then `paired_tiles`; arguments as there."""
    arguments = (kernel, dtype, head_dim, heavy, arch)
    return (*safe_tiles(*arguments), *paired_tiles(*arguments))


def chip_class(arch: int) -> str:
    """Chips with wgmma or tcgen05, which take operands from shared memory, need fewer registers."""
    return "large" if 90 <= arch < 120 else "small"


def safe_key(chip: str, kernel: str, dtype: torch.dtype, head_dim: int, heavy: bool) -> str:
    """The name of an entry of a table of safe tiles; `chip` is a `chip_class`."""
    kind = "fp32" if dtype == torch.float32 else "half"
    return f"{chip}/{kernel}/{kind}/{'heavy' if heavy else 'light'}/{block_d(head_dim)}"


def release_of(version: str) -> str:
    """The release that a version of Triton belongs to: "3.6" of "3.6.0+git1234"."""
    return ".".join(re.findall(r"\d+", version)[:2])


@cache
def load_safe() -> dict[str, Table]:
    """The tables of safe tiles by release, the oldest first."""
    stored = json.loads(SAFE_FILE.read_text(encoding="utf-8"))
    tables = {
        release: Table(
            release,
            tuple(table["archs"]),
            _configs(table["tiles"]),
            tuple(table["spilling"]),
            _configs(table["paired"]),
        )
        for release, table in stored.items()
    }
    return dict(sorted(tables.items(), key=lambda item: _order(item[0])))


def _configs(stored: Mapping[str, list[list[int]]]) -> dict[str, tuple[Config, ...]]:
    return {key: tuple(Config(*tile) for tile in entry) for key, entry in stored.items()}


def table_for(release: str) -> tuple[Table, str | None]:
    """The table for a release of Triton, and what is to be said where it is not the release's own.

    That is the table of the nearest older release, else the oldest there is.
    """
    tables = load_safe()
    if release in tables:
        return tables[release], None
    older = [table for name, table in tables.items() if _order(name) < _order(release)]
    table = older[-1] if older else next(iter(tables.values()))
    return table, (
        f"no tiles were checked with Triton {release}: those for {table.release} are taken, which "
        "may spill registers; `xlnet-fast kernels-report --backend triton` says whether they do, "
        "with --write-tiles it makes a table for this release"
    )


@cache
def installed_table() -> tuple[Table, str | None]:
    """The table of the installed Triton as from `table_for`; without Triton the newest."""
    if triton is None:
        return list(load_safe().values())[-1], None
    return table_for(release_of(triton.__version__))


@cache
def _warn_of_another_release() -> None:
    """Say once in a process that the tiles were checked with another Triton."""
    _, remark = installed_table()
    if remark is not None:
        warnings.warn(remark, PerformanceWarning, stacklevel=2)


def _order(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


def tuned_gpu(gpu: str) -> str:
    """The name of a GPU in the table of measured tiles: with the Triton they were measured with."""
    return gpu if triton is None else f"{gpu}, Triton {release_of(triton.__version__)}"


def entry_key(kernel: str, dtype: torch.dtype, head_dim: int, heavy: bool) -> str:
    """The name of a tile that a qualification chose, whatever the call's shape."""
    name = str(dtype).removeprefix("torch.")
    return f"{kernel}/{name}/{head_dim}/{'heavy' if heavy else 'light'}"


def tuned_key(kernel: str, dtype: torch.dtype, head_dim: int, heavy: bool, shape: str) -> str:
    """The name of an entry of the table of measured tiles."""
    return f"{entry_key(kernel, dtype, head_dim, heavy)}/{shape}"


@cache
def load_tuned() -> dict[str, dict[str, list[int]]]:
    """The measured tiles: `tuned_gpu` -> `tuned_key` -> fields of `Config`."""
    tuned: dict[str, dict[str, list[int]]] = json.loads(TUNED_FILE.read_text(encoding="utf-8"))
    return tuned


@contextlib.contextmanager
def using(kernel: str, config: Config) -> Iterator[None]:
    """Force the tile of a kernel within the block, in this process.

    Raises:
        ArgumentError: no kernel has that name.
    """
    if kernel not in KERNELS:
        raise ArgumentError(f"kernel {kernel!r} is not one of {', '.join(KERNELS)}")
    before = _forced.get(kernel)
    _forced[kernel] = config
    try:
        yield
    finally:
        _forced.pop(kernel)
        if before is not None:
            _forced[kernel] = before


_forced: dict[str, Config] = {}


def _check(kernel: str, dtype: torch.dtype, head_dim: int, arch: int) -> None:
    if kernel not in KERNELS:
        raise ArgumentError(f"kernel {kernel!r} is not one of {', '.join(KERNELS)}")
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype {dtype} is not one of {', '.join(map(str, DTYPES))}")
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ArgumentError(f"head dim {head_dim} is not in 1..{MAX_HEAD_DIM}")
    if arch < 80:
        raise ArgumentError(f"sm_{arch} is older than sm_80, the oldest the kernels are made for")
