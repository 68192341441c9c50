"""Speech encoders on frames of audio: Hugging Face's, it compiled, and ours.

Run it alone: python -m benchmarks speech --preset full --out DIR [--no-compile] [--append]
With --append, cases that DIR has are not run again: a run that was stopped goes on.
Two layers with random weights, at the sizes of a published checkpoint, stand for all; what makes
frames out of audio is left out. "HF eager" is Hugging Face's code as it is called, with its "sdpa"
attention where a family has it. Only frames that are no padding are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from .cases.rel_attention import DTYPES, FORWARD
from .cases.shapes import SpeechShape
from .cases.speech import (
    LAYERS,
    MODELS,
    SpeechCase,
    SpeechModel,
    as_loaded,
    make_encoder,
    needed_bytes,
)
from .harness.memory import free_bytes
from .harness.record import Row
from .harness.runner import Candidate, run_case
from .harness.session import Session
from .providers.speech import exact_result, make_work, provider_names
from .providers.work import Tensors, Work

KERNEL, ATTENTION = "speech", "speech_attention"
MODEL = f"speech encoders, {LAYERS} layers, random weights"
_ROOM = 0.7  # of the free memory


def cases(session: Session) -> list[tuple[SpeechShape, SpeechCase]]:
    """Return the cases of the preset with the shape of each, but for those that are there."""
    found = [
        (shape, SpeechCase(shape.seconds, shape.batch, dtype, shape.attention))
        for shape in session.preset.speech_shapes
        for dtype in session.preset.dtypes
    ]
    there = {_name_of(vars(row)) for row in session.context.writer.earlier if row.rounds}
    return [
        (shape, case)
        for shape, case in found
        if _name_of(_columns(MODELS[shape.model], case)) not in there
    ]


def _name_of(columns: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(columns[name] for name in ("kernel", "features", "batch", "dtype"))


def steps(session: Session) -> int:
    """Return how many cases `run` will advance by."""
    return len(cases(session))


def run(session: Session) -> list[Row]:
    """Run every case of the preset and return the rows."""
    rows: list[Row] = []
    kept: dict[Any, Tensors] = {}
    made: dict[Any, nn.Module] = {}
    for shape, case in cases(session):
        rows += bench_case(session, MODELS[shape.model], case, shape, made, kept)
        session.advance()
    return rows


def bench_case(
    session: Session,
    model: SpeechModel,
    case: SpeechCase,
    shape: SpeechShape,
    made: dict[Any, nn.Module],
    kept: dict[Any, Tensors],
) -> list[Row]:
    """Check, time and record one case.

    made: keeps the last encoder in fp32. kept: keeps the last float64 result for other dtypes.
    """
    torch._dynamo.reset()

    def encoder() -> nn.Module:
        key = (model.name, layers_of(case))
        if key not in made:
            made.clear()
            made[key] = make_encoder(model, layers_of(case))
        return made[key]

    def exact() -> Tensors:
        key = (model.name, case.seconds, case.batch, case.attention)
        if key not in kept:
            kept.clear()
            double = as_loaded(encoder(), torch.float64, session.device)
            kept[key] = exact_result(model, case, double)
        return kept[key]

    @cache
    def shared() -> nn.Module:
        return as_loaded(encoder(), DTYPES[case.dtype], session.device)

    label = f"{model.name} {case.seconds:g} s x {case.batch} {case.dtype}"
    names = provider_names(case.attention)
    return run_case(
        replace(session.context, plan=session.preset.speech_plan),
        f"attention of {label}" if case.attention else label,
        _columns(model, case),
        [_candidate(session, model, case, shape, shared, name) for name in names],
        exact,
        ["attention" if case.attention else "last_hidden_state"],
    )


def layers_of(case: SpeechCase) -> int:
    """How many layers the encoder of a case has."""
    return 1 if case.attention else LAYERS


def _columns(model: SpeechModel, case: SpeechCase) -> dict[str, Any]:
    return {
        "kernel": ATTENTION if case.attention else KERNEL,
        "pass_name": FORWARD,
        "dtype": case.dtype,
        "batch": case.batch,
        "length": case.frames(model),
        "memory_length": 0,
        "heads": model.heads,
        "head_dim": model.head_dim,
        "layers": layers_of(case),
        "features": f"{model.name}, {case.seconds:g} s",
    }


def _why_not(
    session: Session, model: SpeechModel, case: SpeechCase, shape: SpeechShape, name: str
) -> tuple[str, str]:
    """Return the status and the reason of a provider that is not run, ("", "") for one that is."""
    needed, free = needed_bytes(model, case), free_bytes(session.device)
    if free is not None and needed > _ROOM * free:
        return "not_run", (
            f"the check by Hugging Face's code in float64 takes about {needed / 2**30:.0f} GiB, "
            f"and {free / 2**30:.0f} are free"
        )
    if not name.endswith("_compile"):
        return "", ""
    if not shape.compiled:
        return "not_run", f"the {session.preset.name} preset compiles 1 x 60 s alone"
    return session.compile_status()


def _candidate(
    session: Session,
    model: SpeechModel,
    case: SpeechCase,
    shape: SpeechShape,
    encoder: Callable[[], nn.Module],
    name: str,
) -> Candidate:
    compiles = name.endswith("_compile")
    held: list[Callable[[], Any]] = []

    def build() -> Work:
        work = make_work(name, model, case, encoder())
        held.append(work.run)
        if not compiles:
            return work

        def result() -> Tensors:
            with session.counted_as_compiling():
                return work.result()

        return Work(work.run, result)

    memory = None
    if shape.memory and (session.preset.compiled_memory or not compiles):
        request = {"provider": name, "model": asdict(model), "case": asdict(case)}
        memory = session.memory_probe(__name__, request, lambda: held[0])
    status, reason = _why_not(session, model, case, shape, name)
    return Candidate(name, build, True, status, reason, memory_mib=memory)


def memory_request(request: dict[str, Any]) -> Callable[[], Any]:
    """Return the function whose memory the child process of `harness/memory.py` measures."""
    model, case = SpeechModel(**request["model"]), SpeechCase(**request["case"])
    encoder = make_encoder(model, layers_of(case))
    encoder = as_loaded(encoder, DTYPES[case.dtype], torch.device("cpu"))
    return make_work(request["provider"], model, case, encoder).run
