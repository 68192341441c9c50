"""The benchmark of Transformer-XL: two processes, the same results or no time.

The old library is a script here that speaks the workers' protocol: it answers with results that the
test made before, and with made-up times. Ours runs in the process of the test.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transfo_xl_sides import CASES, GEOMETRY, Here, side

from benchmarks import __main__ as names
from benchmarks import bench_transfo_xl, run
from benchmarks.cases.transfo_xl import FULL, QUICK, WT103_2
from benchmarks.harness import presets
from benchmarks.harness.record import read_results
from benchmarks.harness.timing import Plan
from benchmarks.providers.transfo_xl import INSTALL
from benchmarks.providers.transfo_xl_worker import Worker
from xlnet_fast.errors import ArgumentError

_PLAN = Plan(min_rounds=3, max_rounds=3)
TINY = replace(
    presets.preset("full", "cpu"),
    name="tiny", plan=_PLAN, generation_plan=_PLAN, dtypes=("fp32", "bf16"),
    transfo_xl_cases=CASES, transfo_xl_geometry=GEOMETRY,
)  # fmt: skip
# Takes hours for a text, seconds for the rest: far longer than ours, whatever this machine does.
OLD = """
import json, os, shutil, sys
here = os.path.dirname(os.path.abspath(sys.argv[0]))
for line in sys.stdin:
    message = json.loads(line)
    answer = {}
    if message["do"] == "load":
        assert message["module"] == "transformers" and not message["make"]
        answer = {"torch": "2.0", "transformers": "4.37.2"}
    if message["do"] == "case":
        case = message
    if message["do"] == "result":
        made = f"{case['pass_name']}-{case['dtype']}-{message['dtype']}.safetensors"
        if os.path.exists(os.path.join(here, made)):
            shutil.copy(os.path.join(here, made), message["path"])
        else:
            answer = {"error": "RuntimeError: not implemented for bf16"}
    if message["do"] == "run":
        answer = {"seconds": 70.0}
    print(json.dumps(answer), flush=True)
"""


def write_old(path, code=OLD):
    """A program that is started as an interpreter is."""
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """An interpreter, for all that the benchmark knows, with results of ours beside it."""
    folder = tmp_path_factory.mktemp("old")
    ours = side(folder)
    for case in CASES:
        ours.prepare(case)
        for dtype in {case.dtype, "fp64"} - {"bf16"}:
            made = folder / f"{case.pass_name}-{case.dtype}-{dtype}.safetensors"
            save_file(ours.result(dtype), made)
    return write_old(folder / "python")


@pytest.fixture
def old(prepared, monkeypatch):
    genuine = bench_transfo_xl.start

    def start(name, old_python, settings):
        return Here() if name == "ours" else genuine(name, old_python, settings)

    monkeypatch.setattr(bench_transfo_xl, "start", start)
    monkeypatch.setattr(bench_transfo_xl, "process_peak_mib", lambda process, function: 3.0)
    return prepared


def bench(folder, preset=TINY, **options):
    return run.run_bench(preset, device="cpu", out=folder, only=("transfo_xl",), **options)


def only(*numbers):
    return replace(TINY, transfo_xl_cases=tuple(CASES[i] for i in numbers))


def test_a_run_leaves_times_of_both_and_where_they_are_from(tmp_path, old, capsys):
    assert bench(tmp_path, old_python=old) == 0
    rows = read_results(tmp_path / "results.csv")
    assert [(r.pass_name, r.dtype, r.provider, r.status) for r in rows] == [
        (case.pass_name, case.dtype, provider, "ok")
        for case in CASES[:3]
        for provider in ("hf_eager", "ours")
    ] + [("forward", "bf16", "hf_eager", "failed"), ("forward", "bf16", "ours", "ok")]
    hf, ours = rows[:2]
    assert (hf.batch, hf.length, hf.memory_length, hf.heads, hf.head_dim, hf.layers) == (
        2, 6, 9, 2, 8, 2,
    )  # fmt: skip
    assert (hf.p50_us, hf.rounds, hf.transformers, hf.torch) == (70e6, 3, "4.37.2", "2.0")
    assert ours.torch == torch.__version__
    assert ours.speedup_over_hf_eager > 10
    assert ours.speedup_over_hf_eager == pytest.approx(hf.p50_us / ours.p50_us, rel=1e-4)
    assert [row.peak_memory_mib for row in rows] == [3.0, 3.0] + [None] * 6
    assert ours.error == hf.error == ours.error_hf_eager > 0
    text = rows[4]
    assert (text.p50_us, text.features) == (10e6, "7 tokens")
    assert text.tokens_per_s == pytest.approx(0.2)
    assert "RuntimeError: not implemented for bf16" in rows[6].reason
    # Where Hugging Face raises, ours is held to itself, and nothing is said of a gain.
    assert "checked by its own float64" in rows[7].reason
    assert (rows[7].speedup_over_hf_eager, rows[7].error_hf_eager) == (None, None)
    assert rows[7].error > 0
    assert (tmp_path / "transfo_xl.png").exists()
    printed = capsys.readouterr().out
    assert "transfo_xl 2x6+9 fp32 inference (memory carried): HF eager 70,000 ms, ours" in printed
    assert "Transformer-XL, time per token of a text" in printed
    assert "random weights" in (tmp_path / "environment.json").read_text()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_is_computed_otherwise_is_red_and_not_timed(tmp_path, old, number, monkeypatch):
    folder = tmp_path / "old"
    shutil.copytree(old.parent, folder)
    for path in folder.glob(f"{CASES[number].pass_name}-fp32-*.safetensors"):
        tensors = load_file(path)
        wrong = "tokens" if number == 2 else next(n for n in tensors if n.startswith("losses"))
        tensors[wrong] = tensors[wrong].roll(1, 1)
        save_file(tensors, path)
    assert bench(tmp_path, only(number), old_python=folder / "python", pages=False) == 1
    hf, ours = read_results(tmp_path / "results.csv")
    assert (hf.status, ours.status, ours.p50_us) == ("ok", "red", None)
    assert ours.speedup_over_hf_eager is None
    assert ("where Hugging Face wrote" if number == 2 else "losses") in ours.reason


def test_results_of_other_names_are_red(tmp_path, old, monkeypatch):
    genuine = Worker._losses

    def less(self, model, plain):
        found = genuine(self, model, plain)
        del found["memory of layer 1"]
        return found

    monkeypatch.setattr(Worker, "_losses", less)
    assert bench(tmp_path, only(0), old_python=old, pages=False) == 1
    assert "only one side has memory of layer 1" in read_results(tmp_path / "results.csv")[1].reason


def test_without_an_old_interpreter_ours_is_timed_alone(tmp_path, old):
    assert bench(tmp_path, only(0, 1, 2), pages=False) == 0
    rows = read_results(tmp_path / "results.csv")
    assert [row.status for row in rows] == ["not_run", "ok"] * 3
    assert INSTALL in rows[0].reason
    assert "--old-python" in rows[0].reason
    assert all(row.speedup_over_hf_eager is None for row in rows)
    assert all(row.p50_us > 0 and "float64" in row.reason for row in rows[1::2])


def test_ours_alone_is_red_too_where_it_is_wrong(tmp_path, old, monkeypatch):
    genuine = Worker._losses

    def wrong(self, model, plain):
        found = genuine(self, model, plain)
        if not plain:
            found["losses of segment 2"] = found["losses of segment 2"] * 1.001
        return found

    monkeypatch.setattr(Worker, "_losses", wrong)
    assert bench(tmp_path, only(0), pages=False) == 1
    assert read_results(tmp_path / "results.csv")[1].status == "red"


def test_an_environment_without_the_model_is_told_once(tmp_path, old, capsys):
    lacking = write_old(tmp_path / "python", 'raise SystemExit("No module named transformers")')
    assert bench(tmp_path, only(0, 1), old_python=lacking, pages=False) == 0
    rows = read_results(tmp_path / "results.csv")
    assert [row.status for row in rows] == ["unavailable", "ok"] * 2
    assert rows[0].reason.startswith("the process ended with 1: No module named transformers; it")
    assert INSTALL in rows[2].reason
    assert capsys.readouterr().out.count("No Hugging Face") == 1


def test_each_warms_up_once_and_a_text_not_at_all(tmp_path, old, monkeypatch):
    made = []
    monkeypatch.setattr(bench_transfo_xl, "start", lambda *_: made.append(Here()) or made[-1])
    assert bench(tmp_path, only(1, 2), pages=False) == 0
    (ours,) = made
    checks = ["case", "result", "result", "result", "run", "run", "run", "run"]
    assert ours.asked == ["load", *checks, "case", "result", "result", "run", "run", "run"]


def test_what_raises_of_ours_is_told(tmp_path, old, monkeypatch):
    monkeypatch.setattr(Worker, "_train", lambda *_: 1 / 0)
    monkeypatch.setattr(Worker, "_losses", lambda *_: 1 / 0)
    assert bench(tmp_path, only(0, 1), old_python=old, pages=False) == 1
    rows = read_results(tmp_path / "results.csv")
    assert [row.status for row in rows] == ["ok", "failed"] * 2
    assert {row.reason for row in rows[1::2]} == {"ZeroDivisionError: division by zero"}


def test_nothing_begins_after_the_time(tmp_path, old, monkeypatch):
    monkeypatch.setattr(bench_transfo_xl, "start", lambda *_: pytest.fail("it was started"))
    assert bench(tmp_path, old_python=old, minutes=1e-9, pages=False) == 1
    rows = read_results(tmp_path / "results.csv")
    assert {(row.status, row.reason) for row in rows} == {
        ("not_run", "the time given for the run was over")
    }


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "main", lambda arguments, only: (arguments, only))
    given = ["--quick", "--old-python", "python"]
    assert names.main(["transfo_xl", *given]) == (given, ("transfo_xl",))
    monkeypatch.undo()
    for path, message in (("nothing", "no program"), (str(tmp_path), "no program")):
        out = ["--out", str(tmp_path / "out"), "--old-python", path]
        assert run.main(out, only=("transfo_xl",)) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArgumentError, match="for transfo_xl alone"):
        run.run_bench("quick", only=("speech",), out=tmp_path, old_python=sys.executable)
    with pytest.raises(ArgumentError, match="random weights"):
        run.run_bench("quick", only=("transfo_xl",), out=tmp_path, model="a folder")
    seen = {}
    monkeypatch.setattr(run, "run_bench", lambda *_, **options: seen.update(options) or 0)
    assert run.main(["--old-python", "python", "--minutes", "2"], only=("transfo_xl",)) == 0
    assert (str(seen["old_python"]), seen["minutes"]) == ("python", 2.0)


def test_presets_and_cases():
    quick, full = (presets.preset(name, "cpu") for name in ("quick", "full"))
    assert (quick.transfo_xl_cases, full.transfo_xl_cases) == (QUICK, FULL)
    assert quick.transfo_xl_geometry == WT103_2
    assert {(c.pass_name, c.length, c.memory) for c in QUICK} == {
        (c.pass_name, c.length, c.memory) for c in FULL
    }
    assert [c.new for c in FULL if c.pass_name == "text"] == [200, 200]
    narrowed = bench_transfo_xl.Session(None, presets.narrowed(quick, "bf16"), None, None)
    assert {case.dtype for case in bench_transfo_xl.cases(narrowed)} == {"bf16"}
    assert len({case.label for case in FULL}) == len(FULL)
    for wrong in ({"dtype": "fp8"}, {"pass_name": "backward"}, {"new": 3}):
        with pytest.raises(ValueError, match=r"must be|a text alone"):
            replace(CASES[0], **wrong)
