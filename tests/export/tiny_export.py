"""A tiny classifier to export, with its tokenizer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_finetuning import checkpoint
from transformers import XLNetConfig, XLNetForSequenceClassification, XLNetForTokenClassification

from xlnet_fast.export import ExportOptions, export
from xlnet_fast.train.shared.tokenizers import load_tokenizer

LABELS = ("bad", "good", "so so")


def classifier(folder: Path, cls: Any = XLNetForSequenceClassification, **shape: Any) -> Path:
    """One layer, random weights, three labels."""
    checkpoint(folder, n_layer=1)
    config = XLNetConfig.from_pretrained(folder)
    if cls in (XLNetForSequenceClassification, XLNetForTokenClassification):
        config.id2label = dict(enumerate(LABELS))
        config.label2id = {name: i for i, name in enumerate(LABELS)}
    for name, value in shape.items():
        setattr(config, name, value)
    torch.manual_seed(1)
    cls(config).save_pretrained(folder)
    return folder


def exported(model: Path, output: Path, format: str, **changes: Any) -> dict[str, Any]:
    """An export without figures of speed; what is recorded of it."""
    settings = {"model": str(model), "format": format, "output": output, "speed": False}
    if format != "int8":
        settings |= {"max_batch": 4, "max_length": 40}
    return export(ExportOptions(**{**settings, **changes}), lambda line: None).record


def run_as_told(record: dict[str, Any], folder: Path, timeout: float = 100) -> str:
    """What the command of a record prints, in a process and a folder of its own."""
    command = record["run"].replace("python -c", f"{sys.executable} -c", 1)
    done = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def numbers_in(printed: str) -> torch.Tensor:
    """(rows, labels) of the tensor or array that was printed."""
    found = [float(x) for x in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", printed)]
    return torch.tensor(found).view(-1, len(LABELS))


def expected_of(model: Path) -> torch.Tensor:
    """(2, labels) of Hugging Face's own model, for the texts of the command."""
    tokenizer = load_tokenizer(str(model))
    given = tokenizer(["A fine film.", "No."], padding=True, return_tensors="pt")
    with torch.no_grad():
        return XLNetForSequenceClassification.from_pretrained(model).eval()(**given).logits
