"""The micro-benchmarks that print tables: a row for everything, and the figures add up."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from cpu_kernels import needs_kernels
from rich.console import Console

from benchmarks.cases.model import ModelCase, load_source
from benchmarks.cases.shapes import TRAINING_STEP, Geometry
from benchmarks.harness.timing import Measurement
from benchmarks.micro import (
    compiled_step,
    cpu_dropout,
    cpu_linear,
    drafts,
    few_rows,
    generation_steps,
    host_time,
    model_operators,
    sdpa_launches,
)

has_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch was built without oneDNN"
)


@needs_kernels
@has_onednn
def test_linear_layers_have_a_row_for_each_product(monkeypatch):
    monkeypatch.setattr(cpu_linear, "TOKENS", (3, 60))
    monkeypatch.setattr(cpu_linear, "WIDTHS", ((16, 24),))
    out = io.StringIO()
    with torch.no_grad():
        cpu_linear.compare(torch.float32, 2, tuple(cpu_linear.FORMS), Console(file=out, width=110))
    head, *rows = out.getvalue().splitlines()
    assert head.split()[:3] == ["tokens", "in", "out"]
    assert len(rows) == 2 * len(cpu_linear.FORMS)
    for row in rows:
        words = row.split()
        assert words[1:3] == ["16", "24"]
        assert 0.0 <= float(words[-2]) <= 1.0  # ours, of what the tolerance rule allows


@needs_kernels
@has_onednn
@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--rounds", "0"], "at least 1"), (["--form", "sum"], "invalid choice")],
)
def test_linear_layers_refuse(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cpu_linear", *arguments])
    with pytest.raises(SystemExit):
        cpu_linear.main()
    assert message in capsys.readouterr().err


@needs_kernels
@pytest.mark.parametrize("with_op", [False, True])
def test_few_rows_have_a_row_for_each_weight_order_and_number(with_op, monkeypatch):
    monkeypatch.setattr(few_rows, "WIDTHS", ((16, 24),))
    monkeypatch.setattr(few_rows, "CACHES", 10_000)
    monkeypatch.setattr(few_rows, "STREAMED", 4096)
    out = io.StringIO()
    with torch.no_grad():
        few_rows.compare(torch.float32, (1, 3), 2, with_op, Console(file=out, width=110))
    head, *rows = out.getvalue().splitlines()
    assert head.split()[-1] == ("op" if with_op else "F.linear")
    assert [row.split()[:6] for row in rows] == [
        ["16", "24", *order.split(), "fp32", str(count)]
        for order in few_rows.ORDERS
        for count in (1, 3)
    ]
    assert all(len(row.split()) == 10 + with_op for row in rows)


@pytest.mark.parametrize("order", few_rows.ORDERS)
def test_copies_of_a_weight_are_too_many_for_a_cache(order, monkeypatch):
    monkeypatch.setattr(few_rows, "CACHES", 10_000)
    copies = few_rows.weights(16, 24, order, torch.float32)
    assert sum(copy.nbytes for copy in copies) >= 10_000
    assert len({copy.data_ptr() for copy in copies}) == len(copies) == 7
    assert all(copy.shape == (24, 16) for copy in copies)
    assert copies[0].is_contiguous() == (order == few_rows.ORDERS[0])


@needs_kernels
@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--rows", "4", "0"]])
def test_few_rows_refuse(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["few_rows", *arguments])
    with pytest.raises(SystemExit):
        few_rows.main()
    assert "at least 1" in capsys.readouterr().err


@needs_kernels
def test_operators_of_a_model(monkeypatch):
    monkeypatch.setattr(model_operators, "BASE", Geometry("tiny", 1, 32, 2, 64, 4200))
    case = ModelCase(1, 16, "fp32")
    times = model_operators.milliseconds(model_operators.PROVIDERS, case, layers=1, rounds=1)
    assert set(times) == {"hf_eager", "ours"}
    assert times["hf_eager"]["aten::bmm"] > 0
    assert "aten::bmm" not in times["ours"] or times["ours"]["aten::bmm"] == 0


def test_operators_that_take_little_are_summed_up():
    times = {"a": {"long": 98.0, "x": 0.9, "y": 1.1}, "b": {"long": 1.0, "x": 0.0, "z": 9.0}}
    out = io.StringIO()
    Console(file=out, width=110).print(model_operators.table_of(times))
    text = out.getvalue()
    rows = [line for line in text.splitlines() if "ms" in line]
    assert [row.split()[1] for row in rows] == ["long", "z", "y", "the", "all"]
    assert "0.9%  0.9 ms" in rows[3]
    assert "100.0%  100.0 ms" in rows[4]
    assert "100.0%  10.0 ms" in rows[4]


@pytest.mark.parametrize("shape", ["4", "0x5", "4x5x6", "axb"])
def test_operators_refuse_a_shape(shape, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["model_operators", "--shape", shape])
    with pytest.raises(SystemExit):
        model_operators.main()
    assert "BATCHxLENGTH" in capsys.readouterr().err


def test_launches_have_a_row_for_each_case_and_pass():
    out = io.StringIO()
    cases = (sdpa_launches.Case(1, 8, 2), sdpa_launches.Case(2, 16, 1, extras=False))
    Console(file=out, width=120).print(sdpa_launches.table_of(cases))
    head, *rows = out.getvalue().splitlines()
    assert head.split()[:4] == ["case", "pass", "layer", "HF"]
    assert [row.split()[3] for row in rows] == 2 * ["inference", "training"]
    for row in rows:
        of_layer, ours, of_attention, ours_alone = map(int, row.split()[4:8])
        assert 0 < of_attention < of_layer
        assert 0 < ours_alone < ours


def test_host_time_has_a_row_for_each_call():
    out = io.StringIO()
    sizes = (host_time.Size(8, 2, 4),)
    host_time.compare(sizes, host_time.CALLS, 1, Console(file=out, width=160))
    rows = [line for line in out.getvalue().splitlines() if "width 8" in line]
    assert [row.split("│")[2].strip() for row in rows] == list(host_time.CALLS)
    for row in rows:
        theirs, ours = (float(cell.replace(",", "")) for cell in row.split("│")[3:5])
        ratio = float(row.split("│")[7].split()[0])
        assert ratio == pytest.approx(theirs / ours, abs=0.01 + 0.6 / ours)


def test_host_time_marks_a_difference_that_is_none():
    """A deeper model that took less time, or as much, says nothing of a layer's."""
    shallow, deep = host_time.DEPTHS
    times = {("hf", shallow): 900.0, ("hf", deep): 900.0, ("ours", shallow): 80.0}
    for last, said in ((79.0, "noise"), (80.0 + 3 * (deep - shallow), "3")):
        samples = times | {("ours", deep): last}
        row = host_time.row({key: Measurement([us]) for key, us in samples.items()})
        assert row[:4] == ["900", "80", "noise", said]


@pytest.mark.parametrize("option", ["--rounds", "--threads"])
def test_host_time_refuses(option, capsys):
    with pytest.raises(SystemExit):
        host_time.main([option, "0"])
    assert "expected at least 1" in capsys.readouterr().err


def test_a_compiled_step_has_times_and_ratios(monkeypatch):
    monkeypatch.setattr(compiled_step, "BASE", Geometry("tiny", 1, 32, 2, 64, 4200))
    monkeypatch.setattr(compiled_step, "PROVIDERS", ("hf_eager", "ours"))  # compiling takes long
    found = compiled_step.measured(ModelCase(1, 16, "fp32", TRAINING_STEP), layers=1, rounds=1)
    assert all(x.ok for x in found.values())
    cells = compiled_step.row({**found, "ours_compile": found["ours"]})
    assert len(cells) == 4
    assert cells[2] == "1.00"
    failed = {**found, "ours_compile": Measurement(failure="no compiler")}
    assert compiled_step.row(failed) == ["ours_compile: no compiler"]


@pytest.mark.parametrize("arguments", [["--shape", "4"], ["--rounds", "0"]])
def test_a_compiled_step_refuses(arguments, capsys):
    with pytest.raises(SystemExit):
        compiled_step.main(arguments)
    assert "BATCHxLENGTH" in capsys.readouterr().err


@pytest.fixture
def tiny_dropout(monkeypatch):
    monkeypatch.setattr(cpu_dropout, "SHAPES", ((2, 8, 12),))
    monkeypatch.setattr(cpu_dropout, "TOKENS", (4, 128))
    tiny = {"d_model": 64, "n_head": 2, "d_inner": 64, "n_layer": 1}
    monkeypatch.setattr(cpu_dropout, "CONFIG", cpu_dropout.CONFIG | tiny)


@needs_kernels
def test_dropout_has_a_row_for_each_call(tiny_dropout):
    out = io.StringIO()
    cpu_dropout.compare([1], 2, cpu_dropout.PARTS, Console(file=out, width=110))
    rows = [line.split("│")[1:-1] for line in out.getvalue().splitlines() if "│" in line]
    assert [[cell.strip() for cell in row[:3]] for row in rows] == [
        [call, dtype, "1"] for call in ("2x8x12", "step of 4x128") for dtype in ("fp32", "bf16")
    ]
    for row in rows:
        ratio, low, _, high = (row[5].translate({ord(c): " " for c in "()"})).split()
        assert 0.0 < float(low) <= float(ratio) <= float(high)
        assert all(float(time) >= 0.0 for time in row[3:5])


@needs_kernels
@pytest.mark.parametrize("fault", ["another bit", "no kernel"])
def test_dropout_without_its_bits_is_not_timed(fault, tiny_dropout, monkeypatch):
    if fault == "another bit":
        monkeypatch.setattr(
            cpu_dropout.op.cpu_dropout, "dropout", lambda x, p, seed, out: out.fill_(0)
        )
    else:
        monkeypatch.setattr(cpu_dropout.op, "has_kernel", lambda x, seed: False)
    with pytest.raises(RuntimeError, match=r"are not those|did not run"):
        cpu_dropout.measured(cpu_dropout.op_alone((4, 8), torch.float32), 1)


@pytest.mark.parametrize("option", ["--rounds", "--threads"])
def test_dropout_refuses(option, capsys):
    with pytest.raises(SystemExit):
        cpu_dropout.main([option, "0"])
    assert "expected to be at least 1" in capsys.readouterr().err


def test_drafts_have_a_row_for_each_way_to_write(monkeypatch):
    monkeypatch.setattr(drafts, "PROMPT", 6)
    geometry = Geometry("small", 1, 16, 2, 24, 500)
    out = io.StringIO()
    with torch.no_grad():
        found = drafts.writers(geometry, 12)
        found["wrong"] = lambda: found["ours"]() + 1
        drafts.compare(found, 2, Console(file=out, width=110))
    head, *rows = out.getvalue().splitlines()
    assert head.split() == ["ms", "HF", "/", "it", "passes", "distinct"]
    assert [row[:24].strip() for row in rows] == list(found)
    assert rows[-1].split() == ["wrong", "red"]
    passes = [int(row.split()[-2]) for row in rows[:-1]]
    assert passes[:2] == [12, 12]
    assert all(1 < count <= 12 for count in passes[2:])


def test_generation_steps_have_a_row_for_each_context(monkeypatch):
    source = load_source(Geometry("small", 1, 16, 2, 24, 500), None, None, "XLNetLMHeadModel")
    out = io.StringIO()
    with torch.no_grad():
        shapes = ((1, 6), (1, 12), (2, 6))
        generation_steps.compare(source, shapes, 2, Console(file=out, width=110))
        monkeypatch.setattr(generation_steps, "difference", lambda *a: "token 1 differs")
        generation_steps.compare(source, shapes[:1], 2, Console(file=out, width=110))
    head, *rows = out.getvalue().splitlines()
    assert head.split()[:2] == ["batch", "context"]
    assert [tuple(map(int, row.split()[:2])) for row in rows[:3]] == list(shapes)
    for row in rows[:3]:
        _, _, theirs, ours, ratio, low, _, high, _ = row.split()
        assert float(low[1:]) <= float(ratio) <= float(high[:-1])
        assert float(theirs) > 0 < float(ours)
    assert rows[0].endswith("1.00")
    assert rows[-1].split() == ["1", "6", "red", "token", "1", "differs"]
