"""HF's feed-forward block on the linear op: GELU and the residual are part of the products."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.xlnet.modeling_xlnet import XLNetFeedForward

from xlnet_fast.hf.activations import is_exact_gelu
from xlnet_fast.hf.adoption import original_class
from xlnet_fast.hf.patches import patched
from xlnet_fast.nn.dropout import drop
from xlnet_fast.nn.linear import is_plain_linear, linear_residual
from xlnet_fast.ops.linear import linear


class FastFeedForward(XLNetFeedForward):
    """HF's block; its parts that are not HF's own any more are called as they are."""

    def forward(self, inp: Tensor) -> Tensor:
        """(I, B, H) to (I, B, H), as HF."""
        if patched(XLNetFeedForward, "forward"):
            theirs: Tensor = XLNetFeedForward.forward(self, inp)
            return theirs
        output = drop(self.dropout, self._inner(inp))
        second = self.layer_2
        if is_plain_linear(second):
            output = linear_residual(output, second.weight, second.bias, self.dropout, inp)
        else:
            output = drop(self.dropout, second(output)) + inp
        normed: Tensor = self.layer_norm(output)
        return normed

    def _inner(self, inp: Tensor) -> Tensor:
        """(I, B, d_inner), after the activation."""
        first, activation = self.layer_1, self.activation_function
        if not is_plain_linear(first):
            output = activation(first(inp))
        elif is_exact_gelu(activation):
            output = linear(inp, first.weight, first.bias, activation="gelu")
        else:
            output = activation(linear(inp, first.weight, first.bias))
        inner: Tensor = output
        return inner


def why_own_code(module: nn.Module) -> str | None:
    """Why a feed-forward block stays as it is, or is called as it is; None if it is ours."""
    cls: Any = original_class(module) or type(module)
    if not isinstance(module, XLNetFeedForward) or cls.forward is not XLNetFeedForward.forward:
        return f"{cls.__name__} has a forward of its own"
    if "forward" in module.__dict__:
        return f"{cls.__name__} has a forward of its own on the instance"
    return patched(XLNetFeedForward, "forward") and "XLNetFeedForward.forward was replaced"
