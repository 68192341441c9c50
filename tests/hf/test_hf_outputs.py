"""What is returned: types, keys, tuples, attentions, hidden states; and equivalent inputs."""

from __future__ import annotations

import pytest
import torch
from hf_parity import (
    CLASSES,
    F64,
    LAYERS,
    accelerated,
    assert_tight,
    flatten,
    hf_in,
    one_hot_targets,
    padding,
    random_ids,
    random_mems,
    run,
    tiny_model,
    transformer_of,
)
from transformers import XLNetForMultipleChoice, XLNetLMHeadModel, XLNetModel

from xlnet_fast.hf.versions import HAS_HEAD_MASK

BATCH, LENGTH = 2, 6


def inputs_of(cls: type) -> dict:
    ids = random_ids(BATCH, LENGTH)
    return {"input_ids": ids.view(1, BATCH, LENGTH) if cls is XLNetForMultipleChoice else ids}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize("hidden_states", [False, True])
def test_types_and_keys(cls, attentions, hidden_states):
    model = tiny_model(cls)
    flags = {"output_attentions": attentions, "output_hidden_states": hidden_states}
    theirs = model(**inputs_of(cls), **flags)
    ours = accelerated(model)(**inputs_of(cls), **flags)
    assert type(ours) is type(theirs)
    assert list(ours.keys()) == list(theirs.keys())
    assert flatten(ours).keys() == flatten(theirs).keys()
    for (name, a), b in zip(flatten(ours).items(), flatten(theirs).values(), strict=True):
        assert (a.shape, a.dtype, a.is_contiguous()) == (b.shape, b.dtype, b.is_contiguous()), name
    as_tuple = accelerated(model)(**inputs_of(cls), **flags, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert flatten(as_tuple).keys() == flatten(ours.to_tuple()).keys()
    for (name, a), b in zip(flatten(as_tuple).items(), flatten(ours).values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states", "return_dict"])
def test_the_config_decides_what_the_call_does_not(name):
    model = tiny_model(XLNetLMHeadModel, F64)
    setattr(model.config, name, name != "return_dict")
    theirs, ours = model(**inputs_of(XLNetModel)), accelerated(model)(**inputs_of(XLNetModel))
    assert type(ours) is type(theirs)
    assert flatten(ours).keys() == flatten(theirs).keys()


@pytest.mark.parametrize("targets", [None, "one-hot", "dense"])
@pytest.mark.parametrize("attn_type", ["bi", "uni"])
def test_probabilities(targets, attn_type):
    """Rows sum to one, hidden keys have none, and all is as in HF."""
    model = tiny_model(dtype=F64, attn_type=attn_type)
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "output_attentions": True}
    inputs["mems"] = [m.double() for m in random_mems(BATCH, 2)]
    if attn_type == "bi":
        inputs["attention_mask"] = padding(BATCH, LENGTH, "right").double()
    if targets == "one-hot":
        inputs["target_mapping"] = one_hot_targets([[0, 3], [-1, 2]], LENGTH).double()
    if targets == "dense":
        inputs["target_mapping"] = torch.rand(BATCH, 2, LENGTH, dtype=F64)
    ours, theirs = accelerated(model)(**inputs), hf_in(model, F64)(**inputs)
    assert_tight(flatten(dict(ours)), flatten(dict(theirs)))
    assert len(ours.attentions) == LAYERS
    for layer in ours.attentions:
        assert isinstance(layer, tuple) == (targets is not None)
        for probabilities in layer if isinstance(layer, tuple) else (layer,):
            assert probabilities.shape == (BATCH, 2, LENGTH, LENGTH + 2)
            ones = torch.ones((), dtype=F64)
            torch.testing.assert_close(probabilities.sum(-1), ones.expand(BATCH, 2, LENGTH))
    content = ours.attentions[0][0] if targets else ours.attentions[0]
    if attn_type == "uni":
        hidden = torch.ones(LENGTH, LENGTH).triu(1).bool()
        assert (content[..., 2:][..., hidden] == 0).all()
    else:
        assert (content[0, :, :-1, -1] == 0).all()  # the padded last token of the first text


@pytest.mark.parametrize("streams", [1, 2])
def test_asking_for_attentions_changes_nothing_else(streams):
    ours = accelerated(tiny_model(XLNetLMHeadModel, F64))
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "output_hidden_states": True}
    inputs["token_type_ids"] = random_ids(BATCH, LENGTH, 1) % 2
    if streams == 2:
        inputs["perm_mask"] = torch.ones(BATCH, LENGTH, LENGTH, dtype=F64).triu()
        inputs["target_mapping"] = one_hot_targets([[0, 3], [5, 2]], LENGTH).double()
    quiet = run(ours, inputs)
    loud = run(ours, inputs | {"output_attentions": True}, backward=False)
    # The loss of `run` weighs probabilities too, so gradients are compared against HF elsewhere.
    assert_tight({n: x for n, x in loud.items() if "attentions" not in n},
                 {n: x for n, x in quiet.items() if not n.startswith("d ")})  # fmt: skip


def test_embeddings_instead_of_ids():
    model = tiny_model(XLNetLMHeadModel, F64)
    grads = []
    for candidate in (hf_in(model, F64), accelerated(model)):
        embeds = model.transformer.word_embedding(random_ids(BATCH, LENGTH)).detach()
        embeds.requires_grad_()
        output = candidate(inputs_embeds=embeds)
        output.logits.square().sum().backward()
        grads.append({"logits": output.logits.detach(), "d embeds": embeds.grad})
    assert_tight(grads[1], grads[0])
    by_id = accelerated(model)(random_ids(BATCH, LENGTH))
    assert torch.equal(grads[1]["logits"], by_id.logits)


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunked_feed_forward(chunk):
    model = tiny_model(dtype=F64, chunk_size_feed_forward=chunk)
    inputs = {"input_ids": random_ids(BATCH, LENGTH)}
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


def test_positional_arguments_are_hugging_faces():
    model = tiny_model(dtype=F64)
    head_mask = [torch.tensor([0.25, 2.0], dtype=F64)] if HAS_HEAD_MASK else []
    mapping = one_hot_targets([[0, 3], [5, 2]], LENGTH).double()
    arguments = (
        random_ids(BATCH, LENGTH),
        None,
        [m.double() for m in random_mems(BATCH, 2)],
        torch.ones(BATCH, LENGTH, LENGTH, dtype=F64).triu(),
        mapping,
        random_ids(BATCH, LENGTH) % 2,
        1 - padding(BATCH, LENGTH, "left").double(),
        *head_mask,
        None,
        True,
        True,
        True,
        False,
    )
    ours, theirs = accelerated(model)(*arguments), hf_in(model, F64)(*arguments)
    assert_tight(flatten(ours), flatten(theirs))


def test_bi_data_reads_the_second_half_backwards():
    model = tiny_model(dtype=F64, bi_data=True)
    inputs = {"input_ids": random_ids(1, LENGTH).repeat(2, 1)}
    actual = run(accelerated(model), inputs)
    assert_tight(actual, run(hf_in(model, F64), inputs))
    out = actual["last_hidden_state"]
    assert not torch.allclose(out[0], out[1])


@pytest.mark.parametrize("batch", [1, 3])
def test_bi_data_needs_an_even_batch(batch):
    """HF returns an empty tensor for one text; ours says what is wrong."""
    model = tiny_model(bi_data=True)
    if batch == 1:
        assert model(random_ids(1, LENGTH))[0].numel() == 0
    with pytest.raises(ValueError, match=f"bi_data.*{batch} elements.*even"):
        accelerated(model)(random_ids(batch, LENGTH))


@pytest.mark.parametrize("activation", ["relu", "gelu_new", torch.nn.Tanh()])
def test_activations(activation):
    model = tiny_model(dtype=F64)
    for layer in transformer_of(model).layer:
        if callable(activation):
            layer.ff.activation_function = activation
    if isinstance(activation, str):  # the name of one
        model = tiny_model(dtype=F64, ff_activation=activation)
    inputs = {"input_ids": random_ids(BATCH, LENGTH)}
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))
