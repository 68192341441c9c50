"""Text as one array of token ids with its sentences and documents, in memory or on disk.

The original keeps one sentence per line and an empty line between documents; each document ends
with <eod>, which belongs to its last sentence.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import tokenize
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlnet_fast.errors import ArgumentError, XLNetFastError

Ints = NDArray[np.int64]

_SENTENCE_END = re.compile(
    r"""(?:(?<=[.!?])|(?<=[.!?]["')\]]))\s+(?=["'(\[]*[A-Z0-9])""",
)
_LINES_AT_ONCE = 2000
_FILES = ("tokens.npy", "sentences.npy", "documents.npy")
# What numpy raises for a file that is cut short, or whose header is no header.
_DAMAGED = (OSError, ValueError, EOFError, tokenize.TokenError, zipfile.BadZipFile)


@dataclass(frozen=True)
class TextVocabulary:
    """What running text needs to know of a tokenizer.

    Attributes:
        size: number of ids.
        eod: id behind each document. unk: id of what is in no vocabulary.
        line_ends: ``eod`` stands behind each line instead, and words that look like special tokens
            are words, ``eod`` excepted.
    """

    size: int
    eod: int = field(kw_only=True)
    unk: int = field(kw_only=True)
    line_ends: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Vocabulary(TextVocabulary):
    """What the data of the permutation objective needs to know of a tokenizer.

    Attributes:
        starts: (size,) bool, True for pieces that begin a word: those with a leading "▁" or "<"
            and single punctuation characters (the original's rule).
        sep, cls, eod, unk: ids of <sep>, <cls>, <eod> and <unk>.
    """

    starts: NDArray[np.bool_]
    sep: int
    cls: int

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """That of a tokenizer of transformers.

        Raises:
            ArgumentError: it lacks <sep>, <cls>, <eod> or <unk>.
        """
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        ids = {piece: number for number, piece in enumerate(pieces)}
        missing = [name for name in ("<sep>", "<cls>", "<eod>", "<unk>") if name not in ids]
        if missing:
            raise ArgumentError(
                f"the tokenizer has no {', '.join(missing)}: expected an XLNet vocabulary, "
                "such as xlnet_fast.text.train_tokenizer makes"
            )
        starts = np.fromiter((begins_word(piece) for piece in pieces), bool, len(pieces))
        sep, cls_, eod, unk = (ids[name] for name in ("<sep>", "<cls>", "<eod>", "<unk>"))
        return cls(len(pieces), starts, sep, cls_, eod=eod, unk=unk)


def begins_word(piece: str) -> bool:
    """Whether a piece of SentencePiece begins a word, by the original's rule."""
    return piece.startswith(("▁", "<")) or (
        len(piece) == 1 and piece in '!"#$%&()*+,-./:;?@[\\]^_`{|}~'
    )


@dataclass(frozen=True)
class Corpus:
    """Token ids of documents, one after the other.

    Attributes:
        tokens: (N,) unsigned integers; may be memory-mapped.
        sentences: (S,) sorted positions at which a sentence begins; the first is 0.
        documents: (D,) sorted positions at which a document begins; the first is 0.
    """

    tokens: NDArray[Any]
    sentences: Ints
    documents: Ints = field(repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def digest(self) -> str:
        """SHA-256 of the token ids and of where sentences and documents begin."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.sentences, self.documents):
            for start in range(0, len(array), 1 << 24):
                digest.update(np.ascontiguousarray(array[start : start + (1 << 24)]).tobytes())
        return digest.hexdigest()

    def split(self, share: float) -> tuple[Corpus, Corpus]:
        """Whole documents from the end as a second corpus, about ``share`` of all tokens.

        A single document is cut at a sentence instead.

        Raises:
            ArgumentError: a share that is not between 0 and 1, or a text that cannot be cut.
        """
        if not 0 < share < 1:
            raise ArgumentError(f"the share of the evaluation text is {share}, expected 0 to 1")
        wanted = len(self) * (1 - share)
        cuts = self.documents if len(self.documents) > 1 else self.sentences
        cuts = cuts[(cuts > 0) & (cuts < len(self))]
        if not len(cuts):
            raise ArgumentError("the text is one sentence, of which no part can be held out")
        cut = int(cuts[np.abs(cuts - wanted).argmin()])
        return self.part(0, cut), self.part(cut, len(self))

    def part(self, begin: int, end: int) -> Corpus:
        """The tokens ``begin .. end`` as a corpus."""

        def inside(starts: Ints) -> Ints:
            found = starts[(starts > begin) & (starts < end)] - begin
            return np.concatenate([[0], found]).astype(np.int64)

        return Corpus(self.tokens[begin:end], inside(self.sentences), inside(self.documents))

    def save(self, folder: Path, description: dict[str, Any]) -> None:
        """Write three .npy files and ``corpus.json``; a reader never sees half of them.

        Raises:
            XLNetFastError: the files cannot be written; what was written is removed.
        """
        temporary = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
            for name, array in zip(
                _FILES, (self.tokens, self.sentences, self.documents), strict=True
            ):
                np.save(temporary / name, array)
            (temporary / "corpus.json").write_text(json.dumps(description, indent=1))
            os.chmod(temporary, 0o755)
            if folder.exists():
                shutil.rmtree(folder)
            os.rename(temporary, folder)
        except OSError as error:
            if folder.exists() and self._matches(folder, description):
                return  # another process was first
            raise XLNetFastError(
                # numpy's own error of a full disk has no strerror.
                f"the encoded text cannot be written to {folder}: {error.strerror or error}"
            ) from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)

    @staticmethod
    def _matches(folder: Path, description: dict[str, Any]) -> bool:
        try:
            found = json.loads((folder / "corpus.json").read_text())
        except (OSError, ValueError):
            return False
        return bool(found == description)

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> Corpus | None:
        """The corpus that :meth:`save` wrote under this description, memory-mapped, or None."""
        if not cls._matches(folder, description):
            return None
        try:
            tokens = np.load(folder / _FILES[0], mmap_mode="r")
            sentences, documents = (np.load(folder / name) for name in _FILES[1:])
        except _DAMAGED:
            return None  # made anew
        starts = (sentences, documents)
        if any(x.ndim != 1 or not x.size or x[-1] >= tokens.size for x in starts):
            return None
        return cls(tokens, sentences, documents)


def sentences_of(line: str) -> list[str]:
    """Cut a line behind ".", "!" and "?" where white space and a capital or digit follow."""
    return [part for part in _SENTENCE_END.split(line) if part.strip()]


def encode(
    documents: Iterable[Iterable[str]],
    tokenizer: Any,
    vocabulary: TextVocabulary,
    *,
    split_sentences: bool = True,
) -> Corpus:
    """Tokenize documents, each given as lines.

    Args:
        split_sentences: also cut lines at sentence ends; False: a line is a sentence, as in the
            original.

    Raises:
        ArgumentError: there is no word in all of them.
    """
    dtype = np.uint16 if vocabulary.size <= 2**16 else np.uint32
    chunks: list[NDArray[Any]] = []
    sentences: list[int] = []
    starts: list[int] = []
    total = 0
    line_end = [vocabulary.eod] if vocabulary.line_ends else []
    special = _special_ids(tokenizer, vocabulary)
    for document in documents:
        begin = total
        for ids in _encoded_sentences(document, tokenizer, special, split_sentences):
            sentences.append(total)
            chunks.append(np.array(ids + line_end, dtype))
            total += len(ids) + len(line_end)
        if total > begin:
            starts.append(begin)
            if not line_end:
                chunks.append(np.array([vocabulary.eod], dtype))
                total += 1
    if not starts:
        raise ArgumentError("the text holds no words")
    tokens = np.concatenate(chunks)
    # "＜sep＞" becomes "<sep>" where the tokenizer normalizes it: a token that no text may have.
    forbidden = np.zeros(vocabulary.size, bool)
    forbidden[special] = True
    tokens[forbidden[tokens]] = vocabulary.unk
    ended = sentences if line_end else starts
    tokens[np.array([*ended[1:], total]) - 1] = vocabulary.eod
    return Corpus(tokens, np.array(sentences), np.array(starts))


def _special_ids(tokenizer: Any, vocabulary: TextVocabulary) -> list[int]:
    """Ids of tokens that no text may have."""
    return [vocabulary.eod] if vocabulary.line_ends else list(tokenizer.all_special_ids)


def _encoded_sentences(
    lines: Iterable[str], tokenizer: Any, special_ids: list[int], split_sentences: bool
) -> Iterator[list[int]]:
    iterator = iter(lines)
    tokens = tokenizer.convert_ids_to_tokens(special_ids)
    special = re.compile("|".join(map(re.escape, tokens)))
    while block := list(islice(iterator, _LINES_AT_ONCE)):
        texts = [line.strip() for line in block]
        if split_sentences:
            texts = [sentence for line in texts for sentence in sentences_of(line)]
        texts = [special.sub(_apart, text) for text in texts if text]
        if texts:
            encoded = tokenizer(texts, add_special_tokens=False)
            yield from (ids for ids in encoded["input_ids"] if ids)


def _apart(special: re.Match[str]) -> str:
    """A "<sep>" that stands in a text is text, not the token: with a space it is no piece."""
    return f"{special[0][0]} {special[0][1:]}"


def documents_of_lines(lines: Iterable[str]) -> Iterator[list[str]]:
    """Documents of a text in which empty lines part them."""
    document: list[str] = []
    for line in lines:
        if line.strip():
            document.append(line)
        elif document:
            yield document
            document = []
    if document:
        yield document
