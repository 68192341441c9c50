"""Two classification tasks made of the built-in articles, and the text that is left to pretrain on.

"order" asks whether a sentence has its words in order; every word is there in both cases, so only
who knows the language can tell. "article" asks which article a passage is from, of which single
words tell much. Evaluation and test rows are of passages that were held out: no sentence of them
stands anywhere in the pretraining text.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xlnet_fast.text import builtin_articles
from xlnet_fast.train.pretraining.corpus import sentences_of
from xlnet_fast.train.shared.run_folder import write_text

CLASSES = 12  # articles
WORDS = 40  # of a passage, about
PASSAGES = 8  # labelled, of each article
SENTENCES = 600  # labelled, half of them out of order
SENTENCE_WORDS = range(8, 41)  # of a sentence whose words may be moved
Passage = list[str]  # sentences
Row = dict[str, str]


@dataclass(frozen=True)
class Division:
    """Passages of each article, alternately held out and seen in pretraining."""

    held_out: Mapping[str, Sequence[Passage]]
    seen: Mapping[str, Sequence[Passage]]


def articles() -> dict[str, list[str]]:
    """Sentences of each article."""
    return {
        name: [sentence for paragraph in article for sentence in sentences_of(paragraph)]
        for name, article in builtin_articles().items()
    }


def repeated_share() -> float:
    """Share of the text, in characters, whose sentences stand in several articles."""
    sentences = articles()
    places = Counter(sentence for found in sentences.values() for sentence in set(found))
    everything = [sentence for found in sentences.values() for sentence in found]
    repeated = [sentence for sentence in everything if places[sentence] > 1]
    return sum(map(len, repeated)) / sum(map(len, everything))


def divide() -> Division:
    """The articles with most passages, of sentences that stand only once in the text.

    Of the rest (`repeated_share`) nothing that was held out would be unseen.
    """
    sentences = articles()
    times = Counter(sentence for found in sentences.values() for sentence in found)
    cut = {
        name: list(passages([sentence for sentence in found if times[sentence] == 1]))
        for name, found in sentences.items()
    }
    largest = sorted(cut, key=lambda name: -len(cut[name]))[:CLASSES]
    return Division(
        {name: cut[name][::2] for name in largest}, {name: cut[name][1::2] for name in largest}
    )


def passages(sentences: Sequence[str]) -> Iterator[Passage]:
    """Runs of whole sentences, about as many words each."""
    passage: Passage = []
    words = 0
    for sentence in sentences:
        passage.append(sentence)
        words += len(sentence.split())
        if words >= WORDS:
            yield passage
            passage, words = [], 0


def article_rows(division: Division) -> dict[str, list[Row]]:
    """Rows of each split of the task "article"."""

    def rows(name: str, found: Sequence[Passage]) -> list[Row]:
        return [{"text": " ".join(passage), "label": name} for passage in found]

    seen, held_out = division.seen, division.held_out
    return {
        "train": [row for name in seen for row in rows(name, seen[name][:PASSAGES])],
        "eval": [row for name in held_out for row in rows(name, held_out[name][::2])],
        "test": [row for name in held_out for row in rows(name, held_out[name][1::2])],
    }


def order_rows(division: Division) -> dict[str, list[Row]]:
    """Rows of each split of the task "order"."""
    generator = random.Random(0)

    def rows(cut: Mapping[str, Sequence[Passage]]) -> list[Row]:
        found = [sentence for name in cut for passage in cut[name] for sentence in passage]
        found = [sentence for sentence in found if len(sentence.split()) in SENTENCE_WORDS]
        generator.shuffle(found)
        return [
            {"text": sentence, "label": "in order"}
            if i % 2
            else {"text": out_of_order(sentence, generator), "label": "out of order"}
            for i, sentence in enumerate(found)
        ]

    train, held_out = rows(division.seen), rows(division.held_out)
    half = len(held_out) // 2
    return {"train": train[:SENTENCES], "eval": held_out[:half], "test": held_out[half:]}


def out_of_order(sentence: str, generator: random.Random) -> str:
    """The same words, the first and the last where they were, lest a capital or a stop tell."""
    first, *inner, last = sentence.split()
    if len(set(inner)) < 2:
        raise ValueError(f"the words of {sentence!r} have one order only")
    moved = inner
    while moved == inner:
        moved = generator.sample(inner, len(inner))
    return " ".join([first, *moved, last])


TASKS = {"order": order_rows, "article": article_rows}


def make_tasks(folder: Path) -> None:
    """Write ``text.txt``, ``held_out.txt``, and of each task train, eval and test JSONL files."""
    division = divide()
    held_out = [passage for found in division.held_out.values() for passage in found]
    unseen = {sentence for passage in held_out for sentence in passage}
    text = [
        "\n".join(sentence for sentence in sentences if sentence not in unseen)
        for sentences in articles().values()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "text.txt", "\n\n".join(part for part in text if part))
    write_text(folder / "held_out.txt", "\n\n".join(map("\n".join, held_out)))
    for task, rows_of in TASKS.items():
        (folder / task).mkdir(exist_ok=True)
        for split, rows in rows_of(division).items():
            content = "".join(json.dumps(row) + "\n" for row in rows)
            write_text(folder / task / f"{split}.jsonl", content)
