"""The registered ops: schemas, fakes, autograd and autocast."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from cpu_kernels import ON_CPU, needs_kernels
from hf_oracle import F64, MASKS, assert_same, make_problem, run
from schema_arguments import SEED, opcheck_backward, schema_arguments, small, with_grad
from torch import Tensor
from two_sources import apart

from xlnet_fast import ops
from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.masks import AttentionMask

OPS = torch.ops.xlnet_fast
FUSED = [  # registered backends of attention on a CPU, each in a dtype that it takes
    ("sdpa", F64),
    pytest.param("cpu", torch.float32, marks=needs_kernels),
]
CASES = {
    "plain": {},
    "segments, ranks": {"segments": 2, "mask": "content"},
    "targets": {"segments": 2, "mask": "query", "targets": 3},
    "uni, groups": {"mask": "uni right", "groups": 2},
    "chunks": {"mask": "chunks right", "start": 1},
}


# What is registered is the same code for all backends: one of each case, and of each of the others.
@pytest.mark.parametrize(
    ("backend", "dtype", "case", "dropout_p", "memory_apart"),
    [
        ("sdpa", F64, "plain", 0.0, False),
        ("sdpa", F64, "segments, ranks", 0.3, True),
        ("sdpa", F64, "targets", 0.0, True),
        ("sdpa", F64, "uni, groups", 0.3, False),
        ("sdpa", F64, "chunks", 0.3, True),
        pytest.param("cpu", torch.float32, "segments, ranks", 0.3, True, marks=needs_kernels),
    ],
)
def test_opcheck_rel_attention(case, dropout_p, memory_apart, backend, dtype):
    problem = small(**CASES[case]).to(dtype)
    problem = apart(problem) if memory_apart else problem
    args = schema_arguments(problem, dropout_p, backend)
    # Dense but not contiguous: the fakes must predict the output's strides too.
    q = problem.operands["q"].transpose(1, 2).contiguous().transpose(1, 2)
    torch.library.opcheck(OPS.rel_attention.default, with_grad((q, *args)))
    out, stats = OPS.rel_attention(q, *args)
    opcheck_backward(
        OPS.rel_attention_backward.default, 10, (torch.ones_like(q), out, stats, q, *args)
    )


@pytest.mark.parametrize(
    ("backend", "dtype", "case", "memory_apart"),
    [
        ("sdpa", F64, "plain", False),
        ("sdpa", F64, "targets", True),
        ("sdpa", F64, "chunks", False),
        pytest.param("cpu", torch.float32, "targets", True, marks=needs_kernels),
    ],
)
def test_opcheck_two_stream_attention(case, memory_apart, backend, dtype):
    content = small(**{**CASES[case], "targets": None}).to(dtype)
    q_h = content.operands["q"]
    args = list(schema_arguments(apart(content) if memory_apart else content, 0.2, backend))
    q_g = q_h.clone()
    if case == "targets":
        q_g, args[15] = q_h[:, :3].clone(), torch.tensor([[2, 0, -1], [1, 3, 2]])
    torch.library.opcheck(OPS.two_stream_attention.default, with_grad((q_h, q_g, *args)))
    *outs, stats_h, stats_g = OPS.two_stream_attention(q_h, q_g, *args)
    grads = tuple(torch.ones_like(out) for out in outs)
    opcheck_backward(
        OPS.two_stream_attention_backward.default, 11,
        (*grads, *outs, stats_h, stats_g, q_h, q_g, *args),
    )  # fmt: skip


@pytest.mark.parametrize("terms", [0, 2])
def test_opcheck_masked_softmax(terms):
    scores = torch.randn(2, 2, 3, 5, dtype=F64)
    extra: tuple[Any, ...] = (None,) * 4
    if terms:
        extra = (
            torch.randn(2, 2, 3, 8, dtype=F64), torch.randn(2, 2, 3, dtype=F64),
            torch.randint(0, 2, (2, 3)), torch.randint(0, 2, (2, 5)),
        )  # fmt: skip
    mask = MASKS["content"](2, 3, 5, torch.Generator().manual_seed(0))
    mask = replace(mask, window=(2, 1), chunk=2) if terms else mask
    rest = (*mask.tensors, None, SEED, *mask.flags, 2, 0.5, 0.25, "sdpa")
    torch.library.opcheck(OPS.masked_softmax.default, with_grad((scores, *extra, *rest)))
    out = OPS.masked_softmax(scores, *extra, *rest)
    torch.library.opcheck(
        OPS.masked_softmax_backward.default, (torch.ones_like(out), out, scores, *extra, *rest)
    )


@pytest.mark.parametrize("memory", [[], [torch.randn(3, 2, 2)] * 3])
@pytest.mark.parametrize("start", [0, 2])
def test_opcheck_concat_memories(memory, start):
    hidden = [torch.randn(4, 2, 2) for _ in range(3)]
    torch.library.opcheck(OPS.concat_memories.default, (hidden, memory, start, 4, "sdpa"))


def test_gradients_of_probabilities_are_contiguous_whatever_the_scores_are():
    scores = torch.randn(2, 3, 5, 4).permute(0, 3, 1, 2).requires_grad_()
    ops.masked_softmax(scores, backend="sdpa").square().sum().backward()
    rest = (*(None,) * 10, *AttentionMask().flags, 2, 1.0, 0.0, "sdpa")
    out = OPS.masked_softmax(scores.detach(), *rest)
    grads = OPS.masked_softmax_backward(2 * out, out, scores.detach(), *rest)
    assert grads[0].is_contiguous()
    assert torch.equal(grads[0], scores.grad)


@pytest.mark.parametrize("op", ["masked_softmax", "concat_memories"])
def test_a_backend_that_is_not_registered_is_refused(op):
    x = torch.zeros(1, 1, 2, 2)
    arguments = {
        "masked_softmax": (x, *(None,) * 10, *AttentionMask().flags, 0, 1.0, 0.0, "nonsense"),
        "concat_memories": ([x[0]], [], 0, 1, "nonsense"),
    }
    with pytest.raises(BackendUnavailable, match="no registered backend 'nonsense'"):
        getattr(OPS, op)(*arguments[op])


# --- memory of all layers -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("memory_dtype", [None, torch.float32, torch.float64])
@pytest.mark.parametrize(("mem_len", "reuse_len"), [(None, None), (4, None), (6, 2), (1, 3)])
def test_memory_of_all_layers_is_that_of_each(backend, memory_dtype, mem_len, reuse_len):
    hidden = [torch.randn(5, 2, 3, requires_grad=True) * 2 for _ in range(3)]
    memory = None
    if memory_dtype is not None:
        memory = [torch.randn(4, 2, 3, dtype=memory_dtype) for _ in range(3)]
    new = ops.concat_memories(hidden, memory, mem_len, reuse_len, backend=backend)
    assert isinstance(new, list)
    for number, (current, mine) in enumerate(zip(hidden, new, strict=True)):
        earlier = None if memory is None else memory[number]
        one = ops.concat_memory(current, earlier, mem_len, reuse_len, backend=backend)
        expected = current[: reuse_len or None].detach()
        if earlier is not None:
            expected = torch.cat([earlier.float(), expected])
        expected = expected[-mem_len:] if mem_len else expected
        assert torch.equal(mine, expected)
        assert torch.equal(one, expected)
        assert not mine.requires_grad
        assert one.untyped_storage().nbytes() == 4 * one.numel()
        mine.mul_(2.0)  # belongs to the caller, who may change it
    if backend == "sdpa":
        assert {x.untyped_storage().nbytes() for x in new} == {4 * 3 * new[0].numel()}


# --- autograd ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("positions", [None, torch.tensor([[2, 0, -1], [1, 3, 2]])])
@pytest.mark.parametrize(("used", "see_self"), [("h", False), ("g", True), ("both", True)])
@pytest.mark.parametrize("memory_apart", [False, True])
def test_two_streams_are_two_calls_of_one(backend, positions, used, see_self, memory_apart):
    """Outputs and gradients, also where the loss looks at one stream only.

    Each stream has its own ``see_self``, whatever the mask says.
    """
    problem = small(segments=2, mask="query")
    x, options = problem.operands, problem.options
    q_g = x["q"].cos()[:, : 4 if positions is None else 3]
    segments = options["segments_k"]
    leaves = {
        name: t.clone().requires_grad_()
        for name, t in {
            **{k: v for k, v in x.items() if k != "q"},
            "q_h": x["q"],
            "q_g": q_g,
        }.items()
    }
    cut = {
        f"{name}{part}": leaves[name][:, keys]
        for name in ("k", "v")
        for part, keys in (("_memory", slice(0, 2)), ("", slice(2, None)))
    }

    def together() -> tuple[Tensor, Tensor]:
        operands = {**leaves, **cut} if memory_apart else leaves
        return ops.two_stream_attention(
            **operands, segments=segments, positions=positions,
            mask=replace(options["mask"], see_self=see_self),
            scale=options["scale"], dropout_p=0.2, seed=SEED, backend=backend,
        )  # fmt: skip

    def apart() -> tuple[Tensor, Tensor]:
        shared = {name: leaf for name, leaf in leaves.items() if name not in ("q_h", "q_g")}
        common = {
            **shared, "segments_k": segments, "memory_length": 2, "scale": options["scale"],
            "dropout_p": 0.2, "backend": backend,
        }  # fmt: skip
        rows = torch.arange(4).expand(2, 4) if positions is None else positions.clamp(min=0)
        rank = options["mask"].rank_q.gather(1, rows)
        return ops.rel_attention(
            leaves["q_h"], **common, segments_q=segments[:, 2:], seed=SEED,
            mask=replace(options["mask"], see_self=True),
        ), ops.rel_attention(
            leaves["q_g"], **common, segments_q=segments[:, 2:].gather(1, rows), seed=SEED + 1,
            mask=replace(options["mask"], rank_q=rank), positions=positions,
        )  # fmt: skip

    results = []
    for call in (together, apart):
        for leaf in leaves.values():
            leaf.grad = None
        out_h, out_g = call()
        loss = (out_h.sin().sum() if used != "g" else 0) + (out_g.cos().sum() if used != "h" else 0)
        loss.backward()
        grads = {
            name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in leaves.items()
        }
        results.append({"out_h": out_h.detach(), "out_g": out_g.detach(), **grads})
    assert_same(results[0], results[1], 1e-12)


@pytest.mark.parametrize("frozen", ["q", "k", "v", "k_memory", "r", "r_r_bias", "seg_embed"])
@pytest.mark.parametrize(("backend", "dtype"), FUSED)
def test_gradients_only_where_asked(frozen, backend, dtype):
    problem = apart(small(segments=2)).to(dtype)
    attend = functools.partial(ops.rel_attention, backend=backend)
    everything = run(attend, problem)
    leaves = {
        name: x.clone().requires_grad_(name != frozen) for name, x in problem.operands.items()
    }
    attend(**leaves, **problem.options).backward(problem.grad_out())
    for name, leaf in leaves.items():
        assert (leaf.grad is None) == (name == frozen), name
        assert leaf.grad is None or torch.equal(leaf.grad, everything[f"d {name}"]), name
    without = {name: x.detach() for name, x in problem.operands.items()}
    assert not attend(**without, **problem.options).requires_grad


# --- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_in_its_dtype_and_gradients_come_back_in_fp32(backend, dtype):
    problem = apart(make_problem(mask="left", segments=2)).to(torch.float32)
    leaves = {name: x.detach().requires_grad_() for name, x in problem.operands.items()}
    with torch.autocast("cpu", dtype):
        out = ops.rel_attention(**leaves, **problem.options, backend=backend)
    rounded = ops.rel_attention(
        **{name: x.detach().to(dtype) for name, x in leaves.items()},
        **problem.options,
        backend=backend,
    )
    assert out.dtype == dtype
    assert torch.equal(out, rounded)
    out.backward(problem.grad_out().to(dtype))
    expected = run(ops.rel_attention, problem.to(dtype), backend=backend)
    for name, leaf in leaves.items():
        assert leaf.grad.dtype == torch.float32
        assert torch.equal(leaf.grad, expected[f"d {name}"].float()), name


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_autocast_mends_mixed_dtypes_and_leaves_float64_alone(backend):
    problem = make_problem(mask="left", segments=2).to(torch.float32)
    mixed = {**problem.operands, "q": problem.operands["q"].bfloat16()}
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.rel_attention(**mixed, **problem.options, backend=backend)
        wide = problem.to(F64)
        exact = ops.rel_attention(**wide.operands, **wide.options, backend=backend)
    assert out.dtype == torch.bfloat16
    assert torch.equal(exact, ops.rel_attention(**wide.operands, **wide.options, backend=backend))
