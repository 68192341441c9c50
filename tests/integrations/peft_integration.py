"""PEFT on the feed-forward layers as on HF's, and on the attention by ``linear_attention``."""

from __future__ import annotations

import copy

import pytest
import torch
from hf_parity import F64, accelerated, padding, random_ids, tiny_model
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    get_peft_model,
)
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize
from transformers import XLNetConfig, XLNetForSequenceClassification

import xlnet_fast

RANK, STEPS = 2, 6
ATTENTION = ["q", "k", "v", "o"]
INPUTS = {
    "input_ids": random_ids(4, 6),
    "attention_mask": padding(4, 6, "left"),
    "labels": torch.tensor([0, 1, 1, 0]),
}


def linear(model):
    return xlnet_fast.linear_attention(accelerated(model))


def plain_model(dtype=torch.float32):
    return tiny_model(XLNetForSequenceClassification, dtype)


def trained(model) -> list[float]:
    """The losses of a few steps; in eval mode afterwards."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(STEPS):
        loss = model(**INPUTS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    return losses


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(**INPUTS).logits


def test_lora_on_the_feed_forward_layers_learns_what_it_learns_in_hugging_face():
    results = []
    for model in (plain_model(F64), accelerated(plain_model(F64))):
        torch.manual_seed(0)
        config = LoraConfig(r=RANK, target_modules=["layer_1", "layer_2"])
        adapted = get_peft_model(model, config)
        results.append((trained(adapted), logits(adapted), logits(adapted.merge_and_unload())))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


class LowRank(nn.Module):
    """W + B A / (rank / alpha), what LoRA means, of HF's parameter (H, N, D)."""

    def __init__(self, layer, name: str, scaling: float) -> None:
        super().__init__()
        self.a = nn.Parameter(layer.lora_A["default"].weight.detach().clone())
        self.b = nn.Parameter(layer.lora_B["default"].weight.detach().clone())
        self.name, self.scaling = name, scaling

    def forward(self, weight):
        change = self.scaling * (self.b @ self.a)  # (out, in)
        return weight + (change if self.name == "o" else change.t()).reshape(weight.shape)


def test_lora_on_attention_learns_what_its_formula_says_of_hugging_faces_parameters():
    torch.manual_seed(0)
    plain = plain_model(F64)
    adapted = get_peft_model(
        linear(plain), LoraConfig(r=RANK, lora_alpha=3, target_modules=ATTENTION)
    )
    plain.requires_grad_(False)
    pairs = zip(plain.transformer.layer, adapted.get_base_model().transformer.layer, strict=True)
    for layer, ours in pairs:
        for name in ATTENTION:
            change = LowRank(getattr(ours.rel_attn, name), name, 3 / RANK)
            parametrize.register_parametrization(layer.rel_attn, name, change)
    expected, found = trained(plain), trained(adapted)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logits(adapted), logits(plain), rtol=1e-10, atol=1e-10)


def test_what_is_trained_is_of_low_rank():
    model = linear(plain_model())
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules=ATTENTION))
    config = model.config
    width, heads = config.d_model, config.n_head * config.d_head
    count, _ = adapted.get_nb_trainable_parameters()
    assert count == config.n_layer * len(ATTENTION) * RANK * (width + heads)


def test_the_count_for_a_large_model():
    """That of xlnet-large-cased, by one of its 24 layers."""
    config = XLNetConfig(vocab_size=100, d_model=1024, n_layer=1, n_head=16, d_inner=4096)
    with torch.device("meta"):
        model = xlnet_fast.accelerate(XLNetForSequenceClassification(config))
        names = [f"rel_attn.{name}" for name in ATTENTION]
        as_experts = LoraConfig(r=8, target_modules=[], target_parameters=names)
        before = get_peft_model(copy.deepcopy(model), as_experts).get_nb_trainable_parameters()
        xlnet_fast.linear_attention(model)
        adapted = get_peft_model(model, LoraConfig(r=8, target_modules=ATTENTION))
    assert 24 * before[0] == 62_914_560
    assert 24 * adapted.get_nb_trainable_parameters()[0] == 1_572_864


CONFIGS = {
    "lora": LoraConfig(r=RANK, target_modules=ATTENTION),
    "all-linear": LoraConfig(r=RANK, target_modules="all-linear", modules_to_save=["logits_proj"]),
    "dora": LoraConfig(r=RANK, target_modules=ATTENTION, use_dora=True),
    "rank-stabilised": LoraConfig(r=RANK, target_modules=["q", "r"], use_rslora=True),
    "ia3": IA3Config(target_modules=["k", "v", "layer_2"], feedforward_modules=["layer_2"]),
    "loha": LoHaConfig(r=RANK, target_modules=["q", "o"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_merged_unloaded_saved_and_loaded(name, tmp_path):
    torch.manual_seed(0)
    plain = plain_model(F64)
    before = logits(plain)
    adapted = get_peft_model(linear(plain), copy.deepcopy(CONFIGS[name]))
    trained(adapted)
    expected = logits(adapted)
    assert (expected - before).abs().max() > 1e-3

    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(linear(plain), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=0)

    with pytest.raises(xlnet_fast.ArgumentError, match="merge or unload"):
        xlnet_fast.restore(adapted)

    unloaded = xlnet_fast.restore(copy.deepcopy(adapted).unload())
    if name != "all-linear":  # which saves the classifier, too
        assert type(unloaded) is XLNetForSequenceClassification
        state = plain.state_dict()
        assert unloaded.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in unloaded.state_dict().items())

    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-10, atol=1e-10)
    merged.save_pretrained(tmp_path / "merged")
    loaded = XLNetForSequenceClassification.from_pretrained(
        tmp_path / "merged", dtype=torch.float32
    )
    torch.testing.assert_close(logits(loaded.eval()).to(F64), expected, rtol=1e-5, atol=1e-5)
    loaded = plain_model(F64)
    loaded.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"))
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-10, atol=1e-10)
    restored = xlnet_fast.restore(merged)
    assert not xlnet_fast.is_accelerated(restored)
    torch.testing.assert_close(logits(restored), expected, rtol=1e-10, atol=1e-10)


def test_dropout_of_lora_is_drawn_and_checkpointing_repeats_it():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = LoraConfig(r=RANK, lora_dropout=0.5, target_modules=[*ATTENTION, "r"])
        model = linear(plain_model(F64))
        adapted = get_peft_model(model, config).train()
        nn.init.normal_(
            adapted.get_base_model().transformer.layer[0].rel_attn.q.lora_B.default.weight
        )
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(1)
        losses = [adapted(**INPUTS).loss for _ in range(2)]
        assert not torch.equal(*losses)
        losses[0].backward()
        gradients.append({n: p.grad for n, p in adapted.named_parameters() if p.requires_grad})
    assert any(grad.any() for grad in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)


def test_adapting_them_as_experts_is_told():
    lora = LoraConfig(r=RANK, target_modules=[], target_parameters=["rel_attn.q"])
    adapted = get_peft_model(accelerated(plain_model()), lora)
    with pytest.warns(UserWarning, match="linear_attention"):
        logits(adapted)
