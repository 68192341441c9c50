"""How fast an export is: Hugging Face's model, the accelerated one and the export in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.export.source import inputs_of

SHAPES = ((1, 128), (8, 128))
ROUNDS, LEAST_ROUNDS = 9, 3
_PATIENCE_S = 20.0  # of a shape, after the least rounds


@torch.no_grad()
def measure(
    runs: Mapping[str, Callable[[Tensor, Tensor, Tensor], Any]],
    vocab_size: int,
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> list[dict[str, Any]]:
    """The median time of each in ms, a row of a table for each shape; texts without padding."""
    table = []
    for rows, length in shapes:
        ids, _, segments = inputs_of(rows, length, vocab_size)
        given = (ids, torch.ones_like(ids), segments)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run(*given)
        begin = time.perf_counter()
        for number in range(ROUNDS):
            for name, run in runs.items():
                start = time.perf_counter()
                run(*given)
                times[name].append(1e3 * (time.perf_counter() - start))
            if number + 1 >= LEAST_ROUNDS and time.perf_counter() - begin > _PATIENCE_S:
                break
        median = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
        table.append({"rows": rows, "length": length, **median})
    return table
