"""How fast a backend is beside its rivals: rounds in which each of them has its turn.

A machine that serves others speeds up and slows down by the minute, so times of one shape are
taken in turns within a round, and compared only with each other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from xlnet_fast.ops.qualification.record import BACKWARD, Timing
from xlnet_fast.qualifier.problems import Problem
from xlnet_fast.qualifier.small_ops import LinearProblem

Function = Callable[[], object]
OURS, BASELINE, HF = "ours", "baseline", "hf"
LEAST_ROUNDS, MOST_ROUNDS, WARM_CALLS = 3, 15, 2
MOST_S = 0.5
"""Seconds of rounds that no call needs more of."""
LONG_S = 0.02
"""A call that took so long is as warm after one as after two."""
SAMPLE_S = 0.004
"""A reading covers as many calls as fit in this, so that the clock's own grain does not count."""


def time_problem(
    shape: str,
    problem: Problem,
    backend: str,
    direction: str,
    device: torch.device,
    budget_s: float,
) -> Timing:
    """Medians of a backend, the plain path and Hugging Face's code on one call.

    Args:
        budget_s: after which no further round is begun, once there are three.

    Raises:
        Exception: what the backend raises. A rival that raises is left out.
    """
    baseline = "aten" if isinstance(problem, LinearProblem) else "sdpa"
    functions = {OURS: function_of(problem, backend, direction)}
    if backend != baseline:
        functions[BASELINE] = function_of(problem, baseline, direction)
    rival = _rival(problem)
    if rival is not None:
        call, leaves = rival
        functions[HF] = _whole_pass(call, leaves) if direction == BACKWARD else _inference(call)
    times = interleaved(functions, device, budget_s)
    own = times[OURS]
    assert own is not None  # or it raised
    return Timing(shape, own, times.get(BASELINE) if backend != baseline else own, times.get(HF))


def _rival(problem: Problem) -> tuple[Callable[[], tuple[Tensor, ...]], list[Tensor]] | None:
    """Hugging Face's call; None where it has none, or cannot be imported, no fault of ours."""
    try:
        from xlnet_fast.qualifier.huggingface import eager_call  # seconds, for transformers

        return eager_call(problem)
    except Exception:
        return None


def interleaved(
    functions: Mapping[str, Function], device: torch.device, budget_s: float
) -> dict[str, float | None]:
    """Median microseconds a call, by name; None for a function other than the first that raised."""
    began = time.monotonic()
    failed: set[str] = set()
    calls: dict[str, int] = {}
    first = next(iter(functions))
    for name, function in functions.items():
        try:
            for _ in range(WARM_CALLS):
                once_s = _seconds(function, 1, device)
                if once_s > LONG_S:
                    break
        except Exception:  # out of memory, mostly
            if name == first:
                raise
            failed.add(name)
            continue
        calls[name] = max(1, min(50, round(SAMPLE_S / max(once_s, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(MOST_ROUNDS):
        if turn >= LEAST_ROUNDS and time.monotonic() - began > budget_s:
            break
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            seconds = _seconds(functions[name], calls[name], device)
            samples[name].append(seconds / calls[name] * 1e6)
    medians: dict[str, float | None] = dict.fromkeys(failed)
    return medians | {name: statistics.median(values) for name, values in samples.items()}


def _seconds(function: Function, calls: int, device: torch.device) -> float:
    """Of so many calls, on the device's own clock where it has one."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(calls):
            function()
        return time.perf_counter() - began
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(calls):
            function()
        end.record()
        torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1e3


def function_of(problem: Problem, backend: str, direction: str) -> Function:
    """The pass of a call that is timed: forward in inference, or forward and backward."""
    if direction != BACKWARD:
        return _inference(lambda: problem.run(problem.operands, backend))
    leaves = problem.leaves()
    return _whole_pass(lambda: problem.run(leaves, backend), list(leaves.values()))


def _inference(call: Callable[[], tuple[Tensor, ...]]) -> Function:
    def run() -> object:
        with torch.no_grad():
            return call()

    return run


def _whole_pass(call: Callable[[], tuple[Tensor, ...]], leaves: Sequence[Tensor]) -> Function:
    """Forward and backward, for a gradient of the outputs that is made beforehand."""
    with torch.no_grad():
        grads = [torch.randn_like(out) for out in call()]

    def run() -> object:
        return torch.autograd.grad(call(), leaves, grads)

    return run
