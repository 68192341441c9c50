"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from xlnet_fast.train.finetune import chunks, metrics

LABELS = ["a", "b", "c"]
GOLD = np.array([0, 0, 0, 1, 1, 2])
GUESS = np.array([0, 0, 1, 1, 0, 2])


def test_labels():
    """a: 2 right of 3 guessed and 3 true; b: 1 of 2 and 2; c: 1 of 1 and 1."""
    found = metrics.classification_metrics(GOLD, GUESS)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["precision_macro"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["recall_macro"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["f1_weighted"] == pytest.approx((3 * 2 / 3 + 2 * 1 / 2 + 1) / 6)


def test_a_label_that_is_nowhere_does_not_lower_the_mean():
    assert metrics.classification_metrics(np.array([0, 0]), np.array([0, 0]))["f1_macro"] == 1


def test_each_label():
    found = metrics.per_label(GOLD, GUESS, [*LABELS, "never"])
    assert found["a"] == {
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "support": 3,
    }
    assert found["never"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}


def test_confusion_has_a_row_for_each_true_label():
    assert metrics.confusion(GOLD, GUESS, LABELS).tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]


# --- entities ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("", set()),
        ("O O O", set()),
        ("B-X I-X O B-Y", {("X", 0, 1), ("Y", 3, 3)}),
        # IOB2: B begins another entity of the same type.
        ("B-X B-X I-X", {("X", 0, 0), ("X", 1, 2)}),
        # IOB1: I begins an entity, B only parts two that touch.
        ("I-X I-X B-X I-X", {("X", 0, 1), ("X", 2, 3)}),
        ("O I-X O I-X", {("X", 1, 1), ("X", 3, 3)}),
        # Another type ends an entity.
        ("B-X I-Y I-Y", {("X", 0, 0), ("Y", 1, 2)}),
        # BIOES and BILOU.
        ("B-X I-X E-X S-X O S-Y", {("X", 0, 2), ("X", 3, 3), ("Y", 5, 5)}),
        ("B-X L-X U-X U-Y B-Y L-Y", {("X", 0, 1), ("X", 2, 2), ("Y", 3, 3), ("Y", 4, 5)}),
        # After an end the next tag begins anew, whatever it is.
        ("B-X E-X I-X", {("X", 0, 1), ("X", 2, 2)}),
        ("E-X", {("X", 0, 0)}),
        # A type may hold the separator.
        ("B-X-1 I-X-1 B-X-2", {("X-1", 0, 1), ("X-2", 2, 2)}),
    ],
)
def test_entities_of_a_sentence(tags, found):
    assert chunks.entities(tags.split()) == found


def test_entities_count_only_if_exact():
    """X: one of two found, one of two guesses right; Y: cut short, so wrong both ways."""
    gold = [["B-X", "I-X", "O", "B-X", "O"], ["B-Y", "I-Y", "O"]]
    guess = [["B-X", "I-X", "O", "O", "B-X"], ["B-Y", "O", "O"]]
    scores = metrics.entity_scores(gold, guess)
    assert scores["X"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert scores["Y"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert scores[""]["precision"] == pytest.approx(1 / 3)
    assert scores[""]["recall"] == pytest.approx(1 / 3)
    assert scores[""]["support"] == 3


def test_an_entity_of_another_type_is_wrong():
    scores = metrics.entity_scores([["B-X", "I-X"]], [["B-Y", "I-Y"]])
    assert [scores[kind]["f1"] for kind in ("", "X", "Y")] == [0, 0, 0]


def test_entities_that_nobody_has():
    assert metrics.entity_scores([["O"]], [["O"]])[""]["f1"] == 0


@pytest.mark.parametrize(
    ("labels", "answer"),
    [
        (["O", "B-X", "I-X"], True),
        (["B-X", "E-X", "S-X"], True),
        (["O"], False),
        (["NN", "VB"], False),
        (["O", "B-X", "X"], False),
        (["B-", "O"], False),
    ],
)
def test_which_labels_are_chunk_tags(labels, answer):
    assert chunks.has_entities(labels) is answer


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guess", "gold", "exact", "f1"),
    [
        ("The  Cat!", "cat", 1, 1),
        ("a black cat", "black dog", 0, 0.5),
        # 2 shared of 3 guessed and 2 true.
        ("new york city", "New York", 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("x x y", "x y y", 0, 2 / 3),
        ("cat", "dog", 0, 0),
        ("", "", 1, 1),
        ("", "cat", 0, 0),
        ("the", "", 1, 1),
    ],
)
def test_answers(guess, gold, exact, f1):
    assert metrics.exact_match(guess, gold) == exact
    assert metrics.answer_f1(guess, gold) == pytest.approx(f1)


def test_the_best_gold_answer_counts():
    found = metrics.answer_metrics(["new york", "b"], [["york", "New York"], ["c"]])
    assert found == {"exact_match": 0.5, "f1": 0.5}


def test_questions_without_an_answer_are_also_told_apart():
    found = metrics.answer_metrics(["", "x", "york"], [[], [], ["new york"]])
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["exact_match_no_answer"] == 0.5
    assert found["exact_match_has_answer"] == 0
    assert found["f1_has_answer"] == pytest.approx(2 / 3)
    assert set(metrics.answer_metrics([""], [[]])) == {"exact_match", "f1"}
