"""One command for a GPU machine: which stages run, in which order, for how long."""

import sys

import pytest

from benchmarks import reproduce
from benchmarks.harness import presets
from benchmarks.harness.record import ResultsWriter, Row, environment
from benchmarks.harness.stages import Evidence, StageFailed
from benchmarks.run import KERNELS


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
        (out / "log.txt").write_text("built\n")
        return "built"

    def bench(out, part, device, minutes):
        assert minutes > 0
        rows_into(out, part.only)

    monkeypatch.setattr(reproduce, "_build", build)
    monkeypatch.setattr(reproduce, "_bench", bench)
    monkeypatch.setattr(reproduce, "_smoke", lambda *arguments: "84 passed")
    monkeypatch.setattr(reproduce, "_qualify", lambda *arguments: "qualified")
    monkeypatch.setattr(reproduce, "_why_no_qualify", lambda out: None)
    monkeypatch.setattr(reproduce.torch.cuda, "is_available", lambda: False)
    return monkeypatch


def summary(out):
    rows = Evidence(out / "evidence.jsonl").read()
    return {row["stage"]: row["outcome"] for row in rows if row["outcome"] != "begun"}


def detail(out, stage):
    return Evidence(out / "evidence.jsonl").read(stage)[-1]["detail"]


def test_without_a_gpu_it_says_so_and_times_the_cpu(tmp_path, stubbed, capsys):
    assert reproduce.main(["--minutes", "5", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "there is no GPU here" in printed
    assert "Whole model, inference" in printed
    assert "2.00x" in printed
    assert summary(tmp_path) == {
        "build": "ok", "compile": "skipped", "smoke": "ok", "qualify": "ok",
        "GPU tests of the kernels": "skipped", "GPU tests of the rest": "skipped",
        "kernels": "ok", "models": "ok", "plots and page": "ok", "reproduce": "ok",
    }  # fmt: skip
    assert '"device_type": "cpu"' in (tmp_path / "environment.json").read_text()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "environment.json", "evidence.jsonl", "index.html", "log.txt", "model_speedup.png",
        "rel_attention_speedup.png", "results.csv",
    }  # fmt: skip
    assert len(names | {reproduce.QUALIFICATION_FILE}) <= 8
    assert "GPU tests of the kernels skipped" in (tmp_path / "index.html").read_text()


def test_failing_stages_are_reported_and_the_rest_is_written(tmp_path, stubbed, capsys):
    def fails(*arguments):
        raise StageFailed("no compiler")

    def bench(out, part, device, minutes):
        if "model" in part.only:
            raise StageFailed("exit code 1")
        rows_into(out, part.only)

    for name in ("_build", "_smoke", "_qualify"):
        stubbed.setattr(reproduce, name, fails)
    stubbed.setattr(reproduce, "_bench", bench)
    assert reproduce.reproduce(5, tmp_path) == 1
    found = summary(tmp_path)
    for name in ("build", "smoke", "qualify", "models", "reproduce"):
        assert found[name] == "failed"
    assert found["kernels"] == found["plots and page"] == "ok"
    page = (tmp_path / "index.html").read_text()
    assert "Stage build failed: StageFailed: no compiler" in page
    assert "Failed: build, smoke, qualify, models." in capsys.readouterr().out


def test_when_no_benchmark_leaves_results_the_page_fails_too(tmp_path, stubbed):
    def bench(*_):
        raise StageFailed("crashed")

    (tmp_path / "results.csv").write_text("of an earlier run")
    (tmp_path / "evidence.jsonl").write_text("of an earlier run")
    stubbed.setattr(reproduce, "_bench", bench)
    assert reproduce.reproduce(5, tmp_path) == 1
    assert summary(tmp_path)["plots and page"] == "failed"
    assert "earlier" not in (tmp_path / "evidence.jsonl").read_text()


@pytest.fixture
def on_a_gpu(stubbed):
    """The order in which the stages begin, on a GPU with `ncu` and pytest."""
    begun = []

    def say(name, *shown):
        def stage(*arguments):
            begun.append((name, *(arguments[at] for at in shown)))

        return stage

    def bench(out, part, device, minutes):
        begun.append((part.name, part.preset, device))
        rows_into(out, part.only)

    stubbed.setattr(reproduce, "_bench", bench)
    stubbed.setattr(reproduce, "_build", say("build", 2))
    stubbed.setattr(reproduce, "_smoke", say("smoke", 2, 3))
    stubbed.setattr(reproduce, "_qualify", say("qualify", 2))
    stubbed.setattr(reproduce, "_counters", say("counters"))
    stubbed.setattr(
        reproduce, "_test", lambda out, s, files: begun.append(("tests", len(files) == 4))
    )
    stubbed.setattr(reproduce.counters, "profiler", lambda: "ncu")
    stubbed.setattr(reproduce, "environment", lambda where: environment("cpu"))
    stubbed.setattr(reproduce.torch.cuda, "is_available", lambda: True)
    return begun


def test_on_a_gpu_what_matters_most_comes_first(tmp_path, on_a_gpu):
    assert reproduce.reproduce(9, tmp_path) == 0
    assert on_a_gpu == [
        ("build", True), ("smoke", "cuda", True), ("smoke", "cuda", False), ("qualify", "cuda"),
        ("headline kernels", "headline", "cuda"), ("counters",),
        ("headline models", "headline", "cuda"), ("tests", True), ("tests", False),
        ("headline pretraining", "headline", "cuda"),
        ("latency", "headline", "cuda"), ("small kernels", "headline", "cuda"),
        ("kernels", "full", "cuda"), ("models", "full", "cuda"), ("pretraining", "full", "cuda"),
    ]  # fmt: skip
    assert reproduce.HEADLINE.only[0] == "ceiling"


def test_what_a_gpu_machine_lacks_is_skipped_with_the_reason(tmp_path, on_a_gpu, stubbed):
    stubbed.setattr(reproduce.counters, "profiler", lambda: None)
    stubbed.setattr(reproduce.gpu_tests, "why_not", lambda: "pytest cannot be imported")
    stubbed.setattr(reproduce, "_why_no_qualify", lambda out: "this version has none")
    assert reproduce.reproduce(9, tmp_path) == 0
    assert not {"counters", "tests", "qualify"} & {name for name, *_ in on_a_gpu}
    assert detail(tmp_path, "counters").startswith("ncu is neither")
    assert detail(tmp_path, "GPU tests of the rest") == "pytest cannot be imported"
    assert detail(tmp_path, "qualify") == "this version has none"


def test_nine_minutes_are_enough_for_every_stage_to_the_tests(tmp_path, on_a_gpu, stubbed):
    """Where each takes all the time it is given, the build what sixteen cores took it to."""
    now, given = [0.0], {}
    stubbed.setattr(reproduce.Deadline, "left_s", lambda self: 9 * 60 - 15 - now[0])

    def takes(name, at):
        def stage(*arguments):
            seconds = arguments[at]
            given[name, arguments[-1] if name in ("smoke", "tests") else None] = seconds
            now[0] += seconds

        return stage

    def build(*arguments):
        now[0] += 60.0

    def bench(out, part, device, minutes):
        given[part.name, None] = minutes * 60
        now[0] += minutes * 60
        rows_into(out, part.only)

    stubbed.setattr(reproduce, "_build", build)
    stubbed.setattr(reproduce, "_bench", bench)
    for name in ("smoke", "qualify", "counters"):
        stubbed.setattr(reproduce, f"_{name}", takes(name, 1))
    stubbed.setattr(reproduce, "_test", lambda out, s, files: takes("tests", 0)(s, len(files) == 4))
    assert reproduce.reproduce(9, tmp_path) == 0
    assert given["smoke", True] == 60
    assert given["smoke", False] == 45
    assert given["qualify", None] == 90
    assert given["headline kernels", None] == 70
    assert given["counters", None] == 40
    assert given["headline models", None] >= 45
    assert given["tests", True] >= 90
    assert given["tests", False] >= 15
    assert now[0] <= 9 * 60


@pytest.mark.parametrize(
    ("capability", "arch"), [((8, 0), "80"), ((8, 9), "89"), ((9, 0), "90a"), ((10, 0), "100")]
)
def test_on_a_gpu_the_kernels_are_built_for_it_alone(capability, arch, tmp_path, monkeypatch):
    built = []

    def run(command, timeout_s, log=None, environment=None):
        built.append(environment or {})
        return "built"

    monkeypatch.setattr(reproduce, "run_command", run)
    monkeypatch.setattr(reproduce.torch.cuda, "get_device_capability", lambda: capability)
    assert reproduce._build(tmp_path, 60.0, has_gpu=False) == "built"
    assert built == [{}, {}]
    reproduce._build(tmp_path, 60.0, has_gpu=True)
    assert built[2] == {"XLNET_FAST_CUDA_ARCHS": arch, "XLNET_FAST_REQUIRE_EXT": "1"}


@pytest.mark.parametrize("has_gpu", [False, True])
def test_where_nvcc_fails_the_rest_is_built_and_the_stage_fails(has_gpu, tmp_path, monkeypatch):
    built = []

    def run(command, timeout_s, log=None, environment=None):
        built.append(environment or {})
        if "XLNET_FAST_NO_CUDA" not in built[-1]:
            raise StageFailed("nvcc crashed")

    monkeypatch.setattr(reproduce, "run_command", run)
    monkeypatch.setattr(reproduce.torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(StageFailed, match="nvcc crashed"):
        reproduce._build(tmp_path, 60.0, has_gpu)
    assert built[1:] == ([{"XLNET_FAST_NO_CUDA": "1"}] if has_gpu else [])


def test_parts_that_have_no_time_left_are_skipped_and_said_so(tmp_path, stubbed):
    seconds = iter([100.0] * 6)  # for all up to the kernels
    stubbed.setattr(reproduce.Deadline, "left_s", lambda self: next(seconds, -1.0))
    assert reproduce.reproduce(5, tmp_path) == 0
    found = summary(tmp_path)
    assert found["kernels"] == "ok"
    assert (found["models"], detail(tmp_path, "models")) == ("skipped", reproduce.OUT_OF_TIME)


def test_children_get_what_makes_cublas_repeat_itself_and_the_record(tmp_path, monkeypatch):
    seen = []

    def run(command, timeout_s, log=None, environment=None):
        seen.append((command[2], timeout_s, environment))

    monkeypatch.setattr(reproduce, "run_command", run)
    reproduce._smoke(tmp_path, 45.0, "cuda", False)
    reproduce._counters(tmp_path, 40.0)
    reproduce._qualify(tmp_path, 90.0, "cuda")
    reproduce._test(tmp_path, 90.0, ["tests/test_a.py"])
    reproduce._bench(tmp_path, reproduce.HEADLINE, "cuda", 1.0)
    for name, timeout_s, settings in seen:
        assert settings["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8", name
        assert 40 < timeout_s <= 120
    assert "XLNET_FAST_QUALIFICATION" not in seen[-1][2]
    (tmp_path / "qualification.json").write_text("{}")
    reproduce._bench(tmp_path, reproduce.HEADLINE, "cuda", 1.0)
    assert seen[-1][2]["XLNET_FAST_QUALIFICATION"].endswith("qualification.json")


def test_a_version_without_qualify_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "_QUALIFY", [sys.executable, "-c", "raise SystemExit(2)"])
    assert "qualify" in reproduce._why_no_qualify(tmp_path)
    monkeypatch.setattr(reproduce, "_QUALIFY", [sys.executable, "-c", "pass"])
    assert reproduce._why_no_qualify(tmp_path) is None


def test_every_part_names_benchmarks_and_presets_that_exist():
    parts = [reproduce.HEADLINE, reproduce.HEADLINE_MODELS, *reproduce.AFTER_TESTS]
    for preset in ("quick", "full"):
        for gpu in (False, True):
            parts += reproduce.parts_after(preset, gpu)
    for part in parts:
        assert set(part.only) <= set(KERNELS)
        assert part.preset in presets.PRESETS
        assert 0 < part.budget.share <= 1
    assert reproduce.Budget(60, 0.1).of(1000) == 100
    assert reproduce.Budget(60, 0.1).of(400) == 60
    assert reproduce.Budget(60, 0.1).of(30) == 30


def test_minutes_must_be_positive(capsys):
    with pytest.raises(SystemExit) as caught:
        reproduce.main(["--minutes", "0"])
    assert caught.value.code == 2
