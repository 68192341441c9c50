"""Rows from files and from the Hub, through the `datasets` library, with errors in a sentence."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune.conll import read_conll
from xlnet_fast.train.finetune.options import CONLL_SUFFIXES
from xlnet_fast.train.shared.columns import check_header, match_columns, rows_of_json
from xlnet_fast.train.shared.hub_data import check_dataset, quiet_datasets

_TABLES = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*_TABLES, *_JSON_LINES, ".json", ".parquet")
_BLOCK = 1 << 20


def load_rows(source: str, split: str, *, conll: bool = False) -> datasets.Dataset:
    """The rows of a file, a folder of ``save_to_disk``, or a data set of the Hub.

    Args:
        source: see :class:`FinetuneOptions`.
        split: the split of a data set that has several, unless the source names one.
        conll: whether a file may be one of words and their tags (:func:`conll.read_conll`).

    Raises:
        ArgumentError: it does not exist, is empty, cannot be decoded or has no such split.
    """
    path, (name, _, named_split) = Path(source).expanduser(), _parts(source)
    folder = Path(name).expanduser()
    if path.is_dir():
        rows = _from_folder(path, split)
    elif folder.is_dir():
        rows = _from_folder(folder, named_split or split)
    elif path.is_file():
        rows = _from_file(path, conll)
    elif path.suffix in (*SUFFIXES, *CONLL_SUFFIXES) or source.startswith((".", "/", "~")):
        raise ArgumentError(f"the data file {source} does not exist")
    else:
        rows = _from_hub(source, split)
    if len(rows) == 0:
        raise ArgumentError(f"{source} holds no rows")
    return rows


def hub_splits(source: str) -> list[str]:
    """The names of the splits beside the one that a folder or Hub name stands for."""
    path = Path(source).expanduser()
    if path.is_file() or "@" in source:
        return []
    if path.is_dir():
        loaded = datasets.load_from_disk(str(path))
        return list(loaded) if isinstance(loaded, datasets.DatasetDict) else []
    name, config, _ = _parts(source)
    try:
        with quiet_datasets():
            return list(datasets.get_dataset_split_names(name, config))
    except Exception as error:  # of the Hub and the network
        raise ArgumentError(
            f"the splits of {source} cannot be read: {_reason(error)}; name one by --eval"
        ) from error


def _from_folder(path: Path, split: str) -> datasets.Dataset:
    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError, OSError) as error:
        raise ArgumentError(
            f"{path} is a folder, and no data set that Dataset.save_to_disk wrote; "
            f"give a {', '.join(SUFFIXES)} file"
        ) from error
    return _one_split(loaded, split, str(path))


def _one_split(loaded: Any, split: str, source: str) -> datasets.Dataset:
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise ArgumentError(f"{source} has no split {split!r}; it has {', '.join(loaded)}")
        return loaded[split]
    return loaded


def _parts(source: str) -> tuple[str, str | None, str | None]:
    name, _, split = source.partition("@")
    name, _, config = name.partition(":")
    return name, config or None, split or None


def _from_hub(source: str, split: str) -> datasets.Dataset:
    name, config, named_split = _parts(source)
    check_dataset(name)
    try:
        with quiet_datasets():
            loaded = datasets.load_dataset(name, config)
    except Exception as error:  # of the Hub, the network, the file system and the builders
        raise ArgumentError(
            f"{source} is neither a file here nor a data set that can be loaded: {_reason(error)}"
        ) from error
    return _one_split(loaded, named_split or split, name)


def _from_file(path: Path, conll: bool) -> datasets.Dataset:
    if path.stat().st_size == 0:
        raise ArgumentError(f"the data file {path} is empty")
    if path.suffix == ".parquet":
        return _build("parquet", path)
    known = (*SUFFIXES, *CONLL_SUFFIXES) if conll else SUFFIXES
    if path.suffix not in known:
        raise ArgumentError(f"{path} must be one of {', '.join(known)}, got {path.suffix!r}")
    _check_utf8(path)
    if path.suffix in CONLL_SUFFIXES:
        return read_conll(path)
    if path.suffix in _TABLES:
        return _from_table(path, _TABLES[path.suffix])
    if path.suffix == ".json":
        return _from_json(path)
    return _build("json", path)


def _check_utf8(path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                raise ArgumentError(
                    f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x} near byte "
                    f"{done + error.start}); convert it, for example with iconv -t UTF-8"
                ) from None
            done += len(block)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise ArgumentError(f"{path} is not UTF-8, or cut short: it ends inside a letter") from None


def _from_table(path: Path, separator: str) -> datasets.Dataset:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            header = next(csv.reader(file, delimiter=separator), [])
        except csv.Error as error:
            raise ArgumentError(f"the first line of {path} cannot be read: {error}") from error
    check_header(header, path)
    # Strings throughout: "NA", "007" and "1e5" are texts and labels, not numbers or gaps.
    features = datasets.Features({name: datasets.Value("string") for name in header})
    return _build(
        "csv", path, sep=separator, features=features, encoding="utf-8-sig",
        keep_default_na=False, index_col=False,
    )  # fmt: skip


def _from_json(path: Path) -> datasets.Dataset:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _build("json", path)  # one object a line
        raise ArgumentError(f"{path} is no valid JSON: {error}") from error
    content = rows_of_json(content, path)
    try:
        return datasets.Dataset.from_list(content)
    except (ValueError, TypeError) as error:  # pyarrow's own errors are of these classes
        raise ArgumentError(f"the rows of {path} differ in type: {_reason(error)}") from error


def _build(kind: str, path: Path, **options: Any) -> datasets.Dataset:
    try:
        with quiet_datasets():
            return datasets.load_dataset(kind, data_files=str(path), split="train", **options)
    except Exception as error:  # the builders wrap the errors of pandas and pyarrow in their own
        reason = _reason(error)
        if "corresponds to no data" in reason:  # a header and nothing below it
            raise ArgumentError(f"{path} holds no rows") from error
        raise ArgumentError(f"{path} cannot be read as {kind}: {reason}") from error


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


def find_columns(
    rows: datasets.Dataset,
    source: str,
    required: Sequence[str],
    optional: Sequence[str],
    given: Mapping[str, str],
) -> dict[str, str]:
    """:func:`match_columns` of the columns of rows, raising as it does."""
    return match_columns(rows.column_names, source, required, optional, given)


def cut_evaluation(
    rows: datasets.Dataset, fraction: float, seed: int, source: str
) -> tuple[list[int], list[int]]:
    """Places of the training and of the evaluation rows, the same in every run with this seed.

    Raises:
        ArgumentError: there are fewer than two rows.
    """
    if len(rows) < 2:
        raise ArgumentError(f"{source} has one row, none can be cut off to evaluate on")
    size = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
    places = datasets.Dataset.from_dict({"place": range(len(rows))})
    parts = places.train_test_split(test_size=size, seed=seed)
    return parts["train"]["place"][:], parts["test"]["place"][:]
