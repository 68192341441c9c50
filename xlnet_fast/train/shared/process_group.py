"""Leaves PyTorch's process group before Python ends.

A thread of Gloo lets go of a collective's tensors after whoever waited for it has gone on. If
Python is being torn down by then, the thread ends where it asks for the interpreter's lock, inside
a destructor of C++, and the process aborts: a run that has saved its model is then reported as
failed (exit code -6). PyTorch knows (pull request 179291, issue 190489). It joins these threads
when a group is destroyed that nobody holds any more.
"""

from __future__ import annotations

import atexit
import gc

import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch.distributed.device_mesh import DeviceMesh


def leave_at_exit() -> None:
    """Let this process :func:`leave` as it ends.

    For a run that went well: after a failure a collective may be pending, and it would be waited
    for.
    """
    stay_at_exit()
    atexit.register(leave)


def stay_at_exit() -> None:
    """Take :func:`leave_at_exit` back."""
    atexit.unregister(leave)


def leave() -> None:
    """Destroy the process group, if there is one, and join its threads."""
    if not dist.is_initialized():
        return
    AcceleratorState._reset_state(reset_partial_state=True)
    dist.destroy_process_group()
    # Who still holds it: FSDP's meshes, which DTensor's caches keep, and models, in circles.
    for mesh in [thing for thing in gc.get_objects() if isinstance(thing, DeviceMesh)]:
        getattr(mesh, "_pg_registry", {}).clear()
    gc.collect()
