"""torch.library contracts of rel_attention and two_stream_attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels.sdpa import rel_attention as sdpa_attention
from xlnet_fast.masks import AttentionMask, take_rows
from xlnet_fast.ops._contracts._registry import LIBRARY, PARTS, empty_grads, register
from xlnet_fast.ops._validation import check_positions

_ATTENTION = (
    "Tensor k, Tensor v, Tensor r, Tensor r_w_bias, Tensor r_r_bias, "
    "Tensor? r_s_bias, Tensor? seg_embed, Tensor? segments_q, Tensor? segments_k, "
    f"{PARTS}, str backend"
)
_SEVEN = "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor"

LIBRARY.define(f"rel_attention(Tensor q, {_ATTENTION}) -> Tensor")
LIBRARY.define(
    f"rel_attention_backward(Tensor grad_out, Tensor out, Tensor q, {_ATTENTION}) "
    f"-> (Tensor, {_SEVEN})"
)
LIBRARY.define(f"two_stream_attention(Tensor q_h, Tensor q_g, {_ATTENTION}) -> (Tensor, Tensor)")
LIBRARY.define(
    "two_stream_attention_backward(Tensor grad_h, Tensor grad_g, Tensor out_h, Tensor out_g, "
    f"Tensor q_h, Tensor q_g, {_ATTENTION}) -> (Tensor, Tensor, {_SEVEN})"
)


@dataclass(frozen=True)
class _Call:
    """Schema arguments of an attention op after its queries, in schema order."""

    k: Tensor
    v: Tensor
    r: Tensor
    r_w_bias: Tensor
    r_r_bias: Tensor
    r_s_bias: Tensor | None
    seg_embed: Tensor | None
    segments_q: Tensor | None
    segments_k: Tensor | None
    key_padding: Tensor | None
    rank_q: Tensor | None
    rank_k: Tensor | None
    bits: Tensor | None
    positions: Tensor | None
    seed: Tensor | None
    causal: bool
    same_length: bool
    see_self: bool
    memory_length: int
    scale: float
    dropout_p: float
    backend: str

    def kernel_args(self) -> tuple[Any, ...]:
        """What follows q in a kernel's signature, up to its output."""
        mask = AttentionMask(
            self.key_padding, self.rank_q, self.rank_k, self.bits,
            self.causal, self.same_length, self.see_self,
        )  # fmt: skip
        return (
            self.k, self.v, self.r, self.r_w_bias, self.r_r_bias, self.r_s_bias, self.seg_embed,
            self.segments_q, self.segments_k, mask, self.positions, self.memory_length,
            self.scale, self.dropout_p, self.seed,
        )  # fmt: skip

    @property
    def gradient_likes(self) -> tuple[Tensor | None, ...]:
        """The arguments that get a gradient; None where there is none."""
        segmented = self.segments_q is not None
        optional = (self.r_s_bias, self.seg_embed) if segmented else (None, None)
        return self.k, self.v, self.r, self.r_w_bias, self.r_r_bias, *optional

    def streams(self) -> tuple[_Call, _Call]:
        """The content stream's call and the query stream's, from a two-stream call."""
        segments_q, rank_q, bits = self.segments_q, self.rank_q, self.bits
        if self.positions is not None:
            check_positions(self.positions, self.k.shape[1] - self.memory_length)
            per_row = (segments_q, rank_q, bits)
            segments_q, rank_q, bits = (take_rows(x, self.positions) for x in per_row)
        content = replace(self, positions=None, see_self=True)
        query = replace(
            self, segments_q=segments_q, rank_q=rank_q, bits=bits, see_self=False,
            seed=None if self.seed is None else self.seed + 1,
        )  # fmt: skip
        return content, query


def _rel_attention(q: Tensor, *args: Any) -> Tensor:
    call = _Call(*args)
    out = torch.empty_like(q)
    check_positions(call.positions, call.k.shape[1] - call.memory_length)
    if q.numel() == 0:
        return out
    arguments = (q, *call.kernel_args(), out)
    if call.backend == "sdpa":
        sdpa_attention.rel_attention_forward(*arguments)
    elif call.backend == "triton":
        from xlnet_fast.kernels.triton import rel_attention as triton_attention

        triton_attention.rel_attention_forward(*arguments)
    else:
        raise BackendUnavailable(f"no registered backend {call.backend!r} of rel_attention")
    return out


def _rel_attention_backward(
    grad_out: Tensor, out: Tensor, q: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    call = _Call(*args)
    if call.backend != "sdpa":
        raise BackendUnavailable(
            f"backend {call.backend!r} has no backward pass of rel_attention; use backend='sdpa'"
        )
    grads = empty_grads((q, *call.gradient_likes))
    if q.numel() == 0:
        return tuple(grad.zero_() for grad in grads)
    arguments = (grad_out, out, q, *call.kernel_args(), grads)
    sdpa_attention.rel_attention_backward(*arguments)
    return grads


def _two_stream_attention(q_h: Tensor, q_g: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    out_h, out_g = (
        _rel_attention(q, *_values(call))
        for q, call in zip((q_h, q_g), _Call(*args).streams(), strict=True)
    )
    return out_h, out_g


def _two_stream_attention_backward(
    grad_h: Tensor,
    grad_g: Tensor,
    out_h: Tensor,
    out_g: Tensor,
    q_h: Tensor,
    q_g: Tensor,
    *args: Any,
) -> tuple[Tensor, ...]:
    content, query = _Call(*args).streams()
    of_h = _rel_attention_backward(grad_h, out_h, q_h, *_values(content))
    of_g = _rel_attention_backward(grad_g, out_g, q_g, *_values(query))
    return of_h[0], of_g[0], *(h.add_(g) for h, g in zip(of_h[1:], of_g[1:], strict=True))


def _values(call: _Call) -> Iterator[Any]:
    return (getattr(call, field.name) for field in fields(call))


register(
    "rel_attention",
    _rel_attention,
    lambda q, *args: torch.empty_like(q),
    _rel_attention_backward,
    lambda grad, out, q, *args: empty_grads((q, *_Call(*args).gradient_likes)),
)
register(
    "two_stream_attention",
    _two_stream_attention,
    lambda q_h, q_g, *args: (torch.empty_like(q_h), torch.empty_like(q_g)),
    _two_stream_attention_backward,
    lambda grad_h, grad_g, out_h, out_g, q_h, q_g, *args: empty_grads(
        (q_h, q_g, *_Call(*args).gradient_likes)
    ),
    queries=2,
)
