"""How texts are cut, against the tokenizers library, and what windows cover."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from xlnet_fast.predict.pieces import Piece, batches_by_length
from xlnet_fast.predict.windows import cut_lengths, most_context, window_bounds

LENGTHS = st.integers(0, 12)


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = WhitespaceSplit()
    return words


@given(first=LENGTHS, second=LENGTHS, room=st.integers(1, 14))
def test_pairs_are_cut_as_the_tokenizers_library_does(tokenizer, first, second, room):
    tokenizer.enable_truncation(room, strategy="longest_first")
    ids = tokenizer.encode("a " * first, "b " * second).ids
    assert cut_lengths(first, second, room) == (ids.count(0), ids.count(1))


@given(length=st.integers(1, 60), room=st.integers(2, 20), stride=st.integers(0, 10))
def test_windows_are_those_of_the_tokenizers_library(tokenizer, length, room, stride):
    stride = min(stride, room // 2)
    tokenizer.enable_truncation(room, stride=stride)
    whole = tokenizer.encode("a " * length)
    found = window_bounds(length, room, stride)
    assert [end - begin for begin, end in found] == [
        len(part.ids) for part in (whole, *whole.overflowing)
    ]
    assert found[0][0] == 0
    assert found[-1][1] == length
    for before, after in itertools.pairwise(found):
        assert before[1] - after[0] == stride


@given(length=st.integers(1, 60), room=st.integers(2, 20), stride=st.integers(0, 10))
def test_a_token_is_read_where_it_has_most_around_it(length, room, stride):
    bounds = window_bounds(length, room, min(stride, room // 2))

    def beside(number, place):
        begin, end = bounds[number]
        if not begin <= place < end:
            return -1
        sides = [place - begin] * (begin > 0) + [end - 1 - place] * (end < length)
        return min(sides, default=length)

    owners = [most_context(bounds, place, length) for place in range(length)]
    assert owners == sorted(owners)
    for place, owner in enumerate(owners):
        assert beside(owner, place) == max(beside(i, place) for i in range(len(bounds)))


def test_batches_keep_groups_and_the_budget():
    lengths = [5, 40, 7, 7, 3, 9, 100]
    pieces = [Piece([0] * n, [0] * n, group=i % 2) for i, n in enumerate(lengths)]
    batches = list(batches_by_length(pieces, 20))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    for batch in batches:
        assert len({pieces[i].group for i in batch}) == 1
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 20
    assert any(len(batch) > 1 for batch in batches)
