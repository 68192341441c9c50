"""The attention that NeMo took over from ESPnet: what both adapters share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xlnet_fast.hf.families.toolkits.proof import drawn
from xlnet_fast.hf.families.windows import recognized
from xlnet_fast.masks import AttentionMask, pack_bits
from xlnet_fast.nn.dropout import rate_of
from xlnet_fast.nn.projected_table import projected_table
from xlnet_fast.nn.projection import casts_by_itself, project
from xlnet_fast.nn.speech_attention import attend_frames
from xlnet_fast.transforms import can_look

ATTRIBUTES = (
    "h", "d_k", "linear_q", "linear_k", "linear_v", "linear_out", "linear_pos", "pos_bias_u",
    "pos_bias_v", "dropout",
)  # fmt: skip


@dataclass(frozen=True)
class Hidden:
    """What a mask hides.

    Attributes:
        blank: (B, I or 1) bool, rows that see no key, whose probabilities these toolkits set to
            zero; None where there are none.
    """

    mask: AttentionMask | None = None
    blank: Tensor | None = None


def hidden_by(shown: Tensor) -> Hidden:
    """What is hidden where (B, I or 1, J) bool shows the rest, row by row as it says."""
    seeing = shown.any(-1)
    mask = None
    if shown.shape[1] == 1:
        mask = AttentionMask(key_padding=~shown[:, 0])
    elif can_look(shown):
        mask = recognized(shown)
        if mask is not None:  # its ranks are of blank rows, which are cleared
            mask = replace(mask, rank_q=None, rank_k=None)
    if mask is None:
        mask = AttentionMask(bits=pack_bits(~shown))
    none_blank = can_look(seeing) and bool(seeing.all())
    return Hidden(mask, None if none_blank else ~seeing)


def attended(
    module: Any, query: Tensor, key: Tensor, value: Tensor, pos_emb: Tensor, hidden: Hidden
) -> Tensor:
    """(B, I, H): the module's result, by the op.

    Args:
        query: (B, I, H). key, value: (B, J, H). pos_emb: (1 or B, 2J - 1, H).
    """
    context = attend_frames(
        project(module.linear_q, query),
        project(module.linear_k, key),
        project(module.linear_v, value),
        projected_table(module.linear_pos, pos_emb, module.h),
        module.pos_bias_u,
        module.pos_bias_v,
        mask=hidden.mask,
        scale=module.d_k**-0.5,
        dropout_p=rate_of(module.dropout) or 0.0,
        backend=module._xlnet_fast_options.backend,
    )
    if hidden.blank is not None:
        context = context.masked_fill(hidden.blank[..., None], 0.0)
    return project(module.linear_out, context)


def is_answerable(
    module: Any, query: Tensor, key: Tensor, value: Tensor, pos_emb: Any, keys: int
) -> bool:
    """Whether the op can be asked, with J ``keys`` in all; the mask is looked at elsewhere."""
    if not isinstance(pos_emb, Tensor) or pos_emb.dim() != 3 or query.dim() != 3:
        return False
    batch, queries = query.shape[:2]
    of_one_dtype = query.dtype == key.dtype == value.dtype == pos_emb.dtype
    return (
        queries <= keys
        and tuple(pos_emb.shape[:2]) in ((1, 2 * keys - 1), (batch, 2 * keys - 1))
        and key.shape[0] == batch
        and (of_one_dtype or casts_by_itself(query))
        and rate_of(module.dropout) is not None
    )


def small(module: Any) -> dict[str, Any]:
    """Attributes of a module of two heads of width 4."""
    layers: dict[str, Any] = {f"linear_{name}": nn.Linear(8, 8) for name in ("q", "k", "v", "out")}
    return layers | {
        "linear_pos": nn.Linear(8, 8, bias=False),
        "pos_bias_u": drawn(2, 4),
        "pos_bias_v": drawn(2, 4),
        "dropout": nn.Identity(),
        "h": 2,
        "d_k": 4,
    }


def frames() -> dict[str, Tensor]:
    """Arguments of a call on two elements of five frames, but for the mask."""
    x = torch.randn(2, 5, 8)
    return {"query": x, "key": x, "value": x, "pos_emb": torch.randn(1, 9, 8)}


def shown_in_part() -> Tensor:
    """(2, 5, 5) bool: rows that see some of the keys, and one that sees none."""
    shown = torch.rand(2, 5, 5) < 0.7
    shown[1, 2] = False
    return shown
