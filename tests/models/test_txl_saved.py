"""Checkpoints that transformers 4.37.2 saved, and our own, through the Auto classes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from txl_parity import F64, GOLDEN, close, facts, model_of, recipe, recorded

from xlnet_fast.models.transfo_xl import (
    TransfoXLConfig,
    TransfoXLForSequenceClassification,
    TransfoXLLMHeadModel,
    TransfoXLModel,
)
from xlnet_fast.models.transfo_xl.embedding import inverse_frequencies

FOLDERS = sorted(path.name for path in (GOLDEN / "txl_checkpoints").iterdir())
DTYPES = {"bfloat16": torch.bfloat16}


def storages(model):
    """Names by where their memory is, of what is tied."""
    found = {}
    for name, x in model.state_dict(keep_vars=True).items():
        found.setdefault(x.data_ptr(), []).append(name)
    return sorted(sorted(names) for names in found.values() if len(names) > 1)


def scores_of(model):
    with torch.no_grad():
        return model(recipe.ids("checkpoint", 2, 9, 30)).prediction_scores


def load(folder, **options):
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    wrong = {key: list(x) for key, x in told.items() if x}
    assert not wrong, wrong
    return model


def test_there_is_one_of_each_kind():
    files = {path.name for path in (GOLDEN / "txl_checkpoints").rglob("*")}
    assert {"pytorch_model.bin", "model.safetensors", "config.json"} <= files
    assert sorted(key for key in recorded() if key.startswith("checkpoints/")) == [
        f"checkpoints/{name}" for name in FOLDERS
    ]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_checkpoint_of_the_last_release(name):
    model = load(GOLDEN / "txl_checkpoints" / name, dtype=DTYPES.get(name, "auto"))
    assert type(model) is TransfoXLLMHeadModel
    assert model.dtype == DTYPES.get(name, torch.float32)
    assert not model.training
    frequencies = model.double().transformer.pos_emb.inv_freq
    with torch.no_grad():  # a file in bfloat16 has rounded ones
        frequencies.copy_(inverse_frequencies(model.config.d_model))
    close(scores_of(model), recorded()[f"checkpoints/{name}"])


@pytest.mark.parametrize("name", FOLDERS)
def test_saved_again_it_is_the_same(name, tmp_path):
    model = load(GOLDEN / "txl_checkpoints" / name)
    tied = storages(model)
    assert tied, "no weight is tied"
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert storages(again) == tied
    assert again.dtype == model.dtype
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], x) for key, x in after.items())
    assert torch.equal(scores_of(model), scores_of(again))
    old, new = (x.config.to_dict() for x in (model, again))
    assert old | {"_name_or_path": "", "transformers_version": ""} == new | {
        "_name_or_path": "", "transformers_version": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["default", "untie_r False", "own projections", "own output weights",
             "d_embed 24, div_val 1", "no cutoffs, d_embed 24",
             "untie_r False, mem_len 5, d_embed 24"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_round_trip(name, dtype, tmp_path):
    model = model_of(name, dtype, dtype)
    model.save_pretrained(tmp_path)
    again = load(tmp_path, dtype=dtype)
    shared = [names for names in recipe.shared_names(again) if len(names) > 1]
    assert shared == facts()["shared"][name]
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for key, x in after.items():
        assert torch.equal(before[key], x), key
    assert torch.equal(scores_of(model), scores_of(again))


def test_changed_weights_of_own_output_are_kept(tmp_path):
    """Not tied, they must not become so by saving and loading."""
    model = model_of("own output weights")
    assert not torch.equal(
        model.crit.out_layers[0].weight, model.transformer.word_emb.emb_layers[0].weight
    )
    model.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path, dtype=F64).crit.out_layers[0].weight,
                       model.crit.out_layers[0].weight)  # fmt: skip


def test_a_body_from_a_checkpoint_with_a_head_and_back(tmp_path):
    folder = GOLDEN / "txl_checkpoints" / "safetensors"
    whole, body = load(folder), AutoModel.from_pretrained(folder)
    assert type(body) is TransfoXLModel
    given = recipe.ids("checkpoint", 2, 9, 30)
    with torch.no_grad():
        assert torch.equal(body(given)[0], whole.transformer(given)[0])
    body.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():  # what is tied came with the body
        assert torch.equal(again.transformer(given)[0], body(given)[0])
    assert torch.equal(again.crit.out_layers[0].weight, body.word_emb.emb_layers[0].weight)


def test_a_head_of_classification_from_a_language_model():
    folder = GOLDEN / "txl_checkpoints" / "bin"
    model, told = TransfoXLForSequenceClassification.from_pretrained(
        folder, num_labels=3, output_loading_info=True
    )
    assert set(told["missing_keys"]) == {"score.weight"}
    assert torch.equal(
        model.transformer.layers[1].dec_attn.r_net.weight,
        load(folder).transformer.layers[1].dec_attn.r_net.weight,
    )


def test_the_configuration_of_the_last_release():
    config = AutoConfig.from_pretrained(GOLDEN / "txl_checkpoints" / "bin")
    assert type(config) is TransfoXLConfig
    assert (config.cutoffs, config.tie_projs) == ([10, 20], [False, True, True])
    assert (config.hidden_size, config.num_hidden_layers, config.n_token) == (8, 2, 30)
