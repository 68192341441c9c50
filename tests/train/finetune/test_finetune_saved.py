"""What users of a saved model meet: config, tokenizer, pipelines; and tests without labels."""

from __future__ import annotations

import json
import random

import datasets
import pytest
import transformers
from tiny_finetuning import (
    ROWS,
    checkpoint,
    options,
    read_jsonl,
    sentence,
    text_rows,
    write_csv,
    write_jsonl,
)
from transformers import AutoConfig, AutoTokenizer, XLNetTokenizer, pipeline

import xlnet_fast
from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import finetune

pytestmark = pytest.mark.usefixtures("undrawn")
LABEL = {
    "text-classification": "label", "token-classification": "tags",
    "question-answering": "answers", "multiple-choice": "choice",
}  # fmt: skip
SEGMENTS = {"input_ids", "token_type_ids", "attention_mask"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` keeps of a file stays in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Its tokenizer has a length of its own, which is no business of a run's."""
    folder = checkpoint(tmp_path_factory.mktemp("model"))
    settings = {"tokenizer_class": "XLNetTokenizer", "model_max_length": 777}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("task", sorted(ROWS))
def test_a_test_without_the_column_that_was_named(task, model, tmp_path, capsys):
    """Predicted, and said; the saved model keeps no memory, the tokenizer no length of the run."""
    former = {"multiple-choice": "label"}.get(task, LABEL[task])

    def rows(count, seed, labelled=True):
        return [
            {"gold" if name == former else name: value for name, value in row.items()}
            for row in ROWS[task](count, seed)
            if labelled or row.pop(former) is not None
        ]

    files = {
        "train": write_jsonl(tmp_path / "a.jsonl", rows(16, 0)),
        "eval": write_jsonl(tmp_path / "b.jsonl", rows(6, 1)),
        "test": write_jsonl(tmp_path / "c.jsonl", rows(5, 2, labelled=False)),
    }
    settings = options(
        task, model, tmp_path, steps=1, eval_every=1, max_length=40,
        column=(f"{LABEL[task]}=gold",), **{name: str(path) for name, path in files.items()},
    )  # fmt: skip
    result = finetune(settings)
    said = capsys.readouterr().err
    assert "a.jsonl, column 'gold': " in said
    assert "c.jsonl has no column 'gold': it is predicted, and gets no metrics" in said
    assert set(result.metrics) == {"eval"}
    assert "test" not in json.loads((result.output / "metrics.json").read_text())
    found = read_jsonl(result.output / "predictions_test.jsonl")
    assert len(found) == 5
    assert all("prediction" in row and not {"label", "tags", "answers"} & set(row) for row in found)

    assert AutoConfig.from_pretrained(result.model).use_mems_eval is False
    for folder in (result.model, result.output / "checkpoint-1"):
        assert json.loads((folder / "tokenizer.json").read_text())["truncation"] is None
        for kind in (XLNetTokenizer, AutoTokenizer):
            tokenizer = kind.from_pretrained(folder)
            assert tokenizer.model_max_length == 777
            assert set(tokenizer("the value " * 40)) == SEGMENTS
            assert len(tokenizer("the value " * 40)["input_ids"]) > 40


@pytest.mark.parametrize(
    ("named", "kept"),
    [(("label=grade",), {"label": "good"}), ((), {"label": ""}), ((), {"label": "-1"})],
    ids=["another column of a usual name", "empty", "-1"],
)
def test_labels_that_a_test_keeps_to_itself(named, kept, model, tmp_path, capsys):
    name = "grade" if named else "label"
    rows = [{"text": row["text"], name: row["label"]} for row in text_rows(16)]
    test = [{"text": row["text"], **kept} for row in text_rows(3)]
    settings = options(
        "text-classification", model, tmp_path, steps=1, eval_every=1, eval=None, column=named,
        train=str(write_csv(tmp_path / "a.csv", rows)),
        test=str(write_csv(tmp_path / "t.csv", test)),
    )  # fmt: skip
    assert set(finetune(settings).metrics) == {"eval"}
    assert "it is predicted, and gets no metrics" in capsys.readouterr().err


@pytest.mark.parametrize("accelerated", [False, True], ids=["plain", "accelerated"])
@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_pipelines_with_more_rows_than_layers(task, accelerated, model, tmp_path):
    """The model has 2 layers; Hugging Face's pipeline splits memory, where there is some."""
    result = finetune(options(task, model, tmp_path, steps=1, eval_every=1))
    made = pipeline(task, model=str(result.model), tokenizer=str(result.model), device="cpu")
    if accelerated:
        xlnet_fast.accelerate(made.model)
    generator = random.Random(0)
    texts = [" ".join(sentence(generator, 2 + 3 * i)) for i in range(5)]
    one_by_one, at_once = made(texts, batch_size=1), made(texts, batch_size=5)
    assert len(at_once) == 5
    for one, other in zip(one_by_one, at_once, strict=True):
        for a, b in zip(*(x if isinstance(x, list) else [x] for x in (one, other)), strict=True):
            assert a["score"] == pytest.approx(b["score"], abs=1e-5)
            apart = {"score": 0, "index": 0}  # the index counts padding, too
            assert {**a, **apart} == {**b, **apart}


def similar_rows(count, seed=0):
    """As many halves as the second text has of a word."""
    generator = random.Random(seed)
    rows = []
    for i in range(count):
        words = ["yield"] * (i % 5) + ["import"] * (4 - i % 5)
        generator.shuffle(words)
        first = " ".join(sentence(generator, 3))
        rows.append({"sentence1": first, "sentence2": " ".join(words), "score": i % 5 / 2})
    return rows


def test_numbers_are_learnt(model, tmp_path, capsys, figure):
    """Pairs as in STS-B; the best has the lowest error, and a pipeline gives the same numbers."""
    paths = {
        "train": write_csv(tmp_path / "a.csv", similar_rows(60)),
        "eval": write_csv(tmp_path / "b.csv", similar_rows(20, 1)),
        "test": write_csv(tmp_path / "c.csv", similar_rows(20, 2)),
    }
    settings = options(
        "text-classification", model, tmp_path, steps=80, eval_every=20, column=("label=score",),
        **{name: str(path) for name, path in paths.items()},
    )  # fmt: skip
    result = finetune(settings)
    assert "column 'score': numbers from 0 to 2, regression" in capsys.readouterr().err
    assert result.metrics["test"]["pearson"] > 0.9
    assert result.metrics["test"]["mse"] < 0.15
    written = json.loads((result.output / "metrics.json").read_text())
    assert written["problem_type"] == "regression"
    state = json.loads((result.output / "checkpoint-80" / "trainer_state.json").read_text())
    errors = {e["step"]: e["eval_mse"] for e in state["log_history"] if "eval_mse" in e}
    assert written["best_step"] == min(errors, key=errors.__getitem__)
    assert {one.axes[0].get_title() for one in figure} == {"regression, evaluation"}
    assert figure[-1].axes[0].get_ylabel() == "predicted"

    config = AutoConfig.from_pretrained(result.model)
    assert (config.problem_type, config.num_labels) == ("regression", 1)
    rows = read_jsonl(result.output / "predictions_test.jsonl")
    made = pipeline("text-classification", model=str(result.model), device="cpu")
    pairs = [{"text": r["text"], "text_pair": r["text_pair"]} for r in rows]
    for row, found in zip(rows, made(pairs, batch_size=4), strict=True):
        assert found["score"] == pytest.approx(row["prediction"], abs=1e-4)
        assert isinstance(row["label"], float)


def test_several_labels_are_learnt(model, tmp_path, capsys, figure):
    """Any of three words; a pipeline with a sigmoid gives the probabilities of the file."""
    generator = random.Random(0)
    words = {"y": "yield", "i": "import", "c": "class"}
    rows = []
    for _ in range(100):
        labels = [name for name in words if generator.random() < 0.4]
        text = ["the", "value", "of", *(words[name] for name in labels)]
        rows.append({"text": " ".join(text), "labels": labels})
    settings = options(
        "text-classification", model, tmp_path, steps=60, eval_every=30, max_length=24,
        train=str(write_jsonl(tmp_path / "a.jsonl", rows[:80])),
        eval=str(write_jsonl(tmp_path / "b.jsonl", rows[80:])),
    )  # fmt: skip
    result = finetune(settings)
    assert "column 'labels': any number of 3 labels a row, c, i, y" in capsys.readouterr().err
    assert result.metrics["eval"]["average_precision_micro"] > 0.9
    written = json.loads((result.output / "metrics.json").read_text())
    assert set(written["eval"]["per_label"]) == {"c", "i", "y"}
    assert figure[-1].axes[0].get_title() == "multi-label, evaluation"
    assert len(figure[-1].axes[0].patches) == 3

    config = AutoConfig.from_pretrained(result.model)
    assert config.problem_type == "multi_label_classification"
    assert config.id2label == {0: "c", 1: "i", 2: "y"}
    found = read_jsonl(result.output / "predictions_eval.jsonl")
    assert [row["label"] for row in found] == [sorted(row["labels"]) for row in rows[80:]]
    made = pipeline("text-classification", model=str(result.model), device="cpu", top_k=None)
    for row, scores in zip(found, made([r["text"] for r in found], batch_size=5), strict=True):
        by_label = {one["label"]: one["score"] for one in scores}
        assert by_label == pytest.approx(row["probabilities"], abs=1e-4)
        assert row["prediction"] == sorted(name for name, p in by_label.items() if p >= 0.5)


def test_whole_numbers_are_classes_unless_asked_for(model, tmp_path, capsys):
    rows = [{"text": row["text"], "label": i % 3} for i, row in enumerate(text_rows(12))]
    short = {"steps": 1, "eval_every": 1, "eval": None}
    train = str(write_csv(tmp_path / "a.csv", rows))
    for problem, size, words in (
        ("auto", 3, "3 classes, 0, 1, 2; they are numbers with --problem-type regression"),
        ("regression", 1, "numbers from 0 to 2, regression"),
    ):
        settings = options(
            "text-classification", model, tmp_path, train=train, problem_type=problem,
            output=tmp_path / problem, **short,
        )  # fmt: skip
        result = finetune(settings)
        assert words in capsys.readouterr().err
        assert AutoConfig.from_pretrained(result.model).num_labels == size
    assert transformers.XLNetForSequenceClassification.from_pretrained(result.model).num_labels == 1


def test_a_threshold_that_nothing_reads(model, tmp_path):
    """By the labels' looks they are classes, so nothing would ask for a probability."""
    settings = options("text-classification", model, tmp_path, threshold=0.3)
    with pytest.raises(ArgumentError, match="of multi-label rows; single-label has no use for it"):
        finetune(settings)
    assert not settings.output.exists()


def test_rows_are_counted_as_in_the_file(model, tmp_path):
    """Also where some were cut off to evaluate on, and the others are shuffled."""
    rows = [*text_rows(20)]
    for wrong in (3, 17):
        some = [{**row, "text": " "} if i == wrong else row for i, row in enumerate(rows)]
        settings = options(
            "text-classification", model, tmp_path, eval=None, eval_share=0.5,
            train=str(write_jsonl(tmp_path / "a.jsonl", some)),
        )  # fmt: skip
        with pytest.raises(ArgumentError, match=rf"row {wrong + 1} of .*a.jsonl has no text"):
            finetune(settings)
