"""What the kernels need to know of a TPU, and the tile that suits it.

A tile is T query rows by T keys: the skew (``tile_ops.py``) needs it square, the compiler a
multiple of 128. Larger tiles read keys and values fewer times; how large is a matter of VMEM.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from xlnet_fast.errors import ArgumentError

TILES = (512, 256, 128)


class Chip(NamedTuple):
    """A generation of TPU."""

    vmem_bytes: int  # of one core
    strided_roll: bool  # whether a rotation may differ from row to row


MIB = 2**20
CHIPS = {
    "v4": Chip(16 * MIB, strided_roll=False),
    "v5e": Chip(128 * MIB, strided_roll=True),
    "v5p": Chip(64 * MIB, strided_roll=True),
    "v6e": Chip(128 * MIB, strided_roll=True),
    "tpu7x": Chip(64 * MIB, strided_roll=True),
}
ANY = CHIPS["v4"]
"""What the kernels are compiled for where no chip is known: what every one of them can do."""

_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
"""Names that JAX has for them (``Device.device_kind``)."""


def find_chip(name: str | None) -> Chip:
    """The chip of that name; None: the TPU that JAX runs on, ``ANY`` where it has none.

    Raises:
        ArgumentError: an unknown name.
    """
    if name is None:
        return CHIPS.get(_KINDS.get(jax.devices()[0].device_kind, ""), ANY)
    if name not in CHIPS:
        raise ArgumentError(f"chip is {name!r}, expected None or one of {', '.join(CHIPS)}")
    return CHIPS[name]


def find_tile(chip: Chip, rows: int, keys: int, head_dim: int, itemsize: int) -> int:
    """The largest tile that fits the chip and adds at most an eighth of padding to I x J scores.

    Args:
        rows, keys: I and J.
        head_dim: of the kernels' operands. itemsize: of their dtype, in bytes.

    Raises:
        ArgumentError: the gradient of a table of so many rows fits no tile of this chip.
    """

    def padded(tile: int) -> int:
        return round_up(rows, tile) * round_up(keys, tile)

    fitting = [t for t in TILES if vmem_bytes(t, rows, keys, head_dim, itemsize) <= room(chip)]
    if not fitting:
        needed = vmem_bytes(TILES[-1], rows, keys, head_dim, itemsize) // MIB
        raise ArgumentError(
            f"{rows} query rows and {keys} keys need {needed} MiB of a TPU core's VMEM for the "
            f"gradient of r, and this chip has {room(chip) // MIB} MiB to give"
        )
    return next((t for t in fitting if 8 * padded(t) <= 9 * padded(fitting[-1])), fitting[-1])


def room(chip: Chip) -> int:
    """Bytes of VMEM that a kernel may take; the rest is the compiler's own."""
    return chip.vmem_bytes * 7 // 8


def vmem_bytes(tile: int, rows: int, keys: int, head_dim: int, itemsize: int) -> int:
    """An upper estimate for the kernel that takes most, the backward pass by rows."""
    lanes = max(head_dim, 128)  # a row of fewer numbers takes as much
    blocks = 2 * 8 * tile * lanes * itemsize  # each twice: one is fetched while the other is used
    sums = 3 * tile * lanes * 4
    scores = 16 * tile * tile * 4
    table = (round_up(rows, tile) + round_up(keys, tile)) * lanes * 4
    return blocks + sums + scores + table


def round_up(count: int, tile: int) -> int:
    """The next multiple of `tile`."""
    return -(-count // tile) * tile
