"""Conversions of the folders that Hugging Face's own Transformer-XL left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from converted_transfo_xl import F64, TIGHT, loaded, losses_of, text_of, vocabulary_of
from original_transfo_xl import Original

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl import (
    TransfoXLConfig,
    TransfoXLForSequenceClassification,
    TransfoXLLMHeadModel,
    TransfoXLModel,
)
from xlnet_fast.models.transfo_xl.convert import convert


@dataclass(frozen=True)
class Folder:
    """A folder as 4.37 wrote it, and the model in it."""

    path: Path
    model: Any


def hugging_face(folder: Path, cls: Any = TransfoXLLMHeadModel, **options: Any) -> Folder:
    sizes = {
        "vocab_size": 19, "cutoffs": [5, 11], "d_model": 8, "d_embed": 8, "n_head": 2, "d_head": 3,
        "d_inner": 10, "n_layer": 2, "div_val": 2, "mem_len": 5, "clamp_len": 4, "dropout": 0.1,
    }  # fmt: skip
    config = TransfoXLConfig(**{**sizes, **options})
    model = cls(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=F64) * 0.4)
    folder.mkdir()
    written = {**config.to_dict(), "architectures": [cls.__name__], "tie_weight": True}
    for name in ("initial_memory", "tie_word_embeddings", "dtype", "torch_dtype"):
        written.pop(name, None)
    (folder / "config.json").write_text(json.dumps(written))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return Folder(folder, model)


@pytest.mark.parametrize(
    "options",
    [{}, {"div_val": 1, "d_embed": 6}, {"untie_r": False, "cutoffs": [], "div_val": 1}],
    ids=["usual", "one_table", "shared_biases"],
)
def test_a_folder_of_hugging_face_gives_what_it_gave(options, tmp_path):
    old = hugging_face(tmp_path / "old", **options)
    words = [f"word{number}" for number in range(19)]
    torch.save(
        {"idx2sym": words, "sym2idx": {w: i for i, w in enumerate(words)}}, old.path / "vocab.bin"
    )
    found = convert(old.path, tmp_path / "out", "hf")
    assert dict(found.rows)["turned round"] == "nothing"
    assert "starts with zeros" in dict(found.rows)["memory"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"config.json", "model.safetensors", "vocab.json"}
    assert "pytorch_model.bin" not in names
    assert vocabulary_of(tmp_path / "out") == words
    new, text = loaded(tmp_path / "out"), text_of(Original())
    check_same(new, old.model)
    for one, other in zip(losses_of(new, text), losses_of(old.model, text), strict=True):
        torch.testing.assert_close(one, other, rtol=TIGHT, atol=TIGHT)
    assert new.config.eos_token_id == 0


def check_same(new: Any, old: Any) -> None:
    """Every weight is the same bit by bit."""
    new, old = new.state_dict(), old.state_dict()
    assert new.keys() == old.keys()
    assert [name for name in new if not torch.equal(new[name], old[name])] == []


def test_tied_weights_may_be_left_out_and_may_not_differ(tmp_path):
    old = hugging_face(tmp_path / "old")
    path = old.path / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    tied = [name for name in state if ".out_layers." in name and name.endswith("weight")]
    left_out = {name: x for name, x in state.items() if name not in tied}
    torch.save(left_out, path)
    convert(old.path, tmp_path / "out", "hf")
    assert torch.equal(loaded(tmp_path / "out").state_dict()[tied[0]], state[tied[0]])
    torch.save({**state, tied[0]: state[tied[0]] + 1}, path)
    with pytest.raises(
        ArgumentError, match=r"words of the softmax are those of the embeddings by co"
    ):
        convert(old.path, tmp_path / "other", "hf")
    config = json.loads((old.path / "config.json").read_text())
    (old.path / "config.json").write_text(json.dumps({**config, "tie_weight": False}))
    convert(old.path, tmp_path / "other", "hf")
    new = loaded(tmp_path / "other").state_dict()
    assert torch.equal(new[tied[0]], state[tied[0]] + 1)
    assert torch.equal(new[tied[1]], state[tied[1]])


@pytest.mark.parametrize("cls", [TransfoXLModel, TransfoXLForSequenceClassification])
def test_models_without_the_softmax(cls, tmp_path):
    old = hugging_face(tmp_path / "old", cls, num_labels=3, pad_token_id=0)
    convert(old.path, tmp_path / "out", "hf")
    new = loaded(tmp_path / "out", cls)
    check_same(new, old.model)
    assert new.config.architectures == [cls.__name__]


def test_weights_in_several_files(tmp_path):
    old = hugging_face(tmp_path / "old")
    state = torch.load(old.path / "pytorch_model.bin", weights_only=True)
    names = list(state)
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, own in parts.items():
        torch.save({name: state[name] for name in own}, old.path / file)
    (old.path / "pytorch_model.bin").unlink()
    index = {name: file for file, own in parts.items() for name in own}
    (old.path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    convert(old.path, tmp_path / "out", "hf")
    check_same(loaded(tmp_path / "out"), old.model)


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {"score": 3}}])
def test_an_index_that_names_no_files(content, tmp_path):
    old = hugging_face(tmp_path / "old")
    (old.path / "pytorch_model.bin").unlink()
    (old.path / "pytorch_model.bin.index.json").write_text(json.dumps(content))
    with pytest.raises(ArgumentError, match=r"index\.json has no weight_map, expected weights and"):
        convert(old.path, tmp_path / "out", "hf")


@pytest.mark.parametrize("entry", [{"id2label": 3}, {"num_labels": "two"}])
def test_entries_that_every_model_has_are_of_their_types(entry, tmp_path):
    old = hugging_face(tmp_path / "old")
    path = old.path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))
    with pytest.raises(ArgumentError, match=r"config\.json has an entry of another type"):
        convert(old.path, tmp_path / "out", "hf")


def test_code_and_quantization_that_a_config_names_are_not_kept(tmp_path):
    old = hugging_face(tmp_path / "old")
    path, named = old.path / "config.json", {"AutoModelForCausalLM": "own.Model"}
    entries = {"auto_map": named, "quantization_config": {}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    convert(old.path, tmp_path / "out", "hf")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not entries.keys() & written.keys()
    check_same(loaded(tmp_path / "out"), old.model)
