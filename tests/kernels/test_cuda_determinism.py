"""What backend cuda does in PyTorch around its kernels runs where only deterministic ops may.

The kernels' own sums have a fixed order (`test_twice_the_same_bits`, on a GPU too).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import small_ops
import torch
from attention_cases import CASES, Case, make_inputs
from attention_runs import gradients, launch
from cuda_emulation import as_gpu, emulation, emulation_module
from deterministic_ops import PRODUCTS, OnlyDeterministic
from hf_oracle import make_problem
from test_cuda_rel_attention import STEP, STREAMS
from two_stream_cases import make_streams, run_streams

from xlnet_fast import ops
from xlnet_fast.kernels.cuda import concat_memory, masked_softmax, rel_attention

__all__ = ["as_gpu", "emulation", "emulation_module"]  # fixtures

BF16 = torch.bfloat16
ATTENTION = {
    "segments": replace(CASES["masks-all-self"], segments=True, pad=STEP),
    "absent rows": replace(CASES["shapes-positions-absent"], segments=True, pad=STEP),
    "dropout, two parts of the batch": replace(CASES["dropout-masked"], segments=True, pad=STEP),
    "memory apart, strided": Case(rows=17, strided=True, pad=STEP, apart=True, memory=5),
}


@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name):
    case = ATTENTION[name]
    x = make_inputs(case, BF16, seed=0)
    d_out = torch.randn(x.q.shape).to(BF16)
    with OnlyDeterministic():
        launch(x, case, rel_attention, "cpu")
        gradients(x, case, d_out, rel_attention, "cpu")


@pytest.mark.usefixtures("emulation")
def test_two_streams():
    case = STREAMS["streams-pretraining"]
    case = replace(case, content=replace(case.content, segments=True))
    x = make_streams(case, BF16, seed=0)
    d_outs = [torch.randn(q.shape).to(BF16) for q in (x.q, x.q_g)]
    with OnlyDeterministic():
        run_streams(x, case, d_outs, rel_attention, "cpu")


@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize("name", ["masks-every-self", "masks-ranks"])
def test_softmax(name):
    case = replace(small_ops.CASES[name], dropout_p=0.3)
    inputs = small_ops.make_inputs(case, BF16, seed=0)
    with OnlyDeterministic():
        small_ops.launch(inputs, case, masked_softmax, "cpu")


@pytest.mark.usefixtures("emulation")
def test_memory():
    hidden, memory = ([torch.randn(n, 2, 8) for _ in range(3)] for n in (5, 4))
    out = torch.empty(3, 6, 2, 8)
    with OnlyDeterministic():
        concat_memory.concat_memory_forward(hidden, memory, 2, 4, out)
    assert torch.equal(out[0], torch.cat([memory[0], hidden[0][:4]])[2:])


@pytest.mark.usefixtures("as_gpu")
def test_the_public_op_and_what_autograd_adds():
    problem = make_problem(batch=2, queries=5, memory=3, heads=2, dim=8, segments=2).to(BF16)
    leaves = {name: x.detach().requires_grad_() for name, x in problem.operands.items()}
    with OnlyDeterministic():
        out = ops.rel_attention(**leaves, **problem.options, backend="cuda")
        out.backward(torch.ones_like(out))
    assert all(leaf.grad is not None for leaf in leaves.values())


# --- the test itself ------------------------------------------------------------------------------

X = torch.ones(2, 3, 4)
CAUGHT: dict[str, Callable[[], object]] = {
    "bmm": lambda: torch.einsum("bni,bind->nd", torch.ones(2, 3, 4), torch.ones(2, 4, 3, 5)),
    "mm": lambda: X[0] @ X[0].T,
    "addmm": lambda: torch.nn.functional.linear(X[0], X[1], X[0, :2, 0]),
    "index_add_": lambda: X.clone().index_add_(0, torch.tensor([0, 0]), X),
    "index_put_": lambda: X.clone().index_put_((torch.tensor([0, 0]),), X, accumulate=True),
    "scatter_add_": lambda: X.clone().scatter_add_(0, torch.zeros(2, 3, 4).long(), X),
    "cumsum": lambda: X.cumsum(0),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_what_is_forbidden_is_caught(name):
    message = f"^({'|'.join(PRODUCTS)}) " if name == "addmm" else f"^_?{name}"
    with pytest.raises(AssertionError, match=message), OnlyDeterministic():
        CAUGHT[name]()
