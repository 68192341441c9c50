"""The built-in text, reading a user's text, and tokenizers in XLNet's id order."""

import os
import stat

import pytest
import sentencepiece
from transformers import XLNetTokenizer

from xlnet_fast import text as text_module
from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.text import (
    SPECIAL_TOKENS,
    builtin_articles,
    builtin_text,
    load_text,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return train_tokenizer(builtin_text(), 2000, tmp_path_factory.mktemp("tokenizer"))


def test_builtin_text_is_long_and_english():
    text = builtin_text()
    words = text.lower().split()
    assert len(text) > 300_000
    assert words.count("the") > 2000
    assert not any(set(line) <= set("*=-~^. ") for line in text.splitlines())


def test_a_python_without_pydoc_data_is_told_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    with pytest.raises(XLNetFastError, match="give a text file instead"):
        builtin_articles.__wrapped__()


def test_ids_stand_in_xlnet_order(tokenizer_folder):
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_folder / "spiece.model"))
    assert [model.id_to_piece(i) for i in range(9)] == list(SPECIAL_TOKENS)
    assert model.is_unknown(0)
    assert all(model.is_control(i) for i in range(1, 9))
    assert 1500 < model.get_piece_size() <= 2000


def test_hugging_face_loads_it_and_its_ids_agree(tokenizer_folder):
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_folder / "spiece.model"))
    tokenizer = XLNetTokenizer.from_pretrained(str(tokenizer_folder))
    assert len(tokenizer) == model.get_piece_size()
    named = ["unk", "bos", "eos", "cls", "sep", "pad", "mask"]
    assert [getattr(tokenizer, f"{name}_token_id") for name in named] == list(range(7))
    assert tokenizer.convert_tokens_to_ids(["<eod>", "<eop>"]) == [7, 8]
    assert tokenizer.padding_side == "left"
    lines = [line for line in builtin_text().splitlines() if line.isascii()][:300:7]
    for line in lines:
        line = line.replace("``", '"').replace("''", '"')  # XLNetTokenizer's own first step
        ids = tokenizer(line)["input_ids"]
        assert ids[-2:] == [4, 3]
        assert ids[:-2] == model.encode(line)


def test_training_is_cached_and_repeatable(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = builtin_text()[:40_000]
    folder = train_tokenizer(text, 500)
    assert folder.is_relative_to(tmp_path / "cache")
    first = (folder / "spiece.model").read_bytes()
    monkeypatch.setattr(text_module, "_train", lambda *_: pytest.fail("trained a second time"))
    assert train_tokenizer(text, 500) == folder
    monkeypatch.undo()
    assert (train_tokenizer(text, 500, tmp_path / "own") / "spiece.model").read_bytes() == first


def test_another_text_or_size_or_a_damaged_file_is_trained_afresh(tmp_path):
    text = builtin_text()[:40_000]
    model = train_tokenizer(text, 500, tmp_path) / "spiece.model"
    first = model.read_bytes()
    train_tokenizer(text, 400, tmp_path)
    assert model.read_bytes() != first
    train_tokenizer(text, 500, tmp_path)
    assert model.read_bytes() == first
    model.write_bytes(first[:100])
    train_tokenizer(text, 500, tmp_path)
    assert model.read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spiece.model", "training.json"]
    assert stat.S_IMODE(model.stat().st_mode) == 0o644


def test_relative_xdg_cache_home_is_ignored(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert text_module.cache_directory().is_absolute()


def test_a_long_line_is_cut_not_dropped(tmp_path):
    line = " ".join(builtin_text()[:60_000].split())
    folder = train_tokenizer(line, 500, tmp_path)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    assert model.get_piece_size() == 500


def test_text_from_a_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("\ufeff" + builtin_text()[:40_000], encoding="utf-8")
    assert load_text(file) == builtin_text()[:40_000]
    assert (train_tokenizer(file, 500, tmp_path / "t") / "spiece.model").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"abc\0def" * 1000, "binary file"),
        (b"caf\xe9 " * 1000, "not UTF-8 .byte 3 is 0xe9"),
        (b"few words " + b" " * 5000, "too short: 8 characters"),
    ],
)
def test_bad_files_get_one_clear_sentence(tmp_path, content, message):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ArgumentError, match=message):
        load_text(file)


def test_a_directory_and_an_unreadable_place_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="is a directory"):
        load_text(tmp_path)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ArgumentError, match="cannot write a tokenizer"):
        train_tokenizer(builtin_text()[:40_000], 500, file / "below")


@pytest.mark.parametrize("size", [9, 0, -1, 12, 8000.0, True])
def test_bad_vocabulary_sizes(size, tmp_path):
    with pytest.raises(ArgumentError, match=r"vocab_size|cannot learn 12 pieces"):
        train_tokenizer(builtin_text()[:40_000], size, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_text_without_words(tmp_path):
    with pytest.raises(ArgumentError, match="no words"):
        train_tokenizer(" \n ", 500, tmp_path)
