"""Which keys each query may see, as one small typed object that every backend understands.

HF XLNet builds one dense float mask (i, j, b, 1) from padding, permutation and causality. Kernels
want the parts: a padding vector skips whole tiles, causality is index arithmetic, a permutation is
two integers per token, a window is arithmetic too. :class:`AttentionMask` keeps the parts apart and
combines them by "or".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.errors import ArgumentError, ShapeError

HIDDEN_SCORE = -1e30
"""Score of a hidden key. HF subtracts 1e30, which in fp32 absorbs every finite score: a row whose
keys are all hidden is therefore uniform, not NaN."""


@dataclass(frozen=True)
class AttentionMask:
    """Keys hidden from queries; every part is optional and a key is hidden if any part hides it.

    Letters: B batch, I query rows, J keys (memory first), M memory keys.

    Attributes:
        key_padding: (B, J) bool, True hides the key from every query of its batch element.
        rank_q, rank_k: (B, I) and (B, J) integers, given together. Key j is visible to query i
            iff ``rank_q[i] > rank_k[j]``. Keys that all may see (memory, context) have the lowest
            rank. The same ranks serve both streams.
        bits: (B or 1, I, ceil(J/8)) uint8. Bit ``j % 8`` of byte ``j // 8`` set hides key j.
        causal: hides key j from the query at position pos iff ``j > M + pos``.
        same_length: with ``causal``, also hides ``j < pos`` (HF ``create_mask``).
        see_self: the key at ``j == M + pos`` is visible whatever the other parts say. True for the
            content stream (HF subtracts the identity from its mask), False for the query stream.
        window: (left, right), how far the query at position pos sees to either side, None: no limit
            there. Key j is visible iff ``start - left <= j < start + chunk + right`` with
            ``start = M + pos // chunk * chunk``. Source: HF
            ``chunked_limited_mask_function`` (Nemotron streaming), SeamlessM4T v2's chunks.
        chunk: with ``window``, rows see from their chunk of so many positions, the first of which
            is the first current key; 1: each from itself.
    """

    key_padding: Tensor | None = None
    rank_q: Tensor | None = None
    rank_k: Tensor | None = None
    bits: Tensor | None = None
    causal: bool = False
    same_length: bool = False
    see_self: bool = False
    window: tuple[int | None, int | None] | None = None
    chunk: int = 1

    @classmethod
    def from_parts(cls, tensors: Sequence[Any], flags: Sequence[Any]) -> AttentionMask:
        """The mask of these ``tensors`` and ``flags``, which an op's schema takes one by one."""
        switches, (left, right, chunk) = flags[:3], flags[3:]
        if left < 0 and right < 0:
            return cls(*tensors, *switches)
        window = (None if left < 0 else left, None if right < 0 else right)
        return replace(cls(*tensors, *switches), window=window, chunk=chunk)

    @property
    def hides_nothing(self) -> bool:
        """True when no part can hide a key, so that kernels may skip masking altogether."""
        parts = (self.key_padding, self.rank_q, self.bits)
        return not self.causal and not self.has_window and all(part is None for part in parts)

    @property
    def has_window(self) -> bool:
        """Whether there is a limit to either side."""
        return self.window is not None and self.window != (None, None)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensor parts in schema order: key_padding, rank_q, rank_k, bits."""
        return self.key_padding, self.rank_q, self.rank_k, self.bits

    @property
    def flags(self) -> tuple[bool, bool, bool, int, int, int]:
        """The other parts in schema order: causal, same_length, see_self, then :attr:`limits`."""
        return self.causal, self.same_length, self.see_self, *self.limits

    @property
    def limits(self) -> tuple[int, int, int]:
        """Left, right and chunk of the window as kernels take them, -1 where there is no limit."""
        if self.window is None:
            return -1, -1, 1
        left, right = (-1 if side is None else side for side in self.window)
        return left, right, self.chunk

    def validate(self, batch: int, queries: int, keys: int) -> None:
        """Check dtypes and shapes against (B, I, J).

        Raises:
            ShapeError: names the part, its shape or dtype and what is expected.
            ArgumentError: a window that is none.
        """
        _check_window(self.window, self.chunk)
        if (self.rank_q is None) != (self.rank_k is None):
            raise ShapeError("mask.rank_q and mask.rank_k must be given together")
        if self.same_length and not self.causal:
            raise ShapeError("mask.same_length needs mask.causal=True (attn_type='uni')")
        _expect("key_padding", self.key_padding, (torch.bool,), (batch, keys))
        _expect("rank_q", self.rank_q, _INTEGERS, (batch, queries))
        _expect("rank_k", self.rank_k, _INTEGERS, (batch, keys))
        if self.bits is not None:
            shared = isinstance(self.bits, Tensor) and self.bits.shape[:1] == (1,)
            rows = 1 if shared else batch
            _expect("bits", self.bits, (torch.uint8,), (rows, queries, (keys + 7) // 8))

    def hidden(
        self,
        positions: Tensor | None,
        keys: int,
        memory_length: int,
        rows: slice = slice(None),
        columns: slice = slice(None),
    ) -> Tensor | None:
        """Expand to a dense bool mask for some query rows and keys.

        Args:
            positions: (B or 1, I) positions of all query rows; may be None where neither ``causal``
                nor ``see_self`` nor ``window`` asks for them.
            keys: J. memory_length: M.
            rows, columns: the query rows and the keys wanted; default all.

        Returns:
            (B or 1, rows or 1, columns) bool, True where hidden, or None when nothing is hidden.
        """
        if self.hides_nothing:
            return None
        parts = []
        if self.key_padding is not None:
            parts.append(self.key_padding[:, None, columns])
        if self.rank_q is not None and self.rank_k is not None:
            parts.append(self.rank_q[:, rows, None] <= self.rank_k[:, None, columns])
        if self.bits is not None:
            parts.append(unpack_bits(self.bits[:, rows], keys)[..., columns])
        if self.causal or self.see_self or self.has_window:
            assert positions is not None
            key = torch.arange(keys, device=positions.device)[columns]
            position = positions[:, rows, None]  # (B or 1, rows, 1)
        if self.causal:
            parts.append(key > position + memory_length)
        if self.same_length:
            parts.append(key < position)
        parts += self._outside(key, position, memory_length) if self.has_window else []
        hidden = parts[0]
        for part in parts[1:]:
            hidden = hidden | part
        if self.see_self:
            hidden = hidden & (key != position + memory_length)
        return hidden

    def _outside(self, key: Tensor, position: Tensor, memory_length: int) -> list[Tensor]:
        """What either side of the window hides, (B or 1, rows, columns) each."""
        left, right, chunk = self.limits
        start = position if chunk == 1 else position.div(chunk, rounding_mode="floor") * chunk
        start = start + memory_length
        hidden = [key < start - left] if left >= 0 else []
        return hidden + ([key >= start + (chunk + right)] if right >= 0 else [])

    def window_span(self, lowest: int, highest: int, keys: int, memory_length: int) -> range:
        """Keys outside of which the window hides all from rows at positions lowest .. highest."""
        left, right, chunk = self.limits
        first, last = (memory_length + at // chunk * chunk for at in (lowest, highest))
        begin = max(0, first - left) if left >= 0 else 0
        end = min(keys, last + chunk + right) if right >= 0 else keys
        return range(min(begin, keys), max(0, end))

    @property
    def may_hide_all(self) -> bool:
        """Whether a row may see no key: not by its window or causality, by which it sees itself."""
        others = (self.key_padding, self.rank_q, self.bits)
        return not self.see_self and any(part is not None for part in others)

    def narrow_batch(self, start: int, length: int) -> AttentionMask:
        """The mask of batch elements ``start .. start+length``."""

        def cut(part: Tensor | None) -> Tensor | None:
            if part is None or part.shape[0] == 1:
                return part
            return part.narrow(0, start, length)

        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("key_padding", "rank_q", "rank_k", "bits"):
            values[name] = cut(values[name])
        return AttentionMask(**values)


def pack_bits(hidden: Tensor) -> Tensor:
    """Pack a bool mask (B, I, J), True = hidden, into (B, I, ceil(J/8)) uint8."""
    batch, queries, keys = hidden.shape
    padded = F.pad(hidden.to(torch.uint8), (0, -keys % 8))
    groups = padded.view(batch, queries, (keys + 7) // 8, 8)
    weighed = groups * _bit_weights(hidden.device)
    return weighed.sum(-1, dtype=torch.int32).to(torch.uint8)  # ONNX sums no uint8


def unpack_bits(bits: Tensor, keys: int) -> Tensor:
    """Undo :func:`pack_bits`: (B, I, ceil(J/8)) uint8 to (B, I, J) bool."""
    return ((bits[..., None] & _bit_weights(bits.device)) != 0).flatten(-2)[..., :keys]


def _bit_weights(device: torch.device) -> Tensor:
    """1, 2, 4, ..., 128 as uint8, made on the device: a copy from the host would wait for a GPU."""
    return (2 ** torch.arange(8, device=device)).to(torch.uint8)


def row_positions(positions: Tensor | None, queries: int, device: torch.device) -> Tensor:
    """Positions of the query rows, (B or 1, I) int64; None means row i sits at position i."""
    if positions is None:
        return torch.arange(queries, device=device)[None]
    return positions.to(torch.int64)


def take_rows(x: Tensor | None, positions: Tensor) -> Tensor | None:
    """Rows at positions (B, I') of a per-row tensor (B or 1, I) or (B or 1, I, C).

    None stays None. An absent row, at a negative position, takes any row: nobody reads it.
    """
    if x is None:
        return None
    if x.shape[1] == 0:  # all rows are absent
        return x.new_zeros(*positions.shape, *x.shape[2:])
    rows = positions.to(torch.int64).clamp(0, x.shape[1] - 1)
    x = x.expand(rows.shape[0], *x.shape[1:])
    return x.gather(1, rows if x.dim() == 2 else rows[:, :, None].expand(-1, -1, x.shape[2]))


def clear_padded(x: Tensor, key_padding: Tensor | None) -> Tensor:
    """Replace NaN and infinity in padded rows of k or v (B, J, N, D) by zero.

    A padded key has probability 0, but 0 * NaN is NaN. Finite values stay: a padded query sees
    itself, and a row without visible keys averages all of them.
    """
    if key_padding is None:
        return x
    return torch.where(key_padding[:, :, None, None], torch.nan_to_num(x, 0.0, 0.0, 0.0), x)


_INTEGERS = (torch.int32, torch.int64)
_MOST = 2**31 - 1
"""Of a window's numbers: kernels count keys in 32 bits."""


def _check_window(window: Any, chunk: object) -> None:
    """A window is a pair of numbers or None, a chunk a number.

    Raises:
        ArgumentError: names the part, what it is and what is expected.
    """
    if not _is_count(chunk, 1):
        raise ArgumentError(f"mask.chunk is {chunk!r}, expected a whole number from 1 to {_MOST}")
    if window is None:
        if chunk != 1:
            raise ArgumentError(f"mask.chunk is {chunk}, which needs mask.window; it is None")
        return
    is_pair = isinstance(window, tuple) and len(window) == 2
    if not is_pair or not all(side is None or _is_count(side, 0) for side in window):
        raise ArgumentError(
            f"mask.window is {window!r}, expected (left, right), each None (no limit) or a whole "
            f"number from 0 to {_MOST}"
        )


def _is_count(x: object, least: int) -> bool:
    whole = isinstance(x, (int, torch.SymInt)) and not isinstance(x, bool)
    return whole and least <= x <= _MOST  # type: ignore[operator]


def _expect(
    name: str, part: object, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]
) -> None:
    if part is None:
        return
    if not isinstance(part, Tensor):
        raise ShapeError(f"mask.{name} must be a tensor, got {type(part).__name__}")
    if part.dtype not in dtypes:
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise ShapeError(f"mask.{name} has dtype {part.dtype}, expected {wanted}")
    if tuple(part.shape) != shape:
        raise ShapeError(f"mask.{name} has shape {tuple(part.shape)}, expected {shape}")
