"""The memory update between segments: ours against HF's `cache_mem`.

Run it alone: python -m benchmarks.bench_concat_memory --preset full --out DIR
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .record import Row
from .rel_attention_case import DTYPES, FORWARD
from .runner import Candidate, Tensors, Work, run_case
from .session import Session

KERNEL = "concat_memory"
# (batch, segment, memory, reuse) of the paper's pretraining, and of a long evaluation; 768 wide.
SHAPES = ((8, 512, 384, 256), (1, 512, 1024, 0))
_HEADS, _HEAD_DIM = 12, 64


def steps(session: Session) -> int:
    """Return how many cases `run` will advance by."""
    return len(SHAPES) * len(session.preset.dtypes)


def run(session: Session) -> list[Row]:
    """Run every case and return the rows."""
    rows = []
    for shape in SHAPES:
        for dtype in session.preset.dtypes:
            rows += _bench_case(session, *shape, dtype)
            session.advance()
    return rows


def _bench_case(
    session: Session, batch: int, length: int, memory: int, reuse: int, dtype: str
) -> list[Row]:
    from transformers import XLNetModel

    from xlnet_fast.ops import concat_memory

    generator = torch.Generator().manual_seed(0)

    def draw(rows: int) -> Tensor:
        values = torch.randn(rows, batch, _HEADS * _HEAD_DIM, generator=generator)
        return values.bfloat16().to(session.device, DTYPES[dtype])

    hidden, mems = draw(length), draw(memory)
    settings: Any = SimpleNamespace(mem_len=memory, reuse_len=reuse)

    def hf() -> Tensors:
        return [XLNetModel.cache_mem(settings, hidden, mems)]

    def ours() -> Tensors:
        return [concat_memory(hidden, mems, mem_len=memory, reuse_len=reuse)]

    def exact() -> Tensors:
        return [XLNetModel.cache_mem(settings, hidden.double(), mems.double())]

    columns = {
        "kernel": KERNEL,
        "pass_name": FORWARD,
        "dtype": dtype,
        "batch": batch,
        "length": length,
        "memory_length": memory,
        "heads": _HEADS,
        "head_dim": _HEAD_DIM,
        "layers": 1,
        "features": f"reuse_len={reuse}",
    }
    candidates = [
        Candidate("hf_eager", lambda: Work(hf, hf)),
        Candidate("ours", lambda: Work(ours, ours)),
    ]
    label = f"{KERNEL} {batch}x{length}+{memory} {dtype}"
    return run_case(session.context, label, columns, candidates, exact, ["memory"])


if __name__ == "__main__":
    from .run import main

    raise SystemExit(main(only=(KERNEL,)))
