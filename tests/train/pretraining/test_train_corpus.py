"""Text as ids: sentences, documents, <eod>, and files that are whole or not there."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import plm_oracle
import pytest
from transformers import PreTrainedTokenizerFast, XLNetTokenizer

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.text import builtin_text, train_tokenizer
from xlnet_fast.train.pretraining.corpus import (
    Corpus,
    Vocabulary,
    begins_word,
    documents_of_lines,
    encode,
    sentences_of,
)

DESCRIPTION = {"tokenizer": "a", "text": "b"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = train_tokenizer(builtin_text(), 400, tmp_path_factory.mktemp("tokenizer"))
    return XLNetTokenizer.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return Vocabulary.of(tokenizer)


@pytest.fixture
def corpus():
    return plm_oracle.random_corpus(random.Random(0), 300, (2, 9), (1, 6))


def sentences_in(corpus: Corpus, tokenizer) -> list[str]:
    parts = np.split(corpus.tokens.astype(np.int64), corpus.sentences[1:])
    return [tokenizer.decode(part.tolist()) for part in parts]


def test_the_vocabulary_is_that_of_the_tokenizer(tokenizer, vocabulary):
    assert vocabulary.size == len(vocabulary.starts) == len(tokenizer)
    assert (vocabulary.unk, vocabulary.cls, vocabulary.sep, vocabulary.eod) == (0, 3, 4, 7)
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert vocabulary.starts[:9].all()
    assert [begins_word(piece) for piece in pieces] == vocabulary.starts.tolist()
    assert 0.2 < vocabulary.starts.mean() < 0.8


@pytest.mark.parametrize("piece", ["▁the", "▁", "<sep>", "<", *'!"#$%&()*+,-./:;?@[\\]^_`{|}~'])
def test_pieces_that_begin_a_word(piece):
    assert begins_word(piece)


@pytest.mark.parametrize("piece", ["s", "ing", "'", "=", ">", "é", "...", ".a", "a▁"])
def test_pieces_that_do_not_begin_a_word(piece):
    assert not begins_word(piece)


def test_a_tokenizer_without_the_special_tokens_is_refused(tokenizer):
    other = PreTrainedTokenizerFast(tokenizer_object=_word_tokenizer({"a": 0, "<sep>": 1}))
    with pytest.raises(ArgumentError, match="no <cls>, <eod>, <unk>: expected an XLNet vocabulary"):
        Vocabulary.of(other)


def _word_tokenizer(pieces: dict[str, int]):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return Tokenizer(WordLevel(pieces, unk_token="a"))


def test_eod_ends_the_last_sentence_of_each_document(tokenizer, vocabulary):
    documents = [["One cat. Two dogs.", "", "A line"], ["  ", ""], ["Last one."]]
    corpus = encode(documents, tokenizer, vocabulary)
    assert corpus.tokens.dtype == np.uint16
    assert corpus.sentences.dtype == corpus.documents.dtype == np.int64
    assert len(corpus) == len(corpus.tokens)
    assert sentences_in(corpus, tokenizer) == [
        "One cat.", "Two dogs.", "A line<eod>", "Last one.<eod>",
    ]  # fmt: skip
    assert corpus.documents.tolist() == [0, int(corpus.sentences[3])]
    ends = np.flatnonzero(corpus.tokens == vocabulary.eod) + 1
    assert ends.tolist() == [corpus.documents[1], len(corpus)]


def test_lines_are_sentences_where_they_shall_not_be_cut(tokenizer, vocabulary):
    documents = [["One cat. Two dogs.", "A line"]]
    corpus = encode(documents, tokenizer, vocabulary, split_sentences=False)
    assert sentences_in(corpus, tokenizer) == ["One cat. Two dogs.", "A line<eod>"]


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        ("He came. She left! Who? 3 men.", ["He came.", "She left!", "Who?", "3 men."]),
        ('He said "Go." Then (a lot.) He went.', ['He said "Go."', "Then (a lot.)", "He went."]),
        ('No. "Yes," he said', ["No.", '"Yes," he said']),
        ("about 3.5 of e.g. those, i.e. x.y", ["about 3.5 of e.g. those, i.e. x.y"]),
        ("Wait...   What", ["Wait...", "What"]),
        ("", []),
    ],
)
def test_sentences_end_before_capitals_and_digits(line, sentences):
    assert sentences_of(line) == sentences


def test_many_lines_are_encoded_as_one_by_one(tokenizer, vocabulary, monkeypatch):
    lines = builtin_text().splitlines()[:60]
    whole = encode([lines], tokenizer, vocabulary)
    monkeypatch.setattr("xlnet_fast.train.pretraining.corpus._LINES_AT_ONCE", 7)
    parts = encode([iter(lines)], tokenizer, vocabulary)
    assert (whole.tokens == parts.tokens).all()
    assert (whole.sentences == parts.sentences).all()
    expected = [
        token
        for line in lines
        for sentence in sentences_of(line)
        for token in tokenizer(sentence, add_special_tokens=False)["input_ids"]
    ]
    assert whole.tokens.tolist() == [*expected, vocabulary.eod]


@pytest.mark.parametrize("name", ["<sep>", "<cls>", "<eod>", "<pad>", "<mask>", "<s>", "</s>"])
@pytest.mark.parametrize("form", ["{}", "＜{}＞", "{} é", "<<{}{}", "x{}y"])
def test_names_of_special_tokens_are_text(name, form, tokenizer, vocabulary):
    text = form.format(name[1:-1] if "＜" in form else name, name)
    corpus = encode([[f"a {text} b"]], tokenizer, vocabulary)
    special = set(tokenizer.all_special_ids) - {vocabulary.unk}
    assert not special & set(corpus.tokens[:-1].tolist())
    assert corpus.tokens[-1] == vocabulary.eod
    if form == "x{}y":
        assert tokenizer.decode(corpus.tokens[:-1].tolist()).replace(" ", "") == f"ax{name}yb"


def test_an_accent_makes_no_special_token(tokenizer, vocabulary):
    """The tokenizer strips accents after it has looked for special tokens."""
    assert vocabulary.sep in tokenizer("a <sép> b", add_special_tokens=False)["input_ids"]
    assert vocabulary.sep not in encode([["a <sép> b"]], tokenizer, vocabulary).tokens


def test_large_vocabularies_have_wider_tokens(tokenizer, vocabulary):
    size = 2**16 + 1
    starts = np.ones(size, bool)
    large = replace(vocabulary, size=size, starts=starts)
    assert encode([["a cat"]], tokenizer, large).tokens.dtype == np.uint32


@pytest.mark.parametrize("documents", [[], [[]], [["", "  "], ["\t"]]])
def test_a_text_without_words_is_refused(documents, tokenizer, vocabulary):
    with pytest.raises(ArgumentError, match="the text holds no words"):
        encode(documents, tokenizer, vocabulary)


def test_empty_lines_part_documents():
    lines = ["", "a", "b", " ", "\t", "c", ""]
    assert list(documents_of_lines(lines)) == [["a", "b"], ["c"]]
    assert list(documents_of_lines(["a"])) == [["a"]]
    assert list(documents_of_lines(["", " "])) == []


def test_splitting_keeps_documents_whole(corpus):
    for share in (0.01, 0.1, 0.5, 0.99):
        train, held_out = corpus.split(share)
        assert np.concatenate([train.tokens, held_out.tokens]).tolist() == corpus.tokens.tolist()
        cut = len(train)
        assert cut in corpus.documents
        nearest = np.abs(corpus.documents[1:] - len(corpus) * (1 - share)).min()
        assert abs(cut - len(corpus) * (1 - share)) == nearest
        for name in ("sentences", "documents"):
            starts = np.concatenate([getattr(train, name), getattr(held_out, name) + cut])
            assert starts.tolist() == getattr(corpus, name).tolist()


def test_one_document_is_split_at_a_sentence():
    corpus = Corpus(np.arange(20), np.array([0, 4, 11, 18]), np.array([0]))
    train, held_out = corpus.split(0.4)
    assert (len(train), len(held_out)) == (11, 9)
    assert train.sentences.tolist() == [0, 4]
    assert held_out.sentences.tolist() == [0, 7]
    assert held_out.documents.tolist() == [0]


def test_a_part_may_begin_inside_a_sentence():
    corpus = Corpus(np.arange(20), np.array([0, 4, 11]), np.array([0, 11]))
    part = corpus.part(6, 15)
    assert part.tokens.tolist() == list(range(6, 15))
    assert part.sentences.tolist() == [0, 5]
    assert part.documents.tolist() == [0, 5]


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_of_nothing_or_all_is_refused(share, corpus):
    with pytest.raises(ArgumentError, match=r"share of the evaluation text is .* expected 0 to 1"):
        corpus.split(share)


def test_one_sentence_cannot_be_split():
    with pytest.raises(ArgumentError, match="one sentence, of which no part can be held out"):
        Corpus(np.arange(5), np.array([0]), np.array([0])).split(0.5)


def assert_same(found: Corpus | None, corpus: Corpus) -> None:
    assert found is not None
    for name in ("tokens", "sentences", "documents"):
        assert np.array_equal(getattr(found, name), getattr(corpus, name))


def test_a_saved_corpus_is_mapped_from_its_file(corpus, tmp_path):
    folder = tmp_path / "new" / "corpus"
    corpus.save(folder, DESCRIPTION)
    found = Corpus.load(folder, DESCRIPTION)
    assert_same(found, corpus)
    assert isinstance(found.tokens, np.memmap)
    assert os.listdir(folder.parent) == ["corpus"]
    assert folder.stat().st_mode & 0o777 == 0o755
    assert Corpus.load(folder, {**DESCRIPTION, "text": "c"}) is None
    assert Corpus.load(tmp_path / "none", DESCRIPTION) is None
    other = corpus.part(0, 40)
    other.save(folder, {"text": "c"})  # replaces it; the map still holds the old file
    assert_same(Corpus.load(folder, {"text": "c"}), other)
    assert_same(found, corpus)


@pytest.mark.parametrize("name", ["tokens.npy", "sentences.npy", "documents.npy", "corpus.json"])
@pytest.mark.parametrize("damage", ["removed", "empty", "half", "tail", "header", "zip", "zeros"])
def test_damaged_files_are_no_corpus(name, damage, corpus, tmp_path):
    corpus.save(tmp_path / "corpus", DESCRIPTION)
    file = tmp_path / "corpus" / name
    whole = file.read_bytes()
    file.unlink()
    if damage != "removed":
        file.write_bytes({
            "empty": b"",
            "half": whole[: len(whole) // 2],
            "tail": whole[:-1],
            "header": whole[:40] + b"(" + whole[41:],
            "zip": b"PK\x03\x04" + whole[4:],
            "zeros": bytes(len(whole)),
        }[damage])  # fmt: skip
    assert Corpus.load(tmp_path / "corpus", DESCRIPTION) is None
    corpus.save(tmp_path / "corpus", DESCRIPTION)
    assert_same(Corpus.load(tmp_path / "corpus", DESCRIPTION), corpus)


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
def test_headers_of_any_bytes_are_an_answer(corpus, tmp_path):
    """numpy has many ways to refuse a header; none of them may end a run."""
    corpus.save(tmp_path / "corpus", DESCRIPTION)
    file = tmp_path / "corpus" / "tokens.npy"
    whole, draw = file.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(300):
        header = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            header[draw.randrange(8, 70)] = draw.randrange(256)
        file.write_bytes(header)
        refused += Corpus.load(tmp_path / "corpus", DESCRIPTION) is None
    assert refused > 250


def test_starts_behind_the_tokens_are_no_corpus(corpus, tmp_path):
    Corpus(corpus.tokens[:5], corpus.sentences, corpus.documents).save(tmp_path / "c", DESCRIPTION)
    assert Corpus.load(tmp_path / "c", DESCRIPTION) is None


def test_a_full_disk_leaves_nothing_behind(corpus, tmp_path, monkeypatch):
    write = np.save

    def full(path: Path, array: np.ndarray) -> None:
        write(path, array)
        if path.name == "sentences.npy":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(XLNetFastError, match=r"cannot be written to .*corpus: No space left"):
        corpus.save(tmp_path / "corpus", DESCRIPTION)
    assert os.listdir(tmp_path) == []


def test_a_write_that_is_cut_short_says_so(tmp_path):
    """What numpy raises then has no strerror."""
    corpus = Corpus(np.zeros(10**5, np.uint16), np.array([0]), np.array([0]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(XLNetFastError, match=r"cannot be written to .*requested and"):
            corpus.save(tmp_path / "corpus", DESCRIPTION)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_a_failing_save_keeps_the_last_good_one(corpus, tmp_path, monkeypatch):
    corpus.save(tmp_path / "corpus", DESCRIPTION)
    for error in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()):

        def fail(path: Path, array: np.ndarray, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(np, "save", fail)
            with pytest.raises((XLNetFastError, KeyboardInterrupt)):
                corpus.part(0, 20).save(tmp_path / "corpus", {"text": "c"})
        assert os.listdir(tmp_path) == ["corpus"]
        assert_same(Corpus.load(tmp_path / "corpus", DESCRIPTION), corpus)


def test_a_folder_that_is_a_file_is_refused(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "corpus"):
        with pytest.raises(XLNetFastError, match=r"cannot be written to .*file"):
            corpus.save(folder, DESCRIPTION)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("same", [True, False])
def test_another_process_may_be_first(same, corpus, tmp_path, monkeypatch):
    rename = os.rename
    theirs = DESCRIPTION if same else {"text": "c"}

    def late(source: Path, target: Path) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", rename)
            shutil.rmtree(target, ignore_errors=True)
            corpus.save(target, theirs)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    if same:
        corpus.save(tmp_path / "corpus", DESCRIPTION)
    else:
        with pytest.raises(XLNetFastError, match=r"cannot be written to .*not empty"):
            corpus.save(tmp_path / "corpus", DESCRIPTION)
    assert os.listdir(tmp_path) == ["corpus"]
    assert_same(Corpus.load(tmp_path / "corpus", theirs), corpus)
