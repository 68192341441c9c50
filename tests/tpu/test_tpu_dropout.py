"""Dropout of the Pallas kernels: bit for bit the mask of ``xlnet_fast.philox``."""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("jax", reason="the TPU kernels need JAX: pip install xlnet-fast[tpu]")

import attention_checks as checks
import jax
import jax.numpy as jnp
import torch
from hf_oracle import make_problem
from jax.experimental import pallas as pl
from tpu_interpreted import ON_TPU, TILE, rel_attention, to_torch
from yardstick import Graph, Yardstick

from xlnet_fast import reference
from xlnet_fast.kernels.pallas import philox
from xlnet_fast.philox import keep_mask, keep_threshold

SEED = -12345
HEAD = 3  # b * N + n


@pytest.mark.parametrize(("tile", "first_key"), [(16, 0), (16, 48), (128, 256)])
@pytest.mark.parametrize(("seed", "p"), [(SEED, 0.3), (2**32 - 1, 0.0001), (2**62 + 7, 0.999)])
def test_a_tile_has_the_bits_of_the_definition(tile, first_key, seed, p):
    numbers = torch.randperm(1000)[:tile]

    def kernel(words, rows, kept):
        kept[...] = philox.kept(words, keep_threshold(p), HEAD, rows[...], first_key)

    call = pl.pallas_call(
        kernel, out_shape=jax.ShapeDtypeStruct((tile, tile), jnp.float32), interpret=not ON_TPU
    )
    kept = call(philox.seed_words(seed), jnp.asarray(numbers.numpy(), jnp.int32)[:, None])
    whole = keep_mask(seed, p, HEAD + 1, 1, (0, 1000), first_key + tile)
    assert torch.equal(to_torch(kept) == 1, whole[HEAD, 0][numbers, first_key:])
    assert set(kept.reshape(-1).tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("seed", [0, 41, -1, 2**32 - 1, 2**63 - 1, -(2**63)])
def test_the_next_seed_is_one_more(seed):
    expected = philox.seed_words((seed + 1 + 2**63) % 2**64 - 2**63)
    assert philox.next_seed(philox.seed_words(seed)).tolist() == expected.tolist()


def test_the_kernel_drops_what_the_definition_drops():
    out, expected = checks.dropped_and_kept(rel_attention, 1, torch.float32, keys=40)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("targets", [None, 9])
@pytest.mark.parametrize("mask", ["left", "nothing visible"])
def test_gradients_under_dropout(mask, targets):
    sizes = {"batch": 2, "queries": 37, "memory": 19, "dim": 8}
    problem = make_problem(**sizes, mask=mask, segments=2, targets=targets).to(torch.float32)
    options = {**problem.options, "dropout_p": 0.4, "seed": torch.tensor(SEED)}
    attend = reference.rel_attention
    yardstick = Yardstick(attend, attend, problem.operands, **options)
    in_tiles = functools.partial(rel_attention, tile=TILE)
    yardstick.check(Graph(in_tiles, problem.operands, **options))
