"""`pretrain --arch transfo-xl`: from text to a model, a resume that nobody can tell, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretraining_runs import assert_same_weights, losses, part_of
from safetensors.torch import load_file
from tiny_pretraining import tiny_options
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl import TransfoXLLMHeadModel
from xlnet_fast.train.pretraining import PretrainOptions
from xlnet_fast.train.pretraining.run import pretrain
from xlnet_fast.train.pretraining.transfo_xl.trainer import SegmentTrainer

pytestmark = pytest.mark.usefixtures("undrawn")

STEPS, SAVED = 14, 4  # an epoch has 9 batches, which make 5 updates


def options_of(output: Path, text: Path, **changes: Any) -> PretrainOptions:
    return tiny_options(output, text, **{"arch": "transfo-xl", "seq_len": 16, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text):
    """Several epochs with dropout, clusters, shuffled documents and two batches an update."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    options = options_of(
        folder, text, steps=STEPS, save_every=SAVED, gradient_accumulation=2, dropatt=0.1,
        cutoffs="50,150", div_val=2, shuffle=True, mem_len=24, learning_rate=3e-2,
    )  # fmt: skip
    return options, pretrain(options)


# --- what it leaves ------------------------------------------------------------------------------


def test_it_learns_and_says_how_well(whole):
    options, result = whole
    curve = losses(options.output, STEPS)
    assert list(curve) == list(range(1, STEPS + 1))
    assert np.mean(list(curve.values())[-3:]) < curve[1] - 0.2
    written = json.loads((options.output / "metrics.json").read_text())
    assert written == result.metrics
    assert math.isclose(written["eval_perplexity"], math.exp(written["eval_loss"]))
    assert written["unigram_perplexity"] > 1
    assert (options.output / "loss.png").exists()


@pytest.mark.parametrize("name", ["model", f"checkpoint-{SAVED}"])
def test_transformers_loads_it_with_its_tokenizer(whole, name):
    options, _ = whole
    folder = options.output / name
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, TransfoXLLMHeadModel)
    assert not any(found.values())
    assert model.config.architectures == ["TransfoXLLMHeadModel"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size
    encoded = tokenizer("The parameter list")
    assert encoded.keys() == {"input_ids", "attention_mask"}, "the model knows no segments"
    assert not set(encoded.input_ids) & set(tokenizer.all_special_ids), "a text goes on"
    assert tokenizer.decode(encoded.input_ids) == "The parameter list"
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.eos_token == "<eod>"
    with torch.no_grad():
        outputs = model.eval()(**tokenizer(["The list"], return_tensors="pt"))
    assert outputs.logits.shape[-1] == len(tokenizer)


def test_the_config_says_how_it_was_trained(whole, tmp_path, text):
    config = AutoConfig.from_pretrained(whole[1].model)
    assert (config.mem_len, config.same_length, config.initial_memory) == (24, False, "empty")
    assert (config.cutoffs, config.div_val, config.d_head) == ([50, 150], 2, 8)
    assert (config.dropout, config.dropatt) == (0.1, 0.1)
    other = options_of(
        tmp_path / "run", text, steps=1, same_length=True, clamp_len=9, mem_len=8,
        initial_memory="zeros", d_head=3, d_embed=8, dropout=0.0,
    )  # fmt: skip
    config = AutoConfig.from_pretrained(pretrain(other).model)
    assert (config.mem_len, config.same_length, config.initial_memory) == (8, True, "zeros")
    assert (config.clamp_len, config.d_head, config.d_embed) == (9, 3, 8)
    assert (config.cutoffs, config.dropout) == ([], 0.0)


def test_another_run_goes_on_from_its_model(whole, tmp_path, text, monkeypatch):
    """With the masks and memory of its config, unless the options say otherwise."""
    seen = []

    def watched(self, *_):
        seen.append(self.model.config)
        raise KeyboardInterrupt

    monkeypatch.setattr(SegmentTrainer, "train", watched)
    new = dict.fromkeys(("d_model", "n_layer", "n_head", "d_inner"))
    options = options_of(
        tmp_path / "run", text, model=str(whole[1].model), same_length=True, dropout=0.3, **new
    )
    with pytest.raises(KeyboardInterrupt):
        pretrain(options)
    (config,) = seen
    assert (config.same_length, config.dropout, config.mem_len) == (True, 0.3, 16)
    assert (config.dropatt, config.cutoffs, config.initial_memory) == (0.1, [50, 150], "empty")


def test_bf16(tmp_path, text):
    result = pretrain(options_of(tmp_path / "run", text, precision="bf16", steps=2))
    assert math.isfinite(result.metrics["eval_loss"])


# --- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [SAVED, 2 * SAVED])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, whole, step):
    options, result = whole
    state = json.loads((options.output / f"checkpoint-{step}" / "trainer_state.json").read_text())
    assert state["epoch"] % 1 > 0, "in the middle of an epoch, where memory counts"
    part_of(options.output, tmp_path / "run", step)
    again = pretrain(replace(options, output=tmp_path / "run", resume=True))
    assert_same_weights(tmp_path / "run", options.output)
    assert losses(tmp_path / "run", STEPS) == losses(options.output, STEPS)
    assert again.metrics == result.metrics


def test_a_checkpoint_has_the_memory_and_needs_it(tmp_path, whole):
    options, _ = whole
    part_of(options.output, tmp_path / "run", SAVED)
    path = tmp_path / "run" / f"checkpoint-{SAVED}" / "memory-0.safetensors"
    layers = load_file(path)
    assert [layers[name].shape for name in sorted(layers)] == [(24, 16, 16)]
    path.unlink()
    with pytest.raises(ArgumentError, match="has no memory of process 0"):
        pretrain(replace(options, output=tmp_path / "run", resume=True))


def test_a_run_without_memory(tmp_path, text):
    options = options_of(tmp_path / "whole", text, mem_len=0, steps=3, save_every=2)
    pretrain(options)
    assert not list(options.output.rglob("memory-*"))
    part_of(options.output, tmp_path / "run", 2)
    pretrain(replace(options, output=tmp_path / "run", resume=True))
    assert_same_weights(tmp_path / "run", options.output)


def test_a_resume_as_another_architecture_is_refused(tmp_path, text, whole):
    part_of(whole[0].output, tmp_path / "run", SAVED)
    xlnet = tiny_options(tmp_path / "run", text, resume=True)
    with pytest.raises(ArgumentError, match="arch was 'transfo-xl' and is 'xlnet'"):
        pretrain(xlnet)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "gpt"}, "arch must be one of xlnet, transfo-xl, got 'gpt'"),
        ({"perm_size": 4}, "perm_size is of --arch xlnet, not of transfo-xl"),
        ({"bi_data": True}, "bi_data is of --arch xlnet, not of transfo-xl"),
        ({"accelerate": False}, "accelerate is of --arch xlnet, not of transfo-xl"),
        ({"arch": "xlnet", "clamp_len": 9}, "clamp_len is of --arch transfo-xl, not of xlnet"),
        ({"arch": "xlnet", "same_length": False}, "same_length is of --arch transfo-xl"),
        ({"seq_len": 0}, "seq_len is 0, expected at least 1"),
        ({"mem_len": -1}, "mem_len is -1, expected at least 0"),
        ({"clamp_len": -1}, "clamp_len is -1, expected at least 0"),
        ({"dropatt": 1.0}, "dropatt is 1.0, expected 0 to 0.9"),
        ({"initial_memory": "ones"}, "initial_memory must be one of empty, zeros, got 'ones'"),
        ({"d_model": 15}, "d_model is 15 and n_head 2; expected a multiple, or d_head"),
        ({"d_model": 15, "d_head": 4}, "d_model is 15, expected an even number"),
        ({"same_length": True, "mem_len": 0}, "same_length needs mem_len >= 1"),
        ({"cutoffs": "20,10"}, "cutoffs is '20,10', expected whole numbers above 0 that grow"),
        ({"cutoffs": "many"}, "cutoffs is 'many', expected whole numbers"),
        ({"cutoffs": "10,9000"}, "expected increasing numbers between 0 and vocab_size"),
        ({"cutoffs": "10,20", "div_val": 9}, "div_val is 9 with d_embed 16 and 2 cutoffs"),
        ({"div_val": 2, "model": "x/y"}, "d_embed, cutoffs and div_val are those of --model"),
        ({"batch_size": 4000}, "give more text, fewer rows or a shorter seq_len"),
        ({"tokenizer": "/nowhere"}, "the tokenizer /nowhere does not exist"),
        ({"backend": "magic"}, "unknown backend 'magic'"),
    ],
    ids=str,
)
def test_bad_options(tmp_path, text, changes, words):
    """Told, and no empty folder is left."""
    with pytest.raises(ArgumentError, match=words):
        pretrain(replace(options_of(tmp_path / "run", text), **changes))
    assert not (tmp_path / "run").exists()
