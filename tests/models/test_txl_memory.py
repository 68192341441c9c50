"""Keys and values that are kept beside the memory: what they give is what plain memory gives."""

from __future__ import annotations

import contextlib

import pytest
import torch
from txl_parity import F64, close, ids, model_of

from xlnet_fast.models.transfo_xl import memory
from xlnet_fast.models.transfo_xl.attention import RelPartialLearnableMultiHeadAttn
from xlnet_fast.models.transfo_xl.memory import Memory

OPTIONS = [{}, {"same_length": False}, {"pre_lnorm": True}, {"mem_len": 5}, {"mem_len": 40},
           {"initial_memory": "empty"}, {"clamp_len": 3}, {"untie_r": False}]  # fmt: skip
LENGTHS = (4, 1, 1, 7, 1, 20, 1, 1, 2, 1, 1, 1, 13, 1)
"""Segments: single tokens and several, fewer and more than the memory has."""


def plain(mems):
    """A memory that brings nothing along."""
    return None if mems is None else [x.clone() for x in mems]


def both(model, kept, bare, given, note=""):
    """Read a segment with what is kept and without, compare, and return both memories."""
    a, b = (
        model(given, mems=kept, use_cache=True),
        model(given, mems=plain(bare), use_cache=False),
    )
    close(a.logits, b.logits, note)
    for x, y in zip(a.mems, b.mems, strict=True):
        close(x, y, note)
    return a.mems, b.mems


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield


@pytest.fixture
def of_memory(monkeypatch):
    """Rows that are projected to keys and values again, by layers."""
    rows, real = [], RelPartialLearnableMultiHeadAttn._keys_of

    def spy(self, x):
        rows.append(x.shape[1])
        return real(self, x)

    monkeypatch.setattr(RelPartialLearnableMultiHeadAttn, "_keys_of", spy)
    return rows


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_segments_of_any_length(options):
    model, kept, bare = model_of(**options), None, None
    for number, length in enumerate(LENGTHS):
        kept, bare = both(model, kept, bare, ids(f"segment {number}", 2, length), str(number))
        assert isinstance(kept, Memory)
        assert kept.kept is not None
        assert kept[0].shape[0] <= model.transformer.mem_len


def test_many_single_tokens(monkeypatch):
    """More than the room that is allocated at once, several times."""
    monkeypatch.setattr(memory, "_LEAST_SPARE", 7)
    model, kept, bare = model_of("mem_len 5", n_layer=1), None, None
    for number in range(90):
        kept, bare = both(model, kept, bare, ids(f"token {number}", 1, 1), str(number))


def test_rows_of_the_memory_are_projected_once(of_memory):
    model = model_of()
    mems = model(ids("a", 2, 9), use_cache=True).mems
    of_memory.clear()
    for number, length in enumerate((3, 1, 1, 20, 1)):
        mems = model(ids(f"b {number}", 2, length), mems=mems).mems
    assert not of_memory
    model(ids("b", 2, 3), mems=plain(mems))
    assert of_memory == [12] * model.config.n_layer


def test_a_memory_may_be_gone_on_from_twice():
    model = model_of()
    first = model(ids("start", 2, 9), use_cache=True).mems
    bare = plain(first)
    for number, length in enumerate((1, 3, 1, 14)):
        a, b = both(model, first, bare, ids(f"branch {number}", 2, length), f"{number}")
        both(model, a, b, ids(f"leaf {number}", 2, 1), f"leaf {number}")
    for x, y in zip(first, bare, strict=True):
        assert torch.equal(x, y)


def test_branches_interleave():
    model = model_of()
    root = model(ids("start", 1, 9), use_cache=True).mems
    branches = [(root, plain(root)) for _ in range(3)]
    for step in range(4):
        for number, (kept, bare) in enumerate(branches):
            given = ids(f"{number} {step}", 1, 1 + (number + step) % 2)
            branches[number] = both(model, kept, bare, given, f"{number} {step}")


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("change", ["in place", "another tensor", "a view"])
@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.inference_mode])
def test_a_changed_memory_is_noticed(length, change, context):
    model = model_of()
    with context():
        mems = model(ids("start", 2, 9), use_cache=True).mems
        mems = model(ids("more", 2, 1), mems=mems).mems
        before = model(ids("next", 2, length), mems=mems).logits
        if change == "in place":
            mems[1][:, 0] = 0.0
        elif change == "a view":
            mems[1].transpose(0, 1)[0].zero_()
        else:
            mems[1] = mems[1].clone()
            mems[1][:, 0] = 0.0
        after, _ = both(model, mems, mems, ids("next", 2, length))
    given = model(ids("next", 2, length), mems=mems).logits
    assert not torch.allclose(given[0], before[0])
    close(given[1], before[1])
    assert after is not None


@pytest.mark.parametrize("later", [True, False])
def test_what_a_memory_shows_is_what_counts(later):
    """Two memories may have rows in common; who changes one of them changes what both show."""
    model = model_of()
    first = model(ids("start", 2, 9), use_cache=True).mems
    second = model(ids("more", 2, 1), mems=first).mems
    for x in second if later else first:
        x.mul_(0.5)
    for mems in (first, second):
        both(model, mems, mems, ids("next", 2, 2))
        both(model, mems, mems, ids("next", 2, 1))


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize(
    "name", ["qkv_net.weight", "r_net.weight", "r_w_bias", "r_r_bias", "layer_norm.weight",
             "layer_norm.bias"],
)  # fmt: skip
@pytest.mark.parametrize("pre_lnorm", [False, True])
def test_changed_weights_are_noticed(length, name, pre_lnorm):
    model = model_of(pre_lnorm=pre_lnorm)
    mems = model(ids("start", 2, 9), use_cache=True).mems
    mems = model(ids("more", 2, 1), mems=mems).mems
    before = model(ids("next", 2, length), mems=mems).logits
    weight = model.get_parameter(f"transformer.layers.1.dec_attn.{name}")
    weight.mul_(1.3)
    both(model, mems, mems, ids("next", 2, length))
    assert not torch.allclose(model(ids("next", 2, length), mems=mems).logits, before)


def test_a_step_of_training_in_between():
    model, given = model_of(), ids("start", 2, 9)
    mems = model(given, use_cache=True).mems
    mems = model(given[:, :1], mems=mems).mems
    with torch.enable_grad():
        steps = torch.optim.Adam(model.parameters(), lr=0.1)
        model.train()(given, mems=mems, labels=given).loss.backward()
        steps.step()
    both(model.eval(), mems, mems, ids("next", 2, 1))
    other = model_of("untie_r False")
    both(other, mems, mems, ids("next", 2, 1))


@pytest.mark.parametrize("change", ["clamp_len", "mem_len", "same_length"])
def test_changed_options_are_noticed(change):
    model = model_of(clamp_len=9)
    mems = model(ids("start", 2, 9), use_cache=True).mems
    mems = model(ids("more", 2, 2), mems=mems).mems
    before = model(ids("next", 2, 3), mems=mems).logits
    body = model.transformer
    if change == "clamp_len":
        body.clamp_len = 2
    elif change == "mem_len":
        model.reset_memory_length(5)
    else:
        body.same_length = False
    kept, bare = both(model, mems, mems, ids("next", 2, 3))
    both(model, kept, bare, ids("last", 2, 1))
    assert not torch.allclose(model(ids("next", 2, 3), mems=mems).logits, before)


def test_gradients_go_another_way():
    """In training, and where a gradient is asked for, keys come of the weights."""
    model, given = model_of(), ids("start", 2, 6)
    mems = model(given, use_cache=True).mems
    with torch.enable_grad():
        found = []
        for memory in (mems, plain(mems)):
            loss = model(given, mems=memory, labels=given).loss
            weight = model.transformer.layers[0].dec_attn.qkv_net.weight
            found.append(torch.autograd.grad(loss, weight)[0])
    close(*found)
    assert bool(found[0].any())
    assert all(not x.requires_grad for x in model(given, mems=mems).mems)


@pytest.mark.parametrize("kept", [False, True])
def test_memory_without_gradients_of_the_past(kept):
    """It is detached: the graph of a segment ends at its start."""
    model, given = model_of(), ids("start", 2, 6)
    with torch.enable_grad():
        mems = model(given, use_cache=kept).mems
        assert all(not x.requires_grad for x in mems)
        model(given, mems=mems, labels=given).loss.backward()


def test_inference_mode_and_back():
    model = model_of()
    with torch.inference_mode():
        mems = model(ids("start", 2, 9), use_cache=True).mems
        mems = model(ids("more", 2, 1), mems=mems).mems
        bare = plain(mems)
    kept, bare = both(model, mems, bare, ids("next", 2, 1))
    with torch.inference_mode():
        both(model, kept, bare, ids("last", 2, 3))
    with torch.enable_grad():
        model(ids("last", 2, 3), mems=mems, labels=ids("last", 2, 3)).loss.backward()


@pytest.mark.parametrize(
    ("made", "used"), [(torch.float32, F64), (F64, torch.float32), (F64, torch.bfloat16)]
)
def test_memory_of_another_dtype(made, used):
    """It is taken in the model's own: the same as what a cast by hand gives, to the bit."""
    other, model, given = model_of(dtype=made), model_of(dtype=used), ids("next", 2, 2)
    mems = other(ids("start", 2, 9), use_cache=True).mems
    found = model(given, mems=mems, use_cache=True)
    expected = model(given, mems=[x.to(used) for x in mems], use_cache=True)
    assert found.logits.dtype == used
    assert torch.equal(found.logits, expected.logits)
    for x, y in zip(found.mems, expected.mems, strict=True):
        assert torch.equal(x, y)


def test_selected_texts():
    model = model_of()
    mems = model(ids("start", 3, 9), use_cache=True).mems
    mems = model(ids("more", 3, 1), mems=mems).mems
    order = torch.tensor([2, 0, 2, 1])
    chosen = model._reorder_cache(mems, order)
    both(model, chosen, [x[:, order] for x in mems], ids("next", 4, 1))
    assert chosen.kept is not None
    bare = model._reorder_cache(plain(mems), order)
    assert all(torch.equal(a, b) for a, b in zip(bare, chosen, strict=True))


def test_padding_of_the_memory_is_kept_too():
    model = model_of(initial_memory="empty")
    text, mask = ids("start", 2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    kept = model(text, attention_mask=mask, use_cache=True).mems
    alone = model(text[1:, 4:]).mems
    for number in range(5):
        given = ids(f"next {number}", 2, 1 + number % 2)
        out = model(given, mems=kept)
        single = model(given[1:], mems=list(alone), use_cache=False)
        close(out.logits[1:], single.logits, str(number))
        kept, alone = out.mems, single.mems


def test_hooks_and_replaced_projections_see_every_row():
    """What looks on at a projection is called for each segment, and what it changes counts."""
    model = model_of()
    mems = model(ids("start", 2, 9), use_cache=True).mems
    mems = model(ids("more", 2, 1), mems=mems).mems
    handle = model.transformer.layers[0].dec_attn.qkv_net.register_forward_hook(
        lambda module, args, output: output * 1.5
    )
    changed = model(ids("next", 2, 1), mems=mems).logits
    close(changed, model(ids("next", 2, 1), mems=plain(mems)).logits)
    handle.remove()
    assert not torch.allclose(changed, model(ids("next", 2, 1), mems=mems).logits)


def test_a_lone_element_of_the_list_is_hugging_faces():
    mems = model_of()(ids("start", 2, 9), use_cache=True).mems
    assert isinstance(mems, list)
    assert [tuple(x.shape) for x in mems] == [(12, 2, 32)] * 2
