"""What int8 costs: how many answers it changes, on real text or on a labelled file."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.export.source import INPUTS, Head, Source
from xlnet_fast.predict.pieces import batches_by_length
from xlnet_fast.predict.predictor import Predictor
from xlnet_fast.predict.tasks.base import Reading
from xlnet_fast.predict.tasks.text_classification import MULTI, REGRESSION, TextClassification
from xlnet_fast.text import builtin_articles

TEXTS, LONGEST = 200, 128
_LEAST_WORDS = 8
_WITHOUT_CHOICE = ("XLNetModel", "XLNetForQuestionAnswering", "XLNetForMultipleChoice")


def agreement(whole: Head, quantised: Head, source: Source, tokenizer: Any) -> dict[str, Any]:
    """Compare the first outputs on paragraphs of the built-in text.

    Returns:
        ``texts``; ``relative_error``, ||int8 - fp32|| / ||fp32|| over all; ``largest_error``; and
        ``agreement``, the share of choices that are the same, where outputs are scores to choose
        from: a text's label or labels, its span's first token, of each token its label or the next.
    """
    reader = TextClassification(
        whole.model, tokenizer, Reading(max_length=LONGEST, long="truncate", stride=0)
    )
    pieces = [reader.encode({"text": text}).pieces[0] for text in _paragraphs()]
    pieces = [piece for piece in pieces if len(piece) >= source.least_length]
    difference, size, largest = 0.0, 0.0, 0.0
    same: list[Tensor] = []
    for batch in batches_by_length(pieces):
        rows = reader.side_by_side([pieces[i] for i in batch])
        given = tuple(rows[name] for name in INPUTS)
        with torch.no_grad():
            expected, found = whole(*given)[0], quantised(*given)[0]
        padding = rows["attention_mask"] == 0
        if expected.shape[:2] == padding.shape:  # of tokens
            expected, found = expected.clone(), found.clone()
            expected[padding], found[padding] = 0.0, 0.0
        apart = (found - expected).double()
        difference += float(apart.square().sum())
        size += float(expected.double().square().sum())
        largest = max(largest, float(apart.abs().max()))
        same += [_same_choice(found, expected, padding, source)]
    report: dict[str, Any] = {
        "texts": len(pieces),
        "relative_error": (difference / size) ** 0.5 if size else float("nan"),
        "largest_error": largest,
    }
    if sum(map(len, same)):
        report["agreement"] = float(torch.cat(same).double().mean())
    return report


def _paragraphs() -> list[str]:
    """Some of the built-in text, of all its articles, without headings."""
    every = [text for article in builtin_articles().values() for text in article]
    texts = [text for text in every if len(text.split()) >= _LEAST_WORDS]
    return texts[:: max(1, len(texts) // TEXTS)][:TEXTS]


def _same_choice(found: Tensor, expected: Tensor, padding: Tensor, source: Source) -> Tensor:
    """Of each choice that the outputs are scores of, whether it is the same; none where none are.

    Args:
        found, expected: (batch, labels), (batch, tokens) or (batch, tokens, labels).
        padding: (batch, tokens).
    """
    if source.architecture == "XLNetForQuestionAnsweringSimple":
        found, expected = (x.masked_fill(padding, -torch.inf) for x in (found, expected))
    elif source.architecture in _WITHOUT_CHOICE or expected.shape[-1] == 1:
        return torch.empty(0, dtype=torch.bool)
    if source.config.problem_type == MULTI:
        return ((found > 0) == (expected > 0)).all(-1).flatten()
    same = found.argmax(-1) == expected.argmax(-1)
    return same[~padding] if same.shape == padding.shape else same


def records_of(path: str, source: Source) -> list[dict[str, str]]:
    """The rows of a labelled file, with ``text``, ``label`` and perhaps ``text_pair``.

    Raises:
        ArgumentError: the model is no classifier of texts, the file cannot be read, or a row lacks
            a field or has a label that the model does not know; says which.
    """
    if source.architecture != "XLNetForSequenceClassification":
        raise ArgumentError(
            f"data has labels of texts, and {source.name} is an {source.architecture}: without "
            "data its outputs are compared on the built-in text"
        )
    problem = source.config.problem_type
    if problem in (MULTI, REGRESSION) or source.config.num_labels == 1:
        raise ArgumentError(
            f"data has one label a text, and {source.name} is for {problem or REGRESSION}: without "
            "data its outputs are compared on the built-in text"
        )
    rows = _read(Path(path).expanduser())
    if not rows:
        raise ArgumentError(f"{path} holds no rows")
    known = source.labels or []
    records = []
    for number, row in enumerate(rows, 1):
        missing = [name for name in ("text", "label") if row.get(name) in (None, "")]
        if missing:
            raise ArgumentError(f"{path}, row {number} has no {missing[0]}")
        label = str(row["label"])
        if label not in known:
            raise ArgumentError(
                f"{path}, row {number}: the model has no label {label!r}, only {', '.join(known)}"
            )
        names = [name for name in ("text", "text_pair") if row.get(name) not in (None, "")]
        records.append({**{name: str(row[name]) for name in names}, "label": label})
    return records


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path} cannot be read as UTF-8: {error}") from error
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines(keepends=True)))
    if path.suffix not in (".jsonl", ".json"):
        raise ArgumentError(f"{path} ends with {path.suffix!r}, expected .csv or .jsonl")
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ArgumentError(f"{path}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ArgumentError(f"{path}, line {number} is no JSON object")
        rows.append(row)
    return rows


def accuracy(
    whole: Any, quantised: Any, records: Sequence[dict[str, str]], source: Source, tokenizer: Any
) -> dict[str, Any]:
    """Shares of right labels of both models, and of labels that are the same."""
    texts = [{k: v for k, v in record.items() if k != "label"} for record in records]
    answers = {}
    for name, model in (("fp32", whole), ("int8", quantised)):
        predictor = Predictor(TextClassification(model, tokenizer, Reading()), source.name)
        answers[name] = [answer["label"] for answer in predictor(texts)]
    right = {
        name: sum(a == r["label"] for a, r in zip(found, records, strict=True)) / len(records)
        for name, found in answers.items()
    }
    same = sum(a == b for a, b in zip(answers["fp32"], answers["int8"], strict=True))
    return {
        "records": len(records),
        "accuracy_fp32": right["fp32"],
        "accuracy_int8": right["int8"],
        "agreement": same / len(records),
    }
