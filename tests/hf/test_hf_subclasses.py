"""Users' own classes: what they override counts, and ``explain`` names what is not accelerated."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hf_parity import (
    F64,
    WIDTH,
    accelerated,
    assert_tight,
    flatten,
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
from transformers import XLNetLMHeadModel, XLNetModel
from transformers.models.xlnet.modeling_xlnet import (
    XLNetFeedForward,
    XLNetLayer,
    XLNetRelativeAttention,
)

import xlnet_fast
from xlnet_fast.hf.families.xlnet.layers import FastLayer

BATCH, LENGTH = 2, 6


class ModelWithSuper(XLNetModel):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state * 2
        return output


class ModelOfItsOwn(XLNetModel):
    def forward(self, input_ids, **kwargs):
        return {"embedded": self.word_embedding(input_ids)}


class ModelWithPositions(XLNetModel):
    def relative_positional_encoding(self, *args, **kwargs):
        return super().relative_positional_encoding(*args, **kwargs) * 0.5


class ModelWithSinusoids(XLNetModel):
    @staticmethod
    def positional_embedding(pos_seq, inv_freq, bsz=None):
        return XLNetModel.positional_embedding(pos_seq / 2, inv_freq, bsz)


class ModelWithMask(XLNetModel):
    def create_mask(self, qlen, mlen):
        mask = super().create_mask(qlen, mlen)
        mask[2:, mlen] = 1  # the first token is visible to the first two only
        return mask


class ModelWithMemory(XLNetModel):
    def cache_mem(self, curr_out, prev_mem):
        return super().cache_mem(curr_out, prev_mem) * 0.5


class LayerWithSuper(XLNetLayer):
    def forward(self, *args, **kwargs):
        output_h, *rest = super().forward(*args, **kwargs)
        return (output_h * 2, *rest)


class LayerOfItsOwn(XLNetLayer):
    def forward(self, output_h, output_g, *args, **kwargs):
        return self.ff(output_h), None if output_g is None else self.ff(output_g)


class LayerWithChunk(XLNetLayer):
    def ff_chunk(self, output_x):
        return super().ff_chunk(output_x) + 1


class AttentionWithSuper(XLNetRelativeAttention):
    def forward(self, *args, **kwargs):
        output_h, *rest = super().forward(*args, **kwargs)
        return (output_h * 2, *rest)


class AttentionWithPost(XLNetRelativeAttention):
    def post_attention(self, h, attn_vec, residual=True):
        return super().post_attention(h, attn_vec, residual) + 1


class AttentionWithOwnPost(XLNetRelativeAttention):
    def post_attention(self, h, attn_vec, residual=True):
        return self.layer_norm(h + torch.einsum("ibnd,hnd->ibh", attn_vec, self.o) * 0.5)


class AttentionWithCore(XLNetRelativeAttention):
    def rel_attn_core(self, q_head, *args, **kwargs):
        return super().rel_attn_core(q_head * 2, *args, **kwargs)


class FeedForwardWithSuper(XLNetFeedForward):
    def forward(self, inp):
        return super().forward(inp) + 1


class FeedForwardOfItsOwn(XLNetFeedForward):
    def forward(self, inp):
        return self.layer_norm(inp)


class NoLayerAtAll(nn.Module):
    """A replacement with HF's interface and nothing of its code; it reads the dense arguments."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(WIDTH, WIDTH)

    def forward(self, output_h, output_g, attn_mask_h, attn_mask_g, r, seg_mat, mems=None,
                target_mapping=None, head_mask=None, output_attentions=False):  # fmt: skip
        summary = r.mean() + seg_mat[..., 1].mean()
        for part in (attn_mask_h, attn_mask_g, mems, target_mapping):
            if part is not None:
                summary = summary + part.mean() * part.shape[0] + part.to(r.dtype).std()
        output = (self.weight(output_h) + summary,
                  None if output_g is None else output_g + summary)  # fmt: skip
        return (*output, attn_mask_h.permute(0, 1, 2, 3)) if output_attentions else output


def with_parts(model_class=XLNetModel, dtype=F64, layer=None, attention=None, ff=None, **config):
    """A model whose last layer, or a part of it, is of a user's class."""
    model = tiny_model(model_class, dtype, **config)
    last = model.layer[-1]
    if layer is not None:
        model.layer[-1] = layer() if layer is NoLayerAtAll else layer(tiny_config(**config))
    if attention is not None:
        last.rel_attn = attention(tiny_config(**config))
    if ff is not None:
        last.ff = ff(tiny_config(**config))
    for parameter in model.layer[-1].parameters():
        nn.init.normal_(parameter, std=0.15)
    return model.to(dtype).eval()


def inputs_of(kind):
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "token_type_ids": random_ids(2, LENGTH) % 2}
    inputs["mems"] = random_mems(BATCH, 3)
    inputs["attention_mask"] = padding(BATCH, LENGTH, "left")
    if kind != "one stream":
        mapping = one_hot_targets([[4, 0], [1, -1]], LENGTH)
        inputs["target_mapping"] = mapping if kind == "one-hot" else mapping + 0.5
        inputs["perm_mask"] = torch.ones(BATCH, LENGTH, LENGTH).triu()
    return in_dtype(inputs, F64)


ACCELERATED = {
    "layer chunk": {"layer": LayerWithChunk},
    "attention post": {"attention": AttentionWithPost},
    "attention own post": {"attention": AttentionWithOwnPost},
    "ff super": {"ff": FeedForwardWithSuper},
    "ff own": {"ff": FeedForwardOfItsOwn},
    "model super": {"model_class": ModelWithSuper},
    "model positions": {"model_class": ModelWithPositions},
    "model sinusoids": {"model_class": ModelWithSinusoids},
    "model memory": {"model_class": ModelWithMemory},
}
LEFT_ALONE = {
    "layer super": ({"layer": LayerWithSuper}, "LayerWithSuper overrides forward"),
    "layer own": ({"layer": LayerOfItsOwn}, "LayerOfItsOwn overrides forward"),
    "attention super": ({"attention": AttentionWithSuper}, "AttentionWithSuper overrides forward"),
    "attention core": (
        {"attention": AttentionWithCore},
        "AttentionWithCore overrides rel_attn_core",
    ),
    "no layer": ({"layer": NoLayerAtAll}, "NoLayerAtAll is not a layer of HF's XLNet"),
}
KINDS = ["one stream", "one-hot", "dense"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ACCELERATED)
def test_overrides_that_the_accelerated_code_calls(what, kind):
    model = with_parts(**ACCELERATED[what])
    ours = accelerated(model)
    assert_tight(run(ours, inputs_of(kind)), run(hf_in(model, F64), inputs_of(kind)))
    assert all(isinstance(layer, FastLayer) for layer in ours.layer)
    assert isinstance(ours, type(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", LEFT_ALONE)
def test_parts_that_keep_their_own_code(what, kind):
    parts, reason = LEFT_ALONE[what]
    model = with_parts(**parts)
    ours = accelerated(model)
    assert_tight(run(ours, inputs_of(kind)), run(hf_in(model, F64), inputs_of(kind)))
    assert isinstance(ours.layer[0], FastLayer)
    assert type(ours.layer[1]) is type(model.layer[1])
    explanation = xlnet_fast.explain(ours)
    assert explanation.verdict == "accelerated in part: 1 of 2 layers keep their own code"
    assert f"layer 1 runs its own code: {reason}" in explanation.notes
    assert reason in " ".join(str(explanation).split())


@pytest.mark.parametrize("attn_type", ["bi", "uni"])
def test_own_layer_without_masks_or_segments(attn_type):
    """What HF leaves out of the dense arguments is left out here."""
    model = with_parts(layer=LayerWithSuper, attn_type=attn_type, same_length=attn_type == "uni")
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "output_attentions": True}
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


def test_own_layer_reads_both_halves_of_bi_data():
    model = with_parts(attention=AttentionWithCore, bi_data=True)
    inputs = {"input_ids": random_ids(4, LENGTH)}
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


def test_compact_arguments_reach_a_dense_layer():
    ours = accelerated(with_parts(layer=LayerWithSuper))
    dense = inputs_of("one-hot")
    compact = {name: x for name, x in dense.items() if name != "target_mapping"}
    compact["target_positions"] = torch.tensor([[4, 0], [1, -1]])
    assert_tight(run(ours, compact), run(ours, dense))


def test_model_that_replaces_forward_altogether():
    model = tiny_model(ModelOfItsOwn)
    ours = accelerated(model)
    ids = random_ids(BATCH, LENGTH)
    assert torch.equal(ours(ids)["embedded"], model(ids)["embedded"])
    explanation = xlnet_fast.explain(ours)
    own = "ModelOfItsOwn overrides XLNetModel.forward"
    assert any(own in note for note in explanation.notes)
    assert explanation.verdict.startswith(f"accelerated in part: {own}")


@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("same_length", [False, True])
def test_own_causal_mask(memory, same_length):
    model = tiny_model(ModelWithMask, F64, attn_type="uni", same_length=same_length)
    inputs = {"input_ids": random_ids(BATCH, LENGTH)}
    inputs["target_mapping"] = one_hot_targets([[4, 1], [2, 5]], LENGTH).double()
    if memory:
        inputs["mems"] = [m.double() for m in random_mems(BATCH, memory)]
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))
    plain = accelerated(tiny_model(XLNetModel, F64, attn_type="uni", same_length=same_length))
    if memory or not same_length:  # else the first token is hidden from those rows anyway
        assert not torch.allclose(plain(**inputs)[0], accelerated(model)(**inputs)[0])


def test_own_causal_mask_beside_a_permutation():
    """Both hide. One text: HF raises on a causal model with a data mask at batch >= 2."""
    model = tiny_model(ModelWithMask, F64, attn_type="uni")
    inputs = {"input_ids": random_ids(1, LENGTH)}
    inputs["perm_mask"] = torch.zeros(1, LENGTH, LENGTH, dtype=F64)
    inputs["perm_mask"][0, :, 1] = 1
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


@pytest.mark.parametrize("name", ["rel_attn_core", "forward"])
def test_method_replaced_on_an_attention_instance(name):
    model = tiny_model(dtype=F64)
    attention = model.layer[0].rel_attn
    method = getattr(attention, name)

    def replaced(*args, **kwargs):
        result = method(*args, **kwargs)
        return result * 0 if isinstance(result, torch.Tensor) else (result[0] * 0, *result[1:])

    setattr(attention, name, replaced)
    ids = random_ids(BATCH, LENGTH)
    expected = model(ids)[0]
    xlnet_fast.accelerate(model)
    torch.testing.assert_close(model(ids)[0], expected, atol=1e-12, rtol=0)
    assert any(
        f"has a {name} of its own on the instance" in n for n in xlnet_fast.explain(model).notes
    )


def test_method_replaced_on_a_model_instance():
    model = tiny_model(dtype=F64)
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    ids = random_ids(BATCH, LENGTH)
    expected = model(ids)[0]
    xlnet_fast.accelerate(model)
    torch.testing.assert_close(model(ids)[0], expected, atol=1e-12, rtol=0)
    assert any("forward of its own on the instance" in n for n in xlnet_fast.explain(model).notes)


@pytest.mark.parametrize("cls", [ModelWithSuper, ModelWithPositions])
def test_subclasses_are_copied_pickled_saved_and_restored(cls, tmp_path):
    model = accelerated(tiny_model(cls))
    ids = random_ids(BATCH, LENGTH)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(ids)[0], model(ids)[0])
        assert isinstance(copied, cls)
        assert xlnet_fast.is_accelerated(copied)
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path).eval()
    assert loaded.config.architectures == [cls.__name__]
    assert torch.equal(accelerated(loaded)(ids)[0], model(ids)[0])
    assert type(xlnet_fast.restore(model)) is cls


class Siamese(nn.Module):
    """Two XLNets in a user's module."""

    def __init__(self):
        super().__init__()
        self.left, self.right = tiny_model(XLNetModel, F64), tiny_model(XLNetLMHeadModel, F64)

    def forward(self, ids):
        return {"left": self.left(ids)[0], "right": self.right(ids)[0]}


def test_module_that_contains_models():
    model = Siamese()
    expected = flatten(model(random_ids(BATCH, LENGTH)))
    state = list(model.state_dict())
    xlnet_fast.accelerate(model)
    assert xlnet_fast.is_accelerated(model.left)
    assert xlnet_fast.is_accelerated(model.right)
    assert list(model.state_dict()) == state
    assert_tight(flatten(model(random_ids(BATCH, LENGTH))), expected)
    xlnet_fast.restore(model)
    assert type(model.left) is XLNetModel
    assert torch.equal(model(random_ids(BATCH, LENGTH))["left"], expected["left"])
