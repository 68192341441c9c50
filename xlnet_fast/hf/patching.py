"""``accelerate`` and ``restore`` one model; ``enable`` and ``disable`` for all later ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.adoption import (
    checked_module,
    give_up,
    new_forward,
    original_class,
)
from xlnet_fast.hf.families import ENTRIES, families_in
from xlnet_fast.hf.families.family import Family
from xlnet_fast.hf.options import Options
from xlnet_fast.ops._dispatch import check_backend

Model = TypeVar("Model", bound=nn.Module)

OWN_MODELS = "xlnet_fast.models."
_LOADERS = ("from_pretrained", "_from_config")
_BEFORE: dict[str, Any] = {}
"""Hugging Face's loaders, while ``enable`` has put ours in their place."""


def accelerate(
    model: Model,
    backend: str = "auto",
    *,
    exact_dropout: bool = False,
    summarize_real_tokens: bool = False,
) -> Model:
    """Make every model that this package knows, inside a model, run on the fused ops; in place.

    Parameters, their names, hooks and ``state_dict`` stay the same objects. Calling it again only
    changes the options. ``restore`` undoes it. What stays on Hugging Face's code, and why, is what
    ``explain`` says.

    A pipeline of transformers with a ``batch_size`` above the number of layers of an XLNet raises
    IndexError, with HF's own code too, for it splits ``mems`` as if they lay by text:
    ``model.config.use_mems_eval = False`` makes none (not for text generation, which uses them).

    Args:
        model: any ``torch.nn.Module`` that is or contains an XLNet, or a speech encoder with the
            same attention, of transformers (their classes, subclasses of them, a user's own module
            around one).
        backend: "auto", or the backend of the attention: one that cannot run raises when called.
        exact_dropout: of XLNet: draw one dropout mask of the position table per batch element, as
            HF does; by default the batch shares one, so that the table is projected once.
        summarize_real_tokens: of XLNet: a classifier summarises the last real token
            (``summary_type`` "last" and "cls_index"), the first one, or the mean of the real ones,
            where HF's own takes padding for tokens: what padding there is, and where, no longer
            matters.

    Returns:
        The same model.

    Raises:
        ArgumentError: the model contains nothing of a known family, or no backend has that name.
    """
    options = _checked_options(backend, exact_dropout, summarize_real_tokens)
    for family in known_families(model):
        family.accelerate(model, options)
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
    families = families_in(model)
    for module in modules:
        if original_class(module) is not None:
            _check_restorable(module, families)
    for module in modules:
        for family in families:
            family.release(module)
        if original_class(module) is not None:
            give_up(module)
            module.__dict__.pop("_xlnet_fast_options", None)
    return model


def _check_restorable(module: nn.Module, families: list[Family]) -> None:
    if "_xlnet_fast_original" not in vars(type(module)):
        raise ArgumentError(
            f"the class of a {type(module).__name__} was changed after accelerate(); "
            "undo that change (parametrize, FSDP), then restore"
        )
    if new_forward(module):
        raise ArgumentError(
            f"a {type(module).__name__} was given a forward of its own after accelerate(), "
            "which calls the accelerated one (Trainer and Accelerator.prepare do so for bf16, "
            "accelerate's offloading too); undo that "
            "(accelerate.utils.extract_model_from_parallel with keep_fp32_wrapper=False, "
            "accelerate.hooks.remove_hook_from_submodules), then restore"
        )
    for family in families:
        why = family.why_not_restored(module)
        if why is not None:
            raise ArgumentError(f"{why}, then restore")


def is_accelerated(model: nn.Module) -> bool:
    """True if a part of the model is accelerated."""
    return any(original_class(module) is not None for module in checked_module(model).modules())


def enable(
    backend: str = "auto", *, exact_dropout: bool = False, summarize_real_tokens: bool = False
) -> None:
    """From now on ``from_pretrained`` and ``from_config`` of every class of transformers return
    accelerated models, where they contain something that ``accelerate`` takes; the arguments are
    those of ``accelerate``. ``disable`` ends it.
    """
    options = _checked_options(backend, exact_dropout, summarize_real_tokens)
    disable()
    for name in _LOADERS:
        _BEFORE[name] = vars(PreTrainedModel)[name]
        setattr(PreTrainedModel, name, _accelerating(_BEFORE[name], options))


def disable() -> None:
    """Undo ``enable``; models made meanwhile stay accelerated."""
    for name, loader in _BEFORE.items():
        setattr(PreTrainedModel, name, loader)
    _BEFORE.clear()


def _accelerating(loader: Any, options: Options) -> Any:
    """A class method that calls HF's loader and accelerates what it returns."""

    def load(cls: type, *args: Any, **kwargs: Any) -> Any:
        inherited: Callable[..., Any] = loader.__get__(None, cls)
        result = inherited(*args, **kwargs)
        model = result[0] if isinstance(result, tuple) else result
        if families_in(model):
            accelerate(model, **asdict(options))
        return result

    return classmethod(load)


def _checked_options(backend: str, exact_dropout: bool, summarize_real_tokens: bool) -> Options:
    check_backend(backend)
    return Options(backend, exact_dropout, summarize_real_tokens)


def known_families(model: nn.Module) -> list[Family]:
    """The families in a model.

    Raises:
        ArgumentError: there is none; it lists all.
    """
    families = families_in(checked_module(model))
    if not families and type(model).__module__.startswith(OWN_MODELS):
        raise ArgumentError(
            f"{type(model).__name__} is a model of xlnet_fast's own and runs on the fused ops as "
            "it is; set the attribute backend of its transformer to name one"
        )
    if not families:
        raise ArgumentError(
            f"{type(model).__name__} contains nothing to accelerate. Models are taken that are or "
            f"contain one of: {'; '.join(entry.takes for entry in ENTRIES)}"
        )
    return families
