"""Transformer-XL beside Hugging Face 4.37.2, the last that has it, in an environment of its own.

Run it alone: python -m benchmarks transfo_xl --old-python PATH --preset full --out DIR [--quick]
Two layers with random weights, at the sizes of transfo-xl-wt103: reading a text segment by segment,
a training step without the optimizer's, and writing a text. Each library runs in a process of its
own and times itself; their rounds alternate. Without an old interpreter, or where Hugging Face
raises, ours is held to itself: to float64 and to the code that returns probabilities.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from .cases.generate import TEXT
from .cases.transfo_xl import TransfoXLCase
from .harness.check import check, max_error
from .harness.memory import RETURNING, process_peak_mib
from .harness.processes import JsonProcess, ProcessFailed
from .harness.record import Row
from .harness.runner import OUT_OF_TIME
from .harness.session import Session
from .harness.timing import Function, Measurement, measure, paired_ratio, paired_spread
from .providers.generate import difference
from .providers.transfo_xl import FP64, HF, INSTALL, OURS, Side, command

KERNEL = "transfo_xl"
MODEL = "Transformer-XL, 2 layers at the sizes of transfo-xl-wt103, random weights"
NO_OLD_PYTHON = (
    "transformers 5 has no Transformer-XL: give the interpreter of an environment that has, "
    f"--old-python PATH, made by {INSTALL}"
)
_BY_ITSELF = "checked by its own float64 and plain code, not by Hugging Face's"
_WARM_US = 1e9  # each ran before


@dataclass
class _Outcome:
    """What is known of a provider."""

    status: str = "ok"
    reason: str = ""
    error: float | None = None
    measurement: Measurement = field(default_factory=Measurement)

    def end(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason


class _Told:
    """A timer of functions that tell themselves how many seconds they took."""

    def time_us(self, function: Function, repeats: int) -> float:
        return sum(function() for _ in range(repeats)) * 1e6 / repeats


def start(name: str, old_python: str | None, settings: dict[str, str]) -> JsonProcess:
    """Return a library's worker; `settings`: added to its environment."""
    own = {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    return JsonProcess(command(old_python if name == HF else None), own | settings)


class Sides:
    """The libraries' workers of one run, each begun when it is first needed."""

    def __init__(self, session: Session, folder: Path) -> None:
        """`folder`: for the weights and for results."""
        self._session, self._folder = session, folder
        self._found: dict[tuple[str, bool], Side] = {}
        self._no_hf: tuple[str, str] | None = None
        self._stack = ExitStack()

    def get(self, name: str, *, for_memory: bool = False) -> Side:
        """Return a library's side, its model loaded; raises ProcessFailed."""
        found = self._found.get((name, for_memory))
        if found is not None:
            return found
        first = (name, for_memory) == (OURS, False)
        if not first:
            self.get(OURS)  # which writes the weights
        session = self._session
        settings = RETURNING if for_memory else {}
        session.context.step(f"starting {name}{', for its memory' if for_memory else ''}")
        worker = start(name, session.old_python, settings)
        self._stack.callback(worker.close)
        side = Side(name, worker, session.preset.transfo_xl_geometry, self._folder)
        side.load(torch.get_num_threads(), make=first)
        return self._found.setdefault((name, for_memory), side)

    def no_hf(self) -> tuple[str, str]:
        """Return the status and the reason of a Hugging Face that cannot run, else ("", "")."""
        if self._no_hf is None:
            self._no_hf = "", ""
            if self._session.old_python is None:
                self._no_hf = "not_run", NO_OLD_PYTHON
            else:
                try:
                    self.get(HF)
                except ProcessFailed as failure:
                    self._no_hf = "unavailable", f"{failure}; it needs {INSTALL}"
                    self._session.context.say(f"No Hugging Face: {self._no_hf[1]}")
        return self._no_hf

    def __enter__(self) -> Sides:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


def cases(session: Session) -> list[TransfoXLCase]:
    """Return the cases of the preset in its dtypes."""
    preset = session.preset
    return [case for case in preset.transfo_xl_cases if case.dtype in preset.dtypes]


def steps(session: Session) -> int:
    """Return how many cases `run` will advance by."""
    return len(cases(session))


def run(session: Session) -> list[Row]:
    """Run every case of the preset and return the rows."""
    rows: list[Row] = []
    if session.device.type != "cpu":
        session.context.say(f"{KERNEL} is timed on a CPU alone: --device cpu")
        return rows
    with tempfile.TemporaryDirectory() as folder, Sides(session, Path(folder)) as sides:
        for case in cases(session):
            rows += bench_case(session, sides, case)
            session.advance()
    return rows


def bench_case(session: Session, sides: Sides, case: TransfoXLCase) -> list[Row]:
    """Check, time and record one case."""
    label, context = f"{KERNEL} {case.label}", session.context
    outcomes = {name: _Outcome() for name in (HF, OURS)}
    if context.time_is_over():
        for outcome in outcomes.values():
            outcome.end("not_run", OUT_OF_TIME)
    else:
        _check(session, sides, case, label, outcomes)
        _time(session, sides, case, label, outcomes)
    rows = [_row(session, sides, case, label, name, outcomes) for name in outcomes]
    spread = paired_spread(outcomes[HF].measurement, outcomes[OURS].measurement)
    context.quiet.case_done(label, spread)
    context.done(rows)
    return rows


def _check(
    session: Session, sides: Sides, case: TransfoXLCase, label: str, outcomes: dict[str, _Outcome]
) -> None:
    """Let each do the case once, and hold ours to the tolerance rule, or to the same tokens."""
    context, hf, ours = session.context, outcomes[HF], outcomes[OURS]
    try:
        sides.get(OURS).prepare(case)
        status, reason = sides.no_hf()
        if status:
            hf.end(status, reason)
        else:
            try:
                context.step(f"{label}: Hugging Face's results")
                sides.get(HF).prepare(case)
                expected, eager = _oracle(sides.get(HF), case)
            except ProcessFailed as failure:
                _fail(session, label, HF, hf, str(failure))
        if hf.status != "ok":
            context.step(f"{label}: our own plain results")
            expected, eager = _oracle(sides.get(OURS), case)
            ours.reason = _BY_ITSELF
        context.step(f"{label}: checking ours")
        actual = sides.get(OURS).result(case.dtype)
    except ProcessFailed as failure:
        _fail(session, label, OURS, ours, str(failure))
        return
    if case.pass_name != TEXT and hf.status == "ok":
        hf.error = max_error(list(eager.values()), list(expected.values()))
    if red := _why_red(case, actual, eager, expected, ours):
        ours.end("red", red)
        context.red.append(f"{label} {OURS}: {red}")
        context.say(f"RED {label} {OURS}: {red}")


def _oracle(side: Side, case: TransfoXLCase) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The float64 result and that in the case's dtype; of a text its tokens, twice."""
    ourselves = side.name == OURS
    if case.pass_name == TEXT:
        tokens = side.result(FP64 if ourselves else case.dtype)
        return tokens, tokens
    return side.result(FP64, plain=ourselves), side.result(case.dtype, plain=ourselves)


def _why_red(
    case: TransfoXLCase,
    actual: dict[str, Tensor],
    eager: dict[str, Tensor],
    expected: dict[str, Tensor],
    ours: _Outcome,
) -> str:
    """What is wrong with our result, "" if nothing; notes our error."""
    if other := set(actual) ^ set(expected):
        return f"only one side has {', '.join(sorted(other))}"
    if case.pass_name == TEXT:
        return difference(actual["tokens"], expected["tokens"])
    three = ([results[name] for name in expected] for results in (actual, eager, expected))
    verdict = check(*three, list(expected))
    ours.error = verdict.error
    return verdict.message


def _time(
    session: Session, sides: Sides, case: TransfoXLCase, label: str, outcomes: dict[str, _Outcome]
) -> None:
    """Let them run in turn; of a text, a call's time becomes that of one token."""
    context, works = session.context, dict[str, Callable[[], float]]()
    for name, outcome in outcomes.items():
        if outcome.status != "ok":
            continue
        works[name] = sides.get(name).run
        if case.pass_name == TEXT:
            continue  # it wrote the very text
        context.step(f"{label}: first call of {name}")
        try:
            works[name]()
        except ProcessFailed as failure:
            del works[name]
            _fail(session, label, name, outcome, str(failure))
    measured = measure(
        works,
        _Told(),
        session.preset.generation_plan if case.pass_name == TEXT else session.preset.plan,
        warm_us=dict.fromkeys(works, _WARM_US),
        on_step=lambda name: context.step(f"{label}: timing {name}"),
    )
    for name, measurement in measured.items():
        outcomes[name].measurement = measurement
        if measurement.failure:
            _fail(session, label, name, outcomes[name], measurement.failure)
        elif case.new:
            measurement.samples_us = [sample / case.new for sample in measurement.samples_us]


def _fail(session: Session, label: str, name: str, outcome: _Outcome, reason: str) -> None:
    outcome.end("failed", reason)
    session.context.say(f"FAILED {label} {name}: {reason}")
    if name == OURS:
        session.context.failed.append(f"{label} {name}: {reason}")


def _row(
    session: Session,
    sides: Sides,
    case: TransfoXLCase,
    label: str,
    name: str,
    outcomes: dict[str, _Outcome],
) -> Row:
    outcome, size = outcomes[name], session.preset.transfo_xl_geometry
    row = Row(
        KERNEL, name, case.pass_name, case.dtype, case.batch, case.length, case.memory,
        size.n_head, size.head_dim, size.n_layer, case.features, outcome.status, outcome.reason,
    )  # fmt: skip
    if outcome.status in ("ok", "red"):
        row.error, row.error_hf_eager = outcome.error, outcomes[HF].error
    if outcome.status == "ok":
        _fill(row, outcome.measurement, outcomes[HF].measurement)
        versions = sides.get(name).versions
        row.torch, row.transformers = versions["torch"], versions["transformers"]
        if case.peak:
            session.context.step(f"{label}: memory of {name}")
            row.peak_memory_mib = _peak_mib(session, sides, case, name)
    return session.context.writer.add(row)


def _fill(row: Row, own: Measurement, hf: Measurement) -> None:
    row.rounds = len(own.samples_us)
    row.p20_us, row.p50_us, row.p80_us = (own.percentile_us(p) for p in (20, 50, 80))
    if hf.ok:
        row.speedup_over_hf_eager = paired_ratio(hf, own)


def _peak_mib(session: Session, sides: Sides, case: TransfoXLCase, name: str) -> float | None:
    """The peak of a worker of its own, above what it held before, when it did the case already."""
    try:
        side = sides.get(name, for_memory=True)
        side.prepare(case)
        side.run()
        return process_peak_mib(side.process_id, side.run)
    except ProcessFailed as failure:
        session.context.say(f"{case.label} {name}: memory not measured: {failure}")
        return None
