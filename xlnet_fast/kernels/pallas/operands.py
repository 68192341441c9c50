"""What the kernels take, heads first and padded to tiles, and where in it a program's blocks lie.

Letters as in ``docs/maths.md``, with I and J rounded up to tiles: B batch, N heads, I query rows,
J keys, M memory keys, L current keys, D head dim, G groups of r, T rows (or keys) of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from xlnet_fast.kernels.pallas.chips import Chip, room


class Floats(NamedTuple):
    """Operands that have gradients; arrays, references to blocks in VMEM, or gradients."""

    q: Any  # (B, N, I, D)
    k: Any  # (B, N, J, D), or (B, N, L, D) where the memory is apart
    v: Any  # as k
    k_memory: Any  # (B, N, M, D), M whole tiles, or None
    v_memory: Any  # as k_memory
    r: Any  # (G, N or 1, I + J, D); row x is that of p = x + 1 - I + L
    biases: Any  # (N, 2 or 4, D): r_w_bias, r_r_bias; r_s_bias, seg_embed_1 - seg_embed_0


class Integers(NamedTuple):
    """Operands that have none. Each may be None where nobody reads it."""

    rows: Any  # (B, 3, I) int32: RANK, SEGMENT, NUMBER
    keys: Any  # (B, 3, J) int32: RANK, SEGMENT, PADDED
    seed: Any  # (2,) uint32: low and high word


RANK, SEGMENT = 0, 1
NUMBER = 2  # of rows: the i of dropout's mask
PADDED = 2  # of keys: whether hidden from all


class Table(NamedTuple):
    """The two neighbouring blocks of r, (T, D) each, that a tile's scores need."""

    low: Any
    high: Any


@dataclass(frozen=True)
class Options:
    """All that a kernel is compiled for; sizes are the true ones where no letter says otherwise."""

    batch: int
    heads: int
    groups: int
    tile: int  # T
    row_tiles: int
    key_tiles: int  # of memory and current keys
    apart_tiles: int  # of them, those of a memory apart
    keys: int  # J before it was rounded up
    memory: int  # M
    scale: float
    causal: bool
    same_length: bool
    see_self: bool
    window: tuple[int, int, int]  # left, right, chunk; -1: no limit
    padded: bool  # whether the mask has key_padding
    ranked: bool  # whether it has ranks
    segmented: bool
    numbered: bool  # whether Integers.rows says which i a row is; else it is where it lies
    dropout_p: float
    threshold: int  # words below it are dropped
    chip: Chip
    interpret: Any  # as of pallas_call

    @property
    def may_leave_out(self) -> bool:
        """Whether tiles that nobody sees may be skipped.

        A row that sees nothing is uniform over all keys and needs them all; by window or causality
        alone no row is so blind, for it sees itself.
        """
        blinding = (self.padded or self.ranked) and not self.see_self
        return not blinding and (self.causal or self.window[:2] != (-1, -1))


Ids = Callable[..., tuple[Any, Any, Any, Any]]
"""From a program's ids to (batch element, head, tile of rows, tile of keys)."""


def specs(x: Floats, y: Integers, o: Options, ids: Ids) -> tuple[Floats, Table, Integers]:
    """The blocks of one program; operands that are None have None."""
    t, d, apart = o.tile, x.q.shape[3], o.apart_tiles

    def block(shape: tuple[int, ...], place: Callable[..., tuple[Any, ...]]) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda *program: place(*ids(*program)))

    # What is not needed stays the block that was fetched last, and is not fetched again.
    memory = block((1, 1, t, d), lambda b, n, i, j: (b, n, lax.min(j, apart - 1), 0))
    current = block((1, 1, t, d), lambda b, n, i, j: (b, n, lax.max(j - apart, 0), 0))

    def table(offset: int) -> pl.BlockSpec:
        one_head = x.r.shape[1] == 1
        shared_by = o.batch // o.groups

        def place(b: Any, n: Any, i: Any, j: Any) -> tuple[Any, ...]:
            return lax.div(b, shared_by), 0 if one_head else n, j - i + offset, 0

        return block((1, 1, t, d), place)

    floats = Floats(
        q=block((1, 1, t, d), lambda b, n, i, j: (b, n, i, 0)),
        k=current,
        v=current,
        k_memory=memory if apart else None,
        v_memory=memory if apart else None,
        r=None,
        biases=block((1, *x.biases.shape[1:]), lambda b, n, i, j: (n, 0, 0)),
    )
    integers = Integers(
        rows=None if y.rows is None else block((1, 3, t), lambda b, n, i, j: (b, 0, i)),
        keys=None if y.keys is None else block((1, 3, t), lambda b, n, i, j: (b, 0, j)),
        seed=None if y.seed is None else pl.BlockSpec(memory_space=pltpu.SMEM),
    )
    return floats, Table(table(o.row_tiles - 1), table(o.row_tiles)), integers


def rows_spec(o: Options, width: int, ids: Ids) -> pl.BlockSpec:
    """The block (T, D) of an array (B, N, I, D) like q, D = `width`."""

    def place(*program: Any) -> tuple[Any, ...]:
        b, n, i, _ = ids(*program)
        return b, n, i, 0

    return pl.BlockSpec((1, 1, o.tile, width), place)


def statistics_spec(o: Options, count: int, ids: Ids) -> pl.BlockSpec:
    """The block (count, T) of an array (B, N, count, I): a column an element would take 128."""

    def place(*program: Any) -> tuple[Any, ...]:
        b, n, i, _ = ids(*program)
        return b, n, 0, i

    return pl.BlockSpec((1, 1, count, o.tile), place)


def compiler_params(o: Options, *semantics: str) -> pltpu.CompilerParams:
    """Of a kernel with these kinds of grid dimensions."""
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=room(o.chip))


# --- what is moved -------------------------------------------------------------------------------

LANES = 128
"""Main memory has rows of so many numbers: one of fewer, as of D = 64, takes as much."""


class Moved(NamedTuple):
    """Bytes of main memory of one operand's block."""

    tile: int  # (T, D)
    statistic: int  # (1, T) float32
    rows: int  # (3, T) int32, 0 where nobody reads it
    keys: int  # likewise
    biases: int  # (2 or 4, D)


def moved(o: Options, x: Floats, y: Integers) -> Moved:
    """What the blocks of a kernel take, with the padding of main memory's tiles."""
    lanes, itemsize = max(x.q.shape[3], LANES), x.q.dtype.itemsize
    numbers = 4 * 4 * o.tile  # 3 are padded to 4
    return Moved(
        tile=o.tile * lanes * itemsize,
        statistic=4 * o.tile,
        rows=0 if y.rows is None else numbers,
        keys=0 if y.keys is None else numbers,
        biases=x.biases.shape[1] * lanes * itemsize,
    )


def cost(o: Options, x: Floats, products: int, of_head: int, once: int = 0) -> pl.CostEstimate:
    """What a kernel computes and moves, for XLA's scheduler and for whoever reads its analysis.

    Tiles that nobody sees are counted, too: they are fetched, if not computed.

    Args:
        products: of a tile, T x T x D each.
        of_head: bytes moved for one head of one batch element. once: bytes beside those of heads.
    """
    heads = o.batch * o.heads
    scores = heads * o.row_tiles * o.key_tiles * o.tile**2
    return pl.CostEstimate(
        flops=2 * scores * products * x.q.shape[3],
        transcendentals=scores,
        bytes_accessed=heads * of_head + once,
    )
