"""Whether a class that was found by its name computes what we take it to compute."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xlnet_fast.hf.adoption import laid_over
from xlnet_fast.hf.options import Options

Small = Callable[[Any], dict[str, Any]]
"""From a module, the attributes of a small one: submodules, parameters and sizes."""

_FAR = 1e-3
"""Results of order one that differ by more are of another formula; fp32 rounds to 1e-6."""
_PLAIN = (bool, int, float, str, type(None))
_KEPT: dict[tuple[Any, ...], str | None] = {}


def why_not_proved(
    base: type,
    module: Any,
    mixin: type[nn.Module],
    *,
    attributes: Iterable[str],
    arguments: tuple[str, ...],
    small: Small,
    calls: Callable[[], Iterable[Mapping[str, Any]]],
) -> str | None:
    """Why a module of a class ``base`` is not to run with the forward of ``mixin``.

    Args:
        attributes: that the module must have. arguments: of the forward, in order.
        small: of the module. calls: arguments for a forward of the small one.
    """
    missing = [name for name in attributes if not hasattr(module, name)]
    if missing:
        return f"it has no {' and no '.join(missing)}"
    taken = tuple(inspect.signature(base.forward).parameters)[1:]  # type: ignore[attr-defined]
    if taken != arguments:
        return f"its forward takes ({', '.join(taken)}), and we know ({', '.join(arguments)})"
    plain = {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}
    key = (base, mixin, *sorted(plain.items()))
    if key not in _KEPT:
        _KEPT[key] = _tried(base, mixin, plain | small(module), calls)
    return _KEPT[key]


def _tried(
    base: type,
    mixin: type[nn.Module],
    values: dict[str, Any],
    calls: Callable[[], Iterable[Mapping[str, Any]]],
) -> str | None:
    quiet = torch.random.fork_rng(devices=[])
    with quiet, torch.no_grad(), torch.device("cpu"), torch.autocast("cpu", enabled=False):
        torch.manual_seed(0)
        theirs = _made(base, values)
        ours = copy.deepcopy(theirs)
        ours.__class__ = laid_over(mixin, base)
        ours.__dict__["_xlnet_fast_options"] = Options(backend="reference")
        for call in calls():
            try:
                expected = _first(theirs(**call))
            except Exception as problem:  # whatever code of this name raises
                return f"its forward raised {type(problem).__name__} when it was tried: {problem}"
            result = _first(ours(**call))
            if result.shape != expected.shape or not bool((result - expected).abs().max() < _FAR):
                return "its forward gave something else than the formula that we know"
    return None


def _made(base: Any, values: dict[str, Any]) -> Any:
    """A module of a class, made of its attributes alone, in evaluation."""
    module = base.__new__(base)
    nn.Module.__init__(module)
    for name, value in values.items():
        setattr(module, name, value)
    module.float().eval()
    return module


def _first(result: Any) -> Tensor:
    found: Tensor = result[0] if isinstance(result, tuple) else result
    return found


def drawn(*shape: int) -> nn.Parameter:
    """A parameter of random values, for a small module."""
    return nn.Parameter(torch.randn(shape))
