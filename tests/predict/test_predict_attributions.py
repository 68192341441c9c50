"""Gradient x input, against Hugging Face's own model in float64, and what tokens are told of."""

from __future__ import annotations

import sys

import pytest
import torch
from tiny_predictors import CLASSES, LONG, TAGS, TEXT, folder_of, inputs_of, labelled, predictor
from tiny_predictors import plain as plain_model

from xlnet_fast.errors import ArgumentError
from xlnet_fast.tolerance import assert_within

QUESTION = {"question": " which value ", "context": LONG}
CHOICE = {"passage": TEXT, "choices": ["a value", "an object"], "question": "it is _ ."}


@pytest.fixture(scope="module")
def classifier():
    return predictor(labelled("XLNetForSequenceClassification", CLASSES))


def plain(answers):
    """HF's own model in float64."""
    return plain_model(answers.name).double()


def expected_of(model, piece, value, *, choice=False):
    """Of each token of a piece the embedding times the gradient, and the value."""
    inputs = inputs_of(piece)
    embeddings = model.transformer.word_embedding(inputs.pop("input_ids")).detach()
    embeddings.requires_grad_()
    given = {"inputs_embeds": embeddings, **inputs}
    if choice:
        given = {name: x[:, None] for name, x in given.items()}
    number = value(model(**given))
    (gradient,) = torch.autograd.grad(number, embeddings)
    return (gradient * embeddings).sum(-1)[0].detach(), number.item()


def scores(answer):
    return [token["score"] for token in answer["tokens"]]


def compare(answer, expected, value):
    assert answer["method"] == "gradient_x_input"
    assert answer["value"] == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert scores(answer) == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-5)
    assert max(map(abs, scores(answer))) > 1e-3


@pytest.mark.parametrize("target", [None, "bad", "none"])
def test_a_label(classifier, target):
    record = {"text": "the value of a class", "text_pair": "an object"}
    answer = classifier.attributions(record, target=target)
    assert answer["label"] == (target or classifier(record)["label"])
    label = {name: i for i, name in CLASSES.items()}[answer["label"]]
    (piece,) = classifier.encode(record).pieces
    compare(answer, *expected_of(plain(classifier), piece, lambda out: out.logits[0, label]))
    texts = [
        (token["field"], record[token["field"]][token["begin"] : token["end"]])
        for token in answer["tokens"]
    ]
    assert [text for field, text in texts if field == "text"] == [
        "the", "value", "of", "a", "class", ""
    ]  # fmt: skip
    assert "".join(text for field, text in texts if field == "text_pair") == "anobject"
    assert [token["token"] for token in answer["tokens"]][-2:] == ["<sep>", "<cls>"]


def test_windows_add_up(classifier):
    """By finite differences of the answer's logit, a token of two windows at once."""
    encoded = classifier.encode(LONG)
    assert len(encoded.pieces) > 2
    answer = classifier.attributions(LONG, target="good")
    model, total = plain(classifier), sum(len(piece) for piece in encoded.pieces)
    expected, value = [], 0.0
    for piece in encoded.pieces:
        part, number = expected_of(model, piece, lambda out: out.logits[0, 1])
        expected.append(part * len(piece) / total)
        value += number * len(piece) / total
    assert answer["value"] == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert sum(scores(answer)) == pytest.approx(
        sum(part.sum().item() for part in expected), rel=1e-3, abs=1e-4
    )
    begin, end = (piece.notes["parts"][0] for piece in encoded.pieces[:2])
    shared = begin[1] - end[0]
    assert shared == 8
    coded = classifier.task.coded(LONG, add_special_tokens=False, return_offsets_mapping=True)
    place = coded["offset_mapping"][end[0]]
    (found,) = [
        token["score"] for token in answer["tokens"]
        if (token["begin"], token["end"]) == place and token["token"][0] != "<"
    ]  # fmt: skip
    both = expected[0][end[0]] + expected[1][0]
    assert found == pytest.approx(both.item(), rel=1e-3, abs=1e-5)
    begins = [token["begin"] for token in answer["tokens"]]
    assert begins == sorted(begins)


@pytest.mark.parametrize("target", [None, 7])
def test_a_word(target):
    answers = predictor(labelled("XLNetForTokenClassification", TAGS))
    answer = answers.attributions(LONG, target=target)
    labels = [word["label"] for word in answers(LONG)["words"]]
    word = answer["word"]
    assert word == (
        target if target is not None else [label != "O" for label in labels].index(True)
    )
    assert answer["label"] == labels[word]
    assert answer["text"] == LONG.split()[word]
    label = {name: i for i, name in TAGS.items()}[answer["label"]]
    (piece,) = [p for p in answers.encode(LONG).pieces if word in p.notes["words"]]
    place = piece.notes["places"][piece.notes["words"].index(word)]
    compare(answer, *expected_of(plain(answers), piece, lambda out: out.logits[0, place, label]))
    for token in answer["tokens"][:-2]:
        text = LONG[token["begin"] : token["end"]]
        assert text
        assert not any(map(str.isspace, text))
    given = answers.attributions({"tokens": ["a", "", "class"]}, target=1)
    assert [(t["begin"], t["end"]) for t in given["tokens"]][-3:] == [(2, 3), (3, 3), (3, 3)]
    assert any((t["token"], t["begin"], t["end"]) == ("<unk>", 1, 2) for t in given["tokens"])


def test_an_answer_of_the_simple_head():
    answers = predictor(folder_of("XLNetForQuestionAnsweringSimple", num_labels=2))
    answer, whole = answers.attributions(QUESTION), answers(QUESTION)
    assert {name: answer[name] for name in ("answer", "begin", "end")} == {
        name: whole[name] for name in ("answer", "begin", "end")
    }
    assert answer["value"] == pytest.approx(whole["score"], abs=1e-4)
    for token in answer["tokens"]:
        assert len(QUESTION[token["field"]][token["begin"] : token["end"]]) < 20
    asked = [t for t in answer["tokens"] if t["field"] == "question" and t["end"] > t["begin"]]
    assert QUESTION["question"][asked[0]["begin"] : asked[-1]["end"]] == "which value"


class BothEnds(torch.nn.Module):
    """The score of an answer that begins and ends at two places, of the head with beams."""

    def __init__(self, model, start, end):
        super().__init__()
        self.model, self.transformer = model, model.transformer
        self.start, self.end = start, end

    def forward(self, **given):
        hidden = self.transformer(**given)[0]
        ends = self.model.end_logits(hidden, start_positions=torch.tensor([self.start]))
        return self.model.start_logits(hidden)[0, self.start] + ends[0, self.end]


def test_an_answer_of_the_beam_head():
    """Its end is the one that follows from its start."""
    answers = predictor(folder_of("XLNetForQuestionAnswering", num_labels=2))
    models = plain_model(answers.name), plain(answers)
    results = []
    for words in (" which value ", "which object", "what is it", "a value or an object"):
        question = {**QUESTION, "question": words}
        answer, encoded = answers.attributions(question), answers.encode(question)
        found = []
        for piece, result in zip(encoded.pieces, answers.run(encoded.pieces), strict=True):
            columns = (result[name].tolist() for name in ("scores", "starts", "ends"))
            found += [(*row, piece) for row in zip(*columns, strict=True)]
        _, start, end, piece = max(found, key=lambda one: one[0])
        eager, exact = (
            expected_of(BothEnds(model, start, end), piece, lambda number: number)
            for model in models
        )
        assert answer["method"] == "gradient_x_input"
        assert answer["value"] == pytest.approx(exact[1], rel=1e-4, abs=1e-5)
        assert max(map(abs, scores(answer))) > 1e-3
        results.append((torch.tensor(scores(answer)), eager[0], exact[0]))
    assert_within(*map(torch.cat, zip(*results, strict=True)))


def test_a_choice():
    answers = predictor(folder_of("XLNetForMultipleChoice"))
    for target in (None, 0, 1):
        answer = answers.attributions(CHOICE, target=target)
        choice = answers(CHOICE)["choice"] if target is None else target
        assert answer["choice"] == choice
        assert answer["ending"] == f"it is {CHOICE['choices'][choice]} ."
        pieces = [p for p in answers.encode(CHOICE).pieces if p.notes["choice"] == choice]
        if len(pieces) == 1:
            value = expected_of(
                plain(answers), pieces[0], lambda out: out.logits[0, 0], choice=True
            )
            compare(answer, *value)
        texts = {"passage": TEXT, "ending": answer["ending"]}
        words = [texts[t["field"]][t["begin"] : t["end"]] for t in answer["tokens"]]
        assert "".join(w for w in words if w).startswith("Thevalueofaclass")


def test_what_is_refused(classifier, monkeypatch):
    cases = [
        ({"method": "lime"}, "method must be one of gradient_x_input, integrated_gradients"),
        ({"target": "odd"}, "target is 'odd', expected one of: bad, good, none"),
        ({"top_k": 0}, "top_k is 0"),
    ]
    for settings, message in cases:
        with pytest.raises(ArgumentError, match=message):
            classifier.attributions(TEXT, **settings)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ArgumentError, match="pip install captum"):
        classifier.attributions(TEXT, method="integrated_gradients")
    memory = predictor(labelled("XLNetForSequenceClassification", CLASSES), long="memory")
    with pytest.raises(ArgumentError, match="long must be 'window' or 'truncate'"):
        memory.attributions(LONG)
    with pytest.raises(ArgumentError, match="expected the number of a word, 0 to 1"):
        predictor(labelled("XLNetForTokenClassification", TAGS)).attributions("a b", target=5)
    with pytest.raises(ArgumentError, match="expected 0 to 1, a choice"):
        predictor(folder_of("XLNetForMultipleChoice")).attributions(CHOICE, target=2)
    for architecture in ("XLNetModel", "XLNetLMHeadModel"):
        with pytest.raises(ArgumentError, match="are not explained by their tokens"):
            predictor(folder_of(architecture)).attributions("a class", **{})
