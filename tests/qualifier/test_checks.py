"""The checks find what a kernel may do wrong, each where it does it, on the CPU for real."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace

import pytest
import torch

from xlnet_fast.kernels.sdpa import concat_memory as sdpa_memory
from xlnet_fast.kernels.sdpa import masked_softmax as sdpa_softmax
from xlnet_fast.kernels.sdpa import rel_attention as sdpa_attention
from xlnet_fast.ops import _dispatch
from xlnet_fast.ops.qualification.record import BACKWARD, CLASSES, FORWARD, covering
from xlnet_fast.qualifier import checks, problems
from xlnet_fast.qualifier.availability import why_unavailable
from xlnet_fast.qualifier.cases import hostile_problems, timed_problems
from xlnet_fast.qualifier.huggingface import eager_call
from xlnet_fast.qualifier.small_ops import LinearProblem, linear_problem
from xlnet_fast.qualifier.tasks import Task, tasks_of

CPU = torch.device("cpu")
PLAIN = Task("rel_attention", "plain", "float32", 16)
MEMORY = Task("rel_attention", "memory", "float32", 16)
SOFTMAX = Task("masked_softmax", "all", "float32")
SMALL = [
    PLAIN,
    MEMORY,
    Task("rel_attention", "dense", "bfloat16", 16),
    Task("rel_attention", "speech", "float32", 16),
    Task("two_stream_attention", "permuted", "float32", 20),
    SOFTMAX,
]


def small_problems(task: Task):
    return hostile_problems(task, CPU, full=False)


def verdict(task: Task, direction: str, backend: str = "sdpa"):
    return checks.check(small_problems(task), backend, direction, CPU)


@pytest.mark.parametrize("task", SMALL, ids=lambda task: task.name)
@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_a_right_backend_passes(task, direction):
    found = verdict(task, direction)
    assert (found.status, found.reason) == ("passed", "")
    assert 0 < found.error <= found.bound


def test_a_copy_passes_and_a_wrong_one_does_not(monkeypatch):
    task = Task("concat_memory", "all", "float32")
    assert task.directions == (FORWARD,)
    assert verdict(task, FORWARD).status == "passed"

    def off(hidden, memory, start, kept, out):
        copy(hidden, memory, start, kept, out)
        out[-1, -1] = torch.nextafter(out[-1, -1], torch.tensor(torch.inf))

    copy = sdpa_memory.concat_memory_forward
    monkeypatch.setattr(sdpa_memory, "concat_memory_forward", off)
    assert verdict(task, FORWARD).reason == "call 1: out 2 is no copy"


# --- backends that are wrong ----------------------------------------------------------------------


@pytest.fixture
def forward(monkeypatch):
    """Replaces backend sdpa's forward kernel by itself and something done to its outputs after."""
    real = sdpa_attention.rel_attention_forward

    def replaced_by(spoil):
        def forward(keys, streams, outs, stats):
            real(keys, streams, outs, stats)
            spoil(keys, outs)

        monkeypatch.setattr(sdpa_attention, "rel_attention_forward", forward)

    return replaced_by


def test_a_little_off_in_one_class_is_found_in_that_class(forward):
    def spoil(keys, outs):
        if keys.k_memory is not None:
            outs[0][-1, -1, -1, -1] += 1.5 * bound

    bound = next(checks.Yardstick(p, FORWARD).bounds["out 0"] for p in small_problems(MEMORY))
    forward(spoil)
    assert verdict(PLAIN, FORWARD).status == "passed"
    found = verdict(MEMORY, FORWARD)
    assert found.status == "failed"
    assert found.reason.startswith("call 1: out 0 is off by ")
    assert found.bound == bound < found.error < 1.9 * bound


def test_an_output_that_is_not_written_is_infinitely_wrong(forward):
    forward(lambda keys, outs: outs[0][-1].fill_(float("nan")))
    found = verdict(PLAIN, FORWARD)
    assert (found.status, found.error) == ("failed", None)
    assert found.reason.startswith("call 1: out 0 is off by inf, allowed")


@pytest.mark.parametrize("step", [1, 100])
@pytest.mark.parametrize("side", ["before", "behind"])
def test_a_write_outside_of_an_output_is_found(forward, step, side):
    def spoil(keys, outs):
        out = outs[0]
        if out.untyped_storage().nbytes() > out.numel() * out.itemsize:  # between guard bands
            offset = -step if side == "before" else out.numel() - 1 + step
            out.as_strided((1,), (1,), out.storage_offset() + offset).zero_()

    forward(spoil)
    assert verdict(PLAIN, FORWARD).reason == "call 1: wrote outside of out 0"
    assert verdict(MEMORY, BACKWARD).reason == "call 1: wrote outside of out 0"


def test_other_bits_in_a_second_run_are_found(forward):
    turn = itertools.count()

    def spoil(keys, outs):
        if next(turn) == 2:  # the first call is the op's own, the second the first launch
            outs[0][0, 0, 0, 0] = torch.nextafter(outs[0][0, 0, 0, 0], torch.tensor(torch.inf))

    forward(spoil)
    found = verdict(PLAIN, FORWARD)
    assert found.status == "failed"
    assert found.reason == "call 1: out 0 has other bits than the op"


def test_a_wrong_gradient_leaves_the_forward_pass_in_peace(monkeypatch):
    real = sdpa_attention.rel_attention_backward

    def spoiled(keys, streams, outs, stats, grad_outs, grads, deterministic):
        real(keys, streams, outs, stats, grad_outs, grads, deterministic)
        grads[5] *= 1.001  # of r

    monkeypatch.setattr(sdpa_attention, "rel_attention_backward", spoiled)
    assert verdict(PLAIN, FORWARD).status == "passed"
    found = verdict(PLAIN, BACKWARD)
    assert found.status == "failed"
    assert found.reason.startswith("call 1: d r is off by")


def test_gradients_that_differ_from_run_to_run_are_found(monkeypatch):
    real, turn = sdpa_softmax.masked_softmax_backward, itertools.count()

    def spoiled(inputs, out, grad_out, grads):
        real(inputs, out, grad_out, grads)
        grads[0][0, 0, 0, 0] += next(turn) * 1e-8

    monkeypatch.setattr(sdpa_softmax, "masked_softmax_backward", spoiled)
    assert verdict(SOFTMAX, BACKWARD).reason == "call 1: d scores has other bits than a second run"


def test_gradients_that_differ_in_deterministic_mode_are_found(monkeypatch):
    real, turn = sdpa_attention.rel_attention_backward, itertools.count()

    def spoiled(keys, streams, outs, stats, grad_outs, grads, deterministic):
        real(keys, streams, outs, stats, grad_outs, grads, deterministic)
        if torch.are_deterministic_algorithms_enabled():  # of the op; a launch is told
            grads[5] += next(turn) * 1e-8

    monkeypatch.setattr(sdpa_attention, "rel_attention_backward", spoiled)
    why = "call 1: d r has other bits than a second run in deterministic mode"
    assert verdict(PLAIN, BACKWARD).reason == why


def test_gradients_that_only_the_op_gets_right_are_found(monkeypatch):
    real, turn = sdpa_softmax.masked_softmax_backward, itertools.count()

    def spoiled(inputs, out, grad_out, grads):
        real(inputs, out, grad_out, grads)
        if next(turn) > 0:  # the first call is the op's own
            grads[0][0, 0, 0, 0] += 0.5

    monkeypatch.setattr(sdpa_softmax, "masked_softmax_backward", spoiled)
    assert verdict(SOFTMAX, BACKWARD).reason.startswith("call 1: d scores is off by 0.5")


def test_an_exception_is_a_verdict(forward):
    def spoil(keys, outs):
        raise RuntimeError("CUDA error: invalid argument\nfurther lines")

    forward(spoil)
    found = verdict(PLAIN, BACKWARD)
    assert found.status == "failed"
    assert found.reason == "call 1: raised RuntimeError: CUDA error: invalid argument"


def test_linear_layers_are_held_to_the_same_rule(monkeypatch):
    monkeypatch.setattr(LinearProblem, "launch", lambda self, backend, guards, grads: (
        self.run(self.operands, backend), {}
    ))  # fmt: skip
    task = Task("linear", "all", "float32")
    assert verdict(task, BACKWARD, "aten").status == "passed"

    def off(self, operands, backend):
        return tuple(1.0001 * out for out in self.reference(operands))

    monkeypatch.setattr(LinearProblem, "run", off)
    assert verdict(task, FORWARD, "cpu").reason.startswith("call 1: out 0 is off by")
    assert linear_problem(task, (3, 4, 5), CPU).operands["x"].shape == (1, 3, 4)


@pytest.mark.parametrize("task", [MEMORY, SOFTMAX], ids=lambda task: task.name)
def test_offsets_beyond_32_bits_are_asked_for_where_there_is_memory(task, monkeypatch):
    """On a GPU; here with a smaller distance, as four gigabytes of NaN take long to write."""
    assert problems.FAR == 2**31
    assert not problems.fits_far(torch.bfloat16, CPU)
    monkeypatch.setattr(problems, "FAR", 2**21)
    near = list(hostile_problems(task, CPU, full=True))
    monkeypatch.setattr("xlnet_fast.qualifier.cases.fits_far", lambda dtype, device: True)
    half = replace(task, dtype="bfloat16")
    *others, far = hostile_problems(half, CPU, full=True)
    assert len(others) == len(near)
    names = ("q", "k", "v", "k_memory") if task is MEMORY else ("scores",)
    assert all(far.operands[name].stride(0) >= 2**21 for name in names)
    found = checks.check([far], "sdpa", BACKWARD, CPU)
    assert (found.status, found.reason) == ("passed", "")


# --- what is asked --------------------------------------------------------------------------------


def asked(monkeypatch, problem, backend: str) -> set[tuple[str, ...]]:
    """The features of the calls that the dispatcher is asked for, as it sees them."""
    seen = set()
    real = _dispatch.choose

    def choose(request, name="auto"):
        seen.add(request.features)
        return real(request, name)

    for module in ("rel_attention", "masked_softmax", "concat_memory"):
        # The module, whose name in its package is that of the function.
        monkeypatch.setattr(importlib.import_module(f"xlnet_fast.ops.{module}"), "choose", choose)
    problem.run(problem.operands, backend)
    return seen


@pytest.mark.parametrize(
    "task",
    [t for t in tasks_of("cpu", "sdpa", False) if t.dtype == "float32"],
    ids=lambda task: task.name,
)
def test_the_calls_of_a_class_are_of_that_class(task, monkeypatch):
    """The first has all its features; no call has any other; the timed ones are covered by it."""
    calls = list(hostile_problems(task, CPU, full=True))
    features = [asked(monkeypatch, call, "sdpa") for call in calls]
    everything = CLASSES[task.op][task.operands]
    unsaid = {"memory"} if task.op == "masked_softmax" else set()  # of which it takes no tensor
    assert {frozenset({*f, *unsaid}) for f in features[0]} == {everything | unsaid}
    assert all(set(f) <= everything | unsaid for seen in features for f in seen)
    _, make = next(iter(timed_problems(task, CPU, full=False)))
    (seen,) = asked(monkeypatch, make(), "sdpa")
    assert covering(task.op, set(seen) - unsaid) == task.operands


@pytest.mark.parametrize(
    "task", [*SMALL, Task("concat_memory", "all", "float32")], ids=lambda t: t.name
)
def test_hugging_face_computes_the_same(task, monkeypatch):
    """What is timed as its code gives our results, dropout left out."""
    monkeypatch.setattr("xlnet_fast.qualifier.attention.DROPOUT_P", 0.0)
    monkeypatch.setattr("xlnet_fast.qualifier.small_ops.DROPOUT_P", 0.0)
    monkeypatch.setattr("xlnet_fast.qualifier.cases._SHAPES", {"cpu": ((2, 24),)})
    monkeypatch.setattr("xlnet_fast.qualifier.cases.HEADS", 2)
    _, make = next(iter(timed_problems(task, CPU, full=False)))
    problem = make()
    call, leaves = eager_call(problem)
    tolerance = 1e-5 if task.dtype == "float32" else 0.05
    with torch.no_grad():
        for theirs, ours in zip(call(), problem.reference(problem.operands), strict=True):
            if task.op not in ("masked_softmax", "concat_memory"):
                theirs = theirs.transpose(0, 1)
            torch.testing.assert_close(theirs, ours, atol=tolerance, rtol=tolerance)
    outs = call()
    if leaves:
        grads = torch.autograd.grad(outs, leaves, [torch.ones_like(out) for out in outs])
        assert all(grad.isfinite().all() for grad in grads)


def test_what_a_backend_cannot_run_is_told_in_the_dispatcher_s_words():
    reason = why_unavailable(PLAIN, "triton", FORWARD, CPU)
    assert reason == "it runs on cuda, not on cpu"
    assert why_unavailable(PLAIN, "sdpa", BACKWARD, CPU) is None
