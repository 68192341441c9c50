"""The check runs first: what is red is not timed and shows no speed-up."""

import time

import pytest
import torch

from benchmarks.harness.check import _within_on_device, check, max_error
from benchmarks.harness.record import ResultsWriter, environment, read_results
from benchmarks.harness.runner import Candidate, Context, run_case
from benchmarks.harness.timing import CpuTimer, Plan
from benchmarks.pages.table import tables
from benchmarks.providers.work import Work
from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.tolerance import error_and_bound

EXACT = torch.linspace(-1, 1, 50, dtype=torch.float64)
COLUMNS = {
    "kernel": "rel_attention", "pass_name": "forward", "dtype": "fp32", "batch": 1, "length": 50,
    "memory_length": 0, "heads": 1, "head_dim": 1, "layers": 1, "features": "plain",
}  # fmt: skip


@pytest.fixture
def context(tmp_path):
    said = []
    with ResultsWriter(tmp_path / "results.csv", environment("cpu"), "quick") as writer:
        plan = Plan(min_rounds=2, max_rounds=2, min_sample_us=1.0)
        result = Context(writer, CpuTimer(), plan, say=said.append)
        result.said = said
        result.path = tmp_path / "results.csv"
        yield result


def candidate(name, value=None, calls=None, pause_s=0.0, **options):
    def run():
        if pause_s:
            time.sleep(pause_s)
        if calls is not None:
            calls.append(name)
        return [EXACT.float() if value is None else value]

    return Candidate(name, lambda: Work(run, run), **options)


def run(context, *candidates, yardstick=None):
    rows = run_case(
        context, "case", COLUMNS, candidates, lambda: [EXACT], ["out"], yardstick=yardstick
    )
    return {row.provider: row for row in rows}


def test_a_green_case_is_timed_with_ratios_and_errors(context):
    rows = run(context, candidate("hf_eager"), candidate("ours", flops=1e6))
    assert rows["hf_eager"].speedup_over_hf_eager == 1.0
    ours = rows["ours"]
    assert ours.status == "ok"
    assert ours.rounds == 2
    assert 0 < ours.p20_us <= ours.p50_us <= ours.p80_us
    assert ours.speedup_over_hf_eager > 0
    assert ours.speedup_over_hf_compile is None
    assert ours.tflop_per_s == pytest.approx(1.0 / ours.p50_us)
    assert 0 < ours.error == ours.error_hf_eager < 1e-7
    assert not context.red


def test_a_red_check_is_not_timed_and_has_no_speed_up(context):
    calls = []
    wrong = EXACT.float().clone()
    wrong[7] += 1e-3
    rows = run(context, candidate("hf_eager"), candidate("ours", wrong, calls))
    assert calls == ["ours"]  # for the check alone
    ours = rows["ours"]
    assert ours.status == "red"
    assert ours.error == pytest.approx(1e-3, rel=0.01)
    assert ours.p50_us is None
    assert ours.speedup_over_hf_eager is None
    assert "exceeds the bound" in ours.reason
    assert context.red
    assert context.said[0].startswith("RED case ours: out:")
    (table,) = tables(read_results(context.path))
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert cells["speed-up\nover\nHF eager"] == ""
    assert cells["error\nours"].endswith("RED")
    assert not any(cell.endswith("x") for cell in table.rows[0])


def test_a_red_rival_is_refused_too_but_does_not_turn_the_run_red(context):
    rows = run(context, candidate("hf_eager"), candidate("sdpa_bias", EXACT.float() * 2))
    assert rows["sdpa_bias"].status == "red"
    assert not context.red


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_that_is_not_finite_is_red(context, value):
    broken = EXACT.float().clone()
    broken[0] = value
    rows = run(context, candidate("hf_eager"), candidate("ours", broken))
    assert rows["ours"].status == "red"
    assert rows["ours"].error == float("inf")


def test_a_result_of_the_wrong_shape_is_red(context):
    rows = run(context, candidate("hf_eager"), candidate("ours", EXACT.float()[:-1]))
    assert rows["ours"].status == "red"
    assert "shape (49,) where (50,) is expected" in rows["ours"].reason


def test_failures_and_absences_are_recorded_and_stop_nobody(context):
    def explode():
        raise RuntimeError("no such kernel")

    def unavailable():
        raise BackendUnavailable("backend 'triton' cannot run here: no GPU")

    rows = run(
        context,
        candidate("hf_eager"),
        Candidate("hf_compile", explode, status="not_run", reason="out of time"),
        Candidate("flex", explode),
        Candidate("ours_triton", unavailable),
        Candidate("ours_cuda", lambda: Work(explode, explode)),
        candidate("ours"),
    )
    assert {name: row.status for name, row in rows.items()} == {
        "hf_eager": "ok", "hf_compile": "not_run", "flex": "failed", "ours_triton": "unavailable",
        "ours_cuda": "failed", "ours": "ok",
    }  # fmt: skip
    assert rows["hf_compile"].reason == "out of time"
    assert rows["flex"].reason == "RuntimeError: no such kernel"
    assert "no GPU" in rows["ours_triton"].reason
    assert [line.split(":")[0] for line in context.failed] == ["case ours_cuda"]
    notes = tables(read_results(context.path))[0].notes
    assert any("no GPU" in note for note in notes)


def test_without_the_yardstick_nothing_is_called_correct(context):
    def explode():
        raise MemoryError("no room")

    rows = run(context, Candidate("hf_eager", explode), candidate("ours"))
    assert rows["ours"].status == "not_run"
    assert "yardstick" in rows["ours"].reason
    rows = run_case(context, "case", COLUMNS, [candidate("hf_eager")], explode, ["out"])
    assert rows[0].status == "failed"
    assert "float64" in rows[0].reason
    with pytest.raises(ValueError, match="must be hf_eager"):
        run(context, candidate("ours"))


def test_where_the_whole_yardstick_does_not_fit_its_parts_judge(context):
    def explode():
        raise MemoryError("no room")

    wrong = EXACT.float() + 1e-3
    rows = run(
        context,
        Candidate("hf_eager", explode),
        candidate("ours"),
        candidate("ours_sdpa", wrong),
        yardstick=lambda: [EXACT.float()],
    )
    assert {name: row.status for name, row in rows.items()} == {
        "hf_eager": "failed", "ours": "ok", "ours_sdpa": "red",
    }  # fmt: skip
    assert rows["ours"].speedup_over_hf_eager is None
    assert rows["ours"].error_hf_eager == rows["ours"].error > 0
    rows = run(context, Candidate("hf_eager", explode), candidate("ours"), yardstick=explode)
    assert rows["ours"].status == "not_run"
    assert any("no yardstick in parts either: MemoryError" in line for line in context.said)


def test_a_floor_is_timed_unchecked(context):
    floor = candidate("gemm_floor", EXACT.float() * 0, exact=False)
    slow = candidate("hf_eager", bytes_moved=1e6, pause_s=0.01)
    rows = run(context, slow, floor)
    row = rows["gemm_floor"]
    assert row.status == "ok"
    assert row.error is None
    assert row.time_over_floor is None
    assert rows["hf_eager"].time_over_floor > 2
    assert rows["hf_eager"].bandwidth_gb_s == pytest.approx(1e3 / rows["hf_eager"].p50_us)


def test_memory_that_cannot_be_measured_says_why(context):
    def probe():
        raise RuntimeError("out of memory")

    row = run(context, candidate("hf_eager", memory_mib=probe))["hf_eager"]
    assert row.status == "ok"
    assert row.peak_memory_mib is None
    assert row.reason == "memory not measured: RuntimeError: out of memory"


def test_check_holds_each_tensor_to_the_rule_on_its_own():
    large, small = EXACT * 1e3, EXACT
    eager = [large.float(), small.float()]
    assert check(eager, eager, [large, small], ["large", "small"]).ok
    off = [large.float(), small.float() + 1e-5]  # far below the error that `large` would allow
    verdict = check(off, eager, [large, small], ["large", "small"])
    assert not verdict.ok
    assert verdict.message.startswith("small:")
    assert not check(eager[:1], eager, [large, small], ["large", "small"]).ok
    assert max_error([torch.zeros(0)], [torch.zeros(0).double()]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_check_on_the_device_is_the_rule(dtype):
    eager = EXACT.to(dtype)
    _, bound = error_and_bound(eager, eager, EXACT)
    for share, fits in ((0.9, True), (1.2, False)):
        actual = (EXACT + share * bound).double()
        # In float64 the shift is exact, so the rule decides at the bound and not beside it.
        error, limit = float((actual - EXACT).abs().max()), bound
        assert (error <= limit) is fits
        rounded = actual.to(dtype)
        expected = error_and_bound(rounded, eager, EXACT)
        assert _within_on_device(rounded, eager, EXACT) is (expected[0] <= expected[1])
    for odd in (float("nan"), float("inf")):
        broken = eager.clone()
        broken[3] = odd
        assert not _within_on_device(broken, eager, EXACT)
        assert not _within_on_device(eager, broken, EXACT)  # left to the rule itself
        assert check([eager], [broken], [EXACT], ["out"]).ok
    assert not _within_on_device(eager, eager, EXACT.float())
    assert not _within_on_device(eager[:0], eager[:0], EXACT[:0])


def test_when_time_is_over_nothing_more_begins_but_the_two(context):
    calls, exact = [], []
    context.time_is_over = lambda: len(exact) >= 1
    candidates = [candidate(name, calls=calls) for name in ("hf_eager", "ours", "hf_compile")]
    rows = run_case(
        context, "case", COLUMNS, candidates, lambda: exact.append(1) or [EXACT], ["out"]
    )
    assert [row.status for row in rows] == ["ok", "ok", "not_run"]
    assert rows[2].reason == "the time given for the run was over"
    rows = run_case(context, "case", COLUMNS, candidates, lambda: exact.append(1), ["out"])
    assert [row.status for row in rows] == ["not_run"] * 3
    assert exact == [1]  # not even the float64 result is computed
