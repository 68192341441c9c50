"""Attributions of a predictor by captum: they add up, and are captum's of Hugging Face's model."""

from __future__ import annotations

import json

import pytest
import torch
from captum.attr import IntegratedGradients
from tiny_predictors import (
    CLASSES,
    LONG,
    TAGS,
    TEXT,
    folder_of,
    inputs_of,
    labelled,
    plain,
    predictor,
)

QUESTION = {"question": "which value", "context": LONG}
CHOICE = {"passage": LONG, "choices": ["a value", "an object"], "question": "it is _ ."}
CASES = {
    "XLNetForSequenceClassification": [TEXT, LONG, {"text": LONG, "text_pair": "a value"}],
    "XLNetForTokenClassification": [LONG, {"tokens": TEXT.split()}],
    "XLNetForQuestionAnsweringSimple": [QUESTION],
    "XLNetForQuestionAnswering": [QUESTION],
    "XLNetForMultipleChoice": [CHOICE],
}
LABELS = {"XLNetForSequenceClassification": CLASSES, "XLNetForTokenClassification": TAGS}
# Narrow weights: of wide ones, an integral of so few steps is a rough one.
RANGE = 0.1


@pytest.mark.parametrize("architecture", CASES)
def test_they_add_up(architecture):
    """The scores are what the number differs by from that of a text of <pad>."""
    if architecture in LABELS:
        folder = labelled(architecture, LABELS[architecture], initializer_range=RANGE)
    else:
        folder = folder_of(architecture, initializer_range=RANGE)
    answers = predictor(folder)
    for record in CASES[architecture]:
        answer = answers.attributions(record, method="integrated_gradients")
        assert json.loads(json.dumps(answer, allow_nan=False)) == answer
        total = sum(token["score"] for token in answer["tokens"])
        difference = answer["value"] - answer["baseline_value"]
        assert abs(difference) > 1e-3
        assert total == pytest.approx(difference, rel=1e-3, abs=1e-4)
        quick = answers.attributions(record)
        assert quick["value"] == pytest.approx(answer["value"], abs=1e-5)
        assert [token["token"] for token in quick["tokens"]] == [
            token["token"] for token in answer["tokens"]
        ]
        ends = [t["score"] for t in answer["tokens"] if t["token"] in ("<sep>", "<cls>")]
        assert not any(ends)


def test_they_are_captums_of_hugging_faces_model():
    folder = labelled("XLNetForSequenceClassification", CLASSES, initializer_range=RANGE)
    answers, model = predictor(folder), plain(folder).double()
    text = "the value of a class"
    answer = answers.attributions(text, method="integrated_gradients", target="good")
    inputs = inputs_of(answers.encode(text).pieces[0])
    ids = inputs.pop("input_ids")
    table = model.transformer.word_embedding
    baseline = table(torch.cat([torch.full_like(ids[:, :-2], 5), ids[:, -2:]], 1)).detach()

    def forward(embeddings):
        given = {name: x.repeat(len(embeddings), 1) for name, x in inputs.items()}
        return model(inputs_embeds=embeddings, **given).logits[:, 1]

    found = IntegratedGradients(forward).attribute(
        table(ids).detach(), baselines=baseline, n_steps=64
    )
    expected = found.sum(-1)[0].tolist()
    assert [token["score"] for token in answer["tokens"]] == pytest.approx(
        expected, rel=1e-3, abs=1e-5
    )
