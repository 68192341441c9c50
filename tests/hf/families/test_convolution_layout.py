"""Hooks and modules in a convolution block see channels ahead of frames, as in Hugging Face."""

from __future__ import annotations

import copy

import pytest
import torch
from family_parity import LENGTH, accelerated
from tiny_speech import CASES as TINY
from torch import Tensor, nn
from transducers import NEMOTRON, PARAKEET

CASES = {**TINY, "parakeet": PARAKEET, "nemotron": NEMOTRON}
BLOCKS = [
    (name, child)
    for name in (
        "bert relative_key",
        "conformer",
        "seamless",
        "seamless v2",
        "parakeet",
        "nemotron",
    )
    for child in ("activation", "dropout")
    if (name, child) not in (("parakeet", "dropout"), ("nemotron", "dropout"))
]


class HalfOfChannels(nn.Module):
    """Every other channel of (B, C, T) is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.arange(x.shape[1]) % 2)[:, None]


def block_of(model):
    return next(
        module
        for name, module in model.named_modules()
        if name.endswith(("0.conv_module", "0.conv")) and hasattr(module, "pointwise_conv2")
    )


@pytest.mark.parametrize(("name", "child"), BLOCKS)
def test_layout(name, child):
    case = CASES[name]
    model = case.model("sdpa")
    inputs = case.inputs(2, LENGTH, False, 0)
    if name == "nemotron":
        inputs["num_lookahead_tokens"] = 3

    def hooked(each):
        def zero_last_frames(module, args, out):
            return torch.cat([out[..., :4], 0 * out[..., 4:]], -1)

        getattr(block_of(each), child).register_forward_hook(zero_last_frames)
        return each

    def replaced(each):
        setattr(block_of(each), child, HalfOfChannels())
        return each

    with torch.no_grad():
        plain = model(**inputs)[0]
        for change in (hooked, replaced):
            expected = change(copy.deepcopy(model))(**inputs)[0]
            actual = change(accelerated(model))(**inputs)[0]
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(expected, plain, rtol=1e-3, atol=1e-4)
