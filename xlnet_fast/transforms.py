"""Who looks on while a call runs: transforms of ``torch.func``, forward mode, tracers, fakes.

Our kernels know values and, through autograd, gradients. Whatever else is asked of a call, a
derivative forwards or one value for each element of a ``vmap``, plain PyTorch code answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C import _TorchDispatchModeKey
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode

_Function = TypeVar("_Function", bound=Callable[..., Any])

FORWARD_MODE = "forward-mode differentiation"
TRANSFORM = "a transform of torch.func"
ONNX = "an export to ONNX"

_XLA_DEVICES = ("xla", "jax", "tpu")  # of PyTorch/XLA, torchax and TorchTPU


def active() -> str:
    """What maps or differentiates the calls of this thread past autograd, in words; "" if nothing.

    ``torch.func`` (``grad``, ``vmap``, ``jvp`` and all that is made of them) or a level of
    ``torch.autograd.forward_ad``, whose derivatives ``torch.no_grad`` does not switch off.
    """
    if torch._C._are_functorch_transforms_active():
        return TRANSFORM
    return FORWARD_MODE if in_forward_mode() else ""


def needs_plain_code() -> str:
    """What is going on, in words, that only PyTorch's own code can take part in; "" if nothing."""
    return active() or (ONNX if torch.onnx.is_in_onnx_export() else "")


def in_forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is active, of ``torch.func`` or by hand."""
    return forward_ad._current_level >= 0


def sees_ops() -> bool:
    """Whether a mode sees every op of PyTorch that is called, as those that count operations do."""
    return torch._C._len_torch_dispatch_stack() > 0


def nobody_looks_on() -> bool:
    """Whether calls are eager and unobserved: a kernel may be called past PyTorch's dispatcher."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or active()
    )


def are_plain(values: Iterable[object]) -> bool:
    """Whether all tensors among them are of no subclass, and have memory that a kernel may read.

    Those of the older ``vmap``, by which ``is_grads_batched`` asks for many gradients, have none.
    """
    return all(
        type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided and torch._C._has_storage(x)
        for x in values
        if isinstance(x, Tensor)
    )


def is_xla(device: torch.device) -> bool:
    """Whether XLA makes one program of what is called there, usually for a TPU.

    A value that is read meanwhile cuts the program in two, or breaks the trace.
    """
    return device.type in _XLA_DEVICES


def can_look(x: Tensor) -> bool:
    """Whether the values of x may be read: it has some, and no program is being made of the call.

    Reading a GPU's waits for it, which is for the caller to weigh.
    """
    if torch.compiler.is_compiling() or x.device.type == "meta" or is_xla(x.device):
        return False
    if torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():  # type: ignore[attr-defined]
        return False
    if isinstance(x, FakeTensor) or _is_recorded():
        return False
    return x.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def is_number(size: Any) -> bool:
    """Whether a size is a number, rather than a symbol of a program that is being traced."""
    if torch.compiler.is_dynamo_compiling():  # whose symbols say that they are integers
        from torch.fx.experimental.symbolic_shapes import has_static_value

        return has_static_value(size)
    return isinstance(size, int)


def _is_recorded() -> bool:
    """Whether a mode is active under which results have no values: fake tensors, ``make_fx``."""
    fake = torch._C._get_dispatch_mode(_TorchDispatchModeKey.FAKE)
    return fake is not None or get_proxy_mode() is not None


def constant_when_traced(function: _Function) -> _Function:
    """`torch.compiler.assume_constant_result`, which would import the compiler, seconds of it.

    The compiler calls the function while it traces, and keeps what it gives.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
