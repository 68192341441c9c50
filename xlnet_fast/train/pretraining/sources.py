"""The text of a pretraining: files, a dataset of the Hub or the built-in text; tokenizers of it."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.text import builtin_articles, cache_directory, train_tokenizer
from xlnet_fast.train.pretraining.corpus import (
    Corpus,
    TextVocabulary,
    documents_of_lines,
    encode,
)
from xlnet_fast.train.shared.tokenizers import load_tokenizer

TEXT_SUFFIXES = (".txt", ".text", ".md")
_BLOCK = 1 << 20
TRAINING_LINES = 2_000_000
"""Lines that a tokenizer is trained on at most, spread over the text (about 400 MB)."""


@dataclass(frozen=True)
class TextSource:
    """Documents of one kind of source; all fields empty means the built-in text.

    Attributes:
        files: UTF-8 text files, folders of them or patterns with "*"; empty lines part documents.
        dataset: name of a Hub dataset, or folder, that ``datasets.load_dataset`` takes.
        config, split, column: of the dataset; a row is a document, its lines are lines.
    """

    files: tuple[str, ...] = ()
    dataset: str | None = None
    config: str | None = None
    split: str = "train"
    column: str = "text"

    def __post_init__(self) -> None:
        if self.files and self.dataset is not None:
            raise ArgumentError("give text files or a dataset, not both")

    def open(self) -> OpenSource:
        """Find the text, without reading all of it.

        Raises:
            ArgumentError: a file that is missing, empty, binary or unreadable, or a dataset without
                that split or column.
        """
        if self.dataset is not None:
            return self._open_dataset(self.dataset)
        if self.files:
            return self._open_files()
        articles = builtin_articles()
        digest = hashlib.sha256(json.dumps(articles).encode()).hexdigest()
        return OpenSource(
            "the built-in text", digest, lambda: (list(article) for article in articles.values())
        )

    def _open_files(self) -> OpenSource:
        paths = [path for name in self.files for path in _matching(name)]
        facts = []
        for path in paths:
            status = path.stat()
            if status.st_size == 0:
                raise ArgumentError(f"the text file {path} is empty")
            facts.append((str(path.resolve()), status.st_size, status.st_mtime_ns))
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        name = str(paths[0]) if len(paths) == 1 else f"{len(paths)} text files"
        return OpenSource(
            name, digest, lambda: (d for path in paths for d in documents_of_lines(_lines(path)))
        )

    def _open_dataset(self, name: str) -> OpenSource:
        from datasets import load_dataset

        from xlnet_fast.train.shared.hub_data import check_dataset, quiet_datasets

        check_dataset(name)
        try:
            with quiet_datasets():
                rows = load_dataset(name, self.config, split=self.split)
        except Exception as error:  # its own, fsspec's, pyarrow's and the Hub client's
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise ArgumentError(
                f"the dataset {name} (config {self.config}, split {self.split}) cannot be "
                f"loaded: {first}"
            ) from error
        if self.column not in rows.column_names:
            raise ArgumentError(
                f"the dataset {name} has no column {self.column!r}; it has: "
                f"{', '.join(rows.column_names)}"
            )
        if not len(rows):
            raise ArgumentError(f"the split {self.split} of the dataset {name} has no rows")
        return OpenSource(
            f"dataset {name} [{self.split}]",
            hashlib.sha256(f"{rows._fingerprint} {self.column}".encode()).hexdigest(),
            lambda: (_row_lines(row) for row in rows[self.column]),
        )


@dataclass(frozen=True)
class OpenSource:
    """A source that was found. Attributes: a name for people, and a digest of what it holds."""

    name: str
    digest: str
    _documents: Any

    def documents(self) -> Iterable[list[str]]:
        """Lines of each document; may be called again.

        Raises:
            ArgumentError: while reading, a file that is no UTF-8 text.
        """
        documents: Iterable[list[str]] = self._documents()
        return documents

    def lines(self, most: int) -> Iterator[str]:
        """Up to about ``most`` lines from all of the text, evenly spread."""
        total = sum(len(document) for document in self.documents())
        every = max(1, -(-total // most))
        number = 0
        for document in self.documents():
            for line in document:
                if number % every == 0:
                    yield line
                number += 1


def train_on(source: OpenSource, vocab_size: int, folder: Path | None = None) -> Any:
    """Train a SentencePiece model in XLNet's id order on a source's text, and load it.

    The same text and size give the same model, which is kept in the user's cache.

    Args:
        vocab_size: the most pieces to learn; a small text gives fewer.
        folder: where to put it instead.

    Raises:
        ArgumentError: as :func:`xlnet_fast.text.train_tokenizer`.
    """
    if folder is None:
        folder = cache_directory() / "tokenizers" / f"{source.digest[:16]}-{vocab_size}-source"
    text = "\n".join(line.strip() for line in source.lines(TRAINING_LINES))
    return load_tokenizer(str(train_tokenizer(text, vocab_size, folder)))


def encoded(
    source: OpenSource, tokenizer: Any, vocabulary: TextVocabulary, *, split_sentences: bool = True
) -> Corpus:
    """The token ids of a source, from this user's cache where they are there.

    Raises:
        ArgumentError: as :meth:`OpenSource.documents`, or no word in the text.
        XLNetFastError: the cache cannot be written.
    """
    description = {
        "source": source.digest,
        "tokenizer": _fingerprint(tokenizer, vocabulary.size),
        "split_sentences": split_sentences,
        "version": 1,
    }
    digest = hashlib.sha256(json.dumps(description).encode()).hexdigest()
    folder = cache_directory() / "corpora" / digest[:24]
    corpus = Corpus.load(folder, description)
    if corpus is None:
        corpus = encode(source.documents(), tokenizer, vocabulary, split_sentences=split_sentences)
        corpus.save(folder, description)
    return corpus


def _fingerprint(tokenizer: Any, size: int) -> str:
    """SHA-256 of what decides the ids of a text: the pieces, and how a text is cut into them."""
    facts = json.dumps(tokenizer.convert_ids_to_tokens(list(range(size))))
    if type(tokenizer).__name__ != "XLNetTokenizer":  # whose pieces say it all
        backend = getattr(tokenizer, "backend_tokenizer", None)
        options = json.dumps(tokenizer.init_kwargs, sort_keys=True, default=str)
        facts += type(tokenizer).__name__ + (options if backend is None else backend.to_str())
    return hashlib.sha256(facts.encode()).hexdigest()


def _row_lines(text: Any) -> list[str]:
    return [line for line in str(text or "").splitlines() if line.strip()]


def _matching(name: str) -> list[Path]:
    """The files that a name, a folder or a pattern stands for.

    Raises:
        ArgumentError: none.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in TEXT_SUFFIXES and p.is_file())
        if not found:
            raise ArgumentError(
                f"the folder {path} holds no text files ({', '.join(TEXT_SUFFIXES)})"
            )
        return found
    if glob.has_magic(name) and not path.exists():
        found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(p)]
        if not found:
            raise ArgumentError(f"no file matches {name}")
        return found
    if not path.exists():
        raise ArgumentError(f"the text file {path} does not exist")
    return [path]


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, read as they are needed."""
    try:
        with open(path, "rb") as file:
            if b"\0" in file.read(_BLOCK):
                raise ArgumentError(f"{path} is a binary file; give a UTF-8 text file")
        with open(path, encoding="utf-8-sig") as text:
            yield from text
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"the text file {path} is not UTF-8 ({error.reason}); convert it, for example with "
            "iconv -t UTF-8"
        ) from error
    except OSError as error:
        raise ArgumentError(f"the text file {path} cannot be read: {error.strerror}") from error
