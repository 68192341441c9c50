"""Parts of the Pallas kernels alone: the skew and its inverse, which tiles are left out, chips."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("jax", reason="the TPU kernels need JAX: pip install xlnet-fast[tpu]")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.experimental import pallas as pl
from tpu_interpreted import ON_TPU, TILE

from xlnet_fast.errors import ArgumentError
from xlnet_fast.kernels.pallas import chips, tile_ops
from xlnet_fast.masks import AttentionMask

TILES = sorted({TILE, 128})


def through_a_kernel(function: Any, x: np.ndarray, width: int) -> np.ndarray:
    def kernel(x, out):
        out[...] = function(x[...])

    shape = jax.ShapeDtypeStruct((x.shape[0], width), jnp.float32)
    return np.asarray(pl.pallas_call(kernel, out_shape=shape, interpret=not ON_TPU)(x))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("strided", [True, False])
def test_the_skew_moves_each_row_by_one_more(tile, strided):
    raw = np.random.default_rng(0).standard_normal((tile, 2 * tile)).astype(np.float32)
    expected = [raw[a, tile - 1 - a : 2 * tile - 1 - a] for a in range(tile)]
    skewed = through_a_kernel(lambda x: tile_ops.skew(x, strided), raw, tile)
    assert np.array_equal(skewed, np.stack(expected))


@pytest.mark.parametrize("tile", TILES)
def test_its_inverse_brings_them_back(tile):
    x = np.random.default_rng(0).standard_normal((tile, tile)).astype(np.float32)
    expected = np.zeros((tile, 2 * tile), np.float32)
    for a in range(tile):
        expected[a, tile - 1 - a : 2 * tile - 1 - a] = x[a]
    assert np.array_equal(through_a_kernel(tile_ops.unskew, x, 2 * tile), expected)


@pytest.mark.parametrize("memory", [33, 37])  # some windows end with a tile
@pytest.mark.parametrize(
    "parts",
    [
        {"causal": True},
        {"causal": True, "same_length": True},
        {"window": (22, 11)},
        {"window": (0, None)},
        {"window": (None, 0), "chunk": 24},
        {"window": (5, 7), "chunk": 13, "causal": True},
    ],
)
def test_no_tile_is_left_out_that_anyone_sees(parts, memory):
    rows, tile = 80, 16
    mask = AttentionMask(**parts)
    o = SimpleNamespace(
        tile=tile, memory=memory, causal=mask.causal, same_length=mask.same_length,
        window=mask.limits,
    )  # fmt: skip
    keys = -(-(rows + memory) // tile) * tile
    visible = ~mask.hidden(torch.arange(rows)[None], keys, memory)[0]
    in_tiles = visible.view(rows // tile, tile, keys // tile, tile).any(3).any(1)
    seen = [
        [bool(tile_ops.is_seen(jnp.int32(i), jnp.int32(j), o)) for j in range(keys // tile)]
        for i in range(rows // tile)
    ]
    assert torch.equal(torch.tensor(seen), in_tiles)
    assert not in_tiles.all()


def test_tiles_are_as_large_as_vmem_and_padding_allow():
    v4, v5e = chips.CHIPS["v4"], chips.CHIPS["v5e"]
    assert chips.find_tile(v5e, 2048, 2048, 64, 2) == 512
    assert chips.find_tile(v4, 2048, 2048, 64, 2) == 256
    assert chips.find_tile(v5e, 640, 640, 64, 2) == 128  # 1024 x 1024 scores, with tiles of 512
    assert chips.find_tile(v5e, 700, 1250, 64, 2) == 256


def test_a_table_that_fits_no_tile_is_refused():
    rows = 16384
    with pytest.raises(ArgumentError, match="MiB of a TPU core's VMEM for the gradient of r"):
        chips.find_tile(chips.ANY, rows, rows, 128, 4)
    assert chips.find_tile(chips.CHIPS["v5e"], rows, rows, 128, 4) == 512


def test_without_a_tpu_the_kernels_are_for_any():
    assert chips.find_chip(None) == chips.ANY
    for chip in chips.CHIPS.values():
        assert chip.vmem_bytes >= chips.ANY.vmem_bytes
    assert not chips.ANY.strided_roll
