"""XLM's layers, which Flaubert has as well: attention by content alone, and linear layers.

A family lays them over its own copies of Hugging Face's classes. The model's forward is its own:
the embeddings, the masks, which positions are computed again and which come from a cache.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from xlnet_fast.hf.activations import is_exact_gelu
from xlnet_fast.hf.adoption import laid_over
from xlnet_fast.hf.families.family import FamilyOfParts, Part, why_not_head_dim
from xlnet_fast.hf.last_made import LastMade
from xlnet_fast.hf.options import Options
from xlnet_fast.hf.patches import unless_patched
from xlnet_fast.nn.content_attention import ContentMask, attend_contents, content_mask
from xlnet_fast.nn.linear import is_plain_linear
from xlnet_fast.nn.projection import project
from xlnet_fast.ops.linear import linear
from xlnet_fast.transforms import needs_plain_code


def _content_mask(mask: Tensor) -> ContentMask:
    shown = mask != 0
    return content_mask(shown if shown.dim() == 3 else shown[:, None])


_MASKS = LastMade(_content_mask)


class FastAttention(nn.Module):
    """``MultiHeadAttention``: attention of a sequence to itself, which the models have alone."""

    n_heads: int
    head_dim: int
    layer_id: int
    dropout: float
    q_lin: nn.Module
    k_lin: nn.Module
    v_lin: nn.Module
    out_lin: nn.Module
    _xlnet_fast_options: Options

    @unless_patched()
    def forward(
        self,
        input: Tensor,
        mask: Tensor,
        kv: Tensor | None = None,
        cache: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """(B, I, H) and a mask (B, J) or (B, I, J), zero for hidden keys, to a tuple of (B, I, H).

        Probabilities, attention to other states, and any argument that is not known here are for
        Hugging Face's code.
        """
        wants_more = bool(args) or not all(
            value is None or value is False for value in kwargs.values()
        )
        if kv is not None or wants_more or self.dropout >= 1.0 or needs_plain_code():
            theirs: tuple[Tensor, ...] = super().forward(input, mask, kv, cache, *args, **kwargs)
            return theirs
        q, k, v = (
            project(layer, input).unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)
            for layer in (self.q_lin, self.k_lin, self.v_lin)
        )
        if cache is not None:
            own = getattr(cache, "self_attention_cache", cache)
            k, v = own.update(k, v, self.layer_id, kwargs={})
        attended = attend_contents(
            q, k, v, _MASKS.of(mask),
            dropout_p=self.dropout if self.training else 0.0,
            backend=self._xlnet_fast_options.backend,
        )  # fmt: skip
        return (project(self.out_lin, attended),)


class FastFeedForward(nn.Module):
    """``TransformerFFN``, whose chunks, where it has some, are Hugging Face's to make."""

    dropout: float
    act: Any
    lin1: Any
    lin2: nn.Module

    @unless_patched()
    def ff_chunk(self, input: Tensor) -> Tensor:
        """(B, I, H) to (B, I, H), as HF."""
        first = self.lin1
        if is_exact_gelu(self.act) and is_plain_linear(first):
            inner = linear(input, first.weight, first.bias, activation="gelu")
        else:
            inner = self.act(project(first, input))
        output = project(self.lin2, inner)
        return F.dropout(output, p=self.dropout, training=self.training)


class FastPrediction(nn.Module):
    """``XLMPredLayer``: scores of the vocabulary, and the loss."""

    asm: bool
    proj: nn.Module

    @unless_patched()
    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        """(B, I, H) and labels (B, I), or None, to (loss, scores) or (scores,)."""
        if self.asm:  # adaptive softmax
            theirs: tuple[Tensor, ...] = super().forward(x, y)
            return theirs
        scores = project(self.proj, x)
        if y is None:
            return (scores,)
        return F.cross_entropy(scores.flatten(0, -2), y.flatten(), reduction="mean"), scores


def family(
    title: str, attention: type[nn.Module], feed_forward: type[nn.Module], head: type[nn.Module]
) -> FamilyOfParts:
    """The family whose classes these are."""

    def too_wide(module: Any) -> str | None:
        return why_not_head_dim(module.head_dim)

    fast_feed_forward = laid_over(FastFeedForward, feed_forward)
    return FamilyOfParts(
        title,
        (
            Part(attention, laid_over(FastAttention, attention), why_not=too_wide),
            Part(feed_forward, fast_feed_forward, "feed-forward block", ("ff_chunk",)),
            Part(head, laid_over(FastPrediction, head), "head for words"),
        ),
        head_dim_of=lambda attention: attention.head_dim,
        auto_ops=(),
        notes=(
            f"{title}'s attention knows no relative positions: it is PyTorch's own "
            "scaled_dot_product_attention, and the op rel_attention in training on a CPU and "
            "where a backend is named",
        ),
    )
