"""How a module takes on an accelerated class.

``accelerate`` changes the class of existing modules, never their contents: parameters, buffers,
hooks and names stay. A user's subclass keeps its place in the method resolution order,

    AcceleratedMyModel -> MyModel -> FastModel -> XLNetModel

so that its overrides win and its ``super().forward(...)`` reaches the accelerated code. The classes
made here carry the name of the class they stand for and can be pickled and copied.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import nn

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


def unwrapped(module: Any, kinds: tuple[type, ...]) -> Any:
    """The module of one of these kinds that a wrapper of PyTorch's hands all arguments to, as they
    are; the innermost one where there is none.
    """
    while not isinstance(module, kinds):
        inner = next((getattr(module, name) for name in _WRAPPED if hasattr(module, name)), None)
        if inner is None:
            break
        module = inner
    return module


def why_kept(module: nn.Module, base: type, methods: Iterable[str] = ("forward",)) -> str | None:
    """Why a module keeps its own code, though it is a ``base`` of Hugging Face's; None if it need
    not: a subclass, the instance, or a patch of the class has one of these methods of its own.
    """
    cls = original_class(module) or type(module)
    changed = patched(base, *methods)
    if changed is not None:
        return f"{base.__name__}.{changed} was replaced"
    for method in methods:
        if getattr(cls, method) is not getattr(base, method):
            return f"{cls.__name__} overrides {method}"
        if method in module.__dict__:
            return f"{cls.__name__} has a {method} of its own on the instance"
    return None


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


def laid_over(mixin: type, base: type) -> type[nn.Module]:
    """A fast class of code that several classes share, or of one that is found at run time.

    Args:
        mixin: our methods. base: the class whose methods they replace.
    """
    return _laid_over(mixin, base)


@cache
def _laid_over(mixin: type, base: type) -> type[nn.Module]:
    namespace = {"__module__": mixin.__module__, "_xlnet_fast_base": base}
    return type(mixin.__name__, (mixin, base), {**namespace, "_xlnet_fast_mixin": mixin})


def _reduce(module: Any, protocol: Any) -> tuple[Any, ...]:
    """Pickle and copy by the original class: the accelerated one is made again on loading."""
    rest = object.__reduce_ex__(module, protocol)[2:]
    cls = type(module)
    fast = cls._xlnet_fast_class
    made_of = vars(fast).get("_xlnet_fast_mixin")
    how = (fast,) if made_of is None else (made_of, fast._xlnet_fast_base)
    return (_rebuild, (cls._xlnet_fast_original, *how), *rest)


def _rebuild(original: type, fast: type, base: type | None = None) -> Any:
    cls: Any = accelerated_class(original, fast if base is None else laid_over(fast, base))
    return cls.__new__(cls)
