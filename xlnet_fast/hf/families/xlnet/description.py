"""What ``explain`` says of an XLNet: the parts that run HF's own code, and what else to know."""

from __future__ import annotations

from torch import nn
from transformers.models.xlnet.modeling_xlnet import XLNetModel

from xlnet_fast.hf.adoption import new_forward, original_class
from xlnet_fast.hf.families.family import Description
from xlnet_fast.hf.families.xlnet.feed_forward import why_own_code
from xlnet_fast.hf.families.xlnet.generation import FastLMHeadModel
from xlnet_fast.hf.families.xlnet.generation.parts import obstacle_to_steps
from xlnet_fast.hf.families.xlnet.generation.recorded import recorder_for
from xlnet_fast.hf.families.xlnet.heads import HEADS
from xlnet_fast.hf.families.xlnet.layers import takes_context
from xlnet_fast.hf.families.xlnet.modules import FastModel, overrides
from xlnet_fast.hf.families.xlnet.obstacles import obstacle, unwrapped
from xlnet_fast.hf.families.xlnet.projections import PROJECTIONS
from xlnet_fast.hf.patches import patched
from xlnet_fast.nn.dropout import rate_of
from xlnet_fast.ops._dispatch import OPS


def describe(model: nn.Module) -> Description:
    """Of the first ``XLNetModel`` in a model, and of the heads around it."""
    transformer = next(module for module in model.modules() if isinstance(module, XLNetModel))
    if not isinstance(transformer, FastModel):
        return Description(accelerated=False, example=transformer)
    own_code = (*_own_code(transformer), *_own_heads(model))
    return Description(
        accelerated=True, example=transformer, backend=transformer._xlnet_fast_options.backend,
        ops=OPS, head_dim=transformer.config.d_head, own_code=own_code,
        in_part=_in_part(transformer, own_code) if own_code else "",
        notes=(*_linear_attention(transformer), *_generation(model)),
    )  # fmt: skip


def _own_code(transformer: FastModel) -> list[str]:
    """Every part that runs HF's or the user's own code, and why."""
    notes = []
    if type(transformer).forward is not FastModel.forward:
        notes.append(
            f"{type(transformer).__name__} overrides XLNetModel.forward; what it does not pass to "
            "super().forward runs Hugging Face's own code"
        )
    changed = patched(XLNetModel, "forward", "cache_mem")
    if changed is not None:
        speed = ": the model runs at Hugging Face's speed" if changed == "forward" else ""
        notes.append(f"XLNetModel.{changed} was replaced, and is called{speed}")
    if "forward" in transformer.__dict__:
        notes.append("the model has a forward of its own on the instance, which comes first")
    if transformer.attn_type == "uni" and overrides(transformer, "create_mask"):
        notes.append(
            "create_mask is not Hugging Face's: keys that it shows ahead of a query have no "
            "position score, where Hugging Face's rel_shift reads the next row's"
        )
    return notes + _own_layers(transformer)


def _own_heads(model: nn.Module) -> list[str]:
    """The models with a head whose forward is not ours, and what that leaves out."""
    notes = []
    for module in model.modules():
        if not isinstance(module, tuple(HEADS)):
            continue
        name = type(module).__name__
        left_out = "what this package adds to models with a head is left out"
        if original_class(module) is None:
            notes.append(f"the {name} is not accelerated, only the XLNetModel in it: {left_out}")
        elif "forward" in module.__dict__ and not new_forward(module):
            notes.append(
                f"the {name} had a forward of its own on the instance before accelerate(), which "
                f"comes first: {left_out}"
            )
    return notes


def _own_layers(transformer: FastModel) -> list[str]:
    """The layers, or parts of them, that stay as they are, by the reason."""
    layers: dict[str, list[int]] = {}
    blocks: dict[str, list[int]] = {}
    dropouts: list[int] = []
    for number, layer in enumerate(transformer.layer):
        if not takes_context(layer):
            since = "it was put there since; call accelerate() again"
            layers.setdefault(obstacle(unwrapped(layer)) or since, []).append(number)
            continue
        inner = unwrapped(layer)
        if rate_of(unwrapped(inner.rel_attn).dropout) is None:
            dropouts.append(number)
        why = why_own_code(inner.ff)
        if why is not None:
            blocks.setdefault(why, []).append(number)
    notes = []
    if dropouts:
        notes.append(
            f"the dropout in the attention of {_layers(dropouts)} is no bare nn.Dropout, or drops "
            "everything: it is called, on probabilities that are made in full"
        )
    for why, numbers in layers.items():
        runs = "runs its" if len(numbers) == 1 else "run their"
        notes.append(f"{_layers(numbers)} {runs} own code: {why}")
    for why, numbers in blocks.items():
        notes.append(f"the feed-forward block of {_layers(numbers)} runs its own code: {why}")
    return notes


def _linear_attention(transformer: FastModel) -> list[str]:
    """That the projections are modules, and of which kind."""
    kinds = {
        f"{type(module).__module__}.{type(module).__name__}"
        for layer in transformer.layer
        for name, module in unwrapped(getattr(unwrapped(layer), "rel_attn", layer)).named_children()
        if name in PROJECTIONS
    }
    if not kinds:
        return []
    linear = f"{nn.Linear.__module__}.{nn.Linear.__name__}"
    names = ", ".join(sorted(kinds - {linear}))
    called = f"; what is no nn.Linear is called as it is: {names}" if names else ""
    return [f"q, k, v, o and r of the attention are modules (linear_attention){called}"]


def _generation(model: nn.Module) -> list[str]:
    """Whether the steps of ``generate`` are ours, where a language model is there."""
    notes = []
    for module in model.modules():
        if not isinstance(module, FastLMHeadModel) or module.training:
            continue
        why = obstacle_to_steps(module, FastLMHeadModel)
        if why is not None:
            notes.append(
                "generate() takes Hugging Face's steps, which compute keys and values of the whole "
                f"memory again for each token: {why}"
            )
        elif recorder_for(module.device) is not None:
            notes.append(
                "generate() records its steps as CUDA graphs, which no GPU has run yet: each "
                "process compares the first one with the same step launched kernel by kernel"
            )
    return notes


def _layers(numbers: list[int]) -> str:
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _in_part(transformer: FastModel, own_code: tuple[str, ...]) -> str:
    """What keeps its own code, in one clause."""
    layers = len(transformer.layer)
    own = sum(not takes_context(layer) for layer in transformer.layer)
    return f"{own} of {layers} layers keep their own code" if own else own_code[0]
