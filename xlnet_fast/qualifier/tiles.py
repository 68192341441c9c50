"""Which tile of each Triton attention kernel is the fastest here: chosen before they are proved.

Candidates are those of `kernels.triton.tiles`. One that is not the safe tile is first checked on
the hostile calls of the class that it is timed on; whatever is chosen then runs in all checks and
times that follow, so that a verdict is about the tile that a record names.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass

import torch

from xlnet_fast.kernels.triton import launch, tiles
from xlnet_fast.kernels.triton.tiles import Config
from xlnet_fast.ops.qualification import proof
from xlnet_fast.ops.qualification.record import BACKWARD, FORWARD, PASSED
from xlnet_fast.qualifier.cases import hostile_problems, timed_problems
from xlnet_fast.qualifier.checks import check, rehearse
from xlnet_fast.qualifier.tasks import Task
from xlnet_fast.qualifier.timing import function_of, interleaved

BACKEND = "triton"
BUDGET_S = 0.3  # of rounds for a shape
_WORTH = 1.01  # the safe tile stays unless another is so much faster
_LOADS = {"padded": False, "dropout": True}
"""Classes of `rel_attention` whose calls are timed: whether their kernels are the heavy ones."""


@dataclass(frozen=True)
class Entry:
    """One choice to make, and the class of calls that it is made on."""

    kernel: str
    heavy: bool
    task: Task

    @property
    def key(self) -> str:
        """Its name in a record."""
        return tiles.entry_key(self.kernel, self.task.torch_dtype, self.task.head_dim, self.heavy)

    @property
    def direction(self) -> str:
        """The pass that has the kernel in it."""
        return FORWARD if self.kernel == "forward" else BACKWARD

    def candidates(self, device: torch.device) -> tuple[Config, ...]:
        """The tiles to choose from on a device, the safe one first."""
        dtype, head_dim = self.task.torch_dtype, self.task.head_dim
        arch = launch.arch(device)
        return tiles.candidates(self.kernel, dtype, head_dim, self.heavy, arch)


def entries(tasks: Sequence[Task], device: torch.device) -> Iterator[Entry]:
    """The choices for the dtypes and head dims of tasks; those measured by `tune` are made."""
    measured = tiles.load_tuned().get(tiles.tuned_gpu(launch.gpu_name(device) or ""), {})
    for task in tasks:
        if task.op == "rel_attention" and task.operands in _LOADS:
            for kernel in tiles.KERNELS:
                entry = Entry(kernel, _LOADS[task.operands], task)
                if not any(key.startswith(f"{entry.key}/") for key in measured):
                    yield entry


def choose(
    tasks: Sequence[Task], device: torch.device, end_s: float, begin: Callable[[str], None]
) -> dict[str, list[int]]:
    """The tiles to take in place of the safe ones: `Entry.key` -> fields of `Config`.

    Args:
        end_s: of `time.monotonic`, after which no further choice is begun.
        begin: called with words on each.
    """
    chosen = {}
    for entry in entries(tasks, device):
        if time.monotonic() >= end_s:
            break
        begin(f"tile of {entry.key}")
        best = fastest(entry, device)
        if best is not None:
            chosen[entry.key] = list(astuple(best))
    return chosen


def fastest(entry: Entry, device: torch.device) -> Config | None:
    """The fastest correct tile by the geometric mean over shapes; None where the safe one stays."""
    safe, *others = entry.candidates(device)
    right = [safe, *(config for config in others if is_right(entry, config, device))]
    if not right[1:]:
        return None
    cases = list(timed_problems(entry.task, device, full=False))
    logs = dict.fromkeys(range(len(right)), 0.0)
    for _, make in cases:
        run = function_of(make(), BACKEND, entry.direction)
        functions = {str(n): _forced(entry.kernel, right[n], run) for n in logs}
        try:
            times = interleaved(functions, device, BUDGET_S)
        except Exception:  # the safe tile raises: the checks will meet it, too, and say so
            return None
        logs = {n: log + math.log(t) for n, log in logs.items() if (t := times[str(n)]) is not None}
    best = min(logs, key=lambda n: logs[n])
    gain = math.exp((logs[0] - logs[best]) / len(cases))
    return right[best] if gain > _WORTH else None


def use(chosen: Mapping[str, Sequence[int]]) -> None:
    """Have every kernel of this process take its safe tile or the one that was chosen."""
    proof.give_tiles(chosen)
    tiles.recorded_on = proof.recorded_tiles


def is_right(entry: Entry, config: Config, device: torch.device) -> bool:
    """Whether a tile passes the hostile calls of the class that it is timed on."""
    with tiles.using(entry.kernel, config):
        problems = hostile_problems(entry.task, device, full=False)
        return check(problems, BACKEND, entry.direction, device).status == PASSED


def compile_candidates(
    tasks: Sequence[Task], device: torch.device, is_over: Callable[[], bool]
) -> None:
    """Every candidate once on every call that it is checked and timed on, whatever comes of it."""
    for entry in entries(tasks, device):
        for config in entry.candidates(device)[1:]:
            if is_over():
                return
            with tiles.using(entry.kernel, config):
                for problem in hostile_problems(entry.task, device, full=False):
                    rehearse(problem, BACKEND, entry.direction)
                for _, make in timed_problems(entry.task, device, full=False):
                    rehearse(make(), BACKEND, entry.direction)


def _forced(kernel: str, config: Config, run: Callable[[], object]) -> Callable[[], object]:
    def call() -> object:
        with tiles.using(kernel, config):
            return run()

    return call
