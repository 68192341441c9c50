"""Small records of qualifications, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from xlnet_fast.ops._dispatch import Choice, choose, request_on
from xlnet_fast.ops.qualification import files, proof
from xlnet_fast.ops.qualification.record import Identity, Record, Row, Timing, write

IDENTITY = Identity(
    device="cuda", name="NVIDIA Test 9000", capability="9.0", multiprocessors=132, driver="580",
    torch="2.11.0+cu130", cuda="13.0", triton="3.6.0", kernels="0123456789abcdef", extension="ff",
)  # fmt: skip


def an_identity(**changes: Any) -> Identity:
    """Of a GPU that nobody has."""
    return replace(IDENTITY, **changes)


def a_row(speed: float | None = 3.0, **changes: Any) -> Row:
    """Triton's plain attention in bf16, forward: right, and ``speed`` times as fast as sdpa."""
    timings = () if speed is None else (Timing("8x512", 100.0, 100.0 * speed, 500.0),)
    row = Row(
        op="rel_attention", operands="plain", backend="triton", dtype="bfloat16", head_dim="64",
        direction="forward", status="passed", error=1e-3, bound=2e-3, timings=timings,
    )  # fmt: skip
    row = replace(row, **changes)
    return row if row.status == "passed" else replace(row, timings=(), reason="dk is wrong")


def a_record(rows: Sequence[Row] = (), identity: Identity | None = None, **changes: Any) -> Record:
    """Of these rows, or of :func:`a_row`; ``changes`` are of its identity."""
    identity = replace(identity or IDENTITY, **changes)
    return Record(identity, tuple(rows) or (a_row(),), "2026-11-28T12:00:00+00:00", 60.0)


def put(record: Record, path: Path | None = None) -> Path:
    """Write a record, by default where the cache has it."""
    path = path or files.cache_file(record.identity)
    write(record, path)
    proof.forget()
    return path


def on_gpu(
    op: str = "rel_attention", dtype: torch.dtype = torch.bfloat16, **options: Any
) -> Choice:
    """What is chosen for a call on the GPU of the fixture ``gpu``."""
    return choose(request_on(op, torch.device("cuda", 0), dtype, **options))
