"""Times: rounds in turns, rivals that fail left out."""

from __future__ import annotations

import sys

import pytest
import torch

from xlnet_fast.qualifier import timing
from xlnet_fast.qualifier.small_ops import linear_problem, softmax_problem
from xlnet_fast.qualifier.tasks import Task
from xlnet_fast.qualifier.timing import interleaved, time_problem

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """Time passes by what the functions say that they take."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def taking(seconds: float, log: list[str] | None = None, name: str = ""):
        def function():
            now[0] += seconds
            if log is not None:
                log.append(name)

        return function

    return taking


def test_medians_are_of_one_call_each(clock):
    times = interleaved({"ours": clock(0.002), "hf": clock(0.5)}, CPU, budget_s=0.0)
    assert times == {"ours": pytest.approx(2000.0), "hf": pytest.approx(500_000.0)}


def test_each_round_begins_with_another(clock):
    log: list[str] = []
    functions = {name: clock(1.0, log, name) for name in ("a", "b", "c")}
    interleaved(functions, CPU, budget_s=0.0)
    assert log == [*"abc", *"abc", *"bca", *"cab"]


def test_a_rival_that_fails_is_left_out_and_ours_is_not(clock):
    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory")

    times = interleaved({"ours": clock(0.002), "hf": fails}, CPU, budget_s=0.0)
    assert times == {"ours": pytest.approx(2000.0), "hf": None}
    with pytest.raises(torch.OutOfMemoryError):
        interleaved({"ours": fails, "hf": clock(0.002)}, CPU, budget_s=0.0)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_plain_path_and_hugging_face_are_timed_beside_a_backend(direction):
    problem = softmax_problem(
        Task("masked_softmax", "all", "float32"), (1, 2, 16, 8), CPU, hostile=False
    )
    found = time_problem("1x16", problem, "reference", direction, CPU, budget_s=0.0)
    assert found.shape == "1x16"
    assert min(found.time_us, found.baseline_us, found.hf_us) > 0
    plain = time_problem("1x16", problem, "sdpa", direction, CPU, budget_s=0.0)
    assert plain.baseline_us == plain.time_us


def test_a_hugging_face_that_cannot_be_imported_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "xlnet_fast.qualifier.huggingface", None)
    task = Task("masked_softmax", "all", "float32")
    problem = softmax_problem(task, (1, 2, 16, 8), CPU, hostile=False)
    found = time_problem("1x16", problem, "sdpa", "forward", CPU, budget_s=0.0)
    assert found.time_us > 0
    assert found.hf_us is None


def test_linear_layers_are_timed_beside_pytorch_s_alone():
    problem = linear_problem(Task("linear", "all", "float32"), (4, 8, 8), CPU, "gelu")
    found = time_problem("4x8x8", problem, "cpu", "backward", CPU, budget_s=0.0)
    assert found.baseline_us > 0
    assert found.hf_us is None
