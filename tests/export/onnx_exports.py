"""Exports to ONNX in a process of onnxruntime: ``make onnx``."""

from __future__ import annotations

import pytest
import torch
from tiny_export import classifier, expected_of, exported, numbers_in, run_as_told
from transformers import (
    XLNetForMultipleChoice,
    XLNetForQuestionAnswering,
    XLNetForQuestionAnsweringSimple,
    XLNetForTokenClassification,
    XLNetLMHeadModel,
    XLNetModel,
)

CLASSES = [
    XLNetModel,
    XLNetLMHeadModel,
    XLNetForTokenClassification,
    XLNetForMultipleChoice,
    XLNetForQuestionAnsweringSimple,
    XLNetForQuestionAnswering,
]


def test_the_command_that_is_told_gives_the_models_logits(tmp_path):
    model = classifier(tmp_path / "model")
    record = exported(model, tmp_path / "out", "onnx")
    found = numbers_in(run_as_told(record, tmp_path / "out"))
    torch.testing.assert_close(found, expected_of(model), atol=1e-4, rtol=0)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_head_is_the_model_up_to_rounding(cls, tmp_path):
    """``export`` itself compares, shape by shape, and raises."""
    record = exported(classifier(tmp_path / "model", cls), tmp_path / "a.onnx", "onnx")
    assert len(record["checked"]) >= 5
    assert all(one["error"] <= one["bound"] for one in record["checked"])
