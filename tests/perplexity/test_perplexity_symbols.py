"""Texts as symbols of a vocabulary: which form they are of, and where each symbol ends."""

from __future__ import annotations

import pytest

from xlnet_fast.errors import ArgumentError
from xlnet_fast.perplexity.symbols import Symbols
from xlnet_fast.perplexity.tokens import Tokens, lines_of, read

LETTERS = ("_", *"abcdefghijklmnopqrstuvwxyz")
NUMBERS = tuple(str(byte) for byte in range(32, 256))
WORDS = ("<eos>", "<unk>", "the", "value", ",", ".")


def symbols(names, lower_case=False) -> Symbols:
    ids = {name: place for place, name in enumerate(names)}
    split = str.split  # in place of the tokenizer's own
    return Symbols(ids, ids.get("<unk>"), "<eos>" if "<eos>" in ids else None, lower_case, split)


def tokens_of(names, text: str, form: str, **how) -> Tokens:
    return read(text, symbols(names, **how).encoder(form), "it", None)


def shown(names, tokens: Tokens) -> list[str]:
    return [names[i] for i in tokens.ids]


@pytest.mark.parametrize(
    ("names", "text", "form"),
    [
        (WORDS, "the value , the value .\n", "tokenized"),
        (WORDS, "the value, the value.\n", "raw"),
        (WORDS, "the <unk> value\n", "tokenized"),
        (WORDS, "no commas here\n", "raw"),
        (LETTERS, "anarchism originated", "characters"),
        (LETTERS, "a n a r c h i s m _ o", "tokenized"),
        (NUMBERS, "<page>\n", "bytes"),
        (NUMBERS, "60 112 97 103", "tokenized"),
    ],
)
def test_the_form_is_told_by_vocabulary_and_text(names, text, form):
    assert symbols(names).form_of(text) == form


def test_words_are_apart_and_each_line_has_its_end():
    tokens = tokens_of(WORDS, " the value\n\n, zebra \u2028.", "tokenized")
    assert shown(WORDS, tokens) == [
        "the", "value", "<eos>", "<eos>", ",", "<unk>", ".", "<eos>"
    ]  # fmt: skip
    assert tokens.unknown.tolist() == [False] * 5 + [True] + [False] * 2
    assert tokens.characters.tolist() == [4, 10, 11, 12, 13, 19, 22, 22]
    assert tokens.utf8.tolist() == [4, 10, 11, 12, 13, 19, 24, 24]


def test_a_line_of_raw_text_is_shared_by_its_words():
    tokens = tokens_of(WORDS, "the value the\nthe\n", "raw")
    assert shown(WORDS, tokens) == ["the", "value", "the", "<eos>", "the", "<eos>"]
    assert tokens.characters.tolist() == [3, 7, 10, 14, 16, 18]


def test_characters_have_an_underscore_for_a_space_and_lose_line_ends():
    tokens = tokens_of(LETTERS, "so it\nis\n", "characters")
    assert "".join(shown(LETTERS, tokens)) == "so_itis"
    assert tokens.characters.tolist() == [1, 2, 3, 4, 5, 7, 9]  # the last with what follows
    ended = (*LETTERS, "<eos>")
    assert shown(ended, tokens_of(ended, "a\nb", "characters")) == ["a", "<eos>", "b"]
    spaced = (" ", "\n", "a", "b")
    assert shown(spaced, tokens_of(spaced, "a b\n", "characters")) == ["a", " ", "b", "\n"]


def test_bytes_are_numbers_and_lose_line_ends():
    tokens = tokens_of(NUMBERS, "é <\n!\n", "bytes")
    assert shown(NUMBERS, tokens) == ["195", "169", "32", "60", "33"]
    assert tokens.characters.tolist() == [1, 1, 2, 3, 6]
    assert tokens.utf8.tolist() == [2, 2, 3, 4, 7]


def test_a_vocabulary_of_lower_case():
    tokens = tokens_of(WORDS, "The VALUE\n", "tokenized", lower_case=True)
    assert shown(WORDS, tokens) == ["the", "value", "<eos>"]


def test_what_the_vocabulary_lacks_is_told_where_nothing_stands_for_it():
    with pytest.raises(ArgumentError, match=r"line 2: the vocabulary has no 'X', nor an <unk>"):
        tokens_of(LETTERS, "abc\naXb\n", "characters")


def test_only_a_newline_ends_a_line():
    assert list(lines_of("a\u2028b\x0cc\r\nd")) == ["a\u2028b\x0cc\r\n", "d"]


def test_a_limit_ends_the_reading():
    taken: list[str] = []

    def encode(lines):
        for part in symbols(WORDS).encoder("tokenized")(lines):
            taken.append(part.text)
            yield part

    tokens = read("the value\n" * 9, encode, "it", 5)
    assert len(tokens) == 5
    assert len(taken) == 2
    assert tokens.characters.tolist() == [3, 9, 10, 13, 19]
