"""Attention probabilities from scores: ours against HF's own lines and compiled HF.

Run it alone: python -m benchmarks bench_masked_softmax --preset full --out DIR
Bandwidth counts what must be moved. Forward: the content scores and as many position scores read,
the probabilities written. Backward: probabilities and their gradient read, the gradient of the
content scores and the whole table of position gradients, zeros included, written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .cases.masked_softmax import LEAVES, Scores, double_element
from .cases.rel_attention import BACKWARD, DTYPES, FORWARD, PASSES
from .harness.record import Row
from .harness.runner import Candidate, run_case
from .harness.session import Session
from .providers.masked_softmax import prepare
from .providers.work import Tensors, Work

KERNEL = "masked_softmax"
SHAPES = ((4, 512, 12), (1, 2048, 12))  # batch, length, heads
LARGE_SHAPES = ((32, 512, 16), (1, 4096, 16))
PROVIDERS = (
    "hf_eager", "ours", "ours_cpu", "ours_cuda", "ours_triton", "ours_sdpa", "hf_compile",
)  # fmt: skip


def cases(session: Session) -> list[tuple[int, int, int, str, str]]:
    """Return (batch, length, heads, dtype, pass) of every case."""
    shapes = LARGE_SHAPES if session.preset.large_ops else SHAPES
    return [(*s, d, p) for d in session.preset.dtypes for s in shapes for p in PASSES]


def steps(session: Session) -> int:
    """Return how many cases `run` will advance by."""
    return len(cases(session))


def run(session: Session) -> list[Row]:
    """Run every case and return the rows."""
    rows = []
    for case in cases(session):
        rows += _bench_case(session, *case)
        session.advance()
    return rows


def _bench_case(
    session: Session, batch: int, length: int, heads: int, dtype: str, pass_name: str
) -> list[Row]:
    torch._dynamo.reset()
    scores = Scores(batch, length, heads, DTYPES[dtype], session.device)

    def exact() -> Tensors:
        # Element by element: a dozen float64 copies of all scores would not fit a small GPU.
        parts = [
            prepare("hf_eager", double_element(scores, i), pass_name).run() for i in range(batch)
        ]
        return [torch.cat(each).detach() for each in zip(*parts, strict=True)]

    columns = {
        "kernel": KERNEL,
        "pass_name": pass_name,
        "dtype": dtype,
        "batch": batch,
        "length": length,
        "memory_length": 0,
        "heads": heads,
        "head_dim": 64,
        "layers": 1,
        "features": "padding",
    }
    elements = batch * heads * length * length
    # Of score-sized tensors; the position table is two of them.
    tensors = {FORWARD: 3, BACKWARD: 5}.get(pass_name, 8)
    moved = float(tensors * elements * DTYPES[dtype].itemsize)
    candidates = [_candidate(session, name, scores, pass_name, moved) for name in PROVIDERS]
    names = ["probabilities"]
    if pass_name != FORWARD:
        names += [f"grad of {name}" for name in LEAVES]
    label = f"{KERNEL} {batch}x{length} {dtype} {pass_name}"
    return run_case(session.context, label, columns, candidates, exact, names)


def _candidate(
    session: Session, name: str, scores: Scores, pass_name: str, moved: float
) -> Candidate:
    status = reason = ""
    if name == "hf_compile":
        status, reason = session.compile_status()
    held: list[Callable[[], Any]] = []

    def build() -> Work:
        prepared = prepare(name, scores, pass_name)
        held.append(prepared.run)
        if name != "hf_compile":
            return Work(prepared.run, prepared.run)

        def result() -> Tensors:
            with session.counted_as_compiling():
                return prepared.run()

        return Work(prepared.run, result)

    memory = None
    if session.device.type == "cuda":
        memory = session.memory_probe(__name__, {}, lambda: held[0])
    return Candidate(name, build, True, status, reason, bytes_moved=moved, memory_mib=memory)
