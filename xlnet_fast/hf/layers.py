"""The classes that the layers of an accelerated model take on; how they do: :mod:`.adoption`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.xlnet.modeling_xlnet import XLNetLayer, XLNetRelativeAttention

from xlnet_fast.hf.adoption import obstacle, unwrapped
from xlnet_fast.hf.patches import patched
from xlnet_fast.hf.versions import with_head_mask_at
from xlnet_fast.nn import AttentionContext
from xlnet_fast.nn.dropout import rate_of
from xlnet_fast.nn.rel_attention import RelativeAttentionCore


class FastRelativeAttention(RelativeAttentionCore, XLNetRelativeAttention):
    """HF's attention layer; takes an :class:`AttentionContext` where HF takes its dense mask."""

    @with_head_mask_at(8)
    def forward(
        self,
        h: Tensor,
        g: Tensor | None,
        attn_mask_h: Any,
        attn_mask_g: Any,
        r: Tensor,
        seg_mat: Tensor | None,
        mems: Tensor | None = None,
        target_mapping: Tensor | None = None,
        output_attentions: bool = False,
        **head_mask: Tensor | None,
    ) -> tuple[Any, ...]:
        """As HF; called with HF's own tensors it runs HF's own code."""
        if isinstance(attn_mask_h, AttentionContext):
            return self.attend(h, g, attn_mask_h, r, mems, output_attentions)
        result: tuple[Any, ...] = XLNetRelativeAttention.forward(
            self, h, g, attn_mask_h, attn_mask_g, r, seg_mat, mems, target_mapping,
            output_attentions=output_attentions, **head_mask,
        )  # fmt: skip
        return result

    def post_attention(self, h: Tensor, attn_vec: Tensor, residual: bool = True) -> Tensor:
        """As HF."""
        base = XLNetRelativeAttention if patched(XLNetRelativeAttention, "post_attention") else None
        result: Tensor = (base or RelativeAttentionCore).post_attention(self, h, attn_vec, residual)
        return result


class FastLayer(GradientCheckpointingLayer, XLNetLayer):
    """HF's layer, with the activation checkpointing that HF's XLNet lacks."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """HF's forward, defined here because its base class wraps what a class defines."""
        outputs: tuple[Any, ...] = XLNetLayer.forward(self, *args, **kwargs)
        return outputs


def takes_context(layer: nn.Module) -> bool:
    """True for an accelerated layer, False for one that needs HF's dense arguments.

    Asked at each call: a layer, its attention or one of their methods may be another by now.
    """
    layer = unwrapped(layer)
    return (
        isinstance(layer, FastLayer)
        and isinstance(unwrapped(layer.rel_attn), FastRelativeAttention)
        and obstacle(layer) is None
    )


def fuses_dropout(layer: nn.Module) -> bool:
    """Whether a layer can attend with the predicted rows alone: a called dropout sees all."""
    attention = unwrapped(unwrapped(layer).rel_attn)
    return rate_of(attention.dropout) is not None
