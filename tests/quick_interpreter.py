"""Triton's interpreter without what it does over and over; the results and checks are the same.

Of the time that an interpreted kernel takes nearly all is Python around small numpy calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
from triton.language import core
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterOptions

_PATCHED: set[str] = set()


def speed_up() -> None:
    """For the rest of the process, which interprets."""
    interpreter._get_np_dtype = _remembering(interpreter._get_np_dtype)
    interpreter.InterpretedFunction.__call__ = _call
    core.block_type.__init__ = _remembering_blocks(core.block_type.__init__)
    core.tensor.__init__ = _remembering_tensors(core.tensor.__init__)
    # Sums and products anew in 64 bits, for an assertion that no kernel asks for.
    interpreter.interpreter_builder.options = InterpreterOptions(sanitize_overflow=False)


def _remembering(find: Callable[[Any], numpy.dtype]) -> Callable[[Any], numpy.dtype]:
    found: dict[str, numpy.dtype] = {}

    def get(kind: Any) -> numpy.dtype:
        if kind.name not in found:
            found[kind.name] = find(kind)
        return found[kind.name]

    return get


def _remembering_blocks(make: Callable[..., None]) -> Callable[..., None]:
    made: dict[Any, dict[str, Any]] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *(x.value if isinstance(x, core.constexpr) else x for x in shape))
        if key not in made:
            make(self, element_ty, shape)
            made[key] = dict(vars(self))
        vars(self).update(made[key])

    return init


def _remembering_tensors(make: Callable[..., None]) -> Callable[..., None]:
    made: dict[str, dict[str, Any]] = {}

    def init(self: Any, handle: Any, type: Any) -> None:
        if type.name not in made:
            make(self, handle, type)
            made[type.name] = dict(vars(self))
        vars(self).update(made[type.name], handle=handle, type=type)

    return init


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A jit function called by another; the launch has patched what they share."""
    module = self.fn.__globals__["__name__"]
    if module not in _PATCHED:
        interpreter._patch_lang(self.fn)
        _PATCHED.add(module)
    return self.rewrite()(*args, **kwargs)
