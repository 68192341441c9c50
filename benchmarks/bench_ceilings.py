"""What this machine can do at best: a large copy and a large matrix product of PyTorch itself.

Run it alone: python -m benchmarks bench_ceilings --out DIR
The rows stand before all others, so that bandwidths and TFLOP/s can be read against them. A copy
counts the bytes it reads and writes, a product of L x L matrices 2 L^3 operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .cases.rel_attention import DTYPES
from .harness.record import Row
from .harness.session import Session
from .harness.timing import Plan, measure

KERNEL = "ceiling"
COPY, MATMUL = "copy", "matmul"
PROVIDER = "torch"
# Bytes of a copy, far beyond any cache, and the side of the square matrices.
SIZES = {"cuda": (2**30, 8192), "cpu": (2**27, 1024)}


def steps(session: Session) -> int:
    """Return how many cases `run` will advance by."""
    return 1 + len(session.preset.dtypes)


def run(session: Session) -> list[Row]:
    """Time both and return the rows."""
    count_bytes, side = SIZES[session.device.type]
    rows = [_time(session, COPY, "fp32", count_bytes // 4, _copy(session.device, count_bytes))]
    for dtype in session.preset.dtypes:
        rows.append(_time(session, MATMUL, dtype, side, _matmul(session.device, side, dtype)))
    return rows


def _copy(device: torch.device, count_bytes: int) -> Callable[[], Any]:
    source = torch.ones(count_bytes // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _matmul(device: torch.device, side: int, dtype: str) -> Callable[[], Any]:
    a = torch.randn(side, side, device=device).to(DTYPES[dtype])
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out)


def _time(session: Session, what: str, dtype: str, length: int, run: Callable[[], Any]) -> Row:
    session.context.step(f"ceiling: {what} {dtype}")
    row = Row(KERNEL, PROVIDER, what, dtype, 1, length, 0, 1, 1, 1, "plain", "ok")
    plan = Plan(min_rounds=5, max_rounds=20, budget_s=1.0, min_sample_us=2_000.0)
    measurement = measure({what: run}, session.context.timer, plan)[what]
    session.advance()
    if not measurement.ok:
        row.status, row.reason = "failed", measurement.failure or "no sample"
        return session.context.writer.add(row)
    row.rounds = len(measurement.samples_us)
    row.p20_us, row.p50_us, row.p80_us = (measurement.percentile_us(p) for p in (20, 50, 80))
    if what == COPY:
        row.bandwidth_gb_s = 2 * 4 * length / row.p50_us * 1e-3
    else:
        row.tflop_per_s = 2 * length**3 / row.p50_us * 1e-6
    return session.context.writer.add(row)
