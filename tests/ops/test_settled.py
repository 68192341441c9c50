"""What the layers of one forward pass settle once, and who may still look on."""

from __future__ import annotations

import sys
from typing import ClassVar

import pytest
import torch
from hf_oracle import assert_same, make_problem, run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import XLNetConfig, XLNetModel
from two_sources import apart

import xlnet_fast
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.masks import AttentionMask
from xlnet_fast.ops import rel_attention, two_stream_attention
from xlnet_fast.ops.settled import Settled

MODULE = sys.modules["xlnet_fast.ops.rel_attention"]
F32 = torch.float32
KINDS = {
    "plain": {},
    "memory apart": {"segments": 2, "mask": "left"},
    "ranks": {"mask": "query"},
    "bits": {"mask": "bits", "segments": 2},
    "causal": {"mask": "uni"},
    "positions": {"mask": "query", "targets": 3},
    "window": {"mask": "window right", "start": 1, "one_table": True},
}


@pytest.fixture
def choices(monkeypatch):
    """How often a backend was chosen."""
    made = []
    choose = MODULE._choose

    def counted(*args):
        made.append(args[0])
        return choose(*args)

    monkeypatch.setattr(MODULE, "_choose", counted)
    return made


def values_of(problem):
    return {name: x.detach() for name, x in problem.operands.items()}


@pytest.mark.parametrize("backend", ["auto", "cpu", "sdpa"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_other_operands_give_what_a_call_alone_gives(kind, dropout_p, backend, choices):
    settled = Settled()
    first, second = (make_problem(**KINDS[kind], seed=0).to(F32) for _ in range(2))
    second.operands.update({name: x.flip(0) for name, x in second.operands.items()})
    if kind == "memory apart":
        first, second = apart(first), apart(second)
    second.options.update(first.options)  # the very same mask and segments, as layers have them
    dropout = {"dropout_p": dropout_p} if dropout_p else {}
    for seed, problem in enumerate((first, second, second)):
        if dropout_p:
            dropout["seed"] = torch.tensor([seed])
        expected = run(rel_attention, problem, **dropout, backend=backend)
        before = len(choices)
        actual = run(rel_attention, problem, **dropout, backend=backend, settled=settled)
        assert len(choices) - before == (1 if seed == 0 else 0)
        assert_same(actual, expected, 0.0)
        options = {**problem.options, **dropout, "backend": backend}
        alone = rel_attention(**values_of(problem), **options)
        for _ in range(2):
            assert torch.equal(
                rel_attention(**values_of(problem), **options, settled=settled), alone
            )


def streams_of(problem):
    operands = {name: x.detach().requires_grad_() for name, x in problem.operands.items()}
    q = operands.pop("q")
    options = {**problem.options, "segments": problem.options["segments_k"]}
    for name in ("memory_length", "segments_q", "segments_k"):
        del options[name]
    q_g = q.detach().flip(1)[:, :2].clone().requires_grad_()
    return (q, q_g), operands, options


@pytest.mark.parametrize("of", ["both", "query stream"])
def test_two_streams(of, choices):
    settled = Settled()
    found = []
    positions = torch.tensor([[1, 0], [4, -1], [2, 3], [0, 1]])
    problem = make_problem(mask="query", segments=2).to(F32)
    for more in ({}, {"settled": settled}, {"settled": settled}):
        queries, operands, options = streams_of(problem)
        outs = two_stream_attention(
            *queries, **operands, **options, positions=positions, dropout_p=0.2,
            seed=torch.tensor([3]), **more,
        )  # fmt: skip
        (sum(out.sin().sum() for out in outs) if of == "both" else outs[1].sin().sum()).backward()
        grads = [x.grad for x in (*queries, *operands.values())]
        found.append([*outs, *grads])
    assert len(choices) == 2
    for results in found[1:]:
        for actual, expected in zip(results, found[0], strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("r_w_bias", torch.zeros(4, 2), ShapeError),
        ("v", torch.zeros(4, 7, 2, 4), ShapeError),
        ("r", torch.zeros(3, 13, 2, 4), ShapeError),
        ("r", torch.zeros(1, 13, 2, 4).bfloat16(), ArgumentError),
        ("k", torch.zeros(4, 8, 2, 4, device="meta"), ArgumentError),
    ],
)
def test_what_was_not_settled_is_checked(name, value, error):
    settled, problem = Settled(), make_problem().to(F32)
    rel_attention(**problem.operands, **problem.options, settled=settled)
    problem.operands[name] = value
    with pytest.raises(error, match=name):
        rel_attention(**problem.operands, **problem.options, settled=settled)


def test_another_mask_or_other_positions_are_looked_at():
    settled, problem = Settled(), make_problem(targets=3).to(F32)
    arguments = {**problem.operands, **problem.options, "settled": settled}
    rel_attention(**arguments)
    with pytest.raises(ArgumentError, match="positions reach 9"):
        rel_attention(**{**arguments, "positions": torch.full((4, 3), 9)})
    padding = torch.zeros(4, 8, dtype=torch.bool)
    padding[:, :4] = True
    hidden = rel_attention(**{**arguments, "mask": AttentionMask(key_padding=padding)})
    del arguments["settled"]
    alone = rel_attention(**{**arguments, "mask": AttentionMask(key_padding=padding)})
    assert torch.equal(hidden, alone)
    assert not torch.equal(hidden, rel_attention(**arguments))


class Seen(TorchDispatchMode):
    """Notes the names of all ops."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def called(problem, settled):
    leaves = {name: x.detach().requires_grad_() for name, x in problem.operands.items()}
    return leaves, rel_attention(**leaves, **problem.options, settled=settled)


def test_whoever_looks_on_sees_the_ops():
    settled, problem = Settled(), make_problem().to(F32)
    for _ in range(2):
        called(problem, settled)[1].sum().backward()
    with Seen() as seen:
        _, out = called(problem, settled)
    assert "xlnet_fast.rel_attention.default" in seen.names
    _, out = called(problem, settled)  # recorded while nobody looked
    with Seen() as seen:
        out.sum().backward()
    assert "xlnet_fast.rel_attention_backward.default" in seen.names
    with torch.profiler.profile() as profile:
        called(problem, settled)[1].sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"xlnet_fast::rel_attention", "xlnet_fast::rel_attention_backward"} <= names


class Wrapped(Tensor):
    """A subclass that sees every function."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(str(func))
        return super().__torch_function__(func, types, args, kwargs)


def test_a_subclass_of_tensors_goes_through_the_op():
    settled, problem = Settled(), make_problem().to(F32)
    expected = rel_attention(**problem.operands, **problem.options, settled=settled)
    problem.operands["v"] = problem.operands["v"].as_subclass(Wrapped)
    for _ in range(2):
        Wrapped.seen.clear()
        out = rel_attention(**problem.operands, **problem.options, settled=settled)
        assert any("xlnet_fast.rel_attention" in name for name in Wrapped.seen)
        assert torch.equal(out.as_subclass(Tensor), expected)


def test_second_derivatives():
    problem = make_problem(segments=2, mask="left").to(F32)

    def second(**more):
        leaves = {name: x.detach().requires_grad_() for name, x in problem.operands.items()}
        out = rel_attention(**leaves, **problem.options, **more)
        first = torch.autograd.grad(out.sin().sum(), list(leaves.values()), create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), list(leaves.values()))

    settled = Settled()
    second(settled=settled)
    for actual, expected in zip(second(settled=settled), second(), strict=True):
        assert torch.equal(actual, expected)


def test_a_change_in_place_before_the_backward_pass_is_an_error():
    settled, problem = Settled(), make_problem().to(F32)
    called(problem, settled)
    leaves = {name: x.detach().requires_grad_() for name, x in problem.operands.items()}
    q = leaves["q"] * 1.0
    out = rel_attention(**{**leaves, "q": q}, **problem.options, settled=settled)
    with torch.no_grad():
        q.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("memory", [False, True])
def test_the_layers_of_a_model_choose_once(memory, choices):
    config = XLNetConfig(
        vocab_size=16, d_model=8, n_head=2, n_layer=4, d_inner=8, mem_len=6, use_mems_eval=True
    )
    torch.manual_seed(0)
    model = xlnet_fast.accelerate(XLNetModel(config).eval())
    ids = torch.arange(10).view(2, 5)
    given = {"token_type_ids": (ids > 5).long(), "attention_mask": (ids != 5).long()}
    with torch.no_grad():
        mems = model(ids).mems if memory else None
        choices.clear()
        model(ids, **given, mems=mems)
    assert len(choices) == 1


def test_a_gradient_that_is_asked_for_later():
    settled, problem = Settled(), make_problem().to(F32)
    rel_attention(**values_of(problem), **problem.options, settled=settled)
    leaves, out = called(problem, settled)
    out.sum().backward()
    assert all(leaf.grad is not None for leaf in leaves.values())


@pytest.mark.parametrize("backend", ["cpu", "sdpa"])
@pytest.mark.parametrize("name", ["segments_k", "positions", "rank_q", "key_padding"])
def test_a_change_of_what_has_no_gradient_is_an_error_too(name, backend):
    """Small integers and masks are read where they lie, in the backward pass again."""
    problem = make_problem(mask="content", segments=2, targets=3).to(F32)
    options = {**problem.options, "backend": backend, "settled": Settled()}
    for key in ("segments_q", "segments_k", "positions"):
        options[key] = options[key].to(torch.int32)
    leaves = {key: x.detach().requires_grad_() for key, x in problem.operands.items()}
    for _ in range(2):
        out = rel_attention(**leaves, **options)
    changed = options[name] if name in options else getattr(options["mask"], name)
    changed.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
