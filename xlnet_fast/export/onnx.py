"""ONNX: PyTorch's own code of the model, for onnxruntime and others, a file ``.onnx``."""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from xlnet_fast.checkpoint import first_line
from xlnet_fast.errors import XLNetFastError
from xlnet_fast.export import packages
from xlnet_fast.export.check import Ranges, Run
from xlnet_fast.export.program import dimensions
from xlnet_fast.export.source import INPUTS, Source, inputs_of

FILE = "model.onnx"
_NEEDED = ("onnxscript", "onnxruntime")  # to write, to check


def require() -> None:
    """Before minutes of work: is all here?

    Raises:
        XLNetFastError: says what to install.
    """
    why = "ONNX is written by onnxscript and checked in onnxruntime before it is kept"
    packages.require(why, _NEEDED, f"pip install {' '.join(_NEEDED)}")


@torch.no_grad()
def write(source: Source, ranges: Ranges, path: Path) -> None:
    """Write the graph; PyTorch puts weights of more than a GB or two into files beside it.

    Raises:
        XLNetFastError: PyTorch's exporter fails.
    """
    free, example = dimensions(ranges)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about names of axes
            program = torch.onnx.export(
                source.head,
                inputs_of(*example, source.config.vocab_size),
                dynamo=True,
                verbose=False,
                dynamic_shapes=[free] * len(INPUTS),
                input_names=list(INPUTS),
                output_names=list(source.head.outputs),
            )
    except Exception as error:  # of the model's code, the tracer and onnxscript
        cause = error.__cause__ or error
        raise XLNetFastError(
            f"{source.name} cannot be exported to ONNX: {type(cause).__name__}: {first_line(cause)}"
        ) from error
    assert program is not None
    program.save(str(path))


def load(path: Path) -> Run:
    """The graph of a file in onnxruntime on the CPU, as a function."""
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    # As many threads as PyTorch has, so that figures compare.
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        feed = {name: x.numpy() for name, x in zip(INPUTS, given, strict=True)}
        return tuple(torch.from_numpy(x) for x in session.run(None, feed))

    return run


def example(file: str, portable: bool) -> list[str]:
    """Lines of Python that load a file and define ``run``; of tensors, as the other formats."""
    return [
        "import onnxruntime, torch",
        f'session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])',
        f"names = {json.dumps(INPUTS)}",
        "run = lambda *x: session.run(None, {n: t.numpy() for n, t in zip(names, x)})",
    ]
