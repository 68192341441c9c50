"""What the benchmarks of one run share: device, preset, compile budget, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .memory import MemoryWorker, cuda_peak_mib
from .presets import Preset
from .runner import Context


@dataclass
class Session:
    """Hands every benchmark its surroundings.

    advance: called after each case, for the progress bar.
    old_python: the interpreter of an environment with an older release of transformers, if any.
    """

    context: Context
    preset: Preset
    device: torch.device
    memory: MemoryWorker
    advance: Callable[[], None] = lambda: None
    old_python: str | None = None
    compile_spent_s: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    def compile_status(self) -> tuple[str, str]:
        """Return ("", "") while compiled providers may begin, else the status and the reason."""
        name, budget, until = (
            self.preset.name,
            self.preset.compile_budget_s,
            self.preset.compile_until_s,
        )
        if self.compile_spent_s >= budget:
            return "not_run", f"the {name} preset spends at most {budget:.0f} s on torch.compile"
        if time.monotonic() - self.begun > until:
            return "not_run", f"the {name} preset begins no torch.compile after {until:.0f} s"
        return "", ""

    @contextmanager
    def counted_as_compiling(self) -> Iterator[None]:
        """Count the seconds of the block against the compile budget."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.compile_spent_s += time.monotonic() - start

    def memory_probe(
        self, module: str, request: dict[str, Any], run: Callable[[], Callable[[], Any]]
    ) -> Callable[[], float | None]:
        """Return a function that measures the peak memory of one run on this session's device.

        On the CPU the child process rebuilds the work from `request` by the function
        `memory_request` of `module`; on CUDA `run()` returns the
        function that was timed.
        """
        if self.device.type == "cuda":
            return lambda: cuda_peak_mib(run(), self.device)
        return lambda: self.memory.peak_mib(module, request)
