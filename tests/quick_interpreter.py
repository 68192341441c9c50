"""Triton's interpreter without what it does over and over; the results and checks are the same.

Of the time that an interpreted kernel takes nearly all is Python around small numpy calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterOptions, TensorHandle

_PATCHED: set[str] = set()


def speed_up() -> None:
    """For the rest of the process, which interprets."""
    interpreter._get_np_dtype = _remembering(interpreter._get_np_dtype)
    interpreter.InterpretedFunction.__call__ = _call
    interpreter._patch_attr = _patch_attr
    core.block_type.__init__ = _remembering_blocks(core.block_type.__init__)
    core.tensor.__init__ = _remembering_tensors(core.tensor.__init__)
    semantic: Any = TritonSemantic
    semantic.broadcast_impl_value = _remembering_operands(semantic.broadcast_impl_value)
    semantic.binary_op_type_checking_impl = _remembering_operands(
        semantic.binary_op_type_checking_impl
    )
    semantic.computation_type_impl = _remembering_types(semantic.computation_type_impl)
    semantic.cast = _casting(semantic.cast)
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


def _remembering_operands(prepare: Callable[..., Any]) -> Callable[..., Any]:
    """The types of two operands tell the type and the shape that an operation takes them with."""
    known: dict[Any, tuple[Any, Any]] = {}

    def quick(self: Any, lhs: Any, rhs: Any, *flags: bool, **more: bool) -> Any:
        if not (isinstance(lhs, core.tensor) and isinstance(rhs, core.tensor)):
            return prepare(self, lhs, rhs, *flags, **more)
        key = (lhs.type.name, rhs.type.name, flags, *more.items())
        if key not in known:
            lhs, rhs = prepare(self, lhs, rhs, *flags, **more)
            known[key] = (lhs.type, rhs.type)
            return lhs, rhs
        left, right = known[key]
        return _as(self, lhs, left), _as(self, rhs, right)

    return quick


def _as(semantic: Any, x: Any, kind: Any) -> Any:
    """`x` cast and broadcast to a type."""
    if x.type.name == kind.name:
        return x
    x = semantic.cast(x, kind.scalar)
    if x.type.name == kind.name:
        return x
    data = numpy.broadcast_to(x.handle.data, list(kind.shape))
    return core.tensor(TensorHandle(data, kind.scalar), kind)


def _remembering_types(find: Callable[..., Any]) -> Callable[..., Any]:
    found: dict[Any, Any] = {}

    def get(self: Any, a: Any, a_is_scalar: bool, b: Any, b_is_scalar: bool, divides: bool) -> Any:
        key = (a.name, a_is_scalar, b.name, b_is_scalar, divides)
        if key not in found:
            found[key] = find(self, a, a_is_scalar, b, b_is_scalar, divides)
        return found[key]

    return get


def _casting(cast: Callable[..., Any]) -> Callable[..., Any]:
    def quick(self: Any, x: Any, kind: Any, *rounding: Any) -> Any:
        return x if x.dtype is kind else cast(self, x, kind, *rounding)

    return quick


def _patch_attr(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
    """A builtin that knows its semantic, without the check whether it does."""
    inner = getattr(member, "__wrapped__", member)

    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs["_semantic"] = interpreter.interpreter_semantic
        return inner(*args, **kwargs)

    scope.set_attr(obj, name, call)


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A jit function called by another; the launch has patched what they share."""
    module = self.fn.__globals__["__name__"]
    if module not in _PATCHED:
        interpreter._patch_lang(self.fn)
        _PATCHED.add(module)
    return self.rewrite()(*args, **kwargs)
