"""The first benchmark of a newcomer: a line for each case, the gain, what is next, the load."""

import io
import os
import re
import time
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks import run
from benchmarks.harness import presets
from benchmarks.harness.quiet import Quiet
from benchmarks.harness.record import Row, read_results
from benchmarks.harness.runner import OUT_OF_TIME
from benchmarks.harness.session import Session
from benchmarks.harness.timing import Measurement, Plan, paired_spread
from benchmarks.pages import console
from benchmarks.pages.console import Display
from benchmarks.pages.headline import NEXT, TITLE, case_line, headline, what_next

PLAN = Plan(min_rounds=3, max_rounds=3, min_sample_us=1.0)
TINY = replace(
    presets.preset("quick", "cpu"),
    plan=PLAN,
    model_shapes=(presets.ModelShape(1, 16), presets.ModelShape(2, 24)),
    dtypes=("fp32",),
    geometry=presets.Geometry("tiny", 2, 32, 2, 48, 600),
)


class Pipe(io.StringIO):
    """What a reader at the other end of a pipe has got: what was flushed."""

    arrived = ""

    def flush(self):
        self.arrived = self.getvalue()


class Watched(Display):
    """Keeps what had arrived when each case was done."""

    def __init__(self):
        self.pipe, self.at_cases = Pipe(), []
        super().__init__(Console(file=self.pipe, width=240))

    def advance(self):
        self.at_cases.append(self.pipe.arrived)
        super().advance()


pytestmark = pytest.mark.usefixtures("one_cache")


def test_without_a_terminal_a_long_case_says_that_it_goes_on(monkeypatch):
    monkeypatch.setattr(console, "QUIET_S", 0.02)
    display, deadline = Watched(), time.monotonic() + 10
    with display:
        display.step("model 4x512 fp32: timing hf_eager")
        while not (said := display.pipe.arrived) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert re.match(r"model 4x512 fp32: timing hf_eager, \d+ s so far\n", said)


def test_a_run_without_a_terminal_tells_each_case_the_gain_and_what_is_next(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 1.0, 1.0))
    display = Watched()
    assert run.run_bench(TINY, device="cpu", out=tmp_path, display=display) == 0
    done = [re.findall(r"\[ +\d+ s\] (model .*)", text) for text in display.at_cases]
    assert [len(lines) for lines in done] == [1, 2]
    assert done[1][0].startswith("model 1x16 fp32 inference: HF eager ")
    assert re.search(r"ours [\d.]+ ms \(\d+\.\d\dx", done[1][1])

    rows = read_results(tmp_path / "results.csv")
    assert {row.kernel for row in rows} == {"model"}
    left_out = {row.provider: row.reason for row in rows if row.status == "not_run"}
    assert left_out["gemm_floor"] == left_out["ours_compile"] == "the quick preset leaves it out"
    assert left_out["hf_compile"] == "the quick preset uses torch.compile at 4x512 alone"

    printed, page = display.pipe.arrived, (tmp_path / "index.html").read_text()
    gain = headline(rows, {"model": "tiny geometry, random weights"})
    assert gain.startswith("XLNet with 2 layers of width 32: ")
    assert printed.index("not run (every case)") < printed.index(f"{gain}.")
    for text in (printed, page):
        assert "a load average of 99.0" in text
        assert all(command in text for command, _ in NEXT)
    assert printed.index("99.0") < printed.index("1x16")  # before time is spent in vain
    assert f"<h1>{gain}</h1>" in page


def test_nothing_begins_after_the_presets_time(tmp_path):
    preset = replace(TINY, limit_s=0.0)
    assert run.run_bench(preset, device="cpu", out=tmp_path, pages=False, display=Watched()) == 1
    reasons = {row.provider: row.reason for row in read_results(tmp_path / "results.csv")}
    assert reasons["hf_eager"] == reasons["ours"] == OUT_OF_TIME


def test_quick_is_small_and_full_holds_what_quick_leaves_out():
    quick, full = (presets.preset(name, "cpu") for name in ("quick", "full"))
    assert [(s.batch, s.length, s.passes) for s in quick.model_shapes] == [
        (1, 128, ("forward",)), (4, 512, ("forward",)), (1, 2048, ("forward",)),
    ]  # fmt: skip
    assert quick.geometry.n_layer == 2
    assert run._chosen(quick, run.KERNELS) == ("model",)
    assert run._chosen(quick, ["ceiling", "rel_attention"]) == ("ceiling", "rel_attention")
    assert run._chosen(full, run.KERNELS) == run.KERNELS
    assert {(s.batch, s.length) for s in full.model_shapes} >= {
        (1, 128), (8, 128), (1, 512), (4, 512), (1, 2048),
    }  # fmt: skip
    assert {s.queries for s in full.attention_shapes if s.batch == 1} >= {512, 2048}
    assert (full.left_out, full.compile_shapes) == ((), None)
    assert full.limit_s == full.compile_budget_s == full.compile_until_s == float("inf")


def test_a_larger_model_gets_more_time():
    assert presets.BASE.work == 3 * presets.BASE_4.work
    longer = presets.scaled(TINY, 3.0)
    assert (longer.limit_s, longer.compile_until_s) == (3 * TINY.limit_s, 3 * TINY.compile_until_s)
    assert presets.scaled(presets.preset("full", "cpu"), 2.0) == presets.preset("full", "cpu")


def test_what_compiles_is_begun_early_or_not_at_all():
    preset = replace(TINY, compile_budget_s=10.0, compile_until_s=80.0)
    session = Session(None, preset, None, None)
    assert session.compile_status() == ("", "")
    session.begun -= 81
    assert session.compile_status()[1] == "the quick preset begins no torch.compile after 80 s"
    session.compile_spent_s = 10.0
    assert "at most 10 s" in session.compile_status()[1]


def test_a_busy_machine_is_told_and_a_quiet_one_is_not():
    load = iter((1.0, 2.6, 2.9, 2.1))
    quiet = Quiet(lambda: next(load), cores=2)
    quiet.look()
    quiet.case_done("a", 0.29)
    assert quiet.warning() is None
    quiet.case_done("b", 0.31)
    quiet.case_done("c", None)
    assert "load average of 2.9 on 2 cores" in quiet.warning()
    assert "in 1 of 3 cases (b)" in quiet.warning()
    assert Quiet(lambda: None, cores=1).warning() is None


def test_the_spread_of_paired_rounds():
    base = Measurement([10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
    assert paired_spread(base, base) == 0
    # Ratios of 1 to 6: the middle 60% from 2 to 5, the median 3.5.
    assert paired_spread(base, Measurement([10.0] * 6)) == pytest.approx(3 / 3.5)
    assert paired_spread(Measurement([1.0, 2.0]), Measurement([1.0, 2.0])) is None
    assert paired_spread(base, Measurement(failure="gone")) is None


def row(provider, ratio, length=512, kernel="model", pass_name="forward", **other):
    made = Row(kernel, provider, pass_name, "bf16", 4, length, 0, 12, 64, 4, "", "ok", **other)
    made.speedup_over_hf_eager, made.p50_us = ratio, 1500.0
    return made


def test_the_headline_is_the_best_case_of_whole_models():
    rows = [row("ours", 1.06, 128), row("ours", 5.94), row("ours_compile", 9.0)]
    other = [row("ours", 7.0, pass_name="training_step"), row("ours", 20.0, kernel="rel_attention")]
    theirs = {"model": "the user's: 12 layers, width 768, 12 heads"}
    gain = "5.9x at 4x512 bf16 over Hugging Face eager; 1.1x to 5.9x over 2 cases"
    assert headline(rows + other, theirs) == f"Your model: {gain}"
    assert headline(rows + other, {}) == f"XLNet with 4 layers of width 768: {gain}"
    assert headline(other, theirs).startswith("Your model: 7.0x at 4x512 bf16 over")
    assert headline(other[1:], {}).startswith("Relative attention, one layer: 20.0x at")
    assert headline([row("ours", 0.9)], theirs) == (
        "Your model: not faster than Hugging Face eager in any of 1 cases"
    )
    assert headline([row("hf_eager", 1.0)], {}) == TITLE


def test_a_full_run_is_not_asked_for_twice():
    assert what_next({"preset": "quick"}) == NEXT
    assert what_next({"preset": "quick, full"}) == NEXT[:2]


def test_a_line_for_a_case_that_was_not_timed_says_why():
    rows = [row("hf_eager", 1.0), row("ours", 2.0), row("hf_compile", None)]
    rows[2].status, rows[2].p50_us = "not_run", None
    assert case_line(rows) == "model 4x512 bf16 inference: HF eager 1.5 ms, ours 1.5 ms (2.00x)"
    for each in rows:
        each.p50_us, each.reason = None, "no time"
    assert case_line(rows) == "model 4x512 bf16 inference: not timed: no time"
