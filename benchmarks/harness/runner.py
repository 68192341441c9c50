"""Runs one case: check everything first, then time what is correct, then write the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..harness import check as checking
from ..providers.work import Tensors, Work
from .quiet import Quiet
from .record import ResultsWriter, Row
from .timing import Measurement, Plan, Timer, describe, measure, paired_ratio, paired_spread

HF_EAGER = "hf_eager"
HF_COMPILE = "hf_compile"
OURS = "ours"
OUT_OF_TIME = "the time given for the run was over"


@dataclass(frozen=True)
class Candidate:
    """A provider as one case sees it.

    build: makes its `Work`; may raise, which is recorded.
    exact: whether it computes what HF computes, so that the check applies.
    status, reason: why it is left out of this case ("unavailable" or "not_run"), empty to run it.
    flops: of one run, for TFLOP/s; None to leave that column empty.
    bytes_moved: by one run at least, for GB/s; None to leave that column empty.
    memory_mib: measures the peak memory of one run; None to leave that column empty.
    """

    name: str
    build: Callable[[], Work]
    exact: bool = True
    status: str = ""
    reason: str = ""
    flops: float | None = None
    bytes_moved: float | None = None
    memory_mib: Callable[[], float | None] | None = None


@dataclass
class Context:
    """What all cases of a run share.

    say: shows a line. step: moves the progress display. done: gets the rows of each case.
    time_is_over: whether to begin no further case, nor a provider but two in one that was begun.
    red, failed: what went wrong with ours so far. quiet: what was seen of the machine's load.
    """

    writer: ResultsWriter
    timer: Timer
    plan: Plan
    say: Callable[[str], None] = print
    step: Callable[[str], None] = lambda text: None
    done: Callable[[Sequence[Row]], None] = lambda rows: None
    time_is_over: Callable[[], bool] = lambda: False
    red: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    quiet: Quiet = field(default_factory=Quiet)


@dataclass
class _Outcome:
    work: Work | None = None
    status: str = "ok"
    reason: str = ""
    error: float | None = None
    first_us: float = 0.0


def run_case(
    context: Context,
    label: str,
    columns: dict[str, Any],
    candidates: Sequence[Candidate],
    exact: Callable[[], Tensors],
    names: Sequence[str],
    yardstick: Callable[[], Tensors] | None = None,
) -> list[Row]:
    """Check and time the candidates of one case and write a row for each.

    columns: the case's columns of `Row` (kernel, pass_name, dtype, sizes, features).
    exact: computes HF's own result in float64. names: what the compared tensors are called.
    HF eager must be the first candidate: it is the yardstick of the tolerance and of the speed-ups.
    yardstick: HF eager's result got in another way, part by part, for where the whole does not fit.
    """
    if not candidates or candidates[0].name != HF_EAGER:
        raise ValueError("the first candidate of a case must be hf_eager")
    outcomes = _check_all(context, label, candidates, exact, names, yardstick)
    works = {name: outcome.work for name, outcome in outcomes.items() if outcome.work is not None}
    measured = measure(
        {name: work.run for name, work in works.items()},
        context.timer,
        context.plan,
        warm_us={name: outcomes[name].first_us for name in works},
        on_step=lambda name: context.step(f"{label}: timing {name}"),
    )
    floor = next((measured[c.name] for c in candidates if not c.exact and c.name in measured), None)
    rows = []
    for candidate in candidates:
        outcome = outcomes[candidate.name]
        measurement = measured.get(candidate.name, Measurement())
        if measurement.failure:
            outcome.status, outcome.reason = "failed", measurement.failure
        row = Row(provider=candidate.name, status=outcome.status, reason=outcome.reason, **columns)
        if outcome.status in ("ok", "red"):
            row.error = outcome.error
            row.error_hf_eager = outcomes[HF_EAGER].error if candidate.exact else None
        if outcome.status == "ok":
            _fill(row, candidate, measured, floor)
            context.step(f"{label}: memory of {candidate.name}")
            _fill_memory(context, label, row, candidate)
        _note(context, label, row)
        rows.append(context.writer.add(row))
    works.clear()
    _free_memory()
    eager, ours = (measured.get(name, Measurement()) for name in (HF_EAGER, OURS))
    context.quiet.case_done(label, paired_spread(eager, ours))
    context.done(rows)
    return rows


def _check_all(
    context: Context,
    label: str,
    candidates: Sequence[Candidate],
    exact: Callable[[], Tensors],
    names: Sequence[str],
    yardstick: Callable[[], Tensors] | None,
) -> dict[str, _Outcome]:
    outcomes = {c.name: _Outcome(status=c.status or "ok", reason=c.reason) for c in candidates}
    if context.time_is_over():
        _leave_out(outcomes)
    if all(outcome.status != "ok" for outcome in outcomes.values()):
        return outcomes
    context.step(f"{label}: exact result in float64")
    try:
        expected = exact()
    except Exception as error:
        for outcome in outcomes.values():
            if outcome.status == "ok":
                outcome.status = "failed"
                outcome.reason = f"no float64 result to check against: {describe(error)}"
        return outcomes
    _free_memory()
    eager: Tensors | None = None
    for candidate in candidates:
        outcome = outcomes[candidate.name]
        if outcome.status != "ok":
            continue
        # A case that was begun is worth nothing without these two.
        if context.time_is_over() and candidate.name not in (HF_EAGER, OURS):
            _leave_out({candidate.name: outcome})
            continue
        if candidate.exact and candidate.name != HF_EAGER and eager is None:
            if yardstick is not None:
                context.step(f"{label}: the yardstick in parts")
                eager, yardstick = _in_parts(context, label, yardstick), None
                if eager is not None:
                    outcomes[HF_EAGER].error = checking.max_error(eager, expected)
            if eager is None:
                outcome.status, outcome.reason = "not_run", "hf_eager, the yardstick, did not run"
                continue
        context.step(f"{label}: checking {candidate.name}")
        actual = _build_and_run(context, candidate, outcome)
        if actual is None:
            continue
        if candidate.name == HF_EAGER:
            eager = actual
            outcome.error = checking.max_error(actual, expected)
            continue
        assert eager is not None
        verdict = checking.check(actual, eager, expected, names)
        outcome.error = verdict.error
        if not verdict.ok:
            outcome.work = None
            outcome.status, outcome.reason = "red", verdict.message
    return outcomes


def _build_and_run(context: Context, candidate: Candidate, outcome: _Outcome) -> Tensors | None:
    """Return what is to be checked; None for a floor, and for what raises: the outcome says why."""
    try:
        work = candidate.build()
        if not candidate.exact:
            outcome.work = work
            return None
        actual, first_us = _first_result(context, work)
    except Exception as error:
        unavailable = type(error).__name__ == "BackendUnavailable"
        outcome.status = "unavailable" if unavailable else "failed"
        outcome.reason = describe(error)
        return None
    outcome.work = work
    if work.result is work.run:
        outcome.first_us = first_us
    return actual


def _in_parts(context: Context, label: str, yardstick: Callable[[], Tensors]) -> Tensors | None:
    _free_memory()
    try:
        return yardstick()
    except Exception as error:
        context.say(f"{label}: no yardstick in parts either: {describe(error)}")
        return None


def _leave_out(outcomes: dict[str, _Outcome]) -> None:
    for outcome in outcomes.values():
        if outcome.status == "ok":
            outcome.status, outcome.reason = "not_run", OUT_OF_TIME


def _first_result(context: Context, work: Work) -> tuple[Tensors, float]:
    """Return the checked tensors and how many microseconds they took, compilation included."""
    kept: Tensors = []
    time_us = context.timer.time_us(lambda: kept.extend(work.result()), 1)
    return kept, time_us


def _fill(
    row: Row,
    candidate: Candidate,
    measured: dict[str, Measurement],
    floor: Measurement | None,
) -> None:
    own = measured[candidate.name]
    row.rounds = len(own.samples_us)
    row.p20_us, row.p50_us, row.p80_us = (own.percentile_us(p) for p in (20, 50, 80))
    for base_name, column in (
        (HF_EAGER, "speedup_over_hf_eager"),
        (HF_COMPILE, "speedup_over_hf_compile"),
    ):
        base = measured.get(base_name)
        if base is not None and base.ok:
            setattr(row, column, paired_ratio(base, own))
    if floor is not None and floor.ok and candidate.exact:
        row.time_over_floor = paired_ratio(own, floor)
    if candidate.bytes_moved is not None:
        row.bandwidth_gb_s = candidate.bytes_moved / row.p50_us * 1e-3
    if candidate.flops is not None:
        row.tflop_per_s = candidate.flops / row.p50_us * 1e-6


def _fill_memory(context: Context, label: str, row: Row, candidate: Candidate) -> None:
    if candidate.memory_mib is None:
        return
    try:
        row.peak_memory_mib = candidate.memory_mib()
    except RuntimeError as error:  # out of memory on CUDA, or what the child process reports
        row.reason = f"memory not measured: {describe(error)}"
        context.say(f"{label} {candidate.name}: {row.reason}")


def _note(context: Context, label: str, row: Row) -> None:
    ours = row.provider.startswith("ours")
    if row.status == "red":
        context.say(f"RED {label} {row.provider}: {row.reason}")
        if ours:
            context.red.append(f"{label} {row.provider}: {row.reason}")
    elif row.status == "failed":
        context.say(f"FAILED {label} {row.provider}: {row.reason}")
        if ours:
            context.failed.append(f"{label} {row.provider}: {row.reason}")


def _free_memory() -> None:
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
