"""``linear_attention``: projections as ``nn.Linear``, whose numbers and files are HF's."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import partial

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
    tiny_model,
    transformer_of,
)
from safetensors.torch import load_file, save_model
from torch import nn
from torch.nn import functional as F
from transformers import XLNetForSequenceClassification, XLNetLMHeadModel, XLNetModel
from transformers.models.xlnet.modeling_xlnet import XLNetLayer, XLNetRelativeAttention

import xlnet_fast
from xlnet_fast import ArgumentError
from xlnet_fast.hf.families.xlnet import layers
from xlnet_fast.hf.families.xlnet.projections import PROJECTIONS

BATCH, LENGTH = 2, 6


def linear(model, **options):
    """An accelerated copy whose projections are modules."""
    return xlnet_fast.linear_attention(accelerated(model, **options))


def attentions(model):
    return [layer.rel_attn for layer in transformer_of(model).layer]


def inputs_of(case: str, dtype=F64) -> dict:
    inputs = {"input_ids": random_ids(BATCH, LENGTH)}
    if case != "uni":  # HF's takes no padding in a batch
        inputs["attention_mask"] = padding(BATCH, LENGTH, "left")
    if case != "plain":
        inputs["token_type_ids"] = random_ids(BATCH, LENGTH) % 2
        inputs["mems"] = random_mems(BATCH, 3)
    if case == "two streams":
        inputs["target_mapping"] = one_hot_targets([[4, 0], [1, -1]], LENGTH)
        inputs["perm_mask"] = torch.ones(BATCH, LENGTH, LENGTH).triu()
    if case == "probabilities":
        inputs["output_attentions"] = True
    return in_dtype(inputs, dtype)


def as_hugging_face(results, model):
    """Gradients of projections by HF's names, (H, N, D)."""
    found = dict(results)
    for name in results:
        parts = name.split(".")
        if parts[-1] == "weight" and parts[-2] in PROJECTIONS:
            grad = found.pop(name)
            grad = grad if parts[-2] == "o" else grad.t()
            heads = attentions(model)[0].r_w_bias.shape
            found[name.removesuffix(".weight")] = grad.unflatten(1, heads)
    return found


# ---- numbers ----


@pytest.mark.parametrize("case", ["plain", "memory", "two streams", "probabilities", "uni"])
def test_outputs_and_gradients_are_hugging_faces(case):
    model = tiny_model(XLNetLMHeadModel, F64, attn_type="uni" if case == "uni" else "bi")
    ours = linear(model)
    expected = run(hf_in(model, F64), inputs_of(case))
    assert_tight(as_hugging_face(run(ours, inputs_of(case)), ours), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "autocast", "weights in fp32"])
def test_bare_modules_cost_no_bit(dtype):
    """Their products are those of the parameters: by the same call on the same view."""
    model = tiny_model(XLNetModel)
    if isinstance(dtype, torch.dtype):
        model = model.to(dtype)
    if dtype == "weights in fp32":  # as HF's from_pretrained(dtype=bfloat16) leaves them
        model = model.to(torch.bfloat16)
        for attention in attentions(model):
            for name in PROJECTIONS:
                getattr(attention, name).data = getattr(attention, name).data.float()
    bare, ours = accelerated(model), linear(model)
    given = inputs_of("two streams", torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
        expected, found = bare(**given), ours(**given)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    if dtype != "weights in fp32":
        return
    for attention in attentions(ours):  # called, each multiplies in its own dtype
        for name in PROJECTIONS:
            getattr(attention, name).register_forward_hook(lambda *_: None)
    found = ours(**given).last_hidden_state.double()
    exact = hf_in(model, F64)(**in_dtype(given, F64)).last_hidden_state
    assert found.shape == exact.shape
    error, of_casting = (
        (x.double() - exact).norm().item() for x in (found, expected.last_hidden_state)
    )
    assert error <= 1.5 * of_casting


class LowRank(nn.Module):
    """What LoRA puts in the place of an ``nn.Linear``."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        rows, columns = base.weight.shape
        self.down = nn.Parameter(torch.randn(2, columns, dtype=base.weight.dtype))
        self.up = nn.Parameter(torch.randn(rows, 2, dtype=base.weight.dtype) * 0.1)

    def forward(self, x):
        return self.base_layer(x) + F.linear(F.linear(x, self.down), self.up)

    def merged(self):
        return self.base_layer.weight + self.up @ self.down


@pytest.mark.parametrize("case", ["memory", "two streams", "probabilities"])
def test_what_is_put_in_their_place_is_called(case):
    torch.manual_seed(0)
    model = tiny_model(XLNetModel, F64)
    adapted = linear(model)
    for attention in attentions(adapted):
        for name in PROJECTIONS:
            setattr(attention, name, LowRank(getattr(attention, name)))
    merged = copy.deepcopy(model)
    for attention, low_rank in zip(attentions(merged), attentions(adapted), strict=True):
        for name in PROJECTIONS:
            weight = getattr(low_rank, name).merged()
            weight = weight if name == "o" else weight.t()
            getattr(attention, name).data = weight.reshape(model.d_model, *attention.r_w_bias.shape)
    found = run(adapted, inputs_of(case))
    expected = run(hf_in(merged, F64), inputs_of(case))
    outputs = [name for name in expected if not name.startswith("d ")]
    assert_tight({n: found[n] for n in outputs}, {n: expected[n] for n in outputs})
    for number in range(model.config.n_layer):  # dL/d(up) = dL/dW down^T
        for name in PROJECTIONS:
            key = f"d layer.{number}.rel_attn.{name}"
            weight = expected[key].flatten(1)
            weight = weight if name == "o" else weight.t()
            module = getattr(attentions(adapted)[number], name)
            wanted = {key: weight @ module.down.detach().t()}
            assert_tight({key: found[f"{key}.up"]}, wanted)


@pytest.mark.parametrize("case", ["plain", "memory", "two streams", "probabilities"])
def test_layers_that_keep_their_own_code(case):
    """As under accelerate's hooks, which give each module a forward of its own."""
    model = tiny_model(XLNetModel, F64)
    ours = linear(model)
    for layer in ours.layer:
        layer.forward = partial(type(layer).forward, layer)
    assert "layers 0, 1 run their own code" in " ".join(xlnet_fast.explain(ours).notes)
    given = inputs_of(case)
    found = as_hugging_face(run(ours, given), ours)
    assert_tight(found, run(hf_in(model, F64), given))


def test_hooks_see_what_passes():
    model = linear(tiny_model(XLNetModel))
    seen = {}
    for name in PROJECTIONS:
        module = getattr(attentions(model)[0], name)
        module.register_forward_hook(
            lambda _, given, output, name=name: seen.update({name: (given[0].shape, output.shape)})
        )
    model(**inputs_of("plain"))
    stream = ((LENGTH, BATCH, 16), (LENGTH, BATCH, 16))
    table = ((2 * LENGTH, 1, 16), (2 * LENGTH, 1, 16))
    assert seen == {"q": stream, "k": stream, "v": stream, "o": stream, "r": table}


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(reentrant):
    model = tiny_model(XLNetForSequenceClassification)
    plain, saving = linear(model).train(), linear(model).train()
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for each in (plain, saving):
        each(random_ids(BATCH, LENGTH), labels=torch.tensor([0, 1])).loss.backward()
    for (name, one), two in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        assert one.grad is None or torch.equal(one.grad, two.grad), name


# ---- parameters, storage and files ----


def test_each_is_a_linear_on_the_parameter_that_was_there():
    model = accelerated(tiny_model(XLNetModel))
    model(**inputs_of("plain", torch.float32)).last_hidden_state.sum().backward()
    attention = attentions(model)[0]
    attention.v.requires_grad_(False)
    before = {name: getattr(attention, name) for name in PROJECTIONS}
    places = {name: p.data_ptr() for name, p in before.items()}
    grads = {name: p.grad.clone() for name, p in before.items()}
    assert xlnet_fast.linear_attention(xlnet_fast.linear_attention(model)) is model
    for name, parameter in before.items():
        module = getattr(attention, name)
        assert type(module) is nn.Linear
        assert module.bias is None
        assert module.weight is parameter
        assert parameter.data_ptr() == places[name]
        assert parameter.requires_grad == (name != "v")
        wanted = grads[name].flatten(1)
        assert torch.equal(parameter.grad, wanted if name == "o" else wanted.t())


def snapshot(model):
    return [
        (name, id(p), p.shape, p.stride(), p.data_ptr(), p.requires_grad)
        for name, p in model.named_parameters()
    ]


def test_restore_undoes_it():
    model = tiny_model(XLNetLMHeadModel)
    before = snapshot(model)
    bits = {n: p.detach().clone() for n, p in model.named_parameters()}
    xlnet_fast.linear_attention(xlnet_fast.accelerate(model))
    assert snapshot(model) != before
    xlnet_fast.restore(model)
    assert snapshot(model) == before
    assert [type(module) for module in model.modules()] == [
        type(module) for module in tiny_model(XLNetLMHeadModel).modules()
    ]
    assert all(torch.equal(p, bits[name]) for name, p in model.named_parameters())


def test_weights_of_another_layout_are_saved_and_restored_all_the_same():
    model = tiny_model(XLNetModel)
    ours = linear(model)
    for parameter in ours.parameters():
        parameter.data = parameter.data.contiguous()
    assert_same_state(ours.state_dict(), model.state_dict())
    restored = xlnet_fast.restore(ours)
    assert all(parameter.is_contiguous() for parameter in restored.parameters())
    assert_same_state(restored.state_dict(), model.state_dict())


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("nested", [False, True])
def test_the_state_is_hugging_faces_both_ways(nested):
    model, other = (tiny_model(XLNetForSequenceClassification) for _ in range(2))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    ours = linear(model)
    if nested:
        model, other, ours = (nn.ModuleDict({"inner": each}) for each in (model, other, ours))
    assert_same_state(ours.state_dict(), model.state_dict())
    for assign in (False, True):
        ours.load_state_dict(model.state_dict())
        ours.load_state_dict(other.state_dict(), assign=assign)
        assert_same_state(ours.state_dict(), other.state_dict())
    model.load_state_dict(ours.state_dict())
    assert_same_state(model.state_dict(), other.state_dict())
    for value in ours.state_dict().values():  # it shows the storage, as of any module
        value.zero_()
    assert not any(parameter.any() for parameter in ours.parameters())


def test_a_state_that_does_not_fit_is_told_by_hugging_faces_names():
    model = tiny_model(XLNetModel)
    ours = linear(model)
    for change in ("another shape", "the same size", "two dimensions", "missing"):
        state, told = ours.state_dict(), []
        for name in ("q", "o"):
            key = f"layer.0.rel_attn.{name}"
            value = state.pop(key)
            changed = {
                "another shape": lambda x: torch.zeros(3, 2, 8),
                "the same size": lambda x: x.transpose(1, 2),
                "two dimensions": lambda x: x.flatten(1),
            }
            if change != "missing":
                state[key] = changed[change](value)
        for each in (model, ours):
            with pytest.raises(RuntimeError) as error:
                each.load_state_dict(state)
            told.append(set(str(error.value).splitlines()[1:]))
        assert told[0] == told[1]
        if change == "missing":
            theirs, of_ours = (each.load_state_dict(state, strict=False) for each in (model, ours))
            assert set(of_ours.missing_keys) == set(theirs.missing_keys)


@pytest.mark.parametrize("kind", ["loss", "output"])
def test_an_earlier_call_that_is_still_held_is_told(kind):
    ours = xlnet_fast.accelerate(tiny_model(XLNetForSequenceClassification).train())
    ids = torch.arange(12).view(2, 6)
    before = {name: x.detach().clone() for name, x in ours.named_parameters()}
    for change, back in ((xlnet_fast.linear_attention, False), (xlnet_fast.restore, True)):
        held = ours(ids, labels=torch.tensor([0, 1])).loss
        if kind == "loss":
            held.backward()
        with pytest.raises(ArgumentError, match=r"part of an output, a loss or a DDP .* delete"):
            change(ours)
        assert back == ("rel_attn.q.weight" in "".join(n for n, _ in ours.named_parameters()))
        del held
        change(ours)
        if not back:
            ours(ids, labels=torch.tensor([0, 1])).loss.backward()
    assert {name: x.shape for name, x in ours.named_parameters()} == {
        name: x.shape for name, x in before.items()
    }
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None or parameter.grad.shape == parameter.shape


def test_what_is_saved_loads_in_hugging_face(tmp_path):
    model = tiny_model(XLNetForSequenceClassification)
    ours = linear(model)
    ours.save_pretrained(tmp_path)
    loaded = XLNetForSequenceClassification.from_pretrained(tmp_path)
    assert_same_state(loaded.state_dict(), model.state_dict())
    save_model(ours, str(tmp_path / "whole.safetensors"))
    saved = load_file(tmp_path / "whole.safetensors")
    assert_same_state(saved, {name: model.state_dict()[name] for name in saved})
    assert "transformer.layer.1.rel_attn.o" in saved


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(how):
    model = linear(tiny_model(XLNetModel))
    copied = how(model)
    given = inputs_of("memory", torch.float32)
    assert torch.equal(copied(**given).last_hidden_state, model(**given).last_hidden_state)
    assert {type(a.q) for a in attentions(copied)} == {nn.Linear}
    assert_same_state(xlnet_fast.restore(copied).state_dict(), model.state_dict())


def test_layers_that_share_a_parameter_share_it_after():
    model = tiny_model(XLNetModel, F64)
    first, second = attentions(model)
    second.q = first.q
    ours = linear(model)
    expected = run(hf_in(model, F64), inputs_of("memory"))
    assert_tight(as_hugging_face(run(ours, inputs_of("memory")), ours), expected)
    first, second = attentions(ours)
    assert first.q.weight is second.q.weight
    xlnet_fast.restore(ours)
    assert first.q is second.q
    assert first.q.shape == model.layer[0].rel_attn.q.shape


@pytest.mark.parametrize("early", [False, True])
def test_it_trains_as_parameters_do(early):
    """To the bit, also with an optimizer that was made before."""
    model = tiny_model(XLNetForSequenceClassification)
    bare, ours = accelerated(model).train(), accelerated(model).train()
    if early:
        optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-2)
    xlnet_fast.linear_attention(ours)
    if not early:
        optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-2)
    for each, steps in ((bare, torch.optim.AdamW(bare.parameters(), lr=1e-2)), (ours, optimizer)):
        for _ in range(3):
            each(random_ids(BATCH, LENGTH), labels=torch.tensor([0, 1])).loss.backward()
            steps.step()
            steps.zero_grad()
    assert_same_state(ours.state_dict(), bare.state_dict())
    assert not torch.equal(attentions(bare)[0].q, attentions(model)[0].q)


# ---- what is told, and what is refused ----


class OwnLayer(XLNetLayer):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def own_layer(model):
    model.layer[1] = OwnLayer(model.config)


def buffer_for_parameter(model):
    value = model.layer[1].rel_attn.k.data
    del model.layer[1].rel_attn.k
    model.layer[1].rel_attn.register_buffer("k", value)


class Quantised(nn.Parameter):
    pass


def subclass_of_parameter(model):
    attention = model.layer[1].rel_attn
    attention.o = Quantised(attention.o.data)


def tied_across(model):
    attention = model.layer[0].rel_attn
    attention.o = attention.q


def tied_outside(model):
    model.layer[1].kept = model.layer[1].rel_attn.v


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tied_across, "o is another projection as well"),
        (tied_outside, "also the kept of a XLNetLayer"),
        (own_layer, "layer 1 cannot have linear attention: OwnLayer overrides forward"),
        (buffer_for_parameter, r"layer 1 .* k is no parameter of its own"),
        (subclass_of_parameter, r"layer 1 .* o is a Quantised, no plain parameter"),
    ],
)
def test_it_is_all_or_nothing(change, message):
    model = tiny_model(XLNetModel)
    change(model)
    xlnet_fast.accelerate(model)
    before = snapshot(model)
    with pytest.raises(ArgumentError, match=message):
        xlnet_fast.linear_attention(model)
    assert snapshot(model) == before


def test_it_takes_accelerated_models():
    with pytest.raises(ArgumentError, match=r"accelerate\(model\) first"):
        xlnet_fast.linear_attention(tiny_model(XLNetModel))
    with pytest.raises(ArgumentError, match="contains no XLNetModel"):
        xlnet_fast.linear_attention(nn.Linear(2, 2))
    model = accelerated(tiny_model(XLNetModel))
    model.layer[0] = XLNetLayer(model.config)
    with pytest.raises(ArgumentError, match=r"layer 0 .* accelerate\(model\) first"):
        xlnet_fast.linear_attention(model)


def with_bias(attention):
    attention.k = nn.Linear(16, 16)


def adapted(attention):
    attention.q = LowRank(attention.q)


def hooked(attention):
    attention.o.register_forward_hook(lambda *_: None)


def quantised(attention):
    attention.v.weight = Quantised(attention.v.weight.data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_bias, "k has a bias"),
        (adapted, r"q is a .*LowRank: merge or unload"),
        (hooked, "o has a hook"),
        (quantised, "weight of v is a Quantised"),
    ],
)
def test_restore_refuses_what_it_would_lose(change, message):
    model = linear(tiny_model(XLNetModel))
    change(attentions(model)[1])
    with pytest.raises(ArgumentError, match=message):
        xlnet_fast.restore(model)
    assert xlnet_fast.is_accelerated(model)
    assert {type(attention.r) for attention in attentions(model)} == {nn.Linear}


def test_a_patched_attention_is_told(monkeypatch):
    """It reads parameters."""
    model = linear(tiny_model(XLNetModel))
    theirs = XLNetRelativeAttention.forward
    monkeypatch.setattr(XLNetRelativeAttention, "forward", lambda *a, **k: theirs(*a, **k))
    with pytest.raises(ArgumentError, match="forward was replaced"):
        model(**inputs_of("memory", torch.float32))


def test_explain_names_them():
    model = accelerated(tiny_model(XLNetModel))
    assert "linear_attention" not in str(xlnet_fast.explain(model))
    xlnet_fast.linear_attention(model)
    explanation = xlnet_fast.explain(model)
    assert "q, k, v, o and r of the attention are modules (linear_attention)" in explanation.notes
    assert "in part" not in explanation.verdict
    attentions(model)[0].q = LowRank(attentions(model)[0].q)
    (note,) = (n for n in xlnet_fast.explain(model).notes if "linear_attention" in n)
    assert note.endswith("LowRank")


class ParamWrapper(nn.Module):
    """PEFT's, for ``target_parameters``."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base

    def forward(self, *args, **kwargs):
        return self.base_layer(*args, **kwargs)


def test_projections_adapted_as_experts_are_told_once(monkeypatch):
    monkeypatch.setattr(layers, "_WARNED", [])
    model = accelerated(tiny_model(XLNetModel))
    for layer in model.layer:
        layer.rel_attn = ParamWrapper(layer.rel_attn)
    given = inputs_of("memory", torch.float32)
    with pytest.warns(UserWarning, match=r"target_parameters takes .*linear_attention\(model\)"):
        model(**given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**given)
    assert "linear_attention" in str(xlnet_fast.explain(model))
