"""Answers from windows of a context: those of fine-tuning, of both heads."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from tiny_predictors import (
    LONG,
    TEXT,
    folder_of,
    inputs_of,
    numbers,
    one_by_one,
    plain,
    predictor,
    words,
)

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import FinetuneOptions
from xlnet_fast.train.finetune.model import run_tokenizer
from xlnet_fast.train.finetune.question_answering import BeamQuestionAnswering, QuestionAnswering

SIMPLE, BEAM = "XLNetForQuestionAnsweringSimple", "XLNetForQuestionAnswering"
KINDS = {SIMPLE: QuestionAnswering, BEAM: BeamQuestionAnswering}
ROWS = [
    {"question": " is it ", "context": LONG},
    {"question": "which value", "context": TEXT},
    {"question": "a class", "context": "  a cat"},
    {"question": "the function of this", "context": f"{TEXT} {LONG}"},
]


@pytest.fixture(scope="module", params=[SIMPLE, BEAM])
def head(request):
    return request.param


@pytest.fixture(scope="module")
def folder(head):
    return folder_of(head, num_labels=2, start_n_top=3, end_n_top=4)


def finetuned(head, folder, *, none, **settings):
    """The predictions that ``finetune`` writes."""
    options = FinetuneOptions(
        task="question-answering", model=str(folder), train="t", output=folder / "out",
        max_length=48, stride=8, **settings,
    )  # fmt: skip
    task = KINDS[head](options, run_tokenizer(options))
    split = task.split("test", "test.json", datasets.Dataset.from_list(ROWS))
    split.features = task.encode(split)
    task.some_have_none = none
    model, parts = plain(folder), []
    for i in range(0, len(split.features), 3):
        rows = range(i, min(i + 3, len(split.features)))
        batch = task.collate([split.features[k] for k in rows])
        with torch.no_grad():
            outputs = model(**task.model_inputs(batch, training=False), use_mems=False)
        parts.append(task.predictions(outputs, batch))
    columns = tuple(torch.cat(column).numpy() for column in zip(*parts, strict=True))
    assert len(columns[0]) > len(ROWS)
    return task.report(split, columns, None).rows


@pytest.mark.parametrize("longest", [30, 2])
@pytest.mark.parametrize("none", [False, True])
def test_answers_are_those_of_fine_tuning(head, folder, none, longest):
    thresholds = [0.0]
    if none:  # one that some pass and some do not
        found = predictor(folder)(ROWS, no_answer=True, max_answer_length=longest)
        excess = sorted(answer["no_answer"] for answer in found)
        thresholds.append((excess[1] + excess[2]) / 2)
    for threshold in thresholds:
        expected = finetuned(
            head, folder, none=none, null_threshold=threshold, max_answer_length=longest
        )
        found = predictor(folder)(
            ROWS, no_answer=none, null_threshold=threshold, max_answer_length=longest
        )
        assert [answer["answer"] for answer in found] == [row["prediction"] for row in expected]
        assert [answer["score"] for answer in found] == pytest.approx(
            [row["score"] for row in expected], abs=1e-5
        )
    assert not none or {bool(answer["answer"]) for answer in found} == {True, False}


def test_answers_do_not_depend_on_the_batch(folder):
    answers = predictor(folder)
    settings = {"top_k": 5, "no_answer": True}
    together, alone = answers(ROWS, **settings), one_by_one(answers, ROWS, **settings)
    assert words(together) == words(alone)
    assert list(numbers(together)) == pytest.approx(
        list(numbers(alone)), rel=1e-6, abs=5e-6
    )  # sums of numbers around 5


def test_several_settings_side_by_side(folder):
    answers = predictor(folder)
    settings = [{"max_answer_length": 1}, {"n_best": 2}, {}]
    encoded = [answers.encode(ROWS[0], **chosen) for chosen in settings]
    for answer, chosen in zip(answers.answers(encoded), settings, strict=True):
        assert words(answer) == words(answers(ROWS[0], **chosen))


def test_candidates_are_listed_once_and_stand_in_the_context(folder):
    answers = predictor(folder)
    for row in ROWS:
        answer = answers(row, top_k=20)
        listed = answer["answers"]
        places = [(one["begin"], one["end"]) for one in listed]
        assert len(set(places)) == len(places) > 1
        scores = [one["score"] for one in listed]
        assert scores == sorted(scores, reverse=True)
        assert answer["answer"] == listed[0]["answer"]
        for one in listed:
            assert row["context"][one["begin"] : one["end"]] == one["answer"] != ""
        assert words(answers(row, top_k=2)["answers"]) == words(listed[:2])


def test_a_span_of_two_windows_has_the_better_score(folder):
    answers = predictor(folder)
    encoded = answers.encode(ROWS[0], top_k=20)
    results = answers.run(encoded.pieces)
    best: dict[tuple[int, int], float] = {}
    count = 0
    for piece, result in zip(encoded.pieces, results, strict=True):
        for i, j, score in zip(*(result[k].tolist() for k in ("starts", "ends", "scores"))):  # noqa: B905
            place = (int(piece.notes["starts"][i]), int(piece.notes["ends"][j]))
            best[place] = max(best.get(place, -np.inf), score)
            count += 1
    found = answers.decode(encoded, results)["answers"]
    assert [one["score"] for one in found] == sorted(best.values(), reverse=True)[:20]
    assert count >= len(best)


def test_the_simple_heads_scores_are_sums_of_logits():
    folder = folder_of(SIMPLE, num_labels=2, start_n_top=3, end_n_top=4)
    answers, model = predictor(folder), plain(folder)
    encoded = answers.encode(ROWS[1])
    for piece, result in zip(encoded.pieces, answers.run(encoded.pieces), strict=True):
        with torch.no_grad():
            outputs = model(**inputs_of(piece))
        starts, ends = outputs.start_logits[0], outputs.end_logits[0]
        expected = starts[result["starts"]] + ends[result["ends"]]
        torch.testing.assert_close(result["scores"], expected, rtol=1e-4, atol=1e-5)
        none = starts[-1] + ends[-1]
        torch.testing.assert_close(result["none"], none, rtol=1e-4, atol=1e-5)


def test_a_cut_context_is_its_first_window(folder):
    cut = predictor(folder, long="truncate")
    assert "cut" not in cut(ROWS[2])
    answer = cut(ROWS[0], top_k=20)
    assert answer["cut"] is True
    (piece,) = cut.encode(ROWS[0]).pieces
    first = predictor(folder).encode(ROWS[0]).pieces[0]
    assert piece.input_ids == first.input_ids
    assert max(one["end"] for one in answer["answers"]) <= first.notes["ends"][-1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(folder, dtype):
    """The beam head's mask must be of the model's dtype."""
    answers = predictor(folder)
    answers.task.model.to(dtype)
    assert answers(ROWS[1])["answer"] in TEXT


def test_what_is_refused(folder):
    with pytest.raises(ArgumentError, match="long must be 'window' or 'truncate'"):
        predictor(folder, long="memory")
    answers = predictor(folder)
    with pytest.raises(ArgumentError, match=r"question is .* max_length must be at least"):
        answers({"question": TEXT, "context": TEXT})
    with pytest.raises(ArgumentError, match="context comes to no token"):
        answers({"question": "which", "context": "\u200b"})
    assert answers({"question": "\u200b", "context": "a class"})["answer"]
    with pytest.raises(ArgumentError, match="top_k is 30, expected at most n_best 20"):
        answers(ROWS[0], top_k=30)
    with pytest.raises(ArgumentError, match="has the fields question, context"):
        answers("which")
    with pytest.raises(ArgumentError, match="has no context; fields of question-answering"):
        answers({"question": "which"})
    for null in (float("nan"), "0"):
        with pytest.raises(ArgumentError, match=r"null_threshold is .*, expected a finite number"):
            answers(ROWS[0], null_threshold=null)
