"""ESPnet's ``RelPositionMultiHeadedAttention``, of its Conformer and E-Branchformer encoders.

Source: espnet/nets/pytorch_backend/transformer/attention.py of espnet 202511. Its
``LegacyRelPositionMultiHeadedAttention`` has a table of T rows and another formula.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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

_HIDDEN: LastMade[Hidden] = LastMade(lambda mask: hidden_by(mask != 0))


class FastAttention(nn.Module):
    """ESPnet's attention by the op."""

    attn: Tensor | None

    @unless_patched()
    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, pos_emb: Tensor, mask: Tensor | None
    ) -> Tensor:
        """As ESPnet: mask (B, 1 or I, J), zero for hidden keys; (B, I, H).

        ``attn``, the probabilities of the last call, is None after it. Where a hook may look at
        them, as that of ``calculate_all_attentions``, ESPnet's code makes them.
        """
        batch, queries, keys = *query.shape[:2], key.shape[1]
        is_known = mask is None or tuple(mask.shape) in ((batch, 1, keys), (batch, queries, keys))
        is_known = is_known and is_answerable(self, query, key, value, pos_emb, keys)
        if not is_known or self._forward_hooks:
            theirs: Tensor = super().forward(query, key, value, pos_emb, mask)
            return theirs
        self.attn = None
        hidden = Hidden() if mask is None else _HIDDEN.of(mask)
        return attended(self, query, key, value, pos_emb, hidden)


def _small(module: Any) -> dict[str, Any]:
    norms = {name: nn.Identity() for name in ("q_norm", "k_norm") if hasattr(module, name)}
    return small(module) | norms


def _calls() -> Iterator[dict[str, Any]]:
    shown = shown_in_part()
    yield {**frames(), "mask": None}
    yield {**frames(), "mask": shown}
    yield {**frames(), "mask": shown[:, 2:3]}


def _why_not(base: type, module: Any) -> str | None:
    if getattr(module, "zero_triu", False):
        return "zero_triu is set, which zeroes positions of later frames"
    for name in ("q_norm", "k_norm"):
        if type(getattr(module, name, None)) not in (nn.Identity, type(None)):
            return f"it normalizes queries and keys by {name}"
    return why_not_proved(
        base, module, FastAttention,
        attributes=ATTRIBUTES,
        arguments=("query", "key", "value", "pos_emb", "mask"),
        small=_small,
        calls=_calls,
    ) or why_not_head_dim(module.d_k)  # fmt: skip


FAMILY = FamilyOfParts(
    "ESPnet",
    (NamedPart("RelPositionMultiHeadedAttention", FastAttention, _why_not),),
    head_dim_of=lambda attention: getattr(attention, "d_k", 64),
    notes=(
        "the attribute attn of ESPnet's attention is None after a call, unless a forward hook "
        "may look at it",
    ),
)
