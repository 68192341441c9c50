"""`pretrain`: from a text file to a model, a resume that nobody can tell, and bad input."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining_runs import assert_same_weights, losses, part_of
from tiny_pretraining import tiny_options
from transformers import XLNetConfig, XLNetLMHeadModel, XLNetModel, XLNetTokenizer

from xlnet_fast import accelerate
from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.pretraining.collator import collate
from xlnet_fast.train.pretraining.corpus import Corpus, Vocabulary
from xlnet_fast.train.pretraining.run import pretrain, unigram_perplexity
from xlnet_fast.train.pretraining.streams import PermutationStreams, SequenceShape
from xlnet_fast.train.pretraining.text_streams import IGNORED
from xlnet_fast.train.pretraining.trainer import PretrainingTrainer
from xlnet_fast.train.shared.checkpoints import SAVING

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text):
    """A run of 20 steps over more than one epoch, with dropout and two batches an update."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    options = tiny_options(folder, text, steps=20, save_every=5, gradient_accumulation=2)
    return options, pretrain(options)


# --- what it leaves ------------------------------------------------------------------------------


def test_it_learns_and_says_how_well(whole):
    options, result = whole
    assert result.stopped_by is None
    curve = losses(options.output, 20)
    assert list(curve) == list(range(1, 21))
    assert np.mean(list(curve.values())[-5:]) < curve[1] - 0.2
    written = json.loads((options.output / "metrics.json").read_text())
    assert written == result.metrics
    assert math.isclose(written["eval_perplexity"], math.exp(written["eval_loss"]))
    assert written["steps"] == 20
    assert written["tokens_in_the_text"] > 0
    assert "tokens" not in written, "it would be taken for those that it was trained on"


def test_it_leaves_a_plot_and_tensorboard_logs(whole):
    options, _ = whole
    assert (options.output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((options.output / "runs").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("name", ["model", "checkpoint-5"])
def test_plain_hugging_face_loads_it(whole, name):
    options, _ = whole
    folder = options.output / name
    model, found = XLNetLMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values())
    assert type(model.transformer) is XLNetModel
    assert model.config.architectures == ["XLNetLMHeadModel"]
    tokenizer = XLNetTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size
    # As that of fine-tuning: <cls> has a segment of its own, and it is given unasked.
    assert tokenizer("a", "list")["token_type_ids"][-3:] == [1, 1, 2]
    assert tokenizer.padding_side == "left"
    # Inference with the saved config: no memory carried, odd batches allowed.
    assert (model.config.mem_len, model.config.reuse_len) == (None, None)
    assert model.config.bi_data is False
    with torch.no_grad():
        ids = tokenizer("The parameter list", return_tensors="pt").input_ids
        plain = model.eval()(ids).logits
        assert torch.allclose(accelerate(model)(ids).logits, plain, atol=1e-5)


def test_odd_lengths_both_directions_and_whole_words(tmp_path, text):
    options = tiny_options(
        tmp_path / "run", text, seq_len=33, reuse_len=14, perm_size=5, num_predict=7, mem_len=20,
        bi_data=True, whole_words=True, steps=4, batch_size=2,
    )  # fmt: skip
    result = pretrain(options)
    assert math.isfinite(result.metrics["eval_loss"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (24, 16, False)),
        ({"reuse_len": 10, "mem_len": 7, "bi_data": True}, (7, 10, True)),
    ],
    ids=["defaults", "given"],
)
def test_the_model_remembers_what_the_data_continue(tmp_path, text, monkeypatch, changes, expected):
    """And only while it trains: who loads it says how much memory it keeps."""
    found = []
    train = PretrainingTrainer.train

    def watched(self, *arguments):
        transformer = self.model.transformer
        found.append((transformer.mem_len, transformer.reuse_len, transformer.bi_data))
        assert self.train_dataset.shuffle
        assert not self.eval_dataset.shuffle  # its text is read as it stands
        return train(self, *arguments)

    monkeypatch.setattr(PretrainingTrainer, "train", watched)
    result = pretrain(tiny_options(tmp_path / "run", text, steps=1, **changes))
    assert found == [expected]
    config = XLNetConfig.from_pretrained(result.model)
    assert (config.mem_len, config.reuse_len, config.bi_data) == (None, None, False)


def test_bf16(tmp_path, text):
    result = pretrain(tiny_options(tmp_path / "run", text, precision="bf16", steps=3))
    assert math.isfinite(result.metrics["eval_loss"])


def test_hugging_faces_own_modules_give_the_same_losses(tmp_path, text):
    ours = tiny_options(tmp_path / "ours", text, dropout=0.0)
    theirs = tiny_options(tmp_path / "theirs", text, dropout=0.0, accelerate=False)
    pretrain(ours), pretrain(theirs)
    curves = [list(losses(options.output, 6).values()) for options in (ours, theirs)]
    assert np.allclose(*curves, rtol=1e-5)


@pytest.mark.parametrize(("given", "expected"), [(None, 0.1), (0.5, 0.5)])
def test_a_checkpoint_trains_with_the_dropout_given_or_its_own(
    tmp_path, text, whole, monkeypatch, given, expected
):
    found = []

    def watched(self, *_):
        drops = [m.p for m in self.model.modules() if isinstance(m, torch.nn.Dropout)]
        found.append({*drops, self.model.config.dropout})
        raise KeyboardInterrupt

    monkeypatch.setattr(PretrainingTrainer, "train", watched)
    model = {"model": str(whole[1].model), "d_model": None, "n_layer": None, "n_head": None}
    options = tiny_options(tmp_path / "run", text, **model, d_inner=None, dropout=given)
    with pytest.raises(KeyboardInterrupt):
        pretrain(options)
    assert found == [{expected}]


def test_going_on_from_a_checkpoint_of_another_run(tmp_path, text, whole):
    options, _ = whole
    start = options.output / "model"
    again = tiny_options(
        tmp_path / "run", text, model=str(start), d_model=None, n_layer=None, n_head=None,
        d_inner=None, dropout=0.3, steps=2,
    )  # fmt: skip
    pretrain(again)
    assert losses(again.output, 2 + 1 if (again.output / "checkpoint-3").exists() else 2)[1] < 5.8
    state = torch.load(again.output / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert max(entry["step"] for entry in state["state"].values()) == 2


def test_unigram_perplexity_by_hand():
    starts = np.ones(6, bool)
    vocabulary = Vocabulary(6, starts, sep=4, cls=3, eod=5, unk=0)
    text = Corpus(np.array([0, 0, 1, 2] * 4, np.uint16), np.array([0]), np.array([0]))
    shape = SequenceShape(seq_len=10, reuse_len=5, perm_size=5, num_predict=4)
    data = PermutationStreams(text, vocabulary, shape, 1)
    labels = np.concatenate([item["labels"] for item in data.__getitems__(range(len(data)))])
    labels = labels[labels != IGNORED]
    share = {0: 9 / 22, 1: 5 / 22, 2: 5 / 22}
    expected = math.exp(-np.mean([math.log(share[label]) for label in labels.tolist()]))
    assert math.isclose(unigram_perplexity(text, data), expected)


# --- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [5, 15])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, whole, step):
    """With dropout, memory and two batches an update, in the second and the fifth epoch."""
    options, result = whole
    state = json.loads((options.output / f"checkpoint-{step}" / "trainer_state.json").read_text())
    assert state["epoch"] > 1
    assert state["epoch"] % 1 > 0
    part_of(options.output, tmp_path / "run", step)
    half_saved = tmp_path / "run" / f"{SAVING}checkpoint-{step + 5}"
    half_saved.mkdir()

    resumed = replace(options, output=tmp_path / "run", resume=True)
    again = pretrain(resumed)
    assert not half_saved.exists()
    assert_same_weights(resumed.output, options.output)
    assert losses(resumed.output, 20) == losses(options.output, 20)
    assert again.metrics == result.metrics


def test_a_resume_of_a_finished_run_trains_no_further(tmp_path, whole):
    options, result = whole
    part_of(options.output, tmp_path / "run", 20)
    again = pretrain(replace(options, output=tmp_path / "run", resume=True))
    assert_same_weights(tmp_path / "run", options.output)
    assert again.metrics == result.metrics


def test_the_memory_is_part_of_a_resume(tmp_path, whole):
    """It is never left out without a word."""
    options, _ = whole
    part_of(options.output, tmp_path / "run", 15)
    (tmp_path / "run" / "checkpoint-15" / "memory-0.safetensors").unlink()
    resumed = replace(options, output=tmp_path / "run", resume=True)
    with pytest.raises(ArgumentError, match="has no memory of process 0"):
        pretrain(resumed)


def test_a_run_without_memory_resumes_without_any(tmp_path, text):
    options = tiny_options(tmp_path / "whole", text, mem_len=0)
    pretrain(options)
    assert not list(options.output.rglob("memory-*"))
    part_of(options.output, tmp_path / "run", 3)
    pretrain(replace(options, output=tmp_path / "run", resume=True))
    assert_same_weights(tmp_path / "run", options.output)


def test_a_damaged_memory_is_told(tmp_path, whole):
    options, _ = whole
    part_of(options.output, tmp_path / "run", 15)
    path = tmp_path / "run" / "checkpoint-15" / "memory-0.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArgumentError, match=r"memory-0\.safetensors is damaged"):
        pretrain(replace(options, output=tmp_path / "run", resume=True))


def test_resume_with_nothing_there_begins(tmp_path, text):
    result = pretrain(tiny_options(tmp_path / "run", text, resume=True, steps=1))
    assert result.metrics["steps"] == 1


def test_resume_of_another_run_is_refused(tmp_path, whole):
    options, _ = whole
    part_of(options.output, tmp_path / "run", 5)
    changed = replace(options, output=tmp_path / "run", resume=True, seq_len=48, seed=3)
    with pytest.raises(ArgumentError, match=r"seed was 0 and is 3; seq_len was 32 and is 48"):
        pretrain(changed)


def test_a_run_of_a_constant_rate_may_become_longer(tmp_path, text):
    """As if it had been so long from the beginning, through the end of an epoch."""
    steady = {"schedule": "constant_with_warmup", "warmup": 2, "save_every": 100}
    through = tiny_options(tmp_path / "through", text, steps=9, **steady)
    first = tiny_options(tmp_path / "run", text, steps=4, **steady)
    pretrain(through)
    pretrain(first)
    longer = replace(first, steps=9, resume=True)
    assert pretrain(longer).metrics["steps"] == 9
    assert_same_weights(longer.output, through.output)
    assert losses(longer.output, 9) == losses(through.output, 9)
    assert json.loads((longer.output / "pretrain.json").read_text())["steps"] == 9
    with pytest.raises(ArgumentError, match="steps was 9 and is 8; give its own options"):
        pretrain(replace(longer, steps=8))


def test_a_planned_run_that_shall_be_longer_is_told_the_way(tmp_path, text):
    options = tiny_options(tmp_path / "run", text, steps=2)
    pretrain(options)
    with pytest.raises(ArgumentError) as refusal:
        pretrain(replace(options, steps=5, resume=True))
    way = str(refusal.value).partition("start a new run from its model: ")[2]
    named, _, without = way.partition(", the other options as they were, without ")
    assert without == "--resume --d-model --n-layer --n-head --d-inner"
    flags = named.split()
    assert flags[::2] == ["--model", "--output", "--steps"]
    assert flags[1::2] == [str(tmp_path / "run" / "model"), str(tmp_path / "run-longer"), "3"]
    of_a_new_model = dict.fromkeys(("d_model", "n_layer", "n_head", "d_inner"))
    longer = replace(
        options, model=flags[1], output=Path(flags[3]), steps=int(flags[5]), **of_a_new_model
    )
    assert pretrain(longer).metrics["steps"] == 3


def test_a_resume_goes_by_what_the_text_says_not_by_where_it_lies(tmp_path, whole, text):
    options, _ = whole
    part_of(options.output, tmp_path / "run", 20)
    moved = shutil.copy(text, tmp_path / "moved.txt")
    resumed = replace(options, output=tmp_path / "run", resume=True, text=(str(moved),))
    tokenizer = replace(resumed, tokenizer=str(options.output / "model"))
    with pytest.raises(ArgumentError, match="tokenizer was None"):
        pretrain(tokenizer)
    pretrain(resumed)
    with open(moved, "a") as file:
        file.write("\n\nOne more article.")
    with pytest.raises(ArgumentError, match="eval_text_sha256 was"):
        pretrain(resumed)


def test_a_folder_of_another_run_is_not_touched(tmp_path, text):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ArgumentError, match="is not empty"):
        pretrain(tiny_options(tmp_path, text))
    assert (tmp_path / "mine").read_text() == "precious"


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": "huge"}, "size must be one of tiny, small, base, large"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"schedule": "wild"}, "schedule must be one of"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"seq_len": 3}, "seq_len is 3, expected at least 6"),
        ({"reuse_len": 30}, "expected reuse_len >= 1 and seq_len >= reuse_len"),
        ({"perm_size": 17}, "perm_size is 17, expected 1 to 16"),
        ({"num_predict": 33}, "num_predict is 33"),
        ({"mask_alpha": 1, "mask_beta": 2}, "mask_alpha >= mask_beta"),
        ({"max_span": 0}, "max_span is 0"),
        ({"batch_size": 3, "bi_data": True}, "expected a multiple of 2"),
        ({"batch_size": 4000}, "give more text, fewer rows or a shorter seq_len"),
        ({"eval_share": 1.5}, "expected 0 to 1"),
        ({"warmup": 2.5}, "warmup is 2.5"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"dropout": 1.0}, "dropout is 1.0, expected 0 to 0.9"),
        ({"steps": 0}, "steps is 0"),
        ({"d_model": 15}, "expected a multiple"),
        ({"model": "nowhere/at/all"}, "d_model, n_layer, n_head and d_inner"),
        ({"resume": True, "overwrite": True}, "overwrite deletes it"),
        ({"text": ("/nowhere.txt",)}, "does not exist"),
        ({"eval_text": ("/nowhere.txt",)}, "does not exist"),
        ({"dataset": "x"}, "not both"),
        ({"tokenizer": "/nowhere"}, "does not exist"),
        ({"vocab_size": 20}, "SentencePiece cannot learn"),
        ({"backend": "magic"}, "unknown backend 'magic'"),
        ({"fsdp": True}, "FSDP needs several processes"),
    ],
    ids=str,
)
def test_bad_options(tmp_path, text, changes, words):
    """Told, and no empty folder is left."""
    with pytest.raises(ArgumentError, match=words):
        pretrain(dataclasses.replace(tiny_options(tmp_path / "run", text), **changes))
    assert not (tmp_path / "run").exists()


def test_an_evaluation_text_that_is_too_short(tmp_path, text):
    short = tmp_path / "short.txt"
    short.write_text("Only this.")
    with pytest.raises(ArgumentError, match="too few for sequences of 32 on 1 process"):
        pretrain(tiny_options(tmp_path / "run", text, eval_text=(str(short),)))


def test_a_tokenizer_larger_than_the_model(tmp_path, text, whole):
    options, _ = whole
    XLNetLMHeadModel(
        XLNetConfig(vocab_size=100, d_model=16, n_layer=1, n_head=2, d_inner=16)
    ).save_pretrained(tmp_path / "small")
    shape = dict.fromkeys(("d_model", "n_layer", "n_head", "d_inner"))
    again = tiny_options(
        tmp_path / "run", text, model=str(tmp_path / "small"),
        tokenizer=str(options.output / "model"), **shape,
    )  # fmt: skip
    with pytest.raises(ArgumentError, match=r"has \d+ pieces, .*only 100"):
        pretrain(again)


def test_collate_makes_arguments_of_the_forward(whole):
    """The names that the model takes, and nothing else."""
    import inspect

    from xlnet_fast.hf.families.xlnet.modules import FastModel

    vocabulary = Vocabulary(20, np.ones(20, bool), sep=4, cls=3, eod=7, unk=0)
    corpus = Corpus(np.arange(60).astype(np.uint16) % 20, np.array([0]), np.array([0]))
    shape = SequenceShape(seq_len=12, reuse_len=6, perm_size=6, num_predict=2)
    items = PermutationStreams(corpus, vocabulary, shape, 2).__getitems__([0, 1])
    known = {*inspect.signature(FastModel.forward).parameters, "labels"}
    for dense in (False, True):
        assert set(collate(items, dense=dense)) <= known
