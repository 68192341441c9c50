"""A whole run on a tiny model, in seconds: files, exit codes, bad arguments, interruption."""

import errno
import json
import os
from dataclasses import replace

import pytest
import torch

import xlnet_fast
from benchmarks import bench_rel_attention, bench_two_stream, run
from benchmarks.bench_concat_memory import Shape
from benchmarks.harness import presets
from benchmarks.harness.record import read_results
from benchmarks.harness.timing import Plan
from xlnet_fast.errors import ArgumentError

PLAN = Plan(min_rounds=1, max_rounds=2, budget_s=0.1, min_sample_us=1.0)
TINY = presets.Preset(
    name="tiny",
    plan=PLAN,
    attention_plan=PLAN,
    dtypes=("fp32",),
    model_shapes=(presets.ModelShape(2, 24, ("forward", "training_step")),),
    attention_shapes=(presets.AttentionShape(1, 24, 8, 2, ("forward", "forward_backward")),),
    pretraining_shapes=(),
    geometry=presets.Geometry("tiny", 2, 32, 2, 48, 600),
    compile_budget_s=0.0,
    model_memory=False,
    small_ops=False,
)


@pytest.fixture(autouse=True)
def no_child(one_cache, monkeypatch):
    monkeypatch.setattr(run.bench_ceilings, "SIZES", {"cpu": (2**16, 64)})
    # The child process takes seconds to start; one test measures with it.
    monkeypatch.setattr(run.MemoryWorker, "peak_mib", lambda *_: 1.0)


def provider_rows(folder):
    return {(r.kernel, r.pass_name, r.provider): r for r in read_results(folder / "results.csv")}


def test_a_run_leaves_csv_environment_plots_and_page(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "model_memory.png").write_text("of an earlier run")
    code = run.run_bench(TINY, device="cpu", out=out)
    rows = provider_rows(out)
    reds = [row.reason for row in rows.values() if row.status == "red"]
    assert code == (1 if reds else 0), reds
    assert rows["model", "forward", "ours"].status == "ok"
    assert rows["model", "forward", "gemm_floor"].status == "ok"
    assert rows["model", "forward", "ours"].time_over_floor > 0
    assert rows["model", "forward", "gemm_floor"].time_over_floor is None
    assert rows["ceiling", "copy", "torch"].bandwidth_gb_s > 0
    assert rows["ceiling", "matmul", "torch"].tflop_per_s > 0
    assert rows["rel_attention", "forward", "ours"].peak_memory_mib == 1.0
    assert rows["model", "forward", "hf_compile"].status == "not_run"
    assert "torch.compile" in rows["model", "forward", "hf_compile"].reason
    assert rows["rel_attention", "forward", "flex"].status == "unavailable"
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "environment.json", "index.html", "model_speedup.png", "model_training_step_speedup.png",
        "notes.txt", "rel_attention_forward_backward_memory.png",
        "rel_attention_forward_backward_speedup.png", "rel_attention_memory.png",
        "rel_attention_speedup.png", "results.csv",
    ]  # fmt: skip
    assert (out / "notes.txt").read_text() == "mine"
    info = json.loads((out / "environment.json").read_text())
    assert info["preset"] == "tiny"
    assert "SentencePiece" in info["text"]
    printed = capsys.readouterr().out
    assert "Whole model, inference" in printed
    assert str(out) in printed.replace("\n", "")


def test_a_wrong_result_turns_the_run_red(tmp_path, monkeypatch):
    genuine = xlnet_fast.accelerate

    def wrong(model, backend):
        genuine(model, backend=backend)
        model.register_forward_hook(lambda *a: setattr(a[2], "last_hidden_state", a[2][0] * 1.01))
        return model

    monkeypatch.setattr(xlnet_fast, "accelerate", wrong, raising=False)
    assert run.run_bench(TINY, device="cpu", out=tmp_path, only=("model",)) == 1
    row = provider_rows(tmp_path)["model", "forward", "ours"]
    assert row.status == "red"
    assert row.p50_us is None
    page = (tmp_path / "index.html").read_text()
    assert "Red check, so no speed-up" in page


def test_an_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch):
    genuine = bench_rel_attention.bench_case
    seen = []

    def second_is_interrupted(session, case):
        seen.append(case)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return genuine(session, case)

    monkeypatch.setattr(bench_rel_attention, "bench_case", second_is_interrupted)
    assert run.run_bench(TINY, device="cpu", out=tmp_path, only=("rel_attention",)) == 130
    rows = provider_rows(tmp_path)
    assert rows["rel_attention", "forward", "ours"].status == "ok"
    assert {key[1] for key in rows} == {"forward"}
    assert "Interrupted" in (tmp_path / "index.html").read_text()


def test_a_full_disk_is_told_in_a_sentence(tmp_path, monkeypatch, capsys):
    def full(self, row):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run.ResultsWriter, "add", full)
    monkeypatch.setattr(run.presets, "preset", lambda *_: TINY)
    assert run.main(["--device", "cpu", "--out", str(tmp_path), "--only", "rel_attention"]) == 2
    assert capsys.readouterr().err == (
        f"error: the results cannot be written to {tmp_path}: No space left on device; --out DIR "
        "writes elsewhere, and what was printed is right\n"
    )


def test_without_time_everything_is_marked_not_run(tmp_path):
    code = run.run_bench(
        TINY, device="cpu", out=tmp_path, only=("rel_attention",), minutes=1e-9, pages=False
    )
    assert code == 1
    rows = provider_rows(tmp_path)
    assert rows["rel_attention", "forward", "ours"].reason == "the time given for the run was over"
    assert not (tmp_path / "index.html").exists()


def test_the_small_ops_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run.bench_masked_softmax, "SHAPES", ((2, 40, 2),))
    shapes = (Shape(3, 2, 40, 30, 20, 2), Shape(3, 1, 40, 90, 0, 2))
    monkeypatch.setattr(run.bench_concat_memory, "SHAPES", shapes)
    two_stream = {"batch": 2, "length": 24, "targets": 5, "memory": 8, "heads": 2}
    monkeypatch.setattr(bench_two_stream, "SHAPES", (two_stream,))
    monkeypatch.setattr(run.bench_latency, "SHAPES", ((1, 24),))
    only = ("masked_softmax", "concat_memory", "two_stream", "latency")
    code = run.run_bench(TINY, device="cpu", out=tmp_path, only=only, append=True)
    rows = provider_rows(tmp_path)
    assert code == 0
    for key in (
        ("concat_memory", "forward"), ("masked_softmax", "forward"), ("masked_softmax", "backward"),
        ("masked_softmax", "forward_backward"), ("two_stream", "forward"),
        ("two_stream", "forward_backward"), ("latency", "forward"),
    ):  # fmt: skip
        assert rows[(*key, "ours")].status == "ok", key
        assert rows[(*key, "hf_eager")].status == "ok", key
    assert rows["concat_memory", "forward", "ours"].bandwidth_gb_s > 0
    assert rows["concat_memory", "forward", "ours"].error == 0.0
    assert rows["concat_memory", "forward", "ours_triton"].status == "unavailable"
    assert rows["latency", "forward", "ours_graph"].reason == "CUDA graphs need a GPU"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_triton_kernels_and_graphs_take_part(tmp_path, monkeypatch):
    two_stream = {"batch": 2, "length": 24, "targets": 5, "memory": 8, "heads": 2}
    monkeypatch.setattr(bench_two_stream, "SHAPES", (two_stream,))
    monkeypatch.setattr(run.bench_masked_softmax, "SHAPES", ((2, 40, 2),))
    monkeypatch.setattr(run.bench_concat_memory, "SHAPES", (Shape(3, 2, 40, 30, 20, 2),))
    monkeypatch.setattr(run.bench_latency, "SHAPES", ((1, 24),))
    monkeypatch.setattr(run.bench_ceilings, "SIZES", {"cuda": (2**20, 256)})
    preset = replace(TINY, dtypes=("bf16",), small_ops=True)
    assert run.run_bench(preset, device="cuda", out=tmp_path, pages=False) == 0
    rows = provider_rows(tmp_path)
    for kernel in ("rel_attention", "two_stream", "masked_softmax", "concat_memory"):
        assert rows[kernel, "forward", "ours_triton"].status == "ok", kernel
    assert rows["rel_attention", "forward", "sdpa_flash"].status == "ok"
    assert rows["rel_attention", "forward_backward", "ours_triton"].time_over_floor > 0
    assert rows["latency", "forward", "ours_graph"].status == "ok"


def test_an_appended_part_keeps_the_record_of_model_and_text(tmp_path):
    run.run_bench(TINY, device="cpu", out=tmp_path, only=("model",), pages=False)
    other = replace(TINY, name="other")
    only = ("ceiling",)
    run.run_bench(other, device="cpu", out=tmp_path, only=only, append=True, pages=False)
    info = json.loads((tmp_path / "environment.json").read_text())
    assert info["model"] == "tiny geometry, random weights"
    assert "SentencePiece" in info["text"]
    assert info["preset"] == "tiny, other"
    run.run_bench(other, device="cpu", out=tmp_path, only=only, pages=False)
    info = json.loads((tmp_path / "environment.json").read_text())
    assert (info["model"], info["preset"]) == ("none", "other")


@pytest.mark.usefixtures("high_water_mark")
def test_the_child_process_measures_memory(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shape = {"queries": 512, "batch": 1, "heads": 4}
    with run.MemoryWorker() as worker:
        hf = worker.peak_mib(bench_rel_attention.__name__, shape | {"provider": "hf_eager"})
        wrong = shape | {"provider": "ours", "dtype": "int8"}
        with pytest.raises(RuntimeError, match="dtype must be one of"):
            worker.peak_mib(bench_rel_attention.__name__, wrong)
        ours = worker.peak_mib(bench_rel_attention.__name__, shape | {"provider": "ours"})
    # Four (n, i, j) tensors at least, 4 MiB each.
    assert 16 < hf < 64
    assert 0 < ours < hf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "preset must be one of quick, full"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"device": "tpu!"}, "device must be cpu, cuda or cuda:N"),
        ({"device": "meta"}, "benchmarks run on cpu and cuda"),
        ({"only": ("model", "nonsense")}, "benchmarks are ceiling, rel_attention"),
        ({"minutes": 0}, "minutes must be positive"),
        ({"text": "no_such_file.txt"}, "does not exist"),
        ({"text": "no_such_file.txt", "only": ("rel_attention",)}, "does not exist"),
    ],
)
def test_bad_arguments_cost_no_earlier_results(tmp_path, arguments, message):
    (tmp_path / "results.csv").write_text("earlier")
    with pytest.raises(ArgumentError, match=message):
        run.run_bench(**({"preset": TINY, "device": "cpu", "out": tmp_path} | arguments))
    assert (tmp_path / "results.csv").read_text() == "earlier"


def test_a_missing_gpu_and_a_bad_folder(tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises(ArgumentError, match="PyTorch sees 0 GPUs"):
            run.run_bench(TINY, device="cuda", out=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="cannot make the folder"):
        run.run_bench(TINY, device="cpu", out=tmp_path / "file" / "out")


def test_the_command_line_says_one_sentence(tmp_path, capsys):
    assert run.main(["--model", str(tmp_path), "--device", "cpu", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
