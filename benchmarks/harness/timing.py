"""Timing: interleaved rounds of all providers, percentiles, and ratios of paired rounds.

A machine that serves others speeds up and slows down by the minute. So the providers of one case
take turns, every round runs each of them once in rotated order, and a speed-up is the median of the
ratios within a round, never the ratio of two figures taken minutes apart.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

Function = Callable[[], Any]
# Larger than any L2 cache of today (B200: 126 MB), written before each CUDA sample.
_FLUSH_BYTES = 256 * 2**20
# A call this long needs no second one to find the number of repeats.
_LONG_CALL_US = 1e6


class Timer(Protocol):
    """Times a function: `repeats` calls, one result in microseconds per call."""

    def time_us(self, function: Function, repeats: int) -> float: ...


class CpuTimer:
    """Wall time on the host, one reading over all repeats, so short calls count too."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def time_us(self, function: Function, repeats: int) -> float:
        """Return the mean time of `repeats` calls in microseconds."""
        start = self._clock()
        for _ in range(repeats):
            function()
        return (self._clock() - start) * 1e6 / repeats


class CudaTimer:
    """Time on the device between two events around each call, with the L2 cache flushed before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)

    def time_us(self, function: Function, repeats: int) -> float:
        """Return the median over `repeats` calls of the device time in microseconds."""
        with torch.cuda.device(self._device):
            events = [
                (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
                for _ in range(repeats)
            ]
            for start, end in events:
                self._flush.zero_()
                start.record()
                function()
                end.record()
            torch.cuda.synchronize(self._device)
        return statistics.median(start.elapsed_time(end) * 1e3 for start, end in events)


def make_timer(device: torch.device | str) -> Timer:
    """Return the timer of a device; raises ValueError for one that is neither cpu nor cuda."""
    device = torch.device(device)
    if device.type == "cpu":
        return CpuTimer()
    if device.type == "cuda":
        return CudaTimer(device)
    raise ValueError(f"no timer for device {device}; benchmarks run on cpu and cuda")


@dataclass(frozen=True)
class Plan:
    """How long to measure one case: `min_rounds` to `max_rounds`, about `budget_s` seconds."""

    min_rounds: int = 3
    max_rounds: int = 20
    budget_s: float = 10.0
    min_sample_us: float = 10_000.0
    max_repeats: int = 50

    def __post_init__(self) -> None:
        if not 1 <= self.min_rounds <= self.max_rounds:
            raise ValueError(
                f"rounds must satisfy 1 <= min <= max, got {self.min_rounds} and {self.max_rounds}"
            )


@dataclass
class Measurement:
    """The samples of one provider, one per round, in microseconds; or why there are none."""

    samples_us: list[float] = field(default_factory=list)
    failure: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every round gave a sample."""
        return self.failure is None and bool(self.samples_us)

    def percentile_us(self, percent: int) -> float:
        """Return a percentile of the samples in microseconds."""
        return percentile(self.samples_us, percent)


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return a percentile by linear interpolation between the two nearest samples."""
    if not samples:
        raise ValueError("a percentile needs at least one sample")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent must lie in 0..100, got {percent}")
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def paired_ratio(base: Measurement, other: Measurement) -> float:
    """Return the median over rounds of time(base) / time(other): how much faster `other` is.

    Raises ValueError when the two did not take part in the same rounds.
    """
    if len(base.samples_us) != len(other.samples_us) or not base.samples_us:
        raise ValueError(
            "a paired ratio needs the same rounds of both, "
            f"got {len(base.samples_us)} and {len(other.samples_us)}"
        )
    pairs = zip(base.samples_us, other.samples_us, strict=True)
    return statistics.median(b / o for b, o in pairs)


def paired_spread(base: Measurement, other: Measurement) -> float | None:
    """Return the middle 60% of the rounds' ratios over their median; None for fewer than three."""
    if not base.ok or not other.ok or min(len(base.samples_us), len(other.samples_us)) < 3:
        return None
    ratios = [b / o for b, o in zip(base.samples_us, other.samples_us, strict=True)]
    return (percentile(ratios, 80) - percentile(ratios, 20)) / statistics.median(ratios)


def measure(
    functions: Mapping[str, Function],
    timer: Timer,
    plan: Plan,
    *,
    warm_us: Mapping[str, float] | None = None,
    on_step: Callable[[str], None] = lambda name: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Measurement]:
    """Time every function in interleaved rounds.

    Each is called before the rounds (compilation, caches, allocator), except those in `warm_us`,
    which were called already and took that many microseconds, a second or more. A function that
    raises keeps its reason in `Measurement.failure` and leaves the rounds; the others go on.
    `on_step(name)` is called before each sample, for a progress bar.
    """
    results = {name: Measurement() for name in functions}
    repeats: dict[str, int] = {}
    for name, function in functions.items():
        once = (warm_us or {}).get(name, 0.0)
        if once < _LONG_CALL_US:
            on_step(name)
            try:
                once = timer.time_us(function, 1)
                if once < _LONG_CALL_US:
                    once = timer.time_us(function, 1)  # the first may have compiled
            except Exception as error:
                results[name].failure = describe(error)
                continue
        wanted = plan.min_sample_us / max(once, 1e-3)
        repeats[name] = max(1, min(plan.max_repeats, round(wanted)))
    gc.collect()
    start = clock()
    for i_round in range(plan.max_rounds):
        if i_round >= plan.min_rounds and clock() - start > plan.budget_s:
            break
        names = [name for name in functions if results[name].failure is None]
        turn = i_round % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            on_step(name)
            try:
                sample = timer.time_us(functions[name], repeats[name])
            except Exception as error:
                results[name] = Measurement(failure=describe(error))
                continue
            results[name].samples_us.append(sample)
    return results


def describe(error: BaseException) -> str:
    """Return one line that names an exception and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else '(no message)'}"[:300]


class Deadline:
    """A point in time after which no new case is begun."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds

    def left_s(self) -> float:
        """Return the seconds left, infinity without a limit."""
        return float("inf") if self._end is None else self._end - self._clock()

    def passed(self) -> bool:
        """Whether the time is over."""
        return self.left_s() <= 0
