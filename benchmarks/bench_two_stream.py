"""One two-stream attention layer of a pretraining step: ours against HF's layer and it compiled.

Run it alone: python -m benchmarks bench_two_stream --preset full --out DIR
TFLOP/s count the necessary operations: see `TwoStreamCase.flops`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from .cases.rel_attention import FORWARD, FORWARD_BACKWARD
from .cases.two_stream import TwoStreamCase, TwoStreamInputs, leaf_names, make_inputs
from .harness.record import Row
from .harness.runner import Candidate, run_case
from .harness.session import Session
from .providers.two_stream import prepare
from .providers.work import Tensors, Work

KERNEL = "two_stream"
PROVIDERS = ("hf_eager", "ours", "ours_cuda", "ours_triton", "ours_sdpa", "hf_compile")
# Keywords of a case, and the same for a GPU.
SHAPES: tuple[dict[str, int], ...] = ({"batch": 2},)
LARGE_SHAPES: tuple[dict[str, int], ...] = ({"batch": 16, "heads": 16},)


def cases(session: Session) -> list[TwoStreamCase]:
    """Return the cases of the session's preset."""
    shapes = LARGE_SHAPES if session.preset.large_ops else SHAPES
    passes = (FORWARD, FORWARD_BACKWARD)
    return [
        TwoStreamCase(**shape, dtype=dtype, device=session.device.type, pass_name=pass_name)
        for dtype in session.preset.dtypes
        for shape in shapes
        for pass_name in passes
    ]


def steps(session: Session) -> int:
    """Return how many cases `run` will advance by."""
    return len(cases(session))


def run(session: Session) -> list[Row]:
    """Run every case and return the rows."""
    rows = []
    for case in cases(session):
        rows += bench_case(session, case)
        session.advance()
    return rows


def bench_case(session: Session, case: TwoStreamCase) -> list[Row]:
    """Check, time and record one case."""
    torch._dynamo.reset()
    inputs = make_inputs(case)

    def exact() -> Tensors:
        prepared = prepare("hf_eager", case, make_inputs(case, torch.float64))
        return [x.detach() for x in prepared.run()]

    columns = {
        "kernel": KERNEL,
        "pass_name": case.pass_name,
        "dtype": case.dtype,
        "batch": case.batch,
        "length": case.length,
        "memory_length": case.memory,
        "heads": case.heads,
        "head_dim": 64,
        "layers": 1,
        "features": f"{case.targets} targets+permutation+segments+bi_data",
    }
    names = ["output_h", "output_g"]
    if case.pass_name != FORWARD:
        names += [f"grad of {name}" for name in leaf_names(inputs)]
    memory = f"{case.batch}x{case.length}+{case.memory}"
    return run_case(
        session.context,
        f"{KERNEL} {memory} {case.dtype} {case.pass_name}",
        columns,
        [_candidate(session, case, inputs, name) for name in PROVIDERS],
        exact,
        names,
    )


def _candidate(
    session: Session, case: TwoStreamCase, inputs: TwoStreamInputs, name: str
) -> Candidate:
    status = reason = ""
    compiles = name == "hf_compile"
    if compiles:
        status, reason = session.compile_status()
    held: list[Callable[[], Any]] = []

    def build() -> Work:
        prepared = prepare(name, case, inputs)
        held.append(prepared.run)
        if not compiles:
            return Work(prepared.run, prepared.run)

        def result() -> Tensors:
            with session.counted_as_compiling():
                return prepared.run()

        return Work(prepared.run, result)

    memory = None
    if session.preset.compiled_memory or not compiles:
        request = asdict(case) | {"provider": name}
        memory = session.memory_probe(__name__, request, lambda: held[0])
    return Candidate(name, build, True, status, reason, flops=case.flops(), memory_mib=memory)


def memory_request(request: dict[str, Any]) -> Callable[[], Any]:
    """Return the function whose memory the child process of `harness/memory.py` measures."""
    name = request.pop("provider")
    case = TwoStreamCase(**request)
    return prepare(name, case, make_inputs(case)).run
