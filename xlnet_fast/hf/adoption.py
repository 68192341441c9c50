"""How a module takes on an accelerated class.

``accelerate`` changes the class of existing modules, never their contents: parameters, buffers,
hooks and names stay. A user's subclass keeps its place in the method resolution order,

    AcceleratedMyModel -> MyModel -> FastModel -> XLNetModel

so that its overrides win and its ``super().forward(...)`` reaches the accelerated code. The classes
made here carry the name of the class they stand for and can be pickled and copied.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn
from transformers.models.xlnet.modeling_xlnet import XLNetLayer, XLNetRelativeAttention

from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.patches import patched


def checked_module(model: Any) -> nn.Module:
    """The argument; an ArgumentError if it is no module."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"expected a torch.nn.Module, got {type(model).__name__}")
    return model


_FORWARD_BEFORE = "_xlnet_fast_forward_before"
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Where ``torch.compile``, PyTorch's checkpoint wrapper and FSDP keep the module they call."""


_ADVICE = {
    "ParamWrapper": ": PEFT's target_parameters takes a projection (H, N, D) for H experts, which "
    "is no low rank. Call xlnet_fast.linear_attention(model) and name target_modules instead"
}
"""What to do about a class in the place of HF's."""


def unwrapped(module: Any) -> Any:
    """The module that a wrapper of PyTorch's hands all arguments to, as they are."""
    while not isinstance(module, (XLNetLayer, XLNetRelativeAttention)):
        inner = next((getattr(module, name) for name in _WRAPPED if hasattr(module, name)), None)
        if inner is None:
            break
        module = inner
    return module


def obstacle(module: nn.Module) -> str | None:
    """Why a layer or attention module keeps HF's dense interface, None if it can be accelerated."""
    name = type(module).__name__
    cls = original_class(module) or type(module)
    methods: tuple[str, ...] = ("forward",)
    base: type = XLNetRelativeAttention
    if isinstance(module, XLNetRelativeAttention):
        methods += ("rel_attn_core", "rel_shift_bnij")
    elif isinstance(module, XLNetLayer):
        base = XLNetLayer
    else:
        return f"{name} is not a layer of HF's XLNet" + _ADVICE.get(name, "")
    changed = patched(base, *methods)
    if changed is not None:
        return f"{base.__name__}.{changed} was replaced"
    for method in methods:
        if getattr(cls, method) is not getattr(base, method):
            return f"{name} overrides {method}"
        if method in module.__dict__:
            return f"{name} has a {method} of its own on the instance"
    return obstacle(unwrapped(module.rel_attn)) if isinstance(module, XLNetLayer) else None


def adopt(module: nn.Module, fast: type) -> None:
    """Give a module its accelerated class."""
    original: Any = type(module)
    module.__class__ = accelerated_class(original, fast)
    if "forward" in module.__dict__:
        module.__dict__[_FORWARD_BEFORE] = module.__dict__["forward"]


def new_forward(module: nn.Module) -> bool:
    """Whether an adopted module was given a forward of its own since."""
    return module.__dict__.get("forward") is not module.__dict__.get(_FORWARD_BEFORE)


def give_up(module: nn.Module) -> None:
    """Give an adopted module the class back that it had; undoes :func:`adopt`."""
    module.__class__ = original_class(module)  # type: ignore[assignment]
    module.__dict__.pop(_FORWARD_BEFORE, None)


def original_class(module: nn.Module) -> type | None:
    """The class a module had before ``adopt``, None if it was not adopted."""
    found: type | None = getattr(type(module), "_xlnet_fast_original", None)
    return found


@cache
def accelerated_class(original: type, fast: type) -> type:
    """A subclass of ``original`` in whose method resolution order ``fast`` follows it.

    It keeps the original's name, so that ``save_pretrained`` records the architecture as ever.
    """
    bases = (fast,) if issubclass(fast, original) else (original, fast)
    namespace = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": _reduce,
        "_xlnet_fast_original": original,
        "_xlnet_fast_class": fast,
    }
    return type(original.__name__, bases, namespace)


def _reduce(module: Any, protocol: Any) -> tuple[Any, ...]:
    """Pickle and copy by the original class: the accelerated one is made again on loading."""
    rest = object.__reduce_ex__(module, protocol)[2:]
    cls = type(module)
    return (_rebuild, (cls._xlnet_fast_original, cls._xlnet_fast_class), *rest)


def _rebuild(original: type, fast: type) -> Any:
    cls: Any = accelerated_class(original, fast)
    return cls.__new__(cls)
