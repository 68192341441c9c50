"""Generation step by step, with Hugging Face's code in float64 as the oracle."""

from __future__ import annotations

from typing import Any

import torch
from hf_parity import hf_in, tiny_model
from torch import Tensor
from transformers import XLNetLMHeadModel

from xlnet_fast.hf.versions import HAS_HEAD_MASK


class XLNetInFloat64(XLNetLMHeadModel):
    """HF's model; its own ``generate`` makes fp32 masks, which float64 does not multiply with."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        prepared = super().prepare_inputs_for_generation(*args, **kwargs)
        prepared["target_mapping"] = prepared["target_mapping"].double()
        return prepared


def wide_model(seed: int = 1, **config: Any) -> Any:
    """HF's model in fp32, with weights under which the tokens vary."""
    model = tiny_model(XLNetLMHeadModel, **config)
    if seed != 1:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_attn" in name or ".ff.layer_" in name:
                parameter.mul_(3.0)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 5
    return model


def in_float64(model: Any) -> Any:
    """HF's own code with the model's weights, exact enough to be called so."""
    exact = hf_in(model, torch.float64)
    exact.__class__ = XLNetInFloat64
    return exact


@torch.no_grad()
def drive(
    model: Any, ids: Tensor, tokens: Tensor | int, use_mems: bool | None = None, **kwargs: Any
) -> tuple[list[Tensor], Tensor, Any]:
    """HF's loop around a step, by hand.

    Args:
        ids: (B, I) prompt. tokens: (B, steps) what is chosen at each step, or how many steps that
            take the best.

    Returns:
        (B, V) logits of each step, all tokens, and the last memory.
    """
    kwargs = {"use_mems": use_mems, **kwargs}
    if HAS_HEAD_MASK:  # version 4 counts its steps
        kwargs["cache_position"] = torch.arange(ids.shape[1])
    logits = []
    steps = tokens if isinstance(tokens, int) else tokens.shape[1]
    for step in range(steps):
        outputs = model(**model.prepare_inputs_for_generation(ids, **kwargs), return_dict=True)
        kwargs = model._update_model_kwargs_for_generation(outputs, kwargs)
        logits.append(outputs.logits[:, -1])
        chosen = logits[-1].argmax(-1) if isinstance(tokens, int) else tokens[:, step]
        ids = torch.cat([ids, chosen[:, None]], dim=1)
    return logits, ids, outputs.mems
