"""``xlnet-fast export``: what it refuses, each in one sentence, with nothing left behind."""

from __future__ import annotations

import pytest
from command_line import refused, run


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "no model was given"),
        (["M"], "format must be one of torch, aoti, onnx, int8, none was given"),
        (["M", "--format", "pickle"], "got 'pickle'"),
        (["M", "--format", "torch"], "no output was given"),
        (["M", "--format", "torch", "--output", "a.onnx"], "expected a folder or a file .pt2"),
        (["M", "--format", "int8", "--output", "a.pt2"], "is no name for int8: expected a folder"),
        (["M", "--format", "int8", "--output", "a", "--max-batch", "3"], "int8 takes any"),
        (["M", "--format", "torch", "--output", "a", "--data", "d.csv"], "data is for int8 alone"),
        (["M", "--format", "onnx", "--output", "a", "--portable"], "ONNX is portable anyway"),
        (["M", "--format", "torch", "--output", "a", "--max-batch", "0"], "expected at least 1"),
        (["M", "--format", "torch", "--output", "a", "--max-length", "7"], "expected at least 8"),
        (["M", "--format", "torch", "--output", "no/a"], "the folder no does not exist"),
        (["M", "--format", "torch", "--output", "full"], "holds other things than an export"),
        (["/no/model", "--format", "torch", "--output", "a"], "/no/model does not exist"),
    ],
)
def test_refusals(given, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letters.txt").touch()
    assert told in refused(run("export", *given))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_what_a_format_lacks_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    given = ("export", "M", "--output", tmp_path / "a", "--format")
    assert "--format torch needs no compiler" in refused(run(*given, "aoti"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install onnxscript onnxruntime" in refused(run(*given, "onnx"))
