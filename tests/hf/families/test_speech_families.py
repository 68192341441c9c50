"""What holds for every speech family: Hugging Face's results, and nothing of a model is lost."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from family_parity import (
    LENGTH,
    accelerated,
    assert_same_moments,
    cast,
    compare,
    only_valid,
    outputs_of,
    run,
)
from hf_parity import F64, assert_tight
from tiny_speech import CASES, features
from torch import nn

import xlnet_fast

DIFFERENT = [name for name in CASES if name != "granite plus"]  # which is granite's code again
EITHER = [name for name in DIFFERENT if len(CASES[name].implementations) == 2]
"""Those whose attention is "sdpa" or "eager"; the latter returns probabilities unasked."""


@pytest.mark.parametrize("name", CASES)
def test_float64_with_padding(name):
    case = CASES[name]
    compare(case, case.model(case.implementations[0]).double(), case.several(True, number=1))


@pytest.mark.parametrize("name", DIFFERENT)
def test_float64_in_training_without_padding(name):
    case = CASES[name]
    model = case.model(case.implementations[-1]).double().train()
    compare(case, model, case.several(False, number=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DIFFERENT)
def test_working_dtypes(name, dtype):
    case = CASES[name]
    # The kinks of the adapter's ReLU make heavy tails of rounding errors in gradients.
    options = {"add_adapter": False} if "seamless" in name else {}
    compare(case, case.model(**options).to(dtype), case.several(True, number=4))


@pytest.mark.parametrize("name", DIFFERENT)
def test_half_precision(name):
    case = CASES[name]
    compare(case, case.model().half(), case.several(True, number=2), backward=False)


@pytest.mark.parametrize("name", DIFFERENT)
def test_autocast(name):
    def context():
        return torch.autocast("cpu", torch.bfloat16)

    case = CASES[name]
    inputs = case.several(True, number=2)
    compare(case, case.model(), inputs, context=context, working=torch.bfloat16, backward=False)


@pytest.mark.parametrize("name", CASES)
def test_nothing_of_a_model_is_lost(name):
    case = CASES[name]
    model = case.model()
    inputs = case.inputs(2, LENGTH, True, 0)
    classes = [type(module) for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        before = outputs_of(model, inputs)
        ours = xlnet_fast.accelerate(model)
        counts = {
            cls: sum(isinstance(m, cls) and type(m) is not cls for m in ours.modules())
            for cls in case.adopted
        }
        assert counts == case.adopted
        expected = outputs_of(ours, inputs)
        copies = [copy.deepcopy(ours)]
        if name not in ("conformer", "speecht5"):  # PyTorch pickles no weight norm
            copies.append(pickle.loads(pickle.dumps(ours)))
        for again in copies:
            assert xlnet_fast.is_accelerated(again)
            assert_same_bits(outputs_of(again, inputs), expected)
        xlnet_fast.restore(model)
        assert_same_bits(outputs_of(model, inputs), before)
    assert [type(module) for module in model.modules()] == classes
    assert_same_bits(model.state_dict(), state)
    assert not any(key.startswith("_xlnet_fast") for m in model.modules() for key in vars(m))


@pytest.mark.parametrize("name", ["bert relative_key", "granite 5"])
def test_save_and_load(name, tmp_path):
    case = CASES[name]
    model = xlnet_fast.accelerate(case.model())
    model.save_pretrained(tmp_path)
    loaded = type(case.model()).from_pretrained(tmp_path)
    inputs = case.inputs(2, LENGTH, True, 0)
    with torch.no_grad():
        expected = outputs_of(model, inputs)
        assert_same_bits(outputs_of(xlnet_fast.accelerate(loaded), inputs), expected)


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("name", DIFFERENT)
def test_who_asks_for_more_outputs_gets_hugging_faces(name):
    case = CASES[name]
    for implementation in case.implementations:
        model = case.model(implementation).double()
        ours = accelerated(model)
        inputs = cast(case.inputs(2, LENGTH, True, 0), F64)
        more = inputs | {"output_attentions": True, "output_hidden_states": True}
        with torch.no_grad():
            results = [run(m, more, case.valid(inputs), backward=False) for m in (ours, model)]
        assert any("hidden_states." in key for key in results[1])
        assert_tight(*results)


@pytest.mark.parametrize("name", [n for n in DIFFERENT if n not in ("fastspeech2", "granite")])
def test_gradient_checkpointing(name):
    case = CASES[name]
    model = case.model().double().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    compare(case, model, case.several(True, number=1))


@pytest.mark.parametrize("name", ["bert relative_key", "seamless v2", "granite 5"])
def test_garbage_in_padding_is_not_read(name):
    case = CASES[name]
    model = accelerated(case.model().double())
    inputs = cast(case.inputs(2, LENGTH, True, 0), F64)
    hidden = ~inputs["attention_mask"].bool()[..., None]
    dirty = inputs | {"input_features": inputs["input_features"].masked_fill(hidden, torch.nan)}
    with torch.no_grad():
        clean, same = (outputs_of(model, given)["last_hidden_state"] for given in (inputs, dirty))
    valid = case.valid(inputs)
    assert_tight({"out": only_valid(same, valid)}, {"out": only_valid(clean, valid)})


@pytest.mark.parametrize("name", EITHER)
def test_a_hook_on_the_attention_sees_probabilities(name):
    case = CASES[name]
    seen = []
    for model in (case.model("eager").double(), accelerated(case.model("eager").double())):
        attention_of(case, model).register_forward_hook(
            lambda module, args, output: seen.append(output[1])
        )
        with torch.no_grad():
            model(**cast(case.inputs(2, LENGTH, False, 0), F64))
    assert seen[0].dim() == 4
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_forward_of_the_users_own_stays(name):
    case = CASES[name]
    model = case.model().double()
    attentions = [m for m in model.modules() if isinstance(m, case.attention)]

    class Doubled(case.attention):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            if isinstance(output, tuple):
                return (output[0] * 2, *output[1:])
            return output * 2

    attentions[0].__class__ = Doubled
    inputs = cast(case.inputs(2, LENGTH, True, 0), F64)
    ours = accelerated(model)
    assert "Doubled overrides forward" in str(xlnet_fast.explain(ours))
    valid = case.valid(inputs)
    assert_tight(run(ours, inputs, valid), run(model, inputs, valid))


@pytest.mark.parametrize("name", ["bert relative", "granite 5"])
def test_a_patched_class_is_left_alone(name, monkeypatch):
    case = CASES[name]
    model = case.model()
    ours = accelerated(model)
    monkeypatch.setattr(case.attention, "forward", _zeros)
    inputs = case.inputs(2, LENGTH, True, 0)
    with torch.no_grad():
        assert_same_bits(
            run(ours, inputs, case.valid(inputs), backward=False),
            run(accelerated(case.model()), inputs, case.valid(inputs), backward=False),
        )
    assert "forward was replaced" in str(xlnet_fast.explain(ours))


def _zeros(self, hidden_states, *args, **kwargs):
    return torch.zeros_like(hidden_states), None


def test_several_families_in_a_module_of_the_users_own():
    names = ("bert relative", "seamless v2")
    both = nn.ModuleDict({name: CASES[name].model() for name in names}).double()
    ours = accelerated(both)
    inputs = cast(features(2, LENGTH, True), F64)
    for name in names:
        valid = CASES[name].valid(inputs)
        assert_tight(run(ours[name], inputs, valid), run(both[name], inputs, valid))
    told = str(xlnet_fast.explain(ours))
    assert "Wav2Vec2-BERT" in told
    assert "SeamlessM4T v2" in told


@pytest.mark.parametrize("name", ["bert relative_key", "fastspeech2", "granite 5"])
def test_dropout_drops_what_hugging_faces_does(name):
    """Of an attention alone: its output is linear in what is kept, so its mean is that without
    dropout, and it strays as far as Hugging Face's.
    """
    case = CASES[name]
    model = case.model().train()
    pairs = [attention_of(case, each) for each in (model, accelerated(model))]
    args, kwargs = arguments_of(pairs[0], model, case.inputs(2, LENGTH, True, 0))
    expected = pairs[0](*args, **kwargs)[0].detach()
    assert_same_moments(pairs, [(args, kwargs)] * 2, expected)


def attention_of(case, model):
    return next(m for m in model.modules() if isinstance(m, case.attention))


def arguments_of(module, model, inputs):
    """With which a model calls one of its modules."""
    calls = []
    handle = module.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return calls[0]
