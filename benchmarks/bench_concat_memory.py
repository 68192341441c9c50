"""The memory update of all layers between segments: ours against HF's `cache_mem` layer by layer.

Run it alone: python -m benchmarks bench_concat_memory --preset full --out DIR
HF's `cache_mem` is a `torch.cat` and a slice, which keeps the longer tensor alive. Bandwidth counts
what must be moved: every row of the result once in and once out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .cases.rel_attention import DTYPES, FORWARD
from .harness.record import Row
from .harness.runner import Candidate, run_case
from .harness.session import Session
from .providers.work import Tensors, Work

KERNEL = "concat_memory"
PROVIDERS = ("hf_eager", "ours", "ours_cuda", "ours_triton", "ours_sdpa")


@dataclass(frozen=True)
class Shape:
    """Layers, batch, segment, memory and reused rows, and the width as heads of 64."""

    layers: int
    batch: int
    length: int
    memory: int
    reuse: int
    heads: int = 12

    @property
    def kept(self) -> int:
        """Rows of the next memory, which is as long as the one before."""
        return self.memory


_HEAD_DIM = 64
# The paper's pretraining, and a long evaluation.
SHAPES = (Shape(12, 8, 512, 384, 256), Shape(12, 1, 512, 1024, 0))
LARGE_SHAPES = (Shape(24, 32, 512, 384, 256, 16), Shape(24, 4, 512, 1024, 0, 16))


def shapes(session: Session) -> tuple[Shape, ...]:
    """Return the shapes of the session's preset."""
    return LARGE_SHAPES if session.preset.large_ops else SHAPES


def steps(session: Session) -> int:
    """Return how many cases `run` will advance by."""
    return len(shapes(session)) * len(session.preset.dtypes)


def run(session: Session) -> list[Row]:
    """Run every case and return the rows."""
    rows = []
    for dtype in session.preset.dtypes:
        for shape in shapes(session):
            rows += _bench_case(session, shape, dtype)
            session.advance()
    return rows


def draw(shape: Shape, dtype: str, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Return hidden states (I, B, H) and memory (M, B, H) of every layer."""
    generator = torch.Generator().manual_seed(0)

    def layer(rows: int) -> Tensor:
        values = torch.randn(rows, shape.batch, shape.heads * _HEAD_DIM, generator=generator)
        return values.bfloat16().to(device, DTYPES[dtype])

    layers = range(shape.layers)
    return [layer(shape.length) for _ in layers], [layer(shape.memory) for _ in layers]


def make_run(
    provider: str, shape: Shape, hidden: list[Tensor], mems: list[Tensor]
) -> Callable[[], Tensors]:
    """Return what a provider does for all layers at once."""
    if provider == "hf_eager":
        from transformers import XLNetModel

        settings: Any = SimpleNamespace(mem_len=shape.memory, reuse_len=shape.reuse)
        return lambda: [
            XLNetModel.cache_mem(settings, h, m) for h, m in zip(hidden, mems, strict=True)
        ]
    from xlnet_fast.ops import concat_memories

    backend = provider.removeprefix("ours").removeprefix("_") or "auto"
    return lambda: list(concat_memories(hidden, mems, shape.memory, shape.reuse, backend=backend))


def _bench_case(session: Session, shape: Shape, dtype: str) -> list[Row]:
    hidden, mems = draw(shape, dtype, session.device)

    def exact() -> Tensors:
        doubles = ([x.double() for x in each] for each in (hidden, mems))
        return make_run("hf_eager", shape, *doubles)()

    columns = {
        "kernel": KERNEL,
        "pass_name": FORWARD,
        "dtype": dtype,
        "batch": shape.batch,
        "length": shape.length,
        "memory_length": shape.memory,
        "heads": shape.heads,
        "head_dim": _HEAD_DIM,
        "layers": shape.layers,
        "features": f"reuse_len={shape.reuse}",
    }
    candidates = [_candidate(session, name, shape, dtype, hidden, mems) for name in PROVIDERS]
    label = f"{KERNEL} {shape.layers}x{shape.batch}x{shape.length}+{shape.memory} {dtype}"
    names = [f"memory of layer {i}" for i in range(shape.layers)]
    return run_case(session.context, label, columns, candidates, exact, names)


def _candidate(
    session: Session,
    name: str,
    shape: Shape,
    dtype: str,
    hidden: list[Tensor],
    mems: list[Tensor],
) -> Candidate:
    def build() -> Work:
        run = make_run(name, shape, hidden, mems)
        return Work(run, run)

    row_bytes = shape.batch * shape.heads * _HEAD_DIM * DTYPES[dtype].itemsize
    request = {"provider": name, "dtype": dtype, "shape": asdict(shape)}
    return Candidate(
        name,
        build,
        bytes_moved=2.0 * shape.layers * shape.kept * row_bytes,
        memory_mib=session.memory_probe(
            __name__, request, lambda: make_run(name, shape, hidden, mems)
        ),
    )


def memory_request(request: dict[str, Any]) -> Callable[[], Any]:
    """Return the function whose memory the child process of `harness/memory.py` measures."""
    shape = Shape(**request["shape"])
    hidden, mems = draw(shape, request["dtype"], torch.device("cpu"))
    return make_run(request["provider"], shape, hidden, mems)
