"""Models with a head whose own forward would keep arguments of ours from the transformer."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers.models.xlnet.modeling_xlnet import (
    XLNetForTokenClassification,
    XLNetForTokenClassificationOutput,
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
