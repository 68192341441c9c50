"""XLNet as a family: the whole model, its layers and its heads take on accelerated classes."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetPreTrainedModel

from xlnet_fast.hf.adoption import adopt, original_class
from xlnet_fast.hf.families.family import Description, Family
from xlnet_fast.hf.families.xlnet import description
from xlnet_fast.hf.families.xlnet.feed_forward import FastFeedForward, why_own_code
from xlnet_fast.hf.families.xlnet.heads import HEADS
from xlnet_fast.hf.families.xlnet.layers import FastLayer, FastRelativeAttention
from xlnet_fast.hf.families.xlnet.modules import FastModel
from xlnet_fast.hf.families.xlnet.obstacles import obstacle, unwrapped
from xlnet_fast.hf.families.xlnet.projections import to_parameters, why_held, why_no_parameters
from xlnet_fast.hf.options import Options

_CHECKPOINTING = ("gradient_checkpointing", "_gradient_checkpointing_func")
_SUPPORTED_BY_US = "_xlnet_fast_supports_checkpointing"


class XLNet(Family):
    """All seven classes, subclasses of them, a user's own module around one."""

    title = "XLNet"

    def is_in(self, model: nn.Module) -> bool:
        """Whether there is an ``XLNetModel``; of layers alone we know too little."""
        return any(isinstance(module, XLNetModel) for module in model.modules())

    def accelerate(self, model: nn.Module, options: Options) -> None:
        """Adopt models, layers, their parts and heads."""
        for transformer in transformers_in(model):
            if original_class(transformer) is None:
                adopt(transformer, FastModel)
            transformer.__dict__["_xlnet_fast_options"] = options
            for layer in transformer.layer:
                _accelerate_layer(layer)
        for module in model.modules():
            for base, fast in HEADS.items():
                if isinstance(module, base):
                    if original_class(module) is None:
                        adopt(module, fast)
                    module.__dict__["_xlnet_fast_options"] = options
            if (
                isinstance(module, XLNetPreTrainedModel)
                and not module.supports_gradient_checkpointing
            ):
                module.__dict__["supports_gradient_checkpointing"] = True
                module.__dict__[_SUPPORTED_BY_US] = True

    def why_not_restored(self, module: nn.Module) -> str | None:
        """That a projection is no bare ``nn.Linear`` any more, or is held in its shape."""
        if not isinstance(module, FastRelativeAttention):
            return None
        return why_no_parameters(module) or why_held([module], to_module=False)

    def release(self, module: nn.Module) -> None:
        """Projections are parameters again; checkpointing is Hugging Face's affair again."""
        if original_class(module) is not None:
            if isinstance(module, FastRelativeAttention):
                to_parameters(module)
            if isinstance(module, (XLNetPreTrainedModel, FastLayer)):
                for name in _CHECKPOINTING:
                    module.__dict__.pop(name, None)
        if module.__dict__.pop(_SUPPORTED_BY_US, False):
            module.__dict__.pop("supports_gradient_checkpointing", None)

    def describe(self, model: nn.Module) -> Description:
        """See :mod:`.description`."""
        return description.describe(model)


def transformers_in(model: nn.Module) -> list[Any]:
    """Every ``XLNetModel`` in a model."""
    return [module for module in model.modules() if isinstance(module, XLNetModel)]


def _accelerate_layer(layer: Any) -> None:
    """Adopt the layer and its parts, if nothing stands in the way (see ``explain``)."""
    layer = unwrapped(layer)
    if obstacle(layer) is not None:
        return
    attention = unwrapped(layer.rel_attn)
    parts: list[tuple[Any, type]] = [(attention, FastRelativeAttention), (layer, FastLayer)]
    if why_own_code(layer.ff) is None:
        parts.append((layer.ff, FastFeedForward))
    for module, fast in parts:
        if original_class(module) is None:
            adopt(module, fast)


FAMILY = XLNet()
