"""The segments of Transformer-XL: every token a target once, in order, from any place on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.pretraining.corpus import Corpus, TextVocabulary
from xlnet_fast.train.pretraining.transfo_xl.streams import SegmentStreams, collate

VOCABULARY = TextVocabulary(2000, eod=7, unk=0)
SIZES = [(53, 8, 4), (64, 8, 4), (65, 8, 4), (16, 16, 1), (31, 10, 3), (9, 1, 2), (40, 7, 5)]
of_sizes = pytest.mark.parametrize(("tokens", "seq_len", "rows"), SIZES)


def corpus_of(tokens: int) -> Corpus:
    """All tokens different, so that order shows; a document begins at every seventh."""
    starts = np.arange(0, tokens, 7)
    return Corpus(np.arange(100, 100 + tokens).astype(np.uint16), starts, starts)


def segments(tokens: int = 53, seq_len: int = 8, rows: int = 4, **options: Any) -> SegmentStreams:
    return SegmentStreams(corpus_of(tokens), VOCABULARY, seq_len, rows, **options)


def of_row(data: SegmentStreams, row: int, name: str) -> list[int]:
    """What a row reads in an epoch, one segment after the other."""
    parts = [data[step * data.streams + row][name] for step in range(data.steps)]
    return np.concatenate(parts).tolist()


@of_sizes
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_token_but_the_first_is_a_target_once(tokens, seq_len, rows, shuffle):
    data = segments(tokens, seq_len, rows, shuffle=shuffle, seed=3)
    for epoch in range(2):
        data.set_epoch(epoch)
        text = data.text.at(np.arange(tokens)).tolist()
        length = tokens // rows
        for row in range(rows):
            begin = row * length
            assert of_row(data, row, "input_ids") == text[begin : begin + length]
            behind = [*text[begin + 1 : begin + length + 1], -100][:length]
            assert of_row(data, row, "labels") == behind
        targets = [label for row in range(rows) for label in of_row(data, row, "labels")]
        counted = [label for label in targets if label != -100]
        assert len(counted) == len(set(counted)) == min(rows * length, tokens - 1)
        assert text[0] not in counted


@of_sizes
def test_all_rows_of_a_step_are_alike_long_and_only_the_last_step_is_shorter(tokens, seq_len, rows):
    data = segments(tokens, seq_len, rows)
    lengths = [
        {
            len(item["input_ids"])
            for item in data.__getitems__(range(step * rows, (step + 1) * rows))
        }
        for step in range(data.steps)
    ]
    assert lengths[:-1] == [{seq_len}] * (data.steps - 1)
    (last,) = lengths[-1]
    assert 1 <= last <= seq_len


def test_documents_keep_their_order_unless_asked():
    plain, shuffled = segments(), segments(shuffle=True)
    orders = []
    for epoch in range(3):
        plain.set_epoch(epoch)
        shuffled.set_epoch(epoch)
        assert of_row(plain, 0, "input_ids") == list(range(100, 113))
        orders.append(tuple(shuffled.text.at(np.arange(53)).tolist()))
    assert len(set(orders)) == 3
    assert all(sorted(order) == list(range(100, 153)) for order in orders)


def test_items_are_the_same_whenever_they_are_made():
    data, again = segments(shuffle=True), segments(shuffle=True)
    whole = data.__getitems__(range(len(data)))
    for index in (6, 0, len(data) - 1, 5):
        assert again[index]["labels"].tolist() == whole[index]["labels"].tolist()
    assert whole[0]["input_ids"].dtype == whole[0]["labels"].dtype == np.int64
    with pytest.raises(IndexError, match=f"item {len(data)} of {len(data)}"):
        data[len(data)]


def test_accelerate_gives_each_process_its_own_rows():
    data = segments(processes=2)
    for process in (0, 1):
        batches = BatchSampler(SequentialSampler(data), batch_size=2, drop_last=False)
        shard = list(BatchSamplerShard(batches, num_processes=2, process_index=process))
        assert [[index % 4 for index in indices] for indices in shard] == [
            [2 * process, 2 * process + 1]
        ] * data.steps


def test_an_accelerated_loader_goes_on_in_the_middle():
    data, twin = segments(shuffle=True), segments(shuffle=True)
    loader = prepare_data_loader(DataLoader(data, batch_size=4, collate_fn=collate))
    loader.set_epoch(2)
    twin.set_epoch(2)
    expected = [collate(twin.__getitems__(range(i, i + 4))) for i in range(0, len(twin), 4)]
    rest = list(skip_first_batches(loader, 1))
    assert len(rest) == data.steps - 1 == 1  # of 13 tokens: 8 and 5
    assert rest[0]["input_ids"].shape == (4, 5)
    for name in ("input_ids", "labels"):
        assert torch.equal(rest[0][name], expected[1][name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "0 rows cannot be shared by 1 process.*multiple of 1"),
        ({"rows": 3, "processes": 2}, "3 rows cannot be shared by 2 process.*multiple of 2"),
        ({"processes": 0}, "processes is 0, expected at least 1"),
        ({"rows": 9}, "which is 5 for each of 9 streams; a sequence has 8: give more text"),
    ],
)
def test_rows_that_cannot_be_shared_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        segments(**options)
