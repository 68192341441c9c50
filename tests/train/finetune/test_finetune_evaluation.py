"""An evaluation has the numbers that fine-tuning reports on the same rows, for every task."""

from __future__ import annotations

import dataclasses
import json

import datasets
import numpy as np
import pytest
from tiny_finetuning import (
    ROWS,
    checkpoint,
    options,
    question_rows,
    read_jsonl,
    text_rows,
    write_jsonl,
)
from transformers import XLNetForSequenceClassification

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import EvaluateOptions, evaluate, evaluation, finetune

undrawn = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` keeps of a file stays in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model"))


def labelled(rows, names):
    """Rows of texts with other labels."""
    return [{**row, "label": names[row["label"]]} for row in rows]


TOPICS = {"good": ["fine", "old"], "bad": ["old"]}
NUMBERS = {"good": 0.5, "bad": -1.25}
CASES = {
    **{task: (task, rows, {}) for task, rows in ROWS.items()},
    "multi-label": (
        "text-classification",
        lambda count, seed=0: labelled(text_rows(count, seed), TOPICS),
        {"threshold": 0.3},
    ),
    "regression": (
        "text-classification", lambda count, seed=0: labelled(text_rows(count, seed), NUMBERS), {},
    ),
    "unanswerable": (
        "question-answering", lambda count, seed=0: question_rows(count, seed, without_answer=True),
        {"null_threshold": 0.1},
    ),
}  # fmt: skip
PLOTS = {
    "text-classification": {"confusion.png"}, "token-classification": {"confusion.png"},
    "multi-label": {"labels.png"}, "regression": {"predicted.png"},
}  # fmt: skip


@undrawn
@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_the_run(case, model, tmp_path):
    task, rows, changes = CASES[case]
    files = {
        name: str(write_jsonl(tmp_path / f"{name}_rows.jsonl", rows(count, seed)))
        for name, count, seed in (("train", 32, 0), ("eval", 23, 1))
    }
    given = options(task, model, tmp_path, epochs=1, eval_batch_size=4, **files, **changes)
    expected = finetune(given).metrics["eval"]
    result = evaluate(
        EvaluateOptions(
            model=str(given.output), data=files["eval"], output=tmp_path / "found",
            batch_tokens=100, **changes,
        )
    )  # fmt: skip
    assert result.task == task
    assert list(result.metrics) == list(expected)
    assert result.metrics == pytest.approx(expected, abs=2e-5)
    record = json.loads((given.output / "metrics.json").read_text())
    found = json.loads((tmp_path / "found" / "metrics.json").read_text())
    assert found["labels"] == record["labels"]
    assert found["rows"] == 23
    assert {k: found[k] for k in result.details} == {k: record["eval"][k] for k in result.details}
    ours, theirs = (
        read_jsonl(path)
        for path in (
            tmp_path / "found" / "predictions.jsonl",
            given.output / "predictions_eval.jsonl",
        )
    )
    assert len(ours) == len(theirs) == 23
    for mine, other in zip(ours, theirs, strict=True):
        assert list(mine) == list(other)
        for name, value in other.items():
            close = isinstance(value, float) or name == "probabilities"
            assert mine[name] == (pytest.approx(value, abs=2e-5) if close else value)
    written = {path.name for path in (tmp_path / "found").iterdir()}
    assert written - {"metrics.json", "predictions.jsonl"} == PLOTS.get(case, set())


@pytest.fixture
def classifier(model, tmp_path):
    """Labels in an order that is not that of their names."""
    folder = checkpoint(tmp_path / "classifier")
    trained = XLNetForSequenceClassification.from_pretrained(
        folder, id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1}
    )
    trained.save_pretrained(folder)
    return folder


@undrawn
def test_the_labels_are_in_the_order_of_the_model(classifier, tmp_path):
    data = write_jsonl(tmp_path / "eval.jsonl", text_rows(20))
    given = EvaluateOptions(model=str(classifier), data=str(data), output=tmp_path / "out")
    result = evaluate(given)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["labels"] == ["good", "bad"]
    rows = read_jsonl(tmp_path / "out" / "predictions.jsonl")
    right = np.mean([row["prediction"] == row["label"] for row in rows])
    assert result.metrics["accuracy"] == pytest.approx(right)
    with pytest.raises(ArgumentError, match=r"is not empty: .*--overwrite"):
        evaluate(given)
    again = evaluate(dataclasses.replace(given, overwrite=True, batch_tokens=30))
    assert again.metrics == pytest.approx(result.metrics, abs=1e-5)
    half = evaluate(dataclasses.replace(given, output=None, dtype="bf16"))
    assert half.metrics["loss"] == pytest.approx(result.metrics["loss"], abs=0.05)
    assert half.output is None


def test_labels_that_the_model_does_not_have_are_told(classifier, tmp_path):
    rows = text_rows(4)
    rows[2]["label"] = "meh"
    data = write_jsonl(tmp_path / "eval.jsonl", rows)
    given = EvaluateOptions(model=str(classifier), data=str(data))
    with pytest.raises(ArgumentError, match=r"row 3 of .* has the label 'meh'; .* have: good, bad"):
        evaluate(given)


def test_a_model_whose_labels_have_no_names_takes_numbers(model, tmp_path):
    folder = checkpoint(tmp_path / "unnamed")
    XLNetForSequenceClassification.from_pretrained(folder, num_labels=3).save_pretrained(folder)
    rows = labelled(text_rows(8), {"good": 2, "bad": 0})
    data = write_jsonl(tmp_path / "eval.jsonl", rows)
    result = evaluate(EvaluateOptions(model=str(folder), data=str(data)))
    assert list(result.details["per_label"]) == ["0", "1", "2"]
    data = write_jsonl(tmp_path / "eval.jsonl", labelled(rows, {2: "LABEL_2", 0: "LABEL_0"}))
    assert evaluate(EvaluateOptions(model=str(folder), data=str(data))).metrics == result.metrics
    lists = write_jsonl(tmp_path / "lists.jsonl", labelled(text_rows(8), TOPICS))
    with pytest.raises(ArgumentError, match="are lists, which"):
        evaluate(EvaluateOptions(model=str(folder), data=str(lists)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, "no model was given"),
        ({"data": None}, "no data were given"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"overwrite": True}, "overwrite is of a folder"),
        ({"column": ("label",)}, "column must be ROLE=NAME"),
        ({"threshold": 0.3}, "threshold is of multi-label rows"),
        ({"n_best": 3}, "n_best is of question-answering"),
        ({"max_length": 2}, "max_length is 2"),
    ],
    ids=str,
)
def test_options_that_cannot_be(changes, words, classifier, tmp_path):
    data = write_jsonl(tmp_path / "eval.jsonl", text_rows(4))
    settings = {"model": str(classifier), "data": str(data), **changes}
    with pytest.raises(ArgumentError, match=words):
        evaluate(EvaluateOptions(**settings))


def test_a_model_of_no_task(model, tmp_path):
    with pytest.raises(ArgumentError, match="is an XLNetLMHeadModel, expected a model that"):
        evaluate(EvaluateOptions(model=str(model), data="eval.jsonl"))


def test_batches_hold_like_lengths_and_keep_to_the_budget():
    lengths = [3, 9, 4, 20, 5, 9]
    batches = list(evaluation._batches(lengths, 18))
    assert batches == [[3], [1, 5], [4, 2, 0]]
    assert evaluation._length([[1, 2], [3]]) == 3
