"""What the kinds of answers have in common: from a record to pieces, from outputs to an answer."""

from __future__ import annotations

import abc
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.pieces import Encoded, Piece
from xlnet_fast.train.shared.tokenizers import forget_truncation

LONG = ("window", "memory", "truncate")
"""What is done with texts that are longer than ``max_length``."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How texts are read.

        Predictor.load("runs/reviews", reading=Reading(max_length=256, stride=64))

    Attributes:
        max_length: tokens of a sequence, <sep> and <cls> included.
        long: what a longer text becomes. "window": several sequences that share ``stride`` tokens,
            of whose answers one is made; "memory": segments, each of which remembers those before,
            as far as the config's ``mem_len`` says; "truncate": its first ``max_length`` tokens.
            Not every task has all of them: it says so where it is loaded or asked.
        stride: tokens that neighbouring windows share.

    Raises:
        ArgumentError: a value that cannot be used.
    """

    max_length: int = 512
    long: str = "window"
    stride: int = 128

    def __post_init__(self) -> None:
        """Check."""
        if self.long not in LONG:
            raise ArgumentError(f"long must be one of {', '.join(LONG)}, got {self.long!r}")
        if self.max_length < 8:
            raise ArgumentError(f"max_length is {self.max_length}, expected at least 8")
        if not 0 <= self.stride <= self.max_length // 2:
            raise ArgumentError(
                f"stride is {self.stride}, expected 0 to half of max_length {self.max_length}: "
                "windows share so many tokens, and must move on"
            )


_KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


@dataclass(frozen=True)
class Parameter:
    """What a request may say of its answer.

    Attributes:
        default: of the parameter's type, or None where it need not be given.
        kind: its type: bool, int, float or str. help: a phrase.
        least, most: of a number, both allowed. choices: of a text.
        many: whether it may also be a list of such values; it then always becomes a tuple.
    """

    default: Any
    kind: type
    help: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    many: bool = False

    def checked(self, name: str, value: Any) -> Any:
        """The value, as its type.

        Raises:
            ArgumentError: it is of another type or out of range; says what is right.
        """
        if value is None and self.default is None:
            return None
        if self.many:
            values = value if isinstance(value, (list, tuple)) else [value]
            return tuple(self._one(name, one) for one in values)
        return self._one(name, value)

    def _one(self, name: str, value: Any) -> Any:
        """A value that is no list."""
        if not self._fits(value):
            raise ArgumentError(f"{name} is {shown(value)}, expected {_KINDS[self.kind]}")
        value = self.kind(value)
        if self.choices and value not in self.choices:
            raise ArgumentError(
                f"{name} must be one of {', '.join(self.choices)}, got {shown(value)}"
            )
        low = self.least is not None and not value >= self.least
        high = self.most is not None and not value <= self.most
        if low or high:
            bounds = (x for x in (self.least, self.most) if x is not None)
            span = " to ".join(str(x) if isinstance(x, int) else f"{x:g}" for x in bounds)
            wanted = span if self.most is not None else f"at least {span}"
            raise ArgumentError(f"{name} is {shown(value)}, expected {wanted}")
        return value

    def _fits(self, value: Any) -> bool:
        """Whether a value is of the parameter's type; 2.0 is a whole number, and True is none."""
        if self.kind in (bool, str):
            return isinstance(value, self.kind)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if isinstance(value, int):
            return self.kind is int or abs(value) < 2**63
        return math.isfinite(value) and (self.kind is float or value.is_integer())


@dataclass(frozen=True)
class Part:
    """What one piece adds to a number that is explained.

    Attributes:
        piece: it.
        weight: of its value in the sum over the parts.
        value: the piece's values, (B,), of embeddings (B, L, H), one row for each step of a method,
            and the piece's other inputs, (B, L) each, as the model takes them.
    """

    piece: Piece
    weight: float
    value: Callable[[Tensor, dict[str, Tensor]], Tensor]


class Task(abc.ABC):
    """One kind of answer. Everything but :meth:`run` may be called from several threads at once.

    Class attributes:
        name: as options and protocols call it.
        architectures: classes of transformers whose checkpoints it is for; the first is loaded
            where a checkpoint names none.
        required, optional: fields of a record, with their types for messages and API descriptions:
            "text" or "list of texts".
        instead: fields any of which may stand in place of the required ones, with their types.
        parameters: what a request may say of its answer.

    Attributes:
        computing: held by who computes with the model, one thread at a time.
    """

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    required: ClassVar[Mapping[str, str]]
    optional: ClassVar[Mapping[str, str]] = {}
    instead: ClassVar[Mapping[str, str]] = {}
    parameters: ClassVar[Mapping[str, Parameter]] = {}

    def __init__(self, model: Any, tokenizer: Any, reading: Reading) -> None:
        """The model is in evaluation, accelerated; the tokenizer is HF's XLNetTokenizer."""
        self.model = model
        self.tokenizer = tokenizer
        self.reading = reading
        # The tokenizers library changes a tokenizer's settings in a call.
        self._tokenizing = threading.Lock()
        self.computing = threading.Lock()

    def encode(self, record: Mapping[str, Any], /, **parameters: Any) -> Encoded:
        """A record as the model reads it.

        Raises:
            ArgumentError: a field is missing, empty or of the wrong type, unknown, or a parameter
                is.
        """
        if not isinstance(record, Mapping):
            raise ArgumentError(
                f"a record is of type {type(record).__name__}, expected a mapping of fields"
            )
        self._check_fields(record)
        odd = sorted(set(parameters) - set(self.parameters))
        if odd:
            known = ", ".join(self.parameters) or "none"
            raise ArgumentError(f"{self.name} has no parameter {odd[0]!r}; it has: {known}")
        checked = {
            name: parameter.checked(name, parameters[name])
            if name in parameters
            else parameter.default
            for name, parameter in self.parameters.items()
        }
        pieces, cut = self.pieces(record, checked)
        return Encoded(record, pieces, checked, cut)

    def _check_fields(self, record: Mapping[str, Any]) -> None:
        """Raise ``ArgumentError`` for a field that is missing, unknown or one too many."""
        unknown = set(record) - {*self.required, *self.optional, *self.instead}
        others = [name for name in self.instead if name in record]
        there = [name for name in self.required if name in record]
        missing = [] if others else [name for name in self.required if name not in record]
        if not (unknown or missing or (others and there)):
            return
        wanted = ", ".join([
            *self.required, *(f"{name} (instead)" for name in self.instead),
            *(f"{name} (optional)" for name in self.optional),
        ])  # fmt: skip
        if unknown:
            what = f"an unknown field {shown(min(unknown, key=str))}"
        elif missing:
            what = f"no {missing[0]}"
        else:
            what = f"both {there[0]} and {others[0]}"
        raise ArgumentError(f"the record has {what}; fields of {self.name}: {wanted}")

    @abc.abstractmethod
    def pieces(
        self, record: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> tuple[list[Piece], bool]:
        """The pieces of a record, whose fields are there; and whether some of it is cut off."""

    @abc.abstractmethod
    def run(self, pieces: Sequence[Piece]) -> list[Any]:
        """The result of each piece of one batch, on the CPU; one thread at a time."""

    def run_unless(self, pieces: Sequence[Piece], interrupted: Callable[[], bool]) -> list[Any]:
        """``run``, or the exception ``Interrupted`` if ``interrupted`` is true in between.

        It is asked only where a batch takes long: where text is written.
        """
        return self.run(pieces)

    @abc.abstractmethod
    def decode(self, encoded: Encoded, results: Sequence[Any]) -> dict[str, Any]:
        """The answer of a record from the results of its pieces, as plain JSON values."""

    def stream(self, encoded: Encoded) -> Iterator[str]:
        """What is written for a record, as it is written.

        Raises:
            ArgumentError: the task writes nothing.
        """
        raise ArgumentError(f"{self.name} writes no text that could be streamed")

    def explained(
        self, encoded: Encoded, results: Sequence[Any], target: str | int | None
    ) -> tuple[dict[str, Any], list[Part]]:
        """What of an answer is explained, as JSON values, and the number that stands for it.

        Raises:
            ArgumentError: the task has nothing to explain, or not this target.
        """
        raise ArgumentError(f"answers of {self.name} are not explained by their tokens")

    def tokens(self, encoded: Encoded, piece: Piece) -> list[tuple[str, int, int]]:
        """The field and the characters of each token of a piece, <sep> and <cls> included.

        Of these two, both numbers are where the text before them ends.
        """
        raise ArgumentError(f"answers of {self.name} are not explained by their tokens")

    @property
    def transformer(self) -> Any:
        """The model without its head."""
        return getattr(self.model, "transformer", self.model)

    def coded(self, *texts: Any, **settings: Any) -> Any:
        """What the tokenizer gives, whatever thread asks."""
        with self._tokenizing:
            try:
                return self.tokenizer(*texts, **settings)
            finally:
                if settings.get("truncation"):
                    forget_truncation(self.tokenizer)

    def side_by_side(self, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """A batch on the model's device, padded on the left: three int64 tensors, (B, L)."""
        longest = max(len(piece.input_ids) for piece in pieces)
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(pieces), longest), pad)
        segments = torch.full((len(pieces), longest), self.tokenizer.pad_token_type_id)
        mask = torch.zeros((len(pieces), longest), dtype=torch.long)
        for row, piece in enumerate(pieces):
            first = longest - len(piece.input_ids)
            ids[row, first:] = torch.tensor(piece.input_ids)
            segments[row, first:] = torch.tensor(piece.token_type_ids)
            mask[row, first:] = 1
        batch = {"input_ids": ids, "token_type_ids": segments, "attention_mask": mask}
        return {name: values.to(self.model.device) for name, values in batch.items()}


def text_field(record: Mapping[str, Any], name: str) -> str:
    """A field that is a text with words.

    Raises:
        ArgumentError: it is none.
    """
    return checked_text(record[name], name)


def checked_text(value: Any, name: str) -> str:
    """A text with words.

    Raises:
        ArgumentError: it is none, or has half of a character in it.
    """
    if isinstance(value, str) and not value.strip():
        raise ArgumentError(f"{name} is empty, expected some words")
    return unicode_text(value, name)


def unicode_text(value: Any, name: str) -> str:
    """A text, which may be empty.

    Raises:
        ArgumentError: it is none, or has half of a character in it.
    """
    if not isinstance(value, str):
        raise ArgumentError(f"{name} is of type {type(value).__name__}, expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"{name} has a lone surrogate at character {error.start}, expected Unicode text"
        ) from error
    return value


def texts_field(record: Mapping[str, Any], name: str, least: int = 1) -> list[str]:
    """A field that is a list of texts with words.

    Raises:
        ArgumentError: it is none, has fewer than ``least``, or one of them is none.
    """
    values = record[name]
    if not isinstance(values, (list, tuple)) or len(values) < least:
        raise ArgumentError(f"{name} is {shown(values)}, expected a list of {least} or more texts")
    return [checked_text(value, f"{name}[{i}]") for i, value in enumerate(values)]


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 2**200 else "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."
