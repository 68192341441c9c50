"""Models with a head that keeps arguments from the transformer in HF's code."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.xlnet.modeling_xlnet import (
    XLNetForTokenClassification,
    XLNetForTokenClassificationOutput,
    XLNetLMHeadModel,
)

from xlnet_fast.hf.patches import patched


class FastTokenClassification(XLNetForTokenClassification):
    """HF's model, whose own forward hands no further arguments to its transformer."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mems: Any = None,
        perm_mask: Tensor | None = None,
        target_mapping: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        input_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_mems: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As HF; ``labels`` has a row for each predicted position, where there are such."""
        if patched(XLNetForTokenClassification, "forward"):
            return XLNetForTokenClassification.forward(
                self, input_ids, attention_mask, mems, perm_mask, target_mapping, token_type_ids,
                input_mask, inputs_embeds, labels, use_mems, output_attentions,
                output_hidden_states, return_dict, **kwargs,
            )  # fmt: skip
        return_dict = self.config.return_dict if return_dict is None else return_dict
        outputs = self.transformer(
            input_ids, attention_mask=attention_mask, mems=mems, perm_mask=perm_mask,
            target_mapping=target_mapping, token_type_ids=token_type_ids, input_mask=input_mask,
            inputs_embeds=inputs_embeds, use_mems=use_mems, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states, return_dict=return_dict, **kwargs,
        )  # fmt: skip
        logits = self.classifier(outputs[0])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.view(-1, self.num_labels), labels.view(-1))
        if not return_dict:
            return (*(() if loss is None else (loss,)), logits, *outputs[1:])
        return XLNetForTokenClassificationOutput(
            loss=loss,
            logits=logits,
            mems=outputs.mems,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class FastLMHeadModel(XLNetLMHeadModel):
    """HF's model, whose ``generate`` forgets what is padding in a batch of prompts."""

    @wraps(XLNetLMHeadModel.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """As HF, with the mask of all tokens that are seen, those of the memory included."""
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        mask = kwargs.get("attention_mask")
        if mask is None or mask.dim() != 2 or "attention_mask" in prepared or self.config.reuse_len:
            return prepared  # reuse_len remembers other tokens than the last
        dummy = mask.new_ones(len(mask), 1)  # the token to predict, which follows all others
        keys = prepared["input_ids"].shape[1]
        if prepared.get("mems"):
            keys += prepared["mems"][0].shape[0]
        prepared["attention_mask"] = torch.cat([mask, dummy], dim=1)[:, -keys:]
        return prepared
