"""Backend ``cuda`` through the public ops, its kernels emulated: as if a CPU were the GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import attention_checks as checks
import pytest
import torch
from cuda_emulation import as_gpu, emulation, emulation_module
from hf_oracle import MASKS, Problem, assert_same, hf_attention, make_problem, run
from schema_arguments import SEED, opcheck_backward, schema_arguments, small, with_grad
from torch import Tensor
from two_sources import apart
from yardstick import Graph, Yardstick

from xlnet_fast import ops, reference
from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.ops import _dispatch
from xlnet_fast.tolerance import assert_within

__all__ = ["as_gpu", "emulation", "emulation_module"]  # fixtures
pytestmark = pytest.mark.usefixtures("as_gpu")

OPS = torch.ops.xlnet_fast
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
each_half = pytest.mark.parametrize("dtype", [BF16, F16], ids=["bfloat16", "float16"])
attend = functools.partial(ops.rel_attention, backend="cuda")
attend_twice = functools.partial(ops.two_stream_attention, backend="cuda")

# --- the tolerance rule ---------------------------------------------------------------------------

# Twelve heads: the gradient of r_s_bias has one number per head, and of two numbers eager's error
# is a matter of luck.
SIZES: dict[str, Any] = {"batch": 2, "queries": 17, "memory": 5, "heads": 12, "dim": 8}


@pytest.mark.parametrize(
    ("mask", "targets", "dtype"),
    [
        *((mask, 9, BF16) for mask in ("none", "content", "bits", "uni right", "all parts")),
        ("uni right", None, BF16),
        ("content", None, F16),
        ("all parts", 9, F16),
    ],
)
def test_accuracy_is_that_of_eager(mask, targets, dtype):
    problem = make_problem(**SIZES, mask=mask, targets=targets, segments=2).to(dtype)
    x, options = problem.operands, problem.options
    allowed = Yardstick(hf_attention, reference.rel_attention, x, **options)
    allowed.check(Graph(attend, x, **options))


@pytest.mark.parametrize(
    ("positions", "memory_apart"), [(None, False), (torch.tensor([[2, 0, -1], [1, 3, 2]]), True)]
)
def test_two_streams_are_those_of_the_reference(positions, memory_apart):
    problem = make_problem(batch=2, queries=4, memory=2, dim=8, heads=12, segments=2, mask="query")
    problem = problem.to(BF16)
    x = dict((apart(problem) if memory_apart else problem).operands)
    x["q_g"] = x["q"].cos()[:, : 4 if positions is None else 3]
    x["q_h"] = x.pop("q")
    options = {
        "segments": problem.options["segments_k"], "positions": positions,
        "mask": problem.options["mask"], "scale": problem.options["scale"],
        "dropout_p": 0.2, "seed": SEED,
    }  # fmt: skip
    eager = reference.two_stream_attention
    Yardstick(eager, eager, x, **options).check(Graph(attend_twice, x, **options))


# --- what must not matter -------------------------------------------------------------------------

CHECKS: dict[str, Callable[[torch.dtype], None]] = {
    "NaN in padding": lambda dtype: checks.check_padding_may_hold_anything(
        attend, float("nan"), dtype, queries=50, memory=20, dim=24
    ),
    "infinity in padding apart": lambda dtype: checks.check_padding_in_a_memory_apart(
        attend, float("inf"), dtype, queries=50, dim=24
    ),
    "rows of r beyond the table": lambda dtype: checks.check_rows_of_r_beyond_the_table(
        attend, "uni", None, dtype, queries=50, dim=8
    ),
    "rows of r beyond the table, targets": lambda dtype: checks.check_rows_of_r_beyond_the_table(
        attend, "none", 7, dtype, queries=50, dim=8
    ),
    "uniform rows": lambda dtype: checks.check_uniform_rows(attend, dtype, "nothing visible", 72),
    "uniform rows of some": lambda dtype: checks.check_uniform_rows(attend, dtype, "bits", 8),
    "absent rows": lambda dtype: checks.check_absent_rows(attend, dtype, dim=8),
    "expanded operands": lambda dtype: checks.check_expanded_operands(attend, dtype, dim=8),
    "options of any stride": lambda dtype: checks.check_options_of_any_stride(attend, dtype, dim=8),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, BF16) for name in CHECKS), ("uniform rows", F16), ("NaN in padding", F16)],
)
def test_what_must_not_matter(name, dtype):
    CHECKS[name](dtype)


def test_operands_with_heads_first():
    problem = apart(make_problem(mask="left", segments=2, groups=2, dim=8).to(BF16))
    expected = run(attend, problem)
    moved = {
        name: checks.heads_first(x) if x.dim() == 4 else x for name, x in problem.operands.items()
    }
    leaves = {name: x.detach().requires_grad_() for name, x in moved.items()}
    out = attend(**leaves, **problem.options)
    assert out.stride() == leaves["q"].stride()
    out.backward(checks.every_second(problem.grad_out()))
    grads = {f"d {name}": leaf.grad for name, leaf in leaves.items()}
    assert_same({"out": out.detach(), **grads}, expected, 0.0)


@each_half
@pytest.mark.parametrize("groups", [1, 2])
def test_dropout_is_that_of_every_backend(groups, dtype):
    out, whole = checks.dropped_and_kept(attend, groups, dtype)
    torch.testing.assert_close(out, whole, atol=0, rtol=0.02)


# --- the registered ops ---------------------------------------------------------------------------


def halves(**case: Any) -> Problem:
    return small(**{"dim": 8, **case}).to(BF16)


@pytest.mark.parametrize(
    ("case", "dropout_p", "memory_apart"),
    [({}, 0.3, True), ({"segments": 2, "mask": "query", "targets": 3}, 0.0, False)],
)
def test_opcheck_rel_attention(case, dropout_p, memory_apart):
    problem = halves(**case)
    args = schema_arguments(apart(problem) if memory_apart else problem, dropout_p, "cuda")
    q = checks.heads_first(problem.operands["q"])
    torch.library.opcheck(OPS.rel_attention.default, with_grad((q, *args)))
    out, stats = OPS.rel_attention(q, *args)
    opcheck_backward(
        OPS.rel_attention_backward.default, 10, (torch.ones_like(q), out, stats, q, *args)
    )


def test_opcheck_two_stream_attention():
    problem = halves(segments=2, mask="query")
    q_h = problem.operands["q"]
    args = list(schema_arguments(apart(problem), 0.2, "cuda"))
    q_g, args[15] = q_h[:, :3].clone(), torch.tensor([[2, 0, -1], [1, 3, 2]])
    torch.library.opcheck(OPS.two_stream_attention.default, with_grad((q_h, q_g, *args)))
    *outs, stats_h, stats_g = OPS.two_stream_attention(q_h, q_g, *args)
    grads = tuple(torch.ones_like(out) for out in outs)
    opcheck_backward(
        OPS.two_stream_attention_backward.default, 11,
        (*grads, *outs, stats_h, stats_g, q_h, q_g, *args),
    )  # fmt: skip


def softmax_terms(dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Any]]:
    scores, position = torch.randn(2, 2, 3, 5), torch.randn(2, 2, 3, 8)
    terms = {"scores": scores, "position_scores": position, "segment_scores": position[..., 0]}
    segments = {f"segments_{row}": torch.randint(0, 2, (2, n)) for row, n in (("q", 3), ("k", 5))}
    mask = MASKS["content"](2, 3, 5, torch.Generator().manual_seed(0))
    return {name: x.to(dtype).contiguous() for name, x in terms.items()}, {
        **segments, "mask": mask, "memory_length": 2, "scale": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_masked_softmax(dtype):
    terms, options = softmax_terms(dtype)

    def results(backend: str, kind: torch.dtype) -> dict[str, Tensor]:
        leaves = {name: x.to(kind).detach().requires_grad_() for name, x in terms.items()}
        out = ops.masked_softmax(**leaves, **options, dropout_p=0.25, seed=SEED, backend=backend)
        weights = torch.arange(out.numel()).view(out.shape).to(out.dtype) % 7
        grads = torch.autograd.grad((out * weights).sum(), list(leaves.values()))
        return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}

    eager, exact = results("reference", dtype), results("reference", F64)
    for name, value in results("cuda", dtype).items():
        assert_within(value, eager[name], exact[name], name)


@pytest.mark.parametrize("terms", [False, True])
def test_opcheck_masked_softmax(terms):
    given, options = softmax_terms(F32)
    names = ("position_scores", "segment_scores", "segments_q", "segments_k")
    extra = tuple((given | options)[name] if terms else None for name in names)
    mask = options["mask"]
    rest = (*mask.tensors, None, SEED, *mask.flags, 2, 0.5, 0.25, "cuda")
    args = (given["scores"], *extra, *rest)
    torch.library.opcheck(OPS.masked_softmax.default, with_grad(args))
    out = OPS.masked_softmax(*args)
    torch.library.opcheck(OPS.masked_softmax_backward.default, (torch.ones_like(out), out, *args))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize(("mem_len", "reuse_len"), [(None, None), (4, None), (6, 2), (1, 3)])
def test_concat_memory(mem_len, reuse_len, dtype):
    hidden = [torch.randn(5, 2, 8).to(dtype) for _ in range(3)]
    memory = [torch.randn(4, 2, 8) for _ in range(3)]
    for earlier in (None, memory):
        results = [
            ops.concat_memories(hidden, earlier, mem_len, reuse_len, backend=backend)
            for backend in ("cuda", "reference")
        ]
        for mine, theirs in zip(*results, strict=True):
            assert torch.equal(mine, theirs)
        last = None if earlier is None else earlier[0]
        one = ops.concat_memory(hidden[0], last, mem_len, reuse_len, backend="cuda")
        assert torch.equal(one, results[0][0])


@pytest.mark.parametrize("memory", [[], [torch.randn(3, 2, 8)] * 3])
def test_opcheck_concat_memories(memory):
    hidden = [torch.randn(4, 2, 8) for _ in range(3)]
    torch.library.opcheck(OPS.concat_memories.default, (hidden, memory, 2, 4, "cuda"))


@pytest.mark.parametrize("targets", [None, 3])
def test_attention_compiles_without_a_graph_break(targets):
    problem = halves(segments=2, mask="query", targets=targets)
    torch.compiler.reset()
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True, dynamic=False)
    assert_same(run(compiled, problem), run(attend, problem), 0.0)
    torch.compiler.reset()


# --- what another backend takes over --------------------------------------------------------------

UNFIT: dict[str, tuple[dict[str, Any], torch.dtype, str]] = {
    "head dim 12": ({"dim": 12}, BF16, "it takes head dims in steps of 8, not 12"),
    "head dim 136": ({"dim": 136}, BF16, "it takes head dims 8 to 128, not 136"),
    "fp32": ({"dim": 8}, F32, "it takes float16, bfloat16, not float32"),
    "fp64": ({"dim": 8}, F64, "it takes float16, bfloat16, not float64"),
}


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[_dispatch.Choice]:
    """What ``auto`` chooses in a world where ``cuda`` is proved on the GPU, which is a CPU."""
    row = ("cuda", True, float("inf"), "proved")
    monkeypatch.setattr(_dispatch.proof, "why_none", lambda *device: "")
    monkeypatch.setattr(_dispatch.proof, "verdicts", lambda *key: (row,))
    choices: list[_dispatch.Choice] = []
    choose = _dispatch.choose

    def spy(*arguments: Any) -> _dispatch.Choice:
        choices.append(choose(*arguments))
        return choices[-1]

    for op in (ops.rel_attention, ops.masked_softmax, ops.concat_memory):
        monkeypatch.setitem(op.__globals__, "choose", spy)
    return choices


def test_auto_takes_what_is_measured(chosen):
    problem = halves()
    auto = run(ops.rel_attention, problem)
    assert {(choice.backend, choice.reason) for choice in chosen} == {("cuda", "proved")}
    assert_same(auto, run(attend, problem), 0.0)


@pytest.mark.parametrize("name", UNFIT)
def test_auto_goes_on_where_the_kernels_cannot_run(name, chosen):
    sizes, dtype, reason = UNFIT[name]
    problem = small(**sizes).to(dtype)
    run(ops.rel_attention, problem)
    assert chosen[0].backend in ("cpu", "sdpa")
    assert f"cuda: {reason}" in chosen[0].reason
    with pytest.raises(BackendUnavailable, match=f"'cuda' cannot run rel_attention: {reason}"):
        attend(**problem.operands, **problem.options)


def odd_rows(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, 1))[..., :-1]


def one_element_on(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


@pytest.mark.parametrize("name", ["q", "k", "v", "k_memory", "v_memory", "r"])
@pytest.mark.parametrize("layout", [odd_rows, one_element_on, checks.every_second])
def test_auto_goes_on_where_a_layout_cannot_be_read(layout, name, chosen):
    problem = apart(halves())
    operands = {**problem.operands, name: layout(problem.operands[name])}
    ops.rel_attention(**operands, **problem.options)
    assert chosen[0].backend in ("cpu", "sdpa")
    assert f"cuda: it cannot read {name}: it" in chosen[0].reason
    remedy = ".clone()" if layout is one_element_on else ".contiguous()"
    assert f"{remedy} mends it" in chosen[0].reason
    message = f"'cuda' cannot run rel_attention: it cannot read {name}: it"
    with pytest.raises(BackendUnavailable, match=message):
        attend(**operands, **problem.options)
    x = operands[name]
    operands[name] = x.clone() if layout is one_element_on else x.contiguous()
    mended = attend(**operands, **problem.options)
    assert torch.equal(mended, attend(**problem.operands, **problem.options))


def test_rows_of_either_stream_are_looked_at(chosen):
    problem = halves(mask="query")
    x = dict(problem.operands)
    x["q_h"] = x.pop("q")
    x["q_g"] = odd_rows(x["q_h"])
    ops.two_stream_attention(**x, mask=problem.options["mask"])
    assert "cuda: it cannot read q_g: its rows" in chosen[0].reason


@pytest.mark.parametrize("layout", [checks.every_second, one_element_on])
@pytest.mark.parametrize("name", ["r_w_bias", "r_r_bias", "r_s_bias", "seg_embed"])
def test_biases_of_any_layout_are_read(name, layout):
    """As views of one flat buffer of parameters are, for example."""
    problem = make_problem(dim=8, segments=2).to(BF16)
    operands = {**problem.operands, name: layout(problem.operands[name])}
    assert_same(run(attend, Problem(operands, problem.options)), run(attend, problem), 0.0)


def test_no_keys_or_no_rows():
    """Nothing is launched; the public op has an answer where there is one."""
    problem = halves()
    x = {**problem.operands, "q": problem.operands["q"][:, :0]}
    options = {**problem.options, "memory_length": 2, "positions": torch.zeros(2, 0).long()}
    leaves = {name: t.detach().requires_grad_() for name, t in x.items()}
    out = attend(**leaves, **options)
    assert out.shape == (2, 0, 2, 8)
    out.sum().backward()
    assert all((leaf.grad == 0).all() for leaf in leaves.values())
