"""``torch.export``: one program for every batch and length of a range, a file ``.pt2``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.checkpoint import first_line
from xlnet_fast.errors import XLNetFastError
from xlnet_fast.export.check import Ranges, Run
from xlnet_fast.export.source import INPUTS, Source, inputs_of

FILE = "model.pt2"
_EXAMPLE = (3, 7)  # neither is 1, which would be a constant, and they differ


def dimensions(ranges: Ranges) -> tuple[dict[int, Any], tuple[int, int]]:
    """The sizes that are free, and those of the inputs to trace."""
    if ranges.fixed:
        return {}, (ranges.max_batch, ranges.max_length)
    free = {1: torch.export.Dim("length", min=ranges.least_length, max=ranges.max_length)}
    rows, length = 1, max(_EXAMPLE[1], ranges.least_length)
    if ranges.max_batch > 1:
        free[0] = torch.export.Dim("batch", min=1, max=ranges.max_batch)
        rows = min(_EXAMPLE[0], ranges.max_batch)
    return free, (rows, length)


@torch.no_grad()
def traced(source: Source, ranges: Ranges) -> Any:
    """The ``ExportedProgram`` of a model.

    Raises:
        XLNetFastError: it cannot be traced, or is to be portable and has ops of ours.
    """
    free, example = dimensions(ranges)
    given = inputs_of(*example, source.config.vocab_size)
    try:
        program = torch.export.export(source.head, given, dynamic_shapes=[free] * len(INPUTS))
    except Exception as error:  # of the model's code, and of the tracer
        raise XLNetFastError(
            f"torch.export cannot trace {source.name}: {type(error).__name__}: {first_line(error)}"
        ) from error
    own = {str(node.target) for node in program.graph.nodes if "xlnet_fast" in str(node.target)}
    if source.portable and own:
        raise XLNetFastError(f"the program is to be portable, and calls {', '.join(sorted(own))}")
    return program


def write(source: Source, ranges: Ranges, path: Path) -> None:
    """Write the program to a file."""
    torch.export.save(traced(source, ranges), path)


def load(path: Path) -> Run:
    """The program of a file, as a function."""
    run: Run = torch.export.load(path).module()
    return run


def example(file: str, portable: bool) -> list[str]:
    """Lines of Python that load a file and define ``run``."""
    ops = [] if portable else ["import xlnet_fast.ops"]
    return ["import torch", *ops, f'run = torch.export.load("{file}").module()']


def as_tuple(found: Any) -> tuple[Tensor, ...]:
    """What a program gives, one tensor or several."""
    return (found,) if isinstance(found, Tensor) else tuple(found)
