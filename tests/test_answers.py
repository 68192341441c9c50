"""Spans of answers: of made-up outputs, and of both heads of Hugging Face by brute force."""

from __future__ import annotations

import pytest
import torch
from transformers import XLNetConfig, XLNetForQuestionAnswering, XLNetForQuestionAnsweringSimple
from transformers.models.xlnet.modeling_xlnet import (
    XLNetForQuestionAnsweringOutput,
    XLNetForQuestionAnsweringSimpleOutput,
)

from xlnet_fast.answers import AnswerSpans, answer_spans
from xlnet_fast.errors import ArgumentError, ShapeError

LENGTH = 6
SHAPE = {
    "vocab_size": 50, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32,
    "initializer_range": 0.3, "num_labels": 2, "start_n_top": LENGTH, "end_n_top": LENGTH,
}  # fmt: skip


def simple_outputs(start, end):
    return XLNetForQuestionAnsweringSimpleOutput(
        start_logits=torch.tensor([start]), end_logits=torch.tensor([end])
    )


LOGITS = simple_outputs([9.0, 9.0, 4.0, 1.0, 3.0, 0.0, 9.0], [9.0, 9.0, 0.0, 2.0, 1.0, 5.0, 9.0])
CONTEXT = torch.tensor([[0, 0, 1, 1, 1, 1, 0]])


def test_the_best_starts_and_ends_are_combined():
    """The best of all lie outside the context."""
    spans = answer_spans(LOGITS, CONTEXT, count=4).triples()[0]
    assert spans == [(2, 5, 9.0), (4, 5, 8.0), (2, 3, 6.0), (3, 5, 6.0)]
    assert answer_spans(LOGITS, CONTEXT, longest=2).triples()[0][0] == (4, 5, 8.0)
    # One start and one end: the best of each.
    assert answer_spans(LOGITS, CONTEXT, count=1).triples() == [[(2, 5, 9.0)]]
    assert answer_spans(LOGITS).triples()[0][0] == (0, 0, 18.0)


def test_a_row_with_too_few_spans_is_filled_up():
    backwards = simple_outputs([0.0, 9.0], [9.0, 0.0])
    found = answer_spans(backwards, count=1)
    assert found.triples() == [[]]
    assert (found.starts.item(), found.ends.item()) == (-1, -1)
    assert found.scores.item() == float("-inf")
    assert len(answer_spans(backwards, count=9).triples()[0]) == 3


def test_a_beam_is_read_in_its_own_order():
    """Two starts, three ends each; ends are the slower index."""
    beam = XLNetForQuestionAnsweringOutput(
        start_top_index=torch.tensor([[2, 4]]),
        start_top_log_probs=torch.tensor([[0.5, 0.25]]),
        end_top_index=torch.tensor([[3, 5, 2, 4, 6, 3]]),
        end_top_log_probs=torch.tensor([[0.5, 0.5, 0.25, 0.25, 0.125, 0.0]]),
    )
    expected = [(2, 3, 1 / 4), (4, 5, 1 / 8), (2, 2, 1 / 8), (4, 4, 1 / 16)]
    inside = torch.tensor([[0, 0, 1, 1, 1, 1, 0]])
    found = answer_spans(beam, inside).triples()[0]
    assert sorted(span[:2] for span in found) == sorted(span[:2] for span in expected)
    scores = {span[:2]: span[2] for span in found}
    for start, end, probability in expected:
        assert scores[start, end] == pytest.approx(torch.tensor(probability).log().item())
    assert found[0][:2] == (2, 3)
    assert len(answer_spans(beam).triples()[0]) == 5  # (2, 6) too; (4, 3) ends before it begins


def all_spans(head, inputs):
    """Every span of every row with its score, by the head's own modules."""
    hidden = head.transformer(**inputs, use_mems=False)[0]
    if isinstance(head, XLNetForQuestionAnsweringSimple):
        start, end = head.qa_outputs(hidden).unbind(-1)
        return start[:, :, None] + end[:, None]
    start = head.start_logits(hidden).log_softmax(-1)
    ends = [
        head.end_logits(hidden, start_positions=torch.full((len(hidden),), i)).log_softmax(-1)
        for i in range(LENGTH)
    ]
    return start[:, :, None] + torch.stack(ends, 1)


@pytest.mark.parametrize("head", [XLNetForQuestionAnsweringSimple, XLNetForQuestionAnswering])
@torch.no_grad()
def test_the_spans_of_a_model_are_all_spans_in_order(head):
    """A padded row on either side, and one without padding."""
    torch.manual_seed(0)
    model = head(XLNetConfig(**SHAPE)).eval()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0], [1] * 6])
    inputs = {"input_ids": torch.randint(6, 50, (3, LENGTH)), "attention_mask": mask.float()}
    spans = answer_spans(model(**inputs, use_mems=False), mask, count=99, longest=3)
    for row, expected, keep in zip(
        spans.triples(), all_spans(model, inputs), mask.tolist(), strict=True
    ):
        possible = {
            (i, j)
            for i in range(LENGTH)
            for j in range(i, min(i + 3, LENGTH))
            if keep[i] and keep[j]
        }
        assert {(i, j) for i, j, _ in row} == possible
        assert row == sorted(row, key=lambda span: -span[2])
        for i, j, score in row:
            assert score == pytest.approx(float(expected[i, j]), rel=1e-4, abs=1e-4)


def test_half_precision_is_scored_in_fp32():
    logits = simple_outputs([40000.0, 0.0], [0.0, 40000.0])
    half = type(logits)(
        start_logits=logits.start_logits.half(), end_logits=logits.end_logits.half()
    )
    assert answer_spans(half).triples()[0][0] == (0, 1, 80000.0)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"outputs": XLNetForQuestionAnsweringOutput(loss=torch.tensor(0.0))}, ArgumentError,
         "XLNetForQuestionAnsweringOutput has no answers: .* without labels"),
        ({"outputs": (torch.zeros(1, 2),)}, ArgumentError, "tuple has no answers"),
        ({"outputs": LOGITS, "count": 0}, ArgumentError, "count is 0 and longest None"),
        ({"outputs": LOGITS, "longest": 0}, ArgumentError, "count is 20 and longest 0"),
        ({"outputs": LOGITS, "allowed": torch.ones(1, 6)}, ShapeError,
         r"allowed is of shape \(1, 6\), expected \(1, 7\)"),
        ({"outputs": LOGITS, "allowed": torch.ones(7)}, ShapeError, r"\(7,\), expected \(1, 7\)"),
    ],
)  # fmt: skip
def test_what_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        answer_spans(**arguments)


def test_spans_are_plain_tensors():
    found = answer_spans(LOGITS, CONTEXT, count=2)
    assert isinstance(found, AnswerSpans)
    assert found.starts.dtype == found.ends.dtype == torch.int64
    assert found.scores.dtype == torch.float32
    assert found.starts.shape == found.ends.shape == found.scores.shape == (1, 2)
