"""Where the text comes from, what is refused, and tokenizers made of it or taken."""

from __future__ import annotations

import os

import datasets
import pytest
from transformers import XLNetTokenizer

from xlnet_fast.errors import ArgumentError
from xlnet_fast.text import SPECIAL_TOKENS, builtin_articles, builtin_text, train_tokenizer
from xlnet_fast.train.pretraining import sources
from xlnet_fast.train.pretraining.corpus import Vocabulary
from xlnet_fast.train.pretraining.sources import TextSource, encoded, train_on
from xlnet_fast.train.shared.tokenizers import (
    check_vocabulary,
    load_run_tokenizer,
    load_tokenizer,
)

LINES = "One fish. Two fish.\nRed fish.\n\n\nBlue fish."


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def texts(source: TextSource) -> list[list[str]]:
    return [[line.strip() for line in document] for document in source.open().documents()]


# --- files ---------------------------------------------------------------------------------------


def test_empty_lines_part_documents(tmp_path):
    (tmp_path / "a.txt").write_text(LINES)
    documents = [["One fish. Two fish.", "Red fish."], ["Blue fish."]]
    source = TextSource((str(tmp_path / "a.txt"),))
    assert texts(source) == documents
    opened = source.open()
    assert list(opened.documents()) == list(opened.documents()), "may be read again"


def test_files_folders_and_patterns_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"I am {name}")
    (tmp_path / "ignored.bin").write_bytes(b"\0")
    whole = [["I am a.txt"], ["I am b.txt"], ["I am deep/c.md"]]
    assert texts(TextSource((str(tmp_path),))) == whole
    assert texts(TextSource((str(tmp_path / "*.txt"),))) == whole[:2]
    pair = (str(tmp_path / "b.txt"), str(tmp_path / "a.txt"))
    assert texts(TextSource(pair)) == [whole[1], whole[0]]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffFish".encode())
    assert texts(TextSource((str(tmp_path / "a.txt"),))) == [["Fish"]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"fine\0binary", "binary file"),
        (b"fine \xff\xfe", "is not UTF-8"),
    ],
    ids=["missing", "empty", "binary", "encoding"],
)
def test_files_that_are_refused(tmp_path, content, words):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArgumentError, match=words):
        texts(TextSource((str(path),)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("fish")
    path.chmod(0)
    with pytest.raises(ArgumentError, match="cannot be read"):
        texts(TextSource((str(path),)))


def test_a_folder_or_pattern_without_text(tmp_path):
    with pytest.raises(ArgumentError, match=r"holds no text files \(\.txt"):
        TextSource((str(tmp_path),)).open()
    with pytest.raises(ArgumentError, match="no file matches"):
        TextSource((str(tmp_path / "*.txt"),)).open()


# --- built-in and datasets -----------------------------------------------------------------------


def test_the_built_in_text_is_the_default():
    documents = texts(TextSource())
    assert len(documents) == len(builtin_articles()) > 50
    assert TextSource().open().name == "the built-in text"


@pytest.fixture
def folder(tmp_path):
    """A folder that `load_dataset` takes, as a Hub id would be."""
    path = tmp_path / "data"
    path.mkdir()
    rows = {"text": ["One fish.\nTwo fish.", "", "Red fish."], "number": [1, 2, 3]}
    datasets.Dataset.from_dict(rows).to_parquet(path / "train.parquet")
    return path


def test_rows_of_a_dataset_are_documents(folder):
    source = TextSource(dataset=str(folder))
    assert [d for d in texts(source) if d] == [["One fish.", "Two fish."], ["Red fish."]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"column": "body"}, "has no column 'body'; it has: text, number"),
        ({"split": "validation"}, "split validation\\) cannot be loaded"),
        ({"dataset": "no/such-dataset"}, "nor a data set in the local cache, and HF_HUB_OFFLINE"),
    ],
    ids=str,
)
def test_datasets_that_are_refused(folder, changes, words):
    with pytest.raises(ArgumentError, match=words):
        TextSource(**{"dataset": str(folder), **changes}).open()


def test_a_dataset_without_rows(folder):
    empty = datasets.Dataset.from_dict(
        {"text": []}, datasets.Features(text=datasets.Value("string"))
    )
    empty.to_parquet(folder / "train.parquet")
    with pytest.raises(ArgumentError, match=r"no data|has no rows"):
        TextSource(dataset=str(folder)).open()


def test_lines_for_a_tokenizer_are_spread(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(map(str, range(100))))
    lines = list(TextSource((str(tmp_path / "a.txt"),)).open().lines(10))
    assert [line.strip() for line in lines] == [str(number) for number in range(0, 100, 10)]


# --- tokenizers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "a.txt").write_text("\n".join(list(builtin_articles().values())[3]))
    return train_on(TextSource((str(folder / "a.txt"),)).open(), 200, folder)


def test_a_trained_tokenizer_has_xlnets_order(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(9)) == list(SPECIAL_TOKENS)
    assert 100 < len(tokenizer) <= 200
    assert tokenizer.padding_side == "left"


def test_a_saved_tokenizer_is_taken(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "saved")
    found = load_tokenizer(str(tmp_path / "saved"))
    assert isinstance(found, XLNetTokenizer)
    assert found("A list of things").input_ids == tokenizer("A list of things").input_ids


def test_a_sentencepiece_file_alone(tokenizer, tmp_path):
    source = TextSource().open()
    trained = train_on(source, 300, tmp_path / "t")
    os.rename(tmp_path / "t" / "spiece.model", tmp_path / "my.model")
    found = load_tokenizer(str(tmp_path / "my.model"))
    assert found.get_vocab() == trained.get_vocab()
    assert found("A list of things").input_ids == trained("A list of things").input_ids


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/nowhere/at/all", "does not exist"),
        ("{tmp}/empty", "holds no tokenizer"),
        ("{tmp}/broken.model", "no tokenizer can be read from"),
        ("some/hub-id", "nor in the local Hub cache, and HF_HUB_OFFLINE forbids"),
    ],
)
def test_tokenizers_that_are_refused(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.model").write_bytes(b"\x0a\x02not a model")
    with pytest.raises(ArgumentError, match=words):
        load_tokenizer(name.format(tmp=tmp_path))


def test_a_run_without_a_tokenizer_of_its_own_takes_the_models(tmp_path):
    train_tokenizer(builtin_text()[:20000], 100, tmp_path / "model")
    found = load_run_tokenizer(None, str(tmp_path / "model"))
    assert found.get_vocab() == load_tokenizer(str(tmp_path / "model")).get_vocab()
    with pytest.raises(ArgumentError, match="the model /nowhere/at/all of --model does not exist"):
        load_run_tokenizer(None, "/nowhere/at/all")
    with pytest.raises(ArgumentError, match="the tokenizer /nowhere/else does not exist"):
        load_run_tokenizer("/nowhere/else", "/nowhere/at/all")
    with pytest.raises(ArgumentError, match="neither a tokenizer nor a model"):
        load_run_tokenizer(None, None)


def test_a_tokenizer_of_another_model(tokenizer, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    with pytest.raises(ArgumentError, match="has no <sep>, <cls>, <eod>"):
        Vocabulary.of(other)


def test_a_vocabulary_that_does_not_fit(tokenizer):
    check_vocabulary(tokenizer, len(tokenizer), "it")
    with pytest.raises(ArgumentError, match="it only 50"):
        check_vocabulary(tokenizer, 50, "it")


# --- the cache -----------------------------------------------------------------------------------


def test_text_is_encoded_once(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(LINES)
    vocabulary = Vocabulary.of(tokenizer)
    first = encoded(TextSource((str(path),)).open(), tokenizer, vocabulary)
    monkeypatch.setattr(sources, "encode", None)
    again = encoded(TextSource((str(path),)).open(), tokenizer, vocabulary)
    assert again.tokens.tolist() == first.tokens.tolist()
    monkeypatch.undo()


def test_a_changed_text_or_another_cut_is_encoded_anew(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(LINES)
    vocabulary = Vocabulary.of(tokenizer)
    first = encoded(TextSource((str(path),)).open(), tokenizer, vocabulary)
    lines = encoded(TextSource((str(path),)).open(), tokenizer, vocabulary, split_sentences=False)
    assert len(lines.sentences) < len(first.sentences)
    path.write_text(LINES + "\n\nNo fish at all.")
    longer = encoded(TextSource((str(path),)).open(), tokenizer, vocabulary)
    assert len(longer.documents) == len(first.documents) + 1
