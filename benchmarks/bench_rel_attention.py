"""Relative attention of one layer: ours against HF, compiled HF, SDPA with a bias, FlexAttention.

Run it alone: python -m benchmarks bench_rel_attention --preset full --out DIR
TFLOP/s count the necessary operations only: 6 B N I J D forward and 16 B N I J D backward for
relative attention, 4 and 10 for content-only attention (`sdpa_flash`, the floor). Dropout is drawn
by each provider in its own way, so a case with dropout is checked without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from .cases.rel_attention import LEAVES, RelAttentionCase, RelAttentionInputs, make_inputs
from .harness.presets import ordered
from .harness.record import Row
from .harness.runner import Candidate, run_case
from .harness.session import Session
from .providers.rel_attention import Provider, all_providers, prepare
from .providers.rel_attention_exact import hf_result
from .providers.work import Tensors, Work

KERNEL = "rel_attention"


def cases(session: Session) -> list[RelAttentionCase]:
    """Return the cases of the session's preset, small ones first."""
    return [
        RelAttentionCase(
            shape.batch,
            shape.queries,
            shape.memory,
            shape.heads,
            shape.head_dim,
            dtype,
            session.device.type,
            pass_name,
            shape.padding,
            shape.segments,
            shape.dropout,
        )
        for shape, dtype, pass_name in ordered(session.preset.attention_shapes, session.preset)
    ]


def run(session: Session) -> list[Row]:
    """Run every case of the preset and return the rows."""
    rows = []
    for case in cases(session):
        rows += bench_case(session, case)
        session.advance()
    return rows


def bench_case(session: Session, case: RelAttentionCase) -> list[Row]:
    """Check, time and record one case."""
    torch._dynamo.reset()
    inputs = make_inputs(case)
    candidates = [_candidate(session, case, inputs, p) for p in all_providers()]
    columns = {
        "kernel": KERNEL,
        "pass_name": case.pass_name,
        "dtype": case.dtype,
        "batch": case.batch,
        "length": case.queries,
        "memory_length": case.memory,
        "heads": case.heads,
        "head_dim": case.head_dim,
        "layers": 1,
        "features": case.features,
    }
    names = ["out"]
    if case.backward:
        names += [f"grad of {leaf}" for leaf in LEAVES[: len(inputs.leaves())]]
    return run_case(
        replace(session.context, plan=session.preset.attention_plan),
        f"{KERNEL} {case.label}",
        columns,
        candidates,
        lambda: hf_result(case, torch.float64),
        names,
        yardstick=lambda: hf_result(case),
    )


def _candidate(
    session: Session, case: RelAttentionCase, inputs: RelAttentionInputs, provider: Provider
) -> Candidate:
    status, reason = "", provider.why_not(case) or ""
    if reason:
        status = "unavailable"
    elif provider.compiles:
        status, reason = session.compile_status()
    held: list[Callable[[], Any]] = []

    def build() -> Work:
        prepared = prepare(provider, case, inputs)
        held.append(prepared.run)

        # The pass that is timed, but for dropout.
        checked = prepared
        if case.dropout:
            checked = prepare(provider, replace(case, dropout=0.0), inputs)

        def result() -> Tensors:
            if not provider.compiles:
                return checked.standard(checked.run())
            with session.counted_as_compiling():
                return checked.standard(checked.run())

        return Work(prepared.run, result)

    memory = None
    if session.preset.compiled_memory or not provider.compiles:
        request = asdict(case) | {"provider": provider.name}
        memory = session.memory_probe(__name__, request, lambda: held[0])
    flops = case.flops(content_only=not provider.exact)
    return Candidate(
        provider.name, build, provider.exact, status, reason, flops=flops, memory_mib=memory
    )


def memory_request(request: dict[str, Any]) -> Callable[[], Any]:
    """Return the function whose memory the child process of `harness/memory.py` measures."""
    name = request.pop("provider")
    case = RelAttentionCase(**request)
    (provider,) = [p for p in all_providers() if p.name == name]
    return prepare(provider, case, make_inputs(case)).run
