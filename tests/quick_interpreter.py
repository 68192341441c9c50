"""Triton's interpreter without what it does over and over; the results and checks are the same.

Of the time that an interpreted kernel takes nearly all is Python around small numpy calls. And its
products of tiles round once: how numpy's library rounds a sum depends on the CPU, and on some by
more than twice what PyTorch's does, which says nothing of a kernel.
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
    interpreter.InterpreterBuilder.create_dot = _rounding_once(
        interpreter.InterpreterBuilder.create_dot
    )
    semantic: Any = TritonSemantic
    semantic.broadcast_impl_value = _remembering_operands(semantic.broadcast_impl_value, _spread)
    semantic.binary_op_type_checking_impl = _remembering_operands(
        semantic.binary_op_type_checking_impl, lambda data, kind: data
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


def _remembering_operands(
    prepare: Callable[..., Any], spread: Callable[[numpy.ndarray, Any], numpy.ndarray]
) -> Callable[..., Any]:
    """Their types tell what two operands are cast and broadcast to; a number is always the same.

    What is computed element by element need not be spread: numpy does it.
    """
    known: dict[Any, tuple[Any, Any]] = {}

    def as_before(self: Any, x: Any, before: Any) -> Any:
        if not isinstance(x, core.tensor):
            return before
        kind = before.type
        if x.dtype.name != kind.scalar.name:
            x = self.cast(x, kind.scalar)
        if x.type.name == kind.name:
            return x
        return core.tensor(TensorHandle(spread(x.handle.data, kind), kind.scalar), kind)

    def quick(self: Any, lhs: Any, rhs: Any, *flags: bool, **more: bool) -> Any:
        key = (_key(lhs), _key(rhs), flags, *more.items())
        if None in key:
            return prepare(self, lhs, rhs, *flags, **more)
        if key not in known:
            known[key] = prepare(self, lhs, rhs, *flags, **more)
            return known[key]
        left, right = known[key]
        return as_before(self, lhs, left), as_before(self, rhs, right)

    return quick


def _key(x: Any) -> Any:
    """What decides about an operand; None of a float, where 0.0 would pass for -0.0."""
    if isinstance(x, core.tensor):
        return x.type.name
    return (type(x), x) if isinstance(x, int) else None


def _rounding_once(dot: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def create_dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> TensorHandle:
        kinds = [x.data.dtype for x in (a, b, d)]
        if any(kind not in (numpy.float16, numpy.float32) for kind in kinds):
            return dot(self, a, b, d, *precision)
        total = numpy.matmul(a.data, b.data, dtype=numpy.float64) + d.data
        return TensorHandle(total.astype(d.data.dtype), d.dtype.scalar)

    return create_dot


def _spread(data: numpy.ndarray, kind: Any) -> numpy.ndarray:
    return numpy.broadcast_to(data, list(kind.shape))


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
