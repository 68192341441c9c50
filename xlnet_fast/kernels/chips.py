"""What the multiprocessors of each chip have room for, and how many blocks of a kernel fit.

Figures from the CUDA C++ Programming Guide, table "Technical specifications per compute
capability", and from `arch_traits` of NVIDIA's CUDA C++ core libraries; units of allocation from
NVIDIA's occupancy calculator, alike from 8.0 on.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
WARP = 32
REGISTERS = 65536
"""Registers of a multiprocessor, 32 bits each."""

_REGISTER_UNIT = 256  # of a warp
_WARP_UNIT = 4  # one for each of the four schedulers
_SHARED_UNIT = 128
_SHARED_RESERVED = KIB  # of each block, by the driver


@dataclass(frozen=True)
class Chip:
    """Limits of one compute capability; bytes of shared memory, the rest per multiprocessor."""

    shared_of_block: int
    shared: int
    warps: int
    blocks: int


CHIPS = {
    80: Chip(163 * KIB, 164 * KIB, 64, 32),
    86: Chip(99 * KIB, 100 * KIB, 48, 16),
    87: Chip(163 * KIB, 164 * KIB, 48, 16),
    88: Chip(99 * KIB, 100 * KIB, 48, 16),
    89: Chip(99 * KIB, 100 * KIB, 48, 24),
    90: Chip(227 * KIB, 228 * KIB, 64, 32),
    100: Chip(227 * KIB, 228 * KIB, 64, 32),
    103: Chip(227 * KIB, 228 * KIB, 64, 32),
    110: Chip(227 * KIB, 228 * KIB, 48, 24),
    120: Chip(99 * KIB, 100 * KIB, 48, 24),
    121: Chip(99 * KIB, 100 * KIB, 48, 24),
}
"""By compute capability without the dot: 90 is sm_90."""

SHARED_LIMITS = {arch: chip.shared_of_block for arch, chip in CHIPS.items()}
"""Shared memory that one block may use, bytes, by chip."""


def blocks_per_multiprocessor(arch: int, registers: int, threads: int, shared_bytes: int) -> int:
    """How many blocks run at a time on one multiprocessor.

    Args:
        arch: of `CHIPS`.
        registers: per thread.
        threads: per block.
        shared_bytes: per block, static and dynamic.
    """
    chip = CHIPS[arch]
    if shared_bytes > chip.shared_of_block:
        return 0
    warps = _round_up(-(-threads // WARP), _WARP_UNIT)
    of_warp = _round_up(registers * WARP, _REGISTER_UNIT)
    with_registers = REGISTERS // of_warp // _WARP_UNIT * _WARP_UNIT if of_warp else chip.warps
    of_block = _round_up(shared_bytes + _SHARED_RESERVED, _SHARED_UNIT)
    return min(chip.blocks, chip.warps // warps, with_registers // warps, chip.shared // of_block)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
