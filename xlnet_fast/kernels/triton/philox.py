"""Dropout's keep mask in one launch, bit for bit that of :mod:`xlnet_fast.philox`.

A program makes one tile of rows and keys of one batch element and head, four keys with each call of
the generator, and stores a byte for each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.triton import jit, tl, why_unavailable
from xlnet_fast.kernels.triton.compilation import Compilation
from xlnet_fast.kernels.triton.compiling import run_kernel
from xlnet_fast.kernels.triton.tile_ops import _keep_tile

BM, BN = 16, 128  # 128 threads with 16 keys each: one store of 16 bytes
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True, "maxnreg": 255}
_NUMBERS = ("first_row", "first_bn", "rows", "keys", "keep_from")


@jit(do_not_specialize=[name for name in _NUMBERS if name != "keys"])
def _keep_kernel(
    out,  # (b * N, rows, J) uint8
    seed,  # one int64
    first_row, first_bn,  # what row 0 of out and its element 0 are in the whole
    rows, keys,
    keep_from,  # the threshold less 2**31
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    i_tile = tl.program_id(0)
    keys_tiles = tl.cdiv(keys, BN)
    tiles = tl.cdiv(rows, BM) * keys_tiles
    i_bn = i_tile // tiles
    i_tile = i_tile % tiles
    o_i = (i_tile // keys_tiles) * BM + tl.arange(0, BM)
    j0 = (i_tile % keys_tiles) * BN
    o_j = j0 + tl.arange(0, BN)
    # [BM, BN]
    b_keep = _keep_tile(tl.load(seed), first_row + o_i, j0, first_bn + i_bn, keep_from, BM, BN)
    p_out = out + (i_bn.to(tl.int64) * rows + o_i[:, None]) * keys + o_j[None, :]
    tl.store(p_out, b_keep.to(tl.uint8), mask=(o_i < rows)[:, None] & (o_j < keys)[None, :])


def keep_mask(
    seed: Tensor,
    threshold: int,
    heads: int,
    rows: tuple[int, int],
    keys: int,
    batch_range: tuple[int, int],
) -> Tensor:
    """Some rows of a dropout mask, (b1 - b0, N, i1 - i0, J) bool, on the seed's device.

    Args:
        seed: one int64 element. threshold: of ``philox.keep_threshold``.
        heads: N. rows: (i0, i1). keys: J. batch_range: (b0, b1).

    Raises:
        BackendUnavailable: Triton or a CUDA device is missing.
        ArgumentError: a seed of another dtype or size; more rows, or batch elements times heads,
            than 32 bits count.
    """
    reason = why_unavailable(seed.device)
    if reason is not None:
        raise BackendUnavailable(reason)
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise ArgumentError(f"seed is {seed.dtype} of {seed.numel()} elements, expected one int64")
    if max(rows[1], batch_range[1] * heads, keys) >= 2**31:
        raise ArgumentError(f"rows {rows}, batch {batch_range} or keys {keys} exceed 32 bits")
    shape = (batch_range[1] - batch_range[0], heads, rows[1] - rows[0], keys)
    out = torch.empty(shape, dtype=torch.uint8, device=seed.device)
    if out.numel() == 0:
        return out.view(torch.bool)
    tiles = -(-shape[2] // BM) * -(-keys // BN)
    guard = torch.cuda.device(seed.device) if seed.is_cuda else contextlib.nullcontext()
    with guard:
        run_kernel(
            _keep_kernel, (shape[0] * heads * tiles,),
            out, seed, rows[0], batch_range[0] * heads, shape[2], keys, threshold - 2**31,
            BM=BM, BN=BN, **OPTIONS,
        )  # fmt: skip
    return out.view(torch.bool)


def compilations(arch: int) -> Iterator[Compilation]:
    """The one there is; its words have 32 bits, so the report lists it under fp32."""
    yield Compilation(
        kernel="philox_keep_mask",
        variant="-",
        features="-",
        dtype="fp32",
        head_dim=None,
        function=_keep_kernel,
        types={"out": "*u8", "seed": "*i64", **dict.fromkeys(_NUMBERS, "i32")},
        constants={"BM": BM, "BN": BN},
        options=OPTIONS,
        tile=(BM, BN),
    )
