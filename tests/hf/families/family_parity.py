"""A speech model in three runs: Hugging Face in the working dtype, ours, Hugging Face in float64.

A :class:`Case` says how a tiny model of a family is made and what it is called with. ``compare``
holds every output, and the gradient of every parameter under a fixed linear loss, to the one
tolerance rule. Only valid frames count, in outputs and in the loss: what stands in padding is
nobody's, but it must be finite.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from hf_parity import F64, Results, assert_tight, flatten, linear_loss, stack
from torch import Tensor, nn

import xlnet_fast
from xlnet_fast.tolerance import assert_within

LENGTH = 11
Valid = Sequence[Tensor]
"""(B, T) bool masks of valid frames, one for each number of frames that outputs have."""


@dataclass(frozen=True)
class Case:
    """A family's tiny model.

    Attributes:
        model: makes it, of the attention implementation given, on random weights of its own.
        inputs: forward arguments for a batch, a length and a seed; with ``padded``, the last frames
            of all but the first element are padding.
        valid: the masks of valid frames of such inputs; () where all are.
        attention: Hugging Face's class. adopted: how many modules of each class become ours.
        implementations: of attention, that the family has.
        ignored: ends of the names of parameters whose gradient is zero, for softmax ignores what is
            the same for all keys: what is there is noise. ignored_in_training: more of them, for
            batch norm ignores what is the same for all frames.
    """

    model: Callable[[str], Any]
    inputs: Callable[[int, int, bool, int], dict[str, Any]]
    valid: Callable[[dict[str, Any]], Valid]
    attention: type[nn.Module]
    adopted: dict[type[nn.Module], int]
    implementations: tuple[str, ...] = ("sdpa", "eager")
    ignored: tuple[str, ...] = ("linear_k.bias", "k_proj.bias")
    ignored_in_training: tuple[str, ...] = ("depthwise_conv.bias",)

    def several(self, padded: bool, batch: int = 3, number: int = 3) -> list[dict[str, Any]]:
        """Inputs of several seeds."""
        return [self.inputs(batch, LENGTH, padded, seed) for seed in range(number)]


def randomized(model: Any, dtype: torch.dtype = torch.float32, scale: float = 0.15) -> Any:
    """The model in eval mode, with weights large enough for every term to matter, and small enough
    that no softmax saturates; norms are near one, and what batch norm remembers is not trivial.
    """
    generator = torch.Generator().manual_seed(1)
    norms = (nn.LayerNorm, nn.BatchNorm1d, nn.GroupNorm)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        for module in model.modules():
            if isinstance(module, norms) and module.weight is not None:
                module.weight.add_(1)
            if isinstance(module, nn.BatchNorm1d):
                shape = module.running_mean.shape
                module.running_mean.copy_(torch.randn(shape, generator=generator) * scale)
                module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
    return model.eval().to(dtype)


def random_frames(batch: int, length: int, width: int, seed: int = 0) -> Tensor:
    """(B, T, width) fp32."""
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))


def frames_mask(batch: int, length: int, padded: bool = True) -> Tensor:
    """(B, T) int64, 1 for valid frames: element b lacks its last 3 b, at least two are left."""
    kept = [max(2, length - 3 * number) if padded else length for number in range(batch)]
    return (torch.arange(length) < torch.tensor(kept)[:, None]).long()


def accelerated(model: Any, **options: Any) -> Any:
    """An accelerated copy; the model itself stays Hugging Face's."""
    return xlnet_fast.accelerate(copy.deepcopy(model), **options)


def in_float64(model: Any) -> Any:
    """A copy with the same weights, rounded as they are."""
    return copy.deepcopy(model).double()


def cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The same arguments, floating tensors in ``dtype``."""
    return {
        name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in inputs.items()
    }


def outputs_of(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor that a call returns, by its path."""
    output = model(**inputs)
    return flatten(dict(output) if hasattr(output, "keys") else output, "")


def only_valid(value: Tensor, valid: Valid) -> Tensor:
    """Zeros in the place of padded frames: of outputs (B, T, ...), and of probabilities (B, N, T,
    T) whose query is padding.
    """
    for mask in valid:
        if value.shape[:2] == mask.shape:
            return value.masked_fill(~mask.view(*mask.shape, *[1] * (value.dim() - 2)), 0)
        if value.dim() == 4 and (value.shape[0], value.shape[2]) == tuple(mask.shape):
            return value.masked_fill(~mask[:, None, :, None], 0)
    return value


def run(
    model: Any,
    inputs: dict[str, Any],
    valid: Valid = (),
    *,
    backward: bool = True,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Results:
    """Outputs by path, and gradients by parameter name (None where a parameter has none)."""
    model.zero_grad(set_to_none=True)
    with context():
        outputs = outputs_of(model, inputs)
    for name, value in outputs.items():
        assert not value.is_floating_point() or bool(value.isfinite().all()), f"{name} not finite"
    outputs = {name: only_valid(value, valid) for name, value in outputs.items()}
    results: Results = {name: value.detach() for name, value in outputs.items()}
    if backward:
        linear_loss(outputs).backward()
        results |= {f"d {name}": p.grad for name, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)
    return results


def assert_parity(ours: Results, eager: Results, exact: Results, **options: Any) -> None:
    """The tolerance rule for every result.

    Args:
        options: ``working``, the dtype of the products where it is not that of the results
            (autocast); ``ignored``, as in :class:`Case`.
    """
    working, ignored = options.get("working"), tuple(options.get("ignored", ()))
    assert ours.keys() == eager.keys() == exact.keys()
    for name, value in ours.items():
        reference, oracle = eager[name], exact[name]
        if value is None or reference is None or oracle is None:
            assert value is reference is oracle, f"{name}: a gradient is missing"
        elif ignored and name.endswith(ignored):
            assert float(oracle.abs().max()) < 1e-9, name
        elif value.is_floating_point():
            assert value.dtype == reference.dtype, name
            low = working if working is not None else value.dtype
            assert_within(value.to(low), reference.to(low), oracle, name)
        else:
            assert torch.equal(value, oracle), name


def compare(
    case: Case,
    model: Any,
    inputs: list[dict[str, Any]],
    *,
    backward: bool = True,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    working: torch.dtype | None = None,
    exact: Any = None,
    **options: Any,
) -> None:
    """Hold an accelerated copy of ``model`` (Hugging Face's, in its dtype and mode) to the rule.

    Args:
        inputs: forward arguments of each run; floating ones are cast to the model's dtype. The
            largest error over all counts, so that no single element decides by luck.
        context: such as autocast; the run in float64 is outside it.
        working: as in :func:`assert_parity`.
        exact: the model in float64, where it is not a copy of the model.
        options: of ``accelerate``.
    """
    dtype = next(model.parameters()).dtype
    oracle = in_float64(model) if exact is None else exact

    def results(model: Any, dtype: torch.dtype, context: Any = nullcontext) -> Results:
        model = copy.deepcopy(model)  # batch norm in training remembers what it saw
        runs = [
            run(model, cast(given, dtype), case.valid(given), backward=backward, context=context)
            for given in cast_first
        ]
        return stack(runs)

    cast_first = [cast(given, dtype) for given in inputs]
    ours = results(accelerated(model, **options), dtype, context)
    theirs = results(oracle, F64)
    if dtype == F64:
        assert_tight(ours, theirs)
    else:
        eager = results(model, dtype, context)
        ignored = case.ignored + (case.ignored_in_training if model.training else ())
        assert_parity(ours, eager, theirs, working=working, ignored=ignored)


def assert_same_moments(
    modules: Sequence[nn.Module],
    arguments: Sequence[tuple[Any, Any]],
    expected: Tensor,
    draws: int = 200,
) -> None:
    """That the dropout of two attentions, Hugging Face's first, has the same mean and spread.

    Args:
        arguments: positional and named, of each. expected: the result without dropout.
    """
    spread = []
    for module, (args, kwargs) in zip(modules, arguments, strict=True):
        _set_dropout(module, 0.3)
        with torch.no_grad():
            values = torch.stack([module(*args, **kwargs)[0] for _ in range(draws)])
        deviation = values.std(0)
        error = (values.mean(0) - expected).abs() / (deviation / draws**0.5 + 1e-6)
        assert float(error.max()) < 6
        spread.append(float(deviation.square().mean().sqrt()))
    assert spread[0] > 0
    assert 0.9 < spread[1] / spread[0] < 1.1


def _set_dropout(attention: Any, rate: float) -> None:
    """Of probabilities: a module, or a number."""
    if isinstance(getattr(attention, "dropout", None), nn.Dropout):
        attention.dropout.p = rate
    for name in ("dropout", "attention_dropout"):
        if isinstance(vars(attention).get(name), float):
            setattr(attention, name, rate)
