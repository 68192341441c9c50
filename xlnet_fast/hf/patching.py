"""``accelerate`` and ``restore`` one model; ``enable`` and ``disable`` for all later ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from torch import nn
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetPreTrainedModel

from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.adoption import (
    adopt,
    checked_module,
    give_up,
    new_forward,
    obstacle,
    original_class,
    unwrapped,
)
from xlnet_fast.hf.feed_forward import FastFeedForward, why_own_code
from xlnet_fast.hf.heads import HEADS
from xlnet_fast.hf.layers import FastLayer, FastRelativeAttention, takes_context
from xlnet_fast.hf.modules import FastModel, Options
from xlnet_fast.hf.projections import (
    to_modules,
    to_parameters,
    why_held,
    why_no_modules,
    why_no_parameters,
    why_not_alone,
)
from xlnet_fast.ops._dispatch import BACKENDS

Model = TypeVar("Model", bound=nn.Module)

_CHECKPOINTING = ("gradient_checkpointing", "_gradient_checkpointing_func")
_LOADERS = ("from_pretrained", "_from_config")
_SUPPORTED_BY_US = "_xlnet_fast_supports_checkpointing"


def accelerate(
    model: Model,
    backend: str = "auto",
    *,
    exact_dropout: bool = False,
    summarize_real_tokens: bool = False,
) -> Model:
    """Make every XLNet inside a model run on the fused ops, in place, and return the model.

    Parameters, their names, hooks and ``state_dict`` stay the same objects. Calling it again only
    changes the options. ``restore`` undoes it.

    A pipeline of transformers with a ``batch_size`` above the number of layers raises IndexError,
    with HF's own code too, for it splits ``mems`` as if they lay by text:
    ``model.config.use_mems_eval = False`` makes none (not for text generation, which uses them).

    Args:
        model: any ``torch.nn.Module`` that is or contains HF's ``XLNetModel`` (all seven classes,
            subclasses of them, a user's own module around one).
        backend: "auto", or the backend of the attention: one that cannot run raises when called.
        exact_dropout: draw one dropout mask of the position table per batch element, as HF does;
            by default the batch shares one, so that the table is projected once.
        summarize_real_tokens: a classifier summarises the last real token (``summary_type`` "last"
            and "cls_index"), the first one, or the mean of the real ones, where HF's own takes
            padding for tokens: what padding there is, and where, no longer matters.

    Returns:
        The same model.

    Raises:
        ArgumentError: the model contains no HF XLNet, or no backend has that name.
    """
    options = _checked_options(backend, exact_dropout, summarize_real_tokens)
    for transformer in _transformers(model):
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
        if isinstance(module, XLNetPreTrainedModel) and not module.supports_gradient_checkpointing:
            module.__dict__["supports_gradient_checkpointing"] = True
            module.__dict__[_SUPPORTED_BY_US] = True
    return model


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
    for transformer in _transformers(model):
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


def restore(model: Model) -> Model:
    """Undo ``accelerate`` and ``linear_attention`` exactly, in place; a model that is not
    accelerated stays as it is.

    Raises:
        ArgumentError: a module's class was changed again after ``accelerate`` (for example by
            ``torch.nn.utils.parametrize``), it was given a forward of its own, or a projection of
            ``linear_attention`` is no bare ``nn.Linear`` any more (LoRA, quantised), or is part of
            an output or a loss that still exists; undo that first.
    """
    modules = list(checked_module(model).modules())
    for module in modules:
        if original_class(module) is not None and "_xlnet_fast_original" not in vars(type(module)):
            raise ArgumentError(
                f"the class of a {type(module).__name__} was changed after accelerate(); "
                "undo that change (parametrize, FSDP), then restore"
            )
        if original_class(module) is not None and new_forward(module):
            raise ArgumentError(
                f"a {type(module).__name__} was given a forward of its own after accelerate(), "
                "which calls the accelerated one (Trainer and Accelerator.prepare do so for bf16, "
                "accelerate's offloading too); undo that "
                "(accelerate.utils.extract_model_from_parallel with keep_fp32_wrapper=False, "
                "accelerate.hooks.remove_hook_from_submodules), then restore"
            )
        if isinstance(module, FastRelativeAttention):
            why = why_no_parameters(module) or why_held([module], to_module=False)
            if why is not None:
                raise ArgumentError(f"{why}, then restore")
    for module in modules:
        if original_class(module) is not None:
            if isinstance(module, FastRelativeAttention):
                to_parameters(module)
            give_up(module)
            module.__dict__.pop("_xlnet_fast_options", None)
            for name in _CHECKPOINTING:
                module.__dict__.pop(name, None)
        if module.__dict__.pop(_SUPPORTED_BY_US, False):
            module.__dict__.pop("supports_gradient_checkpointing", None)
    return model


def is_accelerated(model: nn.Module) -> bool:
    """True if an XLNet inside the model is accelerated."""
    return any(isinstance(module, FastModel) for module in checked_module(model).modules())


def enable(
    backend: str = "auto", *, exact_dropout: bool = False, summarize_real_tokens: bool = False
) -> None:
    """From now on ``from_pretrained`` and ``from_config`` of every XLNet class return accelerated
    models; the arguments are those of ``accelerate``. ``disable`` ends it.
    """
    options = _checked_options(backend, exact_dropout, summarize_real_tokens)
    disable()
    for name in _LOADERS:
        setattr(XLNetPreTrainedModel, name, _accelerating(name, options))


def disable() -> None:
    """Undo ``enable``; models made meanwhile stay accelerated."""
    for name in _LOADERS:
        if name in vars(XLNetPreTrainedModel):
            delattr(XLNetPreTrainedModel, name)


def _accelerating(name: str, options: Options) -> Any:
    """A class method that calls the inherited loader and accelerates what it returns."""

    def load(cls: type, *args: Any, **kwargs: Any) -> Any:
        inherited: Callable[..., Any] = getattr(super(XLNetPreTrainedModel, cls), name)
        result = inherited(*args, **kwargs)
        model = result[0] if isinstance(result, tuple) else result
        accelerate(model, **asdict(options))
        return result

    return classmethod(load)


def _checked_options(backend: str, exact_dropout: bool, summarize_real_tokens: bool) -> Options:
    if backend not in ("auto", *BACKENDS):
        known = ", ".join(("auto", *BACKENDS))
        raise ArgumentError(f"unknown backend {backend!r}, expected one of: {known}")
    return Options(backend, exact_dropout, summarize_real_tokens)


def _transformers(model: nn.Module) -> list[Any]:
    found = [module for module in checked_module(model).modules() if isinstance(module, XLNetModel)]
    if not found:
        raise ArgumentError(
            f"{type(model).__name__} contains no XLNetModel of transformers: "
            "accelerate() takes XLNet models (XLNetModel, XLNetLMHeadModel, XLNetFor...) and "
            "modules that contain one"
        )
    return found
