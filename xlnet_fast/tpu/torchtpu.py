"""TorchTPU runs the registered ops of attention on the Pallas kernels. Never run: no TPU at hand.

TorchTPU (``torch_tpu``, device "tpu") makes a PyTorch op of a JAX function by ``jax_op`` of its
module ``pallas``, from the type hints of its arguments. What is here gives it our functions with
such hints, and our ops what it makes. In tests a module of the same interface stands in for it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from types import GenericAlias
from typing import Any

import torch
from torch import Tensor

import xlnet_fast.ops  # noqa: F401  defines the ops
from xlnet_fast import lowering
from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.ops._contracts._registry import LIBRARY

OPS = (
    "rel_attention",
    "rel_attention_backward",
    "two_stream_attention",
    "two_stream_attention_backward",
)
NAMESPACE = "xlnet_fast_tpu"

_current: dict[str, Callable[..., Any]] = {}
"""By the names of our ops, what runs them on a device "tpu"."""


def register(*, chip: str | None = None) -> None:
    """Run ``xlnet_fast::rel_attention`` and ``two_stream_attention`` on Pallas under TorchTPU.

    From then on backend "auto" takes "pallas" for tensors on device "tpu". Called again, it
    replaces what was registered.

    Args:
        chip: "v4", "v5e", "v5p", "v6e" or "tpu7x"; default: kernels that each of them can run, for
            JAX cannot be asked, it would want the TPU for itself.

    Raises:
        BackendUnavailable: TorchTPU or JAX is missing.
        ArgumentError: an unknown chip.

    Warns:
        UserWarning: that this was never run, and how to see whether it is right.
    """
    made = implementations(_load(), chip)
    for name in made:
        if name not in _current:  # PyTorch takes an implementation once
            torch.library.impl(f"xlnet_fast::{name}", "tpu", partial(_run, name), lib=LIBRARY)
    _current.update(made)
    lowering.registered("tpu")
    warnings.warn(
        "the kernels were never run under TorchTPU, no TPU was at hand: compare a model's outputs "
        "with those of accelerate(model, backend='reference') before you rely on them",
        stacklevel=2,
    )


def implementations(
    jax_op: Callable[..., Any], chip: str | None = None, interpret: bool = False
) -> dict[str, Callable[..., Any]]:
    """Our ops by name as functions of tensors of the device that ``jax_op`` makes ops for.

    Args:
        jax_op: of ``torch_tpu.pallas``. chip: as :func:`register`.
        interpret: of ``xlnet_fast.kernels.pallas.rel_attention``.
    """
    from xlnet_fast.kernels.pallas import chips, registered

    usual = next(name for name, known in chips.CHIPS.items() if known == chips.ANY)
    chips.find_chip(chip or usual)  # an unknown name is told now
    functions = registered.functions(chip=chip or usual, interpret=interpret)
    suffix = f"_{chip}" if chip else ""
    made: dict[str, Callable[..., Any]] = {}
    for name in OPS:
        op = jax_op(f"{NAMESPACE}::{name}{suffix}", _with_hints(name, functions[name]))
        made[name] = partial(_call, op, [argument.name for argument in _schema(name).arguments])
    return made


def _run(name: str, *args: Any) -> Any:
    return _current[name](*args)


def _schema(name: str) -> Any:
    return getattr(torch.ops.xlnet_fast, name).default._schema


def _call(op: Callable[..., Any], names: list[str], *args: Any) -> Any:
    """``op`` on the arguments of one of ours, in types that JAX has without 64 bits."""
    return op(*(_as_given(name, x) for name, x in zip(names, args, strict=True)))


def _as_given(name: str, x: Any) -> Any:
    """int64 as int32, a seed as two words (2,) of it; switches as text."""
    if name == "wanted":
        return "".join("01"[switch] for switch in x)
    if not isinstance(x, Tensor) or x.dtype != torch.int64:
        return x
    if name == "seed":
        x = x.reshape(())
        x = torch.stack([x << 32 >> 32, x >> 32])
    return x.to(torch.int32)


def _as_taken(name: str, x: Any) -> Any:
    """The way back, in JAX."""
    if name == "wanted":
        return [switch == "1" for switch in x]
    return x.astype("uint32") if name == "seed" and x is not None else x


def _with_hints(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with the parameters and type hints that the op's schema tells."""
    import jax

    hints: dict[str, Any] = {
        "Tensor": jax.Array, "Optional[Tensor]": jax.Array | None, "bool": bool, "int": int,
        "float": float, "str": str, "List[bool]": str,
    }  # fmt: skip
    schema = _schema(name)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(argument.name, kind, annotation=hints[str(argument.type)])
        for argument in schema.arguments
    ]
    results = GenericAlias(tuple, (jax.Array,) * len(schema.returns))

    def hinted(*args: Any, **named: Any) -> Any:
        given = signature.bind(*args, **named).arguments
        return function(*(_as_taken(name, x) for name, x in given.items()))

    signature = inspect.Signature(parameters, return_annotation=results)
    hinted.__signature__ = signature  # type: ignore[attr-defined]
    hinted.__name__ = hinted.__qualname__ = name
    hinted.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": results}
    return hinted


def _load() -> Callable[..., Any]:
    """TorchTPU's ``jax_op``, which lay elsewhere before it was public."""
    try:
        try:
            from torch_tpu import pallas
        except ImportError:
            from torch_tpu._internal import pallas
        return pallas.jax_op
    except ImportError as error:
        raise BackendUnavailable(
            f"no TorchTPU here ({error}): install torch_tpu as its documentation says, with JAX"
        ) from error
