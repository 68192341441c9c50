"""Accelerated models on the linear op: parity on our kernels, and modules not HF's any more."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from cpu_kernels import needs_kernels
from hf_parity import (
    F64,
    accelerated,
    assert_tight,
    compare,
    padding,
    random_ids,
    run,
    tiny_model,
    transformer_of,
)
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import XLNetLMHeadModel, XLNetModel
from transformers.models.xlnet.modeling_xlnet import XLNetFeedForward

import xlnet_fast
from xlnet_fast.hf.families.xlnet.feed_forward import FastFeedForward
from xlnet_fast.kernels.cpu import linear as cpu_linear
from xlnet_fast.ops._dispatch import Choice

linear_module = sys.modules["xlnet_fast.ops.linear"]
pytestmark = needs_kernels
LENGTH = 6


@pytest.fixture(autouse=True)
def products(monkeypatch):
    """Our kernels are chosen on any machine; the list names what each product is fused with."""
    calls, real = [], cpu_linear.linear

    def counted(x, weight, bias, residual, gelu, out):
        calls.append("gelu" if gelu else "none" if residual is None else "add")
        real(x, weight, bias, residual, gelu, out)

    monkeypatch.setattr(linear_module, "_chosen", Choice("cpu", "by the test"))
    monkeypatch.setattr(linear_module, "LEAST_PACKED_WEIGHT", 0)
    monkeypatch.setattr(linear_module, "LEAST_WEIGHT", 0)
    monkeypatch.setattr(cpu_linear, "linear", counted)
    return calls


def inputs_of(seed=0):
    return {
        "input_ids": random_ids(2, LENGTH, seed),
        "attention_mask": padding(2, LENGTH, "left"),
        "token_type_ids": random_ids(2, LENGTH, seed + 9) % 2,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backward", [False, True])
def test_parity(dtype, backward, products):
    model = tiny_model(XLNetLMHeadModel, dtype)
    with torch.set_grad_enabled(backward):
        compare(model, [inputs_of(seed) for seed in range(6)], dtype, backward=backward)
    assert bool(products) == cpu_linear.takes(dtype, terms=2)  # not every CPU has bf16 products


def test_each_product_of_a_layer(products):
    model = accelerated(tiny_model(XLNetModel))
    with torch.no_grad():
        run(model, inputs_of(), backward=False)
    layer = ["none"] * 4 + ["add", "gelu", "add"]  # q, k, v, r; o; feed-forward
    assert products == layer * len(model.layer)


@pytest.mark.parametrize(
    "activation",
    ["relu", "gelu_new", nn.GELU(), nn.GELU("tanh"), nn.functional.gelu, torch.tanh],
    ids=["relu", "gelu_new", "GELU", "GELU-tanh", "gelu", "tanh"],
)
def test_activations(activation, products):
    original = tiny_model(XLNetModel)
    for layer in original.layer:
        del layer.ff.activation_function  # a module's place, which a function cannot take
        layer.ff.activation_function = (
            transformer_activation(activation) if isinstance(activation, str) else activation
        )
    with torch.no_grad():
        expected = run(original, inputs_of(), backward=False)
        actual = run(accelerated(original), inputs_of(), backward=False)
    torch.testing.assert_close(actual["last_hidden_state"], expected["last_hidden_state"])
    exact = activation is nn.functional.gelu or repr(activation) == repr(nn.GELU())
    assert ("gelu" in products) == exact


def transformer_activation(name):
    from transformers.activations import ACT2FN

    return ACT2FN[name]


class LowRank(nn.Module):
    """A linear layer and a correction, as LoRA's."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x):
        return self.base(x) + x.sum(-1, keepdim=True)


class OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Doubled(nn.Module):
    def forward(self, weight):
        return weight * 2


def _replace(ff, name):
    setattr(ff, name, LowRank(getattr(ff, name)))


def _subclass(ff, name):
    getattr(ff, name).__class__ = OwnLinear


def _instance_forward(ff, name):
    module = getattr(ff, name)
    module.forward = lambda x: nn.functional.linear(x, module.weight) * 3


def _hook(ff, name):
    getattr(ff, name).register_forward_hook(lambda module, args, output: output * 2)


def _pre_hook(ff, name):
    getattr(ff, name).register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def _parametrize(ff, name):
    parametrize.register_parametrization(getattr(ff, name), "weight", Doubled())


def _prune(ff, name):
    prune.random_unstructured(getattr(ff, name), "weight", 0.5)


CHANGES = {f.__name__.strip("_"): f for f in (
    _replace, _subclass, _instance_forward, _hook, _pre_hook, _parametrize, _prune
)}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["layer_1", "layer_2"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_changed_linear_layer_runs_as_it_is(change, name, when):
    torch.manual_seed(3)
    original = tiny_model(XLNetModel)
    plain = run(original, inputs_of(), backward=False)["last_hidden_state"]
    changed = copy.deepcopy(original)
    CHANGES[change](changed.layer[0].ff, name)
    ours = changed
    if when == "after":
        ours = accelerated(original)
        torch.manual_seed(3)
        weights = changed.state_dict()
        CHANGES[change](ours.layer[0].ff, name)
        ours.load_state_dict(weights)
    with torch.no_grad():
        expected = run(changed, inputs_of(), backward=False)["last_hidden_state"]
        if when == "before":
            ours = xlnet_fast.accelerate(changed)
        actual = run(ours, inputs_of(), backward=False)["last_hidden_state"]
    assert not torch.allclose(expected, plain)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("part", ["activation_function", "dropout"])
@pytest.mark.parametrize("where", ["module", "everywhere"])
def test_hooks_on_what_is_fused_are_called(part, where):
    model = accelerated(tiny_model(XLNetModel))
    module, seen = getattr(model.layer[0].ff, part), []

    def hook(called, args, output):
        if called is module:
            seen.append(output.shape)

    register = torch.nn.modules.module.register_module_forward_hook
    handle = module.register_forward_hook(hook) if where == "module" else register(hook)
    try:
        with torch.no_grad():
            run(model, inputs_of(), backward=False)
    finally:
        handle.remove()
    assert len(seen) == (1 if part == "activation_function" else 2)


def test_a_linear_layer_compiled_by_itself_is_called(monkeypatch):
    """``nn.Module.compile`` leaves what ``torch.compile`` gave it on the module."""
    seen = []

    def compiles(call, **options):
        return lambda x: seen.append(x.shape) or call(x)

    monkeypatch.setattr(torch, "compile", compiles)
    model = accelerated(tiny_model(XLNetModel))
    model.layer[0].ff.layer_1.compile()
    with torch.no_grad():
        run(model, inputs_of(), backward=False)
    assert len(seen) == 1


class OwnFeedForward(XLNetFeedForward):
    def forward(self, inp):
        return super().forward(inp) * 2


def test_a_feed_forward_of_the_users_stays():
    model = tiny_model(XLNetModel, n_layer=3)
    model.layer[0].ff = nn.Identity()
    model.layer[1].ff.forward = lambda x: x * 2
    model.layer[2].ff.__class__ = OwnFeedForward
    expected = run(model, inputs_of(), backward=False)
    xlnet_fast.accelerate(model)
    assert type(model.layer[0].ff) is nn.Identity
    assert type(model.layer[2].ff) is OwnFeedForward
    assert not isinstance(model.layer[1].ff, FastFeedForward)
    notes = xlnet_fast.explain(model).notes
    for number, name in enumerate(("Identity", "XLNetFeedForward", "OwnFeedForward")):
        own = f"the feed-forward block of layer {number} runs its own code: {name} has a forward"
        assert any(note.startswith(own) for note in notes)
    actual = run(model, inputs_of(), backward=False)
    torch.testing.assert_close(actual["last_hidden_state"], expected["last_hidden_state"])


def test_restore_copy_and_pickle():
    model = tiny_model(XLNetModel)
    kind = type(model.layer[0].ff)
    ours = accelerated(model)
    copies = (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)))
    assert all(isinstance(m.layer[0].ff, FastFeedForward) for m in (ours, *copies))
    assert type(xlnet_fast.restore(ours).layer[0].ff) is kind


@pytest.mark.parametrize("training", [False, True])
def test_one_graph(training, products):
    torch._dynamo.reset()
    model = accelerated(tiny_model(XLNetLMHeadModel, n_layer=1))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training):
        expected = run(model, inputs_of(), backward=training)
        eager = len(products)
        actual = run(compiled, inputs_of(), backward=training)
    assert len(products) > eager > 0
    for name, value in expected.items():
        other = actual.get(name, actual.get(f"d _orig_mod.{name[2:]}"))
        if value is not None:
            torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_float64_is_untouched(products):
    model = tiny_model(XLNetModel, F64)
    assert_tight(run(accelerated(model), inputs_of()), run(model, inputs_of()))
    assert products == []
    assert transformer_of(model) is model
