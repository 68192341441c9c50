"""Conversions of Transformer-XL: the losses of the original code by hand; what is read."""

from __future__ import annotations

import json
import runpy
import sys
import types
from dataclasses import replace
from typing import Any

import pytest
import torch
from converted_transfo_xl import (
    F32,
    LENGTHS,
    Vocab,
    check_losses,
    loaded,
    losses_of,
    text_of,
    vocabulary_of,
    words_of,
    write_kimiyoung,
    write_nvidia,
)
from original_transfo_xl import Original, losses, weights_of
from torch import nn

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl.convert import convert, kimiyoung
from xlnet_fast.models.transfo_xl.tokenization import TransfoXLTokenizer

NO_CLUSTERS: dict[str, Any] = {"cutoffs": (), "tie_projs": (False,)}
THREE: dict[str, Any] = {"cutoffs": (4, 8, 13), "tie_projs": (False, True, True, True)}
CASES = {
    "two_clusters": {},
    "no_clusters": NO_CLUSTERS,
    "narrow_embeddings": {"d_embed": 6},
    "narrow_no_clusters": {"d_embed": 6, **NO_CLUSTERS},
    "narrow_untied_projections": {"d_embed": 6, "tie_projs": (False, False, False)},
    "three_clusters": THREE,
    "div_2": {"div_val": 2, **THREE},
    "div_2_wide_embeddings": {"div_val": 2, "d_embed": 12, "tie_projs": (True, False, True)},
    "div_4": {"div_val": 4, "d_embed": 16},
    "div_4_untied": {"div_val": 4, "d_embed": 16, "tied": False, "tie_projs": (False,) * 3},
    "untied_words": {"tied": False},
    "same_length": {"same_length": True},
    "same_length_short_memory": {"same_length": True, "mem_len": 2},
    "pre_lnorm": {"pre_lnorm": True},
    "clamped": {"clamp_len": 3},
    "no_memory": {"mem_len": 0},
    "all": {
        **THREE, "div_val": 2, "d_embed": 12, "pre_lnorm": True, "same_length": True,
        "clamp_len": 4,
    },
}  # fmt: skip
UNTIED = {f"{name}_untied_r": {**CASES[name], "untie_r": True} for name in ("two_clusters", "all")}


# ---- the losses ----


@pytest.mark.parametrize("name", [*CASES, *UNTIED])
def test_the_losses_are_those_of_the_original_code(name, tmp_path):
    original = Original(**{**CASES, **UNTIED}[name])
    convert(write_kimiyoung(tmp_path, original), tmp_path / "out", "kimiyoung")
    check_losses(tmp_path / "out", original)


@pytest.mark.parametrize("name", CASES)
def test_the_losses_are_those_of_nvidias_code(name, tmp_path):
    original = replace(Original(**CASES[name]), more_keys=1)
    convert(write_nvidia(tmp_path, original), tmp_path / "out", "nvidia")
    check_losses(tmp_path / "out", original)


@pytest.mark.parametrize("kind", ["kimiyoung", "nvidia"])
@pytest.mark.parametrize("name", ["two_clusters", "div_4", "all"])
def test_in_single_precision_the_error_is_that_of_the_code_by_hand(name, kind, tmp_path):
    original = replace(Original(**CASES[name]), more_keys=int(kind == "nvidia"))
    write = write_nvidia if kind == "nvidia" else write_kimiyoung
    convert(write(tmp_path, original, F32), tmp_path / "out", kind)
    check_losses(tmp_path / "out", original, F32)


def test_every_thing_that_is_changed_matters(tmp_path):
    """Each left out by itself gives other losses by far, so the tests above would tell."""
    original = replace(Original(**CASES["same_length"]), more_keys=1)
    convert(write_nvidia(tmp_path, original), tmp_path / "out", "nvidia")
    text = text_of(original)
    right = torch.cat(losses(original, weights_of(original), text, LENGTHS), dim=1)

    def away(change: Any) -> float:
        model = loaded(tmp_path / "out")
        change(model)
        return float((torch.cat(losses_of(model, text), dim=1) - right).abs().max())

    def not_flipped(model: Any) -> None:
        with torch.no_grad():
            for weight in (model.crit.cluster_weight, model.crit.cluster_bias):
                weight.copy_(weight.flip(0).clone())

    assert away(lambda model: None) < 1e-10
    assert away(not_flipped) > 0.1
    assert away(lambda model: setattr(model.config, "initial_memory", "zeros")) > 0.01
    assert away(lambda model: model.reset_memory_length(original.mem_len)) > 0.001


# ---- what is read, and what is written ----


def test_nvidias_vocabulary_is_read_and_nothing_of_it_is_run(tmp_path):
    original = Original()
    found = convert(write_nvidia(tmp_path, original), tmp_path / "out", "nvidia")
    assert "utils.vocabulary" not in sys.modules
    assert dict(found.rows)["vocabulary"] == "19 words"
    assert dict(found.rows)["turned round"] == "cluster_weight, cluster_bias"
    assert dict(found.rows)["memory"] == "mem_len 5, starts empty; all of it is seen"
    assert loaded(tmp_path / "out").config.eos_token_id == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["initial_memory"] == "empty"
    assert vocabulary_of(tmp_path / "out") == words_of(original)
    tokenizer = TransfoXLTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("word3 word1 <eos> word18")["input_ids"] == [3, 1, 0, 18]
    assert len(tokenizer) == original.n_token


def test_the_format_before_zip_is_read(tmp_path):
    original = Original(div_val=2)
    path = write_nvidia(tmp_path, original, _use_new_zipfile_serialization=False)
    assert path.read_bytes()[:2] != b"PK"
    convert(path, tmp_path / "out", "nvidia")
    check_losses(tmp_path / "out", original)


def test_a_state_dict_alone_and_what_it_does_not_tell(tmp_path):
    original = Original(same_length=True, clamp_len=3)
    path = tmp_path / "state.pt"
    prefixed = {f"module.{name}": x for name, x in weights_of(original).items()}  # of DataParallel
    torch.save(prefixed, path)
    with pytest.raises(ArgumentError, match="does not tell where they begin: give --cutoffs"):
        convert(path, tmp_path / "out", "kimiyoung")
    with pytest.raises(
        ArgumentError, match="nothing of pre_lnorm, same_length, clamp_len: give --"
    ):
        convert(path, tmp_path / "out", "kimiyoung", given={"cutoffs": [5, 11], "mem_len": 5})
    given = {
        "cutoffs": [5, 11], "mem_len": 5, "clamp_len": 3, "same_length": True, "pre_lnorm": False,
    }  # fmt: skip
    found = convert(path, tmp_path / "out", "kimiyoung", given=given)
    assert dict(found.rows)["vocabulary"] == "none"
    assert loaded(tmp_path / "out").config.eos_token_id is None
    check_losses(tmp_path / "out", original)


def test_the_use_of_a_model_may_be_chosen_anew(tmp_path):
    original = Original(same_length=True, mem_len=3)
    path = write_kimiyoung(tmp_path, original, mem_len=70, clamp_len=5, same_length=False)
    given = {"mem_len": 3, "clamp_len": -1, "same_length": True}
    convert(path, tmp_path / "out", "kimiyoung", given=given)
    check_losses(tmp_path / "out", original)
    with pytest.raises(ArgumentError, match="pre_lnorm is True as given and False by args in"):
        convert(path, tmp_path / "other", "kimiyoung", given={"pre_lnorm": True})


def test_cutoffs_of_a_known_data_set(tmp_path, monkeypatch):
    monkeypatch.setitem(kimiyoung.CUTOFFS, "wt103", (5, 11))
    original = Original()
    path = write_kimiyoung(tmp_path, original, cutoffs=None, adaptive=True, dataset="wt103")
    found = convert(path, tmp_path / "out", "kimiyoung")
    assert found.notes == ["the cutoffs are those that the original has for wt103"]
    check_losses(tmp_path / "out", original)


def test_a_vocabulary_of_ones_own(tmp_path):
    original, words = Original(), tmp_path / "words.txt"
    path = write_kimiyoung(tmp_path, original)
    words.write_text("\n".join(words_of(original)))
    convert(path, tmp_path / "out", "kimiyoung", vocabulary=words)
    assert vocabulary_of(tmp_path / "out") == words_of(original)
    words.write_text("\n".join(words_of(original)[:-1]))
    with pytest.raises(ArgumentError, match="has 18 words and the model 19"):
        convert(path, tmp_path / "other", "kimiyoung", vocabulary=words)


def test_half_precision_and_its_frequencies_are_kept(tmp_path):
    original = Original()
    path = tmp_path / "export.pt"
    state = {name: x.half() for name, x in weights_of(original).items()}
    torch.save({"state_dict": state, "args": original.args()}, path)
    found = convert(path, tmp_path / "out", "kimiyoung")
    assert dict(found.rows)["parameters"].endswith("torch.float16")
    assert "off the formula" in found.notes[0]
    saved = loaded(tmp_path / "out", dtype=torch.float16)
    assert torch.equal(saved.transformer.pos_emb.inv_freq, state["pos_emb.inv_freq"])


def test_parameters_are_counted_once(tmp_path):
    for number, name in enumerate(("all", "narrow_embeddings", "div_4_untied")):
        source = tmp_path / str(number)
        source.mkdir()
        found = convert(
            write_kimiyoung(source, Original(**CASES[name])), source / "out", "kimiyoung"
        )
        counted = sum(parameter.numel() for parameter in loaded(source / "out").parameters())
        assert dict(found.rows)["parameters"].split(",")[:-1] == f"{counted:,}".split(",")


# ---- the original's own file ----


def test_the_export_beside_the_originals_source(tmp_path, monkeypatch):
    """A model as the original pickles it is refused, and the program that is named exports it."""
    original = Original(div_val=2, clamp_len=3)
    model = mem_transformer(original)
    monkeypatch.setitem(sys.modules, "mem_transformer", types.ModuleType("mem_transformer"))
    for cls in {type(module) for module in model.modules()} & {OriginalModel, Attention}:
        monkeypatch.setattr(cls, "__module__", "mem_transformer")
        setattr(sys.modules["mem_transformer"], cls.__name__, cls)
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(ArgumentError, match=r"mem_transformer\.\w+.* run .*export_original\.py"):
        convert(tmp_path / "model.pt", tmp_path / "out", "kimiyoung")
    torch.save(types.SimpleNamespace(vocab=Vocab(words_of(original))), tmp_path / "cache.pt")
    arguments = [tmp_path / name for name in ("model.pt", "export.pt", "cache.pt")]
    monkeypatch.setattr(sys, "argv", ["export_original.py", *map(str, arguments)])
    runpy.run_path(str(kimiyoung.EXPORT), run_name="__main__")
    convert(tmp_path / "export.pt", tmp_path / "out", "kimiyoung")
    check_losses(tmp_path / "out", original)
    assert vocabulary_of(tmp_path / "out") == words_of(original)


class Attention(nn.Module):
    """Has what the export looks for."""

    def __init__(self, original: Original) -> None:
        super().__init__()
        self.pre_lnorm, self.dropatt = original.pre_lnorm, nn.Dropout(0.0)


class OriginalModel(nn.Module):
    """The original's attributes around its weights."""


def mem_transformer(original: Original) -> nn.Module:
    model = OriginalModel()
    for name, value in weights_of(original).items():
        place, _, last = name.rpartition(".")
        _module_at(model, place, original).register_parameter(last, nn.Parameter(value))
    model.drop = nn.Dropout(0.1)
    model.word_emb.cutoffs = [*original.cutoffs, original.n_token]
    model.word_emb.div_val = original.div_val
    model.attn_type, model.sample_softmax, model.ext_len = 0, -1, 0
    for name in ("mem_len", "same_length", "clamp_len"):
        setattr(model, name, getattr(original, name))
    return model


def _module_at(model: nn.Module, place: str, original: Original) -> nn.Module:
    for name in place.split(".") if place else ():
        children = dict(model.named_children())
        if name not in children:
            kind = {"layers": nn.ModuleList, "dec_attn": Attention}.get(name, nn.Module)
            child = Attention(original) if kind is Attention else kind()
            model.add_module(name, child)
        model = dict(model.named_children())[name]
    return model
