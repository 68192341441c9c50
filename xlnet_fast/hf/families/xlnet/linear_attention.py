"""``linear_attention``: XLNet's projections as ``nn.Linear`` modules, for tools that want these."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.adoption import checked_module, original_class
from xlnet_fast.hf.families.xlnet.family import transformers_in
from xlnet_fast.hf.families.xlnet.layers import takes_context
from xlnet_fast.hf.families.xlnet.obstacles import obstacle, unwrapped
from xlnet_fast.hf.families.xlnet.projections import (
    to_modules,
    why_held,
    why_no_modules,
    why_not_alone,
)

Model = TypeVar("Model", bound=nn.Module)


def linear_attention(model: Model) -> Model:
    """Give the projections q, k, v, o and r of an accelerated model as ``nn.Linear`` modules.

    For tools that look for ``nn.Linear`` (LoRA by PEFT with ``target_modules=["q", "k", "v",
    "o"]``, quantisation), hooks, or what else is put in their place: all that is called. In place;
    the parameters stay the same objects on the same storage, but have the shape of a weight
    (out, in). ``state_dict`` and what is saved are Hugging Face's as before, names and shapes, and
    so is what is loaded. ``restore`` undoes it, with ``accelerate``. Call it before an optimizer or
    DDP takes the parameters.

    Args:
        model: accelerated; a second call changes nothing.

    Returns:
        The same model.

    Raises:
        ArgumentError: the model is not accelerated, a layer runs code of its own, or a projection
            is no plain parameter, belongs to something else too, or is part of an output or a loss
            that still exists; nothing has been changed then.
    """
    attentions = []
    transformers = transformers_in(checked_module(model))
    if not transformers:
        raise ArgumentError(
            f"{type(model).__name__} contains no XLNetModel of transformers: the projections of "
            "other families are nn.Linear already"
        )
    for transformer in transformers:
        if original_class(transformer) is None:
            raise ArgumentError(
                "linear_attention() takes accelerated models, for Hugging Face's attention cannot "
                "call modules: xlnet_fast.accelerate(model) first"
            )
        for number, layer in enumerate(transformer.layer):
            attention = getattr(unwrapped(layer), "rel_attn", layer)
            why = obstacle(unwrapped(layer)) or why_no_modules(unwrapped(attention))
            if why is None and not takes_context(layer):
                why = "it was put there since: accelerate(model) first"
            if why is not None:
                raise ArgumentError(f"layer {number} cannot have linear attention: {why}")
            attentions.append(unwrapped(attention))
    why = why_not_alone(model, attentions) or why_held(attentions, to_module=True)
    if why is not None:
        raise ArgumentError(f"no linear attention: {why}")
    for attention in attentions:
        to_modules(attention)
    return model
