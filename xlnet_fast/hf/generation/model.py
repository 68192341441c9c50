"""The class that an accelerated language model takes on."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers.models.xlnet.modeling_xlnet import XLNetLMHeadModel

from xlnet_fast.hf.memory import Memory
from xlnet_fast.hf.versions import generated_memory


class FastLMHeadModel(XLNetLMHeadModel):
    """HF's model, whose ``generate`` forgets what is padding in a batch of prompts."""

    @wraps(XLNetLMHeadModel.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """As HF, with the mask of all tokens that are seen, those of the memory included."""
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        kept = prepared["mems"][0].shape[0] if prepared.get("mems") else 0
        memory = generated_memory(args, kwargs)
        remembers = kept > 0 and isinstance(memory, Memory)
        if remembers:
            prepared["mems"] = memory.first(kept)  # HF's has forgotten its padding
        mask = kwargs.get("attention_mask")
        if mask is None or mask.dim() != 2 or "attention_mask" in prepared or self.config.reuse_len:
            return prepared  # reuse_len remembers other tokens than the last
        dummy = mask.new_ones(len(mask), 1)  # the token to predict, which follows all others
        mask = torch.cat([mask, dummy], dim=1)
        columns = prepared["input_ids"].shape[1]
        if not remembers and mask.shape[1] >= kept + columns:  # or the memory is of an earlier text
            columns += kept
        prepared["attention_mask"] = mask[:, -columns:]
        return prepared
