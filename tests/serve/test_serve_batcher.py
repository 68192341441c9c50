"""The choice of batches: budget, padding, groups, and that nothing waits for ever."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlnet_fast.serve.batcher import PADDING, Call, Queue, Waiting

BUDGET = 1024


def waiting(length, group=None, deadline=math.inf, arrived=0.0):
    return Waiting(Call([None], deadline, lambda: None), 0, length, group, arrived)


def filled(pieces, **settings):
    queue = Queue(BUDGET, **settings)
    for piece in pieces:
        queue.add(piece)
    return queue


def emptied(queue):
    while True:
        batch, late = queue.take(0.0)
        assert not late
        if not batch:
            return
        yield batch


def lognormal(count, seed=0):
    generator = random.Random(seed)
    return [min(512, max(4, int(generator.lognormvariate(4.0, 0.9)))) for _ in range(count)]


@given(
    st.lists(st.tuples(st.integers(1, 1500), st.sampled_from("ab")), max_size=60),
    st.integers(1, 2000),
)
def test_batches_keep_the_budget_and_the_groups_and_lose_nothing(pieces, budget):
    queue = Queue(budget)
    everything = [waiting(length, group) for length, group in pieces]
    for piece in everything:
        queue.add(piece)
    assert queue.tokens == sum(length for length, _ in pieces)
    seen = []
    for batch in emptied(queue):
        oldest = min(set(everything) - set(seen), key=lambda piece: piece.number)
        assert oldest in batch
        assert len({piece.group for piece in batch}) == 1
        longest, real = max(p.length for p in batch), sum(p.length for p in batch)
        assert len(batch) == 1 or len(batch) * longest <= min(budget, PADDING * real)
        seen += batch
    assert len(seen) == len(set(seen)) == len(everything)
    assert queue.tokens == len(queue) == 0


def test_equal_lengths_leave_in_order():
    everything = [waiting(100) for _ in range(25)]
    batches = list(emptied(filled(everything)))
    assert [len(batch) for batch in batches] == [10, 10, 5]
    assert [piece for batch in batches for piece in batch] == everything


def test_the_nearest_in_length_join_first():
    pieces = [waiting(length) for length in (100, 20, 90, 110, 300, 105)]
    (batch, *_) = emptied(filled(pieces))
    # 20 and 300 are too far for the padding.
    assert sorted(piece.length for piece in batch) == [90, 100, 105, 110]


def test_a_piece_above_the_budget_goes_alone():
    batches = list(emptied(filled([waiting(5000), waiting(4999), waiting(5)])))
    assert [[p.length for p in batch] for batch in batches] == [[5000], [4999], [5]]


def test_nothing_starves_under_a_stream_of_others():
    """A long piece among short ones that never cease: it is in the batch when it is the oldest."""
    queue = filled([waiting(20) for _ in range(30)])
    lonely = waiting(512)
    queue.add(lonely)
    batches = []
    while not batches or lonely not in batches[-1]:
        batches.append(queue.take(0.0)[0])
        for _ in range(50):
            queue.add(waiting(20))
    assert len(batches) == 2  # 30 pieces of 20 tokens are the first


def test_what_is_late_or_removed_is_not_computed():
    late, gone, good = waiting(50, deadline=5.0), waiting(50), waiting(50)
    queue = filled([late, gone, good])
    queue.remove(gone)
    queue.remove(gone)
    assert queue.tokens == 100
    assert queue.take(5.0) == ([good], [late])
    assert queue.take(5.0) == ([], [])
    queue = filled([waiting(10, deadline=1.0), waiting(200, deadline=1.0)])
    batch, late = queue.take(2.0)
    assert batch == []
    assert [piece.length for piece in late] == [10, 200]


def served(lengths, arrivals, batches_of):
    """Latencies and the end, where a batch takes 2 ms and 1 ms for 10 tokens, padding included.

    ``batches_of(waiting)`` takes the places of the next batch; it is asked when the model is idle.
    """
    now, here, latencies, order = 0.0, [], {}, list(range(len(lengths)))
    while len(latencies) < len(lengths):
        if not here:
            now = max(now, arrivals[order[0]])
        while order and arrivals[order[0]] <= now:
            here.append(order.pop(0))
        batch = batches_of(here)
        now += 0.002 + 1e-4 * len(batch) * max(lengths[i] for i in batch)
        for i in batch:
            here.remove(i)
            latencies[i] = now - arrivals[i]
    return sorted(latencies.values()), now


@pytest.mark.parametrize("load", [0.5, 3.0], ids=["half", "threefold"])
def test_policies_side_by_side(load):
    """By length it is sooner done than first in first out by eight, and than one by one."""
    lengths = lognormal(400)
    mean_s = sum(0.002 + 1e-4 * length for length in lengths) / len(lengths)
    generator, now, arrivals = random.Random(1), 0.0, []
    for _ in lengths:
        now += generator.expovariate(load / mean_s)
        arrivals.append(now)
    queue, pieces = Queue(BUDGET), {}

    def by_length(here):
        for i in here:
            if i not in pieces:
                pieces[i] = waiting(lengths[i])
                queue.add(pieces[i])
        batch, _ = queue.take(0.0)
        return [i for i in here if pieces[i] in batch]

    results = {
        "by length": served(lengths, arrivals, by_length),
        "eight": served(lengths, arrivals, lambda here: here[:8]),
        "one": served(lengths, arrivals, lambda here: here[:1]),
    }
    p50 = {name: latencies[200] for name, (latencies, _) in results.items()}
    p99 = {name: latencies[396] for name, (latencies, _) in results.items()}
    ends = {name: end for name, (_, end) in results.items()}
    if load > 1:
        assert ends["by length"] < 0.62 * ends["eight"]
        assert ends["by length"] < ends["one"]
    assert p50["by length"] <= p50["eight"]
    assert p99["by length"] < p99["eight"]
