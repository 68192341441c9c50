"""What the Pallas kernels refuse, and how they say so."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("jax", reason="the TPU kernels need JAX: pip install xlnet-fast[tpu]")

import jax
import jax.numpy as jnp
from tpu_interpreted import ON_TPU, TILE

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.kernels.pallas import rel_attention, two_stream_attention

B, I, M, N, D = 2, 5, 3, 2, 8
J = I + M


def operands(dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    shapes = {
        "q": (B, I, N, D), "k": (B, J, N, D), "v": (B, J, N, D), "r": (1, I + J, N, D),
        "r_w_bias": (N, D), "r_r_bias": (N, D),
    }  # fmt: skip
    return {name: jnp.ones(shape, dtype) for name, shape in shapes.items()}


def ones(*shape: int, dtype: Any = jnp.int32) -> jax.Array:
    return jnp.ones(shape, dtype)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"bits": ones(B, I, 1)}, ArgumentError, "take no packed bits: say what they hide by"),
        ({"q": ones(B, I, N, 129, dtype=jnp.float32)}, ShapeError, "1 <= D <= 128"),
        ({"k": ones(B, J, N, 4, dtype=jnp.float32)}, ShapeError, "k has shape"),
        ({"v": ones(B, I, N, D, dtype=jnp.float32)}, ShapeError, "v has shape"),
        ({"v": ones(B, J, N, D, dtype=jnp.bfloat16)}, ArgumentError, "v has dtype bfloat16"),
        ({"r": ones(1, 12, N, D, dtype=jnp.float32)}, ShapeError, "r has 12 rows, .* least 13"),
        ({"r": ones(3, 13, N, D, dtype=jnp.float32)}, ShapeError, "G divides 2"),
        ({"r_start": 2}, ArgumentError, "r_start is 2"),
        ({"r_r_bias": ones(D, dtype=jnp.float32)}, ShapeError, "r_r_bias has shape"),
        ({"segments_q": ones(B, I)}, ShapeError, "segments_q, segments_k must be given together"),
        ({"segments_q": ones(B, I), "segments_k": ones(B, J)}, ShapeError, "missing: r_s_bias"),
        ({"rank_q": ones(B, I)}, ShapeError, "rank_q, rank_k must be given together"),
        ({"rank_q": ones(B, J), "rank_k": ones(B, J)}, ShapeError, "rank_q has shape"),
        ({"key_padding": ones(B, I, dtype=jnp.bool_)}, ShapeError, "key_padding has shape"),
        ({"window": (-1, 2)}, ArgumentError, "mask.window is"),
        ({"same_length": True}, ShapeError, "needs mask.causal"),
        ({"k_memory": ones(B, M, N, D, dtype=jnp.float32)}, ShapeError, "missing: v_memory"),
        ({"memory_length": J + 1}, ShapeError, "of 8 keys 9 cannot be memory"),
        ({"memory_length": J - 1}, ShapeError, "q has 5 rows, but there are 1 current keys"),
        ({"positions": ones(B, I)}, ArgumentError, "positions need memory_length"),
        ({"positions": ones(B, I), "memory_length": M}, ArgumentError, "has a position twice"),
        ({"positions": ones(B, I) + 4, "memory_length": M}, ArgumentError, "less than L = 5"),
        ({"dropout_p": 0.1}, ArgumentError, "needs a seed"),
        ({"dropout_p": 0.1, "seed": 2**63}, ArgumentError, "seed must fit int64"),
        ({"dropout_p": 0.1, "seed": ones(2)}, ArgumentError, r"as \(2,\) uint32"),
        ({"dropout_p": 1.0}, ArgumentError, "dropout probability"),
        ({"tile": 48}, ArgumentError, "a power of two from 16 on"),
        ({"chip": "v3"}, ArgumentError, "chip is 'v3', expected None or one of v4, v5e"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(given, error, said):
    with pytest.raises(error, match=said):
        rel_attention(**{**operands(), **given})


def test_other_floats_are_refused():
    with pytest.raises(ArgumentError, match="q has dtype float16, expected bfloat16 or float32"):
        rel_attention(**operands(jnp.float16))


def test_a_query_stream_of_other_rows_needs_positions():
    given = operands()
    given["q_h"] = given.pop("q")
    with pytest.raises(ShapeError, match="q_g has shape"):
        two_stream_attention(q_g=given["q_h"][:, :3], **given)


def test_of_positions_that_come_twice_under_jit_one_row_is_nan():
    positions = jnp.array([[0, 1, 2, 3, 3], [-1, 1, 2, 4, 5]])

    @jax.jit
    def attend(positions):
        return rel_attention(
            **operands(), positions=positions, memory_length=M, tile=TILE, interpret=not ON_TPU
        )

    is_nan = jnp.isnan(attend(positions)).all(axis=(2, 3))
    assert is_nan[0].tolist() in ([False] * 3 + [True, False], [False] * 4 + [True])
    assert is_nan[1].tolist() == [False] * 4 + [True]  # 5 is beyond the last position


def test_a_batch_of_nothing_has_an_empty_output_and_gradients_of_zero():
    given = {name: x[:0] if name in "qkv" else x for name, x in operands().items()}
    assert rel_attention(**given).shape == (0, I, N, D)
    grads = jax.grad(lambda x: rel_attention(**x).sum())(given)
    assert all(grads[name].shape == x.shape and not grads[name].any() for name, x in given.items())
