"""What tuning chooses and writes, on a clock that the test winds itself and without a GPU."""

import csv
import json

import pytest
import torch

from benchmarks.gpu import tune, tune_workbench
from benchmarks.gpu.tune import Trial, fastest, jobs, merge_tuned, try_job
from benchmarks.gpu.tune_workbench import Job
from benchmarks.harness.timing import CpuTimer, Plan
from benchmarks.providers.rel_attention import named_provider, prepare
from xlnet_fast.kernels.triton import tiles

PLAN = Plan(min_rounds=2, max_rounds=2, min_sample_us=1.0)
JOB = Job("forward", torch.bfloat16, 64, False, "long")
SAFE, OTHER, THIRD = (tiles.Config(m, 32, 4, 2) for m in (32, 64, 128))


class FakeWorkbench:
    """Candidates that take as long, or fail, as `behaviour[config]` says: seconds or a reason."""

    def __init__(self, behaviour):
        self.behaviour = behaviour
        self.now = 0.0
        self.timer = CpuTimer(lambda: self.now)

    def fault(self, job, config):
        found = self.behaviour[config]
        return found if isinstance(found, str) else None

    def function(self, job, config):
        found = self.behaviour[config]
        if isinstance(found, Exception):
            raise found

        def run():
            self.now += found

        return run


def trials_of(behaviour):
    bench = FakeWorkbench(behaviour)
    return try_job(JOB, list(behaviour), bench, bench.timer, "Some GPU", PLAN)


def test_the_fastest_correct_candidate_wins():
    crash = RuntimeError("out of resource: shared memory\nsecond line")
    trials = trials_of({SAFE: 0.2, OTHER: 0.1, THIRD: crash})
    assert [t.fastest for t in trials] == ["false", "true", "false"]
    assert [t.status for t in trials] == ["ok", "ok", "failed"]
    assert trials[2].reason == "RuntimeError: out of resource: shared memory"
    assert trials[1].p50_us == pytest.approx(1e5)
    assert trials[1].speedup_over_safe == pytest.approx(2.0)
    assert trials[0].speedup_over_safe == pytest.approx(1.0)
    assert (trials[1].block_m, trials[1].block_n, trials[1].num_warps) == (64, 32, 4)


def test_a_wrong_candidate_is_not_timed_however_fast():
    trials = trials_of({SAFE: 0.2, OTHER: "out: error 1 exceeds the bound 0.1"})
    assert [t.fastest for t in trials] == ["true", "false"]
    assert trials[1].status == "wrong"
    assert trials[1].p50_us is None


def test_the_safe_one_stays_where_nothing_is_clearly_faster():
    assert trials_of({SAFE: 0.1005, OTHER: 0.1})[0].fastest == "true"
    assert trials_of({SAFE: 0.102, OTHER: 0.1})[1].fastest == "true"


def test_without_the_safe_one_the_others_still_count():
    trials = trials_of({SAFE: RuntimeError("spilt"), OTHER: 0.2, THIRD: 0.1})
    assert trials[2].fastest == "true"
    assert trials[2].speedup_over_safe is None
    assert fastest([trials[0]]) is None


def test_jobs_begin_with_what_people_run_and_cover_everything():
    found = list(jobs(tiles.KERNELS))
    assert found[: len(tiles.KERNELS)] == [
        Job(kernel, torch.bfloat16, 64, False, "long") for kernel in tiles.KERNELS
    ]
    assert len(found) == len(set(found)) == len(tiles.KERNELS) * 3 * 3 * 2 * 2
    for job in found:
        key = tiles.tuned_key(job.kernel, job.dtype, job.head_dim, job.heavy, job.shape)
        assert key == job.label
        assert tiles.candidates(job.kernel, job.dtype, job.head_dim, job.heavy, 90)


def few_jobs(monkeypatch):
    for name, values in (
        ("DTYPES", (torch.bfloat16,)),
        ("HEAD_DIMS", (64,)),
        ("SHAPES", ("long",)),
    ):
        monkeypatch.setattr(tune, name, values)


def run_tune(tmp_path, monkeypatch, behaviour, minutes=1.0, table=None):
    monkeypatch.setattr(tiles, "candidates", lambda *_: tuple(behaviour))
    bench, said = FakeWorkbench(behaviour), []
    found = tune.tune(
        tiles, bench, bench.timer, "Some GPU", 90, tmp_path,
        minutes=minutes, table=table, say=said.append, plan=PLAN,
    )  # fmt: skip
    return found, said


def test_a_run_writes_trials_and_the_table(tmp_path, monkeypatch):
    few_jobs(monkeypatch)
    table = tmp_path / "tuned.json"
    name = tiles.tuned_gpu("Some GPU")
    assert name.startswith("Some GPU, Triton 3.")
    old = {"Other GPU": {"a/b": [1, 2, 3, 4]}, name: {"old": [1, 1, 1, 1]}}
    table.write_text(json.dumps(old))
    found, said = run_tune(tmp_path, monkeypatch, {SAFE: 0.2, OTHER: 0.1}, table=table)
    assert found[JOB.label] == [64, 32, 4, 2, 255, 0, 0]
    assert len(found) == len(tiles.KERNELS) * 2
    written = json.loads(table.read_text())
    assert written["Other GPU"] == {"a/b": [1, 2, 3, 4]}
    assert written[name] == {"old": [1, 1, 1, 1]} | found
    with (tmp_path / "tune.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(found)
    assert lines[1]["fastest"] == "true"
    assert (lines[1]["load"], lines[1]["shape"], lines[1]["block_m"]) == ("light", "long", "64")
    assert "[64, 32, 4, 2, 255, 0, 0] of 2, 0 left out" in said[0]
    assert "2.00x the safe one" in said[0]


def test_a_tile_that_shares_a_multiprocessor_is_marked_and_taken_where_it_is_faster(
    tmp_path, monkeypatch
):
    few_jobs(monkeypatch)
    monkeypatch.setattr(tiles, "paired_tiles", lambda *_: (OTHER,))
    for seconds, taken in ((0.1, OTHER), (0.3, SAFE)):
        found, said = run_tune(tmp_path, monkeypatch, {SAFE: 0.2, OTHER: seconds})
        assert found[JOB.label][:5] == [taken.block_m, 32, 4, 2, 255]
        assert ("two a multiprocessor" in said[0]) == (taken is OTHER)
        with (tmp_path / "tune.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert [line["paired"] for line in lines[:2]] == ["false", "true"]


def test_without_write_the_table_is_left_alone_and_time_ends_the_run(tmp_path, monkeypatch):
    found, said = run_tune(tmp_path, monkeypatch, {SAFE: 0.2}, minutes=1e-9)
    assert found == {}
    assert said == [f"Time was over: {len(tiles.KERNELS) * 36} entries were not tried."]
    assert [path.name for path in tmp_path.iterdir()] == ["tune.csv"]


def test_a_job_without_a_working_candidate_gives_no_entry(tmp_path, monkeypatch):
    few_jobs(monkeypatch)
    table = tmp_path / "tuned.json"
    found, said = run_tune(tmp_path, monkeypatch, {SAFE: RuntimeError("no")}, table=table)
    assert found == {}
    assert not table.exists()
    assert said[0] == f"{JOB.label}: no candidate works: RuntimeError: no"


def test_merging_keeps_others_and_refuses_what_is_no_table(tmp_path):
    path = tmp_path / "tuned.json"
    merge_tuned(path, "B", {"y": [1, 2, 3, 4], "x": [5, 6, 7, 8]})
    merge_tuned(path, "A", {"x": [1, 1, 1, 1]})
    merge_tuned(path, "B", {"x": [9, 9, 9, 9]})
    assert json.loads(path.read_text()) == {
        "A": {"x": [1, 1, 1, 1]}, "B": {"x": [9, 9, 9, 9], "y": [1, 2, 3, 4]},
    }  # fmt: skip
    assert path.read_text().splitlines()[5] == '    "x": [9, 9, 9, 9],'
    for wrong in ("[]", '{"A": 3}', "{"):
        path.write_text(wrong)
        with pytest.raises(ValueError):
            merge_tuned(path, "A", {"x": [1, 1, 1, 1]})
        assert path.read_text() == wrong


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main(["--out", str(tmp_path / "out")]) == 2
    assert "there is no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        tune.main(["--minutes", "0"])


@pytest.mark.parametrize("kernel", ["forward", tiles.KERNELS[-1]])
@pytest.mark.parametrize("heavy", [False, True])
def test_the_workbench_forces_the_tile_and_sees_a_wrong_result(monkeypatch, kernel, heavy):
    """On the CPU another backend stands for the kernels: it has no tiles, but the same results."""
    monkeypatch.setattr(tune_workbench, "SIZES", {"short": (2, 32), "long": (1, 64)})
    monkeypatch.setattr(tune_workbench, "_WIDTH", 128)
    job = Job(kernel, torch.float32, 64, heavy, "short")
    bench = tune_workbench.GpuWorkbench(tiles, torch.device("cpu"), backend="sdpa")
    assert bench.fault(job, SAFE) is None
    seen = []
    genuine = prepare

    def spying(provider, case, inputs):
        prepared = genuine(provider, case, inputs)

        def run():
            seen.append(tiles.choose_config(kernel, torch.float32, 64, heavy, 90))
            return prepared.run()

        return type(prepared)(run, prepared.standard)

    monkeypatch.setattr(tune_workbench, "prepare", spying)
    bench.function(job, OTHER)()
    assert seen == [OTHER]
    case = tune_workbench.timed_case(job, torch.device("cpu"))
    assert (case.heads, case.dropout > 0, case.padding) == (2, heavy, heavy)
    assert case.backward is (kernel != "forward")

    def wrong(provider, case, inputs):
        if provider.name == "ours_sdpa":
            inputs.scale *= 1.01
        return genuine(named_provider("reference"), case, inputs)

    monkeypatch.setattr(tune_workbench, "prepare", wrong)
    assert "exceeds the bound" in bench.fault(job, SAFE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", tiles.KERNELS)
@pytest.mark.parametrize("heavy", [False, True])
def test_every_candidate_is_correct_on_this_gpu(kernel, heavy):
    job = Job(kernel, torch.bfloat16, 64, heavy, "short")
    bench = tune_workbench.GpuWorkbench(tiles, torch.device("cuda"))
    arch = int("{}{}".format(*torch.cuda.get_device_capability()))
    for config in tiles.candidates(job.kernel, job.dtype, job.head_dim, job.heavy, arch):
        assert bench.fault(job, config) is None, config


def test_a_trial_has_a_column_for_every_field_of_a_tile():
    from dataclasses import fields

    names = [field.name for field in fields(Trial)]
    first = names.index("block_m")
    tile = [field.name for field in fields(tiles.Config)]
    assert names[first : first + len(tile)] == tile
