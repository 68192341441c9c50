"""Runs from end to end: what is learnt and written, what is refused, how a run goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_finetuning import (
    ROWS,
    checkpoint,
    options,
    read_jsonl,
    short,
    text_rows,
    write_csv,
    write_jsonl,
)
from transformers import AutoConfig, TrainerCallback, XLNetTokenizer

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import finetune, run
from xlnet_fast.train.shared.checkpoints import SAVING

CLASSES = {
    "text-classification": ("XLNetForSequenceClassification", "accuracy"),
    "token-classification": ("XLNetForTokenClassification", "entity_f1"),
    "multiple-choice": ("XLNetForMultipleChoice", "accuracy"),
    "question-answering": ("XLNetForQuestionAnsweringSimple", "f1"),
}
PLOTS = {"loss.png", "confusion.png"}
undrawn = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` keeps of a file stays in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model"))


def plain_logits(task: str, folder, rows) -> list[torch.Tensor]:
    """What unpatched HF code computes from the saved folder."""
    tokenizer = XLNetTokenizer.from_pretrained(folder)
    kind = getattr(transformers, CLASSES[task][0])
    model, found = kind.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    model.eval()
    logits = []
    for row in rows:
        if task == "text-classification":
            inputs = tokenizer(row["text"], return_tensors="pt")
        elif task == "token-classification":
            inputs = tokenizer(row["tokens"], is_split_into_words=True, return_tensors="pt")
        elif task == "question-answering":
            inputs = tokenizer(row["context"], row["question"], return_tensors="pt")
        else:
            endings = [f"{row['question']} {choice}" for choice in row["choices"]]
            passages = [row["context"]] * len(endings)
            inputs = tokenizer(passages, endings, return_tensors="pt", padding=True)
            inputs = {name: values[None] for name, values in inputs.items()}
        with torch.no_grad():
            outputs = model(**inputs)
        scores = outputs.get("logits")
        logits.append(scores if scores is not None else outputs.start_logits)
    return logits


@pytest.mark.parametrize("task", sorted(ROWS))
def test_a_toy_task_is_learnt_and_plain_hf_loads_the_model(task, model, tmp_path, request):
    draws = task.endswith("classification")  # all draw losses, these also their confusion
    if not draws:
        request.getfixturevalue("undrawn")
    settings = options(task, model, tmp_path, epochs=10, eval_every=40)
    test = ROWS[task](20, seed=2)
    settings = dataclasses.replace(settings, test=str(write_jsonl(tmp_path / "test.jsonl", test)))
    result = finetune(settings)
    metric = CLASSES[task][1]
    assert result.stopped_by is None
    assert result.metrics["eval"][metric] > 0.9
    assert result.metrics["test"][metric] > 0.9

    names = {path.name for path in settings.output.iterdir()}
    assert {"model", "metrics.json", "loss.png", "runs", "finetune.json"} <= names
    assert {"predictions_eval.jsonl", "predictions_test.jsonl"} <= names
    assert ("confusion.png" in names) == task.endswith("classification")
    drawn = PLOTS & names if draws else set()
    assert all((settings.output / name).read_bytes()[:4] == b"\x89PNG" for name in drawn)
    assert any((settings.output / "runs").iterdir())
    written = json.loads((settings.output / "metrics.json").read_text())
    assert written["test"][metric] == result.metrics["test"][metric]
    assert written["rows"] == {"train": 64, "eval": 22, "test": 20}

    rows = read_jsonl(settings.output / "predictions_test.jsonl")
    assert len(rows) == len(test)
    config = AutoConfig.from_pretrained(result.model)
    assert config.architectures == [CLASSES[task][0]]
    logits = plain_logits(task, result.model, test)
    for row, scores in zip(rows, logits, strict=True):
        if task == "text-classification":
            best = int(scores.argmax())
            assert config.id2label[best] == row["prediction"]
            assert float(scores.softmax(-1).max()) == pytest.approx(row["probability"], abs=1e-4)
        elif task == "multiple-choice":
            assert int(scores.argmax()) == row["prediction"]
            assert float(scores.softmax(-1).max()) == pytest.approx(row["probability"], abs=1e-4)


@undrawn
def test_questions_without_an_answer_are_learnt(model, tmp_path):
    """Both heads; the beam's is made from its config."""
    settings = options("question-answering", model, tmp_path, epochs=12)
    write_jsonl(tmp_path / "train.jsonl", ROWS["question-answering"](64, without_answer=True))
    write_jsonl(
        tmp_path / "eval.jsonl", ROWS["question-answering"](22, seed=1, without_answer=True)
    )
    assert finetune(settings).metrics["eval"]["f1_no_answer"] > 0.9


@undrawn
def test_the_beam_head_is_fine_tuned(model, tmp_path):
    """Of a checkpoint that has it; it has no evaluation loss, and learns."""
    source = tmp_path / "beam"
    config = AutoConfig.from_pretrained(model)
    config.start_n_top, config.end_n_top = 3, 3
    torch.manual_seed(0)
    transformers.XLNetForQuestionAnswering(config).save_pretrained(source)
    settings = options(
        "question-answering", source, tmp_path, tokenizer=str(model), epochs=12, eval_every=48
    )
    rows = ROWS["question-answering"](64, without_answer=True)
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "eval.jsonl", rows[:22])
    result = finetune(settings)
    assert "loss" not in result.metrics["eval"]
    assert result.metrics["eval"]["f1"] > 0.9
    kind = transformers.XLNetForQuestionAnswering
    _, found = kind.from_pretrained(result.model, output_loading_info=True)
    assert not found["missing_keys"]


# --- data ----------------------------------------------------------------------------------------


@undrawn
def test_a_table_with_other_columns_and_an_evaluation_share(model, tmp_path, capsys):
    rows = [
        {"body of it": row["text"] * (1 + 9 * (i == 0)), "grade": row["label"]}
        for i, row in enumerate(text_rows(40))
    ]
    path = write_csv(tmp_path / "rows.tsv", rows, "\t")
    settings = short(
        model, tmp_path, train=str(path), eval=None, eval_share=0.2,
        column=("text=body of it", "label=grade"), max_length=40,
    )  # fmt: skip
    result = finetune(settings)
    written = json.loads((result.output / "metrics.json").read_text())
    assert written["rows"] == {"train": 32, "eval": 8}
    assert "1 of 32 sequences" in capsys.readouterr().err.replace("\n", " ")


@undrawn
def test_a_data_set_with_splits(model, tmp_path):
    parts = {
        name: datasets.Dataset.from_list(text_rows(count, seed))
        for seed, (name, count) in enumerate({"train": 16, "validation": 6, "test": 4}.items())
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "data")
    folder = str(tmp_path / "data")
    result = finetune(short(model, tmp_path, train=folder, eval=None, test=folder))
    written = json.loads((result.output / "metrics.json").read_text())
    assert written["rows"] == {"train": 16, "eval": 6, "test": 4}


@undrawn
def test_test_rows_without_labels_are_predicted(model, tmp_path):
    rows = [{"text": row["text"]} for row in text_rows(5)]
    path = write_jsonl(tmp_path / "test.jsonl", rows)
    result = finetune(short(model, tmp_path, test=str(path)))
    assert set(result.metrics) == {"eval"}
    found = read_jsonl(result.output / "predictions_test.jsonl")
    assert [set(row) for row in found] == [{"text", "prediction", "probability"}] * 5


def test_an_unknown_metric(model, tmp_path):
    with pytest.raises(ArgumentError, match="best_metric must be one of accuracy, f1_macro"):
        finetune(short(model, tmp_path, best_metric="bleu"))


# --- runs that end early, or go on ---------------------------------------------------------------


@undrawn
def test_the_run_stops_when_nothing_gets_better_and_keeps_the_best(model, tmp_path):
    """The learning rate is so small that the first evaluation is the best of all."""
    settings = short(model, tmp_path, steps=40, eval_every=2, patience=2, learning_rate=1e-12)
    result = finetune(settings)
    written = json.loads((result.output / "metrics.json").read_text())
    assert written["steps"] == 6
    assert written["best_step"] == 2
    best = load_file(result.output / "checkpoint-2" / "model.safetensors")
    saved = load_file(result.model / "model.safetensors")
    assert all(torch.equal(best[name], saved[name]) for name in best)


class _Stop(TrainerCallback):
    """Sends this process a signal after some step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@undrawn
def test_a_stopped_run_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch):
    """With dropout, in the midst of an epoch; weights bit for bit, and the same losses."""
    model = checkpoint(tmp_path / "model", dropout=0.1)
    whole = finetune(short(model, tmp_path, steps=14, log_every=2, output=tmp_path / "whole"))
    settings = short(model, tmp_path, steps=14, log_every=2)
    original = run._trainer

    def stopping(*arguments):
        trainer = original(*arguments)
        trainer.add_callback(_Stop(9))
        return trainer

    monkeypatch.setattr(run, "_trainer", stopping)
    stopped = finetune(settings)
    assert stopped.stopped_by == signal.SIGTERM
    assert not stopped.model.exists()
    assert (settings.output / "checkpoint-10").is_dir()
    monkeypatch.setattr(run, "_trainer", original)

    with pytest.raises(ArgumentError, match="--resume"):
        finetune(settings)
    half_saved = settings.output / f"{SAVING}checkpoint-12"
    half_saved.mkdir()
    changed = dataclasses.replace(settings, resume=True, learning_rate=1.0)
    with pytest.raises(ArgumentError, match=r"learning_rate was 0\.003 and is 1\.0"):
        finetune(changed)
    # What the rows are decides, not where they lie.
    rows, moved = Path(settings.train).read_text(), tmp_path / "moved.jsonl"
    moved.write_text(rows.replace("good", "fine"))
    resumed = dataclasses.replace(settings, resume=True, train=str(moved))
    with pytest.raises(ArgumentError, match="has the label 'good'; the training data have: bad, f"):
        finetune(resumed)
    moved.write_text(rows.replace("yield", "break"))
    with pytest.raises(ArgumentError, match="cannot go on differently: train_sha256 was"):
        finetune(resumed)
    moved.write_text(rows)
    result = finetune(resumed)
    assert result.stopped_by is None
    assert not half_saved.exists()
    one, two = (load_file(r.model / "model.safetensors") for r in (whole, result))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert result.metrics == whole.metrics


@undrawn
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(model, tmp_path, capsys):
    settings = short(model, tmp_path, resume=True)
    assert finetune(settings).metrics
    assert "the run begins anew" in capsys.readouterr().err.replace("\n", " ")


@undrawn
def test_a_folder_that_is_in_use(model, tmp_path):
    settings = short(model, tmp_path, steps=2)
    settings.output.mkdir()
    (settings.output / "thesis.txt").write_text("mine")
    with pytest.raises(ArgumentError, match="not empty"):
        finetune(settings)
    with pytest.raises(ArgumentError, match="holds no run of this command"):
        finetune(dataclasses.replace(settings, resume=True))
    # A mistake in the data is told before anything is deleted.
    missing = dataclasses.replace(settings, overwrite=True, train="missing.csv")
    with pytest.raises(ArgumentError, match="does not exist"):
        finetune(missing)
    assert (settings.output / "thesis.txt").exists()
    finetune(dataclasses.replace(settings, overwrite=True))
    assert not (settings.output / "thesis.txt").exists()


def test_an_output_that_is_a_file(model, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ArgumentError, match="is a file, expected a folder"):
        finetune(short(model, tmp_path))
