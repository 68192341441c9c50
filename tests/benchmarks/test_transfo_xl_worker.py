"""What the workers of Transformer-XL's benchmark do, and how they are asked."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transfo_xl_sides import CASES, GEOMETRY, side

from benchmarks.cases.transfo_xl import memories, segments
from benchmarks.harness.memory import process_peak_mib
from benchmarks.harness.processes import JsonProcess, ProcessFailed
from benchmarks.providers import transfo_xl_worker
from benchmarks.providers.transfo_xl import command
from benchmarks.providers.transfo_xl_worker import Worker, serve


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def ours(folder):
    return side(folder)


def test_text_is_of_all_clusters_and_mostly_of_the_first():
    ids = segments(replace(CASES[0], batch=4, length=500), 60)
    assert ids.shape == (4, 4, 500)
    assert torch.equal(ids, segments(replace(CASES[0], batch=4, length=500), 60))
    shares = [float(((ids >= a) & (ids < b)).float().mean()) for a, b in ((0, 20), (20, 40))]
    assert shares[0] > 2 * shares[1] > 0
    assert int(ids.max()) in range(40, 60)
    assert segments(CASES[2], 60).shape == (1, 2, 5)
    (first, second) = memories(CASES[0], GEOMETRY)
    assert first.shape == (9, 2, 16)
    assert not torch.equal(first, second)


def test_no_weight_is_zero_and_both_read_the_same(folder, ours):
    """The one that reads them takes the place of Hugging Face; its losses are the same."""
    model = ours._worker.worker._model
    for name, weight in model.named_parameters():
        assert float((weight == 0).float().mean()) < 0.01, name
        assert torch.equal(weight, weight.bfloat16().float()), name
    reader = Worker()
    message = {
        "module": "xlnet_fast.models.transfo_xl", "config": GEOMETRY.config(),
        "weights": str(folder / "weights.safetensors"), "make": False,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    answer = reader.answer({"do": "load", **message})
    assert answer["torch"] == torch.__version__
    for name, weight in reader._model.named_parameters():
        assert torch.equal(weight, model.get_parameter(name)), name
    # Biases of the clusters, or no text would leave the first one.
    assert float(model.crit.cluster_bias.detach().min()) > 2


def test_results_depend_on_what_they_should(ours):
    case = CASES[0]
    ours.prepare(case)
    right = ours.result("fp32")
    assert {name: tuple(x.shape) for name, x in right.items()} == {
        **{f"losses of segment {i}": (2, 5) for i in (1, 2, 3)},
        "memory of layer 1": (9, 2, 16), "memory of layer 2": (9, 2, 16),
    }  # fmt: skip
    exact = ours.result("fp64")
    assert {x.dtype for x in exact.values()} == {torch.float64}
    torch.testing.assert_close(
        right, {n: x.float() for n, x in exact.items()}, rtol=1e-4, atol=1e-4
    )
    worker = ours._worker.worker
    worker._given = [rows.roll(1, 0) for rows in worker._given]
    other = ours.result("fp32")
    for name in right:  # no row that is left has seen the first memory
        assert torch.equal(right[name], other[name]) == name.startswith("memory"), name

    ours.prepare(CASES[2])
    (tokens,) = ours.result("fp32").values()
    assert tokens.shape == (2, 7)
    assert all(len(set(row.tolist())) == 7 for row in tokens)
    assert int(tokens.max()) >= 20
    worker._ids = [worker._ids[0].roll(1, 1)]
    (other,) = ours.result("fp32").values()
    assert not torch.equal(tokens, other)


def test_a_training_step_leaves_no_gradient_and_its_check_no_dropout(ours):
    ours.prepare(CASES[1])
    first, second = (ours.result("fp32") for _ in range(2))
    gradients = [name for name in first if name.startswith("gradient of ")]
    assert len(gradients) > 20
    for name in gradients:
        assert bool(first[name].any()), name
        assert torch.equal(first[name], second[name]), name
    assert len(first["gradient of transformer.layers.0.pos_ff.CoreNet.0.weight"]) == 24
    worker = ours._worker.worker
    seen = []
    genuine = type(worker._timed).zero_grad

    def look(model, set_to_none):
        rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
        seen.append((model.training, rates, worker._carried))
        genuine(model, set_to_none=set_to_none)

    worker._timed.zero_grad = look.__get__(worker._timed)
    try:
        assert ours.run() > 0
        assert ours.run() > 0
    finally:
        del worker._timed.zero_grad
    assert [(training, p) for training, p, _ in seen] == [(True, {0.1, 0.0})] * 2
    assert seen[0][2] is None
    assert seen[1][2][0].shape == (6, 2, 16)
    assert all(weight.grad is None for weight in worker._timed.parameters())


def test_hugging_faces_losses_are_asked_for_in_the_order_of_the_tokens():
    class Crit:
        keep_order = False

    model = type("Model", (), {"crit": Crit()})()
    with transfo_xl_worker._in_order(model):
        assert model.crit.keep_order
    assert not model.crit.keep_order


def test_results_are_in_one_dtype_and_those_of_the_oracle_under_its_mode(ours, monkeypatch):
    ours.prepare(CASES[3])
    modes, genuine = [], Worker._losses

    def look(self, model, plain):
        modes.append(torch._C._len_torch_function_stack())
        return genuine(self, model, plain)

    monkeypatch.setattr(Worker, "_losses", look)
    for dtype in (torch.bfloat16, torch.float64):
        found = ours.result("bf16" if dtype == torch.bfloat16 else "fp64")
        assert {x.dtype for x in found.values()} == {dtype}
    assert modes == [0, 1]


def test_a_run_reads_a_whole_text_and_tells_the_time_of_a_segment(ours, monkeypatch):
    ours.prepare(CASES[0])
    clock = iter([10.0, 18.0, 20.0, 23.0])
    monkeypatch.setattr(transfo_xl_worker.time, "perf_counter", lambda: next(clock))
    read, genuine = [], Worker._read
    monkeypatch.setattr(Worker, "_read", lambda *a: read.append(a[2]) or genuine(*a))
    assert ours.run() == 2.0
    assert torch.equal(torch.stack(read), segments(CASES[0], 60))
    ours.prepare(CASES[1])
    assert ours.run() == 3.0


def test_the_oracle_stays_in_float64():
    exact, half = torch.ones(2, dtype=torch.float64) / 3, torch.ones(2, dtype=torch.bfloat16)
    with transfo_xl_worker._Double():
        assert torch.equal(exact.float(), exact)
        assert exact.float().masked_fill(exact > 0, torch.finfo(torch.float64).min).min() < -1e300
        assert half.float().dtype == torch.float32
        assert exact.float(memory_format=torch.preserve_format).dtype == torch.float64
    assert exact.float().dtype == torch.float32


def test_the_protocol_is_lines_of_json():
    said = []
    serve(['{"do": "run"}', '{"do": "load"}', '{"do": "nothing"}'], said.append)
    answers = [json.loads(line) for line in said]
    assert all(line.endswith("\n") for line in said)
    assert answers[0]["error"].startswith("KeyError")
    assert "missing 5 required" in answers[1]["error"]
    assert answers[2]["error"] == "KeyError: 'nothing'"
    assert command("old/python")[:2] == ["old/python", "-I"]
    assert command("old/python")[2].endswith("transfo_xl_worker.py")
    assert command() == [sys.executable, "-m", "benchmarks.providers.transfo_xl_worker"]


def test_the_worker_imports_nothing_of_ours():
    code = Path(transfo_xl_worker.__file__).read_text(encoding="utf-8")
    assert "xlnet" not in code
    assert "from ." not in code


ECHO = """
import json, sys, time
for line in sys.stdin:
    message = json.loads(line)
    if message["do"] == "end":
        sys.exit("a reason")
    if message["do"] == "wait":
        time.sleep(60)
    if message["do"] == "hold":
        held = bytearray(64 * 2**20)
        del held
    print("no json" if message["do"] == "talk" else json.dumps(message), flush=True)
"""


def test_a_process_answers_or_says_why_not(tmp_path):
    process = JsonProcess([sys.executable, "-c", ECHO], {"SOME": "thing"}, timeout_s=20.0)
    with pytest.raises(ProcessFailed, match="was not started"):
        _ = process.process_id
    assert process.ask(do="x", more=1) == {"do": "x", "more": 1}
    assert process.process_id != os.getpid()
    with pytest.raises(ProcessFailed, match=r"^RuntimeError: so$"):
        process.ask(do="x", error="RuntimeError: so")
    with pytest.raises(ProcessFailed, match="no JSON"):
        process.ask(do="talk")
    with pytest.raises(ProcessFailed, match="ended with 1: a reason"):
        process.ask(do="end")
    with pytest.raises(ProcessFailed, match="ended with 1: a reason"):
        process.ask(do="x")
    process.close()
    late = JsonProcess([sys.executable, "-c", ECHO], {}, timeout_s=0.3)
    with pytest.raises(ProcessFailed, match=r"no answer within 0\.3 s"):
        late.ask(do="wait")
    with pytest.raises(ProcessFailed, match="cannot be started: "):
        JsonProcess([str(tmp_path / "nothing")], {}).ask(do="x")


@pytest.mark.usefixtures("high_water_mark")
def test_the_peak_is_that_of_the_other_process():
    process = JsonProcess([sys.executable, "-c", ECHO], {})
    process.ask(do="hold")
    peak = process_peak_mib(process.process_id, lambda: process.ask(do="hold"))
    quiet = process_peak_mib(process.process_id, lambda: process.ask(do="x"))
    process.close()
    assert 63 < peak < 80
    assert quiet < 8
    assert process_peak_mib(2**22 + 1, lambda: None) is None
