"""What the Triton kernels do to one tile: rows, keys, masks, dropout, and the strip of positions.

Name prefixes: i_ scalar index, o_ offsets, m_ mask, p_ pointer, b_ block of values; `# [BM, BN]`
is the shape of what follows. Sizes: BM rows, BN keys, BD head dim of a tile, D head dim.
"""

from __future__ import annotations

from xlnet_fast.kernels.triton import jit, tl

SIZES = (
    "rows_h", "rows_g", "heads", "keys", "memory", "left", "ahead", "chunk", "r_rows", "group_size",
    "keep_from",
)  # fmt: skip
"""Arguments of a kernel of relative attention that are not specialised: a new length must not mean
a new compilation."""

PADDED_CODE = -(2**31)
PADDED = PADDED_CODE if tl is None else tl.constexpr(PADDED_CODE)
"""What stands for a padded key where the others have their segment."""

# --- dropout, as `xlnet_fast.philox` defines it ---------------------------------------------------


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
    """Dropout's keep mask of one tile whose first key j0 is a multiple of 4, bool (BM, BN)."""
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


# --- masks ----------------------------------------------------------------------------------------


@jit()
def _is_finite(b_x):
    return tl.abs(b_x.to(tl.float32)) < float("inf")


@jit()
def _finite_or_zero(b_x):
    """Zero for NaN and infinity."""
    return tl.where(_is_finite(b_x), b_x, 0.0)


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


@jit()
def _window_start(i_pos, i_self, chunk):
    """From where the window of a position is counted: its own key, or the first of its chunk."""
    if chunk is not None:
        i_self -= i_pos % chunk
    return i_self


@jit()
def _keys_in_window(i_lo, i_hi, i_low, i_top, memory, window):
    """Of the keys i_lo .. i_hi - 1 those in the window of any position in i_low .. i_top."""
    left, ahead, chunk = window
    i_lo = tl.maximum(i_lo, _window_start(i_low, i_low + memory, chunk) - left)
    i_hi = tl.minimum(i_hi, _window_start(i_top, i_top + memory, chunk) + ahead)
    return i_lo, i_hi


@jit()
def _positions_in_window(i_lo, i_hi, j0, j_stop, memory, window):
    """Of the positions i_lo .. i_hi - 1 those whose window has any of the keys j0 .. j_stop - 1."""
    left, ahead, chunk = window
    i_from = tl.maximum(j0 - memory - ahead + 1, 0)
    i_to = tl.maximum(j_stop - memory + left, 0)
    if chunk is not None:  # whole chunks
        i_from = tl.cdiv(i_from, chunk) * chunk
        i_to = tl.cdiv(i_to, chunk) * chunk
    return tl.maximum(i_lo, i_from), tl.minimum(i_hi, i_to)


@jit()
def _uniform_range(p_lse, rows, BLOCK: tl.constexpr):
    """First row that sees no key and one past the last, of rows in order; (rows, 0) without any."""
    i_first = rows
    i_stop = rows * 0
    for i0 in range(0, rows, BLOCK):
        o_i = i0 + tl.arange(0, BLOCK)
        m_all_masked = tl.load(p_lse + o_i, mask=o_i < rows, other=0.0) == float("inf")
        i_first = tl.minimum(i_first, tl.min(tl.where(m_all_masked, o_i, rows), axis=0))
        i_stop = tl.maximum(i_stop, tl.max(tl.where(m_all_masked, o_i + 1, 0), axis=0))
    return i_first, i_stop


@jit()
def _visible(
    m_seen, o_j, b_pos, b_self,  # [1, BN] or [BM, BN] so far; [BN]; [BM]; [BM]
    rank_q, o_row, rank_k, p_bits,  # bases of this batch element, or None; o_row [BM]
    j0, keys, window,
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Hide what causality, the window, ranks and bits hide, bool (BM, BN) or (1, BN)."""
    if CAUSAL:
        m_seen = m_seen & (o_j[None, :] <= b_self[:, None])
    if SAME_LENGTH:
        m_seen = m_seen & (o_j[None, :] >= b_pos[:, None])
    if window[0] is not None:
        left, ahead, chunk = window
        # [BM]
        b_start = _window_start(b_pos, b_self, chunk)
        m_seen = m_seen & (o_j[None, :] >= (b_start - left)[:, None])
        m_seen = m_seen & (o_j[None, :] < (b_start + ahead)[:, None])
    if rank_q is not None:
        b_rank = tl.load(rank_q + o_row).to(tl.int32)
        b_rankk = tl.load(rank_k + o_j, mask=o_j < keys, other=0).to(tl.int32)
        m_seen = m_seen & (b_rank[:, None] > b_rankk[None, :])
    if p_bits is not None:
        n_bytes = (keys + 7) // 8
        o_byte = j0 // 8 + tl.arange(0, BN // 8)
        # [BM, BN / 8]
        b_bits = tl.load(
            p_bits + (o_row[:, None] * n_bytes + o_byte[None, :]),
            mask=(o_byte < n_bytes)[None, :], other=0,
        )  # fmt: skip
        m_seen = m_seen & ~_expand_bits(b_bits.to(tl.int32), 8, BM, BN)
    return m_seen


# --- rows and keys --------------------------------------------------------------------------------
# The base of a tile is a 64-bit scalar, offsets within a tile fit 32 bits: the launcher sees to it.


@jit()
def _row_tile(positions, i_first, rows, length, BM: tl.constexpr):
    """Which rows a tile has and where they sit.

    Returns row numbers [BM], which of them are to be computed [BM], their positions [BM] (an absent
    row takes that of a present one) and the lowest and highest position.
    """
    o_i = i_first + tl.arange(0, BM)
    m_row = o_i < rows
    if positions is None:
        i_low = i_first
        i_top = tl.minimum(i_first + BM, rows) - 1
        b_pos = tl.minimum(o_i, i_top)
    else:
        b_pos = tl.load(positions + o_i, mask=m_row, other=-1).to(tl.int32)
        m_row = m_row & (b_pos >= 0)
        b_pos = tl.minimum(b_pos, length - 1)
        i_top = tl.max(tl.where(m_row, b_pos, 0), axis=0)
        b_pos = tl.where(m_row, b_pos, i_top)
        i_low = tl.min(b_pos, axis=0)
    return o_i, m_row, b_pos, i_low, i_top


@jit()
def _stretches(i_lo, i_hi, memory, APART: tl.constexpr, BN: tl.constexpr, WIDTH: tl.constexpr):
    """How many stretches of up to WIDTH keys the keys i_lo .. i_hi - 1 make: in memory, in all."""
    i_lo = i_lo // BN * BN
    if APART:
        n_memory = tl.cdiv(tl.maximum(tl.minimum(i_hi, memory) - i_lo, 0), WIDTH)
        i_lo = tl.maximum(i_lo, memory // BN * BN)
    else:
        n_memory = i_hi * 0
    return n_memory, n_memory + tl.cdiv(tl.maximum(i_hi - i_lo, 0), WIDTH)


@jit()
def _stretch(
    i_stretch, n_memory, i_lo, i_hi, memory,
    APART: tl.constexpr, BN: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One stretch: where its tiles begin (a multiple of BN), its first key, one past its last.

    Memory and current keys that lie in two tensors never share a stretch; a tile that the boundary
    cuts is in two stretches, each with its own part.
    """
    i_lo = i_lo // BN * BN
    if APART:
        if i_stretch < n_memory:
            j_base = i_lo + i_stretch * WIDTH
            j_first = j_base
            j_stop = tl.minimum(tl.minimum(i_hi, memory), j_base + WIDTH)
        else:
            j_base = tl.maximum(i_lo, memory // BN * BN) + (i_stretch - n_memory) * WIDTH
            j_first = tl.maximum(j_base, memory)
            j_stop = tl.minimum(i_hi, j_base + WIDTH)
    else:
        j_base = i_lo + i_stretch * WIDTH
        j_first = j_base
        j_stop = tl.minimum(i_hi, j_base + WIDTH)
    return j_base, j_first, j_stop


@jit()
def _source(x, s_row, x_memory, s_memory, in_memory, memory, APART: tl.constexpr):
    """Where key 0 would be and the stride of keys, in the tensor a stretch lies in."""
    if APART:
        x = tl.where(in_memory, x_memory, x - memory.to(tl.int64) * s_row)
        s_row = tl.where(in_memory, s_memory, s_row)
    return x, s_row


@jit()
def _load_rows(p_tile, s_row, m_rows, R: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """R rows from p_tile on, zero where masked and beyond D: [R, BD]."""
    o_d = tl.arange(0, BD)
    return tl.load(
        p_tile + (tl.arange(0, R)[:, None] * s_row + o_d[None, :]),
        mask=m_rows[:, None] & (o_d < D)[None, :], other=0.0,
    )  # fmt: skip


@jit()
def _load_vector(p_x, D: tl.constexpr, BD: tl.constexpr):
    """A vector of D elements in fp32: [BD]."""
    o_d = tl.arange(0, BD)
    return tl.load(p_x + o_d, mask=o_d < D, other=0.0).to(tl.float32)


@jit()
def _segment_difference(seg_embed, heads, i_n, D: tl.constexpr, BD: tl.constexpr):
    """seg_embed_1 - seg_embed_0 of a head in fp32: [BD]."""
    b_diff = _load_vector(seg_embed + (heads + i_n) * D, D, BD)
    b_diff -= _load_vector(seg_embed + i_n * D, D, BD)
    return b_diff


@jit()
def _self_key(
    tensors, strides, padding, b_self, m_row, memory,
    APART: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """k and v of each row's own key, [BM, BD] each; NaN and infinity of a padded key are zero."""
    o_d = tl.arange(0, BD)
    o_self = b_self.to(tl.int64)
    if APART:
        o_self -= memory
    m_self = m_row[:, None] & (o_d < D)[None, :]
    p_k = tensors.k + (o_self * strides.k[1])[:, None] + o_d[None, :]
    b_k = tl.load(p_k, mask=m_self, other=0.0)
    p_v = tensors.v + (o_self * strides.v[1])[:, None] + o_d[None, :]
    b_v = tl.load(p_v, mask=m_self, other=0.0)
    if padding is not None:
        m_hid = tl.load(padding + b_self) != 0
        b_k = tl.where(m_hid[:, None], _finite_or_zero(b_k), b_k)
        b_v = tl.where(m_hid[:, None], _finite_or_zero(b_v), b_v)
    return b_k, b_v


# --- the strip ------------------------------------------------------------------------------------


@jit()
def _write_strip(
    b_q, r, s_r, strip,  # q + r_r_bias [BM, BD]; r of this group and head; BM rows of STRIDE
    b_pos, m_row, i_low, i_top,  # of `_row_tile`
    j_base, n_keys,  # the keys j_base .. j_base + n_keys - 1, n_keys <= WIDTH
    length, r_stop, scale,  # L, one past the last row of r
    IN_ORDER: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BW: tl.constexpr,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, START: tl.constexpr,
):  # fmt: skip
    """strip[a, j - j_base] = scale * (q_a + r_r_bias) . r_p, p = j - pos_a + L.

    The tile meets a window of n_keys + (i_top - i_low) rows of r; BW of them at a time are
    multiplied with all rows, and row a writes its products at its own offset. So the shift costs
    one store, and whoever reads the strip reads aligned tiles. Rows of r that do not exist count as
    zero. Rows in order overshoot by less than BM to the left and BM + BW to the right: into the
    margins that STRIDE leaves, which a row shares with its neighbours, and the last one into BM
    elements behind them. The caller puts a barrier between this and the first read.
    """
    o_d = tl.arange(0, BD)
    o_w = tl.arange(0, BW)
    # Absent rows go where nothing is written.
    b_shift = i_top - b_pos if IN_ORDER else tl.where(m_row, i_top - b_pos, 1 << 30)
    o_strip = tl.arange(0, BM) * STRIDE - b_shift
    i_p = j_base + length - i_top
    for w0 in range(0, n_keys + i_top - i_low, BW):
        o_p = i_p + w0 + o_w
        # [BD, BW]
        b_r = tl.load(
            r + tl.cast(i_p + w0, tl.int64) * s_r + (o_w[None, :] * s_r + o_d[:, None]),
            mask=((o_p >= START) & (o_p < r_stop))[None, :] & (o_d < D)[:, None], other=0.0,
        )  # fmt: skip
        b_w = tl.dot(b_q, b_r, input_precision="ieee") * scale
        o_w2 = o_strip[:, None] + (w0 + o_w)[None, :]
        if IN_ORDER:
            tl.store(strip + o_w2, b_w.to(b_q.dtype))
        else:
            o_j = (w0 + o_w)[None, :] - b_shift[:, None]
            tl.store(strip + o_w2, b_w.to(b_q.dtype), mask=(o_j >= 0) & (o_j < WIDTH))
