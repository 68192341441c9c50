"""Calls into the compiled kernels: on a GPU's stream, or, for tests, in an emulation on the host.

The emulation (``csrc/cuda/emulation``) is compiled from the same sources. It takes CPU tensors and
is told which memory a call may touch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from xlnet_fast import _extension
from xlnet_fast.kernels.cuda.memory import Memory

_emulation: Any = None


def emulated() -> bool:
    """Whether an emulation stands in for the GPU."""
    return _emulation is not None


@contextmanager
def emulating(module: Any) -> Iterator[None]:
    """Within the block, run the kernels of an emulation, on CPU tensors."""
    global _emulation
    before, _emulation = _emulation, module
    try:
        yield
    finally:
        _emulation = before


def ask(name: str) -> Any:
    """What ``cuda_<name>`` answers; it launches nothing and makes no CUDA context.

    Raises:
        BackendUnavailable: the extension is missing.
    """
    module = _extension.require() if _emulation is None else _emulation
    return getattr(module, f"cuda_{name}")()


def call(name: str, memory: Memory, device: torch.device, *arguments: Any) -> None:
    """Run ``cuda_<name>`` with the arguments on the device's current stream.

    Args:
        memory: holds the tensors whose addresses are among the arguments.

    Raises:
        RuntimeError: the launch failed; or what the emulation found wrong.
    """
    if _emulation is not None:
        _emulation.set_regions(memory.regions())
        getattr(_emulation, f"cuda_{name}")(*arguments, 0)
        return
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        getattr(_extension.require(), f"cuda_{name}")(*arguments, stream)
