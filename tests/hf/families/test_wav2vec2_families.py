"""Wav2Vec2-BERT and Wav2Vec2-Conformer: types of positions, heads, masks of the user's own."""

from __future__ import annotations

import pytest
import torch
from family_parity import LENGTH, accelerated, cast, frames_mask, outputs_of, random_frames, run
from hf_parity import F64, assert_tight
from tiny_speech import CASES, made, of_mask
from transformers import (
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2BertForSequenceClassification,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
)

import xlnet_fast

BERT, CONFORMER = CASES["bert relative"], CASES["conformer"]


@pytest.mark.parametrize("case", [BERT, CONFORMER])
def test_other_positions_keep_hugging_faces_code(case):
    model = case.model(position_embeddings_type="rotary").double()
    ours = accelerated(model)
    told = str(xlnet_fast.explain(ours)).replace("\n", " ")
    assert "the attention of 2 of 2 modules keeps its own code: its positions are 'rotary'" in told
    inputs = cast(case.inputs(2, LENGTH, True, 0), F64)
    valid = case.valid(inputs)
    assert_tight(run(ours, inputs, valid), run(model, inputs, valid))


def test_the_adapter_has_no_positions():
    model = BERT.model(add_adapter=True).double()
    ours = accelerated(model)
    told = str(xlnet_fast.explain(ours)).replace("\n", " ")
    assert "attention of 1 of 3 modules keeps its own code: it has no relative positions" in told
    inputs = cast(BERT.inputs(2, LENGTH, True, 0), F64)
    with torch.no_grad():
        assert_tight(outputs_of(ours, inputs), outputs_of(model, inputs))


def test_flex_attention_is_not_ours():
    model = BERT.model()
    model.set_attn_implementation("flex_attention")
    assert "flex_attention" in str(xlnet_fast.explain(accelerated(model)))


@pytest.mark.parametrize(
    "head", [Wav2Vec2BertForCTC, Wav2Vec2BertForSequenceClassification, Wav2Vec2ConformerForCTC]
)
def test_heads(head):
    case, config = BERT, Wav2Vec2BertConfig
    if head is Wav2Vec2ConformerForCTC:
        case, config = CONFORMER, Wav2Vec2ConformerConfig
    values = case.model().config.to_dict() | {"vocab_size": 8, "classifier_proj_size": 4}
    model = made(head, config, **values)().double()
    inputs = cast(case.inputs(2, LENGTH, True, 0), F64)
    labels = torch.tensor([[3, 4], [5, 6]]) if "CTC" in head.__name__ else torch.tensor([0, 1])
    inputs["labels"] = labels
    assert_tight(run(accelerated(model), inputs), run(model, inputs))


def masks():
    """(B, 1, T, T), all that may be called a mask."""
    shown = torch.rand(2, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.6
    shown[0, 0, 3] = False  # a frame that sees nothing
    shown[..., 0] |= torch.arange(LENGTH) != 3
    least = torch.finfo(F64).min
    return {
        "bool": shown,
        "additive": torch.zeros(shown.shape, dtype=F64).masked_fill(~shown, least),
        "of other numbers": torch.where(shown, 0.0, -3.0).double(),
        "of heads": shown.expand(-1, 2, -1, -1),
        "padding": frames_mask(2, LENGTH).bool()[:, None, None, :].expand(-1, -1, LENGTH, -1),
        "padding of queries too": (
            frames_mask(2, LENGTH).bool()[:, None, None, :]
            & frames_mask(2, LENGTH).bool()[:, None, :, None]
        ),
    }


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", masks())
def test_masks_of_the_users_own(implementation, kind):
    """All rows count here, padded ones too: a convolution over them reaches valid frames."""
    model = BERT.model(implementation).double()
    attentions = [
        next(m for m in each.modules() if isinstance(m, BERT.attention))
        for each in (accelerated(model), model)
    ]
    frames = random_frames(2, LENGTH, 16).double()
    positions = model.encoder.embed_positions(frames)
    inputs = {
        "hidden_states": frames,
        "attention_mask": masks()[kind],
        "relative_position_embeddings": positions,
    }
    with torch.no_grad():
        results = [{"out": each(**inputs)[0]} for each in attentions]
    assert_tight(*results)


def test_a_mask_that_changed_is_looked_at_again():
    model = accelerated(BERT.model("sdpa").double())
    attention = next(m for m in model.modules() if isinstance(m, BERT.attention))
    frames = random_frames(2, LENGTH, 16).double()
    mask = masks()["padding"].clone()
    inputs = {
        "hidden_states": frames,
        "attention_mask": mask,
        "relative_position_embeddings": model.encoder.embed_positions(frames),
    }
    with torch.no_grad():
        before = attention(**inputs)[0]
        mask[1, :, :, 2] = False
        after = attention(**inputs)[0]
        fresh = attention(**inputs | {"attention_mask": mask.clone()})[0]
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh)


def test_dropout_of_everything_is_hugging_faces():
    model = BERT.model(attention_dropout=1.0).double().train()
    inputs = cast(BERT.inputs(2, LENGTH, True, 0), F64)
    ours = accelerated(model)
    for each in (model, ours):
        for layer in each.encoder.layers:
            layer.self_attn_dropout.p = 0.0
    assert_tight(run(ours, inputs, of_mask(inputs)), run(model, inputs, of_mask(inputs)))
