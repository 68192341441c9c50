"""Runs one attention kernel with a forced tile: what `tune` checks and times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..cases.rel_attention import (
    BACKWARD,
    DTYPES,
    FORWARD,
    FORWARD_BACKWARD,
    LEAVES,
    RelAttentionCase,
    make_inputs,
)
from ..harness.check import check
from ..providers.rel_attention import named_provider, prepare

# 16k tokens of width 1024, as in the benchmarks: batch and length of each length class.
SIZES = {"short": (32, 512), "long": (4, 4096)}
# With memory, no multiple of a tile, and quick for the float64 reference; yet multiples of 16, as
# the timed sizes are, so that the very same compiled kernel runs.
CHECK_BATCH, CHECK_LENGTH, CHECK_MEMORY, CHECK_HEADS = 2, 208, 48, 2
_WIDTH = 1024


@dataclass(frozen=True)
class Job:
    """One entry of the table of measured tiles."""

    kernel: str
    dtype: torch.dtype
    head_dim: int
    heavy: bool
    shape: str

    @property
    def label(self) -> str:
        """A short name for messages: the entry's key."""
        name = str(self.dtype).removeprefix("torch.")
        load = "heavy" if self.heavy else "light"
        return f"{self.kernel}/{name}/{self.head_dim}/{load}/{self.shape}"


def timed_case(job: Job, device: torch.device) -> RelAttentionCase:
    """Return what a job is timed on: heavy has padding and dropout, both have segments."""
    batch, length = SIZES[job.shape]
    (dtype,) = (name for name, each in DTYPES.items() if each == job.dtype)
    return RelAttentionCase(
        batch, length, 0, _WIDTH // job.head_dim, job.head_dim, dtype, str(device),
        FORWARD if job.kernel == "forward" else BACKWARD,
        padding=job.heavy, segments=True, dropout=0.1 if job.heavy else 0.0,
    )  # fmt: skip


def checked_case(job: Job, device: torch.device) -> RelAttentionCase:
    """Return what a job is checked on: small, no multiple of a tile, the same features."""
    return replace(
        timed_case(job, device), batch=CHECK_BATCH, queries=CHECK_LENGTH, memory=CHECK_MEMORY,
        heads=CHECK_HEADS, pass_name=FORWARD if job.kernel == "forward" else FORWARD_BACKWARD,
    )  # fmt: skip


class GpuWorkbench:
    """The workbench on a device; the kernels run through the public op, the tile forced.

    tiles: the module of tiles. backend: whose kernels, the Triton ones.
    """

    def __init__(self, tiles: Any, device: torch.device, backend: str = "triton") -> None:
        self._tiles, self._device = tiles, device
        self._ours = named_provider(backend)
        self._prepared = cache(self._prepare)
        self._expected = cache(self._expect)

    def fault(self, job: Job, config: Any) -> str | None:
        """Compare with the reference in float64, whose dropout draws the same mask."""
        case = checked_case(job, self._device)
        exact, eager = self._expected(case)
        with self._tiles.using(job.kernel, config):
            prepared = prepare(self._ours, case, make_inputs(case))
            actual = prepared.standard(prepared.run())
        names = ["out"] + [f"grad of {leaf}" for leaf in LEAVES]
        verdict = check(actual, eager, exact, names[: len(actual)])
        return None if verdict.ok else verdict.message

    def function(self, job: Job, config: Any) -> Callable[[], Any]:
        """Return the pass that runs the job's kernel, the candidate's tile forced in each call."""
        run = self._prepared(timed_case(job, self._device))

        def forced() -> None:
            with self._tiles.using(job.kernel, config):
                run()

        return forced

    def _prepare(self, case: RelAttentionCase) -> Callable[[], list[Tensor]]:
        self._prepared.cache_clear()  # the tensors of an earlier case only take room
        return prepare(self._ours, case, make_inputs(case)).run

    def _expect(self, case: RelAttentionCase) -> tuple[list[Tensor], list[Tensor]]:
        """Return the reference's result in float64 and in the case's dtype, the yardstick."""
        reference = named_provider("reference")
        results = []
        for dtype in (torch.float64, DTYPES[case.dtype]):
            prepared = prepare(reference, case, make_inputs(case, dtype))
            results.append([x.detach() for x in prepared.standard(prepared.run())])
        return results[0], results[1]
