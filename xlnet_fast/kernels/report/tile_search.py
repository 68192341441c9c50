"""Finds the safe tiles of the installed Triton by compiling candidates, without a GPU.

For each entry of the table (chip class, kernel, dtype class, load, head dim) candidates are
compiled for one chip of the class after the other, until as many are found that the report finds
nothing wrong with as the entry is to have. First come those of the tables that there are, as what
one release of Triton takes mostly suits another; then all tiles that are no larger, the larger
ones first. Then come tiles of which two programs share a multiprocessor, by half the warps or half
the registers a thread: no larger than the safe one, and free to spill a little. None is timed:
`benchmarks/gpu/tune.py` and `xlnet-fast qualify --full` do that, on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import product
from typing import NamedTuple

from xlnet_fast import files
from xlnet_fast.errors import ArgumentError
from xlnet_fast.kernels.chips import SHARED_LIMITS
from xlnet_fast.kernels.report import triton as report
from xlnet_fast.kernels.report.jobs import run_jobs
from xlnet_fast.kernels.report.rows import Row, check
from xlnet_fast.kernels.triton import rel_attention_compilations, tiles, triton
from xlnet_fast.kernels.triton.launch import programs_per_processor
from xlnet_fast.kernels.triton.tiles import (
    KERNELS,
    MAX_REGISTERS,
    Config,
    Table,
    chip_class,
    installed_table,
    load_safe,
    release_of,
    safe_key,
)

_BLOCKS = (
    (128, 64),
    (64, 64),
    (128, 32),
    (64, 32),
    (32, 32),
    (64, 16),
    (32, 16),
    (16, 32),
    (16, 16),
)
LADDER = tuple(Config(m, n, 8, stages) for stages in (2, 1) for m, n in _BLOCKS)
"""What is tried where the tiles of other releases spill; without a pipeline only where none else
is left."""

PAIRS = ((4, MAX_REGISTERS), (8, 128))
"""Warps and registers a thread, either of which leaves a program half of the 64K registers."""
_MOST_TRIED = 4  # tiles of each of `PAIRS`: much smaller ones are no rivals of the safe one


class _Found(NamedTuple):
    """What was found for an entry: safe tiles, whether they spill after all, and pairs."""

    tiles: tuple[Config, ...]
    spills: bool
    paired: tuple[Config, ...]


@dataclass(frozen=True)
class Slot:
    """One entry of the table. dtype: "bf16", which stands for both halves, or "fp32"."""

    chip: str
    kernel: str
    dtype: str
    heavy: bool
    head_dim: int

    @property
    def key(self) -> str:
        """Its name in the table."""
        dtype = rel_attention_compilations.DTYPES[self.dtype]
        return safe_key(self.chip, self.kernel, dtype, self.head_dim, self.heavy)


def slots(chips: Sequence[str] = ("small", "large")) -> Iterator[Slot]:
    """Every entry of a table."""
    dtypes, head_dims = rel_attention_compilations.DTYPES, rel_attention_compilations.HEAD_DIMS
    for each in product(chips, KERNELS, dtypes, (False, True), head_dims):
        yield Slot(*each)


def search(
    archs: Sequence[int] = report.ARCHS,
    *,
    only: Sequence[Slot] | None = None,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Table:
    """Find the safe tiles of the installed Triton.

    Args:
        archs: chips to compile for, 90 for sm_90, at least one of each class that `only` has.
            Chips of a class that are not named only have their shared memory respected.
        only: the entries to find, default all; the others stay as they are in the table taken now.
        workers: processes; 1 compiles in this one.
        on_progress: called with (done, total) after each entry.

    Raises:
        BackendUnavailable: Triton is missing or runs as an interpreter; a process was killed.
        ArgumentError: no chip of a class is named; an entry whose candidates are all too large.
    """
    report.require_compiler()
    wanted = list(slots() if only is None else only)
    tasks = [(slot, tuple(a for a in archs if chip_class(a) == slot.chip)) for slot in wanted]
    for slot, chips in tasks:
        if not chips:
            raise ArgumentError(f"no chip of the class {slot.chip!r} is among {list(archs)}")
    found: dict[str, _Found] = {}
    before = installed_table()[0]
    spilling = {slot.key: slot.key in before.spilling for slot in slots()}
    paired = dict(before.paired)
    for (slot, _), entry in zip(tasks, run_jobs(_find, tasks, workers, on_progress), strict=True):
        found[slot.key], spilling[slot.key] = entry, entry.spills
        paired[slot.key] = entry.paired
    return Table(
        release_of(triton.__version__),
        tuple(sorted(archs)),
        {key: found[key].tiles if key in found else kept for key, kept in before.tiles.items()},
        tuple(key for key, spills in spilling.items() if spills),
        {key: paired[key] for key in before.tiles if paired.get(key)},
    )


def _find(task: tuple[Slot, tuple[int, ...]]) -> _Found:
    """The tiles of one entry, with what they take; where none is clean, what spills least."""
    slot, archs = task
    count = len(installed_table()[0].tiles[slot.key])
    found: list[Config] = []
    refused: dict[Config, tuple[int, int]] = {}  # accesses in loops, bytes, where it first spilled
    problems = []
    for config in tried(slot):
        rows = list(_rows(slot, config, archs))
        said = judge(slot, rows)
        if not said:
            found.append(_with_figures(config, rows))
        elif not judge(slot, [row | {"loop_spills": 0, "spill_bytes": 0} for row in rows]):
            refused[config] = rows[-1]["loop_spills"], rows[-1]["spill_bytes"]
        problems += said
        if len(found) == count:
            break
    if found:
        return _Found(tuple(found), False, tuple(_pairs(slot, archs, found[0])))
    if not refused:
        raise ArgumentError(f"no tile suits {slot.key}: " + "; ".join(problems))
    least = min(refused, key=lambda config: refused[config])
    figures = _with_figures(least, list(_rows(slot, least, archs, to_the_end=True)))
    return _Found((figures,), True, ())


def _pairs(slot: Slot, archs: Sequence[int], safe: Config) -> Iterator[Config]:
    """For each of `PAIRS` the first known one that suits, else the largest, up to `safe`."""
    known = [each for table in load_safe().values() for each in table.paired.get(slot.key, ())]
    area = safe.block_m * safe.block_n
    blocks = [block for block in _BLOCKS if block[0] * block[1] <= area][:_MOST_TRIED]
    for num_warps, registers in PAIRS:
        ladder = [Config(*block, num_warps, 2, registers) for block in blocks]
        ours = [each for each in known if (each.num_warps, each.maxnreg) == (num_warps, registers)]
        for config in dict.fromkeys((*ours, *ladder)):
            try:
                rows = list(_rows(slot, config, archs, is_paired=True))
            except ArgumentError:  # the compiler fails on some, and none of them is needed
                continue
            config = _with_figures(config, rows)
            if not judge(slot, rows) and shares(slot, config):
                yield config
                break


def shares(slot: Slot, config: Config) -> bool:
    """Whether two programs of a tile run at a time on one multiprocessor of each of its chips."""
    chips = (arch for arch in SHARED_LIMITS if chip_class(arch) == slot.chip)
    return all(programs_per_processor(config, arch) >= 2 for arch in chips)


def _with_figures(config: Config, rows: Sequence[Row]) -> Config:
    registers, shared = (max(row[name] for row in rows) for name in ("registers", "shared_bytes"))
    return replace(config, registers=registers, shared_bytes=shared)


def tried(slot: Slot) -> tuple[Config, ...]:
    """The candidates of an entry in the order in which they are tried."""
    ours, _ = installed_table()
    known = [*ours.tiles[slot.key]]
    for table in reversed(load_safe().values()):
        known += table.tiles[slot.key]
    largest = max(config.block_m * config.block_n for config in known)
    smaller = (each for each in LADDER if each.block_m * each.block_n <= largest)
    return tuple(dict.fromkeys((*known, *smaller)))


def _rows(
    slot: Slot,
    config: Config,
    archs: Sequence[int],
    to_the_end: bool = False,
    is_paired: bool = False,
) -> Iterator[Row]:
    """The report's rows of a candidate, up to the first with a problem unless `to_the_end`."""
    for arch, atomic in product(
        archs, rel_attention_compilations.orders(slot.kernel, slot.head_dim)
    ):
        row = report.measure(
            rel_attention_compilations.compilation(
                slot.kernel,
                slot.dtype,
                slot.head_dim,
                slot.heavy,
                config,
                atomic,
                is_paired=is_paired,
            ),
            arch,
        )
        yield row
        if judge(slot, [row]) and not to_the_end:
            return


def judge(slot: Slot, rows: Sequence[Row]) -> list[str]:
    """What the report finds wrong with a candidate, and where it is too big for another chip.

    Those are the chips of its class, compiled for or not.
    """
    limits = {arch: limit for arch, limit in SHARED_LIMITS.items() if chip_class(arch) == slot.chip}
    smallest = min(limits, key=lambda arch: limits[arch])
    problems = check(rows)
    for row in rows:
        if limits[smallest] < row["shared_bytes"] <= limits[row["arch"]]:
            problems += check([row | {"arch": smallest}])
    return problems


def write(table: Table) -> None:
    """Put a table into the package's file, in place of that of the same release if there is one.

    Raises:
        OSError: the file cannot be written; it is as before then.
    """
    files.write_whole(tiles.SAFE_FILE, render(load_safe() | {table.release: table}))
    load_safe.cache_clear()
    installed_table.cache_clear()


def render(tables: Mapping[str, Table]) -> str:
    """Tables as JSON, an entry a line, so that a change of a tile is a small difference."""
    parts = []
    for release, table in tables.items():
        head = f'  {json.dumps(release)}: {{\n    "archs": {json.dumps(table.archs)},\n'
        head += f'    "spilling": {json.dumps(table.spilling)},\n'
        entries = f'    "tiles": {_render_entries(table.tiles)},\n'
        parts.append(head + entries + f'    "paired": {_render_entries(table.paired)}\n  }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _render_entries(entries: Mapping[str, Sequence[Config]]) -> str:
    lines = [
        f"      {json.dumps(key)}: {json.dumps([astuple(each) for each in entry])}"
        for key, entry in entries.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n    }" if lines else "{}"
