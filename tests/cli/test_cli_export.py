"""``xlnet-fast export``: what it refuses, each in one sentence, with nothing left behind."""

from __future__ import annotations

import sys

import pytest
from command_line import refused, run

from xlnet_fast.export.options import USUAL_CHIP, ExportOptions
from xlnet_fast.kernels.report.tpu import TOPOLOGIES

STABLEHLO = ["M", "--format", "stablehlo", "--output", "a"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "no model was given"),
        (["M"], "format must be one of torch, aoti, onnx, stablehlo, int8, none was given"),
        (["M", "--format", "pickle"], "got 'pickle'"),
        (["M", "--format", "torch"], "no output was given"),
        (["M", "--format", "torch", "--output", "a.onnx"], "expected a folder or a file .pt2"),
        (["M", "--format", "int8", "--output", "a.pt2"], "is no name for int8: expected a folder"),
        (["M", "--format", "int8", "--output", "a", "--max-batch", "3"], "int8 takes any"),
        (["M", "--format", "torch", "--output", "a", "--data", "d.csv"], "data is for int8 alone"),
        (["M", "--format", "onnx", "--output", "a", "--portable"], "ONNX is portable anyway"),
        ([*STABLEHLO, "--portable"], "stablehlo runs without xlnet_fast anyway"),
        (
            STABLEHLO,
            "platform must be one of cpu, tpu, none was given: a program with kernels for a",
        ),
        ([*STABLEHLO, "--platform", "gpu"], "platform must be one of cpu, tpu, got 'gpu'"),
        ([*STABLEHLO, "--platform", "cpu", "--dtype", "fp16"], "one of fp32, bf16, got 'fp16'"),
        ([*STABLEHLO, "--platform", "cpu", "--chip", "v4"], "chip is for platform tpu alone"),
        ([*STABLEHLO, "--platform", "tpu", "--chip", "v9"], "chip 'v9' is not one of v4, v5e"),
        ([*STABLEHLO, "--platform", "tpu", "--max-batch", "0"], "expected at least 1"),
        ([*STABLEHLO, "--platform", "tpu", "--max-length", "3"], "expected at least 8"),
        ([*STABLEHLO[:-1], "a.stablehlo", "--platform", "cpu"], "no name for stablehlo"),
        (
            ["M", "--format", "torch", "--output", "a", "--platform", "cpu"],
            "is for stablehlo alone",
        ),
        (["M", "--format", "int8", "--output", "a", "--dtype", "bf16"], "is for stablehlo alone"),
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
    missing = refused(run(*given, "stablehlo", "--platform", "cpu"))
    assert (
        "jax and torchax and flatbuffers cannot be found: pip install 'xlnet-fast[tpu]'" in missing
    )


def test_jax_that_does_not_import_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "xlnet_fast.export.xla", None)
    given = ("export", "M", "--output", tmp_path / "a", "--format", "stablehlo")
    told = refused(run(*given, "--platform", "tpu"))
    assert "JAX and torchax cannot be imported" in told
    assert "pip install 'xlnet-fast[tpu]'" in told


def test_the_chips_of_the_help_are_those_of_the_compiler():
    shown = ExportOptions.__dataclass_fields__["chip"].metadata["help"]
    assert shown.rpartition(": ")[2].split(", ") == list(TOPOLOGIES)
    assert USUAL_CHIP in TOPOLOGIES
