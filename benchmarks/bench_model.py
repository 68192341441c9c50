"""Whole XLNet models on real text: ours against HF eager, HF compiled and the bare matrix products.

Run it alone: python -m benchmarks bench_model --preset full --out DIR
A training step is forward, a mean-square loss, backward and AdamW with learning rate 0 (so that
every step and provider sees the same weights), with dropout as configured; its check runs without
dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from .cases.corpus import make_batch
from .cases.model import (
    ModelCase,
    Source,
    compared_parameters,
    flops,
    in_dtype,
    load_source,
)
from .cases.rel_attention import DTYPES
from .cases.shapes import TRAINING_STEP, Geometry
from .harness.presets import ordered
from .harness.record import Row
from .harness.runner import Candidate, run_case
from .harness.session import Session
from .providers.model import make_work, provider_names, result_of
from .providers.work import Tensors, Work

KERNEL = "model"


def cases(session: Session) -> list[tuple[Geometry, ModelCase]]:
    """Return the cases of the preset with the geometry of each."""
    return [
        (shape.geometry or session.preset.geometry, ModelCase(shape.batch, shape.length, dtype, p))
        for shape, dtype, p in ordered(session.preset.model_shapes, session.preset)
    ]


def run(session: Session, model: str | None, text: str | None, source: Source) -> list[Row]:
    """Run every case of the preset and return the rows.

    model, text: the user's, or None. source: what they or the first geometry give, already loaded.
    """
    rows: list[Row] = []
    exact: dict[tuple[Any, ...], Tensors] = {}
    for geometry, case in cases(session):
        if model is None and source.geometry != geometry:
            session.context.step(f"making {geometry.name}")
            source = load_source(geometry, None, text)
        rows += bench_case(session, source, case, exact)
        session.advance()
    return rows


def bench_case(
    session: Session,
    source: Source,
    case: ModelCase,
    exact: dict[tuple[Any, ...], Tensors],
) -> list[Row]:
    """Check, time and record one case. `exact` keeps the last float64 result for other dtypes."""
    torch._dynamo.reset()
    batch = {
        name: x.to(session.device)
        for name, x in make_batch(source.corpus, case.batch, case.length).items()
    }
    model = in_dtype(source.model, DTYPES[case.dtype], session.device)
    key = (source.geometry, case.batch, case.length, case.pass_name)
    names = ["last_hidden_state"]
    if case.pass_name == TRAINING_STEP:
        names += [f"grad of {name}" for name in compared_parameters(source.model)]

    def exact_result() -> Tensors:
        if key not in exact:
            exact.clear()  # results of an earlier shape are of no more use
            double = in_dtype(source.model, torch.float64, session.device)
            exact[key] = result_of(double, batch, case, rows=_exact_rows(case))
        return exact[key]

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    candidates = [
        _candidate(session, source, case, model, batch, optimizer, name)
        for name in provider_names(session.device)
    ]
    columns = {
        "kernel": KERNEL,
        "pass_name": case.pass_name,
        "dtype": case.dtype,
        "batch": case.batch,
        "length": case.length,
        "memory_length": 0,
        "heads": source.geometry.n_head,
        "head_dim": source.geometry.d_model // source.geometry.n_head,
        "layers": source.geometry.n_layer,
        "features": "padding+segments",
    }
    return run_case(
        session.context,
        f"{source.geometry.name} {case.label}",
        columns,
        candidates,
        exact_result,
        names,
        yardstick=lambda: result_of(
            in_dtype(source.model, DTYPES[case.dtype], session.device),
            batch,
            case,
            _exact_rows(case),
        ),
    )


def _why_not(session: Session, case: ModelCase, name: str) -> tuple[str, str]:
    """Return the status and the reason of a provider that is not run, ("", "") for one that is."""
    preset = session.preset
    if name in preset.left_out:
        return "not_run", f"the {preset.name} preset leaves it out"
    if name == "gemm_floor" and case.pass_name == TRAINING_STEP:
        return "unavailable", "the floor is defined for the forward pass"
    if not name.endswith("_compile"):
        return "", ""
    shapes = preset.compile_shapes
    if shapes is not None and (case.batch, case.length) not in shapes:
        where = ", ".join(f"{batch}x{length}" for batch, length in shapes)
        return "not_run", f"the {preset.name} preset uses torch.compile at {where} alone"
    return session.compile_status()


def _candidate(
    session: Session,
    source: Source,
    case: ModelCase,
    model: nn.Module,
    batch: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    name: str,
) -> Candidate:
    compiles = name.endswith("_compile")
    status, reason = _why_not(session, case, name)
    held: list[Callable[[], Any]] = []

    def build() -> Work:
        work = make_work(name, source.geometry, case, model, batch, optimizer)
        held.append(work.run)
        if not compiles:
            return work

        def result() -> Tensors:
            with session.counted_as_compiling():
                return work.result()

        return Work(work.run, result)

    memory = None
    if session.preset.model_memory and (session.preset.compiled_memory or not compiles):
        request = {
            "provider": name,
            "case": asdict(case),
            "geometry": asdict(source.geometry),
        }
        memory = session.memory_probe(__name__, request, lambda: held[0])
    return Candidate(
        name, build, name != "gemm_floor", status, reason,
        flops=flops(case, source.geometry), memory_mib=memory,
    )  # fmt: skip


def _exact_rows(case: ModelCase) -> int:
    """Return how many batch elements fit a float64 pass: as much attention as 4 x 512."""
    return max(1, 4 * 512**2 // case.length**2)


def memory_request(request: dict[str, Any]) -> Callable[[], Any]:
    """Return the function whose memory the child process of `harness/memory.py` measures.

    The child uses random weights of the same geometry: memory does not depend on the values.
    """
    geometry, case = Geometry(**request["geometry"]), ModelCase(**request["case"])
    source = load_source(geometry)
    device = torch.device("cpu")
    model = in_dtype(source.model, DTYPES[case.dtype], device)
    batch = make_batch(source.corpus, case.batch, case.length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    return make_work(request["provider"], geometry, case, model, batch, optimizer).run
