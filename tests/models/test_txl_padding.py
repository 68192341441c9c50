"""attention_mask, which Hugging Face's Transformer-XL lacked: padding changes no other token."""

from __future__ import annotations

import pytest
import torch
from txl_parity import close, ids, model_of, recipe

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.models.transfo_xl import TransfoXLForSequenceClassification

LENGTHS = recipe.LENGTHS
BEGINNINGS = [
    {"initial_memory": initial, "same_length": same}
    for initial in ("zeros", "empty")
    for same in (True, False)
]
OPTIONS = [*BEGINNINGS, {"initial_memory": "zeros", "pre_lnorm": True},
           {"initial_memory": "zeros", "mem_len": 5}, {"mem_len": 0, "same_length": False},
           {"initial_memory": "empty", "mem_len": 40}]  # fmt: skip
USE_CACHE = [False, True]


def segments(x, lengths=LENGTHS):
    return torch.split(x, list(lengths), dim=1)


def read(model, parts, masks=None, **options):
    """Scores of all segments of a text, (B, length, V)."""
    mems, found = None, []
    with torch.no_grad():
        for number, part in enumerate(parts):
            mask = None if masks is None else masks[number]
            out = model(part, mems=mems, attention_mask=mask, **options)
            found.append(out.prediction_scores)
            mems = out.mems
    return torch.cat(found, 1)


@pytest.mark.parametrize("use_cache", USE_CACHE)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("padded", [3, 13])
def test_a_text_padded_on_the_left_is_read_as_alone(options, padded, use_cache):
    """Alone it is cut where the padded one is: without ``same_length`` that decides who is seen."""
    model, whole = model_of(**options), ids("left", 2, sum(LENGTHS))
    mask = torch.ones_like(whole)
    mask[1, :padded] = 0
    together = read(model, segments(whole), segments(mask), use_cache=use_cache)
    close(together[0], read(model, segments(whole[:1]), use_cache=use_cache)[0], "not padded")
    parts = [part[:, keep[0] > 0] for part, keep in zip(segments(whole[1:]), segments(mask[1:]),
                                                        strict=True)]  # fmt: skip
    alone = read(model, [part for part in parts if part.shape[1]], use_cache=use_cache)
    close(together[1, padded:], alone[0], "padded")


@pytest.mark.parametrize("options", BEGINNINGS, ids=str)
def test_without_the_mask_padding_is_text(options):
    model, whole = model_of(**options), ids("left", 1, 10)
    mask = torch.ones_like(whole)
    mask[:, :3] = 0
    with torch.no_grad():
        masked, plain = (model(whole, attention_mask=x).logits[:, 3:] for x in (mask, None))
    assert float((masked - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("options", BEGINNINGS, ids=str)
def test_gradients_of_a_padded_text_are_those_alone(options):
    model, whole = model_of(**options), ids("left", 1, 10)
    mask, labels = torch.ones_like(whole), whole.clone()
    mask[:, :4], labels[:, :5] = 0, -100  # the first word after the padding is nobody's target
    padded = model(whole, attention_mask=mask, labels=labels).loss
    alone = model(whole[:, 4:], labels=whole[:, 4:]).loss
    close(padded, alone)
    of_padded, of_alone = (recipe.gradients(model, "d", x) for x in (padded, alone))
    for name, x in of_padded.items():
        close(x, of_alone[name], name)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("use_cache", USE_CACHE)
def test_padding_on_the_right_is_seen_by_none(options, use_cache):
    """Neither by tokens nor, as memory, by the next segments."""
    model, whole = model_of(**options), ids("right", 2, sum(LENGTHS))
    mask = torch.ones_like(whole)
    mask[1, 7:10] = 0
    mask[1, 18:20] = 0
    other = whole.masked_fill(mask == 0, 5)
    assert not torch.equal(whole, other)
    a, b = (read(model, segments(x), segments(mask), use_cache=use_cache) for x in (whole, other))
    real = mask > 0
    close(a[real], b[real])
    alone = read(model, segments(whole[1:], LENGTHS)[:1], use_cache=use_cache)
    close(a[1, :7], alone[0, :7])
    unmasked = [read(model, segments(x), use_cache=use_cache) for x in (whole, other)]
    sees_memory = model.transformer.mem_len > 0
    assert torch.allclose(*(x[1, 10:18] for x in unmasked)) != sees_memory


@pytest.mark.parametrize("hidden", [1, 5, 12])
@pytest.mark.parametrize("options", BEGINNINGS, ids=str)
def test_a_mask_of_the_memory_too(hidden, options):
    """Its oldest rows hidden are as if the memory had begun behind them."""
    model = model_of(**options)
    first, second = ids("first", 2, 12), ids("second", 2, 6)
    with torch.no_grad():
        mems = model(first).mems
        rows = mems[0].shape[0]
        mask = torch.ones(2, rows + 6, dtype=torch.long)
        mask[:, :hidden] = 0
        masked = model(second, mems=mems, attention_mask=mask).logits
        cut = model(second, mems=[x[hidden:] for x in mems]).logits
        whole = model(second, mems=mems).logits
    close(masked, cut)
    out_of_reach = hidden == 1 and options["same_length"]
    assert torch.allclose(masked, whole) == out_of_reach


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_a_mask_of_ones_changes_nothing(dtype):
    model, given = model_of(), ids("ones", 2, 8)
    mask = torch.ones(2, 8, dtype=dtype)
    with torch.no_grad():
        plain, masked = model(given), model(given, attention_mask=mask)
        close(masked.logits, plain.logits)
        again = model(given, mems=masked.mems, attention_mask=mask).logits
        close(again, model(given, mems=plain.mems).logits)
    mask[1, :2] = 0
    with torch.no_grad():
        as_numbers = model(given, attention_mask=mask.long()).logits
        assert torch.equal(model(given, attention_mask=mask).logits, as_numbers)


def test_padding_alone_gives_finite_numbers():
    for options in BEGINNINGS:
        model = model_of(**options)
        mask = torch.zeros(2, 6, dtype=torch.long)
        loss = model(ids("none", 2, 6), attention_mask=mask, labels=ids("none", 2, 6)).loss
        gradients = recipe.gradients(model, "d", loss)
        assert loss.isfinite(), options
        assert all(x.isfinite().all() for x in gradients.values()), options


def test_padded_embeddings_may_be_anything():
    model = model_of()
    embedded = torch.from_numpy(recipe.uniform("embedded", (1, 7, 32)))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    bad = embedded.clone()
    bad[:, :2] = float("nan")
    with torch.no_grad():
        a, b = (model(inputs_embeds=x, attention_mask=mask).logits[:, 2:] for x in (embedded, bad))
    close(a, b)


def test_attentions_give_padding_nothing():
    model, mask = model_of(same_length=False), torch.ones(2, 7, dtype=torch.long)
    mask[0, 5:] = mask[1, :2] = 0
    with torch.no_grad():
        out = model(ids("seen", 2, 7), attention_mask=mask, output_attentions=True)
        plain = model(ids("seen", 2, 7), attention_mask=mask)
    close(out.logits[mask > 0], plain.logits[mask > 0])
    for x in out.attentions:
        assert x[0, :, :5, 12 + 5 :].abs().max() == 0
        # Two zeros of padding stand for the two oldest rows of the memory.
        assert x[1, :, 2:, :2].abs().max() == 0
        close(x[1, :, 2:].sum(-1), torch.ones_like(x[1, :, 2:, 0]))


def test_classification_of_padded_texts():
    """The last token that the mask has, wherever padding is, without a pad_token_id too."""
    model = model_of(cls=TransfoXLForSequenceClassification, num_labels=3)
    text, mask = ids("classes", 3, 8), torch.ones(3, 8, dtype=torch.long)
    mask[1, 5:] = mask[2, :3] = 0
    with torch.no_grad():
        together = model(text, attention_mask=mask).logits
        alone = [model(text[row : row + 1, mask[row] > 0]).logits for row in range(3)]
    close(together, torch.cat(alone))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(2, 5), r"attention_mask is \(2, 5\), expected a tensor of shape \(2, 6\)"),
        (torch.ones(1, 6), r"\(1, 6\)"),
        (torch.ones(6), r"attention_mask is \(6,\)"),
        (torch.ones(2, 18), r"\(2, 18\)"),
        ([[1] * 6] * 2, "attention_mask is list"),
    ],
)  # fmt: skip
def test_a_mask_of_another_shape_is_refused(mask, words):
    with pytest.raises(ShapeError, match=words):
        model_of()(ids("bad", 2, 6), attention_mask=mask)


def test_a_mask_of_other_numbers_is_refused():
    additive = torch.zeros(2, 6).masked_fill(torch.eye(6)[:2] > 0, -1e9)
    with pytest.raises(ArgumentError, match="1 for tokens, 0 for padding"):
        model_of()(ids("bad", 2, 6), attention_mask=additive)
