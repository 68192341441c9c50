"""One model, three runs: Hugging Face in the working dtype, ours, and Hugging Face in float64.

``run`` gives every output and the gradient of every parameter under a fixed linear loss, by name.
``TIGHT`` is for float64, where HF's own result is the oracle; elsewhere ``compare`` applies the one
tolerance rule, to the largest error over a few inputs, so that no single element decides by luck.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    XLNetConfig,
    XLNetForMultipleChoice,
    XLNetForQuestionAnswering,
    XLNetForQuestionAnsweringSimple,
    XLNetForSequenceClassification,
    XLNetForTokenClassification,
    XLNetLMHeadModel,
    XLNetModel,
)

import xlnet_fast
from xlnet_fast.tolerance import assert_within

F64 = torch.float64
TIGHT = 1e-11
"""float64: largest difference, relative to the largest element of the tensor (or 1)."""
IGNORED_BY_SOFTMAX = ("start_logits.dense.bias", "end_logits.dense_1.bias")
"""Biases of one logit per token: their gradient is zero, what any dtype gives is noise."""
VOCABULARY, WIDTH, LAYERS = 50, 16, 2

CLASSES = (
    XLNetModel,
    XLNetLMHeadModel,
    XLNetForSequenceClassification,
    XLNetForTokenClassification,
    XLNetForMultipleChoice,
    XLNetForQuestionAnsweringSimple,
    XLNetForQuestionAnswering,
)

Results = dict[str, Tensor | None]


def tiny_config(**overrides: Any) -> XLNetConfig:
    """Two layers of width 16, vocabulary 50, no dropout."""
    values = {
        "vocab_size": VOCABULARY,
        "d_model": WIDTH,
        "n_layer": LAYERS,
        "n_head": 2,
        "d_inner": 24,
        "dropout": 0.0,
        "summary_last_dropout": 0.0,
        "start_n_top": 2,
        "end_n_top": 2,
        "num_labels": 2,  # the simple question answering head splits its labels in two
    }
    return XLNetConfig(**{**values, **overrides})


def tiny_model(
    cls: type[nn.Module] = XLNetModel, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Any:
    """A model in eval mode with parameters large enough for every term to matter, and small enough
    that no softmax saturates: rounding errors would be heavy-tailed and decide by luck.
    """
    model = cls(tiny_config(**overrides)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if name.endswith(("word_embedding.weight", "mask_emb")) else 0.15
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.add_(1)
    return model.to(dtype)


def accelerated(model: Any, **options: Any) -> Any:
    """An accelerated copy; the model itself stays HF's."""
    return xlnet_fast.accelerate(copy.deepcopy(model), **options)


def transformer_of(model: Any) -> XLNetModel:
    return model if isinstance(model, XLNetModel) else model.transformer


def random_ids(batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (batch, length), generator=generator)


def random_mems(batch: int, length: int, seed: int = 0) -> list[Tensor]:
    """Memory of every layer, (M, B, H) fp32."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, batch, WIDTH, generator=generator) for _ in range(LAYERS)]


def padding(batch: int, length: int, side: str) -> Tensor:
    """(B, I) attention mask in which batch element b lacks b + 1 tokens, at least one left."""
    mask = torch.ones(batch, length)
    for number in range(batch):
        missing = min(number + 1, length - 1)
        start = 0 if side == "left" else length - missing
        mask[number, start : start + missing] = 0
    return mask


def one_hot_targets(positions: list[list[int]], length: int) -> Tensor:
    """(B, I', I) mapping; a negative position gives a zero row."""
    mapping = torch.zeros(len(positions), len(positions[0]), length)
    for b, row in enumerate(positions):
        for m, position in enumerate(row):
            if position >= 0:
                mapping[b, m, position] = 1
    return mapping


def hf_in(model: Any, dtype: torch.dtype) -> Any:
    """A copy of HF's model that computes in ``dtype`` throughout, position table included.

    HF keeps the table in fp32, which raises with two streams in any other dtype.
    """
    model = copy.deepcopy(model).to(dtype)
    transformer = transformer_of(model)
    encode = transformer.relative_positional_encoding
    transformer.relative_positional_encoding = lambda *a, **k: encode(*a, **k).to(dtype)
    return model


def in_dtype(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The floating arguments that HF multiplies with activations, in ``dtype``."""
    result = dict(inputs)
    for name in ("target_mapping", "inputs_embeds"):
        if result.get(name) is not None:
            result[name] = result[name].to(dtype)
    if result.get("mems") is not None:
        result["mems"] = [memory.to(dtype) for memory in result["mems"]]
    return result


def flatten(value: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor of an output, nested tuples and dicts included, by its path."""
    if isinstance(value, Tensor):
        return {name: value}
    if value is None:
        return {}
    items: Iterable[tuple[Any, Any]] = (
        value.items() if isinstance(value, dict) else enumerate(value)
    )
    flat = {}
    for key, part in items:
        flat |= flatten(part, f"{name}.{key}" if name else str(key))
    return flat


def linear_loss(outputs: dict[str, Tensor]) -> Tensor:
    """A sum of all outputs that have a gradient, with weights that every dtype holds exactly."""
    generator = torch.Generator().manual_seed(2)
    total = torch.zeros((), dtype=F64)
    for value in outputs.values():
        signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
        if value.requires_grad:
            total = total + (value * signs.to(value.dtype)).sum(dtype=F64)
    return total


def run(
    model: Any,
    inputs: dict[str, Any],
    *,
    backward: bool = True,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Results:
    """Outputs by path, and gradients by parameter name (None where a parameter has none)."""
    model.zero_grad(set_to_none=True)
    with context():
        outputs = flatten(dict(model(**inputs)))
    results: Results = {name: value.detach() for name, value in outputs.items()}
    if backward:
        linear_loss(outputs).backward()
        results |= {f"d {name}": p.grad for name, p in model.named_parameters()}
        model.zero_grad(set_to_none=True)
    return results


def assert_tight(actual: Results, expected: Results, note: str = "") -> None:
    """float64 results are the same up to rounding, integers exactly; so is what is missing."""
    assert actual.keys() == expected.keys(), note
    for name, value in actual.items():
        oracle = expected[name]
        if value is None or oracle is None:
            assert value is oracle, f"{note} {name}: one of the gradients is missing"
            continue
        assert value.shape == oracle.shape, f"{note} {name}: {value.shape} {oracle.shape}"
        assert value.dtype == oracle.dtype, f"{note} {name}: {value.dtype} {oracle.dtype}"
        if not value.is_floating_point() or value.numel() == 0:
            assert torch.equal(value, oracle), f"{note} {name}"
            continue
        bound = TIGHT * max(1.0, float(oracle.detach().abs().max()))
        error = float((value - oracle).detach().abs().max())
        assert error <= bound, f"{note} {name}: {error:.2e} > {bound:.2e}"


def stack(runs: list[Results]) -> Results:
    """Results on several inputs as one: the tolerance rule then sees the largest error."""
    stacked: Results = {}
    for name, first in runs[0].items():
        values = [results[name] for results in runs]
        if first is None:
            assert all(value is None for value in values), name
            stacked[name] = None
        else:
            stacked[name] = torch.stack([value for value in values if value is not None])
    return stacked


def compare(
    model: Any,
    inputs: list[dict[str, Any]],
    dtype: torch.dtype = torch.float32,
    *,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    working: torch.dtype | None = None,
    backward: bool = True,
    ours_inputs: list[dict[str, Any]] | None = None,
    **options: Any,
) -> None:
    """Hold an accelerated copy of ``model`` (HF's, in its dtype) to the tolerance rule.

    Args:
        inputs: forward arguments of each run; floats are cast to ``dtype`` for HF.
        context: e.g. autocast; HF's float64 run is outside it.
        working: dtype of the products, where it is not that of the results (autocast).
        ours_inputs: what the accelerated model gets instead, default the same as HF.
        options: of ``accelerate``.
    """
    eager, exact = hf_in(model, dtype), hf_in(model, F64)
    ours = accelerated(model, **options)
    for other in (eager, exact, ours):
        other.train(model.training)
    cast = [in_dtype(x, dtype) for x in inputs]
    given = cast if ours_inputs is None else ours_inputs
    of_eager = stack([run(eager, x, context=context, backward=backward) for x in cast])
    of_ours = stack([run(ours, x, context=context, backward=backward) for x in given])
    of_exact = stack([run(exact, in_dtype(x, F64), backward=backward) for x in cast])
    assert of_ours.keys() == of_eager.keys() == of_exact.keys()
    for name, value in of_ours.items():
        reference, oracle = of_eager[name], of_exact[name]
        if value is None or reference is None or oracle is None:
            assert value is reference is oracle, f"{name}: a gradient is missing"
        elif name.endswith(IGNORED_BY_SOFTMAX):
            assert float(oracle.abs().max()) < TIGHT
        elif value.is_floating_point():
            assert value.dtype == reference.dtype, name
            low = working if working is not None else value.dtype
            assert_within(value.to(low), reference.to(low), oracle, name)
        else:
            assert torch.equal(value, oracle), name
