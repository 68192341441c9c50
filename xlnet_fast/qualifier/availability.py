"""Why a backend cannot run a class of calls on this machine, as the dispatcher says it."""

from __future__ import annotations

import torch

from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels import cpu
from xlnet_fast.kernels.cpu import linear as cpu_linear
from xlnet_fast.ops._dispatch import choose, request_on
from xlnet_fast.ops.qualification.record import BACKWARD
from xlnet_fast.qualifier.tasks import Task


def why_unavailable(task: Task, backend: str, direction: str, device: torch.device) -> str | None:
    """One sentence, or None where it can."""
    if task.op == "linear":
        missing = cpu.why_unavailable()
        if missing is None and not cpu_linear.takes(task.torch_dtype, terms=2):
            missing = f"no kernel here multiplies {task.dtype}"
        return missing
    request = request_on(
        task.op, device, task.torch_dtype, head_dim=task.head_dim or 64,
        needs_grad=direction == BACKWARD, features=task.features, proved=False,
    )  # fmt: skip
    try:
        choose(request, backend)
    except BackendUnavailable as error:
        return str(error).partition(": ")[2]
    return None
