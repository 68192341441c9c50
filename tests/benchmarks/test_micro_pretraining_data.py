"""The micro-benchmark of the pretraining data: all providers, checked before they are timed."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from rich.console import Console

from benchmarks.micro import pretraining_data
from xlnet_fast.errors import ArgumentError, XLNetFastError

NAMES = ["streams", "streams, bi_data", "collator", "collator, dense", "hf"]


@pytest.fixture(scope="module")
def text(one_cache):
    return pretraining_data.load_text(600)


def test_every_provider_has_a_row(text):
    functions = pretraining_data.providers(*text, batch=4, length=32)
    out = io.StringIO()
    Console(file=out, width=110).print(pretraining_data.compare(functions, 4, rounds=2))
    head, *rows = out.getvalue().splitlines()
    assert head.split()[:2] == ["provider", "sequences/s"]
    assert [row[:18].strip() for row in rows] == NAMES
    assert rows[-1].split()[-1] == "1.0"
    assert all(float(row.split()[-4].replace(",", "")) > 0 for row in rows)


def test_all_see_the_same_sequences(text):
    functions = pretraining_data.providers(*text, batch=4, length=32)
    for _ in range(3):
        ids = {name: functions[name]()["input_ids"] for name in NAMES}
        assert torch.equal(ids["collator"], ids["streams"])
        assert torch.equal(ids["collator, dense"], ids["streams"])
        kept = ids["hf"] != 6  # it writes <mask> over its targets
        assert torch.equal(ids["hf"][kept], ids["streams"][kept])


def test_a_target_that_sees_itself_is_not_timed(text):
    function = pretraining_data.providers(*text, batch=2, length=32)["collator, dense"]
    batch = function()
    pretraining_data.check("collator", batch)
    for change in ({"labels": torch.full_like(batch["labels"], -100)},
                   {"perm_mask": torch.zeros_like(batch["perm_mask"])}):  # fmt: skip
        with pytest.raises(XLNetFastError, match="without targets, or one that sees itself"):
            pretraining_data.check("collator", {**batch, **change})


def test_a_provider_that_fails_is_named(text):
    functions = pretraining_data.providers(*text, batch=2, length=32)
    whole, calls = functions["hf"], iter([True])

    def once():
        if next(calls, False):
            return whole()
        raise RuntimeError("no more")

    with pytest.raises(XLNetFastError, match="hf failed: RuntimeError: no more"):
        pretraining_data.compare({**functions, "hf": once}, 2, rounds=1)


def test_odd_lengths_are_refused(text):
    with pytest.raises(ArgumentError, match="the length is 33, expected an even one"):
        pretraining_data.providers(*text, batch=2, length=33)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--batch", "3"], "--batch must be even"),
        (["--length", "9"], "expected an even one"),
        (["--batch", "9000"], "give more text, fewer rows"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message, text, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pretraining_data", *arguments])
    monkeypatch.setattr(pretraining_data, "load_text", lambda vocab_size: text)
    with pytest.raises(SystemExit):
        pretraining_data.main()
    assert message in " ".join(capsys.readouterr().err.split())
