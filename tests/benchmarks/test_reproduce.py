"""One command for a GPU machine: stages that fail are reported and do not stop the others."""

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import configs, reproduce
from benchmarks.record import ResultsWriter, Row, environment
from benchmarks.run import KERNELS


def test_a_failing_stage_does_not_stop_the_others():
    said, done = [], []
    now = iter(range(100))
    stages = reproduce.StageRunner(said.append, clock=lambda: next(now))
    stages.run("first", lambda: done.append(1) or "fine")

    def fails():
        raise reproduce.StageFailed("compiler exploded\nlong trace")

    stages.run("second", fails)
    stages.run("third", lambda: pytest.fail("was to be skipped"), skip="there is no GPU here")
    stages.run("fourth", lambda: done.append(4))
    assert done == [1, 4]
    assert [r.status for r in stages.results] == ["ok", "failed", "skipped", "ok"]
    assert stages.failed() == ["second"]
    assert stages.results[1].detail == "StageFailed: compiler exploded"
    assert stages.results[0].seconds == 1
    assert any("second: failed" in line and "exploded" in line for line in said)


def test_a_command_gives_its_last_line_and_a_log_without_paths(tmp_path):
    log = tmp_path / "log.txt"
    code = f"print('a'); print({str(reproduce.ROOT)!r} + '/setup.py'); print('last')"
    assert reproduce.run_command([sys.executable, "-c", code], 60, log) == "last"
    assert log.read_text().splitlines() == ["a", "setup.py", "last"]


def test_a_failing_and_a_slow_command_raise_and_keep_their_output(tmp_path):
    log = tmp_path / "log.txt"
    fails = "print('why', flush=True); raise SystemExit(3)"
    with pytest.raises(reproduce.StageFailed, match=r"exit code 3 \(see log.txt\) why"):
        reproduce.run_command([sys.executable, "-c", fails], 60, log)
    slow = "import time; print('began', flush=True); time.sleep(60)"
    with pytest.raises(reproduce.StageFailed, match="not done after 1 s"):
        reproduce.run_command([sys.executable, "-c", slow], 0.5, log)
    assert log.read_text() == "began\n"


def test_only_files_with_the_gpu_marker_are_collected(tmp_path):
    tests = tmp_path / "tests"
    (tests / "below").mkdir(parents=True)
    (tests / "test_a.py").write_text("import hypothesis\n")
    (tests / "below" / "test_b.py").write_text("@pytest.mark.gpu\ndef test_b(): pass\n")
    assert reproduce.gpu_test_files(tests) == [str(Path("tests/below/test_b.py"))]
    assert reproduce.gpu_test_files(reproduce.ROOT / "tests")


def rows_into(out, only):
    times = {"hf_eager": 8.0, "ours": 4.0}
    with ResultsWriter(out / "results.csv", environment("cpu"), "quick", append=True) as writer:
        for provider, time_us in times.items():
            kernel = "model" if "model" in only else "rel_attention"
            writer.add(
                Row(
                    kernel, provider, "forward", "fp32", 1, 8, 0, 1, 8, 1, "plain", "ok", "", 3,
                    time_us, time_us, time_us, 8.0 / time_us,
                )
            )  # fmt: skip


@pytest.fixture
def stubbed(monkeypatch):
    """Stages that take no time; each may be replaced by a test."""

    def build(out, timeout_s, has_gpu):
        (out / "build.txt").write_text("built\n")
        return "built"

    def bench(out, part, device, minutes):
        assert minutes > 0
        rows_into(out, part.only)

    monkeypatch.setattr(reproduce, "_build", build)
    monkeypatch.setattr(reproduce, "_bench", bench)
    monkeypatch.setattr(reproduce.torch.cuda, "is_available", lambda: False)
    return monkeypatch


def summary(out):
    stages = json.loads((out / "reproduce.json").read_text())["stages"]
    return {stage["name"]: stage["status"] for stage in stages}


def test_without_a_gpu_it_says_so_and_times_the_cpu(tmp_path, stubbed, capsys):
    assert reproduce.main(["--minutes", "5", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "there is no GPU here" in printed
    assert "Whole model, inference" in printed
    assert "2.00x" in printed
    assert summary(tmp_path) == {
        "build": "ok", "GPU tests": "skipped", "kernels": "ok", "models": "ok",
        "plots and page": "ok",
    }  # fmt: skip
    assert json.loads((tmp_path / "environment.json").read_text())["device_type"] == "cpu"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "build.txt", "environment.json", "index.html", "model_speedup.png",
        "rel_attention_speedup.png", "reproduce.json", "results.csv",
    }  # fmt: skip
    assert len(names) + len({"tests.txt"}) <= 8
    assert "GPU tests skipped" in (tmp_path / "index.html").read_text()


def test_failing_stages_are_reported_and_the_rest_is_written(tmp_path, stubbed, capsys):
    def build(out, timeout_s, has_gpu):
        raise reproduce.StageFailed("no compiler")

    def bench(out, part, device, minutes):
        if "model" in part.only:
            raise reproduce.StageFailed("exit code 1")
        rows_into(out, part.only)

    stubbed.setattr(reproduce, "_build", build)
    stubbed.setattr(reproduce, "_bench", bench)
    assert reproduce.reproduce(5, tmp_path) == 1
    found = summary(tmp_path)
    assert found["build"] == found["models"] == "failed"
    assert found["kernels"] == found["plots and page"] == "ok"
    page = (tmp_path / "index.html").read_text()
    assert "Stage build failed: StageFailed: no compiler" in page
    assert "Failed: build, models." in capsys.readouterr().out


def test_when_no_benchmark_leaves_results_the_page_fails_too(tmp_path, stubbed):
    def bench(*_):
        raise reproduce.StageFailed("crashed")

    (tmp_path / "results.csv").write_text("of an earlier run")
    stubbed.setattr(reproduce, "_bench", bench)
    assert reproduce.reproduce(5, tmp_path) == 1
    assert summary(tmp_path)["plots and page"] == "failed"


def test_on_a_gpu_what_matters_most_comes_first(tmp_path, stubbed):
    begun = []

    def bench(out, part, device, minutes):
        begun.append((part.name, part.preset, device))
        rows_into(out, part.only)

    def build(out, timeout_s, has_gpu):
        begun.append(("build", has_gpu))

    stubbed.setattr(reproduce, "_bench", bench)
    stubbed.setattr(reproduce, "_build", build)
    stubbed.setattr(reproduce, "_test", lambda out, timeout_s: begun.append("tests"))
    stubbed.setattr(reproduce, "environment", lambda where: environment("cpu"))
    stubbed.setattr(reproduce.torch.cuda, "is_available", lambda: True)
    assert reproduce.reproduce(5, tmp_path) == 0
    assert begun == [
        ("build", True),
        ("headline kernels", "headline", "cuda"), ("headline models", "headline", "cuda"),
        ("headline pretraining", "headline", "cuda"),
        ("latency", "headline", "cuda"), ("small kernels", "headline", "cuda"), "tests",
        ("kernels", "full", "cuda"), ("models", "full", "cuda"), ("pretraining", "full", "cuda"),
    ]  # fmt: skip
    assert reproduce.GPU_FIRST[0].only[0] == "ceiling"
    assert all(part.share < 0.5 for part in reproduce.GPU_FIRST)  # others get their time too


@pytest.mark.parametrize(
    ("capability", "arch"), [((8, 0), "80"), ((8, 9), "89"), ((9, 0), "90a"), ((10, 0), "100")]
)
def test_on_a_gpu_the_kernels_are_built_for_it_alone(capability, arch, tmp_path, monkeypatch):
    built = []

    def run(command, timeout_s, log=None):
        names = ("XLNET_FAST_CUDA_ARCHS", "XLNET_FAST_REQUIRE_EXT")
        built.append(tuple(map(os.environ.get, names)))
        return "built"

    for name in ("XLNET_FAST_CUDA_ARCHS", "XLNET_FAST_REQUIRE_EXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(reproduce, "run_command", run)
    monkeypatch.setattr(reproduce.torch.cuda, "get_device_capability", lambda: capability)
    with monkeypatch.context() as scope:
        scope.setattr(os, "environ", dict(os.environ))
        reproduce._build(tmp_path, 60.0, has_gpu=False)
        reproduce._build(tmp_path, 60.0, has_gpu=True)
    assert built[0] == (None, None)
    assert built[-1] == (arch, "1")


def test_parts_that_have_no_time_left_are_skipped_and_said_so(tmp_path, stubbed):
    seconds = iter([100.0, 100.0])  # for the build and the kernels
    stubbed.setattr(reproduce.Deadline, "left_s", lambda self: next(seconds, -1.0))
    assert reproduce.reproduce(5, tmp_path) == 0
    stages = json.loads((tmp_path / "reproduce.json").read_text())["stages"]
    late = {stage["name"]: stage for stage in stages}["models"]
    assert (late["status"], late["detail"]) == ("skipped", reproduce.OUT_OF_TIME)


def test_every_part_names_benchmarks_and_presets_that_exist():
    parts = [*reproduce.GPU_FIRST]
    for preset in ("quick", "full"):
        for gpu in (False, True):
            parts += reproduce.parts_after(preset, gpu)
    for part in parts:
        assert set(part.only) <= set(KERNELS)
        assert part.preset in configs.PRESETS
        assert 0 < part.share <= 1


def test_minutes_must_be_positive(capsys):
    with pytest.raises(SystemExit) as caught:
        reproduce.main(["--minutes", "0"])
    assert caught.value.code == 2
