"""Targets, orders and masks: equal to the oracle's, number by number, and right by themselves."""

from __future__ import annotations

import random

import numpy as np
import plm_oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.pretraining.permutation import (
    CONTEXT_RANK,
    SpanSampling,
    block_order,
    compact_positions,
    dense_masks,
    draws_for_targets,
    next_base,
    sample_targets,
    visibility_ranks,
)

CHI_SQUARE_4 = 18.5
"""Four degrees of freedom: exceeded by chance once in a thousand seeds."""


def random_spans(draw: random.Random) -> SpanSampling:
    beta = draw.randint(1, 3)
    return SpanSampling(
        mask_alpha=beta * draw.randint(1, 6) + draw.randrange(beta),
        mask_beta=beta,
        max_span=draw.randint(1, 6),
        whole_words=draw.random() < 0.5,
    )


def random_candidates(draw: random.Random, length: int) -> list[bool]:
    """All, none, those without padding on either side, or with gaps."""
    kind = draw.choice(["all", "left", "right", "gaps", "none"])
    cut = draw.randrange(length)
    if kind == "gaps":
        return [draw.random() < 0.8 for _ in range(length)]
    return {
        "all": [True] * length,
        "left": [place >= cut for place in range(length)],
        "right": [place <= cut for place in range(length)],
        "none": [False] * length,
    }[kind]


def drawn(starts, candidates, goals, uniforms, spans=None) -> np.ndarray:
    return sample_targets(
        np.array(starts, bool), np.array(candidates, bool), np.array(goals), np.array(uniforms),
        spans or SpanSampling(),
    )  # fmt: skip


def test_targets_are_those_of_the_oracle():
    notes = plm_oracle.Notes()
    for seed in range(250):
        draw = random.Random(seed)
        rows, length, spans = draw.randint(1, 5), draw.randint(8, 40), random_spans(draw)
        share = draw.choice([0.0, 0.3, 0.7, 1.0])
        starts = [[draw.random() < share for _ in range(length)] for _ in range(rows)]
        candidates = [random_candidates(draw, length) for _ in range(rows)]
        goals = [draw.randint(0, sum(row)) for row in candidates]
        if draw.random() < 0.7:
            goals = [min(goal, length // 6) for goal in goals]
        count = draws_for_targets(length, max(goals))
        uniforms = [[draw.random() for _ in range(count)] for _ in range(rows)]
        found = drawn(starts, candidates, goals, uniforms, spans)
        for row in range(rows):
            expected = plm_oracle.sample_targets(
                starts[row], candidates[row], goals[row], uniforms[row], spans, notes
            )
            assert found[row].tolist() == expected, f"seed {seed}, row {row}"
    for case in ("no word start", "the span reaches the end", "topped up",
                 "the goal is reached inside a span"):  # fmt: skip
        assert notes[case] > 20, case


def test_exactly_the_goal_is_drawn_and_only_candidates_where_they_have_no_gaps():
    draw = np.random.default_rng(0)
    rows, length = 300, 31
    padded = draw.integers(0, length, rows)
    candidates = np.arange(length)[None] >= padded[:, None]
    goals = draw.integers(0, length - padded + 1)
    uniforms = draw.random((rows, draws_for_targets(length, int(goals.max()))))
    for whole_words in (False, True):
        spans = SpanSampling(whole_words=whole_words)
        found = drawn(draw.random((rows, length)) < 0.5, candidates, goals, uniforms, spans)
        assert (found.sum(1) == goals).all()
        assert not (found & ~candidates).any()


def test_a_row_does_not_depend_on_the_others():
    draw = np.random.default_rng(1)
    starts, goals = draw.random((6, 24)) < 0.6, np.full(6, 7)
    uniforms = draw.random((6, draws_for_targets(24, 7)))
    together = drawn(starts, np.ones_like(starts), goals, uniforms)
    for row in range(6):
        one = slice(row, row + 1)
        alone = drawn(starts[one], np.ones((1, 24)), goals[one], uniforms[one])
        assert (alone[0] == together[row]).all()


def test_the_largest_and_smallest_numbers_are_good_draws():
    for number in (0.0, np.nextafter(1.0, 0.0)):
        uniforms = np.full((1, draws_for_targets(20, 6)), number)
        assert drawn(np.ones((1, 20)), np.ones((1, 20)), [6], uniforms).sum() == 6


def runs_of(row: np.ndarray) -> list[tuple[int, int]]:
    """Begin and end of each run of targets."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def first_runs(starts: np.ndarray, spans: SpanSampling, goal: int) -> list[tuple[int, int]]:
    """The first span of each row; at least one token lies between two of them."""
    rows, length = starts.shape
    uniforms = np.random.default_rng(2).random((rows, draws_for_targets(length, goal)))
    found = drawn(starts, np.ones_like(starts), np.full(rows, goal), uniforms, spans)
    return [runs_of(row)[0] for row in found]


def test_span_lengths_are_harmonic():
    runs = first_runs(np.ones((8000, 100), bool), SpanSampling(), 5)
    lengths = np.bincount([end - begin for begin, end in runs], minlength=6)[1:]
    expected = 1 / np.arange(1, 6)
    expected *= len(runs) / expected.sum()
    assert ((lengths - expected) ** 2 / expected).sum() < CHI_SQUARE_4


def test_offsets_are_uniform_in_the_context():
    runs = first_runs(np.ones((4000, 40), bool), SpanSampling(mask_alpha=5, max_span=1), 1)
    places = np.bincount([begin for begin, _ in runs], minlength=5)
    assert len(places) == 5
    assert ((places - 800) ** 2 / 800).sum() < CHI_SQUARE_4


def test_a_span_takes_its_context_and_itself():
    """One seventh is drawn by the walk at alpha 6: n tokens, then 6 n around them."""
    rows, length, goal = 100, 1200, 100
    uniforms = np.random.default_rng(3).random((rows, draws_for_targets(length, goal)))
    found = drawn(np.ones((rows, length)), np.ones((rows, length)), np.full(rows, goal), uniforms)
    reach = np.array([runs_of(row)[-1][1] for row in found])
    assert reach.mean() / goal == pytest.approx(7, rel=0.02)


def test_topping_up_takes_every_token_alike():
    rows, length = 6000, 12
    starts = np.zeros((rows, length))  # no word begins, so every target is a topped-up one
    uniforms = np.random.default_rng(4).random((rows, draws_for_targets(length, 3)))
    found = drawn(starts, np.ones((rows, length)), np.full(rows, 3), uniforms)
    share = found.mean(0)
    assert np.abs(share - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / rows)


def test_spans_begin_with_words_and_whole_words_end_with_them():
    starts = np.random.default_rng(5).random((500, 600)) < 0.4
    ends_inside = 0
    for whole_words in (False, True):
        # So many that the first span is not cut, and a row so long that none is topped up.
        runs = first_runs(starts, SpanSampling(max_span=2, whole_words=whole_words), 30)
        for row, (begin, end) in enumerate(runs):
            assert starts[row, begin]
            if whole_words:
                assert starts[row, end]
                assert 1 <= starts[row, begin:end].sum() <= 2
            else:
                assert end - begin <= 2
                ends_inside += not starts[row, end]
    assert ends_inside > 100  # pieces are counted, so words are cut


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_beta": 0}, "mask_beta 0; expected mask_alpha >= mask_beta >= 1"),
        ({"mask_alpha": 2, "mask_beta": 3}, "mask_alpha is 2 and mask_beta 3"),
        ({"max_span": 0}, "max_span is 0, expected at least 1"),
    ],
)
def test_spans_that_cannot_be_drawn_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        SpanSampling(**arguments)


def test_a_goal_beyond_the_candidates_names_the_row():
    candidates = np.ones((2, 6))
    candidates[1, 2:] = 0
    with pytest.raises(ArgumentError, match="row 1 has 2 tokens that may be predicted, but 3"):
        drawn(np.ones((2, 6)), candidates, [3, 3], np.zeros((2, draws_for_targets(6, 3))))


def test_orders_are_those_of_the_oracle():
    for seed in range(60):
        draw = np.random.default_rng(seed)
        size, length = int(draw.integers(1, 15)), int(draw.integers(1, 41))
        uniforms = draw.random((3, size))
        for row, order in enumerate(block_order(uniforms, length)):
            expected = plm_oracle.factorization_order(uniforms[row].tolist(), length)
            assert order.tolist() == expected
            assert len(set(expected)) == length


def random_part(draw: random.Random) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(1, L) order, targets and functional tokens of a part, and its perm_size."""
    length, size = draw.randint(1, 20), draw.randint(1, 20)
    order = block_order(np.array([[draw.random() for _ in range(size)]]), length)
    functional = np.array([[draw.random() < 0.15 for _ in range(length)]])
    targets = np.array([[draw.random() < 0.4 for _ in range(length)]]) & ~functional
    return order, targets, functional, size


def oracle_mask(part) -> plm_oracle.Matrix:
    order, targets, functional, _ = (np.asarray(x).reshape(-1).tolist() for x in part)
    return plm_oracle.hidden_within(order, targets, functional)


def test_masks_of_parts_are_those_of_the_oracle():
    for seed in range(150):
        draw = random.Random(seed)
        parts = [random_part(draw) for _ in range(2)]
        base, ranks = CONTEXT_RANK, []
        for order, targets, functional, size in parts:
            ranks.append(visibility_ranks(order, targets, functional, base))
            base = next_base(base, order.shape[1], size)
        rank_q, rank_k = (np.concatenate(pair, axis=1) for pair in zip(*ranks, strict=True))
        expected = plm_oracle.hidden_of_parts(*map(oracle_mask, parts))
        assert ((rank_q[0][:, None] <= rank_k[0][None]) == np.array(expected)).all()


def test_no_lower_base_would_hide_the_second_part():
    order = np.arange(6)[None]
    functional = np.array([[False] * 5 + [True]])
    rank_q, _ = visibility_ranks(order, ~functional, functional)
    assert rank_q.max() == next_base(CONTEXT_RANK, 6, 3)


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_what_can_be_known_of_a_target_is_never_itself(size, seed):
    draw = np.random.default_rng(seed)
    length = int(draw.integers(1, 14))
    targets, functional = draw.random((2, 1, length)) < [[[0.5]], [[0.2]]]
    targets &= ~functional
    rank_q, rank_k = visibility_ranks(
        block_order(draw.random((1, size)), length), targets, functional
    )
    hidden = (rank_q[0][:, None] <= rank_k[0][None]).tolist()
    known = plm_oracle.reachable(hidden, [True] * length)
    order = rank_k[0]
    for target in np.flatnonzero(targets[0]):
        assert target not in known[target]
        assert all(order[other] < order[target] for other in known[target])


def test_dense_masks_are_the_ranks_and_the_positions():
    rank_q, rank_k = torch.tensor([[0, 2, 1]]), torch.tensor([[-1, 1, 1]])
    perm_mask, mapping = dense_masks((rank_q, rank_k), torch.tensor([[2, 0, -1]]))
    assert perm_mask.dtype == mapping.dtype == torch.float32
    assert perm_mask.tolist() == [[[0, 1, 1], [0, 0, 0], [0, 1, 1]]]
    assert mapping.tolist() == [[[0, 0, 1], [1, 0, 0], [0, 0, 0]]]


def test_positions_stand_in_order_with_nothing_behind():
    targets = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    assert compact_positions(targets, 4).tolist() == [
        [1, 3, -1, -1],
        [-1, -1, -1, -1],
        [0, 1, 2, 3],
    ]
