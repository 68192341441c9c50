"""The table of attention within a window: a row a shape, and no figure of what is wrong."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from cpu_kernels import needs_kernels
from rich.console import Console

from benchmarks.micro import window
from xlnet_fast.masks import AttentionMask


@needs_kernels
@pytest.mark.parametrize("backward", [False, True])
def test_a_row_for_each_shape(backward):
    out = io.StringIO()
    console = Console(file=out, width=110)
    window.compare(torch.float32, 2, backward, ((2, 30), (1, 90)), console)
    head, *rows = out.getvalue().splitlines()
    assert head.split() == ["batch", "frames", "all,", "ms", "window", "chunks", "bits"]
    assert [row.split()[:2] for row in rows] == [["2", "30"], ["1", "90"]]
    assert all(float(row.split()[3]) > 0 for row in rows)


@needs_kernels
def test_a_wrong_result_is_not_timed(monkeypatch):
    monkeypatch.setattr(window, "masks_of", lambda frames: {"all": None, "wider": None})
    right = window.attend

    def attend(operands, mask, backward, backend="cpu"):
        wide = AttentionMask(window=(5, 5 + (backend == "cpu")))
        return right(operands, wide, backward, backend)

    monkeypatch.setattr(window, "attend", attend)
    with pytest.raises(RuntimeError, match=r"all: error .* and the rule allows"):
        window.compare(torch.float32, 1, False, ((1, 9),), Console(file=io.StringIO()))


def test_rounds_are_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["window", "--rounds", "0"])
    with pytest.raises(SystemExit):
        window.main()
    assert "at least 1" in capsys.readouterr().err
