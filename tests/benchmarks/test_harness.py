"""Statistics and rounds, on clocks that the test winds itself."""

import math

import pytest
import torch

from benchmarks.harness.memory import host_peak_mib
from benchmarks.harness.timing import (
    CpuTimer,
    Deadline,
    Measurement,
    Plan,
    describe,
    make_timer,
    measure,
    paired_ratio,
    percentile,
)


class FakeClock:
    """Seconds that pass only when a function under test says so."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def work(self, name, *seconds):
        """A function that takes the given seconds, call by call, then repeats the last."""
        left = list(seconds)

        def run():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def run_rounds(clock, functions, **plan):
    plan = Plan(**({"min_rounds": 3, "max_rounds": 3, "min_sample_us": 1.0} | plan))
    return measure(functions, CpuTimer(clock), plan, clock=clock)


def test_times_and_percentiles_are_those_of_the_clock():
    clock = FakeClock()
    # A first call above a second is not made twice before the rounds.
    result = run_rounds(clock, {"a": clock.work("a", 9, 8, 0.01, 0.02)})["a"]
    assert result.samples_us == pytest.approx([8e6, 1e4, 2e4])
    clock = FakeClock()
    result = run_rounds(clock, {"a": clock.work("a", 0.5, 0.5, 0.01, 0.02, 0.06)})["a"]
    assert result.samples_us == pytest.approx([1e4, 2e4, 6e4])
    assert result.percentile_us(50) == pytest.approx(2e4)
    assert result.percentile_us(20) == pytest.approx(1.4e4)
    assert result.percentile_us(80) == pytest.approx(4.4e4)


def test_rounds_interleave_and_rotate():
    clock = FakeClock()
    run_rounds(clock, {name: clock.work(name, 0.1) for name in "abc"})
    assert "".join(clock.calls) == "aabbcc" + "abc" + "bca" + "cab"


def test_short_calls_are_repeated_within_a_sample():
    clock = FakeClock()
    plan = {"min_sample_us": 1000.0, "max_repeats": 50, "min_rounds": 1, "max_rounds": 1}
    functions = {"short": clock.work("s", 1e-4), "shorter": clock.work("t", 1e-6)}
    result = run_rounds(clock, functions, **plan)
    assert clock.calls.count("s") == 2 + 10
    assert clock.calls.count("t") == 2 + 50
    assert result["short"].samples_us == pytest.approx([100.0])
    assert result["shorter"].samples_us == pytest.approx([1.0])


def test_the_budget_ends_the_rounds_but_not_before_the_minimum():
    clock = FakeClock()
    plan = {"min_rounds": 2, "max_rounds": 100}
    slow = run_rounds(clock, {"a": clock.work("a", 0.9)}, budget_s=0.5, **plan)
    assert len(slow["a"].samples_us) == 2
    quick = run_rounds(clock, {"a": clock.work("a", 0.1)}, budget_s=0.55, **plan)
    assert len(quick["a"].samples_us) == 6


def test_a_long_call_already_made_is_not_made_again_to_warm_up():
    clock = FakeClock()
    functions = {"long": clock.work("l", 5.0), "short": clock.work("s", 0.1)}
    warm = {"long": 5e6, "short": 1e5}
    plan = Plan(min_rounds=1, max_rounds=1)
    measure(functions, CpuTimer(clock), plan, warm_us=warm, clock=clock)
    assert "".join(clock.calls) == "ss" + "ls"


def test_a_failing_function_leaves_and_the_others_go_on():
    clock = FakeClock()
    calls = 0

    def fails_later():
        nonlocal calls
        calls += 1
        clock.now += 0.1
        if calls == 4:
            raise MemoryError("no room\nsecond line")

    def fails_at_once():
        raise ValueError("wrong shape")

    functions = {"a": clock.work("a", 0.1), "later": fails_later, "never": fails_at_once}
    results = run_rounds(clock, functions, max_rounds=4)
    assert results["later"].failure == "MemoryError: no room"
    assert results["never"].failure == "ValueError: wrong shape"
    assert not results["later"].ok
    assert results["later"].samples_us == []
    assert len(results["a"].samples_us) == 4


def test_ratios_are_paired_by_round():
    # The machine slows down threefold in the middle: each round still says 2.
    base = Measurement([20.0, 60.0, 22.0])
    ours = Measurement([10.0, 30.0, 11.0])
    assert paired_ratio(base, ours) == pytest.approx(2.0)
    # The ratio of medians would be 20 / 11.
    assert paired_ratio(Measurement([20.0, 10.0, 90.0]), ours) == pytest.approx(2.0)


def test_ratios_of_different_rounds_are_refused():
    with pytest.raises(ValueError, match="same rounds of both, got 2 and 3"):
        paired_ratio(Measurement([1.0, 2.0]), Measurement([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="same rounds"):
        paired_ratio(Measurement(), Measurement())


def test_percentile_edges():
    assert percentile([7.0], 20) == 7.0
    assert percentile([4.0, 1.0, 3.0, 2.0], 0) == 1.0
    assert percentile([4.0, 1.0, 3.0, 2.0], 100) == 4.0
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 50)
    with pytest.raises(ValueError, match="percent must lie"):
        percentile([1.0], 101)


def test_bad_plans_and_devices():
    with pytest.raises(ValueError, match="got 4 and 3"):
        Plan(min_rounds=4, max_rounds=3)
    with pytest.raises(ValueError, match="no timer for device meta"):
        make_timer("meta")


def test_deadline():
    clock = FakeClock()
    deadline = Deadline(10, clock)
    clock.now = 9.5
    assert not deadline.passed()
    assert deadline.left_s() == pytest.approx(0.5)
    clock.now = 10
    assert deadline.passed()
    assert Deadline(None).left_s() == math.inf


def test_describe_is_one_line():
    assert describe(RuntimeError("\n first\nsecond")) == "RuntimeError: first"
    assert describe(KeyError()) == "KeyError: (no message)"


@pytest.mark.usefixtures("high_water_mark")
def test_host_peak_memory_sees_temporaries_and_the_result():
    def run():
        scratch = torch.ones(48 * 2**18)  # 48 MiB
        return scratch[: 16 * 2**18] + 1  # 16 MiB beside it

    assert 60 < host_peak_mib(run) < 90


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_timer_sees_more_work_take_longer():
    timer = make_timer("cuda")
    small, large = torch.randn(64, 64, device="cuda"), torch.randn(8192, 8192, device="cuda")
    assert 0 < timer.time_us(lambda: small @ small, 5) * 5 < timer.time_us(lambda: large @ large, 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_peak_memory():
    from benchmarks.harness.memory import cuda_peak_mib

    peak = cuda_peak_mib(lambda: torch.ones(2**20, device="cuda") + 1, torch.device("cuda"))
    assert peak == pytest.approx(8.0)
