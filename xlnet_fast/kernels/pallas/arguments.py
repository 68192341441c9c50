"""Arguments of the public functions, and checks of their names, shapes and dtypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.kernels.pallas.philox import SEEDS
from xlnet_fast.masks import AttentionMask
from xlnet_fast.philox import keep_threshold

MAX_HEAD_DIM = 128


@dataclass(frozen=True)
class Shared:
    """All that the rows of both streams meet, named as in ``rel_attention``."""

    k: Any
    v: Any
    k_memory: Any
    v_memory: Any
    r: Any
    r_w_bias: Any
    r_r_bias: Any
    r_s_bias: Any
    seg_embed: Any
    segments: Any  # of the keys
    key_padding: Any
    rank_k: Any
    causal: bool
    same_length: bool
    see_self: bool
    window: tuple[int | None, int | None] | None
    chunk: int
    scale: float | None
    dropout_p: float
    seed: Any
    r_start: int
    tile: int | None
    chip: str | None
    interpret: Any

    @property
    def flags(self) -> AttentionMask:
        """The parts of the mask that are no arrays."""
        return AttentionMask(
            causal=self.causal,
            same_length=self.same_length,
            see_self=self.see_self,
            window=self.window,
            chunk=self.chunk,
        )


def check(
    q: Any, shared: Shared, memory_length: int | None, located: bool, bits: Any
) -> tuple[int, int]:
    """All but what belongs to the query rows alone.

    Args:
        located: whether rows have positions, so that their number tells nothing of M.

    Returns:
        J and M.
    """
    if bits is not None:
        raise ArgumentError(
            "the TPU kernels take no packed bits: say what they hide by key_padding, ranks, causal "
            "or window, or use the reference"
        )
    if q.ndim != 4 or q.shape[2] == 0 or not 1 <= q.shape[3] <= MAX_HEAD_DIM:
        raise ShapeError(
            f"q has shape {tuple(q.shape)}, expected (B, I, N, D) with 1 <= D <= {MAX_HEAD_DIM}"
        )
    keys, memory = _check_sources(q, shared, memory_length, located)
    _check_operands(q, shared)
    _check_table(q, shared, keys, memory)
    shape = (q.shape[0], keys)
    for name, x in (("segments", shared.segments), ("rank_k", shared.rank_k)):
        check_shape(name, x, shape, "B, J")
    check_shape("key_padding", shared.key_padding, shape, "B, J")
    shared.flags.validate(q.shape[0], q.shape[1], keys)
    if shared.tile is not None and (shared.tile < 16 or shared.tile & (shared.tile - 1)):
        raise ArgumentError(f"tile is {shared.tile}, expected a power of two from 16 on")
    _check_dropout(shared)
    return keys, memory


def check_rows(q: Any, **of_rows: Any) -> None:
    """Arrays with a number for each query row, or None."""
    for name, x in of_rows.items():
        check_shape(name, x, q.shape[:2], "B, I")


def check_query_stream(q_h: Any, q_g: Any, positions: Any) -> None:
    """q_g, and the positions of its rows."""
    batch, rows, heads, dim = q_h.shape
    rows = rows if positions is None or q_g.ndim != 4 else q_g.shape[1]
    check_shape("q_g", q_g, (batch, rows, heads, dim), "B, I', N, D")
    if q_g.dtype != q_h.dtype:
        raise ArgumentError(f"q_g has dtype {q_g.dtype}, but q_h has {q_h.dtype}")
    check_shape("positions", positions, (batch, rows), "B, I'")


def check_positions(positions: Any, length: int) -> None:
    """Where they can be looked at: each below L, none of them twice."""
    if isinstance(positions, jax.core.Tracer):
        return
    for batch, row in enumerate(np.asarray(positions)):
        present = row[row >= 0]
        if len(present) and present.max() >= length:
            raise ArgumentError(
                f"positions[{batch}] has {present.max()}, expected less than L = {length}"
            )
        if len(np.unique(present)) < len(present):
            raise ArgumentError(f"positions[{batch}] has a position twice")


def check_shape(name: str, x: Any, shape: tuple[int, ...], letters: str) -> None:
    """None is no fault."""
    if x is not None and tuple(x.shape) != tuple(shape):
        raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected ({letters}) = {shape}")


def check_together(**arrays: Any) -> bool:
    """Whether they are given: all of them or none."""
    missing = [name for name, x in arrays.items() if x is None]
    if missing and len(missing) < len(arrays):
        raise ShapeError(
            f"{', '.join(arrays)} must be given together; missing: {', '.join(missing)}"
        )
    return not missing


def _check_sources(
    q: Any, shared: Shared, memory_length: int | None, located: bool
) -> tuple[int, int]:
    """J and M, from the shapes of keys and values."""
    batch, rows, heads, dim = q.shape
    k, k_memory = shared.k, shared.k_memory
    for name, x in (("k", k), ("k_memory", k_memory)):
        if x is not None and (x.ndim != 4 or (x.shape[0], *x.shape[2:]) != (batch, heads, dim)):
            raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected {batch, -1, heads, dim}")
    check_shape("v", shared.v, k.shape, "B, J, N, D")
    keys = k.shape[1]
    if check_together(k_memory=k_memory, v_memory=shared.v_memory):
        memory = k_memory.shape[1]
        check_shape("v_memory", shared.v_memory, k_memory.shape, "B, M, N, D")
        if memory_length not in (None, memory):
            raise ShapeError(f"memory_length is {memory_length}, but k_memory has {memory} keys")
        keys += memory
    elif memory_length is not None:
        memory = memory_length
    elif located:
        raise ArgumentError("positions need memory_length, or k_memory and v_memory")
    else:
        memory = keys - rows
    if not 0 <= memory <= keys or keys == 0:
        raise ShapeError(f"of {keys} keys {memory} cannot be memory")
    if not located and rows > keys - memory:
        raise ShapeError(f"q has {rows} rows, but there are {keys - memory} current keys")
    return keys, memory


def _check_operands(q: Any, shared: Shared) -> None:
    """One dtype, that of a TPU's products; biases and embeddings of the right shape."""
    heads_by_dim = q.shape[2:]
    check_together(r_s_bias=shared.r_s_bias, seg_embed=shared.seg_embed, segments_k=shared.segments)
    for name in ("r_w_bias", "r_r_bias", "r_s_bias"):
        check_shape(name, getattr(shared, name), heads_by_dim, "N, D")
    check_shape("seg_embed", shared.seg_embed, (2, *heads_by_dim), "2, N, D")
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        raise ArgumentError(f"q has dtype {q.dtype}, expected bfloat16 or float32")
    names = ("k", "v", "k_memory", "v_memory", "r", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")
    for name in names:
        x = getattr(shared, name)
        if x is not None and x.dtype != q.dtype:
            raise ArgumentError(f"{name} has dtype {x.dtype}, but q has {q.dtype}")


def _check_table(q: Any, shared: Shared, keys: int, memory: int) -> None:
    """Shape of r, and that no visible key lacks its row."""
    batch, _, heads, dim = q.shape
    r = shared.r
    if shared.r_start not in (0, 1):
        raise ArgumentError(f"r_start is {shared.r_start}, expected 0 or 1")
    is_table = r.ndim == 4 and r.shape[2] in (1, heads) and r.shape[3] == dim
    if not is_table or r.shape[0] == 0 or batch % r.shape[0]:
        raise ShapeError(
            f"r has shape {tuple(r.shape)}, expected (G, P, {heads} or 1, {dim}) where G divides "
            f"{batch}"
        )
    least = (keys + 1 if shared.causal else 2 * keys - memory) - shared.r_start
    if r.shape[1] < least:
        raise ShapeError(f"r has {r.shape[1]} rows, expected at least {least}")


def _check_dropout(shared: Shared) -> None:
    seed = shared.seed
    if keep_threshold(shared.dropout_p) == 0:
        return
    if seed is None:
        raise ArgumentError("dropout_p > 0 needs a seed")
    if isinstance(seed, int):
        if seed not in SEEDS:
            raise ArgumentError(f"seed must fit int64, got {seed}")
    elif tuple(seed.shape) != (2,) or seed.dtype != jnp.uint32:
        raise ArgumentError(
            f"seed has shape {tuple(seed.shape)} and dtype {seed.dtype}, expected an int, or its "
            f"low and high word as (2,) uint32"
        )
