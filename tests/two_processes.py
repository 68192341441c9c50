"""Two processes of one gloo group on a CPU, as torchrun starts them and within milliseconds."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import torch

from xlnet_fast.train.shared import process_group


def in_two_processes(function: Callable[..., None], *args: Any) -> None:
    """Run ``function(rank, *args)`` in both; variables of this process do not reach them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [forked.process(_as_rank, rank, port, function, *args) for rank in range(2)]
    for child in children:
        child.start()
    try:
        for child in children:
            child.join(timeout=240)
            assert child.exitcode == 0, f"a process ended with {child.exitcode}"
    finally:
        for child in children:
            child.kill()


def _as_rank(rank: int, port: int, function: Callable[..., None], *args: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    function(rank, *args)
    process_group.leave()
    tasks = Path("/proc/self/task").glob("*/comm")
    assert not [name for task in tasks if "gloo" in (name := task.read_text())]
