"""Padding changes nothing: its side in a tokenizer's files, and how many rows a batch has."""

from __future__ import annotations

import json

import datasets
import pytest
import torch
from tiny_finetuning import ROWS, SHAPE, checkpoint, short
from tokenizers import Tokenizer
from transformers import AutoTokenizer, XLNetConfig, XLNetForQuestionAnswering

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import FinetuneOptions, finetune, run
from xlnet_fast.train.finetune.model import adopt_labels, load_model, run_config, run_tokenizer
from xlnet_fast.train.finetune.trainer import FinetuneTrainer
from xlnet_fast.train.shared.tokenizers import load_tokenizer
from xlnet_fast.train.shared.trainer import training_arguments

BEAM = {"start_n_top": 40, "end_n_top": 3}  # more starts than most rows have pieces
SETTINGS = {"tokenizer_class": "XLNetTokenizer", "padding_side": "right"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint whose tokenizer pads on the right."""
    made = checkpoint(tmp_path_factory.mktemp("model"))
    (made / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    return made


def changed(folder, target, **changes):
    """The checkpoint with another config."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def beam_checkpoint(folder, target):
    """One that the beam search of question answering was trained for."""
    changed(folder, target)
    XLNetForQuestionAnswering(XLNetConfig(**SHAPE, **BEAM, vocab_size=300)).save_pretrained(target)
    return target


def rows_of(task, count):
    """Rows of very unlike lengths: the first is the shortest."""
    rows = ROWS[task](count)
    for i, row in enumerate(rows):
        for name in ("text", "context"):
            if name in row:
                row[name] += " of the class" * (3 * i)
        if task == "token-classification":
            row["tokens"], row["tags"] = row["tokens"] * (i + 1), row["tags"] * (i + 1)
    return rows


def results(task_name, model, output, batch_size):
    """Metrics and predictions of an evaluation."""
    options = FinetuneOptions(
        task=task_name, model=str(model), train="t", output=output, max_length=160, stride=8
    )
    tokenizer = run_tokenizer(options)
    config = run_config(options, tokenizer)
    task = run.task_for(options, config, tokenizer)
    split = task.split("eval", "e", datasets.Dataset.from_list(rows_of(task_name, 7)))
    task.fit_labels(split)
    keeps_head = adopt_labels(config, task)
    split.features = task.encode(split)
    torch.manual_seed(0)
    arguments = training_arguments(
        output, precision="fp32", save_steps=None, remove_unused_columns=False,
        label_names=["labels"], per_device_eval_batch_size=batch_size,
    )  # fmt: skip
    trainer = FinetuneTrainer(
        task, options, args=arguments, model=load_model(options, config, task, keeps_head)
    )
    found = trainer.predict(split.features)
    metrics = task.metrics(split, found.predictions, found.label_ids)
    return metrics, task.report(split, found.predictions, found.label_ids).rows


@pytest.mark.parametrize(
    "kind", [*sorted(ROWS), "question-answering, beam", "text-classification, cls_index"]
)
def test_an_evaluation_is_the_same_one_by_one_and_in_batches(kind, folder, tmp_path):
    task, _, variant = kind.partition(", ")
    if variant == "beam":
        folder = beam_checkpoint(folder, tmp_path / "beam")
    elif variant:
        folder = changed(folder, tmp_path / "changed", summary_type=variant)
    one_by_one, in_batches = (results(task, folder, tmp_path / f"{n}", n) for n in (1, 4))
    assert one_by_one[0] == pytest.approx(in_batches[0], rel=1e-5)
    assert len(one_by_one[1]) == 7
    for alone, together in zip(one_by_one[1], in_batches[1], strict=True):
        numbers = {name for name, value in alone.items() if isinstance(value, float)}
        assert {n: v for n, v in alone.items() if n not in numbers} == {
            n: v for n, v in together.items() if n not in numbers
        }
        for name in numbers:
            assert alone[name] == pytest.approx(together[name], rel=1e-4, abs=2e-6)


def test_two_directions_are_of_pretraining_alone(folder, tmp_path):
    """With ``bi_data`` half of a batch would be read backwards, and one row be refused."""
    both = changed(folder, tmp_path / "both", bi_data=True)
    metrics, _ = results("text-classification", both, tmp_path / "out", 1)
    expected, _ = results("text-classification", folder, tmp_path / "out", 1)
    assert metrics == expected


@pytest.mark.parametrize("summary", ["mean", "first", "attn"])
@pytest.mark.parametrize("task", ["text-classification", "multiple-choice"])
def test_a_summary_of_padding_is_refused(summary, task, folder, tmp_path):
    model = changed(folder, tmp_path / "model", summary_type=summary)
    options = FinetuneOptions(task=task, model=str(model), train="t", output=tmp_path)
    with pytest.raises(ArgumentError, match=rf"summary_type is '{summary}' .* last or cls_index"):
        run_config(options, run_tokenizer(options))
    # A head without a summary does not care.
    options = FinetuneOptions(
        task="token-classification", model=str(model), train="t", output=tmp_path
    )
    assert run_config(options, run_tokenizer(options)).summary_type == summary


@pytest.mark.usefixtures("undrawn")
def test_what_is_saved_pads_on_the_left_and_the_user_is_told_once(
    folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    result = finetune(short(folder, tmp_path, steps=1, eval_every=1))
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("pads on the right; XLNet's <cls> stands at the end, so this run") == 1
    saved = json.loads((result.model / "tokenizer_config.json").read_text())
    assert saved["padding_side"] == "left"
    tokenizer = AutoTokenizer.from_pretrained(result.model)
    batch = tokenizer(["the", "the value of"], padding=True)
    assert batch["attention_mask"][0][0] == 0
    assert load_tokenizer(str(result.model)).padding_side == "left"
    assert "pads on" not in capsys.readouterr().err


def test_settings_of_a_tokenizer_json_are_not_kept(folder, tmp_path):
    load_tokenizer(str(folder)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    own.enable_padding(direction="right", pad_id=5, pad_token="<pad>", length=9)
    own.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(str(tmp_path))
    found.save_pretrained(tmp_path / "saved")
    assert Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json")).padding is None
    assert load_tokenizer(str(tmp_path / "saved")).padding_side == "left"


def test_the_side_is_written_where_no_file_names_it(folder, tmp_path):
    """Other tokenizer classes of transformers pad on the right unless told."""
    load_tokenizer(str(folder / "spiece.model")).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["padding_side"] == "left"


def test_a_tokenizer_that_names_no_padding_token(folder, tmp_path):
    model = changed(folder, tmp_path / "model")
    (model / "tokenizer_config.json").write_text(json.dumps({**SETTINGS, "pad_token": None}))
    found = load_tokenizer(str(model))
    batch = found.pad([found("the"), found("the value of")])
    assert batch["input_ids"][0][0] == found.convert_tokens_to_ids("<pad>")
    found.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").pad_token == "<pad>"


def test_the_side_that_is_cut_is_part_of_what_is_cached(folder, tmp_path, monkeypatch):
    """The tokenizer's own: texts that are cut at the beginning are not those cut at the end."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = datasets.Dataset.from_list([{"text": "the value of a class", "label": k} for k in "ab"])
    rows.save_to_disk(tmp_path / "rows")
    ids = []
    for side in ("right", "left"):
        model = changed(folder, tmp_path / side)
        (model / "tokenizer_config.json").write_text(
            json.dumps({**SETTINGS, "truncation_side": side})
        )
        options = FinetuneOptions(
            task="text-classification", model=str(model), train="t", output=tmp_path, max_length=5
        )
        tokenizer = run_tokenizer(options)
        task = run._TASKS[options.task](options, tokenizer)
        split = task.split("train", "t", datasets.load_from_disk(str(tmp_path / "rows")))
        task.fit_labels(split)
        ids.append(tokenizer.convert_ids_to_tokens(task.encode(split)[0]["input_ids"]))
    assert ids[0][:3] == ["▁the", "▁value", "▁of"]
    assert ids[1][1:3] == ["▁a", "▁class"]
