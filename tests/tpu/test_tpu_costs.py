"""What the kernels say that they move, against a walk over their grids that fetches each block.

XLA cannot look into a kernel, so of its "bytes accessed" these are the kernel's own words. Blocks
are counted as they lie in main memory: rows of 128 numbers, with nothing beside them.
"""

from __future__ import annotations

import itertools
import math

import pytest

pytest.importorskip("jax", reason="the TPU kernels need JAX: pip install xlnet-fast[tpu]")

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from xlnet_fast.kernels import pallas

TILE = 128


@pytest.fixture
def calls(monkeypatch):
    """What each kernel that is traced was made of, by its name, with its operands' shapes."""
    found = {}
    real = pl.pallas_call

    def pallas_call(kernel, *, name, out_shape, **options):
        inner = real(kernel, name=name, out_shape=out_shape, **options)

        def call(*operands):
            arrays = jax.tree.leaves([operands, out_shape])
            found[name] = options, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
            return inner(*operands)

        return call

    monkeypatch.setattr(pl, "pallas_call", pallas_call)
    return found


def walk(options, arrays):
    """(bytes counted, bytes estimated) of a kernel."""
    specs = jax.tree.leaves([options["in_specs"], options["out_specs"]])
    counted = sum(moved(*pair, options["grid"]) for pair in zip(specs, arrays, strict=True))
    return counted, options["cost_estimate"].bytes_accessed


def moved(spec, x, grid):
    """Bytes of all blocks of one operand: one anew wherever a program has another than before."""
    if spec.block_shape is None:  # the seed, in scalar memory
        return 0
    places = [
        tuple(map(int, spec.index_map(*program)))
        for program in itertools.product(*map(range, grid))
    ]
    fetches = 1 + sum(a != b for a, b in itertools.pairwise(places))
    *outer, rows, columns = spec.block_shape
    rows = 1 << (rows - 1).bit_length() if rows < 8 else -(-rows // 8) * 8  # 3 lie as 4 do
    columns = -(-columns // 128) * 128
    return fetches * math.prod(outer) * rows * columns * x.dtype.itemsize


def shapes(dtype, dim, rows, memory, groups, heads_of_r, everything):
    """Arguments of an op, and their tree without what has no gradient."""
    batch, heads = 2, 3

    def of(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    keys = rows + memory
    operands = {
        "q": of(batch, rows, heads, dim), "k": of(batch, rows, heads, dim),
        "v": of(batch, rows, heads, dim), "r": of(groups, rows + keys, heads_of_r, dim),
        "r_w_bias": of(heads, dim), "r_r_bias": of(heads, dim),
    }  # fmt: skip
    if memory:
        operands |= {name: of(batch, memory, heads, dim) for name in ("k_memory", "v_memory")}
    if not everything:
        return operands, {}
    operands |= {"r_s_bias": of(heads, dim), "seg_embed": of(2, heads, dim)}
    numbers = {"segments_q": rows, "segments_k": keys, "rank_q": rows, "rank_k": keys}
    others = {name: of(batch, length, dtype="int32") for name, length in numbers.items()}
    others |= {"key_padding": of(batch, keys, dtype="bool"), "seed": of(2, dtype="uint32")}
    return operands, others


CASES = [
    ("bfloat16", 64, 256, 256, 1, 3, True),
    ("float32", 128, 384, 256, 2, 3, True),
    ("bfloat16", 128, 256, 0, 1, 1, False),
    ("float32", 20, 256, 0, 2, 1, False),
]


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_what_the_grid_moves(calls, case):
    operands, others = shapes(*case)
    dropout_p = 0.1 if others else 0.0

    def loss(operands, others):
        out = pallas.rel_attention(
            **operands, **others, see_self=bool(others), dropout_p=dropout_p, tile=TILE, chip="v5e"
        )
        return out.astype(jnp.float32).sum()

    jax.eval_shape(jax.grad(loss), operands, others)
    assert set(calls) == {
        f"xlnet_rel_attention_{name}" for name in ("forward", "backward_q", "backward_kv")
    }
    for name, call in calls.items():
        counted, estimated = walk(*call)
        # Heads that share a table of r find the first blocks of theirs where the one before ended.
        assert counted <= estimated <= (1.1 if case[5] == 1 else 1.0) * counted, name


def test_products_of_a_tile(calls):
    operands, _ = shapes("bfloat16", 128, 256, 0, 1, 3, False)

    def loss(operands):
        out = pallas.rel_attention(**operands, tile=TILE, chip="v5e")
        return out.astype(jnp.float32).sum()

    jax.eval_shape(jax.grad(loss), operands)
    of_a_product = 2 * 3 * 2 * 256 * 256 * 128  # batch, heads, a multiplication and an addition
    products = {
        name: options["cost_estimate"].flops / of_a_product for name, (options, _) in calls.items()
    }
    assert products == {
        "xlnet_rel_attention_forward": 4,
        "xlnet_rel_attention_backward_q": 9,
        "xlnet_rel_attention_backward_kv": 6,
    }


def test_blocks_that_stay_are_counted_at_most_once_more(calls):
    """With one tile of keys the next tile of rows meets the same ones, which are not fetched."""
    operands, _ = shapes("bfloat16", 128, 128, 0, 1, 1, False)
    jax.eval_shape(lambda x: pallas.rel_attention(**x, tile=TILE, chip="v5e"), operands)
    (call,) = calls.values()
    counted, estimated = walk(*call)
    assert counted <= estimated < 1.6 * counted
