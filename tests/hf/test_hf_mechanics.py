"""accelerate and restore as operations on modules: what they change, keep, survive and undo."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hf_parity import (
    CLASSES,
    F64,
    accelerated,
    assert_tight,
    flatten,
    hf_in,
    in_dtype,
    one_hot_targets,
    random_ids,
    run,
    tiny_model,
    transformer_of,
)
from torch import nn
from transformers import AutoModel, XLNetForMultipleChoice, XLNetLMHeadModel, XLNetModel

import xlnet_fast
from xlnet_fast.hf.families.xlnet.layers import FastLayer, FastRelativeAttention
from xlnet_fast.hf.families.xlnet.modules import FastModel

LENGTH = 6


def outputs_of(model):
    ids = random_ids(2, LENGTH)
    return flatten(dict(model(ids[None] if isinstance(model, XLNetForMultipleChoice) else ids)))


def assert_equal_outputs(a, b):
    first, second = outputs_of(a), outputs_of(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def snapshot(model):
    """Class and attributes of every module, values by identity."""
    return [
        (name, type(module), {key: id(value) for key, value in vars(module).items()})
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_restore_is_an_exact_undo(cls):
    model = tiny_model(cls)
    before, expected = snapshot(model), outputs_of(model)
    assert xlnet_fast.accelerate(model) is model
    assert xlnet_fast.is_accelerated(model)
    assert snapshot(model) != before
    outputs_of(model)
    assert xlnet_fast.restore(model) is model
    assert not xlnet_fast.is_accelerated(model)
    assert snapshot(model) == before
    for name, value in outputs_of(model).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_part_is_accelerated_and_parameters_stay(cls):
    model = tiny_model(cls)
    parameters = dict(model.named_parameters())
    keys = list(model.state_dict())
    xlnet_fast.accelerate(model)
    transformer = transformer_of(model)
    assert isinstance(transformer, FastModel)
    for layer in transformer.layer:
        assert isinstance(layer, FastLayer)
        assert isinstance(layer.rel_attn, FastRelativeAttention)
    assert list(model.state_dict()) == keys
    assert {name: id(p) for name, p in model.named_parameters()} == {
        name: id(p) for name, p in parameters.items()
    }
    assert isinstance(model, cls)
    assert type(model).__name__ == cls.__name__


def test_accelerate_twice_changes_options_only():
    model = tiny_model(XLNetLMHeadModel)
    once = snapshot(xlnet_fast.accelerate(model))
    twice = snapshot(xlnet_fast.accelerate(model))
    assert [kind for _, kind, _ in once] == [kind for _, kind, _ in twice]
    xlnet_fast.accelerate(model, "reference", exact_dropout=True)
    options = model.transformer._xlnet_fast_options
    assert (options.backend, options.exact_dropout) == ("reference", True)
    rows = xlnet_fast.explain(model).rows
    assert {row.backend for row in rows if row.op != "linear"} == {"reference"}


def test_restore_twice_and_of_what_was_not_accelerated():
    model = tiny_model(XLNetLMHeadModel)
    before = snapshot(model)
    xlnet_fast.restore(model)
    xlnet_fast.accelerate(model)
    xlnet_fast.restore(xlnet_fast.restore(model))
    assert snapshot(model) == before
    linear = nn.Linear(2, 2)
    assert xlnet_fast.restore(linear) is linear


def test_two_models_do_not_touch_each_other():
    first, second = tiny_model(XLNetModel), tiny_model(XLNetModel)
    xlnet_fast.accelerate(first)
    assert type(second) is XLNetModel
    assert not xlnet_fast.is_accelerated(second)
    assert XLNetModel.forward is not FastModel.forward


@pytest.mark.parametrize("cls", [XLNetModel, XLNetLMHeadModel])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies(cls, how):
    model = accelerated(tiny_model(cls), backend="reference")
    if how == "deepcopy":
        copied = copy.deepcopy(model)
    elif how == "pickle":
        copied = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    assert xlnet_fast.is_accelerated(copied)
    assert transformer_of(copied)._xlnet_fast_options.backend == "reference"
    assert_equal_outputs(copied, model)
    ours = {id(p) for p in model.parameters()}
    assert not ours & {id(p) for p in copied.parameters()}
    xlnet_fast.restore(copied)
    assert type(copied) is cls
    assert xlnet_fast.is_accelerated(model)
    assert_equal_outputs(copied, xlnet_fast.restore(model))


def test_shared_parameters_stay_shared_in_a_copy():
    copied = copy.deepcopy(accelerated(tiny_model(XLNetLMHeadModel)))
    assert copied.lm_loss.weight is copied.transformer.word_embedding.weight


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_save_and_load(cls, tmp_path):
    model = accelerated(tiny_model(cls))
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path).eval()
    assert loaded.config.architectures == [cls.__name__]
    assert not xlnet_fast.is_accelerated(loaded)
    again = type(model).from_pretrained(tmp_path).eval()  # a class that accelerate may have made
    for candidate in (loaded, again):
        candidate = xlnet_fast.accelerate(candidate)
        for name, value in candidate.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name
        # Loaded weights lie elsewhere in memory, which may change the last bit of a product.
        assert_tight(outputs_of(candidate.double()), outputs_of(copy.deepcopy(model).double()))
    assert isinstance(transformer_of(AutoModel.from_pretrained(tmp_path)), XLNetModel)


def test_class_of_an_accelerated_model_makes_working_models():
    """EMA and sharding wrappers call ``type(model)(config)``: its layers are HF's until asked."""
    model = accelerated(tiny_model(XLNetModel))
    fresh = type(model)(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    expected = outputs_of(model)
    for candidate in (fresh, xlnet_fast.accelerate(fresh), xlnet_fast.restore(fresh)):
        for name, value in outputs_of(candidate).items():
            torch.testing.assert_close(value, expected[name])
    assert type(fresh) is XLNetModel


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_cast_after_accelerate(dtype):
    model = tiny_model(XLNetLMHeadModel)
    before, after = accelerated(model).to(dtype), accelerated(copy.deepcopy(model).to(dtype))
    assert_equal_outputs(before, after)
    method = {torch.float16: "half", torch.bfloat16: "bfloat16", torch.float64: "double"}[dtype]
    assert_equal_outputs(getattr(accelerated(model), method)(), after)


def test_move_after_accelerate():
    """The meta device is one that every machine has: shapes follow, and nothing stays behind."""
    model = accelerated(tiny_model(XLNetLMHeadModel)).to("meta")
    inputs = {"input_ids": random_ids(2, LENGTH).to("meta"), "labels": random_ids(2, 3).to("meta")}
    inputs["target_mapping"] = torch.empty(2, 3, LENGTH, device="meta")
    inputs["attention_mask"] = torch.empty(2, LENGTH, device="meta")
    output = model(**inputs)
    assert output.logits.device.type == "meta"
    assert output.logits.shape == (2, 3, 50)
    output.loss.backward()


def test_data_parallel_replicas():
    """nn.DataParallel copies __dict__ and replaces parameters by plain tensors."""
    model = accelerated(tiny_model(XLNetModel))
    modules = list(model.modules())
    replicas = {module: module._replicate_for_data_parallel() for module in modules}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            replica._modules[name] = replicas[child]
            setattr(replica, name, replicas[child])
        for name, parameter in module._parameters.items():
            if parameter is not None:
                setattr(replica, name, parameter.detach().clone())
    with torch.no_grad():  # or the copies, which train nothing, fuse what the model does not
        assert_equal_outputs(replicas[model], model)
        assert_equal_outputs(nn.DataParallel(model), model)


def test_hooks_stay_and_fire():
    model = tiny_model(XLNetModel)
    seen = []
    attention = model.layer[0].rel_attn
    attention.register_forward_hook(lambda m, args, out: seen.append(("attention", out[0].shape)))
    model.layer[1].register_forward_pre_hook(lambda m, args: seen.append(("layer", args[0].shape)))
    model.register_forward_hook(lambda m, args, out: seen.append(("model", out[0].shape)))
    model.layer[0].ff.register_forward_hook(lambda m, args, out: out * 2)
    model(random_ids(2, LENGTH))
    theirs, expected = list(seen), outputs_of(hf_in(model, F64))
    seen.clear()
    ours = accelerated(model)
    assert_tight(outputs_of(ours.double()), expected)
    assert seen == theirs
    attention = ours.layer[0].rel_attn
    attention.register_full_backward_hook(lambda m, grads, outs: seen.append(("back", len(outs))))
    ours(random_ids(2, LENGTH))[0].sum().backward()
    assert seen[-1][0] == "back"


class Doubled(nn.Module):
    """A parametrization: the parameter that is stored, times two."""

    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("when", ["before", "after"])
def test_parametrized_parameters(when):
    model, oracle = tiny_model(XLNetModel, F64), hf_in(tiny_model(XLNetModel, F64), F64)
    if when == "after":
        xlnet_fast.accelerate(model)
    for candidate in (model, oracle):
        for layer in candidate.layer:
            for module, name in ((layer.rel_attn, "q"), (layer.rel_attn, "r_w_bias")):
                nn.utils.parametrize.register_parametrization(module, name, Doubled())
            nn.utils.parametrize.register_parametrization(layer.ff.layer_1, "weight", Doubled())
    xlnet_fast.accelerate(model)
    inputs = in_dtype({"input_ids": random_ids(2, LENGTH)}, F64)
    inputs["target_mapping"] = one_hot_targets([[0], [3]], LENGTH).double()
    assert_tight(run(model, inputs), run(oracle, inputs))
    attention = model.layer[0].rel_attn
    assert isinstance(attention, FastRelativeAttention)
    if when == "before":
        xlnet_fast.restore(model)
        assert not isinstance(attention, FastRelativeAttention)
    else:
        with pytest.raises(xlnet_fast.ArgumentError, match=r"Parametrized.*changed after"):
            xlnet_fast.restore(model)
        assert xlnet_fast.is_accelerated(model)
        for layer in model.layer:
            for name in ("q", "r_w_bias"):
                nn.utils.parametrize.remove_parametrizations(layer.rel_attn, name, False)
        xlnet_fast.restore(model)
        assert type(model) is XLNetModel
