"""The inference thread: poisoned pieces, models that fail, what is full, late, or given up."""

from __future__ import annotations

import math
import threading
import time

import pytest
import torch

from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.writing import Interrupted
from xlnet_fast.serve.batcher import Call
from xlnet_fast.serve.contract import ModelFailed, NotReady, Overloaded, TimedOut
from xlnet_fast.serve.worker import SUSPICIOUS, Observer, Worker

GOOD, BAD, NAN, SLOW, DEADLY = "good", "bad", "nan", "slow", "deadly"


class Model:
    """Answers a piece by its own name; holds while ``gate`` is closed."""

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False

    def run(self, pieces, interrupted):
        self.batches.append(list(pieces))
        if SLOW in pieces:
            while not interrupted():
                time.sleep(0.001)
            raise Interrupted
        assert self.gate.wait(10)
        if DEADLY in pieces:
            raise SystemExit
        if BAD in pieces:
            raise RuntimeError("a text that must not be logged")
        return [
            torch.tensor(math.nan) if self.broken or piece == NAN else torch.tensor(1.0)
            for piece in pieces
        ]

    def check(self):
        if self.broken:
            raise RuntimeError("not even\nthat")


class Seen(Observer):
    def __init__(self):
        self.sizes, self.failed = [], 0

    def batch(self, pieces, tokens, longest, waits_s):
        self.sizes.append((pieces, tokens, longest))
        assert len(waits_s) == pieces
        assert min(waits_s) >= 0

    def failed_alone(self):
        self.failed += 1


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def worker(model):
    made = Worker("m", model.run, model.check, budget=1000, limit=1000, observer=Seen())
    yield made
    model.gate.set()
    assert made.close(NotReady("end"), 10)


def asked(worker, *pieces, length=10, deadline=math.inf, work=None):
    """A call in the queue, and the event of its end."""
    ended = threading.Event()
    call = Call(pieces, deadline, ended.set, work)
    count = len(pieces) or 1
    worker.submit(call, [length] * count, [None] * count)
    return call, ended


def results(worker, *pieces, **settings):
    call, ended = asked(worker, *pieces, **settings)
    assert ended.wait(10)
    return call.results


def occupied(model, worker):
    """While a piece is being computed, others wait and make one batch."""
    model.gate.clear()
    asked(worker, GOOD)
    while not model.batches:
        time.sleep(0.001)


@pytest.mark.parametrize("poison", [BAD, NAN])
def test_what_is_poisoned_fails_alone(model, worker, poison):
    occupied(model, worker)
    calls = [asked(worker, piece) for piece in (GOOD, poison, GOOD)]
    model.gate.set()
    assert all(ended.wait(10) for _, ended in calls)
    assert [type(call.results[0]) for call, _ in calls] == [torch.Tensor, ModelFailed, torch.Tensor]
    assert model.batches[1:] == [[GOOD, poison, GOOD], [GOOD], [poison], [GOOD]]
    assert worker._observer.sizes == [(1, 10, 10), (3, 30, 10)]
    assert worker._observer.failed == 1
    assert worker.alive
    assert worker.tokens == 0


def test_poison_without_end_is_the_poisons_fault(model, worker):
    for _ in range(3 * SUSPICIOUS):
        assert isinstance(results(worker, BAD)[0], ModelFailed)
    assert worker.alive
    assert results(worker, GOOD)[0] == 1


def test_a_model_that_fails_its_canaries_has_failed(model):
    told = []
    worker = Worker("m", model.run, model.check, budget=9, limit=99, on_failure=told.append)
    model.broken = True
    for _ in range(SUSPICIOUS):
        assert isinstance(results(worker, GOOD)[0], ModelFailed)
    while not told:
        time.sleep(0.001)
    assert not worker.alive
    assert told == [worker.failure]
    assert "failed 3 records in a row" in worker.failure
    assert worker.failure.endswith("RuntimeError: not even that")
    with pytest.raises(NotReady, match="failed 3 records"):
        asked(worker, GOOD)
    assert worker.close(NotReady("end"), 10)


def test_a_dying_thread_is_noticed(model):
    told = []
    worker = Worker("m", model.run, model.check, budget=99, limit=99, on_failure=told.append)
    occupied(model, worker)
    deadly, ended = asked(worker, DEADLY)
    behind, behind_ended = asked(worker, GOOD, length=80)
    model.gate.set()
    assert ended.wait(10)
    assert behind_ended.wait(10)
    for call in (deadly, behind):
        assert isinstance(call.results[0], NotReady)
        assert "thread of m has ended: SystemExit" in str(call.results[0])
    assert told
    assert not worker.alive


def test_a_full_queue_says_when_to_come_again(model, worker):
    results(worker, GOOD)
    model.batches.clear()
    occupied(model, worker)
    asked(worker, GOOD, length=900)
    worker.reserve(90)
    started = time.perf_counter()
    with pytest.raises(Overloaded, match="990 tokens wait for m, and 20 more") as refusal:
        asked(worker, GOOD, length=20)
    assert time.perf_counter() - started < 0.1
    assert 1 <= refusal.value.retry_after_s <= 30
    with pytest.raises(Overloaded):
        worker.reserve(11)
    worker.release(90)
    asked(worker, GOOD, length=100)


def test_an_empty_queue_takes_what_is_above_its_limit(worker):
    assert results(worker, GOOD, length=5000)[0] == 1


def test_what_is_late_or_given_up_is_not_computed(model, worker):
    occupied(model, worker)
    late, ended = asked(worker, SLOW, deadline=time.monotonic())
    given_up, _ = asked(worker, "given up", "given up")
    _, last_ended = asked(worker, GOOD)
    worker.cancel(given_up)
    worker.cancel(given_up)
    assert worker.tokens == 20
    model.gate.set()
    assert ended.wait(10)
    assert last_ended.wait(10)
    assert isinstance(late.results[0], TimedOut)
    assert model.batches[1:] == [[GOOD]]
    assert given_up.results == [None, None]


def test_what_nobody_waits_for_any_more_is_given_up(model, worker):
    """When the last one has gone or is late; however often, that is no fault of the model."""
    for _ in range(SUSPICIOUS + 1):
        model.batches.clear()
        occupied(model, worker)
        late, ended = asked(worker, SLOW, deadline=time.monotonic() + 0.1)
        gone, gone_ended = asked(worker, SLOW)
        model.gate.set()
        while len(model.batches) == 1:
            time.sleep(0.001)
        assert not ended.wait(0.15)  # the other one is still waited for
        worker.cancel(gone)
        assert ended.wait(10)
        assert isinstance(late.results[0], TimedOut)
        assert not gone_ended.is_set()
    assert results(worker, GOOD)[0] == 1
    assert worker.alive
    assert worker._observer.failed == 0
    assert not worker._pieces


def test_a_poisoned_batch_gives_up_who_has_gone(model, worker):
    """Piece by piece too."""
    occupied(model, worker)
    calls = [asked(worker, piece) for piece in (BAD, GOOD)]
    slow, ended = asked(worker, "late", deadline=time.monotonic() + 10)
    run = worker._run

    def run_late(pieces, interrupted):
        if pieces == ["late"]:
            raise Interrupted
        return run(pieces, interrupted)

    worker._run = run_late
    model.gate.set()
    assert ended.wait(10)
    assert all(event.wait(10) for _, event in calls)
    told = [type(call.results[0]) for call in (*[call for call, _ in calls], slow)]
    assert told == [ModelFailed, torch.Tensor, TimedOut]


def test_work_is_done_alone_and_its_errors_are_told(model, worker):
    def refuse():
        raise ArgumentError("there is no such method")

    def crash():
        raise RuntimeError("oh")

    assert results(worker, work=lambda: threading.current_thread().name) == ["xlnet-m"]
    assert isinstance(results(worker, work=refuse)[0], ArgumentError)
    assert isinstance(results(worker, work=crash)[0], ModelFailed)
    assert model.batches == []


def test_streams_go_on_between_batches(model, worker):
    """Two streams and many batches: after each batch, one part of each stream."""
    order = []
    run = worker._run
    worker._run = lambda *batch: order.append("batch") or run(*batch)
    occupied(model, worker)
    for length in (600, 300, 90):  # no two of which make a batch
        asked(worker, GOOD, length=length)
    last = None
    for name in ("a1", "b1"):
        last = threading.Event()
        worker.go_on(Call((), math.inf, last.set, lambda name=name: order.append(name)))
    gone = Call((), math.inf, lambda: None, lambda: order.append("gone"))
    worker.go_on(gone)
    worker.cancel(gone)
    model.gate.set()
    assert last.wait(10)
    _, ended = asked(worker, GOOD)
    assert ended.wait(10)
    assert order == ["batch", "batch", "a1", "b1", "batch", "batch", "batch"]


def test_the_end_refuses_what_waits(model):
    worker = Worker("m", model.run, model.check, budget=10, limit=999)
    occupied(model, worker)
    waiting, ended = asked(worker, GOOD)
    threading.Timer(0.05, model.gate.set).start()
    assert worker.close(NotReady("the end"), 10)
    assert ended.wait(10)
    assert str(waiting.results[0]) == "the end"
    with pytest.raises(NotReady, match="unloaded"):
        asked(worker, GOOD)
