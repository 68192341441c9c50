"""The micro-benchmark of attention over cached keys: a row for every shape, nothing wrong timed."""

from __future__ import annotations

import io

import pytest
import torch
from cpu_kernels import needs_kernels
from rich.console import Console

from benchmarks.micro import cached_attention

SHAPES = ((1, 5, 3), (2, 20, 1))


@pytest.fixture(autouse=True)
def few_layers(monkeypatch):
    monkeypatch.setattr(cached_attention, "BEYOND_CACHES", 1 << 16)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_for_each_shape(dtype):
    out = io.StringIO()
    cached_attention.compare(dtype, 2, SHAPES, Console(file=out, width=110))
    head, *rows = out.getvalue().splitlines()
    assert head.split()[:4] == ["batch", "keys", "rows", "ours"]
    for row, shape in zip(rows, SHAPES, strict=True):
        words = row.split()
        assert tuple(map(int, words[:3])) == shape
        assert 0.0 <= float(words[-1]) <= 1.0


@needs_kernels
def test_what_is_wrong_is_not_timed(monkeypatch):
    monkeypatch.setattr(cached_attention, "ours", lambda operands, options: operands[0])
    with pytest.raises(RuntimeError, match="1x5: error"):
        cached_attention.compare(torch.float32, 2, SHAPES, Console(file=io.StringIO()))


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--dtype", "fp64"]])
def test_refuses(arguments, capsys):
    with pytest.raises(SystemExit):
        cached_attention.main(arguments)
    assert arguments[0] in capsys.readouterr().err
