"""The benchmark of serving: the batches of each policy, the same logits or no time, the figures."""

from __future__ import annotations

import csv
import itertools
import json

import pytest

from benchmarks import __main__ as names
from benchmarks import bench_serve
from benchmarks.bench_serve import compare_mix, load_row, percentile, texts_of, write, write_model
from benchmarks.cases.serving import LEAST, MOST, arrivals, mixed_lengths
from benchmarks.cases.shapes import Geometry
from benchmarks.providers.serving import FIFO, OURS, QUEUES, SINGLE, FirstCome, batches
from xlnet_fast.predict import Predictor
from xlnet_fast.predict.pieces import TOKEN_BUDGET
from xlnet_fast.serve.batcher import Call, Waiting

TINY = Geometry("tiny", 1, 32, 2, 48, 8000)


def test_the_mix_is_of_many_lengths_and_always_the_same():
    lengths = mixed_lengths(1000)
    assert lengths == mixed_lengths(1000)
    assert min(lengths) >= LEAST
    assert max(lengths) == MOST
    assert 45 < sorted(lengths)[500] < 65


def test_arrivals_are_as_many_as_the_rate_says_and_independent_of_answers():
    times = arrivals(50.0, 20.0)
    assert times == sorted(times)
    assert times[-1] < 20
    assert 900 < len(times) < 1100
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert max(gaps) > 4 * sum(gaps) / len(gaps)  # no clockwork


@pytest.mark.parametrize("policy", QUEUES)
def test_every_text_is_in_one_batch(policy):
    lengths = mixed_lengths(64)
    assert sorted(i for batch in batches(policy, lengths) for i in batch) == list(range(64))


def test_policies_are_what_they_are_called():
    lengths = mixed_lengths(20)
    assert batches(SINGLE, lengths) == [[i] for i in range(20)]
    assert batches(FIFO, lengths) == [[*range(8)], [*range(8, 16)], [*range(16, 20)]]
    for batch in batches(OURS, lengths):
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= TOKEN_BUDGET


def test_the_other_queue_forgets_what_was_cancelled_and_tells_what_is_late():
    queue = FirstCome(2)
    calls = [Call([None], deadline, lambda: None) for deadline in (9.0, 1.0, 9.0, 9.0)]
    pieces = [Waiting(call, 0, 10, None, 0.0) for call in calls]
    for piece in pieces:
        queue.add(piece)
    queue.remove(pieces[2])
    assert (len(queue), queue.tokens) == (3, 30)
    assert queue.take(5.0) == ([pieces[0], pieces[3]], [pieces[1]])
    assert (len(queue), queue.tokens) == (0, 0)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    write_model(folder, TINY)
    return Predictor.load(str(folder))


def test_the_mix_is_timed_where_logits_agree(predictor, monkeypatch):
    texts = texts_of(predictor, [5, 60, 7, 30])
    encoded = [predictor.encode(text) for text in texts]
    rows = {row["policy"]: row for row in compare_mix(predictor, encoded, 2)}
    assert rows[FIFO]["over_fifo"] == 1.0
    assert rows[SINGLE]["batches"] == 4
    assert rows[SINGLE]["tokens_over_real"] == 1.0
    assert rows[FIFO]["tokens_over_real"] > rows[OURS]["tokens_over_real"]

    run = predictor.run
    monkeypatch.setattr(
        predictor, "run", lambda pieces: [r + 1e-3 * len(pieces) for r in run(pieces)]
    )
    with pytest.raises(RuntimeError, match="from those one by one"):
        compare_mix(predictor, encoded, 1)


def test_figures_are_of_answered_requests():
    found = [(float(ms), 200) for ms in range(1, 101)] + [(5e3, 429), (1e4, 0)]
    row = load_row("ours", 3.0, found, [1.0, 2.0, 30.0])
    assert (row["requests"], row["answered"], row["refused"]) == (102, 100, 1)
    assert (row["p50_ms"], row["p99_ms"], row["ping_p99_ms"]) == (51.0, 100.0, 30.0)
    assert percentile([], 50) != percentile([], 50)


def test_a_run_leaves_table_facts_and_picture(tmp_path):
    rows = [load_row(p, rate, [(rate, 200)], [1.0]) for p in QUEUES for rate in (1.0, 2.0)]
    write(tmp_path, [{"policy": OURS, "over_fifo": 2.0}], rows, "a title")
    with open(tmp_path / "serve.csv", newline="") as file:
        assert [row["policy"] for row in csv.DictReader(file)] == [p for p in QUEUES for _ in "12"]
    facts = json.loads((tmp_path / "serve.json").read_text())
    assert facts["environment"]["device_type"] == "cpu"
    assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")


def test_it_has_a_command_line_of_its_own(capsys):
    with pytest.raises(SystemExit):
        names.main(["serve", "--help"])
    assert "FIFO" in capsys.readouterr().out
    assert not hasattr(bench_serve, "KERNEL")
