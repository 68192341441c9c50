"""Speech encoders, whole or attention alone: Hugging Face's, it compiled, and ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..cases.model import share
from ..cases.speech import SpeechCase, SpeechModel, mask_of, random_frames, real_frames
from .work import Tensors, Work

_COMPILED = ("hf_compile", "ours_compile")


def provider_names(attention: bool) -> tuple[str, ...]:
    """Return the names of all providers; attention alone is compiled with what is around it."""
    return ("hf_eager", "ours", *(() if attention else _COMPILED))


def make_work(name: str, model: SpeechModel, case: SpeechCase, encoder: nn.Module) -> Work:
    """Return the work of a provider on an encoder in the case's dtype; the weights are shared."""
    own = share(encoder)
    if name.startswith("ours"):
        import xlnet_fast

        own = xlnet_fast.accelerate(own)
    call = _call(model, case, own, slice(None), compiled=name.endswith("_compile"))
    return Work(call, lambda: [_real(call(), model, case, slice(None))])


def exact_result(model: SpeechModel, case: SpeechCase, encoder: nn.Module) -> Tensors:
    """Return Hugging Face's own result, element by element: they do not meet in an encoder.

    encoder: its, in float64.
    """
    outputs = []
    for number in range(case.batch):
        part = slice(number, number + 1)
        call = _call(model, case, encoder, part)
        outputs.append(_real(call(), model, case, part))
    return [torch.cat(outputs)]


def _call(
    model: SpeechModel, case: SpeechCase, encoder: Any, part: slice, *, compiled: bool = False
) -> Callable[[], Tensor]:
    """What computes some elements of a batch once, (B, T, H)."""
    parameter = next(encoder.parameters())
    real = real_frames(model, case).to(parameter.device)
    frames = random_frames(*real.shape, model.width)[part].to(parameter)
    mask = mask_of(model, real)
    options = dict(model.call) | ({} if mask is None else {"attention_mask": mask[part]})
    called = partial(torch.compile(encoder, dynamic=False) if compiled else encoder, frames)
    if case.attention:
        called, options = _attention(encoder, partial(called, **options), part, case.batch), {}

    def call() -> Tensor:
        with torch.no_grad():
            output = called(**options)
        output = getattr(output, "last_hidden_state", output)
        return output[0] if isinstance(output, tuple) else output

    return call


def _attention(
    encoder: nn.Module, call: Callable[[], Any], part: slice, batch: int
) -> Callable[..., Any]:
    """The attention of the first layer, on frames of its own, with all else that it gets there."""
    found: list[Callable[..., Any]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        first = arguments[0] if arguments else options["hidden_states"]
        own = random_frames(batch, *first.shape[1:])[part].to(first)
        if arguments:
            arguments = (own, *arguments[1:])
        else:
            options = options | {"hidden_states": own}
        found.append(partial(module, *arguments, **options))

    handle = attention_of(encoder).register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            call()
    finally:
        handle.remove()
    return found[0]


def attention_of(encoder: nn.Module) -> nn.Module:
    """The first module of attention in an encoder, Hugging Face's or ours."""
    from xlnet_fast.hf.families import families_in

    (family,) = families_in(encoder)
    base = family.parts[0].base
    return next(module for module in encoder.modules() if isinstance(module, base))


def _real(output: Tensor, model: SpeechModel, case: SpeechCase, part: slice) -> Tensor:
    """Zeros in the place of padding, which is nobody's."""
    real = real_frames(model, case).to(output.device)[part]
    return output.masked_fill(~real[..., None], 0.0)
