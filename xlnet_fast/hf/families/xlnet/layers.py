"""The classes that the layers of an accelerated model take on; how they do: :mod:`.adoption`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.xlnet.modeling_xlnet import XLNetLayer, XLNetRelativeAttention
from transformers.pytorch_utils import apply_chunking_to_forward

from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.families.xlnet.dense import dense_attention
from xlnet_fast.hf.families.xlnet.obstacles import obstacle, unwrapped
from xlnet_fast.hf.families.xlnet.projections import SavedAsParameters, has_modules
from xlnet_fast.hf.patches import patched
from xlnet_fast.hf.versions import with_head_mask_at
from xlnet_fast.nn import AttentionContext
from xlnet_fast.nn.dropout import rate_of
from xlnet_fast.nn.rel_attention import RelativeAttentionCore

_WARNED: list[bool] = []


class FastRelativeAttention(SavedAsParameters, RelativeAttentionCore, XLNetRelativeAttention):
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
        """As HF; called with HF's own tensors it runs HF's own code, or that with modules."""
        if isinstance(attn_mask_h, AttentionContext):
            return self.attend(h, g, attn_mask_h, r, mems, output_attentions)
        given = (h, g, attn_mask_h, attn_mask_g, r, seg_mat, mems, target_mapping)
        if not has_modules(self):
            theirs: tuple[Any, ...] = XLNetRelativeAttention.forward(
                self, *given, output_attentions=output_attentions, **head_mask
            )
            return theirs
        if patched(XLNetRelativeAttention, "forward"):
            raise ArgumentError(
                "XLNetRelativeAttention.forward was replaced, and cannot have q, k, v, o and r as "
                "modules (xlnet_fast.linear_attention): undo one of both"
            )
        if any(mask is not None for mask in head_mask.values()):
            raise ArgumentError(
                "head_mask is for attention whose q, k, v, o and r are parameters, or for the "
                "accelerated model, not for a layer that runs its own code: restore(model)"
            )
        return dense_attention(self, *given, output_attentions)

    def post_attention(self, h: Tensor, attn_vec: Tensor, residual: bool = True) -> Tensor:
        """As HF."""
        base = XLNetRelativeAttention if patched(XLNetRelativeAttention, "post_attention") else None
        result: Tensor = (base or RelativeAttentionCore).post_attention(self, h, attn_vec, residual)
        return result


class FastLayer(GradientCheckpointingLayer, XLNetLayer):
    """HF's layer, with the activation checkpointing that HF's XLNet lacks."""

    @with_head_mask_at(8)
    def forward(
        self,
        output_h: Tensor,
        output_g: Tensor | None,
        attn_mask_h: Any,
        attn_mask_g: Any,
        r: Tensor,
        seg_mat: Tensor | None,
        mems: Tensor | None = None,
        target_mapping: Tensor | None = None,
        output_attentions: bool = False,
        **head_mask: Tensor | None,
    ) -> tuple[Any, ...]:
        """As HF, which asks for the signature of ``ff_chunk`` whether it cuts pieces or not."""
        given = (output_h, output_g, attn_mask_h, attn_mask_g, r, seg_mat)
        options: dict[str, Any] = {
            "mems": mems, "target_mapping": target_mapping,
            "output_attentions": output_attentions, **head_mask,
        }  # fmt: skip
        if patched(XLNetLayer, "forward"):
            theirs: tuple[Any, ...] = XLNetLayer.forward(self, *given, **options)
            return theirs
        output_h, output_g, *rest = self.rel_attn(*given, **options)
        if output_g is not None:
            output_g = self.__feed(output_g)
        return self.__feed(output_h), output_g, *rest

    def __feed(self, x: Tensor) -> Tensor:
        size = self.chunk_size_feed_forward
        if not size:
            whole: Tensor = self.ff_chunk(x)
            return whole
        return apply_chunking_to_forward(self.ff_chunk, size, self.seq_len_dim, x)


def takes_context(layer: nn.Module) -> bool:
    """True for an accelerated layer, False for one that needs HF's dense arguments.

    Asked at each call: a layer, its attention or one of their methods may be another by now.
    """
    layer = unwrapped(layer)
    taken = (
        isinstance(layer, FastLayer)
        and isinstance(unwrapped(layer.rel_attn), FastRelativeAttention)
        and obstacle(layer) is None
    )
    if not taken:
        _warn_of_experts(getattr(layer, "rel_attn", None))
    return taken


def _warn_of_experts(attention: Any) -> None:
    """One warning where PEFT adapts a projection as the experts that it is not."""
    if type(attention).__name__ != "ParamWrapper" or torch.compiler.is_compiling():
        return
    if not _WARNED:
        _WARNED.append(True)
        warnings.warn(f"XLNet's attention keeps its own code: {obstacle(attention)}", stacklevel=4)


def fuses_dropout(layer: nn.Module) -> bool:
    """Whether a layer can attend with the predicted rows alone: a called dropout sees all."""
    attention = unwrapped(unwrapped(layer).rel_attn)
    return rate_of(attention.dropout) is not None
