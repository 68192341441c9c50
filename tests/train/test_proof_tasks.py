"""The tasks of the training proof: nothing held out was seen, no single word tells the order."""

import json
import random
from collections import Counter

import pytest

from xlnet_fast.train.pretraining.corpus import sentences_of
from xlnet_fast.train.proof import tasks
from xlnet_fast.train.proof.tasks import make_tasks, out_of_order, passages


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "tasks"
    make_tasks(folder)
    return folder


def rows(folder, task):
    return {
        split: [json.loads(row) for row in (folder / task / f"{split}.jsonl").open()]
        for split in ("train", "eval", "test")
    }


def sentences(path):
    return set(path.read_text(encoding="utf-8").split("\n")) - {""}


def test_the_share_that_stands_in_several_articles(monkeypatch):
    texts = {"a": ("Two. Four. Two.", "Once."), "b": ("Four.",), "c": ("Unique.",)}
    monkeypatch.setattr(tasks, "builtin_articles", lambda: texts)
    # "Two." stands twice, but in one article.
    assert tasks.repeated_share() == 2 * len("Four.") / len("Two.Four.Two.Once.Four.Unique.")


def test_no_sentence_that_was_held_out_stands_in_the_text(folder):
    text, held_out = sentences(folder / "text.txt"), sentences(folder / "held_out.txt")
    assert len(held_out) > 500
    assert len(text) > 1000
    assert not text & held_out
    everything = {s for found in tasks.articles().values() for s in found}
    assert text | held_out == everything


def test_passages_of_twelve_articles(folder):
    text, held_out = sentences(folder / "text.txt"), sentences(folder / "held_out.txt")
    splits = rows(folder, "article")
    assert set(Counter(row["label"] for row in splits["train"]).values()) == {tasks.PASSAGES}
    labels = {row["label"] for row in splits["train"]}
    assert len(labels) == tasks.CLASSES
    articles = tasks.articles()
    for split, place in (("train", text), ("eval", held_out), ("test", held_out)):
        assert len(splits[split]) > 50
        for row in splits[split]:
            found = [s for s in articles[row["label"]] if row["text"].startswith(s)]
            assert max(found, key=len) in place
            assert len(row["text"].split()) >= tasks.WORDS
    texts = {split: {row["text"] for row in splits[split]} for split in splits}
    assert not texts["eval"] & texts["test"]


def test_sentences_in_order_and_out_of_it(folder):
    text, held_out = sentences(folder / "text.txt"), sentences(folder / "held_out.txt")
    splits = rows(folder, "order")
    assert len(splits["train"]) == tasks.SENTENCES
    seen = []
    for split, place in (("train", text), ("eval", held_out), ("test", held_out)):
        words = {tuple(sorted(s.split())) for s in place}
        labels = Counter(row["label"] for row in splits[split])
        assert abs(labels["in order"] - labels["out of order"]) <= 1
        for row in splits[split]:
            assert (row["text"] in place) == (row["label"] == "in order")
            seen.append(tuple(sorted(row["text"].split())))
            assert seen[-1] in words
            assert len(seen[-1]) in tasks.SENTENCE_WORDS
    assert len(set(seen)) > 0.99 * len(seen)  # no sentence in two splits


def test_the_tasks_are_the_same_every_time(folder, tmp_path):
    make_tasks(tmp_path)
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes()


def test_ends_stay_and_the_rest_moves():
    generator = random.Random(1)
    for _ in range(50):
        moved = out_of_order("It is so so .", generator).split()
        assert (moved[0], moved[-1]) == ("It", ".")
        assert sorted(moved[1:-1]) == ["is", "so", "so"]
        assert moved != ["It", "is", "so", "so", "."]
    with pytest.raises(ValueError, match="one order only"):
        out_of_order("It so so so .", generator)


def test_passages_are_whole_sentences(monkeypatch):
    monkeypatch.setattr(tasks, "WORDS", 5)
    text = "One two three. Four five six. Seven eight nine ten eleven twelve. Thirteen."
    cut = list(passages(list(sentences_of(text))))
    assert cut == [["One two three.", "Four five six."], ["Seven eight nine ten eleven twelve."]]
