"""Tensors on a device "xla" that is not there: the CPU computes, and forbidden ops raise."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HERE = torch.device("xla")
_aten = torch.ops.aten
_GUARDED = {torch.Tensor.__getitem__, torch.Tensor.contiguous}
READS = {_aten._local_scalar_dense, _aten.equal, _aten.nonzero, _aten.is_nonzero}
"""They hand values to Python, or make shapes of them."""


class XlaTensor(torch.Tensor):
    """What is on the device, around the tensor that has the values."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> XlaTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=HERE
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} outside of XlaDevice")


class _PastGuards(TorchFunctionMode):
    """What would look for the device before it dispatches: new tensors, slices, copies."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _GUARDED and isinstance(args[0], XlaTensor):
            assert not any(isinstance(x, torch.Tensor) for x in tree_leaves(args[1:]))
            return on_xla(function(args[0].inner, *args[1:], **kwargs))
        made = not any(isinstance(x, torch.Tensor) for x in args)
        if made and _is_here(kwargs.get("device")):
            return on_xla(function(*args, **{**kwargs, "device": "cpu"}))
        return function(*args, **kwargs)


class XlaDevice(TorchDispatchMode):
    """While it is active there is such a device.

    Attributes:
        called: every op that ran, without its overload.
    """

    def __init__(self) -> None:
        super().__init__()
        self.called: set[Any] = set()
        self._past_guards = _PastGuards()

    def __enter__(self) -> XlaDevice:
        super().__enter__()
        self._past_guards.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._past_guards.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not any(isinstance(x, XlaTensor) or _is_here(x) for x in tree_leaves((args, kwargs))):
            return function(*args, **kwargs)
        self.called.add(function.overloadpacket)
        if function.overloadpacket in READS:
            raise AssertionError(f"{function} reads values on a device of XLA")
        args, kwargs = tree_map(_inner, (args, kwargs))
        return tree_map(on_xla, function(*args, **kwargs))


def on_xla(x: Any) -> Any:
    """A tensor on the device; anything else as it is."""
    return XlaTensor(x) if isinstance(x, torch.Tensor) and not isinstance(x, XlaTensor) else x


def _inner(x: Any) -> Any:
    if _is_here(x):
        return torch.device("cpu")
    return x.inner if isinstance(x, XlaTensor) else x


def _is_here(x: Any) -> bool:
    return isinstance(x, torch.device) and x.type == HERE.type
