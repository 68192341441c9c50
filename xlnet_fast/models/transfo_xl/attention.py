"""Transformer-XL's attention layer on the fused ops.

Letters: B batch, I tokens, M rows of memory, J = M + I keys, N heads, D their width, H of the
model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlnet_fast.masks import AttentionMask, clear_padded
from xlnet_fast.models.transfo_xl.memory import Keeping
from xlnet_fast.nn.dropout import rate_of
from xlnet_fast.nn.linear import is_plain_linear
from xlnet_fast.nn.projected_table import projected_table
from xlnet_fast.nn.projection import project, project_residual
from xlnet_fast.ops import masked_softmax, rel_attention
from xlnet_fast.ops._dispatch import named_or_auto
from xlnet_fast.ops.cached_attention import cached_attention
from xlnet_fast.ops.linear import linear
from xlnet_fast.ops.settled import Settled
from xlnet_fast.philox import draw_seed

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Segment:
    """What all layers share in one forward pass.

    Attributes:
        mask: keys hidden from the I tokens.
        memory_rows: M. starts: whether these are the rows of zeros that a text starts with.
        table: gives (1, P, H) of the distances P - 1 .. 0 for a P.
        mem_len: as far as a token sees where ``same_length``, else None.
        keeping: of keys and values, or None.
        backend: "auto", or the name of the attention's.
        settled: keeps what the layers need not check again, or None.
    """

    mask: AttentionMask
    memory_rows: int
    starts: bool
    table: Callable[[int], Tensor]
    mem_len: int | None
    keeping: Keeping | None
    backend: str
    settled: Settled | None


class RelPartialLearnableMultiHeadAttn(nn.Module):
    """Attention among a segment's tokens and its memory (Transformer-XL section 3.3).

    Parameters and their names are those of Hugging Face's class of this name.

    Args:
        n_head: N. d_model: H. d_head: D. dropout: of the output. dropatt: of probabilities.
        pre_lnorm: normalise what comes in, the memory too.
        layer_norm_epsilon: of the norm.
        r_w_bias, r_r_bias: (N, D), where all layers share them; else the layer has its own.
    """

    def __init__(
        self,
        n_head: int,
        d_model: int,
        d_head: int,
        dropout: float,
        dropatt: float,
        pre_lnorm: bool,
        layer_norm_epsilon: float,
        r_w_bias: nn.Parameter | None = None,
        r_r_bias: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.n_head, self.d_head, self.pre_lnorm = n_head, d_head, pre_lnorm
        self.scale = d_head**-0.5
        self.qkv_net = nn.Linear(d_model, 3 * n_head * d_head, bias=False)
        self.r_net = nn.Linear(d_model, n_head * d_head, bias=False)
        self.o_net = nn.Linear(n_head * d_head, d_model, bias=False)
        self.drop, self.dropatt = nn.Dropout(dropout), nn.Dropout(dropatt)
        self.layer_norm = nn.LayerNorm(d_model, eps=layer_norm_epsilon)

        def bias() -> nn.Parameter:
            return nn.Parameter(torch.empty(n_head, d_head))

        self.r_w_bias = bias() if r_w_bias is None else r_w_bias
        self.r_r_bias = bias() if r_r_bias is None else r_r_bias

    def forward(
        self,
        h: Tensor,
        memory: Tensor | None,
        segment: Segment,
        number: int,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """One layer's attention, with its residual and norm.

        Args:
            h: (B, I, H). memory: (M, B, H), or None where there is none or its keys are kept.
            segment: shared by the layers. number: of this layer.
            head_mask: (N,) what each head's probabilities are multiplied with, or None.
            output_attentions: also return the probabilities (B, N, I, J), after dropout.
        """
        x = self.layer_norm(h) if self.pre_lnorm else h
        q, k, v = self._split(project(self.qkv_net, x))
        if output_attentions or rate_of(self.dropatt) is None:
            before = self._memory_keys(h, memory, segment)
            vector, probability = self._attend_visibly(q, k, v, before, segment)
        else:
            probability = None
            vector = self._attend(h, q, k, v, memory, segment, number)
        if head_mask is not None:
            vector = vector * head_mask.to(vector.dtype)[:, None]
            probability = None if probability is None else probability * head_mask[:, None, None]
        output = project_residual(self.o_net, vector.flatten(2), self.drop, h)
        return output if self.pre_lnorm else self.layer_norm(output), probability

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, 3 N D) to three of (B, S, N, D)."""
        q, k, v = qkv.unflatten(-1, (3, self.n_head, self.d_head)).unbind(2)
        return q, k, v

    def _memory_keys(self, h: Tensor, memory: Tensor | None, segment: Segment) -> Pair | None:
        """Keys and values of the memory, (B, M, N, D) each; None without memory."""
        batch, rows = h.shape[0], segment.memory_rows
        if rows == 0:
            return None
        if segment.starts:
            # All rows are alike: one is projected.
            k, v = self._keys_of(h.new_zeros(1, 1, h.shape[2]))
            k, v = (x.expand(batch, rows, -1, -1) for x in (k, v))
            return k, v
        assert memory is not None
        return self._keys_of(memory.transpose(0, 1))

    def _keys_of(self, rows: Tensor) -> Pair:
        """Keys and values of (B, M, H); the queries that nobody asks for are left out."""
        rows = self.layer_norm(rows) if self.pre_lnorm else rows
        if is_plain_linear(self.qkv_net):
            weight = self.qkv_net.weight[self.n_head * self.d_head :].to(rows.dtype)
            pair = linear(rows, weight).unflatten(-1, (2, self.n_head, self.d_head))
            k, v = pair.unbind(2)
            return k, v
        _, k, v = self._split(project(self.qkv_net, rows))
        return k, v

    def _biases(self, like: Tensor) -> Pair:
        return self.r_w_bias.to(like.dtype), self.r_r_bias.to(like.dtype)

    def _attend(
        self,
        h: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        memory: Tensor | None,
        segment: Segment,
        number: int,
    ) -> Tensor:
        """Vectors (B, I, N, D)."""
        keeping = segment.keeping
        keys = segment.memory_rows + q.shape[1]
        if keeping is None:
            r = projected_table(self.r_net, segment.table(keys), self.n_head)
            return self._fused(q, k, v, self._memory_keys(h, memory, segment), r, segment)
        if keeping.source is not None:
            before: Pair | None = keeping.source.of_layer(number)
            old = None
        else:
            before = self._memory_keys(h, memory, segment)
            rows = h.new_zeros(()).expand(*h.shape[:1], segment.memory_rows, h.shape[2])
            rows = rows if memory is None else memory.transpose(0, 1)
            old = None if before is None else (*before, rows)
        table = keeping.store.table(number, keys, self._table_maker(segment))
        keeping.put(number, (k, v, h), old)
        if q.shape[1] > 1:
            r = table[:, table.shape[1] - keys :].transpose(0, 1)[None]
            return self._fused(q, k, v, before, r, segment)
        return self._of_one(q, keeping, table, segment, number)

    def _table_maker(self, segment: Segment) -> Callable[[int], Tensor]:
        """Rows of so many distances as keys of every head, (N, P, D)."""

        def make(rows: int) -> Tensor:
            projected = project(self.r_net, segment.table(rows)[0])
            return projected.unflatten(-1, (self.n_head, self.d_head)).transpose(0, 1).contiguous()

        return make

    def _fused(
        self, q: Tensor, k: Tensor, v: Tensor, memory: Pair | None, r: Tensor, segment: Segment
    ) -> Tensor:
        p = rate_of(self.dropatt) or 0.0
        k_memory, v_memory = memory or (None, None)
        r_w_bias, r_r_bias = self._biases(q)
        return rel_attention(
            q, k, v, r, r_w_bias, r_r_bias, k_memory=k_memory, v_memory=v_memory, r_start=1,
            mask=segment.mask, scale=self.scale, dropout_p=p, seed=_seed(p, q),
            backend=segment.backend, settled=segment.settled,
        )  # fmt: skip

    def _of_one(
        self, q: Tensor, keeping: Keeping, table: Tensor, segment: Segment, number: int
    ) -> Tensor:
        """Of one token, from keys that lie in a row; what it does not see is not read."""
        end = keeping.last
        first = (
            keeping.first if segment.mem_len is None else max(keeping.first, end - segment.mem_len)
        )
        store, padding = keeping.store, segment.mask.key_padding
        r_w_bias, r_r_bias = self._biases(q)
        attended = cached_attention(
            q.transpose(0, 1), store.keys[number, :, :, first:end],
            store.values[number, :, :, first:end], table, r_w_bias, r_r_bias,
            far=table.shape[1] - 1, rows_at=end - first - 1,
            hidden=None if padding is None else padding[:, None, first - end :],
            scale=self.scale,
        )  # fmt: skip
        return attended.transpose(0, 1)

    def _attend_visibly(
        self, q: Tensor, k: Tensor, v: Tensor, memory: Pair | None, segment: Segment
    ) -> Pair:
        """Vectors (B, I, N, D) and probabilities (B, N, I, J), after dropout."""
        if memory is not None:
            k, v = (torch.cat(pair, dim=1) for pair in zip(memory, (k, v), strict=True))
        k, v = (clear_padded(x, segment.mask.key_padding) for x in (k, v))
        r = projected_table(self.r_net, segment.table(k.shape[1]), self.n_head)
        r_w_bias, r_r_bias = self._biases(q)
        p = rate_of(self.dropatt)
        # The op's table begins with the distance J, which no key has.
        position = torch.einsum("bind,pnd->bnip", q + r_r_bias, F.pad(r[0], (0, 0, 0, 0, 1, 0)))
        probability = masked_softmax(
            torch.einsum("bind,bjnd->bnij", q + r_w_bias, k), position_scores=position,
            mask=segment.mask, scale=self.scale, dropout_p=p or 0.0, seed=_seed(p or 0.0, q),
            backend=named_or_auto("masked_softmax", segment.backend),
        )  # fmt: skip
        if p is None:
            probability = self.dropatt(probability)
        return torch.einsum("bnij,bjnd->bind", probability.to(v.dtype), v), probability


def _seed(p: float, like: Tensor) -> Tensor | None:
    """Drawn on the device, without waiting."""
    return draw_seed(like.device) if p else None
