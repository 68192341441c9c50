"""x W^T + b, by our C++ kernels where they are the faster, else by ``F.linear``.

In fp32 ``F.linear`` multiplies with MKL wherever PyTorch was built with it, which is slow on AMD:
there our kernels take 0.7 to 0.95 of its time, round no worse, and apply GELU or add the residual
while the product is at hand (docs/measured.md).

The choice is made from properties, and from what a qualification of this CPU found where they do
not decide, never from a measurement at run time: :func:`library_for`. All that is not surely
understood is ``F.linear``.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from xlnet_fast import _extension, transforms
from xlnet_fast.errors import ArgumentError, BackendUnavailable, ShapeError
from xlnet_fast.kernels import cpu
from xlnet_fast.kernels.cpu import linear as cpu_linear
from xlnet_fast.ops._contracts._registry import LIBRARY, refuse_forward_mode
from xlnet_fast.ops._dispatch import FAULT, Choice, PassedOver
from xlnet_fast.ops.qualification import proof
from xlnet_fast.transforms import constant_when_traced

VARIABLE = "XLNET_FAST_CPU_LINEAR"
"""Environment variable, read at the first call: "cpu" or "aten" overrules the machine's library."""
LIBRARIES = ("cpu", "aten")
ACTIVATIONS = (None, "gelu")
LEAST_WEIGHT = 1 << 16
"""in x out from which on our kernels are taken: below, the host time of their call decides."""
LEAST_PACKED_WEIGHT = 1 << 18
"""The same where rows are so many that the weight is packed (docs/measured.md)."""
MOST_BF16_ROWS = 48
"""Of bf16; with more, ``F.linear`` is as fast."""

_SLOW_MKL = ("AuthenticAMD", "HygonGenuine")


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


def choose_library(
    environment: Mapping[str, str],
    vendor: str,
    missing: str | None,
    proved: proof.Verdict | None = None,
) -> Choice:
    """Which library this machine's linear layers take: "cpu", our kernels, or "aten"; and why.

    Ours on an AMD processor with AVX-512, where they were measured to be the faster; on any other
    the faster by this CPU's record of a qualification, ``F.linear`` without one. Never ours where
    the record calls them wrong. ``XLNET_FAST_CPU_LINEAR`` overrules all that.

    Args:
        environment: of the process. vendor: as :func:`cpu_vendor`.
        missing: why our kernels cannot run, or None where they can.
        proved: what the record says of our kernels in fp32, or None.

    Raises:
        ArgumentError: the variable names neither. BackendUnavailable: it names our kernels, and
            they cannot run.
    """
    wanted = environment.get(VARIABLE, "")
    if wanted not in ("", *LIBRARIES):
        raise ArgumentError(f"{VARIABLE} is {wanted!r}, expected one of: {', '.join(LIBRARIES)}")
    if wanted == "cpu" and missing is not None:
        raise BackendUnavailable(f"{VARIABLE} is 'cpu', but {missing}")
    if wanted:
        return Choice(wanted, f"asked for by {VARIABLE}")
    if missing is not None:
        return Choice("aten", missing)
    _, right, speed, words = proved or ("cpu", True, None, "")
    if not right:
        return Choice("aten", passed_over=(PassedOver("cpu", FAULT, words),))
    if vendor in _SLOW_MKL and _has_avx512() and _atens_is_mkl():
        return Choice("cpu", "an AMD CPU with AVX-512, where MKL is slower")
    if speed is not None:
        return Choice("cpu" if speed > 1.0 else "aten", f"cpu: {words}")
    return Choice("aten", "F.linear is the slower only with MKL on AMD with AVX-512")


def _has_avx512() -> bool:
    return "avx512" in _extension.require().attention_isa_available()


def _atens_is_mkl() -> bool:
    return bool(torch.backends.mkl.is_available())


_chosen: Choice | None = None


def machine_library() -> Choice:
    """:func:`choose_library` for this process, decided once; raises the same."""
    global _chosen
    if _chosen is None:
        proved = _proved("float32")
        _chosen = choose_library(os.environ, cpu_vendor(), cpu.why_unavailable(), proved)
    return _chosen


def _proved(dtype: str) -> proof.Verdict | None:
    """What the record of this CPU says of our kernels: of both passes, the worse."""
    found = [
        verdict
        for backward in (False, True)
        for verdict in proof.verdicts("cpu", None, "linear", dtype, "", backward, ())
        if verdict[0] == "cpu"
    ]
    slowest = float("inf")
    return min(found, key=lambda v: (v[1], slowest if v[2] is None else v[2]), default=None)


def _forget() -> None:
    global _chosen
    _chosen = None


proof.ON_FORGET.append(_forget)


def library_of(dtype: torch.dtype) -> Choice:
    """What :func:`library_for` gives for layers of this dtype on the CPU, in words."""
    choice = machine_library()
    if choice.backend == "cpu" and torch.is_autocast_enabled("cpu"):
        return Choice("aten", "autocast is on, which casts for F.linear")
    if choice.backend == "aten" or dtype == torch.float32:
        return choice
    if dtype == torch.bfloat16 and _kernels_take(dtype):
        return Choice("cpu", f"for at most {MOST_BF16_ROWS} rows; F.linear, as fast, for more")
    return Choice("aten", f"no kernel here multiplies {str(dtype).removeprefix('torch.')}")


@constant_when_traced  # a traced graph must not read files
def _kernels_take(dtype: torch.dtype) -> bool:
    if machine_library().backend != "cpu" or not cpu_linear.takes(dtype, terms=2):
        return False
    proved = _proved(str(dtype).removeprefix("torch."))
    return proved is None or proved[1]


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(x W^T + b), or x W^T + b + residual; :func:`library_for` says by whose code.

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
    if library_for(x, weight, bias, residual) == "aten":
        out = F.linear(x, weight, bias)
        if activation is not None:
            return F.gelu(out)
        return out if residual is None else out + residual
    given = (x, weight, bias, residual)
    trains = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    if activation is not None and trains:
        # A backward pass needs the input of the activation, which a fused one throws away.
        return F.gelu(linear(x, weight, bias))
    # An eager call that nobody records needs no op, whose dispatch costs more than a small product.
    opaque = trains or torch.compiler.is_compiling() or transforms.sees_ops()
    compute = torch.ops.xlnet_fast.linear if opaque else _linear
    result: Tensor = compute(x, weight, bias, residual, activation or "none")
    return result


def library_for(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> str:
    """The library of one call, "cpu" or "aten"; arguments as :func:`linear`.

    Our kernels multiply plain CPU tensors: fp32, and bf16 where rows are few; for the rest of bf16
    ``F.linear`` is as fast, and for the smallest layers faster. It also takes tensor subclasses
    (quantised, distributed), autocast, tracing, export (so that the program lowers anywhere),
    ``torch.func`` and forward-mode derivatives.
    """
    if x.dtype not in (torch.float32, torch.bfloat16) or not x.is_cpu:
        return "aten"
    if not _is_worth_it(x, weight):
        return "aten"
    if not _kernels_take(x.dtype):
        return "aten"
    if residual is not None and residual.shape[:-1] != x.shape[:-1]:
        return "aten"  # broadcast
    for t in (x, weight, bias, residual):
        if t is not None and not (is_plain(t) and t.dtype == x.dtype):
            return "aten"
    return "aten" if is_transformed() else "cpu"


def _is_worth_it(x: Tensor, weight: Tensor) -> bool:
    size, terms = weight.numel(), weight.shape[1]
    if x.dtype == torch.bfloat16 and (terms % 2 or x.numel() > MOST_BF16_ROWS * terms):
        return False  # no pairs, or many rows
    if size >= LEAST_PACKED_WEIGHT:
        return True  # whatever the rows are: a traced graph then holds for all of them
    return size >= LEAST_WEIGHT and x.numel() <= cpu_linear.FEW_ROWS * terms


def is_plain(t: Tensor) -> bool:
    """Whether t is an ordinary tensor or parameter on the CPU, of no subclass."""
    return (
        type(t) in (Tensor, nn.Parameter)
        and t.is_cpu
        and t.layout == torch.strided
        and not t.is_nested
    )


def is_transformed() -> bool:
    """Whether something looks on that knows ``F.linear`` better than an op of ours."""
    return (
        torch.is_autocast_enabled("cpu")
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or transforms.active() != ""
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
    refuse_forward_mode("linear")
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    if out.numel() == 0:
        return out
    if x.shape[-1] == 0 or not cpu_linear.takes(x.dtype, x.shape[-1]):
        out = F.linear(x, weight, bias)
        out = out if residual is None else out + residual
        return F.gelu(out) if activation == "gelu" else out
    if x.dim() == 2:
        cpu_linear.linear(x, weight, bias, residual, activation == "gelu", out)
        return out
    added = None if residual is None else residual.flatten(0, -2)
    cpu_linear.linear(
        x.flatten(0, -2), weight, bias, added, activation == "gelu", out.flatten(0, -2)
    )
    return out


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
    if ctx.activation == "gelu":
        before = _product(x, weight, bias)
        grad = torch.ops.aten.gelu_backward(grad, before)
    rows = grad.reshape(-1, grad.shape[-1])  # not flatten, which batched gradients lack
    grad_x = grad_weight = None
    if wants_x:
        grad_x = _product(grad, weight.t())
    if wants_weight:
        grad_weight = rows.t() @ x.flatten(0, -2)  # MKL is as fast here
    grad_bias = rows.sum(0) if wants_bias else None
    return grad_x, grad_weight, grad_bias, grad if wants_residual else None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, with the derivatives that are asked for now."""
    if transforms.active():
        return F.linear(x, weight, bias)
    product: Tensor = torch.ops.xlnet_fast.linear(x, weight, bias, None, "none")
    return product


@register_flop_formula(torch.ops.xlnet_fast.linear)
def _flops(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


LIBRARY.impl("linear", _linear, "CPU")
torch.library.register_fake("xlnet_fast::linear", _fake_linear, lib=LIBRARY)
torch.library.register_autograd(
    "xlnet_fast::linear", _backward, setup_context=_setup_context, lib=LIBRARY
)
