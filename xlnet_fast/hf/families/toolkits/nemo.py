"""NVIDIA NeMo's ``RelPositionMultiHeadAttention``, of its FastConformer and Conformer encoders.

Source: nemo/collections/asr/parts/submodules/multi_head_attention.py of nemo_toolkit 3.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from xlnet_fast.hf.families.family import FamilyOfParts, NamedPart, why_not_head_dim
from xlnet_fast.hf.families.toolkits.proof import why_not_proved
from xlnet_fast.hf.families.toolkits.rel_position import (
    ATTRIBUTES,
    Hidden,
    attended,
    frames,
    hidden_by,
    is_answerable,
    shown_in_part,
    small,
)
from xlnet_fast.hf.last_made import LastMade
from xlnet_fast.hf.patches import unless_patched

_HIDDEN: LastMade[Hidden] = LastMade(lambda mask: hidden_by(~mask))


class FastAttention(nn.Module):
    """NeMo's attention by the op; the cache is NeMo's to cut."""

    update_cache: Any

    @unless_patched()
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        pos_emb: Tensor,
        cache: Tensor | None = None,
    ) -> Any:
        """As NeMo: mask (B, I, J) bool, True for hidden keys; (B, I, H), with a cache and that."""
        length = key.shape[1] + (0 if cache is None else cache.shape[1])
        shape = (*query.shape[:2], length)
        is_known = mask is None or (mask.dtype == torch.bool and tuple(mask.shape) == shape)
        is_known = is_known and is_answerable(self, query, key, value, pos_emb, length)
        if not is_known or _casts_fp16():
            return super().forward(query, key, value, mask, pos_emb, cache)
        key, value, query, kept = self.update_cache(key=key, value=value, query=query, cache=cache)
        hidden = Hidden() if mask is None else _HIDDEN.of(mask)
        out = attended(self, query, key, value, pos_emb, hidden)
        return out if cache is None else (out, kept)


def _casts_fp16() -> bool:
    """Whether NeMo would leave autocast's dtype for another."""
    return torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.float16


def _calls() -> Iterator[dict[str, Any]]:
    yield {**frames(), "mask": None}
    yield {**frames(), "mask": ~shown_in_part()}


def _why_not(base: type, module: Any) -> str | None:
    return why_not_proved(
        base, module, FastAttention,
        attributes=(*ATTRIBUTES, "s_d_k", "update_cache"),
        arguments=("query", "key", "value", "mask", "pos_emb", "cache"),
        small=lambda module: {**small(module), "s_d_k": 2.0},
        calls=_calls,
    ) or why_not_head_dim(module.d_k)  # fmt: skip


FAMILY = FamilyOfParts(
    "NeMo",
    (NamedPart("RelPositionMultiHeadAttention", FastAttention, _why_not),),
    head_dim_of=lambda attention: getattr(attention, "d_k", 64),
)
