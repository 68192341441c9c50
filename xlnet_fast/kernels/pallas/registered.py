"""The registered ops of attention as JAX functions: a lowering calls them with the ops' arguments.

The schemas are those of ``xlnet_fast/ops/_contracts/rel_attention.py``. Beside its outputs an op
returns statistics, here of shape (0,): the backward ops make the forward pass again. The backend
that a program was traced with is not looked at, a lowering to JAX is the choice of this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.kernels import pallas
from xlnet_fast.kernels.pallas import philox

Outputs = tuple[jax.Array, ...]


class Rest(NamedTuple):
    """What follows the operands in both schemas, the backend's name aside."""

    segments_q: Any
    segments_k: Any
    key_padding: Any
    rank_q: Any
    rank_k: Any
    bits: Any
    positions: Any
    seed: Any
    causal: bool
    same_length: bool
    see_self: bool
    window_left: int
    window_right: int
    chunk: int
    memory_length: int
    r_start: int
    scale: float
    dropout_p: float


OPERANDS = 9
"""How many arguments behind the queries have a gradient: k to seg_embed."""


def rel_attention(q: Any, *args: Any, chip: str | None = None, interpret: Any = False) -> Outputs:
    """``xlnet_fast::rel_attention``.

    Args:
        q, args: as the schema has them; a seed has one element, of whatever integer JAX made of it.
        chip, interpret: of ``xlnet_fast.kernels.pallas.rel_attention``.

    Returns:
        (B, I, N, D) in the dtype of q, and (0,) float32.

    Raises:
        ShapeError, ArgumentError: as ``xlnet_fast.kernels.pallas.rel_attention``.
    """
    return *_attend((q,), args, chip, interpret), *_no_statistics(1)


def two_stream_attention(
    q_h: Any, q_g: Any, *args: Any, chip: str | None = None, interpret: Any = False
) -> Outputs:
    """``xlnet_fast::two_stream_attention``: outputs of both streams and (0,) float32 of each.

    Arguments and errors as :func:`rel_attention`.
    """
    return *_attend((q_h, q_g), args, chip, interpret), *_no_statistics(2)


def rel_attention_backward(
    wanted: Sequence[bool], *args: Any, chip: str | None = None, interpret: Any = False
) -> Outputs:
    """``xlnet_fast::rel_attention_backward``: gradients of the ten operands, q first.

    Args:
        wanted: which of them; another's is empty.
        args: gradient of the output, output, statistics, and the arguments of the forward op.
    """
    return _gradients(wanted, args, 1, chip, interpret)


def two_stream_attention_backward(
    wanted: Sequence[bool], *args: Any, chip: str | None = None, interpret: Any = False
) -> Outputs:
    """``xlnet_fast::two_stream_attention_backward``: gradients of the eleven operands.

    Arguments as :func:`rel_attention_backward`, those before the queries twice, stream by stream.
    """
    return _gradients(wanted, args, 2, chip, interpret)


def keep_mask(
    seed: Any, threshold: int, heads: int, *region: int, chip: str | None = None, interpret: Any = 0
) -> jax.Array:
    """``xlnet_fast::keep_mask``, (B, N, I, J) bool: XLA's own code, on any chip.

    Args:
        region: first and last row, keys, first and last batch element, ends excluded.
    """
    first_row, last_row, keys, first, last = region
    words = seed_words(seed)
    return philox.keep_mask(words, threshold, heads, (first_row, last_row), keys, (first, last))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "rel_attention": rel_attention,
    "rel_attention_backward": rel_attention_backward,
    "two_stream_attention": two_stream_attention,
    "two_stream_attention_backward": two_stream_attention_backward,
    "keep_mask": keep_mask,
}
"""By the names of the ops in the library ``xlnet_fast``."""


def functions(chip: str | None = None, interpret: Any = False) -> dict[str, Callable[..., Any]]:
    """:data:`FUNCTIONS` for a chip: what they are called with is the op's arguments alone."""
    return {name: partial(f, chip=chip, interpret=interpret) for name, f in FUNCTIONS.items()}


def _attend(
    queries: Sequence[Any], args: Sequence[Any], chip: str | None, interpret: Any
) -> Outputs:
    """Outputs of one stream or of two, ``args`` being those behind the queries."""
    k, v, k_memory, v_memory, r, r_w_bias, r_r_bias, r_s_bias, seg_embed = args[:OPERANDS]
    rest = Rest(*args[OPERANDS:-1])
    _check_lengths(queries[-1], k)
    options: dict[str, Any] = {
        "k_memory": k_memory, "v_memory": v_memory, "r_s_bias": r_s_bias, "seg_embed": seg_embed,
        "key_padding": rest.key_padding, "rank_q": rest.rank_q, "rank_k": rest.rank_k,
        "bits": rest.bits, "causal": rest.causal, "same_length": rest.same_length,
        "window": _window(rest), "chunk": rest.chunk, "positions": rest.positions,
        "scale": rest.scale, "dropout_p": rest.dropout_p, "seed": seed_words(rest.seed),
        "r_start": rest.r_start, "chip": chip, "interpret": interpret,
    }  # fmt: skip
    shared = (k, v, r, r_w_bias, r_r_bias)
    if len(queries) == 2:
        q_h, q_g = queries
        return pallas.two_stream_attention(q_h, q_g, *shared, segments=rest.segments_k, **options)
    # A traced program keeps the number it was traced with: arrays tell it, if they do.
    told = k_memory is not None or rest.positions is None
    out = pallas.rel_attention(
        queries[0], *shared, segments_q=rest.segments_q, segments_k=rest.segments_k,
        see_self=rest.see_self, memory_length=None if told else rest.memory_length, **options,
    )  # fmt: skip
    return (out,)


def _gradients(
    wanted: Sequence[bool], args: Sequence[Any], streams: int, chip: str | None, interpret: Any
) -> Outputs:
    """Those of the operands that are wanted and given, (0,) in the dtype of q for the others."""
    grad_outs, arguments = args[:streams], args[3 * streams :]
    count = streams + OPERANDS
    operands, rest = arguments[:count], arguments[count:]
    asked = [x is not None and want for x, want in zip(operands, wanted, strict=True)]

    def of_asked(*chosen: jax.Array) -> Outputs:
        given = iter(chosen)
        filled = [next(given) if a else x for a, x in zip(asked, operands, strict=True)]
        return _attend(filled[:streams], (*filled[streams:], *rest), chip, interpret)

    _, pull_back = jax.vjp(of_asked, *(x for a, x in zip(asked, operands, strict=True) if a))
    found = iter(pull_back(tuple(grad_outs)))
    return tuple(next(found) if a else jnp.zeros(0, operands[0].dtype) for a in asked)


def seed_words(seed: Any) -> jax.Array | None:
    """Low and high word, (2,) uint32, of a seed as an int64 has them.

    Args:
        seed: a Python int, one element of int32 or int64, or these words already.

    JAX has no int64 unless ``jax_enable_x64`` is on: what it made of a seed beyond 31 bits before
    it came here, no one can tell.
    """
    if seed is None:
        return None
    if isinstance(seed, int) or (seed.dtype == jnp.uint32 and seed.shape == (2,)):
        return philox.seed_words(seed)
    if seed.size != 1 or seed.dtype not in (jnp.int32, jnp.int64):
        raise ShapeError(
            f"seed has shape {tuple(seed.shape)} and dtype {seed.dtype}, expected one element of "
            "int32 or int64"
        )
    seed = seed.reshape(())
    low = lax.convert_element_type(seed, jnp.uint32)
    high = lax.convert_element_type(seed >> min(32, 8 * seed.dtype.itemsize - 1), jnp.uint32)
    return jnp.stack([low, high])


def _window(rest: Rest) -> tuple[int | None, int | None] | None:
    """As ``AttentionMask.window`` has it: -1 in the schema is no limit to that side."""
    left, right = (None if side < 0 else side for side in (rest.window_left, rest.window_right))
    return None if left is None and right is None else (left, right)


def _check_lengths(q: Any, k: Any) -> None:
    if not all(isinstance(n, int) for n in (*q.shape, *k.shape)):
        raise ArgumentError(
            f"q has shape {tuple(q.shape)} and k {tuple(k.shape)}: the TPU kernels are compiled "
            "for known sizes, so export or jit with fixed shapes"
        )


def _no_statistics(streams: int) -> Outputs:
    return (jnp.zeros(0, jnp.float32),) * streams
