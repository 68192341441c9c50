"""Writing text by `generate`: Hugging Face's model and ours, with memory and without.

Run it alone: python -m benchmarks bench_generate --preset full --out DIR
Nothing of ours is timed unless it wrote the very tokens that Hugging Face's code writes. A whole
text is timed per token, reading the prompt included; the steps of the same calls are timed one by
one too, which gives the time by context. On a CPU the base geometry has four layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .cases.generate import (
    ARCHITECTURE,
    STEP,
    TEXT,
    GenerationCase,
    noise,
    prompts,
    widen,
)
from .cases.model import Source, in_dtype, load_source, share
from .cases.rel_attention import DTYPES
from .cases.shapes import GenerationShape, Geometry
from .harness.record import Row
from .harness.runner import OUT_OF_TIME
from .harness.session import Session
from .harness.timing import Measurement, describe, measure, paired_ratio
from .providers.generate import HF, ORACLES, Writer, difference, provider_names

KERNEL = "generate"
# Steps whose times stand for one context.
WINDOW = 10
_WARM_US = 1e9  # the check warmed up


@dataclass
class _Outcome:
    """What is known of a provider."""

    writer: Writer | None = None
    tokens: Tensor | None = None
    status: str = "ok"
    reason: str = ""
    measurement: Measurement = field(default_factory=Measurement)


def cases(session: Session, model: str | None) -> list[tuple[GenerationShape, str]]:
    """Return the shapes of the preset with their dtypes; each shape once for the user's model.

    Half precision once for each geometry: Hugging Face's `generate` raises there.
    """
    found: list[tuple[GenerationShape, str]] = []
    seen = set()
    for shape in session.preset.generation_shapes:
        size = None if model else shape.geometry
        for dtype in session.preset.dtypes:
            key = (size, dtype) if dtype != "fp32" else (size, shape.batch, shape.prompt, shape.new)
            if key not in seen:
                seen.add(key)
                found.append((shape, dtype))
    return sorted(found, key=lambda case: case[1] != "fp32")


def steps(session: Session, model: str | None) -> int:
    """Return how many cases `run` will advance by."""
    return len(cases(session, model))


def load(geometry: Geometry, model: str | None = None, text: str | None = None) -> Source:
    """Return the model with its head and the text of a geometry, or the user's.

    Raises `ArgumentError` for a model or text that cannot be used.
    """
    source = load_source(geometry, model, text, ARCHITECTURE)
    if model is None:
        widen(source.model)
    return source


def run(
    session: Session, model: str | None, text: str | None, source: Source | None = None
) -> list[Row]:
    """Run every case of the preset and return the rows.

    model, text: the user's, or None. source: what they or the first geometry give, if loaded.
    """
    rows: list[Row] = []
    for shape, dtype in cases(session, model):
        if source is None or (model is None and source.geometry != shape.geometry):
            session.context.step(f"making {shape.geometry.name}")
            source = load(shape.geometry, model, text)
        rows += bench_case(session, source, shape, dtype)
        session.advance()
    return rows


def bench_case(session: Session, source: Source, shape: GenerationShape, dtype: str) -> list[Row]:
    """Check, time and record one case."""
    case = GenerationCase(shape.batch, shape.prompt, shape.new, dtype)
    label = f"{KERNEL} {source.geometry.name} {case.label}"
    context = session.context
    outcomes = {name: _Outcome() for name in provider_names(shape.without_memory)}
    if context.time_is_over():
        for outcome in outcomes.values():
            outcome.status, outcome.reason = "not_run", OUT_OF_TIME
    else:
        _check(session, source, case, label, outcomes)
        _time(session, label, outcomes)
    rows = [
        _text_row(session, source, case, shape, label, name, outcomes) for name in outcomes
    ] + _step_rows(session, source, case, outcomes)
    context.done(rows[: len(outcomes)])
    return rows


def _check(
    session: Session,
    source: Source,
    case: GenerationCase,
    label: str,
    outcomes: dict[str, _Outcome],
) -> None:
    """Let each write once, and compare ours with Hugging Face's tokens."""
    model = in_dtype(source.model, DTYPES[case.dtype], session.device)
    ids = prompts(source.corpus, case.batch, case.prompt).to(session.device)
    added = noise(case.new, source.geometry.vocab_size).to(session.device)
    # Those of Hugging Face first, which the others are compared with.
    for name in sorted(outcomes, key=lambda name: name in ORACLES):
        outcome = outcomes[name]
        oracle = outcomes[ORACLES[name]] if name in ORACLES else None
        if oracle is not None and oracle.tokens is None:
            outcome.status = "not_run"
            outcome.reason = "Hugging Face, whose tokens are the check, did not run"
            continue
        session.context.step(f"{label}: checking {name}")
        try:
            writer = Writer(name, share(model), ids, case, added)
            tokens = writer()
        except Exception as error:
            outcome.status, outcome.reason = "failed", describe(error)
            if oracle is not None:
                session.context.failed.append(f"{label} {name}: {outcome.reason}")
            continue
        if oracle is not None and oracle.tokens is not None:
            outcome.reason = difference(tokens, oracle.tokens)
        if outcome.reason:
            outcome.status = "red"
            session.context.red.append(f"{label} {name}: {outcome.reason}")
            session.context.say(f"RED {label} {name}: {outcome.reason}")
            continue
        writer.forget()
        outcome.writer, outcome.tokens = writer, tokens


def _time(session: Session, label: str, outcomes: dict[str, _Outcome]) -> None:
    """Write in interleaved rounds; a call's time becomes that of one token."""
    writers = {n: outcome.writer for n, outcome in outcomes.items() if outcome.writer is not None}
    measured = measure(
        writers,
        session.context.timer,
        session.preset.generation_plan,
        warm_us=dict.fromkeys(writers, _WARM_US),
        on_step=lambda name: session.context.step(f"{label}: timing {name}"),
    )
    for name, measurement in measured.items():
        outcome = outcomes[name]
        outcome.measurement = measurement
        if measurement.failure:
            outcome.status, outcome.reason = "failed", measurement.failure
        elif outcome.tokens is not None:
            new = outcome.tokens.shape[1]
            measurement.samples_us = [sample / new for sample in measurement.samples_us]


def _columns(source: Source, case: GenerationCase, pass_name: str, length: int) -> dict[str, Any]:
    size = source.geometry
    what = f"{case.new} tokens"
    if pass_name == STEP:
        what += f" after {case.prompt}"  # texts of one context are lines of their own
    return {
        "kernel": KERNEL,
        "pass_name": pass_name,
        "dtype": case.dtype,
        "batch": case.batch,
        "length": length,
        "memory_length": 0,
        "heads": size.n_head,
        "head_dim": size.d_model // size.n_head,
        "layers": size.n_layer,
        "features": f"{size.n_layer} layers of {size.d_model}, {what}",
    }


def _text_row(
    session: Session,
    source: Source,
    case: GenerationCase,
    shape: GenerationShape,
    label: str,
    name: str,
    outcomes: dict[str, _Outcome],
) -> Row:
    outcome = outcomes[name]
    columns = _columns(source, case, TEXT, case.prompt)
    row = Row(provider=name, status=outcome.status, reason=outcome.reason, **columns)
    if outcome.status == "ok":
        _fill(row, outcome.measurement, outcomes[HF].measurement)
    if outcome.status == "ok" and shape.memory and session.preset.model_memory:
        session.context.step(f"{label}: memory of {name}")
        row.peak_memory_mib = _peak_memory_mib(session, source, case, name, outcome.writer)
    return session.context.writer.add(row)


def _fill(row: Row, own: Measurement, eager: Measurement) -> None:
    row.rounds = len(own.samples_us)
    row.p20_us, row.p50_us, row.p80_us = (own.percentile_us(p) for p in (20, 50, 80))
    if eager.ok:
        row.speedup_over_hf_eager = paired_ratio(eager, own)


def _peak_memory_mib(
    session: Session, source: Source, case: GenerationCase, name: str, writer: Any
) -> float | None:
    request = {"provider": name, "case": asdict(case), "geometry": asdict(source.geometry)}
    try:
        return session.memory_probe(__name__, request, lambda: writer)()
    except RuntimeError as error:  # out of memory on CUDA, or what the child process reports
        session.context.say(f"{name}: memory not measured: {describe(error)}")
        return None


def _step_rows(
    session: Session, source: Source, case: GenerationCase, outcomes: dict[str, _Outcome]
) -> list[Row]:
    """A row for each provider and stretch of the text: the median step of each round."""
    rows = []
    timed = {
        name: outcome.writer.step_us
        for name, outcome in outcomes.items()
        if outcome.writer is not None and outcome.status == "ok"
    }
    for begin in range(0, case.new - 1, WINDOW):
        end = min(begin + WINDOW, case.new - 1)
        # Step 0 follows the first token: its context is the prompt and that token.
        context = case.prompt + 1 + (begin + end - 1) // 2
        columns = _columns(source, case, STEP, context)
        found = {name: _in_window(calls, begin, end) for name, calls in timed.items()}
        for name, measurement in found.items():
            row = Row(provider=name, status="ok", **columns)
            _fill(row, measurement, found.get(HF, Measurement()))
            rows.append(session.context.writer.add(row))
    return rows


def _in_window(calls: Sequence[Sequence[float]], begin: int, end: int) -> Measurement:
    return Measurement([median(call[begin:end]) for call in calls])


def memory_request(request: dict[str, Any]) -> Callable[[], Any]:
    """Return the function whose memory the child process of `harness/memory.py` measures.

    The child uses random weights of the same geometry: memory does not depend on the values.
    """
    geometry, case = Geometry(**request["geometry"]), GenerationCase(**request["case"])
    source = load(geometry)
    model = in_dtype(source.model, DTYPES[case.dtype], torch.device("cpu"))
    ids = prompts(source.corpus, case.batch, case.prompt)
    added = noise(case.new, geometry.vocab_size)
    return Writer(request["provider"], model, ids, case, added)
