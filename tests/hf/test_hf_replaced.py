"""What users put in the place of HF's parts, at any time, is called; ``explain`` names it."""

from __future__ import annotations

import copy

import pytest
import torch
from hf_parity import (
    F64,
    accelerated,
    assert_tight,
    hf_in,
    in_dtype,
    one_hot_targets,
    padding,
    random_ids,
    random_mems,
    run,
    tiny_config,
    tiny_model,
)
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers.activations import GELUActivation
from transformers.models.xlnet.modeling_xlnet import (
    XLNetFeedForward,
    XLNetForSequenceClassification,
    XLNetLayer,
    XLNetModel,
    XLNetRelativeAttention,
)

import xlnet_fast
from xlnet_fast import ArgumentError
from xlnet_fast.hf.families.xlnet.layers import takes_context
from xlnet_fast.hf.patches import patched

BATCH, LENGTH = 2, 6


def inputs_of(streams: int, masks: bool = True) -> dict:
    """With all there is; HF's "uni" takes no masks of a batch."""
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "token_type_ids": random_ids(2, LENGTH) % 2}
    inputs["mems"] = random_mems(BATCH, 3)
    if masks:
        inputs["attention_mask"] = padding(BATCH, LENGTH, "left")
    if streams == 2:
        inputs["target_mapping"] = one_hot_targets([[4, 0], [1, -1]], LENGTH)
    if streams == 2 and masks:
        inputs["perm_mask"] = torch.ones(BATCH, LENGTH, LENGTH).triu()
    return in_dtype(inputs, F64)


def notes_of(model) -> str:
    return " ".join(xlnet_fast.explain(model).notes)


def assert_all_ours(model) -> None:
    explanation = xlnet_fast.explain(model)
    assert "in part" not in explanation.verdict
    assert "its own" not in str(explanation)


def assert_as_hugging_face(change, streams=2, **config):
    """``change`` made to HF's model, and to an accelerated copy before and after ``accelerate``."""
    model = tiny_model(dtype=F64, **config)
    changed, late = copy.deepcopy(model), accelerated(model)
    change(changed)
    change(late)
    early = accelerated(changed)
    expected = run(hf_in(changed, F64), inputs_of(streams))
    assert_tight(run(late, inputs_of(streams)), expected, "changed after accelerate:")
    assert_tight(run(early, inputs_of(streams)), expected, "changed before accelerate:")
    return late


# ---- dropout modules ----


class Scaling(nn.Module):
    """Neither random nor the identity, and different at each of its calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        powers = (torch.arange(x.shape[-1]) + self.calls) % 3  # of two, which round nothing
        return x * (0.5**powers).to(x)


class ScalingDropout(nn.Dropout):
    def forward(self, x):
        return x * 0.5


class AlwaysOn(nn.Dropout):
    """Monte Carlo dropout: drops in evaluation too; here by a rule, to compare."""

    def forward(self, x):
        assert x.shape[-2:] in ((LENGTH, LENGTH + 3), (BATCH, x.shape[-1]))  # P, or hidden states
        return x * (torch.arange(x.numel()).reshape(x.shape) % 3 > 0).to(x)


def replacing(make):
    def change(model):
        for layer in model.layer:
            layer.rel_attn.dropout = make()

    return change


def hooking(model):
    for layer in model.layer:
        layer.rel_attn.dropout.register_forward_hook(lambda module, given, output: output * 0.3)


def with_pre_hook(model):
    model.layer[1].rel_attn.dropout.register_forward_pre_hook(lambda module, given: given[0] * 0.3)


DROPOUTS = {
    "another module": replacing(Scaling),
    "a subclass": replacing(ScalingDropout),
    "Monte Carlo": replacing(AlwaysOn),
    "a hook": hooking,
    "a hook before": with_pre_hook,
    "p = 1": replacing(lambda: nn.Dropout(1.0).train()),
    "a sequence": replacing(lambda: nn.Sequential(Scaling(), nn.Dropout(0.0))),
}


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("what", DROPOUTS)
def test_a_dropout_that_is_not_plain_is_called(what, streams):
    ours = assert_as_hugging_face(DROPOUTS[what], streams)
    assert "the dropout in the attention of layer" in notes_of(ours)
    assert "accelerated in part" in xlnet_fast.explain(ours).verdict


def test_an_identity_in_the_place_of_dropout_stays_fused():
    ours = assert_as_hugging_face(replacing(nn.Identity))
    assert_all_ours(ours)


def test_every_other_dropout_of_the_model_is_called():
    def change(model):
        model.dropout = Scaling()
        for layer in model.layer:
            layer.ff.dropout = Scaling()

    assert_as_hugging_face(change)


def test_probabilities_are_those_after_the_module():
    def change(model):
        replacing(ScalingDropout)(model)

    model = tiny_model(dtype=F64)
    ours = accelerated(model)
    for each in (model, ours):
        change(each)
    inputs = inputs_of(2) | {"output_attentions": True}
    assert_tight(run(ours, inputs), run(hf_in(model, F64), inputs))


def test_compact_targets_with_a_dropout_that_is_called():
    ours = accelerated(tiny_model(dtype=F64))
    replacing(ScalingDropout)(ours)
    dense = inputs_of(2)
    compact = dict(dense)
    del compact["target_mapping"]
    compact["target_positions"] = torch.tensor([[4, 0], [1, -1]])
    assert_tight(run(ours, compact), run(ours, dense))


# ---- methods of HF's classes, replaced on the class or on an instance ----

METHODS = {
    (XLNetRelativeAttention, "rel_attn_core"): "layers 0, 1 run their own code",
    (XLNetRelativeAttention, "rel_shift_bnij"): "layers 0, 1 run their own code",
    (XLNetRelativeAttention, "forward"): "layers 0, 1 run their own code",
    (XLNetRelativeAttention, "post_attention"): "",
    (XLNetLayer, "forward"): "layers 0, 1 run their own code",
    (XLNetFeedForward, "forward"): "feed-forward block of layers 0, 1 runs its own code",
    (XLNetModel, "cache_mem"): "XLNetModel.cache_mem was replaced",
    (XLNetModel, "relative_positional_encoding"): "",
    (XLNetModel, "positional_embedding"): "",
    (XLNetModel, "create_mask"): "",
    (XLNetModel, "forward"): "XLNetModel.forward was replaced",
}


def scaled(value):
    """1.5 times the first tensor of what a method returned."""
    if isinstance(value, torch.Tensor):
        return value * 1.5
    if hasattr(value, "last_hidden_state"):
        value.last_hidden_state = value.last_hidden_state * 1.5
        return value
    return (value[0] * 1.5, *value[1:])


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize(("cls", "name"), METHODS, ids=lambda x: getattr(x, "__name__", x))
def test_a_method_patched_on_a_class(cls, name, streams, monkeypatch):
    causal = name == "create_mask"
    model = tiny_model(dtype=F64, attn_type="uni" if causal else "bi")
    inputs, ours = inputs_of(streams, masks=not causal), accelerated(model)
    before, method = run(hf_in(model, F64), inputs), getattr(cls, name)

    def patch(*args, **kwargs):
        return scaled(method(*args, **kwargs))

    with monkeypatch.context() as patching:
        is_static = isinstance(vars(cls)[name], staticmethod)
        patching.setattr(cls, name, staticmethod(patch) if is_static else patch)
        expected = run(hf_in(model, F64), inputs)
        for each in (ours, accelerated(model)):
            if (cls, name) == (XLNetModel, "forward"):
                each = hf_in(each, F64)  # HF's own code needs it
            assert_tight(run(each, inputs), expected)
        assert METHODS[cls, name] in notes_of(ours)
    if not causal:  # whose values only say what is hidden
        with pytest.raises(AssertionError):
            assert_tight(before, expected)
    assert_tight(run(ours, inputs), before, "patched no more:")
    assert_all_ours(ours)


def parts_of(model, cls):
    return [module for module in model.modules() if isinstance(module, cls)]


@pytest.mark.parametrize(("cls", "name"), METHODS, ids=lambda x: getattr(x, "__name__", x))
def test_a_method_replaced_on_an_instance(cls, name):
    causal, method = name == "create_mask", getattr(cls, name)
    bound = not isinstance(vars(cls)[name], staticmethod)

    def change(model):
        for part in parts_of(model, cls):
            before = (part,) if bound else ()
            setattr(
                part, name,
                lambda *args, before=before, **kwargs: scaled(method(*before, *args, **kwargs)),
            )  # fmt: skip

    model = tiny_model(dtype=F64, attn_type="uni" if causal else "bi")
    changed, ours = copy.deepcopy(model), accelerated(model)
    change(changed)
    change(ours)
    inputs = inputs_of(1, masks=not causal)
    assert_tight(run(ours, inputs), run(changed, inputs))


# ---- modules replaced after accelerate ----


def new_attention(model):
    torch.manual_seed(3)
    attention = XLNetRelativeAttention(tiny_config()).to(F64).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.layer[0].rel_attn = attention


def new_layer(model):
    torch.manual_seed(3)
    layer = XLNetLayer(tiny_config()).to(F64).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.layer[1] = layer


def new_feed_forward(model):
    torch.manual_seed(3)
    model.layer[0].ff = XLNetFeedForward(tiny_config()).to(F64).eval()


def fewer_layers(model):
    del model.layer[1]


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("change", [new_attention, new_layer, new_feed_forward])
def test_a_part_replaced_after_accelerate(change, streams):
    ours = assert_as_hugging_face(change, streams)
    if change is not new_feed_forward:
        assert "was put there since; call accelerate() again" in notes_of(ours)
        xlnet_fast.accelerate(ours)
        assert_all_ours(ours)
        assert_tight(
            run(ours, inputs_of(streams)),
            run(hf_in(xlnet_fast.restore(copy.deepcopy(ours)), F64), inputs_of(streams)),
        )


def test_layers_removed_after_accelerate():
    model = tiny_model(dtype=F64)
    ours = accelerated(model)
    for each in (model, ours):
        fewer_layers(each)
    inputs = inputs_of(2)
    inputs["mems"] = inputs["mems"][:1]
    assert_tight(run(ours, inputs), run(hf_in(model, F64), inputs))


# ---- PyTorch's wrappers ----


def wrapped(wrap, part):
    def change(model):
        for number, layer in enumerate(model.layer):
            if part == "layer":
                model.layer[number] = wrap(layer)
            else:
                layer.rel_attn = wrap(layer.rel_attn)

    return change


WRAPPERS = {
    "checkpoint": checkpoint_wrapper,
    "compiled": lambda module: torch.compile(module, backend="eager"),
}


@pytest.mark.parametrize("part", ["layer", "attention"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_of_pytorch_hands_the_context_on(wrapper, part):
    torch.compiler.reset()
    model = tiny_model(dtype=F64)
    expected = run(hf_in(model, F64), inputs_of(2))
    for early in (True, False):
        change, ours = wrapped(WRAPPERS[wrapper], part), copy.deepcopy(model)
        for step in (change, xlnet_fast.accelerate) if early else (xlnet_fast.accelerate, change):
            step(ours)
        assert all(map(takes_context, ours.layer)), early
        results = run(ours, inputs_of(2))
        unwrapped_names = {
            name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", ""): value
            for name, value in results.items()
        }
        assert_tight(unwrapped_names, expected, f"wrapped before accelerate: {early}")
        assert_all_ours(ours)


def test_a_method_of_another_class_of_hugging_faces_is_none_of_its_own(monkeypatch):
    assert patched(XLNetLayer, "forward") is None
    monkeypatch.setattr(XLNetLayer, "forward", XLNetFeedForward.forward)
    assert patched(XLNetLayer, "ff_chunk", "forward") == "forward"


@pytest.mark.parametrize("cls", [nn.Linear, nn.Dropout, nn.GELU, GELUActivation])
def test_a_forward_of_the_library_that_is_patched_is_called(cls, monkeypatch):
    model = tiny_model(dtype=F64)
    ours, forward = accelerated(model), cls.forward
    for layer in (*model.layer, *ours.layer):
        layer.ff.activation_function = GELUActivation() if cls is GELUActivation else nn.GELU()
    monkeypatch.setattr(cls, "forward", lambda self, x: forward(self, x) * 2)
    inputs = inputs_of(1)
    assert_tight(run(hf_in(ours, F64), inputs), run(hf_in(model, F64), inputs))


class NamesOfTheirOwn(XLNetModel):
    """A subclass may call its methods as it likes."""

    def _embed(self):
        raise AssertionError

    _context = _run_layers = _position_table = _query_stream = _per_layer = _embed


def test_methods_of_a_subclass_do_not_replace_ours():
    model = tiny_model(NamesOfTheirOwn, F64)
    assert_tight(run(accelerated(model), inputs_of(2)), run(hf_in(model, F64), inputs_of(2)))


# ---- restore, and models with a head ----


def test_restore_refuses_a_forward_that_was_put_on_since():
    """`Accelerator.prepare` wraps it for bf16: it would go on calling the accelerated one."""
    model = accelerated(tiny_model(XLNetForSequenceClassification))
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    with pytest.raises(ArgumentError, match="was given a forward of its own after accelerate"):
        xlnet_fast.restore(model)
    del model.forward
    xlnet_fast.restore(model)
    assert type(model) is XLNetForSequenceClassification


def test_a_head_with_a_forward_of_its_own_is_named_and_restored():
    model = tiny_model(XLNetForSequenceClassification)
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    xlnet_fast.accelerate(model)
    assert "XLNetForSequenceClassification had a forward of its own" in notes_of(model)
    before = set(vars(xlnet_fast.restore(model)))
    assert type(model) is XLNetForSequenceClassification
    assert before == set(vars(tiny_model(XLNetForSequenceClassification))) | {"forward"}


def test_a_head_that_was_left_out_is_named():
    model = tiny_model(XLNetForSequenceClassification)
    xlnet_fast.accelerate(model.transformer)
    assert "only the XLNetModel in it" in notes_of(model)


def test_a_mask_that_shows_keys_ahead_is_named():
    model = accelerated(tiny_model(attn_type="uni"))
    assert notes_of(model) == ""
    model.create_mask = lambda queries, memory: torch.zeros(queries, memory + queries)
    assert "keys that it shows ahead of a query have no position score" in notes_of(model)
