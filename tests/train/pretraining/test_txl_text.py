"""Text and tokenizers of Transformer-XL: which token ends what, and what is saved."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, XLNetTokenizer

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl.tokenization import TransfoXLTokenizer
from xlnet_fast.text import builtin_text, train_tokenizer
from xlnet_fast.train.pretraining import sources
from xlnet_fast.train.pretraining.corpus import Vocabulary, encode
from xlnet_fast.train.pretraining.sources import TextSource, encoded
from xlnet_fast.train.pretraining.transfo_xl.tokenizers import text_vocabulary, without_segments
from xlnet_fast.train.shared.text_tokenizers import load_text_tokenizer
from xlnet_fast.train.shared.tokenizers import load_tokenizer

DOCUMENTS = [["A first line. It goes on.", "A <sep> second <eod> line"], ["Another text"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_tokenizer(builtin_text()[:50_000], 200, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def xlnet(folder):
    return load_tokenizer(str(folder))


def of_words(**special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of another kind, whose ids are words."""
    words = ["<unk>", "<end>", "a", "b", "line", "text"]
    pieces = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=pieces, **special)


def test_an_xlnet_vocabulary_is_encoded_as_for_xlnet(xlnet):
    vocabulary, known = text_vocabulary(xlnet), Vocabulary.of(xlnet)
    assert (vocabulary.size, vocabulary.eod, vocabulary.unk) == (known.size, known.eod, known.unk)
    ours, theirs = encode(DOCUMENTS, xlnet, vocabulary), encode(DOCUMENTS, xlnet, known)
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert (ours.tokens == known.eod).sum() == len(DOCUMENTS)


def test_what_is_saved_has_the_same_pieces_and_nothing_behind_them(xlnet, tmp_path):
    without_segments(xlnet).save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert not isinstance(saved, XLNetTokenizer)
    assert saved.get_vocab() == xlnet.get_vocab()
    assert set(saved.all_special_tokens) == set(xlnet.all_special_tokens)
    text = "A first line (of two), 3.5 and <eod>"
    pieces = xlnet(text, add_special_tokens=False).input_ids
    assert dict(saved(text)) == {"input_ids": pieces, "attention_mask": [1] * len(pieces)}
    assert saved(text, "x").input_ids == pieces + xlnet("x", add_special_tokens=False).input_ids
    assert saved.decode(pieces) == xlnet.decode(pieces)
    assert (saved.eos_token, saved.padding_side) == ("<eod>", "left")


def test_a_run_goes_on_with_what_was_saved(xlnet, tmp_path):
    without_segments(xlnet).save_pretrained(tmp_path / "saved")
    again = load_text_tokenizer(str(tmp_path / "saved"))
    assert text_vocabulary(again) == text_vocabulary(xlnet)
    ours, theirs = (encode(DOCUMENTS, one, text_vocabulary(one)) for one in (again, xlnet))
    assert ours.tokens.tolist() == theirs.tokens.tolist()
    without_segments(again).save_pretrained(tmp_path / "again")
    assert load_text_tokenizer(str(tmp_path / "again")).get_vocab() == xlnet.get_vocab()


@pytest.mark.parametrize("name", ["folder", "file", "saved"])
def test_xlnet_vocabularies_in_every_form(folder, xlnet, tmp_path, name):
    xlnet.save_pretrained(tmp_path / "saved")
    path = {"folder": folder, "file": folder / "spiece.model", "saved": tmp_path / "saved"}[name]
    found = load_text_tokenizer(str(path))
    assert isinstance(found, XLNetTokenizer)
    assert found.get_vocab() == xlnet.get_vocab()


def test_tokenizers_of_other_kinds_end_documents_with_their_end(tmp_path):
    of_words(eos_token="<end>", unk_token="<unk>").save_pretrained(tmp_path)
    tokenizer = load_text_tokenizer(str(tmp_path))
    vocabulary = text_vocabulary(tokenizer)
    assert (vocabulary.size, vocabulary.eod, vocabulary.unk) == (6, 1, 0)
    corpus = encode([["a line", "b <end> c"], ["text"]], tokenizer, vocabulary)
    assert corpus.tokens.tolist() == [2, 4, 3, 0, 0, 0, 1, 5, 1]
    assert without_segments(tokenizer) is tokenizer


def test_a_vocabulary_of_words_ends_every_line(tmp_path):
    """As the original has it; what looks like a special token is a word where it is one."""
    words = ["<eos>", "<unk>", "a", "line", "<formula>", "end"]
    vocabulary_file = tmp_path / "vocab.txt"
    vocabulary_file.write_text("\n".join(words))
    TransfoXLTokenizer(vocab_file=vocabulary_file, tokenized=True).save_pretrained(tmp_path / "t")
    tokenizer = load_text_tokenizer(str(tmp_path / "t"))
    assert isinstance(tokenizer, TransfoXLTokenizer)
    vocabulary = text_vocabulary(tokenizer)
    assert (vocabulary.size, vocabulary.eod, vocabulary.unk) == (6, 0, 1)
    assert vocabulary.line_ends
    documents = [["a <unk> line . A word", "<formula> <eos> a"], ["end"]]
    corpus = encode(documents, tokenizer, vocabulary, split_sentences=False)
    first, second = [2, 1, 3, 1, 1, 1, 0], [4, 1, 1, 2, 0]
    assert corpus.tokens.tolist() == [*first, *second, 5, 0]
    assert corpus.sentences.tolist() == [0, 7, 12]
    assert corpus.documents.tolist() == [0, 12]
    assert without_segments(tokenizer) is tokenizer


def test_pieces_alone_do_not_say_how_a_text_is_cut(tmp_path, monkeypatch):
    """Two tokenizers with the same ids: the text of the one is not taken for that of the other."""
    path = tmp_path / "a.txt"
    path.write_text("A line\nb")
    plain, lower = (of_words(eos_token="<end>", unk_token="<unk>") for _ in range(2))
    from tokenizers import normalizers

    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    texts = [
        encoded(TextSource((str(path),)).open(), one, text_vocabulary(one))
        for one in (plain, lower)
    ]
    assert [text.tokens.tolist() for text in texts] == [[0, 4, 3, 1], [2, 4, 3, 1]]
    monkeypatch.setattr(sources, "encode", None)
    again = encoded(TextSource((str(path),)).open(), lower, text_vocabulary(lower))
    assert again.tokens.tolist() == texts[1].tokens.tolist()


def test_a_tokenizer_needs_an_end():
    with pytest.raises(ArgumentError, match=r"neither <eod> nor an end of text \(eos_token\)"):
        text_vocabulary(of_words(unk_token="<unk>"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/nowhere/at/all", "does not exist"),
        ("{tmp}/empty", "no tokenizer can be read from"),
        ("some/hub-id", "nor in the local Hub cache, and HF_HUB_OFFLINE forbids"),
    ],
)
def test_tokenizers_that_are_refused(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentError, match=words):
        load_text_tokenizer(name.format(tmp=tmp_path))
