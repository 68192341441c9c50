"""Losses of a text, segment by segment, against computations that know no segments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from foretold import one_by_one, plain_xlnet, random_ids, read_losses, reader_of
from straight_transfo_xl import Straight
from tiny_finetuning import checkpoint
from tiny_foretelling import SYMBOLS, transfo_xl

from xlnet_fast.checkpoint import load_transfo_xl
from xlnet_fast.perplexity.transfo_xl import TransfoXLReader
from xlnet_fast.perplexity.xlnet import XLNetReader
from xlnet_fast.tolerance import assert_within

TOKENS = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return transfo_xl(tmp_path_factory.mktemp("transfo_xl"))


@pytest.fixture(scope="module")
def xlnet(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("xlnet"), initializer_range=0.4)


# --- Transformer-XL ------------------------------------------------------------------------------


def assert_straight(folder: Path, actual: torch.Tensor, ids: torch.Tensor, **how) -> None:
    model = load_transfo_xl(str(folder))
    eager, exact = (
        torch.stack([Straight(model, dtype, **how).losses(row) for row in ids.tolist()])
        for dtype in (torch.float32, torch.float64)
    )
    assert_within(actual, eager, exact)


@pytest.mark.parametrize("initial_memory", ["empty", "zeros"])
@pytest.mark.parametrize("segment_length", [1, 4, 9, 100])
def test_with_same_length_losses_are_of_no_segments(folder, segment_length, initial_memory):
    reader = reader_of(
        TransfoXLReader, folder, segment_length=segment_length, initial_memory=initial_memory
    )
    ids = random_ids(len(SYMBOLS), batch=2)
    zeros = 8 if initial_memory == "zeros" else 0
    losses = read_losses(reader, ids)
    assert_straight(folder, losses, ids, seen=8, zeros=zeros, clamp_len=5)


@pytest.mark.parametrize("segment_length", [5, 11])
def test_without_it_they_are_where_the_memory_holds_all(folder, segment_length):
    changes = {"same_length": False, "clamp_len": 0, "segment_length": segment_length}
    reader = reader_of(TransfoXLReader, folder, memory_length=TOKENS, **changes)
    ids = random_ids(len(SYMBOLS))
    losses = read_losses(reader, ids)
    assert_straight(folder, losses, ids, seen=None, zeros=0, clamp_len=0)
    short = reader_of(TransfoXLReader, folder, memory_length=3, **changes)
    behind = slice(segment_length, None)
    assert not torch.allclose(read_losses(short, ids)[:, behind], losses[:, behind])


def test_without_memory_each_segment_is_read_by_itself(folder):
    reader = reader_of(
        TransfoXLReader, folder, memory_length=0, same_length=False, segment_length=6
    )
    ids = random_ids(len(SYMBOLS))
    losses = read_losses(reader, ids)
    for begin in range(0, TOKENS - 1, 6):
        part = ids[:, begin : begin + 7]
        own = losses[:, begin : begin + 6]
        assert_straight(folder, own, part, seen=None, zeros=0, clamp_len=5)


def test_what_is_not_given_is_the_models(folder):
    reader = reader_of(TransfoXLReader, folder)
    assert reader.settings == {
        "segment_length": 128, "memory_length": 8, "clamp_len": 5, "same_length": True,
        "initial_memory": "empty",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_narrower_dtypes_lose_what_rounding_loses(folder, name):
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[name]
    ids, how = random_ids(len(SYMBOLS)), {"seen": 8, "zeros": 0, "clamp_len": 5}
    losses = read_losses(reader_of(TransfoXLReader, folder, dtype=name, segment_length=9), ids)
    model = load_transfo_xl(str(folder)).to(dtype)
    row = ids[0].tolist()
    eager, exact = (Straight(model, x, **how).losses(row)[None] for x in (dtype, torch.float64))
    assert losses.dtype == torch.float32
    assert_within(losses.to(dtype), eager, exact)


# --- XLNet ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("segment_length", [2, 7, 100])
def test_an_xlnet_foretells_each_token_by_all_before(xlnet, segment_length):
    reader = reader_of(XLNetReader, xlnet, segment_length=segment_length)
    ids = random_ids(200)
    eager, exact = (
        one_by_one(plain_xlnet(xlnet, dtype), ids)[None] for dtype in (torch.float32, torch.float64)
    )
    assert_within(read_losses(reader, ids), eager, exact)


@torch.no_grad()
def with_memory(model, ids: torch.Tensor, length: int, mem_len: int) -> torch.Tensor:
    """Hugging Face's memory of segments read from left to right, the last ``mem_len`` rows."""
    losses, mems = [], None
    for begin in range(0, ids.shape[1], length):
        part = ids[:, begin : begin + length]
        losses.append(one_by_one(model, part, mems))
        causal = torch.ones(part.shape[1], part.shape[1]).triu()[None].to(model.dtype)
        mems = model.transformer(part, mems=mems, perm_mask=causal, use_mems=True).mems
        mems = [layer[-mem_len:] for layer in mems]
    return torch.cat(losses)


def test_an_xlnet_remembers_so_many_tokens(xlnet):
    reader = reader_of(XLNetReader, xlnet, segment_length=5, memory_length=4)
    ids = random_ids(200)
    eager, exact = (
        with_memory(plain_xlnet(xlnet, dtype), ids, 5, 4)[None]
        for dtype in (torch.float32, torch.float64)
    )
    assert_within(read_losses(reader, ids), eager, exact)


@pytest.mark.parametrize(("mem_len", "remembered"), [(7, 7), (None, 384)])
def test_an_xlnet_remembers_what_its_config_says_or_as_in_pretraining(
    tmp_path, mem_len, remembered
):
    """`pretrain` writes a config that names no memory, so that generation has one without end."""
    reader = reader_of(XLNetReader, checkpoint(tmp_path, mem_len=mem_len))
    assert reader.settings["memory_length"] == remembered


def test_an_xlnet_without_memory_has_segments_that_overlap(xlnet):
    reader = reader_of(XLNetReader, xlnet, segment_length=5, memory_length=0)
    ids = random_ids(200)
    parts = [ids[:, begin : begin + 5] for begin in range(0, TOKENS - 1, 4)]
    eager, exact = (
        torch.cat([one_by_one(plain_xlnet(xlnet, dtype), part) for part in parts])[None]
        for dtype in (torch.float32, torch.float64)
    )
    losses = read_losses(reader, ids)
    assert losses.shape == (1, TOKENS - 1)
    assert_within(losses, eager, exact)


def test_the_logits_of_an_xlnet_may_come_in_parts(xlnet, monkeypatch):
    from xlnet_fast.perplexity import xlnet as module

    reader, ids = reader_of(XLNetReader, xlnet, segment_length=9), random_ids(200, batch=2)
    whole = read_losses(reader, ids)
    monkeypatch.setattr(module, "_MOST_LOGITS", 900)
    torch.testing.assert_close(read_losses(reader, ids), whole)
