"""A program of torch.export: the model in a process of its own, and nothing where it is not."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_export import LABELS, classifier, exported, numbers_in, run_as_told
from transformers import (
    XLNetForMultipleChoice,
    XLNetForQuestionAnswering,
    XLNetForQuestionAnsweringSimple,
    XLNetModel,
)

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.export import program, source
from xlnet_fast.export.check import Ranges, check


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def read(model):
    return source.read(str(model))


def test_the_command_that_is_told_gives_the_models_logits(model, read, tmp_path):
    file = tmp_path / "model.pt2"
    record = exported(model, file, "torch")
    assert record == json.loads((tmp_path / "model.pt2.export.json").read_text())
    assert record["labels"] == list(LABELS)
    assert record["ranges"] == {"batch": [1, 4], "length": [1, 40]}
    tried = {(one["rows"], one["length"]) for one in record["checked"]}
    assert {(1, 1), (4, 5), (1, 40)} <= tried
    assert all(one["error"] <= one["bound"] < 1e-5 for one in record["checked"])
    assert len(list(tmp_path.iterdir())) == 2
    ids = torch.tensor([[17, 22, 4, 3]])  # those of the command
    expected = read.plain(ids, torch.ones_like(ids), torch.tensor([[0, 0, 0, 2]]))[0]
    found = numbers_in(run_as_told(record, tmp_path))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)  # as printed


def test_folders_are_replaced_when_asked(model, read, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "write", lambda source, ranges, path: path.write_bytes(b"1"))
    monkeypatch.setattr(program, "load", lambda path: read.head)
    folder = tmp_path / "out"
    exported(model, folder, "torch")
    assert {"export.json", "model.pt2", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
    with pytest.raises(ArgumentError, match="out holds an export: add --overwrite"):
        exported(model, folder, "torch")
    (folder / "stray").touch()
    exported(model, folder, "torch", overwrite=True)
    assert not (folder / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_portable_programs_have_pytorchs_ops_alone(model, read):
    portable = source.read(str(model), portable=True)
    ranges = Ranges(1, 1, 30)  # one row: a constant of the program
    made = program.traced(portable, ranges)
    assert not [n for n in made.graph.nodes if "xlnet_fast" in str(n.target)]
    check(made.module(), portable, ranges)


def wrong(run):
    return lambda *given: tuple(x * 1.001 for x in run(*given))


def poisoned(run):
    return lambda *given: tuple(x * torch.nan for x in run(*given))


def short(run):
    return lambda *given: tuple(x[:, 1:] for x in run(*given))


def failing_beyond_three_rows(run):
    def broken(ids, mask, segments):
        if len(ids) > 3:
            raise RuntimeError("no more")
        return run(ids, mask, segments)

    return broken


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (wrong, "the export is wrong: logits with 1 rows of 1 tokens is off by"),
        (poisoned, "is off by inf"),
        (short, "gives shapes"),
        (failing_beyond_three_rows, "fails with 4 rows of 5 tokens: RuntimeError: no more"),
    ],
)
def test_what_is_not_the_model_is_not_written(model, read, tmp_path, monkeypatch, fault, told):
    monkeypatch.setattr(program, "write", lambda source, ranges, path: path.write_bytes(b"1"))
    monkeypatch.setattr(program, "load", lambda path: fault(read.head))
    old = tmp_path / "old.pt2"
    old.write_text("an earlier one")
    for output in (tmp_path / "new", old):
        with pytest.raises(XLNetFastError, match=told):
            exported(model, output, "torch", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old.pt2"]
    assert old.read_text() == "an earlier one"


def test_a_file_and_its_record_lie_side_by_side(model, read, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "write", lambda source, ranges, path: path.write_bytes(b"1"))
    monkeypatch.setattr(program, "load", lambda path: read.head)
    exported(model, tmp_path / "a.pt2", "torch", portable=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt2", "a.pt2.export.json"]
    with pytest.raises(ArgumentError, match=r"a\.pt2 exists: add --overwrite"):
        exported(model, tmp_path / "a.pt2", "torch")
    record = exported(model, tmp_path / "a.pt2", "torch", overwrite=True)
    assert record["needs"] == ["torch", "xlnet_fast"]
    assert json.loads((tmp_path / "a.pt2.export.json").read_text()) == record


@pytest.mark.parametrize(
    "cls",
    [
        XLNetModel,
        XLNetForMultipleChoice,
        XLNetForQuestionAnswering,
        XLNetForQuestionAnsweringSimple,
    ],
)
def test_every_head_gives_tensors_of_rows_and_tokens(cls, tmp_path):
    read = source.read(str(classifier(tmp_path, cls)))
    ranges = Ranges(3, read.least_length, 20)
    assert ranges.least_length == (5 if cls is XLNetForQuestionAnswering else 1)
    check(read.plain, read, ranges)
    check(read.head, read, ranges)


def test_a_model_that_cannot_be_traced_is_told(tmp_path):
    # Three labels, where its head has two outputs to split.
    folder = classifier(tmp_path, XLNetForQuestionAnsweringSimple, num_labels=3)
    with pytest.raises(
        XLNetFastError, match=r"torch\.export cannot trace .*: ValueError: too many"
    ):
        program.traced(source.read(str(folder)), Ranges(1, 1, 20))


def test_the_edges_are_tried_whatever_they_are():
    assert Ranges(64, 1, 512).shapes() == [(1, 1), (1, 7), (3, 17), (2, 33), (64, 5), (1, 512)]
    assert Ranges(1, 5, 8).shapes() == [(1, 5), (1, 7), (1, 8)]
    assert Ranges(4, 1, 40).paddings(3, 17) == [None]


def test_one_shape_is_tried_with_short_texts():
    one = Ranges(3, 1, 4, fixed=True)
    assert one.shapes() == [(3, 4)]
    assert one.paddings(3, 4) == [None, [3, 1, 0]]
    assert one.told() == "with 2 paddings of 3 rows of 4 tokens"
    _, mask, _ = source.inputs_of(3, 4, 10, padding=[3, 1, 0])
    assert mask.tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]]


def test_every_padding_is_compared(read):
    def wrong_with_short_texts(ids, mask, segments):
        (logits,) = read.head(ids, mask, segments)
        return (logits + (mask.sum(-1, keepdim=True) == 1),)

    ranges = Ranges(2, 1, 9, fixed=True)
    assert len(check(read.head, read, ranges)) == 2
    with pytest.raises(XLNetFastError, match="logits with 2 rows of 9 tokens is off by"):
        check(wrong_with_short_texts, read, ranges)


def test_a_lucky_model_does_not_refuse_an_export(read, monkeypatch):
    """One text on which the model is exact by chance: others say how far rounding takes it."""
    lucky = source.Source(**{**vars(read), "head": Lucky(read)})
    ranges = Ranges(1, 1, 9, fixed=True)

    def off(amount):
        return lambda *given: tuple(x + amount for x in read.head(*given))

    monkeypatch.setattr("xlnet_fast.export.check._more", lambda *given: 0.0)
    seen = check(off(2e-5), lucky, ranges, adds_otherwise=True)
    assert all(1e-5 < one.error <= one.bound < 4e-5 for one in seen)
    with pytest.raises(XLNetFastError, match="is off by"):
        check(off(4e-5), lucky, ranges, adds_otherwise=True)
    with pytest.raises(XLNetFastError, match="is off by"):
        check(off(2e-5), lucky, ranges)


class Lucky:
    """A model that is off by 1.5e-5, but with the texts of the check."""

    def __init__(self, read):
        self.read, self.outputs = read, read.head.outputs
        self.texts = [
            source.inputs_of(1, 9, read.config.vocab_size, padding=padding)[0]
            for padding in (None, [8])
        ]

    def __call__(self, ids, mask, segments):
        known = any(torch.equal(ids, text) for text in self.texts)
        return tuple(x + (0 if known else 1.5e-5) for x in self.read.head(ids, mask, segments))


def test_a_program_of_one_shape_takes_no_other(read):
    made = program.traced(read, Ranges(2, 1, 9, fixed=True)).module()
    assert made(*source.inputs_of(2, 9, 100))[0].shape == (2, 3)
    with pytest.raises(AssertionError, match="Guard failed"):
        made(*source.inputs_of(2, 8, 100))
