"""int8: what a layer computes, that a text's answer is its own, and what is written and loaded."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
from tiny_export import LABELS, classifier, expected_of, exported, numbers_in
from tiny_finetuning import checkpoint, text_rows, write_csv, write_jsonl
from torch import nn
from transformers import (
    XLNetForMultipleChoice,
    XLNetForQuestionAnswering,
    XLNetForQuestionAnsweringSimple,
    XLNetForSequenceClassification,
    XLNetForTokenClassification,
    XLNetModel,
)

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.export import int8, load_int8
from xlnet_fast.export.source import INPUTS, inputs_of, read


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "out"
    exported(model, folder, "int8")
    return folder


def logits(model, given):
    with torch.no_grad():
        return model(**dict(zip(INPUTS, given, strict=True))).logits


def test_a_layer_is_the_product_of_the_nearest_steps():
    linear = nn.Linear(48, 20)
    x = torch.randn(3, 5, 48) * torch.logspace(-3, 3, 15).view(3, 5, 1)
    x[1, 2] = 0
    w = linear.weight.detach().double()
    w_unit = w.abs().amax(1, keepdim=True) / 127
    x_unit = x.double().abs().amax(-1, keepdim=True) / 127
    nearest = torch.where(x_unit > 0, (x.double() / x_unit), 0).round() * x_unit
    exact = nearest @ ((w / w_unit).round() * w_unit).t() + linear.bias.double()
    with torch.no_grad():
        found = int8.Int8Linear.of(linear)(x)
        whole = linear(x)
    # A value between two steps may go to either: one step of the row, times a weight.
    bound = x_unit.float() * w.abs().max().float() * 1.01 + 1e-6
    assert ((found - exact).abs() <= bound).all()
    assert ((found - exact).abs() < 1e-4 * exact.abs().amax(-1, keepdim=True)).float().mean() > 0.95
    assert torch.equal(found[1, 2], linear.bias)
    assert 0 < (found - whole).norm() / whole.norm() < 0.02


def test_nan_stays_in_its_row():
    layer = int8.Int8Linear.of(nn.Linear(32, 8))
    x = torch.randn(4, 32)
    expected = layer(x)
    x[2, 3] = torch.nan
    found = layer(x)
    assert found[2].isnan().all()
    assert torch.equal(found[[0, 1, 3]], expected[[0, 1, 3]])


def test_a_gradient_is_refused():
    layer = int8.Int8Linear.of(nn.Linear(32, 8))
    with pytest.raises(ArgumentError, match=r"no gradient: call it under torch.no_grad\(\)"):
        layer(torch.randn(2, 32, requires_grad=True))


def test_what_is_loaded_answers_near_the_model_and_each_text_for_itself(model, folder):
    loaded, whole = load_int8(folder), read(str(model))
    count = sum(isinstance(module, int8.Int8Linear) for module in loaded.modules())
    assert count == 7  # q, k, v, o, r and two of the feed-forward
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    ids, mask, segments = given = inputs_of(5, 21, whole.config.vocab_size)
    found, expected = logits(loaded, given), whole.head(*given)[0]
    assert 1e-4 < (found - expected).norm() / expected.norm() < 0.05
    for row in range(5):
        kept = mask[row] == 1
        alone = logits(loaded, [x[row : row + 1, kept] for x in (ids, mask, segments)])
        torch.testing.assert_close(alone[0], found[row], atol=2e-3, rtol=0)


def test_the_record_tells_what_it_costs(model, folder, monkeypatch, capsys):
    record = json.loads((folder / "export.json").read_text())
    assert record["texts"]["texts"] == 200
    assert 0 < record["texts"]["relative_error"] < 0.05
    assert record["texts"]["agreement"] > 0.9
    assert record["labels"] == list(LABELS)
    whole = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert (folder / int8.FILE).stat().st_size < 0.8 * whole
    monkeypatch.chdir(folder)
    exec(shlex.split(record["run"])[2], {})
    found = numbers_in(capsys.readouterr().out)
    assert 0 < (found - expected_of(model)).norm() / found.norm() < 0.05


def test_weights_are_not_taken_for_hugging_faces(folder):
    with pytest.raises(OSError, match="no file named"):
        XLNetForSequenceClassification.from_pretrained(folder)


def test_who_may_read_the_config_may_read_the_weights(folder):
    assert (folder / int8.FILE).stat().st_mode == (folder / "config.json").stat().st_mode


@pytest.mark.parametrize("write", [write_jsonl, write_csv])
def test_labels_of_a_file_are_counted(model, tmp_path, write):
    rows = text_rows(12)
    data = write(tmp_path / ("rows.csv" if write is write_csv else "rows.jsonl"), rows)
    found = exported(model, tmp_path / "out", "int8", data=str(data))["data"]
    assert found["records"] == 12
    assert found["agreement"] >= 0.9
    assert 0 <= found["accuracy_fp32"] <= 1
    assert abs(found["accuracy_fp32"] - found["accuracy_int8"]) <= 0.1


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "a"}, "row 2 has no label"),
        ({"label": "good", "text": ""}, "row 2 has no text"),
        ({"text": "a", "label": "fair"}, "the model has no label 'fair', only bad, good, so so"),
    ],
)
def test_rows_that_cannot_be_used_are_told(model, tmp_path, row, told):
    data = write_jsonl(tmp_path / "rows.jsonl", [*text_rows(1), row])
    with pytest.raises(ArgumentError, match=told):
        exported(model, tmp_path / "out", "int8", data=str(data))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_too_large_an_error_is_not_written(model, tmp_path):
    with pytest.raises(XLNetFastError, match="more than most_error, 1e-06: nothing was written"):
        exported(model, tmp_path / "out", "int8", most_error=1e-6)
    assert not list(tmp_path.iterdir())


def test_a_language_model_keeps_its_tied_head(tmp_path):
    record = exported(checkpoint(tmp_path / "lm", n_layer=1), tmp_path / "out", "int8")
    assert record["texts"]["agreement"] > 0.9
    loaded = load_int8(tmp_path / "out")
    assert loaded.lm_loss.weight is loaded.transformer.word_embedding.weight


@pytest.mark.parametrize(
    ("cls", "shape", "chooses"),
    [
        (XLNetModel, {}, False),
        (XLNetForMultipleChoice, {}, False),
        (XLNetForQuestionAnswering, {}, False),
        (XLNetForQuestionAnsweringSimple, {}, True),
        (XLNetForTokenClassification, {}, True),
        (XLNetForSequenceClassification, {"problem_type": "multi_label_classification"}, True),
        (XLNetForSequenceClassification, {"num_labels": 1}, False),
    ],
)
def test_every_head_has_its_error_told(cls, shape, chooses, tmp_path, monkeypatch):
    monkeypatch.setattr("xlnet_fast.export.accuracy.TEXTS", 20)
    record = exported(classifier(tmp_path / "model", cls, **shape), tmp_path / "out", "int8")
    assert 0 < record["texts"]["relative_error"] < 0.05
    assert 15 <= record["texts"]["texts"] <= 21
    assert ("agreement" in record["texts"]) == chooses
    # Of random weights the likeliest tokens of a span are nearly as likely.
    assert record["texts"].get("agreement", 1.0) > (0.5 if "Answering" in cls.__name__ else 0.9)
    with pytest.raises(ArgumentError, match="without data its outputs are compared"):
        exported(tmp_path / "model", tmp_path / "other", "int8", data="rows.csv")


def test_folders_that_cannot_be_loaded_are_told(folder, tmp_path):
    with pytest.raises(ArgumentError, match=r"holds no int8\.safetensors"):
        load_int8(tmp_path)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (folder / int8.FILE).read_bytes()
    (tmp_path / int8.FILE).write_bytes(whole[:-100])
    with pytest.raises(ArgumentError, match="cannot be read"):
        load_int8(tmp_path)
    (tmp_path / int8.FILE).write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    for change in ({"d_inner": 128}, {"n_layer": 2}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ArgumentError, match="is of another model"):
            load_int8(tmp_path)
