"""The calls that stand for a class: hostile ones to be right on, ordinary ones to be timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from xlnet_fast.qualifier.attention import FAR, HOSTILE, MORE_HOSTILE, Size, attention_problem
from xlnet_fast.qualifier.problems import Problem, fits_far
from xlnet_fast.qualifier.small_ops import linear_problem, memory_problem, softmax_problem
from xlnet_fast.qualifier.tasks import ATTENTION, Task

HEADS = 12
WINDOW = (70, 13)
"""Keys that a row sees to the left and to the right, as in a streaming speech encoder."""
_SHAPES = {"cpu": ((2, 128), (1, 32)), "cuda": ((8, 512), (1, 128), (2, 2048))}
_MORE_SHAPES = {"cpu": ((2, 512),), "cuda": ((32, 512), (4, 4096))}
_LINEAR = {
    "float32": ((64, 768, 768), (256, 768, 3072)),
    "bfloat16": ((1, 768, 3072), (16, 768, 768)),
}


TimedCase = tuple[str, Callable[[], Problem]]
"""A shape in words, and how to make a call of it."""


def hostile_problems(task: Task, device: torch.device, full: bool) -> Iterator[Problem]:
    """Small calls with everything that a kernel may trip over."""
    if task.op in ATTENTION:
        for number, size in enumerate(HOSTILE + (MORE_HOSTILE if full else ())):
            yield attention_problem(task, size, device, seed=number)
        if full and fits_far(task.torch_dtype, device):
            yield attention_problem(task, FAR, device, seed=9)
    elif task.op == "masked_softmax":
        yield softmax_problem(task, (3, 2, 65, 37), device, seed=1)
        yield softmax_problem(task, (2, 3, 130, 1), device, seed=2, with_all=False)
        yield softmax_problem(task, (8, 4, 1, 70), device, seed=3)
        if full:
            yield softmax_problem(task, (2, 2, 33, 1027), device, seed=4)
        if full and fits_far(task.torch_dtype, device):
            yield softmax_problem(task, (2, 2, 40, 9), device, seed=9, far=True)
    elif task.op == "concat_memory":
        yield memory_problem(task, (33, 3, 130, 65), 70, device)
        yield memory_problem(task, (5, 1, 17, 0), 3, device)
        yield memory_problem(task, (1, 2, 64, 9), 1000, device)
    else:
        yield linear_problem(task, (65, 130, 70), device, "gelu")
        yield linear_problem(task, (33, 64, 129), device, residual=True)
        yield linear_problem(task, (1, 258, 650), device, bias=False)


def timed_problems(task: Task, device: torch.device, full: bool) -> Iterator[TimedCase]:
    """The usual shape first; calls are made one at a time, for the memory's sake."""
    if task.op == "linear":
        for sizes in _LINEAR[task.dtype]:
            yield "x".join(map(str, sizes)), _maker(linear_problem, task, sizes, device, "gelu")
        return
    for batch, length in _SHAPES[device.type] + (_MORE_SHAPES[device.type] if full else ()):
        shape = f"{batch}x{length}"
        if task.op in ATTENTION:
            size = model_size(task, batch, length)
            yield shape, _maker(attention_problem, task, size, device, hostile=False)
        elif task.op == "masked_softmax":
            scores = (batch, HEADS, length, length // 2)
            yield shape, _maker(softmax_problem, task, scores, device, hostile=False)
        else:
            rows = (length, batch, HEADS * 64, length)
            yield shape, _maker(memory_problem, task, rows, length, device)


def model_size(task: Task, batch: int, length: int) -> Size:
    """A call as a model makes it: half as much memory as text, a sixth of the text predicted."""
    memory = length // 2 if "memory" in task.features else 0
    targets = max(1, length // 6) if "positions" in task.features else None
    size = Size(
        batch, length, memory, HEADS, targets=targets, see_self=task.op == "rel_attention",
        window=WINDOW,
    )  # fmt: skip
    return replace(size, see_self=False) if targets is not None else size


def _maker(
    make: Callable[..., Problem], *arguments: object, **named: object
) -> Callable[[], Problem]:
    return lambda: make(*arguments, **named)
