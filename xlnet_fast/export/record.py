"""``export.json``: what an export is, what was seen when it was checked, and how to run it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from xlnet_fast._version import __version__
from xlnet_fast.export.check import Ranges, Seen
from xlnet_fast.export.options import ExportOptions
from xlnet_fast.export.source import INPUTS, Source

FILE = "export.json"
_NEEDS = {
    "torch": ["torch", "xlnet_fast"],
    "aoti": ["torch", "xlnet_fast"],
    "onnx": ["onnxruntime"],
    "stablehlo": ["jax", "flatbuffers", "numpy", "safetensors"],
    "int8": ["torch", "transformers", "xlnet_fast"],
}

_TEXTS = '"A fine film.", "No."'


def record_path(output: Path, is_file: bool) -> Path:
    """In a folder ``export.json``, beside a file ``NAME.export.json``."""
    return output.with_name(f"{output.name}.{FILE}") if is_file else output / FILE


def facts(source: Source, options: ExportOptions) -> dict[str, Any]:
    """What is so before anything is checked."""
    assert options.format is not None
    needs = _NEEDS[options.format]
    versions = {
        "xlnet_fast": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    if options.format == "onnx":
        for name in ("onnxscript", "onnxruntime"):
            versions[name] = importlib.metadata.version(name)
    found: dict[str, Any] = {
        "format": options.format,
        "portable": options.portable or options.format in ("onnx", "stablehlo"),
        "needs": ["torch"] if options.portable else needs,
        "architecture": source.architecture,
        "inputs": dict.fromkeys(INPUTS, "int64 (batch, length)"),
        "outputs": list(source.head.outputs),
        "versions": versions,
    }
    if options.format == "aoti":
        found["machine"] = platform.machine()
        found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    if source.labels is not None:
        found["labels"] = source.labels
    return found


def of_check(seen: Sequence[Seen], ranges: Ranges) -> dict[str, Any]:
    """The range, and what was found at which shape."""
    return {
        "ranges": {
            "batch": [ranges.max_batch if ranges.fixed else 1, ranges.max_batch],
            "length": [
                ranges.max_length if ranges.fixed else ranges.least_length,
                ranges.max_length,
            ],
        },
        "checked": [asdict(one) for one in seen],
    }


def command(lines: Sequence[str], has_tokenizer: bool) -> str:
    """What runs an export from the folder it lies in: one line of a shell.

    Args:
        lines: Python that defines ``run`` of three tensors. has_tokenizer: whether one lies there.
    """
    code = [*lines]
    if has_tokenizer:
        code += _tokenized(f"[{_TEXTS}]", 'padding=True, return_tensors="pt"')
    else:
        code += [
            "ids = torch.tensor([[17, 22, 4, 3]])",
            "given = [ids, torch.ones_like(ids), torch.tensor([[0, 0, 0, 2]])]",
        ]
    return _shell([*code, "with torch.no_grad(): print(run(*given))"])


def command_of_arrays(lines: Sequence[str], ranges: Ranges) -> str:
    """As :func:`command`, of an export whose ``run`` is of arrays, beside a tokenizer.

    Rows and tokens that fixed ranges have more than the texts are padding.
    """
    texts, options = f"[{_TEXTS}]", "padding=True"
    if ranges.fixed:
        texts = f'[{_TEXTS}, *[""] * {ranges.max_batch}][:{ranges.max_batch}]'
        options = f'padding="max_length", truncation=True, max_length={ranges.max_length}'
    made = _tokenized(texts, f'{options}, return_tensors="np"')
    return _shell([*lines, *made, "print(run(*given))"])


def _tokenized(texts: str, options: str) -> list[str]:
    """Lines of Python that define ``given``."""
    return [
        "from transformers import XLNetTokenizer",
        'words = XLNetTokenizer.from_pretrained(".")',
        f"text = words({texts}, {options})",
        f"given = [text[name] for name in {json.dumps(INPUTS)}]",
    ]


def _shell(code: Sequence[str]) -> str:
    return f"python -c {shlex.quote(chr(10).join(code))}"
