"""Which methods of HF's classes are still HF's own: a class may be patched at any time.

What `accelerate` puts in the place of a method would hide a patch of it, so every place that does
asks here first, at each call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

from xlnet_fast.transforms import constant_when_traced

_Forward = TypeVar("_Forward", bound=Callable[..., Any])

_TRANSFORMERS, _TORCH = (Path(str(package.__file__)).parent for package in (transformers, torch))
_DECORATORS = tuple(
    map(str, (_TRANSFORMERS / "utils", _TRANSFORMERS / "modeling_layers.py", _TORCH / "utils"))
)


@constant_when_traced
def patched(base: type, *methods: str) -> str | None:
    """The first of these methods that a class of HF's defines no more, None if it has them all."""
    for name in methods:
        method = _undecorated(getattr(base, name))
        code = getattr(method, "__code__", None)
        own = code is not None and code.co_filename == _file_of(base)
        if not own or method.__qualname__ != f"{base.__qualname__}.{name}":
            return name
    return None


def _file_of(base: type) -> str:
    """Where HF's code stands, as its functions tell it; ``__file__`` may be a compiled one's."""
    init: Any = base.__init__  # type: ignore[misc]
    return str(_undecorated(init).__code__.co_filename)


def _undecorated(method: Any) -> Any:
    """The function inside decorators of HF's and PyTorch's, which rename arguments, switch
    gradients off, checkpoint layers.
    """
    while hasattr(method, "__wrapped__") and method.__code__.co_filename.startswith(_DECORATORS):
        method = method.__wrapped__
    return method


def unless_patched(base: type | None = None) -> Callable[[_Forward], _Forward]:
    """A method of ours that gives way to the one that a class of HF's has by now, if patched.

    Args:
        base: that class; None in a mixin, which ``adoption.laid_over`` has put over one.
    """

    def decorate(ours: _Forward) -> _Forward:
        @wraps(ours)
        def ours_or_theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
            theirs = self._xlnet_fast_base if base is None else base
            if patched(theirs, ours.__name__):
                return getattr(theirs, ours.__name__)(self, *args, **kwargs)
            return ours(self, *args, **kwargs)

        return ours_or_theirs  # type: ignore[return-value]

    return decorate
