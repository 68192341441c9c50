"""Windows, positions and answers of question answering, with both heads."""

from __future__ import annotations

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from tiny_finetuning import SHAPE, checkpoint
from transformers import XLNetConfig, XLNetForQuestionAnswering, XLNetForQuestionAnsweringSimple

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import FinetuneOptions
from xlnet_fast.train.finetune.model import run_tokenizer
from xlnet_fast.train.finetune.question_answering import BeamQuestionAnswering, QuestionAnswering
from xlnet_fast.train.finetune.spans import Span, Window, best_answers, spans_of
from xlnet_fast.train.finetune.task import IGNORED

CONTEXT = (
    "The value of a class is an object, as  this function returns a string with the value. "
    "It raises an error if the argument is not a module or has no name, which may be given."
)
LENGTH = 24


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = checkpoint(tmp_path_factory.mktemp("model"))
    return FinetuneOptions(
        task="question-answering", model=str(folder), train="t", output=folder / "out",
        max_length=LENGTH, stride=4,
    )  # fmt: skip


@pytest.fixture
def make(options):
    """A task and its encoded split of some rows."""

    def make(*rows, name="train", kind=QuestionAnswering, **changes):
        task = kind(dataclasses.replace(options, **changes), run_tokenizer(options))
        split = task.split(name, f"{name}.json", datasets.Dataset.from_list(list(rows)))
        task.fit_labels(split)
        split.features = task.encode(split)
        return task, split

    return make


def row(answer, start=None, context=CONTEXT, **more):
    start = context.find(answer) if start is None and answer else start
    answers = {"text": [answer] if answer else [], "answer_start": [start] if answer else []}
    return {"question": "is it", "context": context, "answers": answers, **more}


# --- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["class", "an object", "The", "value.", "s  this", "functi"])
def test_the_answer_is_marked_in_the_windows_that_hold_it(make, answer):
    start = CONTEXT.rfind(answer)
    task, split = make(row(answer, start))
    assert len(split.features) > 2
    holders = 0
    for feature in split.features:
        first, last = feature["label"]
        if feature["none"]:
            assert first == last == feature["size"] - 1
            assert task.tokenizer.convert_ids_to_tokens(feature["input_ids"])[first] == "<cls>"
            continue
        holders += 1
        begin, end = feature["starts"][first], feature["ends"][last]
        assert begin <= start
        assert end >= start + len(answer)
        assert answer in CONTEXT[begin:end]
    assert holders >= 1


def test_windows_cover_the_context_and_overlap(make):
    _, split = make(row("class"))
    previous = 0
    for feature in split.features:
        assert feature["size"] == len(feature["input_ids"]) <= LENGTH
        assert feature["starts"][0] < previous or previous == 0
        previous = feature["ends"][-1]
        assert feature["row"] == 0
    assert previous == len(CONTEXT)


def test_positions_are_those_of_the_padded_batch(make):
    task, split = make(row("class"), row("a", context="a cat"))
    batch = task.collate([split.features[0], split.features[-1]])
    tokens = batch["input_ids"].tolist()
    begin, end = batch["labels"][1].tolist()
    pieces = task.tokenizer.convert_ids_to_tokens(tokens[1][begin : end + 1])
    assert "".join(pieces).replace("▁", "") == "a"
    context = [i for i, flag in enumerate(batch["context"][1].tolist()) if flag]
    assert task.tokenizer.decode([tokens[1][i] for i in context]) == "a cat"


def test_a_question_without_an_answer_points_to_cls(make):
    task, split = make(row(""), row("class"))
    assert task.some_have_none
    batch = task.collate([split.features[0]])
    assert batch["labels"].tolist() == [[LENGTH - 1, LENGTH - 1]]
    assert batch["none"].tolist() == [1.0]
    assert not make(row("class"))[0].some_have_none


@pytest.mark.parametrize(
    "changes",
    [
        {"answers": "class"},
        {"answers": ["class", "object"]},
        {"answers": '{"text": ["class"], "answer_start": [15]}'},
        {"answers": [{"text": "class", "answer_start": 15}]},
        {"answers": "class", "answer_start": "15"},
        {"answers": ["class"], "answer_start": [15]},
    ],
    ids=str,
)
def test_other_ways_to_write_answers(make, changes):
    _, split = make(row("class") | changes)
    _, expected = make(row("class"))
    assert split.features["label"][:] == expected.features["label"][:]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (row("class", 14), "row 1 of train.json: the answer 'class' is not at character 14 of"),
        (row("class") | {"answers": "zebra"}, "the answer 'zebra' is not in its context"),
        (row("class", 5000), "is not at character 5000 of its context, but ''"),
        (row("class") | {"answers": {"text": ["a", "b"], "answer_start": [1]}}, " 2 answers and 1"),
        (row("class") | {"context": " "}, "row 1 of train.json has no context"),
        (row("class") | {"question": ""}, "row 1 of train.json has no question"),
        (row("class") | {"question": "is it " * 9}, r"--max-length must be at least \d+, got 24"),
    ],
)  # fmt: skip
def test_bad_questions(make, given, words):
    with pytest.raises(ArgumentError, match=words):
        make(given)


# --- from scores to answers ----------------------------------------------------------------------


def test_a_span_is_told_in_characters():
    window = Window(0, np.array([0, 4, 8, 12]), np.array([3, 7, 11, 15]))
    starts, ends = np.array([2, 0, -1, -100]), np.array([3, 0, -1, -100])
    found = list(spans_of(window, starts, ends, np.array([2.0, 1.0, -np.inf, -100.0])))
    assert found == [Span(2.0, 8, 15), Span(1.0, 0, 3)]


def test_no_answer_is_chosen_above_the_threshold():
    spans = [[Span(1.0, 0, 3), Span(2.0, 4, 7)], [Span(1.0, 0, 3)], []]
    scores = np.array([0.1, 0.6, -1.0])
    best = best_answers(spans, scores, 0.5)
    assert [(span.begin, span.end) for span in best] == [(4, 7), (0, 0), (0, 0)]
    assert [span.end for span in best_answers(spans, None, 0.5)] == [7, 3, 0]


def predict(task, split, model, per_batch):
    """The predictions of all windows, batched as asked."""
    parts = []
    with torch.no_grad():
        for i in range(0, len(split.features), per_batch):
            rows = range(i, min(i + per_batch, len(split.features)))
            batch = task.collate([split.features[k] for k in rows])
            outputs = model(**task.model_inputs(batch, training=False), use_mems=False)
            parts.append(task.predictions(outputs, batch))
    return tuple(torch.cat(columns).numpy() for columns in zip(*parts, strict=True))


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        (QuestionAnswering, XLNetForQuestionAnsweringSimple),
        (BeamQuestionAnswering, XLNetForQuestionAnswering),
    ],
)
def test_answers_do_not_depend_on_the_batches(make, kind, head):
    """Windows of several lengths, with and without padding; two rows, one has no answer."""
    rows = (row("class", id="a"), row("a", context="a cat", id="b"), row("", id="c"))
    task, split = make(*rows, kind=kind)
    model = head(XLNetConfig(**SHAPE, vocab_size=300, num_labels=2, start_n_top=3, end_n_top=2))
    model.eval()
    one, all_of_them = (predict(task, split, model, n) for n in (1, 100))
    for alone, together in zip(one, all_of_them, strict=True):
        np.testing.assert_allclose(alone, together, rtol=1e-3, atol=1e-4)
    labels = np.array(split.features["label"])
    found = task.metrics(split, one, labels)
    assert {"exact_match", "f1", "f1_no_answer"} <= set(found)
    assert ("loss" in found) == (kind is QuestionAnswering)
    report = task.report(split, one, labels)
    assert [entry["id"] for entry in report.rows] == ["a", "b", "c"]
    assert [entry["answers"] for entry in report.rows] == [["class"], ["a"], []]
    assert all(entry["prediction"] in CONTEXT + "a cat" for entry in report.rows)


def test_perfect_spans_give_the_answers(make):
    """Of each window the label, or only a bad span where it has no answer."""
    rows = (row("an object"), row("", context="class value"), row("a", context="a cat"))
    task, split = make(*rows)
    spans = [(0, 0) if f["none"] else f["label"] for f in split.features]
    starts, ends = np.array(spans)[:, :, None].swapaxes(0, 1)
    none = np.array(split.features["none"])
    predictions = (starts, ends, np.where(none, -20.0, 20.0)[:, None], np.where(none, 20.0, -20.0))
    found = task.metrics(split, predictions, None)
    assert found == {
        f"{name}{kind}": 1.0
        for name in ("exact_match", "f1")
        for kind in ("", "_has_answer", "_no_answer")
    }
    # Without a null score an answer is found for every question.
    task.some_have_none = False
    assert task.metrics(split, predictions, None)["exact_match"] == pytest.approx(2 / 3)
    task.some_have_none, task.options = True, dataclasses.replace(task.options, null_threshold=99)
    assert task.metrics(split, predictions, None)["exact_match"] == pytest.approx(2 / 3)


# --- losses --------------------------------------------------------------------------------------


def test_the_loss_is_hf_s_where_nothing_is_padded(make):
    task, split = make(row("class"))
    model = XLNetForQuestionAnsweringSimple(XLNetConfig(**SHAPE, vocab_size=300)).eval()
    batch = task.collate([split.features[0], split.features[1]])
    assert batch["attention_mask"].all()
    begin, end = batch["labels"].unbind(-1)
    outputs = model(**task.model_inputs(batch, True), start_positions=begin, end_positions=end)
    torch.testing.assert_close(task.loss(outputs, batch, 4), outputs.loss)


def test_rows_that_fill_up_a_batch_count_nothing(make):
    task, split = make(row("class"), row(""), kind=BeamQuestionAnswering)
    model = XLNetForQuestionAnswering(XLNetConfig(**SHAPE, vocab_size=300)).eval()
    batch = task.collate([split.features[i] for i in range(3)])
    alone = task.collate([split.features[0]])
    batch["labels"][1:] = IGNORED
    losses = [
        task.loss(model(**task.model_inputs(given, training=True)), given, 2)
        for given in (batch, alone)
    ]
    torch.testing.assert_close(*losses)
    batch["labels"][:] = IGNORED
    nothing = task.loss(model(**task.model_inputs(batch, training=True)), batch, 2)
    assert nothing == 0
    nothing.backward()
    assert all(
        parameter.grad is not None and not parameter.grad.any()
        for name, parameter in model.named_parameters()
        if "mask_emb" not in name
    )
