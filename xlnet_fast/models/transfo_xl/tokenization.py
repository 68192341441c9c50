"""Transformer-XL's tokenizer: words, each with its place in a vocabulary as id.

It is that of Hugging Face 4.37.2 (`TransfoXLTokenizer`), which transformers 5 no longer has. The
vocabularies that were saved then it reads without running what is in them; it writes `vocab.json`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from transformers import AddedToken

from xlnet_fast.errors import ArgumentError

from .vocabulary import FILES
from .word_ids import WordIds
from .words import check_moses, join_numbers, rules, split_numbers

__all__ = ["TransfoXLTokenizer", "detokenize_numbers", "tokenize_numbers"]

tokenize_numbers = split_numbers
detokenize_numbers = join_numbers

_AT_BOTH_ENDS = "<S>"  # of a sentence of the One Billion Word benchmark


class TransfoXLTokenizer(WordIds):
    """A word-level tokenizer with Moses' rules for text, and none for text that is split already.

    Args:
        special: words that `build_vocab` places first.
        min_freq, max_size: which words `build_vocab` keeps: seen as often, and the most frequent.
        lower_case: whether text is lower-cased, but for special tokens.
        delimiter: "" makes each character a word; any other text is what words stand between, as
            in the original code, and nothing else is then split. None: see `tokenized`.
        vocab_file, pretrained_vocab_file, vocab_json_file, pretrained_vocab_file_torch: the
            vocabulary, see :func:`.vocabulary.read_vocabulary`. `from_pretrained` takes the first
            of vocab.json, vocab.txt, vocab.bin and vocab.pkl. Without one the vocabulary is empty
            until `build_vocab`.
        never_split: words that no rule splits, in upper or lower case; by default the special
            tokens.
        unk_token: whose id words outside the vocabulary get; the spellings <unk> and <UNK> are one.
        language: of Moses' rules.
        moses: True for Moses' rules, which need sacremoses; False for a few simpler ones; None for
            Moses' where sacremoses is installed, and otherwise the simpler ones with a warning.
        tokenized: whether text is split at white space alone, as is right for text that is split
            already, such as WikiText-103. Added tokens are words like others then.

    The vocabulary has no padding token: to pad, set `tokenizer.pad_token = tokenizer.eos_token`.

    Raises:
        ArgumentError: the vocabulary cannot be read, a folder has none, the added tokens of its
            `tokenizer_config.json` have ids that belong to other words, or an argument is unusable.
    """

    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    def __init__(
        self,
        special: Iterable[str] | None = None,
        min_freq: int = 0,
        max_size: int | None = None,
        lower_case: bool = False,
        delimiter: str | None = None,
        vocab_file: str | os.PathLike[str] | None = None,
        pretrained_vocab_file: str | os.PathLike[str] | None = None,
        never_split: Sequence[str] | None = None,
        unk_token: str | AddedToken | None = "<unk>",
        eos_token: str | AddedToken | None = "<eos>",
        additional_special_tokens: Sequence[str | AddedToken] | None = ("<formula>",),
        language: str = "en",
        *,
        moses: bool | None = None,
        tokenized: bool = False,
        vocab_json_file: str | os.PathLike[str] | None = None,
        pretrained_vocab_file_torch: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        check_moses(moses)
        if tokenized and delimiter is not None:
            raise ArgumentError(
                "tokenized=True splits at white space, and "
                f"delimiter={delimiter!r} says otherwise: give one of them"
            )
        special = list(special) if isinstance(special, Iterator) else special
        never_split = list(never_split) if isinstance(never_split, Iterator) else never_split
        _check_words("special", special)
        _check_words("never_split", never_split)
        if not isinstance(delimiter, (str, type(None))):
            raise ArgumentError(f"delimiter is {delimiter!r}, expected text, or None")
        self.special = list(special or ())
        self.min_freq, self.max_size = min_freq, max_size
        self.lower_case, self.delimiter, self.tokenized = lower_case, delimiter, tokenized
        self.never_split, self.language, self.moses = never_split, language, moses
        self.vocab_file = vocab_file
        files = (vocab_json_file, vocab_file, pretrained_vocab_file_torch, pretrained_vocab_file)
        source = next((file for file in files if file is not None), None)
        if not isinstance(source, (str, os.PathLike, type(None))):
            raise ArgumentError(f"the vocabulary is {source!r}, expected the name of a file")
        if source is None and (folder := kwargs.get("name_or_path")):
            raise ArgumentError(f"{folder} has no vocabulary: none of {', '.join(FILES.values())}")
        unk_token = self._begin_vocabulary(source, unk_token)
        # transformers 5 has this name for the same.
        if isinstance(kwargs.get("extra_special_tokens"), (list, tuple)):
            additional_special_tokens = kwargs.pop("extra_special_tokens")
        kwargs.setdefault("clean_up_tokenization_spaces", True)
        super().__init__(
            special=self.special,
            min_freq=min_freq,
            max_size=max_size,
            lower_case=lower_case,
            delimiter=delimiter,
            never_split=never_split,
            unk_token=unk_token,
            eos_token=eos_token,
            additional_special_tokens=list(additional_special_tokens or ()),
            language=language,
            moses=moses,
            tokenized=tokenized,
            **kwargs,
        )
        self._check_added_tokens()

    @property
    def do_lower_case(self) -> bool:
        """`lower_case`, by the name that transformers asks for."""
        return self.lower_case

    @property
    def _splits_plainly(self) -> bool:
        return self.tokenized or self.delimiter is not None

    # ---- text to words ----

    def tokenize(
        self, text: str, add_eos: bool = False, add_double_eos: bool = False, **kwargs: Any
    ) -> list[str]:
        """The words of a text.

        Args:
            add_eos: whether `eos_token` follows.
            add_double_eos: instead, whether "<S>" stands before and after, as in the One Billion
                Word benchmark.

        Raises:
            ArgumentError: `add_eos` where `eos_token` is None.
        """
        if self.tokenized or self.delimiter:
            words = self._tokenize(text)  # without a look at each character for added tokens
        else:
            words = super().tokenize(self._lowered(text) if self.lower_case else text, **kwargs)
        if add_double_eos:
            return [_AT_BOTH_ENDS, *words, _AT_BOTH_ENDS]
        if not add_eos:
            return words
        if self.eos_token is None:
            raise ArgumentError("add_eos=True needs an eos_token, and it is None")
        return [*words, self.eos_token]

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        text = text.strip()
        if self.delimiter == "":
            return list(text)
        if not self._splits_plainly:
            return self.moses_pipeline(text)
        if self.lower_case:
            text = text.lower()
        return [word for word in text.split(self.delimiter) if word]

    def _lowered(self, text: str) -> str:
        """Lower case but for special tokens, letter by letter as 4.37.2: a Greek Σ is always σ."""
        whole = "|".join(re.escape(token) for token in self.all_special_tokens if token)
        parts = re.split(f"({whole})", text) if whole else [text]
        parts[::2] = ["".join(map(str.lower, part)) for part in parts[::2]]
        return "".join(parts)

    def moses_pipeline(self, text: str) -> list[str]:
        """The words of a text by the rules that `moses` names, with numbers split.

        "23,000 people are 1.80 m tall" is "23", "@,@", "000", "people", ..., "1", "@.@", "80", ...
        """
        kept = self.all_special_tokens if self.never_split is None else self.never_split
        return split_numbers(rules(self.moses, self.language).split(text, kept))

    # ---- words to text ----

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of words: split numbers and dashes whole again, punctuation beside its word.

        Where `tokenized` or `delimiter` says what words stand between, they stand between that.
        """
        if self._splits_plainly:
            return (" " if self.delimiter is None else self.delimiter).join(tokens)
        return join_numbers(rules(self.moses, self.language).join(tokens)).strip()

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
        **kwargs: Any,
    ) -> str:
        """As 4.37.2: tokens added after the vocabulary part the text, and each part is joined.

        Spaces are cleaned up by default where Moses' rules or ours joined the words, only.
        """
        found = self.convert_ids_to_tokens(token_ids, skip_special_tokens=skip_special_tokens)
        tokens: list[str] = [found] if isinstance(found, str) else found
        clean = self.clean_up_tokenization_spaces and not self._splits_plainly
        if clean_up_tokenization_spaces is not None:
            clean = clean_up_tokenization_spaces
        if self._splits_plainly:
            text = self.convert_tokens_to_string(tokens)
        else:
            text = (" " if spaces_between_special_tokens else "").join(self._parts(tokens))
        return self.clean_up_tokenization(text) if clean else text

    def _parts(self, tokens: list[str]) -> Iterator[str]:
        """The text between tokens that were added, and these."""
        values = self._special_tokens_map.values()
        named = {str(token) for token in values if isinstance(token, (str, AddedToken))}
        special = set(self.all_special_tokens)
        apart = {
            token
            for token, index in self._added_tokens_encoder.items()
            if token not in named and (token not in special or index >= self.vocab_size)
        }
        between: list[str] = []
        for token in tokens:
            if token not in apart:
                between.append(token)
                continue
            if between and (text := self.convert_tokens_to_string(between)):
                yield text
            yield token
            between = []
        if between:
            yield self.convert_tokens_to_string(between)


def _check_words(name: str, words: object) -> None:
    """Raise ArgumentError where an option is no list of words, such as one word alone."""
    if words is None:
        return
    found = list(words) if isinstance(words, Iterable) and not isinstance(words, str) else [None]
    if not all(isinstance(word, (str, AddedToken)) for word in found):
        raise ArgumentError(f"{name} is {words!r}, expected a list of words, or None")
