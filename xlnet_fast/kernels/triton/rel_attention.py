"""Relative attention forward, variant `precomputed`: the position scores come from a library GEMM.

Letters: b batch, n head, i query row, j key, d head dim, p row of r; B, N, I, J, D, P their counts;
M memory length, L = J - M keys of the current segment; pos_i the position of row i in 0..L-1.

    bd[n,b,i,p] = (q_i + r_r_bias) . r_p                        one GEMM per group of r, input dtype
    s[i,j]      = scale * ( (q_i + r_w_bias) . k_j + bd[i, j - pos_i + L] + [seg_i != seg_j] c_i )
    c_i         = (q_i + r_s_bias) . (seg_embed_1 - seg_embed_0)                            fp32
    out_i       = sum_j softmax(s)_ij v_j                       online softmax, statistics in fp32

No relative shift is ever made: row i reads bd at base + i * stride + j - pos_i + L.

Hidden keys never enter the running sums. A row that sees no key is uniform over all J keys, as
HF's -1e30 makes it; such rows are recomputed after the main loop, by the few tiles that have any.
So the main loop may skip whole tiles of hidden keys, and it never loads k and v of keys hidden by
`key_padding`. With `see_self` the row's own key is the start value of the online softmax and the
loop leaves it out. What follows from it for NaN and inf:
  - in k and v of keys that `key_padding` hides they count as 0 and reach nothing;
  - in k of keys hidden by other parts they reach nothing; in v of such keys they spread to every
    row (0 * NaN), as in any masked product.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, BackendUnavailable, ShapeError
from xlnet_fast.kernels.triton import jit, tl, why_unavailable
from xlnet_fast.masks import AttentionMask
from xlnet_fast.philox import keep_threshold

GEMM_UNITS = 2
"""Matrix products per score tile inside the kernel, as many as content-only flash attention has."""
MAX_HEAD_DIM = 128
BD_BYTES_LIMIT = 512 * 2**20  # bd is made for as many query rows at a time as fit in this
ROW_CHUNK = 128  # query rows per step of that chunking: a multiple of every block_m
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@jit()
def _expand_bits(b_bits, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Spread the low WIDTH bits of each integer (BM, BN // WIDTH) along the row: bool (BM, BN)."""
    b_bit = (b_bits[:, :, None] >> tl.arange(0, WIDTH)[None, None, :]) & 1
    return tl.reshape(b_bit, (BM, BN)) != 0


@jit()
def _at_least(b_word, keep_from):
    """word >= threshold as uint32; `keep_from` is the threshold less 2**31, which fits an int32."""
    return (b_word ^ 0x80000000).to(tl.int32, bitcast=True) >= keep_from


@jit()
def _keep_tile(seed, o_i, j0, i_bn, keep_from, BM: tl.constexpr, BN: tl.constexpr):
    """Dropout's keep mask of one tile, bool (BM, BN), as `xlnet_fast.philox` defines it."""
    o_group = (j0 // 4 + tl.arange(0, BN // 4))[None, :] + tl.zeros((BM, 1), tl.int32)
    o_row = o_i[:, None] + tl.zeros((1, BN // 4), tl.int32)
    b_0, b_1, b_2, b_3 = tl.philox(seed, o_group, o_row, o_group * 0 + i_bn, o_group * 0)
    b_bits = _at_least(b_0, keep_from).to(tl.int32) | (_at_least(b_1, keep_from).to(tl.int32) << 1)
    b_bits |= _at_least(b_2, keep_from).to(tl.int32) << 2
    b_bits |= _at_least(b_3, keep_from).to(tl.int32) << 3
    return _expand_bits(b_bits, 4, BM, BN)


@jit()
def _keep_one(seed, o_i, o_j, i_bn, keep_from):
    """Dropout's keep mask of one key per row, bool (BM,)."""
    b_0, b_1, b_2, b_3 = tl.philox(seed, o_j // 4, o_i, o_j * 0 + i_bn, o_j * 0)
    o_word = o_j % 4
    b_word = tl.where(o_word < 2, tl.where(o_word == 0, b_0, b_1), tl.where(o_word == 2, b_2, b_3))
    return _at_least(b_word, keep_from)


@jit()
def _finite_or_zero(b_x):
    """Zero for NaN and infinity."""
    return tl.where(tl.abs(b_x.to(tl.float32)) < float("inf"), b_x, 0.0)


@jit()
def _unpadded_range(p_padding, keys, BLOCK: tl.constexpr):
    """First unpadded key and one past the last; (keys, 0) when all are padded."""
    i_first = keys
    i_stop = keys * 0
    for j0 in range(0, keys, BLOCK):
        o_j = j0 + tl.arange(0, BLOCK)
        m_seen = tl.load(p_padding + o_j, mask=o_j < keys, other=1) == 0
        i_first = tl.minimum(i_first, tl.min(tl.where(m_seen, o_j, keys), axis=0))
        i_stop = tl.maximum(i_stop, tl.max(tl.where(m_seen, o_j + 1, 0), axis=0))
    return i_first, i_stop


# Sizes are not specialised: a new length must not mean a new compilation.
_SIZES = ("rows", "keys", "length", "heads", "row_0", "row_stop", "column_0", "columns")


@jit(do_not_specialize=[*_SIZES, "keep_from"])
def _forward_kernel(
    q, k, v, bd, out,  # q, out (B, I, N, D)  k, v (B, J, N, D)  bd (N, B, rows launched, columns)
    biases,  # r_w_bias, r_s_bias (N, D), seg_embed (2, N, D); the last two None without segments
    segments,  # segments_q (B, I), segments_k (B, J); None without
    mask,  # key_padding (B, J), rank_q (B, I), rank_k (B, J), bits (B, I, ceil(J/8)); or None
    positions,  # (B, I), or None: row i sits at position i
    seed,  # one int64, or None without dropout
    strides,  # of q, k, v, out: (b, row, n); of bd: (n, b, row); of bits: b
    rows, keys, length, heads,  # I, J, L, N
    row_0, row_stop,  # the query rows of this launch
    column_0, columns,  # key j stands in column j - pos + column_0 of bd, if that is < columns
    scale, keep_from, keep_scale,  # softmax scale * log2(e); dropout threshold; 1 / (1 - dropout_p)
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SEE_SELF: tl.constexpr, SHORT_R: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    r_w_bias, r_s_bias, seg_embed = biases
    segments_q, segments_k = segments
    key_padding, rank_q, rank_k, bits = mask
    s_q, s_k, s_v, s_out, s_bd, s_bits = strides
    HIDES_ROWS: tl.constexpr = not SEE_SELF and (
        key_padding is not None or rank_q is not None or bits is not None
    )

    n_tiles = tl.cdiv(row_stop - row_0, BM)
    i_tile = tl.program_id(0) % n_tiles
    i_bn = tl.program_id(0) // n_tiles
    i_b = (i_bn // heads).to(tl.int64)
    i_n = (i_bn % heads).to(tl.int64)
    memory = keys - length

    o_d = tl.arange(0, BD)
    m_d = o_d < D
    o_bm = tl.arange(0, BM)
    o_bn = tl.arange(0, BN)
    i_first = row_0 + i_tile * BM
    o_i = i_first + o_bm
    m_i = o_i < row_stop
    if positions is not None:
        b_pos = tl.load(positions + i_b * rows + o_i, mask=m_i, other=-1).to(tl.int32)
    else:
        b_pos = o_i
    m_row = m_i & (b_pos >= 0)  # rows to be computed; absent ones are written as zero
    b_pos = tl.minimum(tl.maximum(b_pos, 0), length - 1)
    b_self = b_pos + memory
    # A tile's base is a 64-bit scalar, offsets within a tile fit 32 bits: the launcher sees to it.
    i_row = i_first.to(tl.int64)

    # [BM, BD]
    b_q = tl.load(
        q + i_b * s_q[0] + i_n * s_q[2] + i_row * s_q[1] + (o_bm[:, None] * s_q[1] + o_d[None, :]),
        mask=m_row[:, None] & m_d[None, :], other=0.0,
    )  # fmt: skip
    dtype = b_q.dtype
    if segments_q is not None:
        # [BD]
        b_rs = tl.load(r_s_bias + i_n * D + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_same = tl.load(seg_embed + i_n * D + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_diff = tl.load(seg_embed + (heads + i_n) * D + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_diff -= b_same
        b_c = tl.sum(b_q.to(tl.float32) * b_diff[None, :], axis=1) + tl.sum(b_rs * b_diff, axis=0)
        b_c *= scale
        # [BM]
        b_seg = tl.load(segments_q + i_b * rows + o_i, mask=m_i, other=0).to(tl.int32)
    # [BD]
    b_rw = tl.load(r_w_bias + i_n * D + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_q = (b_q.to(tl.float32) + b_rw[None, :]).to(dtype)
    p_bd = bd + i_n * s_bd[0] + i_b * s_bd[1] + (i_row - row_0) * s_bd[2]
    # Rows that are not there read the tile's first row: a mask for them would cost registers.
    b_column = tl.where(m_row, column_0 - b_pos, 0)
    o_bd = tl.where(m_row, o_bm * s_bd[2] + b_column, 0)
    p_k = k + i_b * s_k[0] + i_n * s_k[2]
    p_v = v + i_b * s_v[0] + i_n * s_v[2]
    if rank_q is not None:
        # [BM]
        b_rank = tl.load(rank_q + i_b * rows + o_i, mask=m_i, other=0).to(tl.int32)

    if bits is not None:
        n_bytes = (keys + 7) // 8
        p_bits = bits + i_b * s_bits + i_row * n_bytes
        o_bits = tl.where(m_row, o_bm * n_bytes, 0)

    i_lo = keys * 0
    i_hi = keys
    if key_padding is not None:
        i_lo, i_hi = _unpadded_range(key_padding + i_b * keys, keys, 1024)
    if CAUSAL:
        i_hi = tl.minimum(i_hi, tl.max(tl.where(m_row, b_self + 1, 0), axis=0))
    if SAME_LENGTH:
        i_lo = tl.maximum(i_lo, tl.min(tl.where(m_row, b_pos, keys), axis=0))

    if SEE_SELF:
        o_self = b_self.to(tl.int64)[:, None]
        m_self = m_row[:, None] & m_d[None, :]
        # [BM, BD]
        b_k1 = tl.load(p_k + o_self * s_k[1] + o_d[None, :], mask=m_self, other=0.0)
        if key_padding is not None:
            # [BM]
            m_hid = tl.load(key_padding + i_b * keys + b_self, mask=m_row, other=0) != 0
            b_k1 = tl.where(m_hid[:, None], _finite_or_zero(b_k1), b_k1)
        b_max = tl.sum(b_q.to(tl.float32) * b_k1.to(tl.float32), axis=1) * scale
        b_max += tl.load(p_bd + o_bd + b_self, mask=m_row, other=0.0).to(tl.float32) * scale
        if segments_q is not None:
            b_seg1 = tl.load(segments_k + i_b * keys + b_self, mask=m_row, other=0).to(tl.int32)
            b_max += tl.where(b_seg != b_seg1, b_c, 0.0)
        b_sum = tl.full((BM,), 1.0, tl.float32)
        # [BM, BD]
        b_v1 = tl.load(p_v + o_self * s_v[1] + o_d[None, :], mask=m_self, other=0.0)
        if key_padding is not None:
            b_v1 = tl.where(m_hid[:, None], _finite_or_zero(b_v1), b_v1)
        b_acc = b_v1.to(tl.float32)
        if seed is not None:
            m_keep1 = _keep_one(tl.load(seed), o_i, b_self, i_bn, keep_from)
            b_acc = tl.where(m_keep1[:, None], b_acc, 0.0)
    else:
        b_max = tl.full((BM,), -1e30, tl.float32)
        b_sum = tl.zeros((BM,), tl.float32)
        b_acc = tl.zeros((BM, BD), tl.float32)

    for j0 in range(i_lo // BN * BN, i_hi, BN):
        o_j = j0 + o_bn
        i_key = tl.cast(j0, tl.int64)
        m_j = o_j < keys
        m_load = m_j
        if key_padding is not None:
            # [BN]
            m_load = tl.load(key_padding + i_b * keys + o_j, mask=m_j, other=1) == 0
        m_bd = m_load[None, :]
        if SHORT_R:
            m_bd = m_bd & (b_column[:, None] + o_j[None, :] < columns)
        # [BM, BN]
        b_bd = tl.load(p_bd + (o_bd[:, None] + o_j[None, :]), mask=m_bd, other=0.0)
        # [BD, BN]
        b_k = tl.load(
            p_k + i_key * s_k[1] + (o_bn[None, :] * s_k[1] + o_d[:, None]),
            mask=m_load[None, :] & m_d[:, None],
            other=0.0,
        )
        # Scaled before they meet, or Triton starts the product only when bd has come from memory.
        b_s = tl.dot(b_q, b_k, input_precision="ieee") * scale + b_bd.to(tl.float32) * scale
        if segments_k is not None:
            # [BN]
            b_segk = tl.load(segments_k + i_b * keys + o_j, mask=m_j, other=0).to(tl.int32)
            b_s += tl.where(b_seg[:, None] != b_segk[None, :], b_c[:, None], 0.0)
        m_seen = m_load[None, :]
        if CAUSAL:
            m_seen = m_seen & (o_j[None, :] <= b_self[:, None])
        if SAME_LENGTH:
            m_seen = m_seen & (o_j[None, :] >= b_pos[:, None])
        if rank_q is not None:
            # [BN]
            b_rankk = tl.load(rank_k + i_b * keys + o_j, mask=m_j, other=0).to(tl.int32)
            m_seen = m_seen & (b_rank[:, None] > b_rankk[None, :])
        if bits is not None:
            o_byte = j0 // 8 + tl.arange(0, BN // 8)
            # [BM, BN / 8]
            b_bits = tl.load(
                p_bits + (o_bits[:, None] + o_byte[None, :]),
                mask=(o_byte < n_bytes)[None, :], other=0,
            )  # fmt: skip
            m_seen = m_seen & ~_expand_bits(b_bits.to(tl.int32), 8, BM, BN)
        if SEE_SELF:
            m_seen = m_seen & (o_j[None, :] != b_self[:, None])
        b_s = tl.where(m_seen, b_s, float("-inf"))

        b_next = tl.maximum(b_max, tl.max(b_s, axis=1))
        b_shrink = tl.exp2(b_max - b_next)
        b_p = tl.exp2(b_s - b_next[:, None])
        b_sum = b_sum * b_shrink + tl.sum(b_p, axis=1)
        if seed is not None:
            b_p = tl.where(_keep_tile(tl.load(seed), o_i, j0, i_bn, keep_from, BM, BN), b_p, 0.0)
        # [BN, BD]
        b_v = tl.load(
            p_v + i_key * s_v[1] + (o_bn[:, None] * s_v[1] + o_d[None, :]),
            mask=m_load[:, None] & m_d[None, :],
            other=0.0,
        )
        b_acc = tl.dot(b_p.to(dtype), b_v, b_acc * b_shrink[:, None], input_precision="ieee")
        b_max = b_next

    # [BM, BD]
    p_out = out + i_b * s_out[0] + i_n * s_out[2] + i_row * s_out[1]
    p_out += o_bm[:, None] * s_out[1] + o_d[None, :]
    m_out = m_i[:, None] & m_d[None, :]
    # No sum is zero but that of a row that saw no key: any seen key adds at least exp2(0) to it.
    m_none = m_row & (b_sum == 0.0)
    b_out = b_acc * (keep_scale / tl.where(m_none, 1.0, b_sum))[:, None]
    tl.store(
        p_out, tl.where(m_row[:, None], b_out, 0.0).to(dtype), mask=m_out & (m_none == 0)[:, None]
    )

    if HIDES_ROWS and tl.max(m_none.to(tl.int32), axis=0) > 0:
        b_acc = tl.zeros((BM, BD), tl.float32)
        for j0 in range(0, keys, BN):
            m_j = j0 + o_bn < keys
            # [BN, BD]
            b_v = tl.load(
                p_v + tl.cast(j0, tl.int64) * s_v[1] + (o_bn[:, None] * s_v[1] + o_d[None, :]),
                mask=m_j[:, None] & m_d[None, :], other=0.0,
            )  # fmt: skip
            if key_padding is not None:
                # [BN]
                m_hid = tl.load(key_padding + i_b * keys + j0 + o_bn, mask=m_j, other=0) != 0
                b_v = tl.where(m_hid[:, None], _finite_or_zero(b_v), b_v)
            b_p = tl.where(m_none[:, None] & m_j[None, :], 1.0, 0.0)
            if seed is not None:
                b_p = tl.where(
                    _keep_tile(tl.load(seed), o_i, j0, i_bn, keep_from, BM, BN), b_p, 0.0
                )
            b_acc = tl.dot(b_p.to(dtype), b_v, b_acc, input_precision="ieee")
        b_out = b_acc * (keep_scale / keys)
        tl.store(p_out, b_out.to(dtype), mask=m_out & m_none[:, None])


@dataclass(frozen=True)
class Config:
    """Tile and launch shape of one compiled kernel."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int | bool]:
        """Compiler options.

        Fused multiply-add is asked for, as its default differs between Triton versions. A register
        limit, even the chip's own, stops ptxas from spilling to fit more blocks on a chip.
        """
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
            "maxnreg": 255,
        }


CONFIGS: dict[tuple[str, str, str, int], Config] = {
    # (chip, dtype class, load, block_d), see choose_config. Found with the kernels report: tiles
    # that spill on no chip of their class, with Triton 3.6 and 3.9. None has been timed on a GPU.
    ("small", "half", "light", 32): Config(128, 32, 8, 3),
    ("small", "half", "light", 64): Config(128, 32, 8, 3),
    ("small", "half", "light", 128): Config(64, 16, 4, 2),
    ("small", "half", "heavy", 32): Config(128, 32, 8, 2),
    ("small", "half", "heavy", 64): Config(64, 16, 4, 2),
    ("small", "half", "heavy", 128): Config(32, 16, 4, 2),
    ("small", "fp32", "light", 32): Config(32, 32, 8, 2),
    ("small", "fp32", "light", 64): Config(32, 32, 4, 2),
    ("small", "fp32", "light", 128): Config(64, 16, 8, 2),
    ("small", "fp32", "heavy", 32): Config(32, 16, 8, 2),
    ("small", "fp32", "heavy", 64): Config(32, 16, 8, 2),
    ("small", "fp32", "heavy", 128): Config(32, 16, 8, 2),
    ("large", "half", "light", 32): Config(128, 64, 8, 3),
    ("large", "half", "light", 64): Config(128, 64, 8, 3),
    ("large", "half", "light", 128): Config(64, 64, 8, 2),
    ("large", "half", "heavy", 32): Config(128, 32, 8, 2),
    ("large", "half", "heavy", 64): Config(128, 32, 8, 2),
    ("large", "half", "heavy", 128): Config(64, 32, 8, 2),
    ("large", "fp32", "light", 32): Config(32, 32, 8, 2),
    ("large", "fp32", "light", 64): Config(64, 32, 8, 2),
    ("large", "fp32", "light", 128): Config(32, 16, 8, 2),
    ("large", "fp32", "heavy", 32): Config(32, 16, 8, 2),
    ("large", "fp32", "heavy", 64): Config(32, 16, 8, 2),
    ("large", "fp32", "heavy", 128): Config(32, 16, 8, 2),
}


def block_d(head_dim: int) -> int:
    """Head dim of the tile: the next power of two, at least 32."""
    return max(32, 1 << (head_dim - 1).bit_length())


def choose_config(dtype: torch.dtype, head_dim: int, arch: int, heavy: bool = False) -> Config:
    """The tile for a dtype, head dim and chip.

    Args:
        dtype: torch.float16, bfloat16 or float32.
        head_dim: 1..128.
        arch: compute capability as one number, 90 for 9.0; at least 80.
        heavy: whether something takes part that costs registers: dropout, ranks, bits, positions,
            a short r ("uni", less than L + J rows), or padding without `see_self`.

    Raises:
        ArgumentError: a dtype, head dim or chip the kernel is not made for.
    """
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype {dtype} is not one of {', '.join(map(str, DTYPES))}")
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ArgumentError(f"head dim {head_dim} is not in 1..{MAX_HEAD_DIM}")
    if arch < 80:
        raise ArgumentError(f"sm_{arch} is older than sm_80, the oldest the kernel is made for")
    # Chips with wgmma or tcgen05, which take operands from shared memory, need fewer registers.
    chip = "large" if 90 <= arch < 120 else "small"
    kind = "fp32" if dtype == torch.float32 else "half"
    return CONFIGS[chip, kind, "heavy" if heavy else "light", block_d(head_dim)]


@torch.no_grad()
def rel_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    r_s_bias: Tensor | None,
    seg_embed: Tensor | None,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    mask: AttentionMask | None,
    positions: Tensor | None,
    memory_length: int | None,
    scale: float | None,
    dropout_p: float,
    seed: Tensor | None,
    out: Tensor,
) -> None:
    """Fill `out` with relative attention; the formula is in the module's docstring.

    Args:
        q: (B, I, N, D) fp16, bf16 or fp32, D <= 128; like k, v, r and out any strides.
        k: (B, J, N, D), dtype of q, and so v, r and out.
        v: (B, J, N, D).
        r: (G, P, N, D), G divides B, P >= J + 1; batch element b reads group b*G//B. Nothing
            beyond P is read, its position score counts as 0 ("uni": no visible key needs it).
        r_w_bias: (N, D) floating point, and so r_r_bias and r_s_bias.
        r_r_bias: (N, D).
        r_s_bias: (N, D), given together with seg_embed, segments_q and segments_k.
        seg_embed: (2, N, D) floating point.
        segments_q: (B, I) integer.
        segments_k: (B, J) integer.
        mask: which keys are hidden, or None.
        positions: (B, I) integer, at most L - 1; negative = absent row, output exactly zero.
            None: row i sits at position i.
        memory_length: M; default J - I.
        scale: softmax scale; default 1 / sqrt(D).
        dropout_p: probability of dropping an attention probability, 0 <= p < 1.
        seed: int64, one element, on the device of q; needed where dropout_p > 0.
        out: (B, I, N, D), written in full.

    Raises:
        BackendUnavailable: Triton or a CUDA device is missing.
        ArgumentError: a dtype, device or value that the kernel does not take; shapes that do not
            agree (its subclass ShapeError).
    """
    reason = why_unavailable(q.device)
    if reason is not None:
        raise BackendUnavailable(reason)
    segments = (r_s_bias, seg_embed, segments_q, segments_k)
    _check_tensors(q, k, v, r, out, r_w_bias, r_r_bias, *segments, positions)
    batch, rows, heads, head_dim = q.shape
    keys, r_rows = k.shape[1], r.shape[1]
    memory = keys - rows if memory_length is None else memory_length
    _check_values(q, r, keys, memory, positions, segments, dropout_p, seed)
    if q.numel() == 0:
        return
    mask = AttentionMask() if mask is None else mask
    mask.validate(batch, rows, keys)
    for name, part in zip(("key_padding", "rank_q", "rank_k", "bits"), mask.tensors, strict=True):
        _check_device(f"mask.{name}", part, q.device)

    length = keys - memory
    in_order = positions is None
    short_r = r_rows < keys + length
    heavy = dropout_p > 0.0 or not in_order or short_r
    heavy = heavy or mask.rank_q is not None or mask.bits is not None
    heavy = heavy or (mask.key_padding is not None and not mask.see_self)
    config = choose_config(q.dtype, head_dim, _arch(q.device), heavy)
    padded_d = -(-head_dim // 16) * 16
    target = _as_tiles(out, padded_d, copy=False)
    tiles = [_as_tiles(x, padded_d) for x in (q, k, v)]
    biases = tuple(_pad_last(x, padded_d) for x in (r_w_bias, r_s_bias, seg_embed))
    vectors = [_contiguous(x) for x in (segments_q, segments_k, *mask.tensors, positions)]
    if vectors[2] is not None:
        vectors[2] = vectors[2].view(torch.uint8)  # Triton has no pointer to bool
    flags = {
        "CAUSAL": mask.causal,
        "SAME_LENGTH": mask.same_length,
        "SEE_SELF": mask.see_self and not mask.hides_nothing,
        "SHORT_R": short_r,
    }
    shape = {"D": padded_d, "BD": block_d(head_dim), "BM": config.block_m, "BN": config.block_n}
    bits_stride = 0 if mask.bits is None or mask.bits.shape[0] == 1 else rows * -(-keys // 8)
    scale = 1.0 / math.sqrt(head_dim) if scale is None else scale
    keep_from = keep_threshold(dropout_p) - 2**31
    step = _rows_per_launch(q, keys, length, r_rows, in_order)
    with torch.cuda.device(q.device) if q.is_cuda else contextlib.nullcontext():
        for first in range(0, rows, step):
            stop = min(rows, first + step)
            low, high = _columns(first, stop, keys, length, r_rows, in_order)
            bd = _position_scores(q[:, first:stop], r[:, low:high], r_r_bias)
            grid = (batch * heads * -(-(stop - first) // config.block_m),)
            _forward_kernel[grid](
                *tiles, bd, target, biases, tuple(vectors[:2]), tuple(vectors[2:6]), vectors[6],
                seed if dropout_p > 0.0 else None,
                (*(x.stride()[:3] for x in (*tiles, target, bd)), bits_stride),
                rows, keys, length, heads, first, stop, length - low, high - low,
                scale * math.log2(math.e), keep_from, 1.0 / (1.0 - dropout_p),
                **flags, **shape, **config.options,
            )  # fmt: skip
    if target is not out:
        out.copy_(target[..., :head_dim])


def _columns(
    first: int, stop: int, keys: int, length: int, r_rows: int, in_order: bool
) -> tuple[int, int]:
    """The rows of r that query rows first..stop-1 can meet."""
    if not in_order:
        return 0, min(r_rows, keys + length)
    return length - stop + 1, min(r_rows, keys + length - first)


def _row_stride(columns: int) -> int:
    """Row length of bd: a multiple of 16 keeps the library GEMM on its fast path."""
    return -(-columns // 16) * 16


def _rows_per_launch(q: Tensor, keys: int, length: int, r_rows: int, in_order: bool) -> int:
    """Query rows per launch: all of them, or as many as keep bd within BD_BYTES_LIMIT."""
    batch, rows, heads, _ = q.shape

    def fits(count: int) -> bool:
        low, high = _columns(0, count, keys, length, r_rows, in_order)
        return batch * heads * count * _row_stride(high - low) * q.element_size() <= BD_BYTES_LIMIT

    if fits(rows):
        return rows
    step = ROW_CHUNK
    while fits(step + ROW_CHUNK):
        step += ROW_CHUNK
    return step


def _position_scores(q: Tensor, r: Tensor, r_r_bias: Tensor) -> Tensor:
    """bd[n,b,i,p] = (q + r_r_bias)[b,i,n] . r[b*G//B,p,n], dtype of q, rows of _row_stride."""
    batch, rows, heads, head_dim = q.shape
    groups, columns = r.shape[:2]
    q_r = torch.empty((batch, rows, heads, head_dim), dtype=q.dtype, device=q.device)
    torch.add(q, r_r_bias, out=q_r)
    bd = torch.empty((heads, batch, rows, _row_stride(columns)), dtype=q.dtype, device=q.device)
    size = batch // groups
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        torch.bmm(
            q_r[part].flatten(0, 1).transpose(0, 1),  # (N, B/G * I, D)
            r[g].permute(1, 2, 0),  # (N, D, P)
            out=bd[:, part].flatten(1, 2)[:, :, :columns],
        )
    return bd


def _as_tiles(x: Tensor, width: int, copy: bool = True) -> Tensor:
    """`x` (B, I, N, D) if it can be read in 16-byte pieces, else a buffer (B, I, N, width).

    Pointers and strides that are no multiples of 16 would need another, slower kernel with far
    more registers. `copy=False` leaves the buffer unwritten.
    """
    fits = x.shape[-1] == width and x.stride(-1) == 1 and x.data_ptr() % 16 == 0
    strides = [x.stride(dim) for dim in range(3) if x.shape[dim] > 1]
    # A tile's offsets are 32-bit: rows of a tile times the row stride.
    if fits and all(stride % 16 == 0 for stride in strides) and x.stride(1) < 2**31 // ROW_CHUNK:
        return x
    if not copy:
        return torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    buffer = torch.zeros((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    buffer[..., : x.shape[-1]] = x
    return buffer


def _pad_last(x: Tensor | None, width: int) -> Tensor | None:
    return None if x is None else torch.nn.functional.pad(x, (0, width - x.shape[-1])).contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _arch(device: torch.device) -> int:
    if device.type != "cuda":
        return 90  # the interpreter: any chip will do
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _check_device(name: str, x: Tensor | None, device: torch.device) -> None:
    if x is not None and x.device != device:
        raise ArgumentError(f"{name} is on {x.device}, expected q's device {device}")


def _check_tensors(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor, out: Tensor, r_w_bias: Tensor, r_r_bias: Tensor,
    r_s_bias: Tensor | None, seg_embed: Tensor | None, segments_q: Tensor | None,
    segments_k: Tensor | None, positions: Tensor | None,
) -> None:  # fmt: skip
    """Shape, device and dtype of every tensor but the mask."""
    for name, x in {"q": q, "k": k, "v": v, "r": r, "out": out}.items():
        if x.dim() != 4:
            raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected four dimensions")
        if x.dtype != q.dtype or x.dtype not in DTYPES:
            wanted = ", ".join(map(str, DTYPES)) if name == "q" else f"q's {q.dtype}"
            raise ArgumentError(f"{name} has dtype {x.dtype}, expected {wanted}")
    batch, rows, heads, head_dim = q.shape
    keys = k.shape[1]
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "k": (k, (batch, keys, heads, head_dim)),
        "v": (v, (batch, keys, heads, head_dim)),
        "r": (r, (*r.shape[:2], heads, head_dim)),
        "out": (out, (batch, rows, heads, head_dim)),
        "r_w_bias": (r_w_bias, (heads, head_dim)),
        "r_r_bias": (r_r_bias, (heads, head_dim)),
        "r_s_bias": (r_s_bias, (heads, head_dim)),
        "seg_embed": (seg_embed, (2, heads, head_dim)),
        "segments_q": (segments_q, (batch, rows)),
        "segments_k": (segments_k, (batch, keys)),
        "positions": (positions, (batch, rows)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ShapeError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        _check_device(name, tensor, q.device)
        integer = not tensor.is_floating_point() and tensor.dtype != torch.bool
        if integer != (name in ("segments_q", "segments_k", "positions")):
            wanted = "a floating point" if integer else "an integer"
            raise ArgumentError(f"{name} has dtype {tensor.dtype}, expected {wanted} dtype")


def _check_values(
    q: Tensor, r: Tensor, keys: int, memory: int, positions: Tensor | None,
    segments: tuple[Tensor | None, ...], dropout_p: float, seed: Tensor | None,
) -> None:  # fmt: skip
    """Sizes and values that must fit each other."""
    batch, rows, _, head_dim = q.shape
    groups, r_rows = r.shape[:2]
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ShapeError(f"head dim {head_dim} is not in 1..{MAX_HEAD_DIM}")
    if groups == 0 or batch % groups:
        raise ShapeError(f"r has {groups} groups, which do not divide the batch of {batch}")
    if r_rows < keys + 1:
        raise ShapeError(f"r has {r_rows} rows, expected at least J + 1 = {keys + 1}")
    needed = 1 if positions is not None else max(rows, 1)
    if not 0 <= memory <= keys - needed:
        raise ShapeError(
            f"memory_length {memory} must be in 0..{keys - needed}: {keys} keys less "
            f"{needed} for the current segment"
        )
    if len({x is None for x in segments}) != 1:
        raise ArgumentError("r_s_bias, seg_embed, segments_q, segments_k: give all four or none")
    if dropout_p > 0.0:
        usable = seed is not None and seed.dtype == torch.int64 and seed.numel() == 1
        if seed is None or not usable:
            raise ArgumentError(f"dropout_p {dropout_p} needs a seed of one int64, got {seed!r}")
        _check_device("seed", seed, q.device)
