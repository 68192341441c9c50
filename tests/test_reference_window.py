"""The reference with windows, chunks and tables of other shapes, against a naive softmax."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hf_oracle import WINDOWS, Problem, assert_same, dense_hidden, hf_attention, make_problem, run
from hf_oracle import positions_of as rows_of
from torch import Tensor

from xlnet_fast import ops, reference
from xlnet_fast.masks import AttentionMask

TIGHT = 1e-12


def naive(problem: Problem) -> Tensor:
    """(B, I, N, D) score by score in float64; no segments, every row present and seeing a key."""
    x, options = problem.operands, problem.options
    batch, queries, keys, memory = problem.sizes
    positions = rows_of(problem)
    hidden = dense_hidden(options["mask"], positions, keys, memory)
    out = torch.zeros_like(x["q"])
    tables, heads = x["r"].shape[0], x["q"].shape[2]
    for b, i, n in ((b, i, n) for b in range(batch) for i in range(queries) for n in range(heads)):
        r = x["r"][b * tables // batch, :, n % x["r"].shape[2]]
        weights, total = [], 0.0
        for j in range(keys):
            if hidden[b, i, j]:
                weights.append(0.0)
                continue
            distance = int(positions[b, i]) + memory - j
            row = r[keys - options.get("r_start", 0) - distance]
            query = x["q"][b, i, n]
            score = (query + x["r_w_bias"][n]) @ x["k"][b, j, n] + (query + x["r_r_bias"][n]) @ row
            weights.append(math.exp(float(score) * options["scale"]))
        total = sum(weights)
        for j, weight in enumerate(weights):
            out[b, i, n] += weight / total * x["v"][b, j, n]
    return out


SIZES: dict[str, Any] = {"batch": 2, "queries": 9, "memory": 4}


@pytest.mark.parametrize("mask", ["window", "window right", "chunks", "chunks right", "chunks uni"])
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("one_table", [False, True])
def test_a_naive_softmax(mask, start, one_table):
    problem = make_problem(**SIZES, mask=mask, start=start, one_table=one_table)
    out = reference.rel_attention(**problem.operands, **problem.options)
    torch.testing.assert_close(out, naive(problem), atol=TIGHT, rtol=TIGHT)


@pytest.mark.parametrize("mask", WINDOWS)
@pytest.mark.parametrize("targets", [None, 5])
@pytest.mark.parametrize("start", [0, 1])
def test_outputs_and_gradients_are_those_of_hugging_face(mask, targets, start):
    """Rows that see nothing too, and absent ones; one table for all heads where it starts late."""
    problem = make_problem(
        queries=9, memory=4, groups=2, mask=mask, targets=targets, segments=2, start=start,
        one_table=start == 1,
    )  # fmt: skip
    expected = run(hf_attention, problem)
    assert_same(run(reference.rel_attention, problem), expected, TIGHT)
    assert_same(run(ops.rel_attention, problem, backend="reference"), expected, TIGHT)


@pytest.mark.parametrize("mask", ["window right", "chunks"])
@pytest.mark.parametrize("start", [0, 1])
def test_two_streams(mask, start):
    problem = make_problem(queries=9, memory=4, mask=mask, start=start, one_table=True)
    operands = dict(problem.operands)
    q_h, q_g = operands.pop("q"), torch.randn(4, 3, 2, 4, dtype=torch.float64)
    options = {name: problem.options[name] for name in ("mask", "scale")} | {"r_start": start}
    positions = torch.tensor([[8, 0, -1], [3, 4, 5], [1, 2, 8], [7, 6, 0]])
    outs = reference.two_stream_attention(q_h, q_g, **operands, **options, positions=positions)
    other = ops.two_stream_attention(
        q_h, q_g, **operands, **options, positions=positions, backend="reference"
    )
    sees_self = {**problem.options, "mask": AttentionMask.from_parts(
        problem.options["mask"].tensors, (False, False, True, *problem.options["mask"].limits)
    )}  # fmt: skip
    expected = (
        hf_attention(q=q_h, **operands, **sees_self),
        hf_attention(q=q_g, **operands, **problem.options, positions=positions),
    )
    for out, again, right in zip(outs, other, expected, strict=True):
        torch.testing.assert_close(out, right, atol=TIGHT, rtol=TIGHT)
        assert torch.equal(again, out)


def test_a_row_outside_of_which_all_is_hidden_is_uniform():
    """Its window lies in the padding: over all keys, those outside of the window too."""
    problem = make_problem(batch=1, queries=9, memory=0)
    padding = torch.zeros(1, 9, dtype=torch.bool)
    padding[:, 5:] = True
    options = {**problem.options, "mask": AttentionMask(key_padding=padding, window=(1, 1))}
    out = reference.rel_attention(**problem.operands, **options)
    mean = problem.operands["v"].mean(1)
    for row in (6, 7, 8):
        torch.testing.assert_close(out[:, row], mean, atol=TIGHT, rtol=TIGHT)


def test_a_window_without_limits_hides_nothing():
    mask = AttentionMask(window=(None, None))
    assert mask.hides_nothing
    problem = make_problem()
    options = {**problem.options, "mask": mask}
    out = reference.rel_attention(**problem.operands, **options)
    assert torch.equal(out, reference.rel_attention(**problem.operands, **problem.options))


@pytest.mark.parametrize("window", [(3, 2), (None, 1), (2, None)])
@pytest.mark.parametrize("chunk", [1, 4])
def test_probabilities(window, chunk):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 2, 7, 10, generator=generator, dtype=torch.float64)
    mask = AttentionMask(window=window, chunk=chunk)
    hidden = dense_hidden(mask, torch.arange(7).expand(2, 7), 10, 3)
    out = ops.masked_softmax(scores, mask=mask, scale=0.5, backend="reference")
    expected = (0.5 * scores).masked_fill(hidden[:, None], -torch.inf).softmax(-1)
    torch.testing.assert_close(out, expected, atol=TIGHT, rtol=TIGHT)
