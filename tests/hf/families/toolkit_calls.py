"""Calls of the three toolkits' attention on the same frames, padding and masks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from family_parity import assert_parity, in_float64, randomized, run
from hf_parity import stack
from toolkit_modules import (
    RelPositionMultiHeadAttention,
    RelPositionMultiHeadedAttention,
    RelPosMHAXL,
)
from torch import Tensor, nn

import xlnet_fast
from xlnet_fast.hf.adoption import original_class

HEADS, WIDTH, BATCH, LENGTH = 2, 16, 3, 11


def _nemo(module: Any, x: Tensor, pos: Tensor, padding: Any, among: Any) -> Tensor:
    mask = None
    if padding is not None:
        mask = padding[:, None] | padding[:, :, None]
    if among is not None:
        mask = among[None].expand(x.shape[0], -1, -1) if mask is None else mask | among
    return module(query=x, key=x, value=x, mask=mask, pos_emb=pos)


def _espnet(module: Any, x: Tensor, pos: Tensor, padding: Any, among: Any) -> Tensor:
    mask = None
    if padding is not None:
        mask = (~padding)[:, None]
    if among is not None:
        shown = (~among)[None].expand(x.shape[0], -1, -1)
        mask = shown if mask is None else mask & shown
    return module(x, x, x, pos, mask)


def _speechbrain(module: Any, x: Tensor, pos: Tensor, padding: Any, among: Any) -> Tensor:
    out = module(x, x, x, pos_embs=pos, key_padding_mask=padding, attn_mask=among)
    return out[0]


@dataclass(frozen=True)
class Kit:
    """A toolkit: our small module, how it is called, and its real class."""

    own: type[nn.Module]
    call: Callable[..., Tensor]
    place: str
    real: Callable[[Any], Any]


KITS = {
    "NeMo": Kit(
        RelPositionMultiHeadAttention, _nemo,
        "nemo.collections.asr.parts.submodules.multi_head_attention",
        lambda there: there.RelPositionMultiHeadAttention(HEADS, WIDTH, 0.0, None, None),
    ),
    "ESPnet": Kit(
        RelPositionMultiHeadedAttention, _espnet,
        "espnet.nets.pytorch_backend.transformer.attention",
        lambda there: there.RelPositionMultiHeadedAttention(HEADS, WIDTH, 0.0),
    ),
    "SpeechBrain": Kit(
        RelPosMHAXL, _speechbrain, "speechbrain.nnet.attention",
        lambda there: there.RelPosMHAXL(WIDTH, HEADS, vbias=True),
    ),
}  # fmt: skip


class Called(nn.Module):
    """A user's module around an attention, called the toolkit's way."""

    def __init__(self, kit: Kit, attention: nn.Module) -> None:
        super().__init__()
        self.kit, self.attention = kit, attention

    def forward(self, **inputs: Any) -> tuple[Tensor]:
        return (self.kit.call(self.attention, **inputs),)


def frames(length: int = LENGTH, masks: str = "", seed: int = 0) -> dict[str, Any]:
    """Frames, their table, and masks: "padding" and, by query and key, "window" or "any"."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, length, WIDTH, generator=generator)
    pos = torch.randn(1, 2 * length - 1, WIDTH, generator=generator)
    inputs: dict[str, Any] = {"x": x, "pos": pos, "padding": None, "among": None}
    distance = torch.arange(length) - torch.arange(length)[:, None]
    if "padding" in masks:
        inputs["padding"] = torch.arange(length) >= length - 4 * torch.arange(BATCH)[:, None]
    if "window" in masks:
        inputs["among"] = distance.abs() > 2
    if "any" in masks:
        inputs["among"] = torch.rand(length, length, generator=generator) < 0.5
        inputs["among"][3] = True  # a frame that sees nothing
    return inputs


def hold(kit: Kit, masks: str, **options: Any) -> None:
    """Hold an accelerated copy of the kit's own small module to the tolerance rule.

    Args:
        options: ``theirs``, a module to take in its place; ``dtype``; ``context`` and ``working``,
            as in ``family_parity.compare``; others are of ``accelerate``.
    """
    dtype = options.pop("dtype", torch.float32)
    context, working = options.pop("context", None), options.pop("working", None)
    around = {} if context is None else {"context": context}
    model = Called(kit, options.pop("theirs", None) or kit.own(HEADS, WIDTH))
    theirs = randomized(model, dtype, scale=0.3)
    oracle = Called(kit, kit.own(HEADS, WIDTH))
    oracle = in_float64(oracle).eval()
    oracle.load_state_dict(theirs.state_dict())
    ours = xlnet_fast.accelerate(copy.deepcopy(theirs), **options)
    assert original_class(ours.attention) is not None, str(xlnet_fast.explain(ours))
    inputs = [_in(frames(masks=masks, seed=seed), dtype) for seed in range(4)]
    results = stack([run(ours, given, **around) for given in inputs])
    eager = stack([run(theirs, given, **around) for given in inputs])
    exact = stack([run(oracle, _in(given, torch.float64)) for given in inputs])
    assert_parity(results, eager, exact, working=working, ignored=("linear_k.bias",))


def _in(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return inputs | {name: inputs[name].to(dtype) for name in ("x", "pos")}
