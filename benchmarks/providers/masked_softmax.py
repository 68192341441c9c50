"""Attention probabilities from scores: Hugging Face's own lines, these compiled, and our op."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..cases.masked_softmax import Scores
from ..cases.rel_attention import FORWARD
from .rel_attention import Attention, Prepared, prepare_attention

_SCALE = 0.125


def hf_run(scores: Scores) -> Callable[[], Tensor]:
    """Return HF's lines of `rel_attn_core` from the scores to the probabilities."""
    from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

    length = scores.content.shape[3]
    hidden = 65500 if scores.content.dtype == torch.float16 else 1e30

    def run() -> Tensor:
        bd = XLNetRelativeAttention.rel_shift_bnij(scores.position, klen=length)
        total = (scores.content + bd) * _SCALE
        total = total - hidden * torch.einsum("ijbn->bnij", scores.hf_mask)
        return torch.nn.functional.softmax(total, dim=3)

    return run


def our_run(scores: Scores, backend: str = "auto") -> Callable[[], Tensor]:
    """Return our op on the same scores."""
    from xlnet_fast.masks import AttentionMask
    from xlnet_fast.ops import masked_softmax

    mask = AttentionMask(key_padding=scores.padding, see_self=True)

    def run() -> Tensor:
        return masked_softmax(
            scores.content,
            position_scores=scores.position,
            mask=mask,
            scale=_SCALE,
            backend=backend,
        )

    return run


def prepare(provider: str, scores: Scores, pass_name: str) -> Prepared:
    """Return a function that gives [probabilities], or [probabilities, *gradients]."""
    if provider == "hf_eager":
        run = hf_run(scores)
    elif provider == "hf_compile":
        run = torch.compile(hf_run(scores), dynamic=False)
    else:
        run = our_run(scores, provider.removeprefix("ours").removeprefix("_") or "auto")
    leaves = [] if pass_name == FORWARD else scores.leaves()
    attention = Attention(run, leaves, scores.grad_out)
    return prepare_attention(attention, pass_name, compiles=provider == "hf_compile")
