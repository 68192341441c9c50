"""What a model must answer before requests go to it, and again when it is doubted.

A version's folder may have a file ``canary.jsonl``, on each line an object of

    record      as of a request
    parameters  of its answer, may be left out
    expected    the answer, or a part of it; numbers may differ by ``tolerance`` (0.001). Without
                it any answer of finite numbers will do.

Where there is none, records are made of the task's fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.predict.predictor import Predictor
from xlnet_fast.serve.answerable import is_finite, is_plain

FILE = "canary.jsonl"
TOLERANCE = 1e-3
MOST = 64
"""Records of a file."""
_TEXT = "A fine film about a town by the sea. "
_LISTS = {"tokens": ["A", "fine", "film"], "choices": ["It rains.", "The sea is calm."]}
_KEYS = {"record", "parameters", "expected", "tolerance"}
_SHORT = {"max_new_tokens": 2}  # a canary need not write much


@dataclass(frozen=True)
class Canary:
    """A record, and what is known of its answer."""

    record: Mapping[str, Any] | str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    expected: Mapping[str, Any] | None = None
    tolerance: float = TOLERANCE


def canaries_of(folder: Path, predictor: Predictor) -> list[Canary]:
    """Those of a version's folder, or some that fit any model of the task.

    Raises:
        ArgumentError: the file cannot be read; says which line.
    """
    path = folder / FILE
    if path.is_file():
        return read(path)
    task = predictor.task
    parameters = {name: value for name, value in _SHORT.items() if name in task.parameters}
    # Of unequal length, so that a batch has padding; the longest is a full sequence or nearly so.
    times = (1, 3, max(1, task.reading.max_length // 24))
    return [
        Canary({name: _LISTS.get(name, _TEXT * n) for name in task.required}, parameters)
        for n in times
    ]


def read(path: Path) -> list[Canary]:
    """The canaries of a file.

    Raises:
        ArgumentError: it cannot be read; says which line.
    """
    canaries = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path.name} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ArgumentError(f"line {number} of {path.name} is no JSON: {error}") from error
        if not isinstance(value, dict) or "record" not in value or set(value) - _KEYS:
            raise ArgumentError(
                f"line {number} of {path.name} must be an object of record, and of parameters, "
                "expected and tolerance where they are wanted"
            )
        canaries.append(Canary(**value))
    if not 0 < len(canaries) <= MOST:
        raise ArgumentError(f"{path.name} has {len(canaries)} records, expected 1 to {MOST}")
    return canaries


def check(predictor: Predictor, canaries: Sequence[Canary]) -> None:
    """Let a model answer, in batches as requests are.

    Raises:
        ArgumentError: a record cannot be used.
        XLNetFastError: it cannot be computed, or the answer is not the one that was expected.
    """
    encoded = []
    for number, canary in enumerate(canaries, 1):
        try:
            encoded.append(predictor.encode(canary.record, **canary.parameters))
        except ArgumentError as error:
            raise ArgumentError(f"canary {number}: {error}") from error
    try:
        answers = predictor.answers(encoded)
    except XLNetFastError:
        raise
    except Exception as error:
        raise XLNetFastError(
            f"the model cannot compute a canary: {type(error).__name__}: {error}"
        ) from error
    for number, (canary, answer) in enumerate(zip(canaries, answers, strict=True), 1):
        if not answer or not (is_finite(answer) and is_plain(answer)):
            raise XLNetFastError(f"the answer of canary {number} has values that are no numbers")
        if canary.expected is not None:
            wrong = difference(canary.expected, answer, canary.tolerance)
            if wrong:
                raise XLNetFastError(
                    f"canary {number} is answered otherwise than expected: {wrong}"
                )


def difference(expected: Any, found: Any, tolerance: float, where: str = "") -> str:
    """How an answer differs from what was expected, in a phrase; "" if it does not.

    What an expected object leaves out is not compared.
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name, value in expected.items():
            place = f"{where}.{name}" if where else name
            if name not in found:
                return f"there is no {place}"
            if wrong := difference(value, found[name], tolerance, place):
                return wrong
        return ""
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        parts = (
            difference(one, other, tolerance, f"{where}[{i}]")
            for i, (one, other) in enumerate(zip(expected, found, strict=True))
        )
        return next(filter(None, parts), "")
    numbers = all(
        isinstance(one, (int, float)) and not isinstance(one, bool) for one in (expected, found)
    )
    if numbers and abs(expected - found) <= tolerance:
        return ""
    return "" if not numbers and expected == found else f"{where} is {found!r}, not {expected!r}"
