"""A layer of a Transformer-XL."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from xlnet_fast.models.transfo_xl.attention import RelPartialLearnableMultiHeadAttn, Segment
from xlnet_fast.models.transfo_xl.configuration import TransfoXLConfig
from xlnet_fast.models.transfo_xl.feed_forward import PositionwiseFF


class RelPartialLearnableDecoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward.

    Args:
        config: of the model. biases: ``r_w_bias`` and ``r_r_bias``, where the layers share them.
    """

    def __init__(self, config: TransfoXLConfig, **biases: Any) -> None:
        super().__init__()
        self.dec_attn = RelPartialLearnableMultiHeadAttn(
            config.n_head, config.d_model, config.d_head, config.dropout, config.dropatt,
            config.pre_lnorm, config.layer_norm_epsilon, **biases,
        )  # fmt: skip
        self.pos_ff = PositionwiseFF(
            config.d_model, config.d_inner, config.dropout, config.pre_lnorm,
            config.layer_norm_epsilon,
        )  # fmt: skip

    def forward(
        self,
        h: Tensor,
        memory: Tensor | None,
        segment: Segment,
        number: int,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, I, H) to (B, I, H), and probabilities; as the attention's arguments."""
        h, probability = self.dec_attn(h, memory, segment, number, head_mask, output_attentions)
        return self.pos_ff(h), probability
