"""Trains on the Triton kernels under Triton's interpreter; run by ``test_convergence``.

Arguments: a file of tokens, and the sizes of a :class:`Task` as JSON. Prints one JSON object: the
loss of each step, and how often the forward and the backward kernels were called.
"""

from __future__ import annotations

import collections
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from quick_interpreter import speed_up
from tiny_training import Task, loss_curve

from xlnet_fast.kernels.triton import INTERPRETED, rel_attention
from xlnet_fast.ops import _dispatch


def main(tokens_file: str, sizes: str) -> None:
    assert INTERPRETED, "set TRITON_INTERPRET=1"
    torch.set_num_threads(1)
    speed_up()
    # The dispatcher keeps CPU tensors from the GPU kernels; interpreted they take nothing else.
    _dispatch.CAPABILITIES = tuple(
        replace(capability, devices=("cpu",)) if capability.name == "triton" else capability
        for capability in _dispatch.CAPABILITIES
    )
    calls: collections.Counter[str] = collections.Counter()

    def counted(name: str, kernel: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            calls[name] += 1
            kernel(*args, **kwargs)

        return call

    for name in ("forward", "backward"):
        kernel = getattr(rel_attention, f"rel_attention_{name}")
        setattr(rel_attention, f"rel_attention_{name}", counted(name, kernel))
    curve = loss_curve(torch.load(tokens_file), Task(**json.loads(sizes)), backend="triton")
    print(json.dumps({"losses": curve.tolist(), "calls": calls}))


if __name__ == "__main__":
    main(*sys.argv[1:])
