"""Programs of XLA: written, read again and run where neither torch nor the package can be imported.

One for a TPU is run with its kernels interpreted, and compiled for a chip that is not here.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys

import pytest

pytest.importorskip("jax", reason="programs of XLA need JAX: pip install xlnet-fast[tpu]")
pytest.importorskip("torchax", reason="torchax makes them: pip install xlnet-fast[tpu]")
pytest.importorskip("flatbuffers", reason="JAX writes them by it: pip install xlnet-fast[tpu]")

import jax
import torch
import transformers
from safetensors import safe_open
from tiny_export import classifier, expected_of, exported, numbers_in
from torchax.ops import ops_registry

from xlnet_fast.errors import XLNetFastError
from xlnet_fast.export import source, stablehlo, xla
from xlnet_fast.export.check import Ranges
from xlnet_fast.export.stablehlo import WEIGHTS, StableHLO
from xlnet_fast.kernels.report import tpu

LENGTH = 24
ONE_SHAPE = {"max_batch": 2, "max_length": LENGTH}
# What a machine of JAX alone lacks: importing these raises there.
ABSENT = "import sys\nsys.modules.update(dict.fromkeys(('torch', 'torchax', 'xlnet_fast')))\n"
TRIED = """
for shape in {shapes}:
    try:
        print(shape, run(*[np.ones(shape, "int64")] * 3)[0].shape)
    except ValueError as error:
        print(shape, error)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def for_cpu(model, tmp_path_factory):
    """The record, the folder, and what was so in this process before and after."""
    folder = tmp_path_factory.mktemp("cpu") / "out"
    before = process()
    with pytest.MonkeyPatch.context() as patch:  # each shape is a compilation
        patch.setattr(Ranges, "shapes", lambda ranges: [(1, 1), (4, 5), (3, 40)])
        record = exported(model, folder, "stablehlo", platform="cpu")
    return record, folder, before, process()


@pytest.fixture(scope="module")
def for_tpu(model, tmp_path_factory):
    """The record, the folder, the program as it was run here, and the state of this process."""
    folder = tmp_path_factory.mktemp("tpu") / "out"
    runs, load, before = [], StableHLO.load, process()

    def noted(self, path):
        runs.append(load(self, path))
        return runs[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StableHLO, "load", noted)
        record = exported(model, folder, "stablehlo", platform="tpu", **ONE_SHAPE)
    return record, folder, runs[0], before, process()


def process():
    """What an export might leave behind in the process."""
    values = dict(jax.config.values)
    lowered = {str(op) for op in ops_registry.all_aten_ops if "xlnet_fast" in str(op)}
    return dict(os.environ), torch.backends.mha.get_fastpath_enabled(), values, lowered


def run_without_torch(record, folder, shapes):
    """What the command prints with JAX alone, then what it says of arrays of other shapes."""
    code = shlex.split(record["run"])[2] + TRIED.format(shapes=shapes)
    done = subprocess.run(
        [sys.executable, "-c", ABSENT + code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_runs_without_torch_for_all_of_the_range(model, for_cpu):
    record, folder, *_ = for_cpu
    assert record == json.loads((folder / "export.json").read_text())
    shapes = [(1, 1), (4, 40), (5, 7), (2, 41), (0, 3), (1, 0)]
    code, printed, problems = run_without_torch(record, folder, shapes)
    assert code == 0, problems[-2000:]
    logits, *told = printed.split("\n(", maxsplit=1)[0], *printed.splitlines()[-len(shapes) :]
    torch.testing.assert_close(numbers_in(logits), expected_of(model), atol=1e-4, rtol=0)
    assert told == [
        "(1, 1) (1, 3)",
        "(4, 40) (4, 3)",
        "(5, 7) batch is 5, expected 1 to 4",
        "(2, 41) length is 41, expected 1 to 40",
        "(0, 3) batch is 0, expected 1 to 4",
        "(1, 0) length is 0, expected 1 to 40",
    ]


def test_the_record_says_what_lies_there(for_cpu):
    record, folder, *_ = for_cpu
    assert record["needs"] == ["jax", "flatbuffers", "numpy", "safetensors"]
    assert record["inputs"] == dict.fromkeys(source.INPUTS, "int32 (batch, length)")
    assert record["ranges"] == {"batch": [1, 4], "length": [1, 40]}
    assert record["versions"]["jax"] == jax.__version__
    assert (record["platform"], record["dtype"]) == ("cpu", "fp32")
    assert {(x["rows"], x["length"]) for x in record["checked"]} == {(1, 1), (4, 5), (3, 40)}
    program = xla.read(folder / StableHLO.FILE)
    assert program.platforms == ("cpu",)
    assert program.calling_convention_version == record["calling_convention_version"]
    with safe_open(folder / WEIGHTS, "np") as weights:
        assert [*weights.keys(), *source.INPUTS] == record["arguments"]
    assert len(program.in_avals) == len(record["arguments"])
    modes = {stat.S_IMODE((folder / name).stat().st_mode) for name in (WEIGHTS, "export.json")}
    assert len(modes) == 1  # who may read one may read all


def test_an_export_leaves_the_process_as_it_was(for_cpu, for_tpu):
    for *_, before, after in (for_cpu, for_tpu):
        assert before == after


def test_a_program_for_a_tpu_holds_our_kernels(for_tpu):
    record, folder, *_ = for_tpu
    program = xla.read(folder / StableHLO.FILE)
    text = program.mlir_module()
    assert program.platforms == ("tpu",)
    assert record["kernels"] == text.count("@tpu_custom_call") == 1
    assert "[HIGHEST, HIGHEST]" in text  # else a TPU multiplies fp32 in one pass of bf16
    assert record["matmul_precision"] == "highest"
    assert record["inputs"]["input_ids"] == f"int32 (2, {LENGTH})"
    assert record["ranges"] == {"batch": [2, 2], "length": [LENGTH, LENGTH]}
    assert record["chip"] == "v5e"
    assert "speed" not in record


def test_rows_without_a_token_are_hugging_faces_too(model, for_tpu):
    _, _, run, *_ = for_tpu
    given = source.inputs_of(2, LENGTH, 200, padding=[3, LENGTH])
    (expected,) = source.read(str(model)).plain(*given)
    torch.testing.assert_close(run(*given)[0], expected, atol=1e-6, rtol=0)


def test_where_no_tpu_is_the_command_says_so(for_tpu, monkeypatch):
    record, folder, *_ = for_tpu
    if jax.default_backend() == "tpu":
        pytest.skip("here is one")
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=r"for platforms '\('tpu',\)' but it is used on '\('cpu',"):
        exec(shlex.split(record["run"])[2], {})
    assert 'padding="max_length", truncation=True, max_length=24' in record["run"]


def test_the_compilers_figures_are_told_as_such(for_tpu):
    pytest.importorskip("libtpu", reason="the compiler of TPUs: pip install xlnet-fast[tpu]")
    record, *_ = for_tpu
    assert record["compiled"]["note"] == "the compiler's figures, not a measurement"
    assert record["compiled"]["temporary_bytes"] > 0
    assert record["compiled"]["flops"] > 2 * 32 * LENGTH * 2 * 200


def test_what_does_not_compile_for_a_chip_is_told(monkeypatch):
    pytest.importorskip("libtpu", reason="the compiler of TPUs: pip install xlnet-fast[tpu]")
    format = StableHLO("tpu", chip="v4")
    format._ranges = Ranges(1, 1, 8, fixed=True)
    monkeypatch.setattr(xla, "shapes", lambda *given: [])

    class Failing:
        def call(self):
            raise ValueError("no such instruction\nand a page of it")

    told = "cannot be compiled for v4: no such instruction; nothing was written"
    with pytest.raises(XLNetFastError, match=told):
        format._compiled(Failing(), print)
    monkeypatch.setattr(stablehlo.importlib.util, "find_spec", lambda name: None)
    said = []
    assert format._compiled(Failing(), said.append) is None
    assert said == ["libtpu is not here: the program was not compiled for v4"]


def test_a_program_that_lacks_a_kernel_is_not_written(tmp_path, monkeypatch):
    class OfOneKernel:
        def mlir_module(self):
            return "func.func public @main(%x) {\n stablehlo.custom_call @tpu_custom_call(%x)\n}"

    monkeypatch.setattr(stablehlo, "traced", lambda source, ranges: None)
    monkeypatch.setattr(xla, "lower", lambda program: xla.Lowered({}, None, 2))
    monkeypatch.setattr(StableHLO, "_exported", lambda self, platform: OfOneKernel())
    with pytest.raises(XLNetFastError, match="has 1 kernels for 2 calls of our attention"):
        StableHLO("tpu").write(None, Ranges(2, 1, 8, fixed=True), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_model_in_bf16_is_multiplied_as_a_tpu_does(model, tmp_path):
    read = source.read(str(model), dtype=torch.bfloat16)
    format, ranges = StableHLO("tpu", "bf16"), Ranges(1, 1, 8, fixed=True)
    format.require()
    format.write(read, ranges, tmp_path / format.FILE)
    text = xla.read(tmp_path / format.FILE).mlir_module()
    assert "HIGHEST" not in text
    assert "xbf16>" in text
    with safe_open(tmp_path / WEIGHTS, "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(
    "name",
    [
        "XLNetModel",
        "XLNetLMHeadModel",
        "XLNetForTokenClassification",
        "XLNetForMultipleChoice",
        "XLNetForQuestionAnsweringSimple",
        "XLNetForQuestionAnswering",
    ],
)
def test_every_head_is_the_model_up_to_rounding(name, platform, tmp_path):
    """``export`` itself compares, shape by shape, and raises."""
    folder = classifier(tmp_path / "model", getattr(transformers, name))
    record = exported(folder, tmp_path / "out", "stablehlo", platform=platform, **ONE_SHAPE)
    assert all(one["error"] <= one["bound"] for one in record["checked"])
    names = [x for x in record["arguments"] if "word_embedding" in x or "lm_loss.weight" in x]
    assert len(names) == 1  # tied weights lie there once


@pytest.mark.slow
@pytest.mark.parametrize("chip", tpu.TOPOLOGIES)
def test_kernels_of_every_layer_for_every_chip(chip, tmp_path):
    folder = classifier(tmp_path / "model")
    pytest.importorskip("libtpu", reason="the compiler of TPUs: pip install xlnet-fast[tpu]")
    config = json.loads((folder / "config.json").read_text())
    torch.manual_seed(0)
    shape = transformers.XLNetConfig(**{**config, "n_layer": 3})
    transformers.XLNetForSequenceClassification(shape).save_pretrained(folder)
    record = exported(
        folder, tmp_path / "out", "stablehlo", platform="tpu", chip=chip, dtype="bf16", **ONE_SHAPE
    )
    assert record["kernels"] == 3
    assert record["chip"] == chip
    assert record["compiled"]["temporary_bytes"] > 0
