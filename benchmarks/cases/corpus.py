"""Batches of real text: tokenised, in two segments, padded on the left as XLNet is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.text import builtin_text, load_text, train_tokenizer
from xlnet_fast.train.pretraining.corpus import begins_word

_BYTE_OFFSET = 9  # after XLNet's nine special ids


@dataclass(frozen=True)
class Corpus:
    """A long run of token ids (1-d int64) with the special ids, and how they were made.

    lines: (S,) int64, where the lines of the text that hold tokens begin; the first is 0.
    word_starts: (V,) bool, True for ids that begin a word.
    """

    ids: Tensor
    sep_id: int
    cls_id: int
    pad_id: int
    description: str
    lines: Tensor
    word_starts: Tensor


def load_corpus(
    text: str | Path | None = None,
    *,
    vocab_size: int = 8000,
    tokenizer_folder: str | Path | None = None,
) -> Corpus:
    """Tokenise a text file, or the built-in text.

    text: a UTF-8 file; None for the text that comes with Python.
    vocab_size: ids stay below it. tokenizer_folder: a checkpoint folder with its own tokenizer,
    used in place of a SentencePiece model trained on the text; a folder without one is passed over.

    Raises `ArgumentError` for a text or tokenizer that cannot be used.
    """
    words = builtin_text() if text is None else load_text(text)
    source = "built-in English text" if text is None else "text file of the user"
    if tokenizer_folder is not None and _has_tokenizer(Path(tokenizer_folder)):
        return _with_own_tokenizer(words, source, tokenizer_folder, vocab_size)
    try:
        import sentencepiece
    except ImportError:
        if vocab_size < _BYTE_OFFSET + 256:
            raise ArgumentError(
                f"vocab_size is {vocab_size}; at least {_BYTE_OFFSET + 256} are needed"
            ) from None
        return _bytes_as_ids(words, source)
    folder = train_tokenizer(words, min(vocab_size, 8000))
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    ids, lines = _joined(model.encode(words.splitlines()))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    description = f"{source}, SentencePiece unigram with {len(pieces)} pieces"
    return Corpus(ids, 4, 3, 5, description, lines, _word_starts(pieces))


def _joined(lines: Iterable[list[int]]) -> tuple[Tensor, Tensor]:
    """Return the ids of all lines as one run, and where those begin that hold any."""
    ids: list[int] = []
    starts = []
    for line in lines:
        if line:
            starts.append(len(ids))
            ids += line
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(starts, dtype=torch.int64)


def _word_starts(pieces: Iterable[str]) -> Tensor:
    return torch.tensor([begins_word(piece) for piece in pieces])


def _bytes_as_ids(words: str, source: str) -> Corpus:
    ids, lines = _joined(list(line.encode()) for line in words.splitlines(keepends=True))
    # A space begins the word behind it, as SentencePiece's mark for it does.
    pieces = ["<special>"] * _BYTE_OFFSET + [chr(b) for b in range(256)]
    pieces[_BYTE_OFFSET + ord(" ")] = "\N{LOWER ONE EIGHTH BLOCK}"
    description = f"{source}, UTF-8 bytes as ids (sentencepiece is not installed)"
    return Corpus(ids + _BYTE_OFFSET, 4, 3, 5, description, lines, _word_starts(pieces))


def _has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer; True for a Hub id, which is asked when loading."""
    files = ("spiece.model", "tokenizer.json", "tokenizer_config.json")
    return not folder.is_dir() or any((folder / name).exists() for name in files)


def _with_own_tokenizer(words: str, source: str, folder: str | Path, vocab_size: int) -> Corpus:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise ArgumentError(f"no tokenizer could be loaded from {folder}: {error}") from error
    encoded = tokenizer(words.splitlines(), add_special_tokens=False, verbose=False)
    ids, lines = _joined(encoded["input_ids"])
    if not len(ids) or int(ids.max()) >= vocab_size:
        raise ArgumentError(
            f"the tokenizer in {folder} gives ids up to {int(ids.max()) if len(ids) else 'none'}, "
            f"the model takes ids below {vocab_size}"
        )
    special = (tokenizer.sep_token_id, tokenizer.cls_token_id, tokenizer.pad_token_id)
    if None in special:
        raise ArgumentError(f"the tokenizer in {folder} lacks a <sep>, <cls> or <pad> token")
    starts = _word_starts(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    return Corpus(ids, *special, f"{source}, tokenizer of the checkpoint", lines, starts)


def make_batch(corpus: Corpus, batch: int, length: int) -> dict[str, Tensor]:
    """Return input_ids, attention_mask and token_type_ids, each (batch, length) int64.

    Row b holds `A <sep> B <sep> <cls>` with segment ids 0, 1 and 2, and 5 to 20% padding on the
    left (segment 3), as `XLNetTokenizer` would give for a pair of texts. Texts are taken one after
    the other and start again at the end of the corpus.
    """
    if batch < 1 or length < 8:
        raise ValueError(f"batch must be >= 1 and length >= 8, got {batch} and {length}")
    ids = torch.full((batch, length), corpus.pad_id, dtype=torch.int64)
    mask = torch.zeros(batch, length, dtype=torch.int64)
    segments = torch.full((batch, length), 3, dtype=torch.int64)
    start = 0
    for row in range(batch):
        padding = (length * (row % 4 + 1)) // 20
        tokens = length - padding - 3
        first = tokens // 2
        take = (torch.arange(start, start + tokens)) % len(corpus.ids)
        text = corpus.ids[take]
        start += tokens
        sep = torch.tensor([corpus.sep_id])
        ids[row, padding:] = torch.cat(
            [text[:first], sep, text[first:], sep, torch.tensor([corpus.cls_id])]
        )
        mask[row, padding:] = 1
        segments[row, padding : padding + first + 1] = 0
        segments[row, padding + first + 1 : -1] = 1
        segments[row, -1] = 2
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
