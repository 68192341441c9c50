"""Backend ``cuda``: CUDA C++ kernels in the compiled extension, for NVIDIA GPUs from sm_80 on.

Nothing here touches a CUDA context on import: a process may import the package and fork later.
"""

from __future__ import annotations

import torch

from xlnet_fast import _extension
from xlnet_fast.kernels.cuda import entries

MIN_CAPABILITY = (8, 0)


@torch.compiler.assume_constant_result  # a traced graph must not import a module
def why_missing() -> str | None:
    """Why this machine's extension has no CUDA kernels, with the remedy; None where it has them."""
    if entries.emulated():
        return None
    reason = _extension.why_missing()
    if reason is not None:
        return reason
    if not _extension.require().build_info()["cuda_archs"]:
        return (
            "the extension was built without CUDA kernels; with nvcc on the path, "
            "`xlnet-fast build --force` adds them"
        )
    return None


def why_unavailable(device: torch.device | str = "cuda") -> str | None:
    """Say why the CUDA kernels cannot run on `device`; None where they can.

    Only a CUDA device that names an index, as every CUDA tensor's does, is asked for its compute
    capability: asking starts the CUDA context, and the owner of such a tensor has one already.
    """
    device = torch.device(device)
    if entries.emulated():
        return None if device.type == "cpu" else "the emulated kernels run on CPU tensors"
    if device.type != "cuda":
        return f"the CUDA kernels run on CUDA devices, not on {device.type!r}"
    if torch.version.hip is not None:
        return "the CUDA kernels are for NVIDIA GPUs, and this PyTorch is built for ROCm"
    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is built without CUDA"
    reason = why_missing()
    if reason is None and device.index is not None:
        capability = torch.cuda.get_device_capability(device)
        if capability < MIN_CAPABILITY:
            return (
                f"the GPU has compute capability {capability[0]}.{capability[1]}, the CUDA "
                f"kernels need {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]} or newer"
            )
    return reason
