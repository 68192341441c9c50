"""What an op makes of what its caller did not say: the scale, and whether a gradient is needed."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from hf_oracle import make_problem

from xlnet_fast import ops
from xlnet_fast.masks import AttentionMask


@pytest.fixture
def requests(monkeypatch):
    """The requests that the ops make of the dispatcher."""
    seen: list[Any] = []
    for name in ("rel_attention", "masked_softmax"):
        module = importlib.import_module(f"xlnet_fast.ops.{name}")
        real = module.choose

        def choose(request, backend="auto", real=real):
            seen.append(request)
            return real(request, backend)

        monkeypatch.setattr(module, "choose", choose)
    return seen


def two_streams(q: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return ops.two_stream_attention(q_h=q, q_g=q.flip(1), **options)


@pytest.mark.parametrize("op", [ops.rel_attention, two_streams])
def test_the_scale_is_one_over_the_root_of_the_head_dim(op):
    operands = make_problem(memory=0).operands
    given = {name: operands[name] for name in ("q", "k", "v", "r", "r_w_bias", "r_r_bias")}
    expected = op(**given, scale=operands["q"].shape[3] ** -0.5)
    torch.testing.assert_close(op(**given), expected, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["q", "v", "r", "r_r_bias", None])
def test_one_operand_that_needs_a_gradient_is_enough(name, requests):
    problem = make_problem()
    leaves = {n: x.requires_grad_(n == name) for n, x in problem.operands.items()}
    ops.rel_attention(**leaves, **problem.options)
    with torch.no_grad():
        ops.rel_attention(**leaves, **problem.options)
    assert [request.needs_grad for request in requests] == [name is not None, False]


def test_a_gradient_of_the_position_scores_is_one(requests):
    scores, table = torch.zeros(1, 2, 3, 5), torch.zeros(1, 2, 3, 8, requires_grad=True)
    ops.masked_softmax(scores, position_scores=table, mask=AttentionMask())
    assert [request.needs_grad for request in requests] == [True]
