"""From rows to features: columns, labels, segments, padding, and a sentence for each bad row."""

from __future__ import annotations

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from tiny_finetuning import checkpoint
from transformers import XLNetConfig

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import FinetuneOptions
from xlnet_fast.train.finetune.model import adopt_labels, run_tokenizer
from xlnet_fast.train.finetune.multiple_choice import MultipleChoice
from xlnet_fast.train.finetune.task import IGNORED
from xlnet_fast.train.finetune.text_classification import TextClassification
from xlnet_fast.train.finetune.token_classification import TokenClassification

SEP, CLS, PAD = 4, 3, 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(model):
    """A task with options and a tokenizer, and its split of some rows."""

    def make(kind, rows, *, name="train", fit=True, task=None, **changes):
        names = {
            TextClassification: "text-classification",
            TokenClassification: "token-classification",
            MultipleChoice: "multiple-choice",
        }
        options = FinetuneOptions(
            task=names[kind], model=str(model), train="t", output=model / "out", stride=8
        )
        task = task or kind(dataclasses.replace(options, **changes), run_tokenizer(options))
        rows = rows if isinstance(rows, datasets.Dataset) else datasets.Dataset.from_list(rows)
        split = task.split(name, f"{name}.csv", rows)
        if fit and name == "train":
            task.fit_labels(split)
        split.features = task.encode(split)
        return task, split

    return make


def text(*labels):
    return [{"text": f"the value {i}", "label": label} for i, label in enumerate(labels)]


# --- text classification -------------------------------------------------------------------------


def test_a_text_and_its_segments(make):
    task, split = make(TextClassification, text("b", "a"))
    assert task.labels == ["a", "b"]
    first = split.features[0]
    assert first["input_ids"][-2:] == [SEP, CLS]
    assert first["token_type_ids"] == [0] * (len(first["input_ids"]) - 1) + [2]
    assert split.features["label"][:] == [1, 0]
    assert split.features["cut"][:] == [False, False]


def test_a_pair_has_two_segments(make):
    rows = [{"text": "the", "text_pair": "a value", "label": k} for k in "xy"]
    _, split = make(TextClassification, rows)
    first = split.features[0]
    assert first["input_ids"].count(SEP) == 2
    assert sorted(set(first["token_type_ids"])) == [0, 1, 2]


def test_padding_is_on_the_left(make):
    rows = [{"text": "the", "label": "a"}, {"text": "the value of the class", "label": "b"}]
    task, split = make(TextClassification, rows)
    batch = task.collate(list(split.features))
    short = len(split.features[0]["input_ids"])
    assert batch["input_ids"][0, -short:].tolist() == split.features[0]["input_ids"]
    assert batch["input_ids"][0, 0] == PAD
    assert batch["attention_mask"][0].sum() == short
    assert batch["labels"].tolist() == [0, 1]


def test_long_texts_are_cut_and_counted(make):
    rows = [{"text": "the value " * 20, "label": "a"}, {"text": "the", "label": "b"}]
    _, split = make(TextClassification, rows, max_length=10)
    assert split.features["cut"][:] == [True, False]
    assert len(split.features[0]["input_ids"]) == 10
    assert split.features[0]["input_ids"][-2:] == [SEP, CLS]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        ([2, 0, 1], ["0", "1", "2"]),
        ([True, False], ["False", "True"]),
        (["no", "10"], ["10", "no"]),
    ],
)
def test_the_order_of_labels(make, labels, names):
    task, split = make(TextClassification, text(*labels))
    assert task.labels == names
    assert [names[i] for i in split.features["label"]] == [str(label) for label in labels]


def test_named_classes_keep_their_order(make):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features)
    task, split = make(TextClassification, rows)
    assert task.labels == ["z", "a"]
    assert split.features["label"][:] == [1, 0]
    test = datasets.Dataset.from_dict({"text": ["x"], "label": [-1]}, features=features)
    assert not make(TextClassification, test, name="test", task=task)[1].labelled


def test_test_rows_may_be_without_labels(make):
    task, _ = make(TextClassification, text("a", "b"))
    _, split = make(TextClassification, [{"text": "the"}], name="test", task=task)
    assert not split.labelled
    assert "label" not in split.features.column_names
    assert "labels" not in task.collate(list(split.features))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (text("a", "a"), r"labels of train.csv are \['a'\]: at least two"),
        ([*text("a", "b"), {"text": " ", "label": "a"}], "row 3 of train.csv has no text"),
        ([*text("a", "b"), {"text": None, "label": "a"}], "row 3 of train.csv has no text"),
        ([*text("a", "b"), {"text": "x", "label": None}], "row 3 of train.csv has no label"),
        ([*text("a", "b"), {"text": "x", "label": ""}], "row 3 of train.csv has no label"),
        ([{"body of it": "x", "label": "a"}], "train.csv has no column for text"),
    ],
)
def test_bad_texts(make, rows, words):
    with pytest.raises(ArgumentError, match=words):
        make(TextClassification, rows)


def test_labels_that_training_does_not_have(make):
    task, _ = make(TextClassification, text("a", "b"))
    words = "row 2 of eval.csv has the label 'c'; the training data have: a, b"
    with pytest.raises(ArgumentError, match=words):
        make(TextClassification, text("a", "c"), name="eval", task=task)
    with pytest.raises(ArgumentError, match=r"eval.csv has no column for label"):
        make(TextClassification, [{"text": "x"}], name="eval", task=task)


def test_roles_of_another_task(make):
    with pytest.raises(ArgumentError, match="has no column role 'tokens'; it has: text, label"):
        make(TextClassification, text("a", "b"), column=("tokens=text",))


# --- labels of a checkpoint ----------------------------------------------------------------------


def test_a_head_is_kept_only_for_its_own_labels(make):
    task, _ = make(TextClassification, text("a", "b"))
    config = XLNetConfig(
        architectures=["XLNetForSequenceClassification"], id2label={0: "b", 1: "a"}
    )
    assert adopt_labels(config, task)
    assert task.labels == ["b", "a"]
    assert config.label2id == {"b": 0, "a": 1}
    config = XLNetConfig(
        architectures=["XLNetForSequenceClassification"], id2label={0: "b", 1: "c"}
    )
    assert not adopt_labels(config, task)
    assert config.id2label == {0: "b", 1: "a"}
    config = XLNetConfig(architectures=["XLNetLMHeadModel"], num_labels=2)
    assert not adopt_labels(config, task)
    assert config.num_labels == 2


# --- token classification ------------------------------------------------------------------------


def words(tokens, tags):
    return {"tokens": tokens.split(), "tags": tags.split()}


def test_the_first_piece_of_a_word_has_its_label(make):
    rows = [words("the value", "D N"), words("a", "D")]
    task, split = make(TokenClassification, rows)
    first = split.features[0]
    pieces = task.tokenizer.convert_ids_to_tokens(first["input_ids"])
    labels = first["labels"]
    assert len(labels) == len(pieces)
    assert labels[-2:] == [IGNORED, IGNORED]
    assert [label for label in labels if label != IGNORED] == [0, 1]
    starts = [i for i, label in enumerate(labels) if label != IGNORED]
    assert all(pieces[i].startswith("▁") for i in starts)
    assert first["words"] == 2
    batch = task.collate(list(split.features))
    assert batch["labels"].shape == batch["input_ids"].shape
    assert batch["labels"][1, 0] == IGNORED
    assert ((batch["labels"] != IGNORED) <= (batch["attention_mask"] == 1)).all()


def test_a_word_without_a_piece_has_a_label_too(make):
    row = {"tokens": ["the", "\u200b", "value"], "tags": ["D", "X", "N"]}
    task, split = make(TokenClassification, [row])
    labels = [label for label in split.features[0]["labels"] if label != IGNORED]
    assert labels == [task.labels.index(tag) for tag in ("D", "X", "N")]


def test_tokens_of_a_table_are_parted_by_blanks(make):
    rows = [{"tokens": "the value", "tags": "O B-X"}, {"tokens": "a", "tags": "O"}]
    task, split = make(TokenClassification, rows)
    assert task.labels == ["B-X", "O"]
    assert task.metric_names[0] == "entity_f1"
    assert split.features["words"][:] == [2, 1]


def test_named_tags(make):
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
        }
    )
    rows = {"tokens": [["the", "value"]], "ner_tags": [[0, 1]]}
    task, split = make(TokenClassification, datasets.Dataset.from_dict(rows, features=features))
    assert task.labels == ["O", "B-X"]
    assert [label for label in split.features[0]["labels"] if label != IGNORED] == [0, 1]


def test_a_sentence_that_is_too_long_is_refused_or_cut(make):
    rows = [words("the " * 30, "D " * 30), words("value", "N")]
    with pytest.raises(ArgumentError, match=r"row 1 of train.csv is 32 pieces .*--truncate"):
        make(TokenClassification, rows, max_length=12)
    _, split = make(TokenClassification, rows, max_length=12, truncate=True)
    assert split.features["words"][0] == 10
    assert split.features["cut"][:] == [True, False]
    assert split.features[0]["input_ids"][-2:] == [SEP, CLS]
    assert len(split.features[0]["labels"]) == 12


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (words("the value", "D"), "row 2 of train.csv has 2 tokens and 1 tags"),
        (words("", ""), "row 2 of train.csv has no tokens"),
        ({"tokens": ["the"], "tags": [None]}, "row 2 of train.csv has no label"),
    ],
)
def test_bad_sentences(make, row, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        make(TokenClassification, [words("the value", "D N"), row])


def test_metrics_of_words_and_entities(make):
    """Two of three words right; the one entity found is longer than the true one."""
    rows = [words("the value of", "O B-X O"), words("a", "I-X")]
    task, split = make(TokenClassification, rows)
    labels = np.array([[IGNORED, 2, 0, 2, IGNORED], [IGNORED, IGNORED, IGNORED, 1, IGNORED]])
    guess = np.array([[1, 2, 0, 1, 1], [0, 0, 0, 1, 0]])
    found = task.metrics(split, (guess, np.array([1.0, 3.0])), labels)
    assert found["accuracy"] == 0.75
    assert found["loss"] == 1.0
    assert found["entity_precision"] == 0.5
    assert found["entity_recall"] == 0.5
    report = task.report(split, (guess, None), labels)
    assert report.rows[0] == {"prediction": ["O", "B-X", "I-X"], "tags": ["O", "B-X", "O"]}
    assert report.details["per_entity"] == {
        "X": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    }
    assert report.confusion.sum() == 4


# --- multiple choice -----------------------------------------------------------------------------


def choice(**changes):
    row = {"context": "the class", "question": "which", "choices": ["a", "an object"], "label": 1}
    return {**row, **changes}


def test_choices_are_sequences_of_one_row(make):
    task, split = make(MultipleChoice, [choice(), choice(context="the value of a class", label=0)])
    batch = task.collate(list(split.features))
    assert batch["input_ids"].shape[:2] == (2, 2)
    assert batch["labels"].tolist() == [1, 0]
    assert (batch["input_ids"][..., -1] == CLS).all()
    decoded = task.tokenizer.decode(split.features[0]["input_ids"][1])
    assert decoded == "the class<sep> which an object<sep><cls>"


def test_a_blank_is_filled(make):
    task, split = make(MultipleChoice, [choice(question="it is _ .")])
    assert "it is an object ." in task.tokenizer.decode(split.features[0]["input_ids"][1])


@pytest.mark.parametrize(
    "row",
    [
        # RACE, SWAG, a table with a JSON list, ARC.
        {"article": "p", "question": "q", "options": ["a", "b"], "answer": "B"},
        {"sent1": "p", "sent2": "q", "ending0": "a", "ending1": "b", "label": 1},
        {"context": "p", "question": "q", "choices": '["a", "b"]', "label": "1"},
        {"context": "p", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    ],
    ids=["RACE", "SWAG", "table", "ARC"],
)
def test_the_usual_data_sets(make, row):
    task, split = make(MultipleChoice, [row])
    assert task.number_of_choices == 2
    assert split.features["label"][:] == [1]
    assert len(split.features[0]["input_ids"]) == 2


def test_choices_of_named_columns(make):
    row = {"context": "p", "first": "a", "second": "b", "third": "c", "label": 2}
    task, _ = make(MultipleChoice, [row], column=("choices=first,second,third",))
    assert task.number_of_choices == 3
    words = "no column 'fourth' for choices; it has: context, first"
    with pytest.raises(ArgumentError, match=words):
        make(MultipleChoice, [row], column=("choices=first,fourth",))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (choice(choices=["a", "b", "c"]), "row 2 of train.csv has 3 choices, the first .* has 2"),
        (choice(choices=["a"]), "row 2 of train.csv has no list of two or more choices"),
        (choice(choices=["a", " "]), "row 2 of train.csv has no text in one of its choices"),
        (choice(label=2), "row 2 of train.csv has the label 2, expected 0 to 1 or A to B"),
        (choice(label=-1), "has the label -1, expected"),
        (choice(label=None), "has the label None, expected"),
        (choice(context=""), "row 2 of train.csv has no passage"),
    ],
)
def test_bad_choices(make, row, words):
    with pytest.raises(ArgumentError, match=words):
        make(MultipleChoice, [choice(), row])


def test_a_label_that_is_no_choice(make):
    rows = [choice(label="A"), choice(label="C")]
    with pytest.raises(ArgumentError, match="has the label 'C', expected 0 to 1 or A to B"):
        make(MultipleChoice, rows)


def test_the_mean_loss_is_that_of_torch(make):
    task, split = make(MultipleChoice, [choice()])
    logits, labels = np.array([[1.0, 2.0], [0.5, 0.1]]), np.array([1, 1])
    found = task.metrics(split, logits, labels)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels))
    assert found == {"loss": pytest.approx(float(expected), rel=1e-6), "accuracy": 0.5}
