"""Launches that tell of compiling: Triton compiles a kernel at its first launch, and is silent."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from xlnet_fast.builder import recipe

PATIENCE_S = 10.0
"""Seconds of compiling before the first line."""
AGAIN_S = 20.0
"""Seconds of compiling between two lines."""


class Told:
    """What was compiled in this process, and when that was last said."""

    def __init__(self) -> None:
        self.kernels, self.spent_s, self.said_s = 0, 0.0, PATIENCE_S - AGAIN_S

    def add(self, name: str, took_s: float) -> str | None:
        """A kernel was compiled; the line that is due, if one is."""
        self.kernels += 1
        self.spent_s += took_s
        if self.spent_s - self.said_s < AGAIN_S:
            return None
        first, self.said_s = self.said_s < 0, self.spent_s
        line = f"Triton has compiled {self.kernels} kernels in {self.spent_s:.0f} s, {name} last"
        if not first:
            return line
        kept = os.environ.get("TRITON_CACHE_DIR") or "~/.triton/cache"
        return (
            f"{line}; it keeps them in {kept} for later runs, and `xlnet-fast qualify` compiles "
            f"the usual ones beforehand"
        )


_told = Told()


def run_kernel(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a kernel; say on stderr, now and then, how long compiling has taken.

    Silent with `XLNET_FAST_NO_WARN=1`, and in all but the first of a host's processes of a job.
    """
    before, began_s = _versions(kernel), time.monotonic()
    kernel[grid](*arguments, **options)
    if _versions(kernel) == before:
        return
    line = _told.add(kernel.__name__.strip("_"), time.monotonic() - began_s)
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if line is not None and first and not recipe.is_set("XLNET_FAST_NO_WARN"):
        print(f"xlnet_fast: {line}", file=sys.stderr, flush=True)


def _versions(kernel: Any) -> int:
    """How many compilations of a kernel this process has; 0 of an interpreted one."""
    return sum(len(caches[0]) for caches in getattr(kernel, "device_caches", {}).values())
