"""SpeechBrain's ``RelPosMHAXL``, of its Conformer and Branchformer encoders.

Source: speechbrain/nnet/attention.py of speechbrain 1.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from xlnet_fast.hf.families.family import FamilyOfParts, NamedPart, why_not_head_dim
from xlnet_fast.hf.families.toolkits.proof import drawn, why_not_proved
from xlnet_fast.hf.families.toolkits.rel_position import Hidden
from xlnet_fast.hf.patches import unless_patched
from xlnet_fast.masks import AttentionMask, pack_bits
from xlnet_fast.nn.dropout import rate_of
from xlnet_fast.nn.projected_table import projected_table
from xlnet_fast.nn.projection import casts_by_itself, project
from xlnet_fast.nn.speech_attention import attend_frames
from xlnet_fast.ops.linear import linear
from xlnet_fast.transforms import can_look

_ATTRIBUTES = (
    "embed_dim", "num_heads", "head_dim", "vhead_dim", "scale", "mask_pos_future", "vbias",
    "in_proj_weight", "out_proj", "linear_pos", "pos_bias_u", "pos_bias_v", "dropout_att",
)  # fmt: skip
_ARGUMENTS = (
    "query", "key", "value", "pos_embs", "key_padding_mask", "attn_mask", "return_attn_weights",
)  # fmt: skip


class FastAttention(nn.Module):
    """SpeechBrain's attention of frames among themselves by the op."""

    @unless_patched()
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pos_embs: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        return_attn_weights: bool | None = None,
    ) -> Any:
        """As SpeechBrain: key_padding_mask (B, J) and attn_mask (I, J) bool, True for hidden keys.

        Its encoders leave ``return_attn_weights`` to the default, which is True, and throw the
        probabilities away. They are None here unless the argument is given or a hook is there.
        """
        theirs = return_attn_weights or (return_attn_weights is None and self._forward_hooks)
        known = query is key and key is value and _is_known(self, query, pos_embs)
        if theirs or not known or not _are_known(query, key_padding_mask, attn_mask):
            return super().forward(
                query, key, value, pos_embs, key_padding_mask, attn_mask,
                return_attn_weights is not False,
            )  # fmt: skip
        out = _attended(self, query, pos_embs, _hidden(query, key_padding_mask, attn_mask))
        return (out, None) if return_attn_weights is None else out


def _attended(module: Any, x: Tensor, pos_embs: Tensor, hidden: Hidden) -> Tensor:
    """(B, T, H): the module's result, by the op."""
    heads, dim = module.num_heads, module.head_dim
    projected = linear(x, module.in_proj_weight).unflatten(-1, (heads, 3 * dim))
    q, k, v = projected.chunk(3, dim=-1)
    if module.vbias is not None:
        v = v + module.value_bias_weight.view(heads, dim)
    context = attend_frames(
        q, k, v,
        projected_table(module.linear_pos, pos_embs, heads),
        module.pos_bias_u.view(heads, dim),
        module.pos_bias_v.view(heads, dim),
        mask=hidden.mask,
        scale=module.scale,
        dropout_p=rate_of(module.dropout_att) or 0.0,
        backend=module._xlnet_fast_options.backend,
    )  # fmt: skip
    if hidden.blank is not None:
        context = context.masked_fill(hidden.blank[..., None], 0.0)
    return project(module.out_proj, context)


def _is_known(module: Any, x: Tensor, pos_embs: Any) -> bool:
    return (
        isinstance(pos_embs, Tensor)
        and x.dim() == 3
        and tuple(pos_embs.shape[:2]) == (1, 2 * x.shape[1] - 1)
        and (x.dtype == pos_embs.dtype == module.in_proj_weight.dtype or casts_by_itself(x))
        and rate_of(module.dropout_att) is not None
    )


def _are_known(x: Tensor, padding: Tensor | None, among: Tensor | None) -> bool:
    batch, length = x.shape[:2]
    is_padding = padding is None or (
        padding.dtype == torch.bool and tuple(padding.shape) == (batch, length)
    )
    return is_padding and (
        among is None or (among.dtype == torch.bool and tuple(among.shape) == (length, length))
    )


def _hidden(x: Tensor, padding: Tensor | None, among: Tensor | None) -> Hidden:
    """The two masks, and the rows that see nothing by both together."""
    if padding is None and among is None:
        return Hidden()
    bits = None if among is None else pack_bits(among[None])
    mask = AttentionMask(key_padding=padding, bits=bits)
    if among is None:
        assert padding is not None
        blank = padding.all(1, keepdim=True)
    elif padding is None:
        blank = among.all(1)[None]
    else:  # counts of seen keys, exact in fp32
        blank = (~padding).float() @ (~among).float().t() == 0
    none_blank = can_look(blank) and not bool(blank.any())
    return Hidden(mask, None if none_blank else blank)


def _small(module: Any) -> dict[str, Any]:
    bias = {} if module.vbias is None else {"value_bias_weight": drawn(8)}
    return bias | {
        "embed_dim": 8, "num_heads": 2, "head_dim": 4, "vhead_dim": 4, "vdim": 8,
        "scale": 8**-0.5, "in_proj_weight": drawn(24, 8), "out_proj": nn.Linear(8, 8),
        "linear_pos": nn.Linear(8, 8, bias=False), "pos_bias_u": drawn(4, 2),
        "pos_bias_v": drawn(4, 2), "dropout_att": nn.Identity(),
    }  # fmt: skip


def _calls() -> Iterator[dict[str, Any]]:
    x = torch.randn(2, 5, 8)
    given = {"query": x, "key": x, "value": x, "pos_embs": torch.randn(1, 9, 8)}
    padding = torch.arange(5) >= torch.tensor([[5], [3]])
    among = torch.arange(5)[:, None] < torch.arange(5)
    yield given
    yield {**given, "key_padding_mask": padding}
    yield {**given, "key_padding_mask": padding, "attn_mask": among}


def _why_not(base: type, module: Any) -> str | None:
    if getattr(module, "mask_pos_future", False):
        return "mask_pos_future is set, which zeroes positions of later frames"
    return why_not_proved(
        base, module, FastAttention,
        attributes=_ATTRIBUTES, arguments=_ARGUMENTS, small=_small, calls=_calls,
    ) or why_not_head_dim(module.head_dim)  # fmt: skip


FAMILY = FamilyOfParts(
    "SpeechBrain",
    (NamedPart("RelPosMHAXL", FastAttention, _why_not),),
    head_dim_of=lambda attention: getattr(attention, "head_dim", 64),
    notes=(
        "SpeechBrain's attention returns None for its weights, unless return_attn_weights=True is "
        "given or a forward hook may look at them",
    ),
)
