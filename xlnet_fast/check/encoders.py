"""What is compared of a speech encoder, or any other model of a family: a batch, and training."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xlnet_fast.check.subject import TRAINING, Computation, Results, random
from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.families import families_in
from xlnet_fast.hf.families.family import FamilyOfParts

BATCH = 2
LENGTHS = {"input_features": 160, "hidden_states": 40, "input_values": 6400, "input_ids": 24}
"""Frames, samples or tokens, by the name of an argument."""
_WIDTHS = ("num_mel_bins", "feature_projection_input_dim")
"""Attributes of a config that tell the width of features."""
_IGNORED = (".k_proj.bias", ".k_lin.bias", ".linear_k.bias")
"""Biases of keys, which a softmax ignores: their gradients are noise."""
_VOCABULARIES = ("vocab_size", "n_words")


class EncoderSubject:
    """See :class:`.subject.Subject`.

    Compared is the smallest model of transformers in a model that has all of its attention.

    Raises:
        ArgumentError: it is of no family, or nothing is known to call it with.
    """

    def __init__(self, model: nn.Module) -> None:
        attentions = _attentions_of(model)
        self._encoder, encoder = _encoder_of(model, attentions)
        self._inputs_of(encoder, padded=True, seed=0)  # raises where it cannot be called
        described = families_in(model)[0].describe(model)
        self.head_dim = described.head_dim
        self.computations: dict[str, Computation] = {
            "a batch": partial(self._inference, padded=False),
            "a padded batch": partial(self._inference, padded=True),
            TRAINING: self._training,
        }

    @property
    def training_batches(self) -> int:
        """How many batches make a fair yardstick."""
        return 4

    def op_of(self, computation: str) -> str:
        """The op that decides which backends can run it."""
        return "rel_attention"

    def mended(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        """As it is."""
        return model

    def _encode(self, model: nn.Module, batch: int, padded: bool) -> Results:
        encoder = model.get_submodule(self._encoder)
        output = encoder(**self._inputs_of(encoder, padded, seed=batch), output_hidden_states=True)
        states = {f"hidden_states[{i}]": x for i, x in enumerate(output.hidden_states or ())}
        return {"last_hidden_state": output[0], **states}

    @torch.no_grad()
    def _inference(self, model: nn.Module, batch: int, padded: bool) -> Results:
        return self._encode(model.eval(), batch, padded)

    def _training(self, model: nn.Module, batch: int) -> Results:
        """Hidden states and every gradient; batch norm remembers, and layers are not dropped."""
        encoder = model.eval().get_submodule(self._encoder)
        with torch.enable_grad():
            results = self._encode(model, batch, padded=False)
            state = results["last_hidden_state"]
            direction = torch.randn(state.shape, generator=random(200 + batch))
            (state * direction.to(state)).mean().backward()
        results = {name: x.detach() for name, x in results.items()}
        for name, parameter in encoder.named_parameters():
            if parameter.grad is not None and not name.endswith(_IGNORED):
                results[f"d {name}"] = parameter.grad
        model.zero_grad(set_to_none=True)
        return results

    def _inputs_of(self, encoder: Any, padded: bool, seed: int) -> dict[str, Tensor]:
        """What an encoder is called with, by the name of the first argument of its forward."""
        arguments, generator = inspect.signature(encoder.forward).parameters, random(seed)
        name = next(iter(arguments))
        if name not in LENGTHS:
            raise ArgumentError(f"check knows no inputs for {type(encoder).__name__}: {name}")
        shape: tuple[int, ...] = (BATCH, LENGTHS[name])
        if name == "input_ids":
            words = _first_of(encoder.config, _VOCABULARIES)
            x = torch.randint(4, words, shape, generator=generator)
        else:
            if name != "input_values":
                shape = (*shape, _width_of(encoder, name))
            x = torch.randn(shape, generator=generator).to(encoder.dtype)
        given = {name: x.to(encoder.device)}
        if padded and "attention_mask" in arguments:
            mask = torch.ones(shape[:2], dtype=torch.int64, device=encoder.device)
            mask[1, 3 * shape[1] // 4 :] = 0
            given["attention_mask"] = mask
        return given


def _attentions_of(model: nn.Module) -> list[nn.Module]:
    known = families_in(model)
    families = [family for family in known if isinstance(family, FamilyOfParts)]
    found = [
        module
        for module in model.modules()
        for family in families
        if (part := family.part_of(module)) is not None
        and part.kind == "attention"
        and part.why_not(module) is None
    ]
    if not found:
        kept = "; ".join(why for family in known for why in family.describe(model).own_code)
        name = type(model).__name__
        raise ArgumentError(f"{name} has no attention that is accelerated{kept and ': ' + kept}")
    return found


def _encoder_of(model: nn.Module, attentions: list[nn.Module]) -> tuple[str, Any]:
    """Name and module of the smallest model of transformers with all the attention of a model."""
    wanted = set(attentions)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and wanted <= set(module.modules())
    ]
    if not found:
        raise ArgumentError(f"{type(model).__name__} is no model of transformers")
    return found[-1]


def _width_of(encoder: Any, name: str) -> int:
    """Of a frame's features, or hidden states."""
    first = getattr(encoder, "input_linear", None)
    if isinstance(first, nn.Linear):
        return first.in_features
    return _first_of(encoder.config, ("hidden_size",) if name == "hidden_states" else _WIDTHS)


def _first_of(config: Any, names: tuple[str, ...]) -> int:
    for name in names:
        if isinstance(value := getattr(config, name, None), int):
            return value
    raise ArgumentError(f"{type(config).__name__} has none of {', '.join(names)}")
