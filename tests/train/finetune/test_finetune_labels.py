"""How labels are read: classes, several labels a row, numbers; and a sentence for what is none."""

from __future__ import annotations

import dataclasses
import math

import datasets
import numpy as np
import pytest
import torch
from tiny_finetuning import checkpoint, write_jsonl
from transformers import XLNetConfig, XLNetForSequenceClassification

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import FinetuneOptions
from xlnet_fast.train.finetune.data import load_rows
from xlnet_fast.train.finetune.labels import problem_of
from xlnet_fast.train.finetune.metrics import multi_label_metrics, regression_metrics
from xlnet_fast.train.finetune.model import adopt_labels, run_tokenizer
from xlnet_fast.train.finetune.multi_label import MultiLabelClassification
from xlnet_fast.train.finetune.regression import TextRegression
from xlnet_fast.train.finetune.task import IGNORED
from xlnet_fast.train.finetune.text_classification import TextClassification

NAN = float("nan")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(model):
    """A task of that kind and its split of rows; ``task``: one that has learnt its labels."""

    def make(kind, rows, *, name="train", task=None, **changes):
        options = FinetuneOptions(
            task="text-classification", model=str(model), train="t", output=model / "out"
        )
        fitted = task is not None
        task = task or kind(dataclasses.replace(options, **changes), run_tokenizer(options))
        rows = rows if isinstance(rows, datasets.Dataset) else datasets.Dataset.from_list(rows)
        split = task.split(name, f"{name}.csv", rows)
        task.said = "" if fitted else task.fit_labels(split)
        split.features = task.encode(split)
        return task, split

    return make


def rows_of(labels, name="label"):
    return [{"text": f"the value {i}", name: label} for i, label in enumerate(labels)]


def named_classes(labels, names):
    feature = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    texts = ["x"] * len(labels)
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=feature)


# --- which problem -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["good", "bad"], "single-label"),
        ([1, 5, 3], "single-label"),
        (["1", "-5"], "single-label"),
        ([1.0, 2.0], "single-label"),
        ([True, False], "single-label"),
        (["3-4", "1.5.2"], "single-label"),
        ([0.5, 1.0], "regression"),
        (["5", "4.25", "", "1e-1"], "regression"),
        (["4.25", "nan"], "regression"),
        ([["a"], []], "multi-label"),
        (['["a", "b"]', "[]", ""], "multi-label"),
        (["['a']", "[]"], "multi-label"),
        (["[a]", "b"], "single-label"),
    ],
    ids=str,
)
def test_the_problem_is_told_by_the_labels(make, labels, problem):
    rows = datasets.Dataset.from_list(rows_of(labels))
    task = TextClassification(FinetuneOptions(
        task="text-classification", model="m", train="t", output="o"), None)  # fmt: skip
    split = task.split("train", "train.csv", rows)
    assert problem_of(split, "auto") == problem


@pytest.mark.parametrize(
    ("labels", "wanted", "words"),
    [
        (["0.5", "high"], "auto", "row 2 of train.csv has 'high': mend it, or say by --problem-ty"),
        ([["a"], ["b"]], "single-label", "are lists, which --problem-type single-label cannot"),
        ([["a"], ["b"]], "regression", "are lists, which --problem-type regression cannot take"),
        ([{"a": 1}, {"a": 2}], "auto", r"row 1 of train.csv has the label \{'a': 1\}, expected a"),
    ],
)
def test_labels_of_no_problem(labels, wanted, words):
    rows = datasets.Dataset.from_list(rows_of(labels))
    task = TextClassification(FinetuneOptions(
        task="text-classification", model="m", train="t", output="o"), None)  # fmt: skip
    with pytest.raises(ArgumentError, match=words):
        problem_of(task.split("train", "train.csv", rows), wanted)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([["x"], "y"], r"row 1 of train.csv has \['x'\] and row 2 of train.csv has 'y'"),
        ([0.5, "y"], r"row 2 of train.csv has 'y': mend it"),
        ([1, "y"], "single-label"),
        ([[1, "y"], []], "multi-label"),
    ],
    ids=str,
)
def test_types_that_differ_from_row_to_row(tmp_path, monkeypatch, labels, found):
    """JSON has them, and `datasets` reads them as they are."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = load_rows(str(write_jsonl(tmp_path / "t.jsonl", rows_of(labels))), "train")
    task = TextClassification(FinetuneOptions(
        task="text-classification", model="m", train="t", output="o"), None)  # fmt: skip
    split = task.split("train", "train.csv", rows)
    if found.endswith("-label"):
        assert problem_of(split, "auto") == found
    else:
        with pytest.raises(ArgumentError, match=found):
            problem_of(split, "auto")


def test_words_and_fractions_are_classes_if_the_user_says_so():
    rows = datasets.Dataset.from_list(rows_of(["0.5", "high"]))
    task = TextClassification(FinetuneOptions(
        task="text-classification", model="m", train="t", output="o"), None)  # fmt: skip
    assert problem_of(task.split("train", "train.csv", rows), "single-label") == "single-label"


def test_what_is_said_of_the_labels(make):
    assert make(TextClassification, rows_of(["b", "a"]))[0].said == "2 classes, a, b"
    said = make(TextClassification, rows_of([10, 9.5]))[0].said
    assert said == "2 classes, 9.5, 10.0; they are numbers with --problem-type regression"
    said = make(TextRegression, rows_of(["0.5", "-3"]))[0].said
    assert said == (
        "numbers from -3 to 0.5, regression; they are classes with --problem-type single-label"
    )
    assert make(TextRegression, rows_of([0.5, 300]))[0].said.endswith("slowly: divide them")
    said = make(MultiLabelClassification, rows_of([["b", "a"], []]))[0].said
    assert said == "any number of 2 labels a row, a, b"


@pytest.mark.parametrize("labels", [[True, False], [1.0, 2.0], [7, 9], [1, "y"]], ids=str)
def test_ids_are_whole_numbers_whatever_the_column_is(make, tmp_path, monkeypatch, labels):
    """A column of the name "label" would lend the ids its type."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = load_rows(str(write_jsonl(tmp_path / "t.jsonl", rows_of(labels))), "train")
    task, split = make(TextClassification, rows)
    assert task.collate(list(split.features))["labels"].dtype == torch.long


def test_a_nan_is_no_class(make):
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1.0, NAN, 2.0]})
    with pytest.raises(ArgumentError, match=r"row 2 of train.csv has no label"):
        make(TextClassification, rows)


# --- regression ----------------------------------------------------------------------------------


def test_numbers_are_targets_whatever_they_are(make):
    """-100, which marks what is ignored, is a number as any other."""
    task, split = make(TextRegression, rows_of(["0.5", " -100 ", "1e2"]))
    batch = task.collate(list(split.features))
    assert batch["targets"].tolist() == [0.5, -100.0, 100.0]
    assert batch["labels"].tolist() == [0, 0, 0]
    outputs = type("Outputs", (), {"logits": torch.tensor([[1.5], [-98.0], [7.0]])})
    batch["labels"][2] = IGNORED  # as a row that fills up a batch
    assert float(task.loss(outputs, batch, 2)) == pytest.approx((1 + 4) / 2)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["0.5", "0,7"], r"row 2 of train.csv has the label '0,7', expected a number such as 0\.5"),
        (["0.5", "inf"], "row 2 of train.csv has the label 'inf', expected a number"),
        ([0.5, NAN], "row 2 of train.csv has the label nan, expected a number"),
        ([0.5, None], "row 2 of train.csv has no label"),
        (["0.5", ""], "row 2 of train.csv has no label"),
        ([True, False], "row 1 of train.csv has the label True, expected a number"),
        ([1.5, 1.5], r"are all 1\.5: a regression needs numbers that differ"),
    ],
)
def test_bad_numbers(make, labels, words):
    rows = datasets.Dataset.from_dict({"text": ["x"] * len(labels), "label": labels})
    with pytest.raises(ArgumentError, match=words):
        make(TextRegression, rows)


def test_class_names_that_are_numbers(make):
    _, split = make(TextRegression, named_classes([0, 1], ["3", "4"]))
    assert split.features["label"][:] == [3.0, 4.0]
    with pytest.raises(ArgumentError, match="has the label 'low', expected a number"):
        make(TextRegression, named_classes([0, 1], ["low", "4"]))


def test_regression_metrics():
    gold, predicted = np.array([1.0, 2.0, 3.0, 10.0]), np.array([2.0, 3.0, 4.0, 5.0])
    found = regression_metrics(gold, predicted)
    assert found["mse"] == pytest.approx((1 + 1 + 1 + 25) / 4)
    assert found["mae"] == pytest.approx(2.0)
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(np.corrcoef(gold, predicted)[0, 1])
    for constant in (regression_metrics(gold, np.ones(4)), regression_metrics(gold[:1], gold[:1])):
        assert (constant["pearson"], constant["spearman"]) == (0.0, 0.0)
    assert math.isnan(regression_metrics(gold, np.array([1.0, 2.0, NAN, 3.0]))["mse"])


def test_a_regression_keeps_a_head_of_its_own_kind_only(make):
    task, _ = make(TextRegression, rows_of([0.5, 1.5]))
    heads = {"architectures": ["XLNetForSequenceClassification"]}
    config = XLNetConfig(**heads, num_labels=1, problem_type="regression")
    assert adopt_labels(config, task)
    config = XLNetConfig(**heads, num_labels=2)
    assert not adopt_labels(config, task)
    assert (config.num_labels, config.problem_type) == (1, "regression")
    classes, _ = make(TextClassification, rows_of(["a", "b"]))
    several, _ = make(MultiLabelClassification, rows_of([["a"], ["b"]]))
    ids = {"id2label": {0: "a", 1: "b"}}
    for task, kind in ((classes, "single"), (several, "multi")):
        config = XLNetConfig(**heads, **ids)
        assert adopt_labels(config, task) == (kind == "single")
        assert config.problem_type == f"{kind}_label_classification"
        assert adopt_labels(config, task)


# --- several labels ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        [["b", "a"], [], ["c"]],
        ['["b", "a"]', "[]", '["c"]'],
        ["['b', 'a']", "", "['c']"],
        ["b | a", "", "c"],
    ],
    ids=["lists", "JSON", "pandas", "table"],
)
def test_any_number_of_labels(make, labels):
    task, split = make(MultiLabelClassification, rows_of(labels))
    assert task.labels == ["a", "b", "c"]
    assert split.features["label"][:] == [[0, 1], [], [2]]
    batch = task.collate(list(split.features))
    assert batch["targets"].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert batch["labels"].tolist() == [0, 0, 0]


def test_columns_of_zeros_and_ones(make):
    """As in Kaggle's toxic comments; a label that no training row has is kept."""
    rows = [
        {"text": "x", "mad": "1", "sad": "0", "odd": "0"},
        {"text": "y", "mad": "1", "sad": "1", "odd": "0"},
    ]
    changes = {"column": ("label=odd,mad,sad",)}
    task, split = make(MultiLabelClassification, rows, **changes)
    assert problem_of(split, "auto") == "multi-label"
    assert task.labels == ["odd", "mad", "sad"]
    assert split.features["label"][:] == [[1], [1, 2]]
    test = [{"text": "z"}]
    assert not make(MultiLabelClassification, test, name="test", task=task)[1].labelled
    with pytest.raises(ArgumentError, match=r"eval.csv has no column 'odd' for label; it has"):
        make(MultiLabelClassification, [{"text": "z", "mad": 1}], name="eval", task=task)
    rows[1]["odd"] = "2"
    with pytest.raises(ArgumentError, match=r"row 2 of train.csv has '2' in 'odd', expected 1"):
        make(MultiLabelClassification, rows, **changes)


def test_lists_of_ids(make):
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.Sequence(datasets.ClassLabel(names=["z", "a", "never"])),
        }
    )
    rows = datasets.Dataset.from_dict({"text": ["x"], "label": [[1, 0]]}, features=features)
    task, split = make(MultiLabelClassification, rows)
    assert task.labels == ["z", "a", "never"]
    assert split.features["label"][:] == [[0, 1]]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([["a", "b"], None], "row 2 of train.csv has None for its labels, expected a list such as"),
        ([["a", "b"], ["a", None]], "row 2 of train.csv has None in its list of labels"),
        ([["a", "b"], ["a", "a"]], "row 2 of train.csv has the label 'a' twice"),
        ([[0, 0, 1], [1, 0, 0]], r"no row of zeros and ones .*--column label=NAME,NAME"),
        ([["a"], []], r"the labels of train.csv are \['a'\]: at least two are needed"),
        (["a|b", "[a, b"], r"row 2 of train.csv has '\[a, b' for its labels"),
        ([[1.0, 0.0], [0.0, 1.0]], r"row 1 of train.csv has 1\.0 in its list of labels, expected"),
        ([[1, 0], [0, 1]], r"all rows of train.csv have all of the labels 0, 1: .* zeros and ones"),
        ([3, 4], "row 1 of train.csv has 3 for its labels, expected a list"),
    ],
    ids=str,
)
def test_bad_lists(make, labels, words):
    with pytest.raises(ArgumentError, match=words):
        make(MultiLabelClassification, rows_of(labels))


def test_a_list_with_a_label_that_training_does_not_have(make):
    task, _ = make(MultiLabelClassification, rows_of([["a"], ["b"]]))
    words = "row 1 of test.csv has the label 'c'; the training data have: a, b"
    with pytest.raises(ArgumentError, match=words):
        make(MultiLabelClassification, rows_of([["a", "c"]]), name="test", task=task)


def test_the_losses_are_those_of_hugging_face(make, model):
    """Of the same model and batch, for both problems."""
    for kind, labels, name, size in (
        (MultiLabelClassification, [["a"], [], ["a", "b", "c"]], "multi_label_classification", 3),
        (TextRegression, [0.5, 2.0, -3.25], "regression", 1),
    ):
        task, split = make(kind, rows_of(labels))
        batch = task.collate(list(split.features))
        torch.manual_seed(0)
        config = XLNetConfig.from_pretrained(model, num_labels=size, problem_type=name)
        net = XLNetForSequenceClassification(config).eval()
        outputs = net(**task.model_inputs(batch, training=True), labels=batch["targets"])
        loss = float(outputs.loss.detach())
        assert float(task.loss(outputs, batch, 3).detach()) == pytest.approx(loss, rel=1e-6)
        found = task.metrics(split, task.predictions(outputs, batch)[0].detach().numpy(), None)
        assert found["loss"] == pytest.approx(loss, rel=1e-6)


def test_multi_label_metrics():
    gold = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    scores = np.array([[0.9, 0.2, 0.1], [0.8, 0.4, 0.3], [0.6, 0.1, 0.2]])
    found = multi_label_metrics(gold, scores, scores >= 0.5)
    assert found["subset_accuracy"] == pytest.approx(1 / 3)
    assert found["precision_micro"] == pytest.approx(2 / 3)
    assert found["recall_micro"] == pytest.approx(2 / 3)
    assert found["f1_macro"] == pytest.approx((0.8 + 0.0) / 2)  # the third label is nowhere
    assert found["average_precision_macro"] == 1.0
    assert found["average_precision_micro"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    nothing = multi_label_metrics(np.zeros((2, 3)), scores[:2], np.zeros((2, 3)))
    assert nothing == dict.fromkeys(nothing, 0.0) | {"subset_accuracy": 1.0}


def test_the_threshold_decides_what_is_named(make):
    logits = torch.tensor([[0.3, 0.9], [0.1, 0.2]]).logit().numpy()
    for threshold, named in ((0.5, [["b"], []]), (0.15, [["a", "b"], ["b"]])):
        rows = rows_of([["a"], ["b"]])
        task, split = make(MultiLabelClassification, rows, threshold=threshold)
        report = task.report(split, logits, np.zeros(2))
        assert [row["prediction"] for row in report.rows] == named
        assert report.rows[0]["label"] == ["a"]
        assert report.rows[0]["probabilities"] == {"a": 0.3, "b": 0.9}
        assert report.details["threshold"] == threshold
