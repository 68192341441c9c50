"""The real child: what it answers, how it dies, and that it goes with its parent."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import forked
import pytest
import torch

from xlnet_fast.ops.qualification import proof
from xlnet_fast.ops.qualification.identity import identity_of
from xlnet_fast.ops.qualification.record import Row
from xlnet_fast.qualifier import child as children
from xlnet_fast.qualifier import messages, tiles
from xlnet_fast.qualifier.checks import Verdict
from xlnet_fast.qualifier.child import Worker
from xlnet_fast.qualifier.messages import Garbage, Order, line, read_line
from xlnet_fast.qualifier.run import run
from xlnet_fast.qualifier.tasks import Task

ABORTING = str(Path(__file__).with_name("_aborting_child.py"))
COPY = Task("concat_memory", "all", "float32")
SOFTMAX = Task("masked_softmax", "plain", "float32")


def test_a_real_child_proves_and_times_what_it_is_asked_for(tmp_path, monkeypatch):
    """And imports nothing of the folder that the user happens to be in."""
    for name in ("random", "torch", "typing", "xlnet_fast"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    outcome = run("cpu", backends=["sdpa"], wanted=lambda task: task in (COPY, SOFTMAX))
    assert [row.status for row in outcome.rows] == ["passed"] * 3
    assert outcome.record.identity == identity_of(torch.device("cpu"))
    for row in outcome.rows:
        assert [timing.shape for timing in row.timings] == ["2x128", "1x32"]
        assert row.speedup("baseline") == 1.0
        assert row.speedup("hf") > 0
    assert outcome.record.seconds > 0


def child_of(pipe: Path, answers: Path) -> None:
    """What the command of a child does in its process, once everything is imported."""
    os.dup2(os.open(pipe, os.O_RDONLY), 0)
    os.dup2(os.open(answers, os.O_WRONLY | os.O_CREAT), 1)
    sys.stdin = os.fdopen(0)
    children.main()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_child_goes_with_its_parent(tmp_path):
    pipe, answers = tmp_path / "pipe", tmp_path / "answers"
    os.mkfifo(pipe)
    child = forked.process(child_of, pipe, answers)
    child.start()
    with open(pipe, "w") as orders:
        order = Order("cpu", "sdpa", tuple([SOFTMAX] * 10_000), seconds=600.0)
        print(order.to_json(), file=orders, flush=True)
        while not answers.exists() or "\n" not in answers.read_text():
            assert child.is_alive()
            time.sleep(0.02)
        assert json.loads(answers.read_text().splitlines()[0])["kind"] == "ready"
    child.join(60)
    assert child.exitcode == 1


def test_a_backend_that_aborts_is_disqualified_with_the_class_named():
    def wanted(task):
        return task.op == "rel_attention" and task.operands in ("plain", "memory") and (
            task.dtype == "float32"
        )  # fmt: skip

    outcome = run("cpu", backends=["sdpa"], wanted=wanted, command=[sys.executable, ABORTING])
    assert {row.status for row in outcome.rows} == {"crashed"}
    (reason,) = {row.reason for row in outcome.rows}
    assert reason.startswith("died of SIGABRT")
    assert reason.endswith("in rel_attention memory float32 D=64 forward")


# --- in this process ----------------------------------------------------------------------------


def answers(order: Order, seconds: float = 600.0, **named: object) -> list[messages.Message]:
    lines: list[str] = []
    worker = Worker(order, children.time.monotonic() + seconds, lambda kind, **content: (
        lines.append(line(kind, **content))
    ), **named)  # fmt: skip
    worker.run()
    return [read_line(text) for text in lines]


def rows(found: list[messages.Message]) -> list[Row]:
    return [message.row for message in found if message.row is not None]


def test_unavailable_classes_are_told_with_the_reason():
    found = rows(answers(Order("cpu", "triton", (SOFTMAX,), 600.0)))
    assert {row.status for row in found} == {"unavailable"}
    assert {row.reason for row in found} == {"it runs on cuda, not on cpu"}


def test_nothing_is_begun_after_the_time():
    found = answers(Order("cpu", "sdpa", (SOFTMAX,), 0.0), seconds=0.0)
    assert [message.kind for message in found] == ["ready", "done"]


def test_a_backend_that_raises_only_when_it_is_timed_has_failed(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("too large")

    monkeypatch.setattr(children, "time_problem", refuse)
    found = rows(answers(Order("cpu", "sdpa", (COPY,), 600.0)))
    assert [row.status for row in found] == ["passed", "failed"]
    assert found[-1].reason == "timed at 2x128: raised RuntimeError: too large"


def test_compiling_makes_every_call_and_no_verdict(monkeypatch):
    calls = []
    monkeypatch.setattr(children, "rehearse", lambda *arguments: calls.append(arguments))
    found = answers(Order("cpu", "sdpa", (SOFTMAX,), 600.0, mode=messages.COMPILE))
    assert not rows(found)
    assert len(calls) == 2 * (3 + 2)  # two directions of three hostile calls and two timed ones


LIGHT = Task("rel_attention", "padded", "bfloat16", 64)
CHOSEN = {"forward/bfloat16/64/light": [64, 32, 4, 2, 255, 206, 24576]}


@pytest.mark.parametrize("full", [False, True])
def test_kernels_are_proved_with_the_tiles_that_are_told(full, monkeypatch):
    """With `full` those that are the fastest now, else those of the record that counts."""
    monkeypatch.setattr(children, "why_unavailable", lambda *_: None)
    monkeypatch.setattr(tiles, "choose", lambda *_: CHOSEN)
    taken = []

    def checking(problems, backend, direction, device):
        taken.append(proof.recorded_tiles(torch.device("cuda", 0)))
        return Verdict("failed", "enough")

    monkeypatch.setattr(children, "check", checking)
    order = Order("cpu", "triton", (LIGHT,), 600.0, full)
    before = {"backward_q/bfloat16/64/light": (32, 32, 4, 2, 255, 254, 22656)}
    found = answers(order, tiles=before)
    (told,) = [message.tiles for message in found if message.tiles is not None]
    expected = {name: tuple(tile) for name, tile in (CHOSEN if full else before).items()}
    assert told == expected
    assert taken == [CHOSEN if full else before] * 2


def test_compiling_meets_the_candidates_where_they_will_be_timed(monkeypatch):
    met = []
    monkeypatch.setattr(tiles, "compile_candidates", lambda *arguments: met.append(arguments))
    monkeypatch.setattr(children, "rehearse", lambda *_: None)
    for full in (False, True):
        found = answers(Order("cpu", "triton", (LIGHT,), 600.0, full, messages.COMPILE))
        assert not [message for message in found if message.kind == messages.TILES]
    assert [tasks for tasks, *_ in met] == [(LIGHT,)]


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[]", "{}", '{"kind": "row", "row": {}}', '{"kind": "ready"}']
)
def test_what_is_no_message_is_garbage(text):
    with pytest.raises(Garbage):
        read_line(text)


def test_an_order_is_the_same_after_its_journey():
    order = Order("cuda:1", "triton", (COPY, SOFTMAX), 12.5, True, messages.COMPILE)
    assert Order.from_json(order.to_json()) == order
