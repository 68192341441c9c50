"""From a request's records to what the model reads, and from its results to answers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from xlnet_fast.errors import ArgumentError, NotFinite, XLNetFastError
from xlnet_fast.predict.pieces import Encoded
from xlnet_fast.predict.predictor import Predictor
from xlnet_fast.serve.answerable import is_plain
from xlnet_fast.serve.contract import ModelFailed, Record, TooLarge

MOST_CHARACTERS_PER_TOKEN = 16
"""A longer text has more tokens, or is mostly blanks: it is refused before that takes seconds."""


def characters_of(record: Any) -> int:
    """Of a record's texts, however deep; of what is none, none."""
    if isinstance(record, str):
        return len(record)
    if isinstance(record, Mapping):
        return sum(map(characters_of, record.values()))
    if isinstance(record, (list, tuple)):
        return sum(map(characters_of, record))
    return 0


def tokens_of(encoded: Encoded) -> int:
    return sum(map(len, encoded.pieces))


def encode_all(
    predictor: Predictor, records: Sequence[Record], parameters: Mapping[str, Any], most: int
) -> list[Encoded | XLNetFastError]:
    """Every record as the model reads it, or why it cannot be read."""
    encoded: list[Encoded | XLNetFastError] = []
    for record in records:
        try:
            if not isinstance(record, (str, Mapping)):
                raise ArgumentError(
                    f"a record is of type {type(record).__name__}, expected a text or an object"
                )
            _check_texts(record)
            characters = characters_of(record)
            if characters > most * MOST_CHARACTERS_PER_TOKEN:
                raise TooLarge(
                    f"it has {characters} characters, expected at most "
                    f"{most * MOST_CHARACTERS_PER_TOKEN} for {most} tokens"
                )
            one = predictor.encode(record, **parameters)
            if tokens_of(one) > most:
                raise TooLarge(f"it has {tokens_of(one)} tokens, expected at most {most}")
            encoded.append(one)
        except XLNetFastError as error:
            encoded.append(error)
        except UnicodeError:
            encoded.append(ArgumentError("a text has half of a character, a lone surrogate"))
        except OverflowError:  # JSON has no largest number
            encoded.append(ArgumentError("a number is too large"))
    return encoded


def _check_texts(record: Any) -> None:
    """JSON can hold what no text may, and a tokenizer does not expect.

    Raises:
        UnicodeError: it does.
    """
    if isinstance(record, str):
        record.encode()
    elif isinstance(record, Mapping):
        for name, value in record.items():
            _check_texts(name)
            _check_texts(value)
    elif isinstance(record, (list, tuple)):
        for value in record:
            _check_texts(value)


def decode_all(
    predictor: Predictor,
    encoded: Sequence[Encoded | XLNetFastError],
    results: Sequence[Any],
    name: str,
) -> list[dict[str, Any] | XLNetFastError]:
    """The answers, from the results of all pieces together; errors stay in their places."""
    each: list[dict[str, Any] | XLNetFastError] = []
    first = 0
    for one in encoded:
        if isinstance(one, XLNetFastError):
            each.append(one)
            continue
        own = results[first : first + len(one.pieces)]
        first += len(one.pieces)
        errors = [result for result in own if isinstance(result, XLNetFastError)]
        if errors:
            each.append(errors[0])
            continue
        with contextlib.suppress(NotFinite):
            answer = predictor.decode(one, own)
            if is_plain(answer):
                each.append(answer)
                continue
        each.append(ModelFailed(f"{name} gave this record values that are no numbers"))
    return each
