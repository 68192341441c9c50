"""The registered ops as JAX functions: the schemas' arguments in, what the ops give out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("jax", reason="the TPU kernels need JAX: pip install xlnet-fast[tpu]")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from hf_oracle import Problem
from schema_arguments import schema_arguments, small
from torch import Tensor
from tpu_interpreted import QUICK, to_jax, to_torch
from two_sources import apart

import xlnet_fast.ops  # noqa: F401  defines the ops
from xlnet_fast import lowering
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.kernels.pallas import registered
from xlnet_fast.kernels.pallas.chips import CHIPS
from xlnet_fast.philox import keep_mask, keep_threshold

OPS = torch.ops.xlnet_fast
FUNCTIONS = registered.functions(interpret=True)
POSITIONS, SEED, MEMORY_LENGTH = 15, 16, 23  # places behind the queries


def lowered(name: str, *args: Any) -> tuple[Tensor, ...]:
    """An op's JAX function on an op's arguments, float64 as float32."""
    return compiled(lambda *given: FUNCTIONS[name](*given), *args)


def there_and_back(
    name: str, wanted: list[bool], grads: list[Tensor], *args: Any
) -> tuple[Tensor, ...]:
    """What an op gives, and what its backward op; compiled together, which is the quicker."""
    count = len(grads)

    def both(*given: Any) -> Any:
        results = FUNCTIONS[name](*given[count:])
        return *results, *FUNCTIONS[f"{name}_backward"](
            wanted, *given[:count], *results, *given[count:]
        )

    return compiled(both, *grads, *args)


def compiled(function: Callable[..., Any], *args: Any) -> tuple[Tensor, ...]:
    """A JAX function of the tensors among ``args``, which know the rest."""
    tensors = {place: to_jax(single(x)) for place, x in enumerate(args) if isinstance(x, Tensor)}

    def call(arrays: dict[int, jax.Array]) -> Any:
        return function(*(arrays.get(place, x) for place, x in enumerate(args)))

    results = jax.jit(call, compiler_options=QUICK)(tensors)
    return tuple(map(to_torch, results if isinstance(results, tuple) else (results,)))


def single(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


def same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for place, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        torch.testing.assert_close(
            ours, single(theirs), atol=2e-5, rtol=2e-5, msg=lambda m, p=place: f"{p}: {m}"
        )


def normal(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


@pytest.mark.parametrize(
    ("problem", "dropout_p", "memory_length"),
    [
        (small(mask="content", segments=2, groups=2), 0.3, 2),
        (apart(small(mask="same_length")), 0.0, 7),
        (small(mask="chunks right", start=1, queries=9), 0.0, 7),
        (small(mask="window to the right", targets=3), 0.3, 2),
    ],
    ids=["segments", "memory apart", "chunks", "positions"],
)
def test_one_stream(problem: Problem, dropout_p: float, memory_length: int):
    """A memory of 7 is what a traced program may have kept, where the arrays tell the right one."""
    q = problem.operands["q"]
    args = list(schema_arguments(problem, dropout_p))
    exact, stats = OPS.rel_attention(q, *args)
    grad = normal(exact)
    wanted = [place != 5 for place in range(10)]
    exact_grads = OPS.rel_attention_backward(wanted, grad, exact, stats, q, *args)
    args[MEMORY_LENGTH] = memory_length
    actual = there_and_back("rel_attention", wanted, [grad], q, *args)
    same(actual, (exact, torch.empty(0), *exact_grads))


def test_two_streams():
    """The streams' masks differ, dropout's too."""
    content = small(mask="query", segments=2)
    args = list(schema_arguments(apart(content), 0.3))
    args[POSITIONS] = torch.tensor([[2, 0, -1], [1, 3, 2]])
    q_h = content.operands["q"]
    q_g = normal(q_h)[:, :3]
    *exact, stats_h, stats_g = OPS.two_stream_attention(q_h, q_g, *args)
    grads, wanted = [normal(out) for out in exact], [place != 1 for place in range(11)]
    more = (stats_h, stats_g, q_h, q_g, *args)
    exact_grads = OPS.two_stream_attention_backward(wanted, *grads, *exact, *more)
    args[MEMORY_LENGTH] = 7
    actual = there_and_back("two_stream_attention", wanted, grads, q_h, q_g, *args)
    same(actual, (*exact, torch.empty(0), torch.empty(0), *exact_grads))


SEEDS_OF_32_BITS = (0, 5, -1, 2**31 - 1, -(2**31))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("seed", [*SEEDS_OF_32_BITS, 2**62 + 7, -(2**63), 2**32])
def test_a_seed_keeps_its_64_bits_where_jax_has_them(seed, wide):
    if seed not in SEEDS_OF_32_BITS and not wide:
        pytest.skip("JAX cuts it to int32 before anyone can look")
    with jax.enable_x64(wide):
        words = registered.seed_words(jnp.asarray(np.array([seed], np.int64 if wide else np.int32)))
    assert words.tolist() == [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]


@pytest.mark.parametrize("keys", [1, 13, 16])
def test_a_mask_outside_of_kernels_has_the_bits_of_the_definition(keys):
    seed, heads, rows, batch = -7, 3, (2, 9), (1, 3)
    expected = keep_mask(seed, 0.4, 3, heads, rows, keys, batch_range=batch)
    (kept,) = lowered(
        "keep_mask", torch.tensor(seed), keep_threshold(0.4), heads, *rows, keys, *batch
    )
    assert torch.equal(kept, expected)


@pytest.mark.parametrize(
    ("place", "value", "error", "said"),
    [
        (14, torch.zeros(2, 4, 1, dtype=torch.uint8), ArgumentError, "take no packed bits"),
        (SEED, torch.zeros(2, dtype=torch.int64), ShapeError, "expected one element of int32 or"),
        (SEED, torch.zeros(1), ShapeError, "dtype float32, expected one element of int32"),
    ],
)
def test_what_cannot_be_kept_is_refused(place, value, error, said):
    args = list(schema_arguments(small(), 0.3))
    args[place] = value
    with pytest.raises(error, match=said):
        lowered("rel_attention", small().operands["q"], *args)


def test_the_chips_that_can_be_named():
    assert tuple(CHIPS) == lowering.TPUS


def test_sizes_must_be_known():
    (batch,) = jax.export.symbolic_shape("b")
    q = jax.ShapeDtypeStruct((batch, 4, 2, 3), jnp.float32)
    with pytest.raises(ArgumentError, match="compiled for known sizes"):
        FUNCTIONS["rel_attention"](q, *schema_arguments(small()))
