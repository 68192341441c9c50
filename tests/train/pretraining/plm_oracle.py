"""The rules of XLNet's pretraining data, loop by loop, as the oracle of the vectorised code.

Everything takes its uniform numbers as plain lists, in the order in which the vectorised code takes
them, so that results are equal, not alike. A stream is a list of token ids and, as in the original
(zihangdai/xlnet, ``data_utils.py``), the number of the sentence that each token is in; a backward
stream is both lists reversed. Functions that take ``notes`` add the name of each special case that
they met, so that a test can tell whether its cases cover them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from xlnet_fast.train.pretraining.corpus import Corpus, Vocabulary
from xlnet_fast.train.pretraining.permutation import SpanSampling
from xlnet_fast.train.pretraining.streams import SequenceShape

Notes = Counter[str]
Matrix = list[list[bool]]


@dataclass(frozen=True)
class Stream:
    """Tokens and the number of each one's sentence."""

    tokens: list[int]
    sentences: list[int]

    def begins_sentence(self, place: int) -> bool:
        """Whether another sentence begins at a place; never at the first."""
        return place > 0 and self.sentences[place] != self.sentences[place - 1]


def streams_of(corpus: Corpus, documents: Sequence[int], count: int, both: bool) -> list[Stream]:
    """Cut the documents, in the order given, into ``count`` streams; then the same reversed."""
    text: list[tuple[int, int]] = []
    sentence = 0
    starts = {int(start) for start in corpus.sentences}
    edges = [*corpus.documents.tolist(), len(corpus)]
    for document in documents:
        for place in range(edges[document], edges[document + 1]):
            sentence += place in starts
            text.append((int(corpus.tokens[place]), sentence))
    length = len(text) // count
    rows = [text[row * length : (row + 1) * length] for row in range(count)]
    if both:
        rows = rows + [row[::-1] for row in rows]
    return [Stream([token for token, _ in row], [number for _, number in row]) for row in rows]


def split_pair(
    stream: Stream, begin: int, room: int, draws: Sequence[float], notes: Notes
) -> tuple[list[int], list[int], int]:
    """A, B and the label. draws: whether B goes on from A, where A ends, where another begins."""
    length = len(stream.tokens)
    cut_points = []
    end = begin + 1
    while end < length:
        if stream.begins_sentence(end):
            if end - begin >= room:
                break
            cut_points.append(end)
        end += 1
    notes["the pair reaches the end of the stream"] += end == length
    notes["no cut point"] += not cut_points
    a_end = cut_points[int(draws[1] * len(cut_points))] if cut_points else end
    label = 1 if cut_points and draws[0] >= 0.5 else 0
    notes[f"label {label}"] += 1
    if label:
        b_begin, b_end = a_end, end
    else:
        b_begin, b_end = _other_text(stream, max(1, room - (a_end - begin)), draws[2], notes)
    while a_end - begin + b_end - b_begin > room:
        notes["trimmed on a tie"] += a_end - begin == b_end - b_begin
        if a_end - begin > b_end - b_begin:
            a_end -= 1
        else:
            b_end -= 1
    return stream.tokens[begin:a_end], stream.tokens[b_begin:b_end], label


def _other_text(stream: Stream, wanted: int, draw: float, notes: Notes) -> tuple[int, int]:
    """Begin and end of whole sentences around ``wanted`` tokens anywhere in the stream."""
    length = len(stream.tokens)
    begin = int(draw * (length - wanted))
    end = begin + wanted
    while begin > 0 and not stream.begins_sentence(begin):
        begin -= 1
    while end < length and not stream.begins_sentence(end):
        end += 1
    notes["B begins with the stream"] += begin == 0
    notes["B ends with the stream"] += end == length
    return begin, end


def sample_targets(
    starts: Sequence[bool],
    candidates: Sequence[bool],
    goal: int,
    draws: Sequence[float],
    spans: SpanSampling,
    notes: Notes,
) -> list[bool]:
    """Spans, then tokens at random until ``goal`` are drawn, of one row."""
    length = len(starts)
    targets = [False] * length
    inside = [place for place in range(length) if candidates[place]]
    current, past = (inside[0], inside[-1] + 1) if inside else (length, length)
    weights = list(accumulate(1 / n for n in range(1, spans.max_span + 1)))
    count = turn = 0
    while count < goal and current < past:
        wanted = sum(draws[2 * turn] >= weight / weights[-1] for weight in weights) + 1
        units = min(wanted, goal - count)
        context = units * spans.mask_alpha // spans.mask_beta
        before = int(draws[2 * turn + 1] * context)
        turn += 1
        begin = current + before
        while begin < past and not (starts[begin] and candidates[begin]):
            begin += 1
        end = _span_end(starts, candidates, begin, past, units, spans.whole_words)
        if begin >= past or end >= past:
            notes["no word start" if begin >= past else "the span reaches the end"] += 1
            break
        current = end + context - before
        notes["the goal is reached inside a span"] += units < wanted or end - begin > goal - count
        for place in range(begin, min(end, begin + goal - count)):
            targets[place] = True
        count = sum(targets)
    notes["topped up"] += count < goal
    free = [place for place in range(length) if candidates[place] and not targets[place]]
    free.sort(key=lambda place: draws[len(draws) - length + place])
    for place in free[: goal - count]:
        targets[place] = True
    return targets


def _span_end(
    starts: Sequence[bool],
    candidates: Sequence[bool],
    begin: int,
    past: int,
    units: int,
    whole_words: bool,
) -> int:
    if not whole_words:
        return begin + units
    end = begin
    for _ in range(units):
        end += 1
        while end < past and not (starts[end] and candidates[end]):
            end += 1
    return min(end, past)


def factorization_order(draws: Sequence[float], length: int) -> list[int]:
    """The place of each token in the order: one shuffle of a block, the blocks in order."""
    size = len(draws)
    shuffled = [sum(other < own for other in draws) for own in draws]
    return [place // size * size + shuffled[place % size] for place in range(length)]


def hidden_within(
    order: Sequence[int], targets: Sequence[bool], functional: Sequence[bool]
) -> Matrix:
    """Token i must not see token j, [i][j], of one part, by the rules of part 0 of the task."""
    length = len(order)
    hidden = [[False] * length for _ in range(length)]
    for i in range(length):
        for j in range(length):
            if not targets[j] and not functional[j]:
                continue  # context is seen by all
            if functional[i]:
                hidden[i][j] = order[j] > order[i]
            elif targets[i]:
                hidden[i][j] = order[j] >= order[i]
            else:
                hidden[i][j] = True  # context sees context only
    return hidden


def hidden_of_parts(first: Matrix, second: Matrix) -> Matrix:
    """The first part sees nothing of the second, the second sees all of the first."""
    top = [row + [True] * len(second) for row in first]
    return top + [[False] * len(first) + row for row in second]


def reachable(hidden: Matrix, is_key: Sequence[bool]) -> list[set[int]]:
    """Which inputs the query stream of each token may know after any number of layers.

    The content stream also sees itself. A layer lets a query see content, which has seen content.

    Args:
        hidden: [i][j]. is_key: False for padding, which nobody sees.
    """
    length = len(hidden)
    keys = [[j for j in range(length) if is_key[j] and not hidden[i][j]] for i in range(length)]
    content = [{i, *keys[i]} for i in range(length)]
    changed = True
    while changed:
        changed = False
        for i in range(length):
            more = content[i].union(*(content[j] for j in content[i]))
            changed |= len(more) > len(content[i])
            content[i] = more
    return [set().union(*(content[j] for j in keys[i])) for i in range(length)]


@dataclass(frozen=True)
class Expected:
    """An item of the pretraining streams, in lists."""

    input_ids: list[int]
    token_type_ids: list[int]
    hidden: Matrix
    target_positions: list[int]
    labels: list[int]
    pair_label: int


def sequence(
    stream: Stream,
    backward: bool,
    step: int,
    vocabulary: Vocabulary,
    shape: SequenceShape,
    draws: Sequence[float],
    notes: Notes,
) -> Expected:
    """The item of a stream at a step, of the numbers that belong to it."""
    numbers = iter(draws)

    def take(count: int) -> list[float]:
        return [next(numbers) for _ in range(count)]

    begin = step * shape.reuse_len
    room = shape.seq_len - shape.reuse_len - 3
    a, b, label = split_pair(stream, begin + shape.reuse_len, room, take(3), notes)
    running = stream.tokens[begin : begin + shape.reuse_len]
    pair = [*a, vocabulary.sep, *b, vocabulary.sep, vocabulary.cls]
    parts = [(running, shape.num_predict - shape.num_predict // 2), (pair, shape.num_predict // 2)]
    drawn = []
    for ids, goal in parts:
        starts = [bool(vocabulary.starts[token]) for token in ids]
        starts = starts[::-1] if backward else starts
        chances = take(2 * goal + len(ids))
        found = sample_targets(starts, [True] * len(ids), goal, chances, shape.spans, notes)
        assert sum(found) == goal
        drawn.append(found[::-1] if backward else found)
    hidden, targets = [], []
    for (ids, _), found in zip(parts, drawn, strict=True):
        functional = [token in (vocabulary.sep, vocabulary.cls) for token in ids]
        real = [is_drawn and not marked for is_drawn, marked in zip(found, functional, strict=True)]
        notes["<sep> or <cls> was drawn"] += sum(real) < sum(found)
        order = factorization_order(take(shape.perm_size), len(ids))
        hidden.append(hidden_within(order, real, functional))
        targets += real
    assert next(numbers, None) is None, "every number has its use"
    positions = [place for place, real in enumerate(targets) if real]
    missing = shape.num_predict - len(positions)
    return Expected(
        input_ids=running + pair,
        token_type_ids=[0] * (len(running) + len(a) + 1) + [1] * (len(b) + 1) + [2],
        hidden=hidden_of_parts(*hidden),
        target_positions=positions + [-1] * missing,
        labels=[(running + pair)[place] for place in positions] + [-100] * missing,
        pair_label=label,
    )


VOCABULARY_SIZE, FIRST_TEXT_ID = 40, 9


def random_vocabulary(draw: random.Random, word_starts: float) -> Vocabulary:
    """XLNet's special ids, then pieces that begin a word with the given probability."""
    starts = [draw.random() < word_starts for _ in range(VOCABULARY_SIZE)]
    starts[:FIRST_TEXT_ID] = [True] * FIRST_TEXT_ID  # "<sep>" and its kin, by the original's rule
    return Vocabulary(VOCABULARY_SIZE, np.array(starts), sep=4, cls=3, eod=7, unk=0)


def random_corpus(
    draw: random.Random, length: int, sentence: tuple[int, int], document: tuple[int, int]
) -> Corpus:
    """About ``length`` tokens: sentences and documents of random lengths within bounds."""
    tokens: list[int] = []
    sentences: list[int] = []
    documents: list[int] = []
    while len(tokens) < length:
        documents.append(len(tokens))
        for _ in range(draw.randint(*document)):
            sentences.append(len(tokens))
            for _ in range(draw.randint(*sentence)):
                tokens.append(draw.randrange(FIRST_TEXT_ID, VOCABULARY_SIZE))
        tokens[-1] = 7
    return Corpus(np.array(tokens, np.uint16), np.array(sentences), np.array(documents))
