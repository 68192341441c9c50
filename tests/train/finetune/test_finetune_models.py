"""Which weights a run begins with, and models and tokenizers that it refuses."""

from __future__ import annotations

import dataclasses
import json

import datasets
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_finetuning import checkpoint, short, text_rows, write_jsonl
from transformers import AutoConfig

from xlnet_fast.errors import ArgumentError
from xlnet_fast.text import train_tokenizer
from xlnet_fast.train.finetune import finetune

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` keeps of a file stays in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model"))


def test_the_trunk_is_that_of_the_checkpoint_and_the_config_is_changed(
    model, tmp_path, monkeypatch
):
    settings = short(model, tmp_path, learning_rate=1e-12, dropout=0.2)
    result = finetune(settings)
    before = load_file(model / "model.safetensors")
    after = load_file(result.model / "model.safetensors")
    for name, weight in before.items():
        if name.startswith("transformer."):
            torch.testing.assert_close(after[name], weight, rtol=1e-5, atol=1e-6)
    config = AutoConfig.from_pretrained(result.model)
    assert (config.dropout, config.summary_last_dropout) == (0.2, 0.2)
    assert config.id2label == {0: "bad", 1: "good"}
    scratch = dataclasses.replace(settings, from_scratch=True, seed=1, output=tmp_path / "scratch")
    other = load_file(finetune(scratch).model / "model.safetensors")
    name = "transformer.layer.0.rel_attn.q"
    assert not torch.allclose(other[name], before[name], atol=1e-2)


def test_a_fine_tuned_model_is_tuned_on_with_its_head(model, tmp_path):
    first = finetune(short(model, tmp_path, steps=30))
    again = short(first.model, tmp_path, learning_rate=1e-12, output=tmp_path / "again")
    second = finetune(again)
    assert second.metrics["eval"]["loss"] == pytest.approx(first.metrics["eval"]["loss"], rel=1e-3)
    # Other labels: the head begins anew.
    rows = [{**row, "label": row["label"].upper()} for row in text_rows(64)]
    other = short(first.model, tmp_path, learning_rate=1e-12, output=tmp_path / "other", eval=None)
    write_jsonl(tmp_path / "train.jsonl", rows)
    third = finetune(other)
    assert third.metrics["eval"]["loss"] != pytest.approx(first.metrics["eval"]["loss"], rel=1e-3)
    assert AutoConfig.from_pretrained(third.model).id2label == {0: "BAD", 1: "GOOD"}


def test_without_acceleration_the_run_is_the_same(model, tmp_path):
    results = [
        finetune(short(model, tmp_path, accelerate=fast, output=tmp_path / str(fast)))
        for fast in (True, False)
    ]
    one, two = (result.metrics["eval"]["loss"] for result in results)
    assert one == pytest.approx(two, rel=1e-3)


def test_bf16_with_gradient_checkpointing(model, tmp_path):
    result = finetune(short(model, tmp_path, precision="bf16", gradient_checkpointing=True))
    assert np.isfinite(result.metrics["eval"]["loss"])
    weights = load_file(result.model / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_a_tokenizer_that_does_not_fit(model, tmp_path):
    larger = train_tokenizer(
        "\n".join(f"word{i} other{i}" for i in range(900)), 900, tmp_path / "t"
    )
    words = "the tokenizer has .* pieces, .* only 300"
    with pytest.raises(ArgumentError, match=words):
        finetune(short(model, tmp_path, tokenizer=str(larger)))


def test_a_model_without_a_tokenizer(model, tmp_path):
    transformers.XLNetModel(AutoConfig.from_pretrained(model)).save_pretrained(tmp_path / "bare")
    with pytest.raises(ArgumentError, match="holds no tokenizer"):
        finetune(short(tmp_path / "bare", tmp_path))
    # A bare XLNetModel will do, with another's tokenizer.
    assert finetune(short(tmp_path / "bare", tmp_path, tokenizer=str(model))).metrics


def test_a_model_that_is_cut_short(model, tmp_path):
    damaged = tmp_path / "damaged"
    checkpoint(damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArgumentError, match="damaged or cut short"):
        finetune(short(damaged, tmp_path))
    deeper = checkpoint(tmp_path / "deeper")
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    with pytest.raises(ArgumentError, match=r"lacks 17 of the .* weights of XLNetModel"):
        finetune(short(deeper, tmp_path))
    assert not (tmp_path / "out" / "finetune.json").exists()
