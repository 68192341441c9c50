"""enable and disable: later loaders give accelerated models; nothing else of HF changes."""

from __future__ import annotations

import pytest
import torch
from hf_parity import accelerated, random_ids, tiny_config, tiny_model, transformer_of
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    XLNetForSequenceClassification,
    XLNetLMHeadModel,
    XLNetModel,
)
from transformers.models.xlnet.modeling_xlnet import XLNetPreTrainedModel

import xlnet_fast
from xlnet_fast.hf.adoption import original_class


@pytest.fixture(autouse=True)
def disabled_afterwards():
    yield
    xlnet_fast.disable()


@pytest.fixture
def checkpoint(tmp_path):
    tiny_model(XLNetForSequenceClassification).save_pretrained(tmp_path)
    return tmp_path


class MyModel(XLNetForSequenceClassification):
    """A user's class with a loader of its own."""

    loaded = False

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        model = super().from_pretrained(*args, **kwargs)
        model.loaded = True
        return model


def test_from_pretrained(checkpoint):
    plain = XLNetForSequenceClassification.from_pretrained(checkpoint)
    assert not xlnet_fast.is_accelerated(plain)
    xlnet_fast.enable("reference", exact_dropout=True)
    model = XLNetForSequenceClassification.from_pretrained(checkpoint)
    assert xlnet_fast.is_accelerated(model)
    options = model.transformer._xlnet_fast_options
    assert (options.backend, options.exact_dropout) == ("reference", True)
    assert original_class(model) is XLNetForSequenceClassification
    expected = accelerated(plain, backend="reference")(random_ids(2, 5)).logits
    torch.testing.assert_close(model(random_ids(2, 5)).logits, expected)
    assert not xlnet_fast.is_accelerated(plain)


def test_the_other_loaders(checkpoint):
    xlnet_fast.enable()
    models = [
        AutoModel.from_pretrained(checkpoint),
        AutoModelForSequenceClassification.from_pretrained(checkpoint),
        AutoModel.from_config(tiny_config()),
        XLNetModel.from_pretrained(checkpoint, dtype=torch.bfloat16),
        XLNetLMHeadModel.from_pretrained(checkpoint),  # another head on the same checkpoint
    ]
    for model in models:
        assert xlnet_fast.is_accelerated(model), type(model)
        assert transformer_of(model.eval())(random_ids(2, 5))[0].isfinite().all()


def test_loading_info(checkpoint):
    xlnet_fast.enable()
    result = XLNetForSequenceClassification.from_pretrained(checkpoint, output_loading_info=True)
    model, info = result
    assert xlnet_fast.is_accelerated(model)
    assert not info["missing_keys"]


def test_subclass_with_its_own_loader(checkpoint):
    xlnet_fast.enable()
    model = MyModel.from_pretrained(checkpoint)
    assert original_class(model) is MyModel
    assert model.loaded
    assert xlnet_fast.is_accelerated(model)


def test_disable_ends_it_and_leaves_no_trace(checkpoint):
    before = dict(vars(XLNetPreTrainedModel))
    xlnet_fast.enable()
    model = XLNetForSequenceClassification.from_pretrained(checkpoint)
    xlnet_fast.disable()
    assert dict(vars(XLNetPreTrainedModel)) == before
    assert xlnet_fast.is_accelerated(model)  # made meanwhile: stays
    later = XLNetForSequenceClassification.from_pretrained(checkpoint)
    assert not xlnet_fast.is_accelerated(later)
    assert not xlnet_fast.is_accelerated(AutoModel.from_config(tiny_config()))


def test_repeated_calls():
    before = dict(vars(XLNetPreTrainedModel))
    xlnet_fast.disable()
    xlnet_fast.enable("sdpa")
    xlnet_fast.enable("reference")
    model = AutoModel.from_config(tiny_config())
    assert model._xlnet_fast_options.backend == "reference"
    xlnet_fast.disable()
    xlnet_fast.disable()
    assert dict(vars(XLNetPreTrainedModel)) == before


def test_unknown_backend_changes_nothing():
    xlnet_fast.enable("sdpa")
    with pytest.raises(xlnet_fast.ArgumentError, match=r"unknown backend 'fast'.*sdpa"):
        xlnet_fast.enable("fast")
    assert AutoModel.from_config(tiny_config())._xlnet_fast_options.backend == "sdpa"


def test_other_models_are_left_alone():
    xlnet_fast.enable()
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    assert type(AutoModel.from_config(config)) is BertModel
    assert not xlnet_fast.is_accelerated(XLNetModel(tiny_config()))  # no loader, no change
