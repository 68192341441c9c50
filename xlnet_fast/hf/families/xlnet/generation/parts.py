"""What a step of generation computes with, and why a model's steps are Hugging Face's instead.

A step passes modules by, and calls them with fewer rows than Hugging Face does. It is taken only
where nobody could tell: no hooks, no code of the user's own, nothing that a tool put in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module
from transformers.models.xlnet.modeling_xlnet import (
    XLNetFeedForward,
    XLNetLayer,
    XLNetLMHeadModel,
    XLNetModel,
    XLNetRelativeAttention,
)

from xlnet_fast.hf.families.xlnet.feed_forward import FastFeedForward
from xlnet_fast.hf.families.xlnet.layers import FastRelativeAttention, takes_context
from xlnet_fast.hf.families.xlnet.modules import FastModel, overrides
from xlnet_fast.hf.families.xlnet.projections import PROJECTIONS
from xlnet_fast.hf.patches import patched
from xlnet_fast.nn.bare import is_bare
from xlnet_fast.nn.dropout import rate_of
from xlnet_fast.nn.linear import is_plain_linear
from xlnet_fast.transforms import are_plain

_OF_TRANSFORMER = (
    "forward", "cache_mem", "create_mask", "relative_positional_encoding", "positional_embedding",
)  # fmt: skip
_METHODS = {
    "forward", "prepare_inputs_for_generation", "_reorder_cache",
    "_update_model_kwargs_for_generation",
}  # fmt: skip
_READ_OF_TRANSFORMER = (
    "attn_type", "clamp_len", "mem_len", "reuse_len", "same_length", "bi_data",
)  # fmt: skip
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class LayerParts:
    """One layer: weights (out, in), in the dtype of the hidden states.

    Attributes:
        q, k, v, r: (N * D, H). o: (H, N * D). r_w_bias, r_r_bias: (N, D).
        norm: of the attention. feed_forward: with its own.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    r: Tensor
    o: Tensor
    r_w_bias: Tensor
    r_r_bias: Tensor
    scale: float
    norm: nn.LayerNorm
    feed_forward: nn.Module


class Parts:
    """The weights of a language model and what its config says, for as long as it stays as it is.

    Attributes:
        layers: those of the transformer. embedding: of the words. mask_embedding: (H,), of the row
            that predicts. heads: N and D.
    """

    def __init__(self, model: Any) -> None:
        transformer = model.transformer
        self.embedding: nn.Embedding = transformer.word_embedding
        self.dtype = self.embedding.weight.dtype
        self.device = self.embedding.weight.device
        self.hidden_size: int = self.embedding.weight.shape[1]
        self.mask_embedding: Tensor = transformer.mask_emb.reshape(-1).to(self.dtype)
        self.layers = [self.__layer(layer) for layer in transformer.layer]
        self.heads: tuple[int, int] = tuple(transformer.layer[0].rel_attn.r_w_bias.shape)
        self.attn_type: str = transformer.attn_type
        self.clamp_len: int = transformer.clamp_len
        self.mem_len: int = transformer.mem_len or 0
        self.reuse_len: int = transformer.reuse_len or 0
        self._model = model
        self._hooks = [getattr(m, kind) for m in model.modules() for kind in _HOOKS]
        # Where each module and parameter is found: another may be put in its place.
        held = [
            (place, name)
            for module in model.modules()
            for place in (module._modules, module._parameters)
            for name in place
        ]
        self._places = held
        self._held = [place[name] for place, name in held]
        self._lists = [(m._modules, len(m._modules)) for m in model.modules() if m._modules]
        self._tensors = list(model.parameters())
        self._stamp = self.__state_of_model()

    def __layer(self, layer: Any) -> LayerParts:
        attention = layer.rel_attn

        def weight(name: str) -> Tensor:
            projection = getattr(attention, name)
            if isinstance(projection, nn.Module):
                found: Tensor = projection.weight  # type: ignore[assignment]
            else:
                found = projection.flatten(1) if name == "o" else projection.flatten(1).t()
            return found.detach().to(self.dtype)

        return LayerParts(
            **{name: weight(name) for name in PROJECTIONS},
            r_w_bias=attention.r_w_bias.detach().to(self.dtype),
            r_r_bias=attention.r_r_bias.detach().to(self.dtype),
            scale=attention.scale,
            norm=attention.layer_norm,
            feed_forward=layer.ff,
        )

    def belong_to(self, model: Any) -> bool:
        """Whether they are of this model."""
        return self._model is model

    def are_as_before(self) -> bool:
        """Whether the model is what it was, asked before each step: in microseconds, not to find
        every change, but what may happen while texts are generated.
        """
        if any(self._hooks) or _has_global_hooks() or self._model.training:
            return False
        if any(len(place) != count for place, count in self._lists):
            return False
        try:
            now = [place[name] for place, name in self._places]
        except KeyError:
            return False
        return all(map(is_, now, self._held)) and self._stamp == self.__state_of_model()

    def __state_of_model(self) -> list[Any]:
        transformer = self._model.transformer
        return [
            *((t.data_ptr(), 0 if t.is_inference() else t._version) for t in self._tensors),
            *(getattr(transformer, name) for name in _READ_OF_TRANSFORMER),
            *(layer.rel_attn.scale for layer in transformer.layer),
        ]


def obstacle_to_steps(model: Any, ours: type) -> str | None:
    """Why a model's steps are Hugging Face's, in words; None where they are ours.

    Args:
        ours: the class of the accelerated model whose methods take the steps.
    """
    return next(_obstacles(model, ours), None)


def _obstacles(model: Any, ours: type) -> Iterator[str]:
    transformer = model.transformer
    backend = transformer.__dict__.get("_xlnet_fast_options")
    if backend is not None and backend.backend != "auto":
        yield f"the backend {backend.backend!r} was asked for, which has no steps of its own"
    yield from _changed_methods(model, transformer, ours)
    if transformer.same_length:
        yield "config.same_length hides other keys at each length"
    if transformer.bi_data:
        yield "config.bi_data reads half of the batch backwards"
    if transformer.attn_type not in ("bi", "uni"):
        yield f"attn_type is {transformer.attn_type!r}"
    if type(transformer.word_embedding) is not nn.Embedding:
        yield f"word_embedding is a {type(transformer.word_embedding).__name__}"
    if rate_of(transformer.dropout) != 0.0:
        yield "the transformer's dropout is called"
    for number, layer in enumerate(transformer.layer):
        why = _obstacle_of_layer(layer)
        if why is not None:
            yield f"layer {number}: {why}"
    for name, module in model.named_modules():
        if _is_looked_at(module):
            yield f"{name or 'the model'} has a hook, a forward of its own or was compiled"
    if _has_global_hooks():
        yield "a hook on all modules is active"
    if not are_plain(model.parameters()):
        yield "a parameter is no plain tensor"
    if any(module.training for module in model.modules()):
        yield "the model is in training mode: model.eval()"
    if len({(p.device, p.is_meta) for p in model.parameters()}) != 1:
        yield "the parameters are on several devices"


def _changed_methods(model: Any, transformer: Any, ours: type) -> Iterator[str]:
    if not isinstance(transformer, FastModel):
        yield "the transformer is not accelerated"
    elif type(transformer).forward is not FastModel.forward:
        yield f"{type(transformer).__name__} has a forward of its own"
    elif type(transformer).cache_mem is not FastModel.cache_mem or "cache_mem" in vars(transformer):
        yield f"{type(transformer).__name__} has a cache_mem of its own"
    elif overrides(transformer, *_OF_TRANSFORMER[2:]):
        yield "a method of XLNetModel was replaced"
    for base, methods in {
        XLNetModel: _OF_TRANSFORMER,
        XLNetLayer: ("forward", "ff_chunk"),
        XLNetFeedForward: ("forward",),
        XLNetRelativeAttention: ("forward", "post_attention"),
        XLNetLMHeadModel: tuple(_METHODS & vars(XLNetLMHeadModel).keys()),
    }.items():
        changed = patched(base, *methods)
        if changed is not None:
            yield f"{base.__name__}.{changed} was replaced"
    for name in _METHODS:
        if getattr(type(model), name) is not getattr(ours, name) or name in model.__dict__:
            yield f"{type(model).__name__} has a {name} of its own"


def _obstacle_of_layer(layer: Any) -> str | None:
    if not isinstance(layer, XLNetLayer) or not takes_context(layer):
        return "it runs its own code"
    attention, feed_forward = layer.rel_attn, layer.ff
    if not isinstance(attention, FastRelativeAttention):
        return f"its attention is a {type(attention).__name__}"
    for module, ours, name in (
        (attention, FastRelativeAttention, "post_attention"),
        (attention, FastRelativeAttention, "attend"),
        (layer, XLNetLayer, "ff_chunk"),
    ):
        if getattr(type(module), name) is not getattr(ours, name) or name in vars(module):
            return f"{name} was replaced"
    if not isinstance(feed_forward, FastFeedForward):
        return f"its feed-forward block is a {type(feed_forward).__name__}"
    for name in PROJECTIONS:
        projection = getattr(attention, name)
        if isinstance(projection, nn.Module) and not (
            is_plain_linear(projection) and projection.bias is None
        ):
            return f"{name} is a {type(projection).__name__}"
    for name, norm in (("rel_attn", attention.layer_norm), ("ff", feed_forward.layer_norm)):
        if type(norm) is not nn.LayerNorm or not is_bare(norm):
            return f"{name}.layer_norm is a {type(norm).__name__}, or one with a forward of its own"
    for name in ("layer_1", "layer_2"):
        module = getattr(feed_forward, name)
        if not is_plain_linear(module):
            return f"ff.{name} is a {type(module).__name__}"
    if rate_of(attention.dropout) != 0.0 or rate_of(feed_forward.dropout) != 0.0:
        return "a dropout is called"
    return None


def _is_looked_at(module: Any) -> bool:
    """Whether calling a module is more than running its class's forward."""
    return (
        any(getattr(module, name) for name in _HOOKS)
        or "forward" in module.__dict__
        or module._compiled_call_impl is not None
    )


def _has_global_hooks() -> bool:
    return _module._has_any_global_hook()


def can_step(x: Tensor) -> bool:
    """Whether this call may be a step: eager, without gradients, in the model's own dtypes."""
    kind = x.device.type
    return not (
        torch.is_grad_enabled()
        or (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind))
    )
