"""x W^T + b by the faster of the two libraries that PyTorch carries for a CPU.

In fp32 ``F.linear`` multiplies with MKL wherever PyTorch was built with it. On AMD that is the
slower one: oneDNN, on the same plain weights, takes 0.6 to 0.9 of the time (docs/measured.md), and
applies GELU or adds the residual while the product is still at hand. In bf16 both are oneDNN, and
only the fused GELU differs.

The choice is made from properties, never from a measurement at run time: :func:`library_for`. All
that is not surely understood is ``F.linear``.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from xlnet_fast.errors import ArgumentError, BackendUnavailable, ShapeError
from xlnet_fast.ops._contracts._registry import LIBRARY

VARIABLE = "XLNET_FAST_CPU_LINEAR"
"""Environment variable, read once at import: "onednn" or "aten" overrules the machine's library."""
LIBRARIES = ("onednn", "aten")
ACTIVATIONS = (None, "gelu")
MOST_TERMS = 1024
"""Longest fp32 dot product left to oneDNN, which sums in longer chains than MKL: up to here its
error stays within the tolerance rule with ``F.linear`` as eager, beyond not (docs/measured.md)."""

_SLOW_MKL = ("AuthenticAMD", "HygonGenuine")
_onednn = torch.ops.mkldnn._linear_pointwise if torch.backends.mkldnn.is_available() else None
_ONEDNN_HAS_BF16 = _onednn is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def cpu_vendor() -> str:
    """The processor's vendor string, such as "AuthenticAMD"; empty where it cannot be told."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("vendor_id"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # no Linux
    return platform.processor().rpartition(",")[2].strip()  # Windows ends it with the vendor


def machine_library(environment: Mapping[str, str], vendor: str, capability: str) -> str:
    """Which library this machine's linear layers take: "onednn" or "aten".

    oneDNN on an AMD processor with AVX-512, where it was measured to be the faster; ``F.linear`` on
    any other. ``XLNET_FAST_CPU_LINEAR`` overrules that.

    Args:
        environment: of the process. vendor: as :func:`cpu_vendor`.
        capability: as ``torch.backends.cpu.get_cpu_capability()``.

    Raises:
        ArgumentError: the variable names neither. BackendUnavailable: it names oneDNN, and this
            PyTorch has none.
    """
    wanted = environment.get(VARIABLE, "")
    if wanted not in ("", *LIBRARIES):
        raise ArgumentError(f"{VARIABLE} is {wanted!r}, expected one of: {', '.join(LIBRARIES)}")
    if wanted == "onednn" and _onednn is None:
        raise BackendUnavailable(f"{VARIABLE} is 'onednn', but this PyTorch was built without it")
    if wanted:
        return wanted
    measured = vendor in _SLOW_MKL and capability.startswith("AVX512")
    return "onednn" if measured and _onednn is not None and _atens_is_mkl() else "aten"


def _atens_is_mkl() -> bool:
    return bool(torch.backends.mkl.is_available())


_MACHINE = machine_library(os.environ, cpu_vendor(), torch.backends.cpu.get_cpu_capability())


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(x W^T + b), or x W^T + b + residual, by the library that :func:`library_for` names.

    Args:
        x: (..., in). weight: (out, in), any strides: a view of (in, out) costs no copy.
        bias: (out) or None. All of one floating dtype, unless under autocast.
        activation: None or "gelu", the exact one (``F.gelu``); not together with ``residual``.
        residual: (..., out), or None.

    Returns:
        (..., out); differentiable.

    Raises:
        ArgumentError: another activation, or one with a residual.
        ShapeError: x or residual does not fit the weight.
    """
    _check(x, weight, activation, residual)
    given = (x, weight, bias, residual)
    trains = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    if activation is not None and trains:
        # A backward pass needs the input of the activation, which a fused one throws away.
        return F.gelu(linear(x, weight, bias))
    if library_for(x, weight, bias, activation, residual) == "aten":
        out = F.linear(x, weight, bias)
        if activation is not None:
            return F.gelu(out)
        return out if residual is None else out + residual
    # An eager call without a graph needs no op, whose dispatch costs more than a small product.
    opaque = trains or torch.compiler.is_compiling()
    compute = torch.ops.xlnet_fast.linear if opaque else _linear
    result: Tensor = compute(x, weight, bias, residual, activation or "none")
    return result


def library_for(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> str:
    """The library of one call, "onednn" or "aten"; arguments as :func:`linear`.

    oneDNN multiplies plain CPU tensors: in fp32 where a sum has at most ``MOST_TERMS`` terms, in
    bf16 where GELU follows, for there ``F.linear`` is oneDNN too. ``F.linear`` takes tensor
    subclasses (quantised, distributed), autocast, tracing, export (so that the program lowers
    anywhere), ``torch.func`` and forward-mode derivatives.
    """
    if _MACHINE != "onednn" or x.dtype not in (torch.float32, torch.bfloat16):
        return "aten"
    if x.dtype == torch.bfloat16 and (activation is None or not _ONEDNN_HAS_BF16):
        return "aten"
    if x.dtype == torch.float32 and weight.shape[1] > MOST_TERMS:
        return "aten"
    if residual is not None and residual.shape[:-1] != x.shape[:-1]:
        return "aten"  # broadcast
    for t in (x, weight, bias, residual):
        if t is not None and not (_is_plain(t) and t.dtype == x.dtype):
            return "aten"
    return "aten" if _is_transformed() else "onednn"


def _is_plain(t: Tensor) -> bool:
    return (
        type(t) in (Tensor, nn.Parameter)
        and t.device.type == "cpu"
        and t.layout == torch.strided
        and not t.is_nested
    )


def _is_transformed() -> bool:
    """Whether something looks on that knows ``F.linear`` better than an op of ours."""
    return (
        torch.is_autocast_enabled("cpu")
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def _check(x: Tensor, weight: Tensor, activation: str | None, residual: Tensor | None) -> None:
    if activation not in ACTIVATIONS:
        raise ArgumentError(f"activation is {activation!r}, expected None or 'gelu'")
    if activation is not None and residual is not None:
        raise ArgumentError("give one of activation and residual")
    if weight.dim() != 2 or x.dim() < 2 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}, "
            "expected (..., in) with at least two dimensions, and (out, in)"
        )
    if residual is not None and residual.shape[-1] != weight.shape[0]:
        raise ShapeError(
            f"residual has shape {tuple(residual.shape)}, expected width {weight.shape[0]}"
        )


# ---- the op: what torch.compile and autograd see ----

LIBRARY.define(
    "linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str activation) -> Tensor"
)


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    """``activation`` is "none" or "gelu"; residual is as large as the result, or None."""
    if x.numel() == 0 or weight.numel() == 0 or not torch._C._get_mkldnn_enabled():
        # oneDNN has no product over nothing; and it may have been switched off since compilation.
        out = F.linear(x, weight, bias)
        out = out if residual is None else out + residual
        return F.gelu(out) if activation == "gelu" else out
    assert _onednn is not None
    # Strides with gaps send oneDNN to its plain loops, a thousand times slower; a bias is even read
    # as if it had none.
    x = x.contiguous()
    if not weight.t().is_contiguous():
        weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    if residual is not None:
        added: Tensor = _onednn.binary(x, residual.contiguous(), weight, bias, "add")
        return added
    algorithm = "none" if activation == "gelu" else ""  # of GELU: none is the exact one
    product: Tensor = _onednn(x, weight, bias, activation, [], algorithm)
    return product


def _fake_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _, activation = inputs
    ctx.activation = activation
    ctx.save_for_backward(x, weight, bias if activation == "gelu" else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Made of differentiable ops, so that it has derivatives itself."""
    x, weight, bias = ctx.saved_tensors
    wants_x, wants_weight, wants_bias, wants_residual, _ = ctx.needs_input_grad
    product = torch.ops.xlnet_fast.linear
    if ctx.activation == "gelu":
        before = product(x, weight, bias, None, "none")
        grad = torch.ops.aten.gelu_backward(grad, before)
    rows = grad.flatten(0, -2)
    grad_x = grad_weight = None
    if wants_x:
        short = weight.shape[0] <= MOST_TERMS
        grad_x = product(grad, weight.t(), None, None, "none") if short else grad @ weight
    if wants_weight:
        grad_weight = rows.t() @ x.flatten(0, -2)  # a sum over all tokens: long
    grad_bias = rows.sum(0) if wants_bias else None
    return grad_x, grad_weight, grad_bias, grad if wants_residual else None, None


LIBRARY.impl("linear", _linear, "CPU")
torch.library.register_fake("xlnet_fast::linear", _fake_linear, lib=LIBRARY)
torch.library.register_autograd(
    "xlnet_fast::linear", _backward, setup_context=_setup_context, lib=LIBRARY
)
