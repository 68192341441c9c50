"""Checkpoints that are trained to be checked: two short ones, and what is said of the verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.micro import trained_checkpoints
from xlnet_fast.check import Verdict


def verdict(status: str, cancelling: int = 0) -> Verdict:
    where = ("training step", "cpu", "fp32", "sdpa")
    return Verdict(*where, status, "d q" if status == "FAILED" else "", 3, "d q", 1, 2, cancelling)


@pytest.mark.parametrize(("second", "code"), [("ok", 0), ("FAILED", 1)])
def test_what_is_said_and_the_exit_code(second, code, monkeypatch, capsys):
    answers = iter([[verdict("ok", 2), verdict("not run")], [verdict("ok"), verdict(second)]])
    monkeypatch.setattr(trained_checkpoints, "pretrained", lambda *_: Path("a"))
    monkeypatch.setattr(trained_checkpoints, "finetuned", lambda *_: Path("b"))
    monkeypatch.setattr(trained_checkpoints, "load_model", lambda name: (name, name))
    monkeypatch.setattr(trained_checkpoints, "check_model", lambda _: next(answers))
    assert trained_checkpoints.main(["--count", "2"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0, pretrained: 1 passed, 2 tensors by every step's rounding"
    assert lines[1].startswith("1, fine-tuned: ")
    assert ("  FAILED: training step, fp32, sdpa: d q" in lines) == bool(code)
    assert lines[-1] == f"{2 - code} of 2 checkpoints pass"


@pytest.mark.slow
def test_both_kinds_are_trained(monkeypatch, capsys):
    seen = []

    def check_model(model):
        seen.append(type(model).__name__)
        return [verdict("ok")]

    monkeypatch.setattr(trained_checkpoints, "check_model", check_model)
    assert trained_checkpoints.main(["--count", "2", "--steps", "2"]) == 0
    assert seen == ["XLNetLMHeadModel", "XLNetForSequenceClassification"]
    assert "2 of 2 checkpoints pass" in capsys.readouterr().out
