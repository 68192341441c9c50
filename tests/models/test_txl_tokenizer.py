"""Transformer-XL's tokenizer: Hugging Face 4.37.2's words and ids, its files, and what is new."""

from __future__ import annotations

import base64
import copy
import importlib.util
import json
import pickle
import sys
import warnings
import zlib
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl import TransfoXLConfig, words
from xlnet_fast.models.transfo_xl.tokenization import (
    TransfoXLTokenizer,
    detokenize_numbers,
    tokenize_numbers,
)

GOLDEN = Path(__file__).parents[1] / "golden"
HF = json.loads((GOLDEN / "txl_tokens.json").read_text(encoding="utf-8"))
SETTINGS = {setting["name"]: setting for setting in HF["settings"]}
WORDS = ["<eos>", "<unk>", "the", "quick", "dog", ".", ",", "@-@", "<formula>"]
needs_moses = pytest.mark.skipif(
    importlib.util.find_spec("sacremoses") is None,
    reason="needs sacremoses: pip install sacremoses",
)


@pytest.fixture
def hf_vocab(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{symbol}\n" for symbol in HF["symbols"]), encoding="utf-8")
    return path


@pytest.fixture
def vocab(tmp_path):
    return saved_words(tmp_path / "words.json", WORDS)


@pytest.fixture
def without_moses(monkeypatch):
    """As where sacremoses is not installed."""
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    for cached in (words.rules, words._warn):
        cached.cache_clear()
    yield
    for cached in (words.rules, words._warn):
        cached.cache_clear()


def saved_words(path, symbols):
    path.write_text(json.dumps(symbols), encoding="utf-8")
    return path


def split(vocab, **arguments):
    """A tokenizer of text that is split already, which is the same wherever it runs."""
    return TransfoXLTokenizer(vocab_json_file=vocab, tokenized=True, **arguments)


# ---- as Hugging Face 4.37.2 ----


@needs_moses
@pytest.mark.parametrize("name", SETTINGS)
def test_words_ids_and_texts_are_hugging_faces(hf_vocab, name):
    setting = SETTINGS[name]
    tokenizer = TransfoXLTokenizer(vocab_file=hf_vocab, **setting["arguments"])
    for row in setting["rows"]:
        assert tokenizer.tokenize(row["text"]) == row["tokens"]
        assert tokenizer.encode(row["text"]) == row["ids"]
        if name != "characters":  # which Moses would join with spaces, and we do not
            assert_joined(tokenizer, row)
    assert len(setting["rows"]) > 15


def assert_joined(tokenizer, row):
    assert tokenizer.decode(row["ids"]) == row["decoded"]
    plain = tokenizer.decode(
        row["ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert plain == row["plain"]
    assert tokenizer.convert_tokens_to_string(row["tokens"]) == row["joined"]


@needs_moses
def test_added_tokens_are_hugging_faces(hf_vocab):
    tokenizer = TransfoXLTokenizer(vocab_file=hf_vocab)
    tokenizer.add_tokens(HF["added"]["tokens"])
    for row in HF["added"]["rows"]:
        assert tokenizer.tokenize(row["text"]) == row["tokens"]
        assert tokenizer.encode(row["text"]) == row["ids"]
        assert_joined(tokenizer, row)


@needs_moses
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_are_hugging_faces(hf_vocab, side):
    tokenizer = TransfoXLTokenizer(vocab_file=hf_vocab, padding_side=side)
    tokenizer.pad_token = tokenizer.eos_token
    assert dict(tokenizer(HF["batch"], padding=True)) == HF["padded"][side]


@needs_moses
def test_a_moved_token_and_a_counted_vocabulary_are_hugging_faces(hf_vocab, tmp_path):
    tokenizer = TransfoXLTokenizer(vocab_file=hf_vocab)
    tokenizer.add_tokens(["newest", "newer"])
    tokenizer.move_added_token("newest", 3)
    assert tokenizer.encode(HF["moved"]["text"]) == HF["moved"]["ids"]
    assert len(tokenizer) == HF["moved"]["len"]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(HF["lines"]))
    for arguments, symbols in HF["counted"]:
        tokenizer = TransfoXLTokenizer(**arguments)
        tokenizer.count_file(path)
        tokenizer.build_vocab()
        assert tokenizer.idx2sym == symbols


@needs_moses
def test_moses_is_taken_where_it_is_installed(vocab):
    text = "Mr. J. Smith isn't (very) “old-fashioned” – 1,000.5%..."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = [
            TransfoXLTokenizer(vocab_json_file=vocab, moses=moses).tokenize(text)
            for moses in (None, True, False)
        ]
    assert tokens[0] == tokens[1]
    assert tokens[0] != TransfoXLTokenizer(vocab_json_file=vocab, tokenized=True).tokenize(text)


@needs_moses
def test_never_split_is_text_and_no_pattern(vocab):
    text = "a b [PAD] c"
    tokenizer = TransfoXLTokenizer(vocab_json_file=vocab, never_split=["[pad]"])
    assert tokenizer.tokenize(text) == ["a", "b", "[PAD]", "c"]


def test_numbers():
    for given, tokens, text in HF["numbers"]:
        assert tokenize_numbers(given) == tokens
        assert detokenize_numbers(" ".join(tokens)) == text
    assert len(HF["numbers"]) > 2


# ---- without sacremoses ----


def test_own_rules_warn_once_unless_they_were_asked_for(vocab, without_moses):
    for moses in (False, None):
        tokenizer = TransfoXLTokenizer(vocab_json_file=vocab, moses=moses)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            tokenizer.tokenize("the dog")
            tokenizer.tokenize("the dog")
            TransfoXLTokenizer(vocab_json_file=vocab, moses=moses, language="de").tokenize("the")
            split(vocab).tokenize("the dog")
        messages = [str(one.message) for one in told]
        assert len(messages) == (moses is None)
        assert all("some words differ" in m and "pip install sacremoses" in m for m in messages)


def test_moses_that_is_missing_is_not_made_up_for(vocab, without_moses):
    with pytest.raises(ArgumentError, match="moses=True needs sacremoses: pip install sacremoses"):
        TransfoXLTokenizer(vocab_json_file=vocab, moses=True)
    with pytest.raises(ArgumentError, match="moses must be True, False or None, got 'yes'"):
        TransfoXLTokenizer(vocab_json_file=vocab, moses="yes")


@pytest.mark.parametrize(
    ("text", "tokens", "joined"),
    [
        ("The dog, the cat.", "The dog , the cat .", "The dog, the cat."),
        ("23,000 are 1.80m tall.", "23 @,@ 000 are 1 @.@ 80m tall .", "23,000 are 1.80m tall."),
        ("state-of-the-art - no", "state @-@ of @-@ the @-@ art - no", "state-of-the-art - no"),
        ("He said “it's me”.", 'He said " it \'s me " .', 'He said "it\'s me".'),
        ("Mr. J. Smith of the U.S. left.", "Mr. J. Smith of the U.S. left .", None),
        ("Wait... (what?!)", "Wait ... ( what ? ! )", "Wait... (what?!)"),
        ("approx. five", "approx. five", "approx. five"),
        ("naïve e\u0301te\u0301 東京—x", "naïve e\u0301te\u0301 東京 - x", None),
        ("<Unk> a<b", "<Unk> a < b", None),
        ("``It'' 'is'", "\" It \" ' is '", None),
        ("snake_case $5", "snake _ case $ 5", "snake _ case $5"),
        ("", "", ""),
        (" \t\n ", "", ""),
    ],
)
def test_own_rules(vocab, text, tokens, joined):
    tokenizer = TransfoXLTokenizer(vocab_json_file=vocab, moses=False)
    assert tokenizer.tokenize(text) == tokens.split()
    if joined is not None:
        assert tokenizer.convert_tokens_to_string(tokens.split()) == joined


@needs_moses
def test_own_rules_are_near_to_moses(hf_vocab):
    """Plain English has the same words."""
    own = TransfoXLTokenizer(vocab_file=hf_vocab, moses=False)
    rows = SETTINGS["as it is"]["rows"]
    same = [row["text"] for row in rows if own.tokenize(row["text"]) == row["tokens"]]
    assert len(same) > len(rows) / 2


# ---- text that is split already ----


def test_split_text_is_split_at_white_space_alone(vocab):
    text = " = the quick-dog =  \n the dog , <formula>x @-@ \u00a0. \n"
    tokens = ["=", "the", "quick-dog", "=", "the", "dog", ",", "<formula>x", "@-@", "."]
    tokenizer = split(vocab)
    assert tokenizer.tokenize(text) == tokens
    assert tokenizer.encode("the dog <formula> <eos> no") == [2, 4, 8, 0, 1]
    assert tokenizer.decode([2, 4, 6, 7, 5]) == "the dog , @-@ ."
    assert split(vocab, lower_case=True).tokenize("The DOG <EOS>") == ["the", "dog", "<eos>"]


def test_a_delimiter_is_what_words_stand_between(vocab):
    tokenizer = TransfoXLTokenizer(vocab_json_file=vocab, delimiter="|")
    assert tokenizer.tokenize("|the dog|,|") == ["the dog", ","]
    assert tokenizer.decode([2, 4]) == "the|dog"
    letters = TransfoXLTokenizer(vocab_json_file=vocab, delimiter="")
    assert letters.tokenize(" a b<eos>") == ["a", " ", "b", "<eos>"]
    assert letters.decode([5, 6]) == ".,"
    with pytest.raises(ArgumentError, match=r"delimiter='' says otherwise: give one of them"):
        TransfoXLTokenizer(vocab_json_file=vocab, delimiter="", tokenized=True)


def test_ends_of_sentences(vocab, tmp_path):
    tokenizer = split(vocab)
    assert tokenizer.tokenize("the dog", add_eos=True) == ["the", "dog", "<eos>"]
    assert tokenizer.tokenize("the", add_double_eos=True) == ["<S>", "the", "<S>"]
    assert tokenizer("the dog", add_eos=True)["input_ids"] == [2, 4, 0]
    path = tmp_path / "text.txt"
    path.write_text("the dog\n\nthe naïve\n", encoding="utf-8")
    lines = tokenizer.encode_file(path)
    assert [line.tolist() for line in lines] == [[2, 4, 0], [0], [2, 1, 0]]
    ordered = tokenizer.encode_file(path, ordered=True, add_eos=False)
    assert ordered.dtype == torch.int64
    assert ordered.tolist() == [2, 4, 2, 1]
    assert tokenizer.encode_file(path, ordered=True, add_double_eos=True).tolist()[:4] == [
        1,
        2,
        4,
        1,
    ]
    empty = tokenizer.encode_sents([], ordered=True)
    assert (empty.shape, empty.dtype) == ((0,), torch.int64)
    with pytest.raises(ArgumentError, match="add_eos=True needs an eos_token"):
        split(vocab, eos_token=None).tokenize("the", add_eos=True)


def test_texts_that_cannot_be_read(vocab, tmp_path):
    tokenizer = split(vocab)
    with pytest.raises(ArgumentError, match=r"none\.txt cannot be read: No such file"):
        tokenizer.encode_file(tmp_path / "none.txt")
    tmp_path.joinpath("latin.txt").write_bytes(b"\xe9\n")
    with pytest.raises(ArgumentError, match=r"latin\.txt is not UTF-8"):
        tokenizer.count_file(tmp_path / "latin.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"never_split": "the"}, "never_split is 'the', expected a list of words, or None"),
        ({"never_split": [3]}, r"never_split is \[3\], expected a list of words"),
        ({"special": 3}, "special is 3, expected a list of words"),
        ({"delimiter": 3}, "delimiter is 3, expected text, or None"),
    ],
)
def test_options_of_other_types_are_told(options, message, vocab):
    with pytest.raises(ArgumentError, match=message):
        TransfoXLTokenizer(vocab_json_file=vocab, **options)


def test_a_vocabulary_that_is_no_name_is_told():
    with pytest.raises(ArgumentError, match="the vocabulary is 3, expected the name of a file"):
        TransfoXLTokenizer(vocab_file=3)


# ---- words and ids ----


def test_the_unknown_word_has_two_spellings(tmp_path):
    lower, upper = ["a", "<unk>"], ["a", "<UNK>"]
    for symbols, token in ((lower, "<unk>"), (upper, "<UNK>"), ([*lower, "<UNK>"], "<unk>")):
        tokenizer = split(saved_words(tmp_path / "vocab.json", symbols))
        assert tokenizer.unk_token == token
        assert tokenizer.encode("a what") == [0, 1]
        assert tokenizer.unk_token_id == 1
    # Of a text with both, as 4.37.2.
    tmp_path.joinpath("vocab.txt").write_text("a\n<unk>\n<UNK>\n")
    tokenizer = TransfoXLTokenizer(vocab_file=tmp_path / "vocab.txt", tokenized=True)
    assert tokenizer.encode("what <UNK> <unk>") == [2, 2, 1]
    own = split(saved_words(tmp_path / "vocab.json", ["a", "<unk>", "?"]), unk_token="?")
    assert own.encode("what <unk>") == [2, 1]


def test_a_word_that_nothing_stands_for_is_told(tmp_path):
    tokenizer = split(saved_words(tmp_path / "vocab.json", ["a", "b"]))
    assert tokenizer.encode("b a") == [1, 0]
    with pytest.raises(ArgumentError, match="'what' is not in the vocabulary, which has neither"):
        tokenizer.encode("a what")


def test_ids_outside_the_vocabulary_are_told(vocab):
    tokenizer = split(vocab)
    for index in (-1, 9, -100):
        with pytest.raises(ArgumentError, match=rf"id {index} is outside .* ids are 0 to 8"):
            tokenizer.decode([2, index])


def test_a_vocabulary_is_counted_and_built(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("b a b c\nb a <unk> <UNK>\n")
    tokenizer = TransfoXLTokenizer(special=["<eos>"], min_freq=2, tokenized=True)
    assert tokenizer.count_file(path)[1] == ["b", "a", "<unk>", "<UNK>"]
    tokenizer.count_sents([["<unk>"]])
    tokenizer.build_vocab()
    assert tokenizer.idx2sym == ["<eos>", "b", "a", "<unk>"]
    # <eos> and <unk> were added at 0 and 1 while there was no vocabulary.
    assert tokenizer.encode("b <eos> <unk> nothing") == [1, 0, 3, 3]
    assert tokenizer.eos_token_id == 0
    assert tokenizer.convert_tokens_to_ids("<formula>") == 4
    assert (tokenizer.vocab_size, len(tokenizer)) == (4, 5)
    tokenizer.max_size, tokenizer.min_freq = 2, 0
    tokenizer.build_vocab()
    assert tokenizer.idx2sym == ["<eos>", "b", "a"]
    tokenizer.add_symbol("z")
    assert tokenizer.encode("a z <eos>") == [2, 3, 0]
    assert sorted(tokenizer.convert_tokens_to_ids(["<unk>", "<formula>"])) == [4, 5]
    assert len(tokenizer) == 6
    with pytest.raises(ArgumentError, match="no word was counted, or none 5 times"):
        TransfoXLTokenizer(min_freq=5).build_vocab()


def test_an_unknown_word_in_capitals_is_found_when_counted(tmp_path):
    tokenizer = TransfoXLTokenizer(tokenized=True)
    tokenizer.count_sents([["a", "<UNK>"]])
    tokenizer.build_vocab()
    assert tokenizer.unk_token == "<UNK>"
    assert tokenizer.encode("a what <UNK>") == [0, 1, 1]
    assert "<unk>" not in tokenizer.get_vocab()
    assert tokenizer.get_added_vocab() == {"<UNK>": 1, "<eos>": 2, "<formula>": 3}


def test_build_vocab_reads_its_file_again(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("a 5\n<unk> 1\n")
    tokenizer = TransfoXLTokenizer(vocab_file=path, tokenized=True)
    assert tokenizer.counter == {"a": 5, "<unk>": 1}
    path.write_text("<unk>\nb\na\n")
    tokenizer.build_vocab()
    assert tokenizer.encode("a b c") == [2, 1, 0]
    assert len(tokenizer) == 5  # and <eos> and <formula>


def test_moving_a_token_moves_those_after_it(vocab):
    tokenizer = TransfoXLTokenizer(vocab_json_file=vocab, moses=False)
    tokenizer.add_tokens(["<new>", "newer"])
    before = tokenizer.encode("the dog . <eos> <unk>")
    assert tokenizer.encode("<new> newer") == [9, 10]
    tokenizer.move_added_token("newer", 3)
    # The one that was not moved, and special tokens, have their right ids too.
    assert tokenizer.encode("<new> newer <eos> <unk> <formula>") == [10, 3, 0, 1, 9]
    assert tokenizer.encode("the dog . <eos> <unk>") == [i + (i >= 3) for i in before]
    assert tokenizer.decode([10, 3]) == "<new> newer"
    tokenizer.move_added_token("<new>", 0)
    assert tokenizer.encode("<new> the <eos>") == [0, 3, 1]
    assert tokenizer.eos_token_id == 1
    for token, place, message in (
        ("<new>", 0, "is a word of the vocabulary already"),
        ("other", 0, "is no added token; add_tokens"),
    ):
        with pytest.raises(ArgumentError, match=message):
            tokenizer.move_added_token(token, place)
    tokenizer.add_tokens("last")
    with pytest.raises(ArgumentError, match="target_idx is 12; expected 0 to 11"):
        tokenizer.move_added_token("last", 12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_padded_with_the_end_of_sentence(vocab, side):
    tokenizer = split(vocab, padding_side=side)
    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(["the quick dog", "the", ""], padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    pads = [slice(0, 2), slice(0, 3)] if side == "left" else [slice(1, 3), slice(0, 3)]
    assert ids[0].tolist() == [2, 3, 4]
    assert mask.sum(1).tolist() == [3, 1, 0]
    for row, pad in zip((1, 2), pads, strict=True):
        assert ids[row, pad].tolist() == [0] * len(ids[row, pad])
        assert mask[row, pad].sum() == 0
    assert ids[1, mask[1].bool()].tolist() == [2]


def test_lower_case_spares_special_tokens(tmp_path):
    vocab = saved_words(tmp_path / "vocab.json", ["<unk>", "<Eos>", "the", "σ", "new york"])
    tokenizer = TransfoXLTokenizer(
        vocab_json_file=vocab, lower_case=True, eos_token="<Eos>", moses=False
    )
    assert tokenizer.tokenize("THE<Eos>Σ") == ["the", "<Eos>", "σ"]
    tokenizer.add_tokens("New York")  # lower-cased when it is added
    assert tokenizer.encode("THE New YORK") == [2, 4]


# ---- files ----


def test_what_was_saved_is_loaded(vocab, tmp_path):
    tokenizer = split(
        vocab, special=["<eos>"], min_freq=3, lower_case=True, additional_special_tokens=["<doc>"],
        moses=False, never_split=["a-b"], language="de",
    )  # fmt: skip
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_tokens(["later"])
    folder = tmp_path / "saved"
    files = [Path(file).name for file in tokenizer.save_pretrained(folder)]
    assert "vocab.json" in files
    assert not list(folder.glob("*.pkl")) + list(folder.glob("*.bin"))
    assert json.loads((folder / "vocab.json").read_text()) == tokenizer.sym2idx
    loaded = TransfoXLTokenizer.from_pretrained(folder)
    names = "special min_freq lower_case tokenized moses never_split language pad_token"
    for name in names.split():
        assert getattr(loaded, name) == getattr(tokenizer, name)
    text = "The later <doc> naïve ."
    assert loaded.encode(text) == tokenizer.encode(text) == [2, 10, 9, 1, 5]
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.all_special_tokens == tokenizer.all_special_tokens
    assert "<formula>" in loaded.get_vocab()  # a word of this vocabulary, special no more
    assert "<formula>" not in loaded.all_special_tokens
    assert Path(tokenizer.save_vocabulary(tmp_path, "my")[0]) == tmp_path / "my-vocab.json"


def test_auto_tokenizer_finds_it(vocab, tmp_path):
    config = TransfoXLConfig()
    split(vocab).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, config=config)
    assert type(tokenizer) is TransfoXLTokenizer
    assert tokenizer.encode("the dog") == [2, 4]
    tmp_path.joinpath("tokenizer_config.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, config=config, tokenized=True)
    assert tokenizer.encode("the dog") == [2, 4]


def test_of_several_files_the_first_is_read(tmp_path):
    def vocabulary(word):
        return {"idx2sym": [word, "<unk>"]}

    writers = {
        "vocab.pkl": lambda word: pickle.dumps(vocabulary(word)),
        "vocab.bin": lambda word: pickle.dumps(vocabulary(word)),
        "vocab.txt": lambda word: f"{word}\n<unk>\n".encode(),
        "vocab.json": lambda word: json.dumps([word, "<unk>"]).encode(),
    }
    for name, write in writers.items():
        (tmp_path / name).write_bytes(write(name))
        tokenizer = TransfoXLTokenizer.from_pretrained(tmp_path, tokenized=True)
        assert tokenizer.idx2sym == [name, "<unk>"]
    tmp_path.joinpath("evil.pkl").write_bytes(pickle.dumps(eval, 2))
    with pytest.raises(ArgumentError, match=r"wants __builtin__\.eval"):
        TransfoXLTokenizer(pretrained_vocab_file=tmp_path / "evil.pkl")


def test_a_folder_that_transformers_4_37_2_saved(tmp_path):
    found = json.loads((GOLDEN / "txl_pickles.json").read_text(encoding="utf-8"))
    content = zlib.decompress(base64.b64decode(found["files"]["vocab.pkl"]))
    (tmp_path / "vocab.pkl").write_bytes(content)
    token = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "added_tokens_decoder": {
            "0": {"content": "<eos>", "special": True, **token},
            "1": {"content": "<unk>", "special": True, **token},
            str(len(found["symbols"])): {"content": "<formula>", "special": True, **token},
        },
        "additional_special_tokens": ["<formula>"],
        "clean_up_tokenization_spaces": True,
        "delimiter": None,
        "eos_token": "<eos>",
        "language": "en",
        "lower_case": False,
        "max_size": None,
        "min_freq": 0,
        "model_max_length": 1000000000000000019884624838656,
        "never_split": ["<eos>", "<unk>", "<formula>"],
        "special": [],
        "tokenizer_class": "TransfoXLTokenizer",
        "unk_token": "<unk>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = TransfoXLTokenizer.from_pretrained(tmp_path, moses=False)
    assert tokenizer.idx2sym == found["symbols"]
    assert len(tokenizer) == len(found["symbols"]) + 1
    assert tokenizer.encode("<formula> <eos>") == [len(found["symbols"]), 0]
    tokenizer.save_pretrained(tmp_path / "anew")
    again = TransfoXLTokenizer.from_pretrained(tmp_path / "anew", moses=False)
    assert again.get_vocab() == tokenizer.get_vocab()
    decoder = config["added_tokens_decoder"]
    decoder["3"] = decoder.pop("1")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ArgumentError, match="place '<unk>' at 3, and the vocabulary has it at 1: "):
        TransfoXLTokenizer.from_pretrained(tmp_path)
    decoder["1"] = {**decoder.pop("3"), "content": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(
        ArgumentError, match="place '<pad>' at 1, and the vocabulary has '<unk>' there"
    ):
        TransfoXLTokenizer.from_pretrained(tmp_path)


def test_a_folder_without_a_vocabulary_is_told(tmp_path):
    message = r"has no vocabulary: none of vocab\.json, vocab\.txt, vocab\.bin, vocab\.pkl"
    with pytest.raises(ArgumentError, match=message):
        TransfoXLTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="there is no vocabulary to save"):
        TransfoXLTokenizer().save_pretrained(tmp_path)


def test_copies_and_pickles_of_it_are_whole(vocab):
    tokenizer = TransfoXLTokenizer(vocab_json_file=vocab, moses=False)
    expected = tokenizer.encode("the quick-dog")
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode("the quick-dog") == expected
