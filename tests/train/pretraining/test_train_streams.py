"""The pretraining streams: equal to the oracle's, continuous, and made of the seed alone."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import plm_oracle
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.pretraining.collator import collate
from xlnet_fast.train.pretraining.corpus import Corpus
from xlnet_fast.train.pretraining.permutation import SpanSampling, dense_masks
from xlnet_fast.train.pretraining.streams import PermutationStreams, SequenceShape
from xlnet_fast.train.pretraining.text_streams import ReorderedText

SMALL = {"seq_len": 24, "reuse_len": 11, "perm_size": 7, "num_predict": 5}


def small_streams(streams: int = 4, **options: Any) -> PermutationStreams:
    """Rows of 24 tokens over a text of 40 documents, 11 tokens a step."""
    draw = random.Random(0)
    bi_data = options.pop("bi_data", False)
    corpus = plm_oracle.random_corpus(draw, options.pop("tokens", 900), (2, 9), (1, 6))
    vocabulary = plm_oracle.random_vocabulary(draw, 0.6)
    shape = SequenceShape(**SMALL, bi_data=bi_data)
    return PermutationStreams(corpus, vocabulary, shape, streams, **options)


def random_case(draw: random.Random) -> PermutationStreams:
    """Ragged sizes, sentences that are short, long or both, and every kind of vocabulary."""
    seq_len = draw.randint(8, 40)
    reuse_len = draw.randint(1, seq_len - 5)
    shorter = min(reuse_len, seq_len - reuse_len)
    bi_data = draw.random() < 0.5
    beta = draw.randint(1, 2)
    shape = SequenceShape(
        seq_len=seq_len,
        reuse_len=reuse_len,
        perm_size=draw.randint(1, shorter),
        num_predict=draw.randint(1, min(2 * shorter, draw.choice([seq_len, max(1, seq_len // 6)]))),
        bi_data=bi_data,
        spans=SpanSampling(
            beta * draw.randint(1, 6), beta, draw.randint(1, 5), draw.random() < 0.4
        ),
    )
    streams = draw.randint(1, 3) * (2 if bi_data else 1)
    sentence = draw.choice([(1, 3), (1, 50), (40, 90), (2, 10)])
    tokens = seq_len * streams + draw.randint(0, 100)
    return PermutationStreams(
        plm_oracle.random_corpus(draw, tokens, sentence, (1, 4)),
        plm_oracle.random_vocabulary(draw, draw.choice([0.0, 0.4, 1.0])),
        shape,
        streams,
        seed=draw.randrange(2**64),
        shuffle=draw.random() < 0.8,
    )


def streams_of(data: PermutationStreams) -> list[plm_oracle.Stream]:
    bi_data = data.shape.bi_data
    count = data.streams // 2 if bi_data else data.streams
    order = data.documents(data.epoch).tolist()
    return plm_oracle.streams_of(data.corpus, order, count, bi_data)


def draws_of(data: PermutationStreams, step: int, stream: int) -> list[float]:
    """The numbers of one item; 3 for the pair, then as many as targets and two shuffles take."""
    shape = data.shape
    count = 3 + 2 * shape.num_predict + shape.seq_len + 2 * shape.perm_size
    return data.draws(np.array([step]), np.array([stream]), count)[0].tolist()


def assert_is(item: dict[str, Any], expected: plm_oracle.Expected, where: str) -> None:
    for name in ("input_ids", "token_type_ids", "target_positions", "labels"):
        assert item[name].tolist() == getattr(expected, name), f"{name} of {where}"
    assert item["pair_label"] == expected.pair_label, where
    rank_q, rank_k = item["permutation_ranks"]
    assert ((rank_q[:, None] <= rank_k[None]) == np.array(expected.hidden)).all(), where


def test_items_are_those_of_the_oracle():
    notes = plm_oracle.Notes()
    for seed in range(250):
        draw = random.Random(seed)
        data = random_case(draw)
        data.set_epoch(draw.randrange(3))
        streams = streams_of(data)
        for index in {0, len(data) - 1, *(draw.randrange(len(data)) for _ in range(8))}:
            step, stream = divmod(index, data.streams)
            expected = plm_oracle.sequence(
                streams[stream],
                data.shape.bi_data and stream >= data.streams // 2,
                step,
                data.vocabulary,
                data.shape,
                draws_of(data, step, stream),
                notes,
            )
            assert_is(data[index], expected, f"seed {seed}, step {step}, stream {stream}")
    for case in ("no cut point", "label 0", "label 1", "trimmed on a tie", "topped up",
                 "the pair reaches the end of the stream", "B begins with the stream",
                 "B ends with the stream", "the span reaches the end", "no word start",
                 "the goal is reached inside a span", "<sep> or <cls> was drawn"):  # fmt: skip
        assert notes[case] >= 10, case


def test_each_part_has_its_half_of_the_targets():
    data = small_streams(8)
    items = [data[index] for index in range(len(data))]
    for item in items:
        positions = item["target_positions"]
        real = positions[positions >= 0]
        assert (positions[len(real) :] == -1).all()
        assert (item["labels"] == np.where(positions < 0, -100, item["input_ids"][positions])).all()
        assert (np.diff(real) > 0).all()
        assert (real < 11).sum() == 3
        assert not np.isin(item["input_ids"][real], (3, 4)).any()
    second = [int((item["target_positions"] >= 11).sum()) for item in items]
    assert set(second) <= {0, 1, 2}
    assert second.count(2) > second.count(1) > 0  # the rest drew <sep> or <cls>


@pytest.mark.parametrize("bi_data", [False, True])
def test_every_row_goes_on_with_its_text(bi_data):
    data = small_streams(4, bi_data=bi_data)
    texts = [np.array(stream.tokens) for stream in streams_of(data)]
    assert data.steps == (len(texts[0]) - 24) // 11 + 1
    for step in range(data.steps):
        items = data.__getitems__(range(4 * step, 4 * step + 4))
        for row, item in enumerate(items):
            ids = item["input_ids"]
            a_len = int(np.flatnonzero(ids[11:] == 4)[0])
            begin = 11 * step
            assert (ids[: 11 + a_len] == texts[row][begin : begin + 11 + a_len]).all()
            assert (ids == 4).sum() == 2
            assert ids[-2:].tolist() == [4, 3]
    if bi_data:
        assert (texts[2] == texts[0][::-1]).all()


def test_documents_are_shuffled_without_loss():
    data = small_streams(1)
    documents = np.split(data.corpus.tokens, data.corpus.documents[1:])
    orders = []
    for epoch in range(3):
        data.set_epoch(epoch)
        text = data.text.at(np.arange(len(data.corpus)))
        assert Counter(text.tolist()) == Counter(data.corpus.tokens.tolist())
        order = data.documents(epoch)
        assert (text == np.concatenate([documents[number] for number in order])).all()
        orders.append(tuple(order.tolist()))
    assert len(set(orders)) == 3
    plain = small_streams(1, shuffle=False)
    plain.set_epoch(5)
    assert (plain.text.at(np.arange(len(plain.corpus))) == plain.corpus.tokens).all()


def test_reordered_texts_keep_their_sentences():
    for seed in range(40):
        draw = random.Random(seed)
        corpus = plm_oracle.random_corpus(draw, draw.randint(1, 200), (1, 9), (1, 5))
        order = np.random.default_rng(seed).permutation(len(corpus.documents))
        text = ReorderedText(corpus, order)
        stream = plm_oracle.streams_of(corpus, order.tolist(), 1, False)[0]
        tokens = text.at(np.arange(len(corpus)))
        assert tokens.dtype == np.int64
        assert tokens.tolist() == stream.tokens
        places = [p for p in range(len(corpus)) if p == 0 or stream.begins_sentence(p)]
        assert text.sentences.tolist() == places


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return all(np.array_equal(np.asarray(left[key]), np.asarray(right[key])) for key in left)


def test_an_item_is_made_of_seed_epoch_step_and_stream_alone():
    data, again = small_streams(4), small_streams(4)
    whole = data.__getitems__(range(len(data)))
    for index in (9, 0, len(data) - 1, 13):  # from the middle, in any order
        assert same(again[index], whole[index])
        assert same(again[index - len(data)], whole[index])
    mixed = again.__getitems__([7, 2, 7, 22])
    for item, index in zip(mixed, (7, 2, 7, 22), strict=True):
        assert same(item, whole[index])


def test_the_uniform_numbers_are_those_of_philox_at_their_place():
    data = small_streams(4, seed=-1)
    data.set_epoch(6)
    drawn = data.draws(np.array([5, 0, 5]), np.array([3, 1, 2]), 9)
    for row, (step, stream) in enumerate([(5, 3), (0, 1), (5, 2)]):
        bits = np.random.Philox(
            key=np.array([2**64 - 1, stream], np.uint64),
            counter=np.array([0, 0, step, 6], np.uint64),
        )
        assert (drawn[row] == np.random.Generator(bits).random(9)).all()


@pytest.mark.filterwarnings("error")
def test_every_seed_counts_to_its_last_bit():
    seeds = [0, 1, -1, -2, 2**63, 2**63 + 1, 2**64 - 3]
    first = [small_streams(4, seed=seed, shuffle=False)[0] for seed in seeds]
    for number, item in enumerate(first):
        assert not any(same(item, other) for other in first[:number])


def test_another_epoch_and_seed_give_other_items():
    data, other = small_streams(4, shuffle=False), small_streams(4, shuffle=False, seed=1)
    first = data.__getitems__(range(20))
    data.set_epoch(1)
    for changed in (data, other):
        assert not any(map(same, first, changed.__getitems__(range(20))))
    data.set_epoch(0)
    assert all(map(same, first, data.__getitems__(range(20))))


@pytest.mark.parametrize("bi_data", [False, True])
def test_processes_share_the_rows_of_a_step(bi_data):
    one, two = (small_streams(8, bi_data=bi_data, processes=n) for n in (1, 2))
    places = np.arange(8)
    assert sorted(two.stream_at(places).tolist()) == one.stream_at(places).tolist()
    assert two.stream_at(places).tolist() == ([0, 1, 4, 5, 2, 3, 6, 7] if bi_data else [*range(8)])
    for step in (0, 3):
        lone, shared = (data.__getitems__(8 * step + places) for data in (one, two))
        for place, stream in enumerate(two.stream_at(places)):
            assert same(shared[place], lone[stream])


@pytest.mark.parametrize("bi_data", [False, True])
def test_accelerate_gives_each_process_its_own_rows(bi_data):
    """The batches of a process are the same streams in every step, so memory goes on."""
    data = small_streams(8, bi_data=bi_data, processes=2)
    for process in (0, 1):
        batches = BatchSampler(SequentialSampler(data), batch_size=4, drop_last=False)
        shard = list(BatchSamplerShard(batches, num_processes=2, process_index=process))
        assert len(shard) == data.steps
        mine = data.stream_at(np.arange(4 * process, 4 * process + 4))
        for step, indices in enumerate(shard):
            assert [index // 8 for index in indices] == [step] * 4
            assert (data.stream_at(np.array(indices) % 8) == mine).all()


def equal_batches(left: dict[str, Any], right: dict[str, Any]) -> bool:
    left, right = ({**b, **dict(enumerate(b["permutation_ranks"]))} for b in (left, right))
    return all(torch.equal(left[key], right[key]) for key in left if key != "permutation_ranks")


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loaders_give_the_same_batches(workers):
    data = small_streams(4, tokens=400)
    loader = DataLoader(data, batch_size=4, collate_fn=collate, num_workers=workers)
    for epoch in (0, 1):
        data.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == data.steps
        for step, batch in enumerate(batches):
            expected = collate(data.__getitems__(range(4 * step, 4 * step + 4)))
            assert equal_batches(batch, expected)


def test_an_accelerated_loader_sets_the_epoch_and_goes_on_in_the_middle():
    data, twin = small_streams(4, tokens=400), small_streams(4, tokens=400)
    loader = prepare_data_loader(DataLoader(data, batch_size=4, collate_fn=collate))
    loader.set_epoch(2)
    twin.set_epoch(2)
    assert data.epoch == 2
    expected = [collate(twin.__getitems__(range(i, i + 4))) for i in range(0, len(twin), 4)]
    batches = list(loader)
    assert len(batches) == data.steps > 4
    assert all(map(equal_batches, batches, expected))
    loader.set_epoch(2)
    rest = list(skip_first_batches(loader, 3))
    assert len(rest) == data.steps - 3
    assert all(map(equal_batches, rest, expected[3:]))


def test_half_of_the_pairs_go_on():
    draw = random.Random(1)
    data = PermutationStreams(
        plm_oracle.random_corpus(draw, 60_000, (2, 5), (5, 9)),
        plm_oracle.random_vocabulary(draw, 0.6),
        SequenceShape(**SMALL),
        40,
    )
    labels = np.array([item["pair_label"] for item in data.__getitems__(range(len(data)))])
    assert len(labels) > 5000
    assert abs(labels.mean() - 0.5) < 3.3 * 0.5 / np.sqrt(len(labels))


@pytest.mark.parametrize("bi_data", [False, True])
def test_nothing_that_is_known_of_a_target_is_the_target(bi_data):
    data = small_streams(4, bi_data=bi_data)
    for index in range(0, len(data), 3):
        item = data[index]
        rank_q, rank_k = item["permutation_ranks"]
        hidden = (rank_q[:, None] <= rank_k[None]).tolist()
        known = plm_oracle.reachable(hidden, [True] * 24)
        for target in item["target_positions"][item["target_positions"] >= 0]:
            assert target not in known[target]
            if target < 11:
                assert max(known[target], default=0) < 11
            else:
                assert known[target] >= set(range(11))
            later = [t for t in item["target_positions"] if rank_k[t] >= rank_q[target]]
            assert not known[target] & set(later)


def test_items_have_the_types_that_models_take():
    item = small_streams(4)[0]
    for name in ("input_ids", "token_type_ids", "target_positions", "labels"):
        assert item[name].dtype == np.int64
    assert all(rank.dtype == np.int32 and rank.shape == (24,) for rank in item["permutation_ranks"])
    ranks = tuple(torch.from_numpy(rank)[None] for rank in item["permutation_ranks"])
    perm_mask, _ = dense_masks(ranks, torch.from_numpy(item["target_positions"])[None])
    assert perm_mask.shape == (1, 24, 24)


def test_items_that_are_not_there():
    data = small_streams(4)
    for index in (len(data), -len(data) - 1):
        with pytest.raises(IndexError, match=f"item {index} of {len(data)}"):
            data[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reuse_len": 0}, "reuse_len is 0 and seq_len 24; expected reuse_len >= 1"),
        ({"reuse_len": 20}, r"seq_len >= reuse_len \+ 5"),
        ({"perm_size": 0}, "perm_size is 0, expected 1 to 11"),
        ({"perm_size": 12}, "perm_size is 12, expected 1 to 11"),
        ({"num_predict": 0}, "num_predict is 0, expected 1 to twice"),
        ({"num_predict": 23}, "num_predict is 23, expected 1 to twice"),
        ({"num_predict": 21, "reuse_len": 15, "perm_size": 3}, "shorter part .9 tokens"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        SequenceShape(**{**SMALL, **arguments})


def test_the_smallest_and_fullest_shapes_work():
    draw = random.Random(2)
    corpus = plm_oracle.random_corpus(draw, 60, (1, 4), (1, 3))
    vocabulary = plm_oracle.random_vocabulary(draw, 1.0)
    for shape in (
        SequenceShape(6, 1, 1, 1),
        SequenceShape(6, 1, 1, 2),
        SequenceShape(10, 5, 5, 10),
    ):
        data = PermutationStreams(corpus, vocabulary, shape, 1)
        for index in range(len(data)):
            assert len(data[index]["input_ids"]) == shape.seq_len
    assert (data[0]["target_positions"] >= 0).sum() == 7  # all but <sep>, <sep> and <cls>


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"streams": 0}, "0 rows cannot be shared by 1 process.*multiple of 1"),
        ({"streams": 3, "processes": 2}, "3 rows cannot be shared by 2 process.*multiple of 2"),
        (
            {"streams": 3, "bi_data": True},
            "two directions each .bi_data.: expected a multiple of 2",
        ),
        ({"streams": 6, "bi_data": True, "processes": 2}, "expected a multiple of 4"),
        ({"processes": 0}, "processes is 0, expected at least 1"),
        ({"streams": 400}, "which is 2 for each of 400 streams; a sequence has 24: give more text"),
    ],
)
def test_rows_that_cannot_be_shared_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        small_streams(**arguments)


def test_a_text_of_one_sequence_is_one_step():
    corpus = Corpus(np.full(24, 20, np.uint16), np.array([0]), np.array([0]))
    vocabulary = plm_oracle.random_vocabulary(random.Random(0), 1.0)
    assert len(PermutationStreams(corpus, vocabulary, SequenceShape(**SMALL), 1)) == 1
