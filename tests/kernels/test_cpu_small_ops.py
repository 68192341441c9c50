"""Backend ``cpu``: masked_softmax with every mask, term, dtype and instruction set."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from cpu_kernels import DTYPES, ISAS, isa, needs_kernels
from hf_oracle import F64, MASKS, WINDOWS, dense_hidden, make_problem, positions_of
from torch import Tensor
from yardstick import Graph, Yardstick

from xlnet_fast import ops
from xlnet_fast.errors import ArgumentError, BackendUnavailable, ShapeError
from xlnet_fast.kernels.cpu import instruction_sets
from xlnet_fast.kernels.cpu import masked_softmax as cpu_softmax
from xlnet_fast.masks import AttentionMask
from xlnet_fast.operands import SoftmaxInputs
from xlnet_fast.ops._dispatch import Request, choose, named_or_auto
from xlnet_fast.philox import keep_mask

__all__ = ["isa"]  # a fixture
pytestmark = needs_kernels

OWN = tuple(name for name in ISAS if name in ("baseline", "avx2", "avx512"))
"""The instruction sets that this op has kernels for; others only help matrix products."""
each_isa = pytest.mark.parametrize("isa", OWN, indirect=True)
each_dtype = pytest.mark.parametrize(
    "dtype", DTYPES, ids=[str(dtype).removeprefix("torch.") for dtype in DTYPES]
)


def each_kernel(test: Any) -> Any:
    return each_isa(each_dtype(test))


HEADS = 12
SEED = torch.tensor(0x1234_5678_9ABC)
DROPOUT: dict[str, Any] = {"dropout_p": 0.3, "seed": SEED}
NAN = float("nan")
SIZES: dict[str, Any] = {"batch": 4, "queries": 17, "memory": 6}
LENGTHS = (1, 15, 16, 17, 65, 513)  # keys in all: about the vectors of every instruction set
CASES: dict[str, dict[str, Any]] = {
    **{f"mask {mask}": {"mask": mask, "segments": 2} for mask in MASKS},
    **{f"mask {mask}, positions": {"mask": mask, "segments": 2, "targets": 9} for mask in MASKS},
    **{
        f"mask {mask}, dropout": {"mask": mask, "segments": 2, "dropout": True}
        for mask in ("none", "all parts", "nothing visible")
    },
    "dropout, positions": {"mask": "query", "segments": 2, "targets": 9, "dropout": True},
    "no segments": {"mask": "left"},
    "five segments": {"segments": 5},
    "no position scores": {"mask": "left", "segments": 2, "position": False},
    "scores alone": {"position": False},
    "uni, too short a table": {"mask": "uni", "segments": 2, "targets": 9, "memory": 0},
    "large scores": {"segments": 2, "spread": 300.0},
    **{
        f"{keys} keys, {mask}": {
            "batch": 2, "queries": min(keys, 31), "memory": keys - min(keys, 31), "mask": mask,
            "segments": 2,
        }
        for keys in LENGTHS for mask in ("left", "all parts")
    },
    **{f"mask {mask}": {"mask": mask, "segments": 2, "queries": 29} for mask in WINDOWS},
    **{
        f"{mask}, positions, {dropout}": {
            "mask": mask, "segments": 2, "targets": 9, "queries": 41, "dropout": dropout,
        }
        for mask in ("window right", "chunks right", "window uni") for dropout in (False, True)
    },
    "one query": {"queries": 1, "memory": 70, "mask": "left", "segments": 2},
}  # fmt: skip

Problem = tuple[dict[str, Tensor], dict[str, Any]]


def problem_of(
    dtype: torch.dtype = F64,
    position: bool = True,
    dropout: bool = False,
    spread: float = 3.0,
    **sizes: Any,
) -> Problem:
    """Operands and options of ``ops.masked_softmax`` from those of an attention problem."""
    problem = make_problem(**{**SIZES, "heads": HEADS, **sizes})
    batch, rows, keys, _ = problem.sizes
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=F64) * spread).to(dtype)

    operands = {"scores": normal(batch, HEADS, rows, keys)}
    if position:
        width = problem.operands["r"].shape[1]
        operands["position_scores"] = normal(batch, HEADS, rows, width)
    if sizes.get("segments"):
        operands["segment_scores"] = normal(batch, HEADS, rows)
    options = {**problem.options, "scale": 0.31, **(DROPOUT if dropout else {})}
    return operands, options


def grad_of(out: Tensor) -> Tensor:
    values = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=F64)
    return values.to(out.dtype)


def run(problem: Problem) -> dict[str, Tensor]:
    """Probabilities and every gradient."""
    operands, options = problem
    leaves = {name: x.detach().requires_grad_() for name, x in operands.items()}
    out = ops.masked_softmax(**leaves, **options, backend="cpu")
    grads = torch.autograd.grad(out, list(leaves.values()), grad_of(out))
    names = (f"d {name}" for name in leaves)
    return {"out": out.detach()} | dict(zip(names, grads, strict=True))


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert not value.isnan().any(), name
        assert torch.equal(value, expected[name]), name


# --- the tolerance rule ---------------------------------------------------------------------------


by_eager = functools.partial(ops.masked_softmax, backend="reference")
by_kernels = functools.partial(ops.masked_softmax, backend="cpu")


@functools.cache
def yardstick(case: str, dtype: torch.dtype) -> tuple[Problem, Yardstick]:
    operands, options = problem_of(dtype, **CASES[case])
    return (operands, options), Yardstick(by_eager, by_eager, operands, **options)


@each_kernel
@pytest.mark.parametrize("case", CASES)
def test_accuracy_is_that_of_eager(case, isa, dtype):
    (operands, options), allowed = yardstick(case, dtype)
    allowed.check(Graph(by_kernels, operands, **options))


def test_instruction_sets_are_really_chosen():
    """The order of a row's sum differs with the lanes, and so do some last bits."""
    problem = problem_of(torch.float32, mask="left", segments=2, queries=65)
    results = []
    for name in OWN:
        with instruction_sets.using(name):
            results.append(run(problem)["out"])
    for number, mine in enumerate(results):
        assert not any(torch.equal(mine, other) for other in results[:number]), OWN[number]


def test_a_set_that_only_helps_products_changes_nothing():
    problem = problem_of(torch.bfloat16, mask="left", segments=2)
    expected = run(problem)
    for name in set(ISAS) - set(OWN):
        with instruction_sets.using(name):
            assert_same_bits(run(problem), expected)


# --- hostile inputs -------------------------------------------------------------------------------


@each_kernel
@pytest.mark.parametrize(
    ("mask", "dropout"),
    [
        *((mask, False) for mask in ("left", "query", "bits", "same_length", "chunks right")),
        ("all parts", True),
        ("window", True),
    ],
)
def test_nan_in_hidden_scores_reaches_nothing(mask, dropout, isa, dtype):
    operands, options = problem_of(dtype, mask=mask, segments=2, dropout=dropout)
    expected = run((operands, options))
    problem = make_problem(**{**SIZES, "heads": HEADS, "mask": mask})
    _, _, keys, memory = problem.sizes
    hidden = dense_hidden(problem.options["mask"], positions_of(problem), keys, memory)
    scores = operands["scores"].masked_fill(hidden[:, None], NAN)
    assert scores.isnan().any()
    assert_same_bits(run(({**operands, "scores": scores}, options)), expected)


@each_kernel
@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_nan_in_a_visible_score_fills_its_row(bad, isa, dtype):
    """A diverging model must show: a finite row in the place of NaN would hide it."""
    for key in (0, 11, 16, 22):
        operands, options = problem_of(dtype, segments=2)
        operands["scores"][1, 2, 3, key] = bad
        out = ops.masked_softmax(**operands, **options, backend="cpu")
        assert out[1, 2, 3].isnan().all(), key
        out[1, 2, 3] = 0
        assert out.isfinite().all(), key


@each_kernel
def test_nan_that_a_row_sees_in_its_window_fills_the_row(isa, dtype):
    operands, options = problem_of(dtype, queries=65, mask="window")
    operands["scores"][1, 2, 40, 46] = NAN
    leaves = {name: x.requires_grad_() for name, x in operands.items()}
    out = ops.masked_softmax(**leaves, **options, backend="cpu")
    grad = torch.autograd.grad(out, leaves["scores"], grad_of(out))[0]
    for x in (out.detach(), grad):
        assert x[1, 2, 40].isnan().all()
        x[1, 2, 40] = 0
        assert x.isfinite().all()


@each_kernel
def test_a_row_that_sees_nothing_is_uniform_and_has_gradients(isa, dtype):
    operands, options = problem_of(dtype, mask="nothing visible")
    actual = run((operands, options))
    keys = operands["scores"].shape[3]
    assert torch.equal(actual["out"], torch.full_like(actual["out"], 1 / keys))
    d_out = grad_of(actual["out"]).double()
    expected = options["scale"] / keys * (d_out - d_out.mean(-1, keepdim=True))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        actual["d scores"].double(), expected, atol=2 * eps / keys, rtol=2 * eps
    )


@each_kernel
@pytest.mark.parametrize("order", [(0, 2, 3, 1), (0, 3, 1, 2), (3, 2, 1, 0)])
def test_strides(order, isa, dtype):
    """Scores and gradients whose rows lie anywhere in memory, between NaN."""
    operands, options = problem_of(dtype, mask="all parts", segments=2)
    expected = run((operands, options))

    def strided(x: Tensor) -> Tensor:
        axes = [axis for axis in order if axis < x.dim()]
        sizes = [x.shape[axis] + 1 for axis in axes]
        buffer = torch.full(sizes, NAN, dtype=x.dtype)
        inverse = [axes.index(axis) for axis in range(x.dim())]
        view = buffer.permute(inverse)[tuple(slice(0, size) for size in x.shape)]
        return view.copy_(x)

    leaves = {name: strided(x).requires_grad_() for name, x in operands.items()}
    assert not leaves["scores"].is_contiguous()
    out = ops.masked_softmax(**leaves, **options, backend="cpu")
    grads = torch.autograd.grad(out, list(leaves.values()), strided(grad_of(out)))
    names = (f"d {name}" for name in leaves)
    assert_same_bits({"out": out.detach()} | dict(zip(names, grads, strict=True)), expected)


def test_outputs_with_strides_are_filled_and_nothing_around_them():
    operands, options = problem_of(torch.float32, mask="left")
    expected = run((operands, options))
    scores, position = operands["scores"], operands["position_scores"]
    inputs = SoftmaxInputs(
        scores, position, None, None, None, options["mask"], None, options["memory_length"],
        options["scale"],
    )  # fmt: skip

    def home(like: Tensor, innermost_first: bool) -> tuple[Tensor, Tensor]:
        b, n, i, j = like.shape
        if innermost_first:
            buffer = torch.full((b, j + 2, i, n), 777.0)
            return buffer, buffer[:, 1:-1].permute(0, 3, 2, 1)
        buffer = torch.full((b, i, n, j + 2), 777.0)
        return buffer, buffer[..., 1:-1].transpose(1, 2)

    for innermost_first in (False, True):
        (whole, out), *parts = (home(x, innermost_first) for x in (scores, scores, position))
        cpu_softmax.masked_softmax_forward(inputs, out)
        grads = [part for _, part in parts]
        cpu_softmax.masked_softmax_backward(inputs, out, grad_of(out), [*grads, torch.empty(0)])
        actual = {"out": out, "d scores": grads[0], "d position_scores": grads[1]}
        assert_same_bits({name: x.clone() for name, x in actual.items()}, expected)
        for buffer, part in ((whole, out), *parts):
            part.fill_(777.0)
            assert bool((buffer == 777.0).all()), "something beside the output was written"


# --- threads, dropout, autograd -------------------------------------------------------------------


@each_kernel
@pytest.mark.parametrize("dropout", [False, True])
def test_any_number_of_threads_gives_the_same_bits(dropout, isa, dtype):
    # 4 * 12 * 65 rows of 70 keys: enough for a dozen threads
    problem = problem_of(dtype, queries=65, memory=5, mask="all parts", segments=2, dropout=dropout)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(problem))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert_same_bits(other, results[0])


@each_isa
@pytest.mark.parametrize("keys", LENGTHS)
def test_dropout_keeps_what_the_generator_says(keys, isa):
    scores = torch.zeros(2, 3, 4, keys)
    positions = torch.zeros(2, 4, dtype=torch.int64)
    p = ops.masked_softmax(
        scores, positions=positions, memory_length=keys - 1, **DROPOUT, backend="cpu"
    )
    keep = keep_mask(SEED, 0.3, 2, 3, (0, 4), keys)
    assert torch.equal(p != 0, keep)
    torch.testing.assert_close(p, keep / (keys * 0.7))


@each_kernel
@pytest.mark.parametrize("wanted", ["scores", "position_scores", "segment_scores"])
def test_one_gradient_alone(wanted, isa, dtype):
    operands, options = problem_of(dtype, mask="left", segments=2)
    expected = run((operands, options))
    leaf = operands[wanted].requires_grad_()
    out = ops.masked_softmax(**operands, **options, backend="cpu")
    (grad,) = torch.autograd.grad(out, leaf, grad_of(out))
    assert torch.equal(grad, expected[f"d {wanted}"])


def test_a_gradient_that_is_one_number_expanded():
    operands, options = problem_of(torch.float32, mask="left", segments=2, dropout=True)
    leaf = operands["scores"].requires_grad_()
    out = ops.masked_softmax(**operands, **options, backend="cpu")
    (expanded,) = torch.autograd.grad(out.sum(), leaf, retain_graph=True)
    (dense,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
    assert torch.equal(expanded, dense)


@pytest.mark.parametrize("case", ["mask all parts", "dropout, positions", "scores alone"])
def test_opcheck(case):
    dtype = torch.bfloat16 if case == "scores alone" else torch.float32
    operands, options = problem_of(dtype, **{**CASES[case], "batch": 2, "queries": 9})
    mask = options["mask"]
    names = ("scores", "position_scores", "segment_scores")
    floats = [None if (x := operands.get(name)) is None else x[:, :2] for name in names]
    segmented = floats[2] is not None
    rest = (
        *(options[name] if segmented else None for name in ("segments_q", "segments_k")),
        *mask.tensors, options.get("positions"), options.get("seed"), *mask.flags,
        options["memory_length"], 0.5, options.get("dropout_p", 0.0), "cpu",
    )  # fmt: skip
    leaves = [None if x is None else x.clone().requires_grad_() for x in floats]
    op = torch.ops.xlnet_fast
    torch.library.opcheck(op.masked_softmax.default, (*leaves, *rest))
    out = op.masked_softmax(*floats, *rest)
    torch.library.opcheck(
        op.masked_softmax_backward.default, (torch.ones_like(out), out, *floats, *rest)
    )


def test_memory_is_a_few_rows_and_no_second_table():
    """Beside the result nothing of the size of the scores is allocated by torch."""
    scores = torch.randn(1, 2, 64, 512)
    empty, mask = (None,) * 4, AttentionMask(causal=True)
    inputs = SoftmaxInputs(scores, *empty, mask, None, 448, 1.0, 0.1, SEED)
    out = torch.empty_like(scores)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        cpu_softmax.masked_softmax_forward(inputs, out)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert allocated < scores[0, 0, 0].nbytes


# --- what is refused, and who runs what -----------------------------------------------------------


def test_auto_takes_it_where_it_can():
    assert choose(Request("masked_softmax", "cpu", torch.bfloat16)).backend == "cpu"
    assert choose(Request("masked_softmax", "cpu", F64)).backend == "sdpa"
    with pytest.raises(BackendUnavailable, match="not float64"):
        choose(Request("masked_softmax", "cpu", F64), "cpu")


def test_concat_memory_is_left_to_plain_copies():
    """torch copies at the speed of memory: the backend has no such op, and models still run."""
    hidden = torch.randn(4, 2, 3)
    with pytest.raises(BackendUnavailable, match="it has no concat_memory"):
        ops.concat_memory(hidden, backend="cpu")
    assert named_or_auto("concat_memory", "cpu") == "auto"
    assert named_or_auto("masked_softmax", "cpu") == "cpu"


@pytest.mark.parametrize("name", ["segments_q", "segments_k", "rank_q", "rank_k"])
def test_numbers_beyond_32_bits_are_refused(name):
    operands, options = problem_of(torch.float32, mask="query", segments=2)
    values = options if name in options else vars(options["mask"])
    too_large = values[name].long() + 2**32
    if name in options:
        options[name] = too_large
    else:
        options["mask"] = AttentionMask(**{**vars(options["mask"]), name: too_large})
    with pytest.raises(ArgumentError, match=f"{name} holds numbers beyond 32 bits"):
        ops.masked_softmax(**operands, **options, backend="cpu")


REFUSED: dict[str, tuple[str, Any, type[Exception], str]] = {
    # the argument, its new value from the right one, the error and its message
    "dtype": ("scores", lambda x: x.double(), ArgumentError, "takes float32, bfloat16 and float16"),
    "rank": ("scores", lambda x: x[0], ShapeError, "scores has shape .* expected .B, N, I, J"),
    "position": ("position_scores", lambda x: x[:1], ShapeError, "position_scores has shape"),
    "half": ("position_scores", lambda x: x.half(), ArgumentError, "expected torch.float32 as"),
    "segments": ("segments_q", lambda _: None, ArgumentError, "give all three or none"),
    "keys": ("segments_k", lambda x: x[:, 1:], ShapeError, "segments_k has shape"),
    "positions": ("positions", lambda _: torch.zeros(2, 3).long(), ShapeError, "positions has"),
    "memory": ("memory_length", lambda _: 24, ArgumentError, "memory_length is 24, expected 0 to"),
    "out": ("out", lambda x: x[..., 1:], ShapeError, "out has shape"),
    "out dtype": ("out", lambda x: x.half(), ArgumentError, "out has dtype torch.float16"),
    "seed": ("dropout_p", lambda _: 0.5, ArgumentError, "needs a seed of one int64"),
    "device": ("segments_k", lambda x: x.to("meta"), ArgumentError, "segments_k is on meta"),
    "mask": ("mask", lambda _: AttentionMask(key_padding=torch.zeros(1, 1).bool()),
             ShapeError, "mask.key_padding has shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_kernels_entry(name):
    operands, options = problem_of(torch.float32, segments=2)
    names = ("segments_q", "segments_k", "mask", "memory_length", "scale")
    arguments = {
        **operands, **{name: options[name] for name in names}, "positions": None,
        "dropout_p": 0.0, "seed": None, "out": torch.empty_like(operands["scores"]),
    }  # fmt: skip

    def run_kernel(out: Tensor, **inputs: Any) -> None:
        cpu_softmax.masked_softmax_forward(SoftmaxInputs(**inputs), out)

    run_kernel(**arguments)
    changed, change, error, message = REFUSED[name]
    arguments[changed] = change(arguments[changed])
    with pytest.raises(error, match=message):
        run_kernel(**arguments)
