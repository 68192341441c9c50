"""Triton kernels, and the one place that knows whether Triton is there.

Nothing here touches a CUDA context on import: a process may import the package and fork later.
"""

from __future__ import annotations

import os
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError as error:
    triton = None
    tl = None
    IMPORT_ERROR: str | None = f"{type(error).__name__}: {error}"
else:
    IMPORT_ERROR = None

__all__ = [
    "IMPORT_ERROR",
    "INTERPRETED",
    "MIN_CAPABILITY",
    "jit",
    "tl",
    "triton",
    "why_unavailable",
]

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")
MIN_CAPABILITY = (8, 0)


def jit(**options: Any):
    """`triton.jit` with options; without Triton the function stays as it is and is never called."""

    def decorate(function):
        return function if triton is None else triton.jit(function, **options)

    return decorate


def why_unavailable(device: torch.device | str = "cuda") -> str | None:
    """Say why the Triton kernels cannot run on `device`; None where they can.

    Only a CUDA device that names an index, as every CUDA tensor's does, is asked for its compute
    capability: asking starts the CUDA context, and the owner of such a tensor has one already.
    """
    if triton is None:
        return f"Triton cannot be imported ({IMPORT_ERROR}); `pip install triton` on Linux"
    device = torch.device(device)
    if INTERPRETED:
        return (
            None
            if device.type == "cpu"
            else "TRITON_INTERPRET=1 runs the kernels on CPU tensors only"
        )
    if device.type != "cuda":
        return (
            f"the Triton kernels run on CUDA devices, not on {device.type!r} "
            "(TRITON_INTERPRET=1 in the environment interprets them on CPU tensors, for tests)"
        )
    if torch.version.hip is not None:
        return "the Triton configurations are for NVIDIA GPUs, and this PyTorch is built for ROCm"
    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is built without CUDA"
    if device.index is not None:
        capability = torch.cuda.get_device_capability(device)
        if capability < MIN_CAPABILITY:
            return (
                f"the GPU has compute capability {capability[0]}.{capability[1]}, the Triton "
                f"kernels need {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]} or newer"
            )
    return None
