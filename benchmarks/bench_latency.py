"""Latency of one short sequence: HF eager, captured and compiled, against ours in a CUDA graph.

Run it alone: python -m benchmarks bench_latency --preset full --out DIR
A short forward waits for launches, not for arithmetic. `*_graph` replays a captured CUDA graph;
`*_compile` uses the mode "reduce-overhead", which captures graphs by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .cases.corpus import make_batch
from .cases.model import ModelCase, Source, flops, in_dtype, last_hidden, load_source, share
from .cases.rel_attention import DTYPES
from .harness.record import Row
from .harness.runner import Candidate, run_case
from .harness.session import Session
from .providers.model import backend_of, provider_names
from .providers.work import Tensors, Work

KERNEL = "latency"
SHAPES = ((1, 128),)  # batch, length
_WARM_CALLS = 3


def steps(session: Session) -> int:
    """Return how many cases `run` will advance by."""
    return len(SHAPES)


def run(session: Session) -> list[Row]:
    """Run every case, in the preset's first dtype, and return the rows."""
    source = load_source(session.preset.geometry)
    rows = []
    for batch, length in SHAPES:
        rows += bench_case(session, source, ModelCase(batch, length, session.preset.dtypes[0]))
        session.advance()
    return rows


def names_of(device: torch.device) -> tuple[str, ...]:
    """Return the providers: eager ones, their graphs, then what compiles."""
    eager = [n for n in provider_names(device) if n != "gemm_floor" and not n.endswith("_compile")]
    # HF's last: a capture that fails may spoil what follows it.
    graphs = [*(f"{name}_graph" for name in eager if name.startswith("ours")), "hf_graph"]
    compiled = [name for name in provider_names(device) if name.endswith("_compile")]
    return (*eager, *graphs, *compiled)


def captured(forward: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """Return a function that replays one captured call; its result is overwritten by the next."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_CALLS):
                forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = forward()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def bench_case(session: Session, source: Source, case: ModelCase) -> list[Row]:
    """Check, time and record one case."""
    torch._dynamo.reset()
    batch = {
        name: x.to(session.device)
        for name, x in make_batch(source.corpus, case.batch, case.length).items()
    }
    model = in_dtype(source.model, DTYPES[case.dtype], session.device)

    def exact() -> Tensors:
        double = in_dtype(source.model, torch.float64, session.device)
        with torch.no_grad():
            return [last_hidden(double, batch)]

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
    count = flops(case, source.geometry)
    return run_case(
        session.context,
        f"{KERNEL} {case.label}",
        columns,
        [_candidate(session, name, model, batch, count) for name in names_of(session.device)],
        exact,
        ["last_hidden_state"],
    )


def _candidate(
    session: Session, name: str, model: nn.Module, batch: dict[str, Tensor], count: float
) -> Candidate:
    status = reason = ""
    compiles = name.endswith("_compile")
    if name.endswith("_graph") and session.device.type != "cuda":
        status, reason = "unavailable", "CUDA graphs need a GPU"
    elif compiles:
        status, reason = session.compile_status()

    def build() -> Work:
        own = share(model)
        if name.startswith("ours"):
            import xlnet_fast

            own = xlnet_fast.accelerate(own, backend=backend_of(name))
        called: Any = own
        if compiles:
            mode = "reduce-overhead" if session.device.type == "cuda" else "default"
            called = torch.compile(own, dynamic=False, mode=mode)

        @torch.no_grad()
        def forward() -> Tensor:
            if compiles:
                torch.compiler.cudagraph_mark_step_begin()
            return last_hidden(called, batch)

        timed = captured(forward, session.device) if name.endswith("_graph") else forward
        if not compiles:
            return Work(timed, lambda: [timed().clone()])

        def result() -> Tensors:
            with session.counted_as_compiling():
                return [timed().clone()]

        return Work(timed, result)

    return Candidate(name, build, True, status, reason, flops=count)
