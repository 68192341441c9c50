"""Small modules with the names, attributes and formulas of three toolkits' attention.

Written after nemo_toolkit 3.0, espnet 202511 and speechbrain 1.1, so that the adapters are tested
where none of them is installed; where one is, ``test_toolkits_real`` holds them to it. They work in
float64 too, which SpeechBrain's own does not. ``LOOKALIKES`` are classes of the same names that
compute something else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def shifted(bd: Tensor, keys: int) -> Tensor:
    """Column j of row i is column j + I - 1 - i of bd (B, N, I, P)."""
    queries = bd.shape[2]
    rows = torch.arange(queries)[:, None]
    column = torch.arange(keys) + queries - 1 - rows
    return bd.gather(3, column.expand(*bd.shape[:2], -1, -1))


class _Projections(nn.Module):
    def __init__(self, heads: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.h, self.d_k = heads, width // heads
        for name in ("q", "k", "v", "out"):
            setattr(self, f"linear_{name}", nn.Linear(width, width))
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, self.d_k))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, self.d_k))
        self.dropout = nn.Dropout(dropout)

    def heads_of(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.h, self.d_k)).transpose(1, 2)

    def scores(self, query: Tensor, key: Tensor, pos_emb: Tensor) -> Tensor:
        q, k = self.heads_of(self.linear_q(query)), self.heads_of(self.linear_k(key))
        p = self.heads_of(self.linear_pos(pos_emb))
        ac = (q + self.pos_bias_u[:, None]) @ k.mT
        bd = (q + self.pos_bias_v[:, None]) @ p.mT
        return (ac + shifted(bd, k.shape[2])) / self.d_k**0.5

    def mixed(self, probabilities: Tensor, value: Tensor) -> Tensor:
        v = self.heads_of(self.linear_v(value))
        context = self.dropout(probabilities) @ v
        return self.linear_out(context.transpose(1, 2).flatten(2))


class RelPositionMultiHeadAttention(_Projections):
    """NeMo's."""

    def __init__(self, heads: int, width: int, dropout: float = 0.0) -> None:
        super().__init__(heads, width, dropout)
        self.s_d_k = self.d_k**0.5
        self.cache_drop_size = 0

    def update_cache(self, key: Tensor, value: Tensor, query: Tensor, cache: Any) -> Any:
        if cache is not None:
            key = value = torch.cat([cache, key], dim=1)
            kept = query.shape[1] - self.cache_drop_size
            cache = torch.cat([cache[:, kept:], query[:, :kept]], dim=1)
        return key, value, query, cache

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Any, pos_emb: Tensor,
        cache: Any = None,
    ) -> Any:  # fmt: skip
        key, value, query, cache = self.update_cache(key, value, query, cache)
        scores = self.scores(query, key, pos_emb)
        if mask is not None:
            scores = scores.masked_fill(mask[:, None], -10000.0)
        probabilities = scores.softmax(-1)
        if mask is not None:
            probabilities = probabilities.masked_fill(mask[:, None], 0.0)
        out = self.mixed(probabilities, value)
        return out if cache is None else (out, cache)


class RelPositionMultiHeadedAttention(_Projections):
    """ESPnet's."""

    def __init__(self, heads: int, width: int, dropout: float = 0.0, zero_triu: bool = False):
        super().__init__(heads, width, dropout)
        self.zero_triu = zero_triu
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        self.attn: Any = None

    def forward(self, query: Tensor, key: Tensor, value: Tensor, pos_emb: Tensor, mask: Any) -> Any:
        scores = self.scores(query, key, pos_emb)
        if mask is None:
            self.attn = scores.softmax(-1)
        else:
            hidden = mask[:, None].eq(0)
            scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
            self.attn = scores.softmax(-1).masked_fill(hidden, 0.0)
        return self.mixed(self.attn, value)


class RelPosMHAXL(nn.Module):
    """SpeechBrain's."""

    def __init__(self, heads: int, width: int, dropout: float = 0.0, vbias: bool = True) -> None:
        super().__init__()
        self.embed_dim = self.vdim = width
        self.num_heads, self.head_dim = heads, width // heads
        self.vhead_dim, self.mask_pos_future = self.head_dim, False
        self.vbias = vbias or None
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        if vbias:
            self.value_bias_weight = nn.Parameter(torch.zeros(width))
        self.dropout_att = nn.Dropout(dropout)
        self.out_proj = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(self.head_dim, heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(self.head_dim, heads))
        self.scale = width**-0.5

    def projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        shape = (self.num_heads, -1)
        if query is key and key is value:
            together = (query @ self.in_proj_weight.t()).unflatten(-1, shape)
            return together.chunk(3, -1)
        pairs = zip((query, key, value), self.in_proj_weight.chunk(3), strict=True)
        return tuple((x @ weight.t()).unflatten(-1, shape) for x, weight in pairs)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, pos_embs: Tensor,
        key_padding_mask: Any = None, attn_mask: Any = None, return_attn_weights: bool = True,
    ) -> Any:  # fmt: skip
        q, k, v = self.projected(query, key, value)
        shape = (self.num_heads, self.head_dim)
        v = v if self.vbias is None else v + self.value_bias_weight.view(shape)
        p = self.linear_pos(pos_embs).unflatten(-1, shape).transpose(1, 2)
        u, w = (
            (q + bias.view(shape)).transpose(1, 2) for bias in (self.pos_bias_u, self.pos_bias_v)
        )
        scores = (u * self.scale) @ k.transpose(1, 2).mT
        scores = scores + shifted((w * self.scale) @ p.mT, k.shape[1])
        hidden = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
        if attn_mask is not None and attn_mask.dtype != torch.bool:
            scores, attn_mask = scores + attn_mask, None
        if attn_mask is not None:
            hidden = hidden | attn_mask
        if key_padding_mask is not None:
            hidden = hidden | key_padding_mask[:, None, None]
        scores = scores.masked_fill(hidden, -torch.inf)
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = self.dropout_att(scores.softmax(-1, dtype=wide)).masked_fill(hidden, 0.0)
        context = weights.to(v.dtype) @ v.transpose(1, 2)
        out = self.out_proj(context.transpose(1, 2).flatten(2))
        return (out, weights) if return_attn_weights else out


def _without_shift() -> type:
    """WeNet's class has ESPnet's name and attributes, and does not shift."""

    class RelPositionMultiHeadedAttention(_Projections):
        def forward(self, query: Any, key: Any, value: Any, pos_emb: Any, mask: Any) -> Any:
            q, k = self.heads_of(self.linear_q(query)), self.heads_of(self.linear_k(key))
            p = self.heads_of(self.linear_pos(pos_emb))[:, :, : k.shape[2]]
            scores = (q + self.pos_bias_u[:, None]) @ k.mT + (q + self.pos_bias_v[:, None]) @ p.mT
            return self.mixed((scores / self.d_k**0.5).softmax(-1), value)

    return RelPositionMultiHeadedAttention


def _with_other_arguments() -> type:
    class RelPositionMultiHeadAttention(_Projections):
        def forward(self, x: Tensor, pos_emb: Tensor) -> Tensor:
            return self.mixed(self.scores(x, x, pos_emb).softmax(-1), x)

    RelPositionMultiHeadAttention.s_d_k = 1.0  # type: ignore[attr-defined]
    RelPositionMultiHeadAttention.update_cache = None  # type: ignore[attr-defined]
    return RelPositionMultiHeadAttention


def _without_attributes() -> type:
    class RelPosMHAXL(nn.Module):
        def __init__(self) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            return x

    return RelPosMHAXL


LOOKALIKES: dict[str, tuple[Any, str]] = {
    "no shift": (_without_shift()(2, 8), "gave something else than the formula"),
    "arguments": (_with_other_arguments()(2, 8), "its forward takes (x, pos_emb), and we know"),
    "attributes": (_without_attributes()(), "it has no embed_dim and no num_heads"),
}
"""What a module is, and a part of what ``explain`` says of it."""
