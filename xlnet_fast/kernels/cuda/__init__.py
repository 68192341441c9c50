"""Backend ``cuda``: CUDA C++ kernels in the compiled extension, for NVIDIA GPUs from sm_80 on.

Nothing here touches a CUDA context on import: a process may import the package and fork later.
"""

from __future__ import annotations

import torch

from xlnet_fast import _extension
from xlnet_fast.kernels.cuda import driver, entries, room
from xlnet_fast.transforms import constant_when_traced

MIN_CAPABILITY = (8, 0)
BUILD = "XLNET_FAST_CUDA=1 xlnet-fast build --force"
"""What compiles the kernels into the extension, whether PyTorch sees a GPU or not."""


@constant_when_traced  # a traced graph must not import a module
def why_missing() -> str | None:
    """Why this machine's extension has no CUDA kernels that its driver runs, with the remedy.

    None where it has them, and where there is no driver at all. Makes no CUDA context.
    """
    if not entries.emulated():
        reason = _extension.why_missing()
        if reason is not None:
            return reason
        if not _built_for():
            return (
                f"the extension was built without CUDA kernels; with nvcc on the path, `{BUILD}` "
                f"adds them"
            )
    return _why_too_old()


def why_unfit(gpu: str | None, head_dim: int | None, needs_grad: bool) -> str | None:
    """Why the kernels, if there are any, do not run a call on a chip; None where they do.

    That there are none, `why_missing` says. Makes no CUDA context; traceable by torch.compile.

    Args:
        gpu: compute capability, "8.6"; None where it is not known.
        head_dim: of attention; None for the other ops, which take little shared memory.
        needs_grad: whether the backward pass is to run too.
    """
    if not _are_there():
        return None
    reason = None if gpu is None else _why_no_code(gpu)
    if reason is None and head_dim is not None:
        reason = room.why_too_small(gpu, head_dim, needs_grad)
    return reason


@constant_when_traced  # a traced graph must not call into the extension
def _why_too_old() -> str | None:
    return driver.why_too_old(*entries.ask("versions"))


@constant_when_traced
def _why_no_code(gpu: str) -> str | None:
    if entries.emulated():
        return None
    return driver.why_no_code(_built_for(), gpu, *entries.ask("versions"))


@constant_when_traced
def _are_there() -> bool:
    return entries.emulated() or bool(_built_for())


def _built_for() -> list[str]:
    built = _extension.build_info()
    return [] if built is None else built["cuda_archs"]


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
        reason = _why_no_code("{}.{}".format(*capability))
    return reason
