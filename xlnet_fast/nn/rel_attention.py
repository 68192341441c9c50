"""XLNet's attention layer on the fused ops: projections, attention, output, residual, norm.

:class:`RelativeAttentionCore` holds the computation and no parameters, so that the drop-in class of
``xlnet_fast.hf`` and the standalone module share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.masks import AttentionMask, clear_padded
from xlnet_fast.nn.context import AttentionContext
from xlnet_fast.nn.dropout import rate_of
from xlnet_fast.nn.linear import linear_residual
from xlnet_fast.nn.projection import project, project_residual
from xlnet_fast.ops import masked_softmax, rel_attention, two_stream_attention
from xlnet_fast.ops._dispatch import named_or_auto
from xlnet_fast.ops.linear import linear
from xlnet_fast.philox import draw_seed


class RelativeAttentionCore(nn.Module):
    """Forward of an attention layer whose parameters a subclass provides.

    A projection q, k, v, o or r may be a module, (..., H) to (..., N * D), of o the reverse.
    Layout is XLNet's: hidden states (I, B, H), memory (M, B, H), position table (P, G, H).
    """

    q: Tensor | nn.Module
    k: Tensor | nn.Module
    v: Tensor | nn.Module
    o: Tensor | nn.Module
    r: Tensor | nn.Module
    r_r_bias: Tensor
    r_s_bias: Tensor
    r_w_bias: Tensor
    seg_embed: Tensor
    layer_norm: nn.Module
    dropout: nn.Module
    scale: float

    def attend(
        self,
        h: Tensor,
        g: Tensor | None,
        context: AttentionContext,
        r: Tensor,
        memory: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Any, ...]:
        """One attention layer over the content stream h and, if given, the query stream g.

        Args:
            h: (I, B, H). g: (I', B, H) or None.
            context: masks, segments and targets of this forward pass.
            r: (P, G, H) position table, not projected.
            memory: (M, B, H) hidden states of this layer's input in earlier segments.
            output_attentions: also return probabilities (after dropout, as HF).

        Returns:
            (output_h, output_g), and with ``output_attentions`` a third element: probabilities
            (I, J, B, N), or a pair of them with two streams.

        Raises:
            ShapeError: h, g, r or memory is not of rank 3, or not of width H; ops check the rest.
        """
        _check_rank(h=h, g=g, r=r, memory=memory)
        if memory is not None and memory.shape[1:] != h.shape[1:]:
            raise ShapeError(
                f"memory has shape {tuple(memory.shape)}, expected (M, {h.shape[1]}, {h.shape[2]})"
            )
        streams = [self.__project(h, self.q)]
        if g is not None:
            streams.append(self.__query_rows(self.__project(g, self.q), context))
        operands = self.__operands(h, r, memory, context)
        attended: Iterator[tuple[Tensor, Tensor | None]]
        if output_attentions or rate_of(self.dropout) is None:
            attended = self.__attend_visibly(streams, operands, context)
        else:
            attended = (
                (vector, None) for vector in self.__attend_fused(streams, operands, context)
            )
        if context.head_mask is not None:
            attended = _masked_heads(attended, context.head_mask)
        # One stream after the other, as modules that are called may count their calls.
        vector, probability = next(attended)  # (B, rows, N, D)
        output_h, probabilities = self.post_attention(h, vector.transpose(0, 1)), [probability]
        output_g = None
        if g is not None:
            vector, probability = next(attended)
            vector = vector.transpose(0, 1)
            if context.target_mapping is not None:
                vector = torch.einsum("lbnd,mlb->mbnd", vector, _like(context.target_mapping, h))
            output_g = self.post_attention(g, vector)
            probabilities.append(probability)
        if not output_attentions:
            return output_h, output_g
        returned = tuple(p.permute(2, 3, 0, 1) for p in probabilities if p is not None)
        return output_h, output_g, (returned[0] if g is None else returned)

    def post_attention(self, h: Tensor, attn_vec: Tensor, residual: bool = True) -> Tensor:
        """Output projection, dropout, residual and layer norm, (I, B, N, D) to (I, B, H)."""
        added = h if residual else None
        if isinstance(self.o, nn.Module):
            return self.layer_norm(
                project_residual(self.o, attn_vec.flatten(2), self.dropout, added)
            )
        weight = _like(self.o, attn_vec).flatten(1)  # (H, N * D)
        return self.layer_norm(
            linear_residual(attn_vec.flatten(2), weight, None, self.dropout, added)
        )

    def __project(self, x: Tensor, projection: Tensor | nn.Module) -> Tensor:
        """(S, B, H) to (B, S, N, D), a view of an (S, B, N, D) product."""
        if isinstance(projection, nn.Module):
            heads = self.r_w_bias.shape
            return project(projection, x).unflatten(-1, heads).transpose(0, 1)
        return _project(x, projection)

    def __query_rows(self, q_g: Tensor, context: AttentionContext) -> Tensor:
        """Query-stream rows (B, I', N, D); under a dense mapping (B, I, N, D), as HF."""
        if context.target_mapping is None:
            return q_g
        return torch.einsum("bmnd,mlb->blnd", q_g, _like(context.target_mapping, q_g))

    def __operands(
        self, h: Tensor, r: Tensor, memory: Tensor | None, context: AttentionContext
    ) -> dict[str, Tensor]:
        """What the streams share, named as the ops name it.

        Memory and current hidden states are projected apart: neither they nor their keys are
        copied together.
        """
        operands: dict[str, Tensor] = {
            "k": self.__project(h, self.k),  # (B, L, N, D)
            "v": self.__project(h, self.v),
            "r": self.__project(r.to(h.dtype), self.r),  # (G, P, N, D)
            "r_w_bias": _like(self.r_w_bias, h),
            "r_r_bias": _like(self.r_r_bias, h),
        }
        if memory is not None:
            memory = memory.to(h.dtype)
            operands["k_memory"] = self.__project(memory, self.k)  # (B, M, N, D)
            operands["v_memory"] = self.__project(memory, self.v)
        if context.segments is not None:
            operands["r_s_bias"] = _like(self.r_s_bias, h)
            operands["seg_embed"] = _like(self.seg_embed, h)
        return operands

    def __attend_fused(
        self,
        streams: list[Tensor],
        operands: dict[str, Tensor],
        context: AttentionContext,
    ) -> tuple[Tensor, ...]:
        """Vectors (B, I, N, D) of each stream."""
        dropout_p, seed = self._dropout(streams[0])
        options: dict[str, Any] = {
            **operands,
            "mask": context.mask,
            "scale": self.scale,
            "dropout_p": dropout_p,
            "seed": seed,
            "backend": context.backend,
            "settled": context.settled,
        }
        segments = context.segments
        if len(streams) == 2:
            return two_stream_attention(
                *streams, **options, segments=segments, positions=context.positions
            )
        return (
            rel_attention(
                *streams,
                **options,
                segments_q=None if segments is None else _last(segments, streams[0].shape[1]),
                segments_k=segments,
            ),
        )

    def __attend_visibly(
        self,
        streams: list[Tensor],
        operands: dict[str, Tensor],
        context: AttentionContext,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A vector (B, I, N, D) and probabilities (B, N, I, J) for each stream, all rows."""
        if context.positions is not None:
            raise ArgumentError(
                "probabilities are made for all rows: give target_mapping in place of positions, "
                "or a bare nn.Dropout and no output_attentions"
            )
        keys, values = (
            clear_padded(
                _both(operands.get(f"{name}_memory"), operands[name]), context.mask.key_padding
            )
            for name in ("k", "v")
        )  # (B, J, N, D)
        table, r_w_bias, r_r_bias = (operands[name] for name in ("r", "r_w_bias", "r_r_bias"))
        repeats = keys.shape[0] // table.shape[0]
        table = table.repeat_interleave(repeats, dim=0)  # (B, P, N, D)
        dropout_p, seed = self._dropout(streams[0])
        for number, q in enumerate(streams):
            segment_scores = segments_q = None
            if context.segments is not None:
                difference = _like(self.seg_embed[1] - self.seg_embed[0], q)
                shifted = q + _like(self.r_s_bias, q)
                segment_scores = torch.einsum("bind,nd->bni", shifted, difference)
                segments_q = _last(context.segments, streams[0].shape[1])
            probability = masked_softmax(
                torch.einsum("bind,bjnd->bnij", q + r_w_bias, keys),
                position_scores=torch.einsum("bind,bpnd->bnip", q + r_r_bias, table),
                segment_scores=segment_scores,
                segments_q=segments_q,
                segments_k=context.segments,
                mask=stream_mask(context.mask, see_self=number == 0),
                scale=self.scale,
                dropout_p=dropout_p,
                seed=None if seed is None else seed + number,
                backend=named_or_auto("masked_softmax", context.backend),
            )
            if rate_of(self.dropout) is None:
                probability = self.dropout(probability)
            vector = torch.einsum("bnij,bjnd->bind", probability.to(values.dtype), values)
            yield vector, probability

    def _dropout(self, like: Tensor) -> tuple[float, Tensor | None]:
        """What the op is to drop itself, and the seed, drawn on the device without waiting."""
        p = rate_of(self.dropout)
        if not p:  # nothing, or the module is called
            return 0.0, None
        return p, draw_seed(like.device)


class RelativeAttention(RelativeAttentionCore):
    """XLNet's relative attention layer, standalone: parameters named and shaped as HF's.

    Args:
        d_model: H. n_head: N. d_head: D, default H / N.
        dropout: of probabilities and output. layer_norm_eps: of the final norm.
        initializer_range: standard deviation of the initial weights.

    Raises:
        ShapeError: H is not a multiple of N.
    """

    def __init__(
        self,
        d_model: int,
        n_head: int,
        d_head: int | None = None,
        *,
        dropout: float = 0.0,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
    ) -> None:
        super().__init__()
        if d_model % n_head:
            raise ShapeError(f"d_model is {d_model}, expected a multiple of n_head = {n_head}")
        d_head = d_model // n_head if d_head is None else d_head
        self.scale = d_head**-0.5
        for name in ("q", "k", "v", "o", "r"):
            setattr(self, name, nn.Parameter(torch.empty(d_model, n_head, d_head)))
        for name in ("r_r_bias", "r_s_bias", "r_w_bias"):
            setattr(self, name, nn.Parameter(torch.empty(n_head, d_head)))
        self.seg_embed = nn.Parameter(torch.empty(2, n_head, d_head))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=initializer_range)
        self.layer_norm = nn.LayerNorm(d_model, eps=layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        h: Tensor,
        g: Tensor | None,
        context: AttentionContext,
        r: Tensor,
        memory: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Any, ...]:
        """See :meth:`RelativeAttentionCore.attend`."""
        return self.attend(h, g, context, r, memory, output_attentions)


def _check_rank(**tensors: Tensor | None) -> None:
    for name, x in tensors.items():
        if x is not None and x.dim() != 3:
            raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected 3 dimensions, (S, B, H)")


def _project(x: Tensor, weight: Tensor) -> Tensor:
    """(S, B, H) by (H, N, D) to (B, S, N, D), a view of an (S, B, N, D) product."""
    if x.shape[-1] != weight.shape[0]:
        raise ShapeError(
            f"hidden states or table of shape {tuple(x.shape)}, expected width {weight.shape[0]}"
        )
    product = linear(x, _like(weight, x).flatten(1).t())
    return product.view(*x.shape[:-1], *weight.shape[1:]).transpose(0, 1)


def _like(parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter in the dtype of x.

    HF's ``from_pretrained(dtype=bf16)`` leaves attention parameters in fp32; under autocast the
    matrix product casts by itself.
    """
    return parameter if parameter.dtype == x.dtype else parameter.to(x.dtype)


def _masked_heads(
    attended: Iterator[tuple[Tensor, Tensor | None]], head_mask: Tensor
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Vectors (B, rows, N, D) and probabilities (B, N, I, J), each head times its mask (N,)."""
    for vector, probability in attended:
        mask = _like(head_mask, vector)[:, None]
        yield vector * mask, None if probability is None else probability * mask[..., None]


def _last(segments: Tensor, queries: int) -> Tensor:
    """Of segment ids (B, J) those of the current segment, (B, I)."""
    return segments[:, segments.shape[1] - queries :]


def _both(memory: Tensor | None, current: Tensor) -> Tensor:
    """Keys or values (B, J, N, D) of the memory, if there is one, and of the current segment."""
    return current if memory is None else torch.cat([memory, current], dim=1)


def stream_mask(mask: AttentionMask, see_self: bool) -> AttentionMask:
    """The mask of one stream: the content stream sees itself, the query stream does not."""
    return replace(mask, see_self=see_self)
