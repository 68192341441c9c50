"""Derivatives of ops beyond the first, forwards, and many at once; and who may look at values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpu_kernels import needs_kernels
from hf_oracle import F64, Problem
from schema_arguments import SEED, schema_arguments, small
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode
from two_sources import apart

from xlnet_fast import ops, transforms
from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.ops import linear as linear_module
from xlnet_fast.ops.dropout import dropout
from xlnet_fast.ops.linear import is_transformed, linear

OPS = torch.ops.xlnet_fast
TINY = {"queries": 2, "memory": 1, "dim": 2, "heads": 1}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "segments, ranks": {"segments": 2, "mask": "content"},
    "targets": {"segments": 2, "mask": "query", "targets": 2},
    "uni, groups": {"mask": "uni right", "groups": 2},
}


def tiny(case: str) -> Problem:
    return small(**{**TINY, **CASES[case]})


def attend(problem: Problem, **more: Any) -> tuple[Any, list[Tensor]]:
    """``rel_attention`` as a function of its operands."""
    names = list(problem.operands)

    def run(*operands: Tensor) -> Tensor:
        given = dict(zip(names, operands, strict=True))
        return ops.rel_attention(**given, **problem.options, **more)

    return run, list(problem.operands.values())


def softmax() -> tuple[Any, list[Tensor]]:
    segments = torch.tensor([[0, 1, 1]])
    options = {"segments_q": segments[:, 1:], "segments_k": segments, "scale": 0.7}

    def run(scores: Tensor, positions: Tensor, of_segments: Tensor) -> Tensor:
        return ops.masked_softmax(
            scores, position_scores=positions, segment_scores=of_segments, **options,
            dropout_p=0.3, seed=SEED,
        )  # fmt: skip

    shapes = (1, 2, 2, 3), (1, 2, 2, 5), (1, 2, 2)
    return run, [torch.randn(shape, dtype=F64) for shape in shapes]


def two_streams() -> tuple[Any, list[Tensor]]:
    problem = tiny("segments, ranks")
    names, options = list(problem.operands), problem.options
    positions = torch.tensor([[1], [-1]])

    def run(q_g: Tensor, q_h: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return ops.two_stream_attention(
            q_h, q_g, **dict(zip(names[1:], rest, strict=True)), segments=options["segments_k"],
            positions=positions, mask=options["mask"], dropout_p=0.3, seed=SEED,
        )  # fmt: skip

    return run, [problem.operands["q"][:, :1].cos(), *problem.operands.values()]


CALLS = {
    "uni, groups": lambda: attend(tiny("uni, groups")),
    "targets, dropout": lambda: attend(tiny("targets"), dropout_p=0.3, seed=SEED),
    "memory apart": lambda: attend(apart(tiny("segments, ranks"))),
    "two streams": two_streams,
    "masked_softmax": softmax,
    "dropout of hidden states": lambda: (
        lambda x: dropout(x, 0.3, SEED),
        [torch.randn(3, 4, dtype=F64)],
    ),
    "linear": lambda: (linear, [torch.randn(s, dtype=F64) for s in ((2, 3), (4, 3), (4,))]),
}


@pytest.fixture(autouse=True)
def every_linear_layer_is_our_op(monkeypatch):
    """Which in float64 multiplies as PyTorch does."""
    monkeypatch.setattr(
        linear_module, "library_for", lambda *_: "aten" if is_transformed() else "cpu"
    )


@pytest.mark.parametrize("call", CALLS)
def test_derivatives_are_those_of_differences(call):
    run, operands = CALLS[call]()
    leaves = [x.clone().requires_grad_() for x in operands]
    gradcheck(run, leaves, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    gradgradcheck(run, leaves, check_fwd_over_rev=True, fast_mode=True)


@needs_kernels
@pytest.mark.parametrize("case", CASES)
def test_second_derivatives_of_the_kernels_are_the_references(case):
    problem = tiny(case).to(torch.float32)
    results = []
    for backend in ("cpu", "reference"):
        run, operands = attend(problem, backend=backend, dropout_p=0.2, seed=SEED)
        leaves = [x.clone().requires_grad_() for x in operands]
        first = torch.autograd.grad(run(*leaves).square().sum(), leaves, create_graph=True)
        loss = sum(grad.square().sum() for grad in first)
        results.append([*first, *torch.autograd.grad(loss, leaves, allow_unused=True)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_an_operand_given_twice_has_each_of_its_gradients_once():
    """Where q, k and v are one tensor, each gradient is that of its own place."""
    x = torch.randn(1, 3, 1, 2, dtype=F64, requires_grad=True)
    r, bias = torch.randn(1, 6, 1, 2, dtype=F64), torch.randn(1, 2, dtype=F64)
    gradgradcheck(lambda x: ops.rel_attention(x, x, x, r, bias, bias), (x,))


def test_a_graph_of_gradients_is_made_only_when_asked_for():
    run, operands = attend(tiny("plain"))
    leaves = [x.clone().requires_grad_() for x in operands]
    calls = []
    with FlopCounterMode(display=False) as counter:
        run(*leaves).sum().backward()
        calls.append(counter.get_flop_counts()["Global"].keys())
    assert calls == [{OPS.rel_attention, OPS.rel_attention_backward}]


# --- what is refused ------------------------------------------------------------------------------


def test_an_op_by_itself_refuses_forward_mode():
    """As an exported program calls it: silence would be a derivative of zero."""
    problem = small()
    q, args = problem.operands["q"], schema_arguments(problem)

    def run(q: Tensor) -> Tensor:
        return OPS.rel_attention(q, *args)[0]

    with pytest.raises(BackendUnavailable, match=r"forward-mode.*'reference'"):
        torch.func.jvp(run, (q,), (q,))
    with forward_ad.dual_level(), pytest.raises(BackendUnavailable, match="forward-mode"):
        run(forward_ad.make_dual(q, q))
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    for other in (
        lambda x: OPS.linear(x, weight, None, None, "none"),
        lambda x: OPS.dropout(x, SEED, 0.5),
    ):
        with pytest.raises(BackendUnavailable, match="forward-mode"):
            torch.func.jvp(other, (x,), (x,))


def test_memory_has_no_derivative_and_no_transform_minds():
    hidden, memory = torch.randn(3, 2, 4), torch.randn(2, 2, 4)

    def run(hidden: Tensor) -> Tensor:
        return torch.stack(ops.concat_memories([hidden, hidden.cos()], [memory, memory], 3))

    value, tangent = torch.func.jvp(run, (hidden,), (hidden,))
    assert torch.equal(value, run(hidden))
    assert not tangent.any()
    assert torch.equal(torch.func.vmap(run)(hidden[None]), run(hidden)[None])


def test_positions_are_checked_wherever_they_can_be():
    problem = tiny("targets")

    def run(positions: Tensor, backend: str = "auto") -> Tensor:
        options = {**problem.options, "positions": positions, "backend": backend}
        return ops.rel_attention(**problem.operands, **options)

    positions = torch.tensor([[1, 0], [-1, 1]])
    for backend in ("sdpa", "reference"):
        with pytest.raises(ArgumentError, match="positions reach 9"):
            run(positions + 8, backend)
    mapped = torch.func.vmap(run)(positions[None])
    torch.testing.assert_close(mapped[0], run(positions))


# --- who looks on ---------------------------------------------------------------------------------


def test_values_are_looked_at_only_where_there_are_any():
    seen = []

    def note(x: Tensor) -> Tensor:
        seen.append((transforms.can_look(x), transforms.active()))
        return x + 1

    x = torch.ones(2)
    note(x)
    with FlopCounterMode(display=False):
        note(x)
    with forward_ad.dual_level():
        note(x)
    assert seen == [(True, ""), (True, ""), (True, transforms.FORWARD_MODE)]
    seen.clear()
    torch.func.vmap(note)(x)
    torch.func.jvp(note, (x,), (x,))
    assert seen == [(False, transforms.TRANSFORM)] * 2
    seen.clear()
    make_fx(note)(x)
    make_fx(note, tracing_mode="fake")(x)
    make_fx(note, pre_dispatch=True)(x)
    torch.jit.trace(note, (x,), check_trace=False)
    note(x.to("meta"))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        note(x)
    assert seen == [(False, "")] * 6
    assert not transforms.can_look(mode.from_tensor(x))


# --- what is counted ------------------------------------------------------------------------------


BIASES = ("r_w_bias", "r_r_bias", "r_s_bias")
FROZEN = ((), ("q",), ("k", "v"), ("q", "r_r_bias"), ("r", "seg_embed"), ("q", "k", "r", *BIASES))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("memory_apart", [False, True])
@pytest.mark.parametrize("frozen", FROZEN, ids=" ".join)
def test_operations_are_those_of_the_formulas(case, memory_apart, frozen):
    """The reference makes no other products, but I + J position scores per query and not J."""
    problem = small(**CASES[case])
    keys = problem.sizes[2]
    problem = apart(problem) if memory_apart else problem
    wanted = [name for name in problem.operands if name.removesuffix("_memory") not in frozen]
    counts = []
    for backend in ("sdpa", "reference"):
        run, operands = attend(problem, backend=backend)
        for name, x in zip(problem.operands, operands, strict=True):
            x.requires_grad_(name in wanted)
        with FlopCounterMode(display=False) as counter:
            run(*operands).sum().backward()
        counts.append(counter.get_total_flops())
    q, r = problem.operands["q"], problem.operands["r"]
    passes = 1 + ("q" in wanted or "r_r_bias" in wanted) + ("r" in wanted)
    assert counts[1] - counts[0] == passes * 2 * q.numel() * (r.shape[1] - keys)


@pytest.mark.parametrize("train", [False, True])
def test_linear_layers_of_any_library_count_alike(train, monkeypatch):
    x, weight = torch.randn(64, 512), torch.randn(512, 512, requires_grad=train)
    counts = []
    for library in ("cpu", "aten"):
        monkeypatch.setattr(linear_module, "library_for", lambda *_, name=library: name)
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
            out = linear(x, weight)
            if train:
                out.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == (1 + train) * 2 * 64 * 512 * 512
