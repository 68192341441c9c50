"""Labels, options, copies and sizes of our Transformer-XL."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from txl_parity import F64, close, ids, model_of, recipe

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl import TransfoXLLMHeadModel

SETS = ("default", "div_val 1", "no cutoffs")


# --- labels and scores -------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_the_loss_is_the_mean_over_labels_that_count(name):
    model, given, labels = model_of(name), ids("text", 3, 9), recipe.labels("labels", 3, 9)
    labels[1] = -100
    with torch.no_grad():
        out, scores = model(given, labels=labels), model(given).logits
    counts = labels[:, 1:] >= 0
    wanted = -scores[:, :-1].gather(2, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    close(out.losses, wanted.masked_fill(~counts, 0.0))
    close(out.loss, wanted[counts].mean())
    assert 0 < int(counts.sum()) < counts.numel() - 8
    assert out.prediction_scores == () == out.logits


@pytest.mark.parametrize("name", SETS)
def test_no_label_that_counts(name):
    """Hugging Face wrote the end of text into the caller's labels."""
    model, labels = model_of(name), torch.full((2, 6), -100)
    out = model(ids("text", 2, 6), labels=labels)
    assert float(out.loss.detach()) == 0
    assert out.losses.shape == (2, 5)
    assert not out.losses.any()
    found = recipe.gradients(model, "d", out.loss)
    assert not any(x.any() for x in found.values())
    assert bool((labels == -100).all())


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("word", [0, 19, 20, 39, 40, 59])
def test_labels_at_the_ends_of_clusters(name, word):
    model, given = model_of(name), ids("text", 1, 4)
    with torch.no_grad():
        losses = model(given, labels=torch.full((1, 4), word)).losses
        close(losses, -model(given).logits[:, :-1, word])


def test_labels_that_differ_from_the_text_teach_them():
    """The loss falls, and so do the words' own probabilities rise."""
    model = model_of(dtype=torch.float32).train()
    given, labels = ids("text", 2, 10), ids("other", 2, 10)
    steps = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(12):
        loss = model(given, labels=labels).loss
        losses.append(float(loss.detach()))
        steps.zero_grad()
        loss.backward()
        steps.step()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("keep", [1, 3, 7])
def test_logits_of_the_last_tokens_alone(keep):
    model, given = model_of(), ids("text", 2, 7)
    with torch.no_grad():
        whole, some = model(given), model(given, logits_to_keep=keep)
    assert some.logits.shape == (2, keep, recipe.VOCABULARY)
    close(some.logits, whole.logits[:, -keep:])
    assert all(torch.equal(a, b) for a, b in zip(some.mems, whole.mems, strict=True))


def test_logits_to_keep_beside_labels_changes_no_loss():
    model, given = model_of(), ids("text", 2, 7)
    with torch.no_grad():
        close(model(given, labels=given, logits_to_keep=1).loss, model(given, labels=given).loss)


def test_a_segment_of_one_token():
    model, given = model_of(), ids("text", 2, 1)
    out = model(given, labels=given)
    assert out.losses.shape == (2, 0)
    assert float(out.loss.detach()) == 0
    assert model(given).logits.shape == (2, 1, recipe.VOCABULARY)


# --- options -----------------------------------------------------------------------------------


def test_the_memory_that_a_text_starts_with():
    model, given = model_of(), ids("text", 2, 7)
    with torch.no_grad():
        close(model(given, mems=model.init_mems(2)).logits, model(given).logits)
    rows = [tuple(x.shape) for x in model.init_mems(2)]
    assert rows == [(12, 2, 32)] * 2
    empty = model_of(initial_memory="empty")
    assert [tuple(x.shape) for x in empty.init_mems(2)] == [(0, 2, 32)] * 2
    with torch.no_grad():
        close(empty(given, mems=empty.init_mems(2)).logits, empty(given).logits)
        assert not torch.allclose(empty(given).logits, model(given).logits)
        assert empty(given).mems[0].shape[0] == 7
    assert model_of("mem_len 0").init_mems(2) is None


@pytest.mark.parametrize("same_length", [True, False])
def test_memory_length_may_change(same_length):
    model, other = model_of(same_length=same_length), model_of(same_length=same_length, mem_len=5)
    first, second = ids("first", 2, 9), ids("second", 2, 6)
    with torch.no_grad():
        mems = model(first).mems
        model.reset_memory_length(5)
        assert model.transformer.mem_len == 5
        changed, fixed = (m(second, mems=list(mems)) for m in (model, other))
        close(changed.logits, fixed.logits)
        assert changed.mems[0].shape[0] == 5
        close(model(first).logits, other(first).logits)
        model.reset_memory_length(12)
        longer = model(second, mems=changed.mems)
        assert longer.mems[0].shape[0] == 11
    assert model.init_mems(1)[0].shape[0] == 12


def test_same_length_sees_as_many_keys_from_every_token():
    with torch.no_grad():
        seen = model_of()(ids("text", 1, 9), output_attentions=True).attentions
        other = model_of(same_length=False)(ids("text", 1, 9), output_attentions=True).attentions
    assert all(bool(((x > 0).sum(-1) == 12).all()) for x in seen)
    assert all((x[0, 0] > 0).sum(-1).tolist() == list(range(13, 22)) for x in other)


def test_what_the_config_asks_for_is_returned():
    model, given = model_of(), ids("text", 2, 4)
    with torch.no_grad():
        assert model(given).attentions is None
        assert model(given).hidden_states is None
        model.config.output_attentions = model.config.output_hidden_states = True
        out = model(given)
        assert len(out.attentions) == 2
        assert len(out.hidden_states) == 3
        close(out.hidden_states[-1], model.transformer(given).last_hidden_state)
        model.config.return_dict = False
        assert type(model(given)) is tuple


def test_attentions_change_no_result():
    for name in ("default", "odd heads", "same_length False", "pre_lnorm"):
        model, given = model_of(name), ids("text", 2, 5)
        with torch.no_grad():
            mems = None
            for _ in range(3):
                plain = model(given, mems=mems, use_cache=True)
                seen = model(given, mems=mems, output_attentions=True)
                close(seen.logits, plain.logits, name)
                close(seen.mems[1], plain.mems[1], name)
                mems = plain.mems


# --- copies ------------------------------------------------------------------------------------


def saved(x):
    """Written and read again."""
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), saved])
def test_copies_of_model_and_memory(clone):
    model, given = model_of("untie_r False"), ids("text", 2, 7)
    with torch.no_grad():
        mems = model(given, use_cache=True).mems
        mems = model(given, mems=mems, use_cache=True).mems
        expected = model(given, mems=mems).logits
    other, remembered = clone(model), clone(mems)
    assert recipe.shared_names(other) == recipe.shared_names(model)
    with torch.no_grad():
        close(other(given, mems=remembered).logits, expected)
        for parameter in model.parameters():
            parameter.mul_(1.5)
        for x in mems:
            x.zero_()
        close(other(given, mems=remembered).logits, expected)
        assert not torch.allclose(model(given, mems=mems).logits, expected)


@pytest.mark.parametrize("initial", ["zeros", "empty"])
@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, saved])
def test_copied_memory_knows_its_padding(initial, clone):
    """Texts of which one has not begun: what its next padding stands for depends on that."""
    model, given = model_of(initial_memory=initial), ids("text", 2, 7)
    mask = torch.ones_like(given)
    mask[0] = 0
    with torch.no_grad():
        mems = model(given, attention_mask=mask, use_cache=True).mems
        mask[0, 3:] = 1
        for options in ({"attention_mask": mask}, {}):
            expected = model(given, mems=mems, **options).logits
            close(model(given, mems=clone(mems), **options).logits, expected)
            plain = model(given, mems=list(mems), **options).logits
            assert not options or not torch.allclose(plain, expected), "padding changed nothing"


# --- size of the vocabulary --------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SETS, "d_embed 24, div_val 1", "own output weights"])
@pytest.mark.parametrize("tokens", [52, 75])
def test_another_vocabulary(name, tokens):
    model, given = model_of(name), ids("text", 2, 6) % 52
    groups = recipe.shared_names(model)
    with torch.no_grad():
        before, inner = model(given).logits, model.transformer(given)[0]
    embedding = model.resize_token_embeddings(tokens)
    assert embedding is model.get_input_embeddings()
    assert model.config.vocab_size == tokens == model.crit.cutoffs[-1]
    assert model.config.cutoffs == recipe.config_of(name)["cutoffs"]
    assert recipe.shared_names(model) == groups
    with torch.no_grad():
        after = model(given).logits
        close(model.transformer(given)[0], inner)
    assert after.shape == (2, 6, tokens)
    close(after.exp().sum(-1), torch.ones(2, 6, dtype=F64))
    # Words of one cluster stay as they were to each other.
    first = model.crit.cutoffs[-2] if len(model.crit.cutoffs) > 1 else 0
    old, new = (x[..., first:52] - x[..., first : first + 1] for x in (before, after))
    close(new, old)
    model(given, labels=given).loss.backward()


def test_another_vocabulary_is_saved(tmp_path):
    model = model_of(dtype=torch.float32)
    model.resize_token_embeddings(66)
    model.save_pretrained(tmp_path)
    again = TransfoXLLMHeadModel.from_pretrained(tmp_path)
    given = ids("text", 2, 6)
    with torch.no_grad():
        assert torch.equal(again(given).logits, model(given).logits)


def test_a_cluster_in_the_middle_grows():
    model = model_of()
    model.resize_token_embeddings(64, layer=0)
    assert model.config.cutoffs == [24, 44]
    assert model.config.vocab_size == 64
    assert [len(x.weight) for x in model.transformer.word_emb.emb_layers] == [24, 20, 20]
    with torch.no_grad():
        total = model(ids("text", 2, 6)).logits.exp().sum(-1)
    close(total, torch.ones(2, 6, dtype=F64))


@pytest.mark.parametrize(("tokens", "layer"), [(40, -1), (40, 0), (70, 3), (12, 1)])
def test_a_vocabulary_that_cannot_be(tokens, layer):
    with pytest.raises(ArgumentError, match=r"would have no word left|layer is"):
        model_of().resize_token_embeddings(tokens, layer=layer)


# --- gradients ----------------------------------------------------------------------------------


def test_numeric_gradients():
    """Against differences, so that not both of two runs may be wrong alike."""
    model = model_of("untie_r False, mem_len 5, d_embed 24")
    given, labels = ids("text", 1, 5), recipe.labels("labels", 1, 5)
    with torch.no_grad():
        mems = [x.clone() for x in model(ids("before", 1, 6)).mems]
    found = recipe.gradients(model, "d", model(given, mems=mems, labels=labels).loss)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    step = 1e-6
    expected, actual = {}, {}
    for name, x in found.items():
        key = name.removeprefix("d ")
        direction = torch.from_numpy(recipe.uniform(f"towards {key}", tuple(x.shape)))
        losses = []
        with torch.no_grad():
            for sign in (1, -1):
                parameters[key].add_(direction, alpha=sign * step)
                losses.append(model(given, mems=mems, labels=labels).loss)
                parameters[key].sub_(direction, alpha=sign * step)
        expected[name] = (losses[0] - losses[1]) / (2 * step)
        actual[name] = (x * direction).sum()
    for name, x in actual.items():
        assert abs(float(x - expected[name])) < 1e-7, name
    assert sum(abs(float(x)) > 1e-3 for x in actual.values()) > len(actual) // 2


def test_sizes_are_rounded_up():
    model = model_of()
    model.resize_token_embeddings(61, pad_to_multiple_of=8)
    assert model.config.vocab_size == 64
    assert model(ids("rounded", 1, 3)).logits.shape == (1, 3, 64)


def test_labels_of_one_token_have_nothing_to_foretell():
    one = ids("one", 2, 1)
    output = model_of()(one, labels=one)
    assert output.losses.shape == (2, 0)
    assert float(output.loss) == 0.0
