"""What a prediction is told; the command line, a YAML file and Python give the same names.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.pieces import TOKEN_BUDGET
from xlnet_fast.train.shared.columns import given_columns
from xlnet_fast.train.shared.options import COMMON, MACHINE, option

RECORDS = "Records and answers"
READING = "Reading long texts"
GROUPS = (COMMON, RECORDS, READING, MACHINE)
"""The panels of the command's ``--help``, in order."""

DTYPES = ("fp32", "bf16", "fp16")
SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".txt": "text",
}  # fmt: skip
"""Of input files, with the format that each is for."""
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
OUTPUT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
STREAM = "-"
"""The input that stands for standard input, and the output that stands for standard output."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """One prediction; each field's help is in its metadata (``xlnet-fast predict --help``).

    As in training, what is ``free`` may differ in a run that is resumed.

    Raises:
        ArgumentError: from :meth:`check`, for the first value that cannot be used.
    """

    model: str | None = option(
        COMMON, "Folder or Hub id; of a run of finetune, its --output", None,
        metavar="MODEL", argument=True, free=True,
    )  # fmt: skip
    input: str | None = option(
        COMMON, "CSV, JSON lines, text, ...; -: standard input", None, metavar="FILE", free=True
    )
    output: Path | None = option(
        COMMON, "JSON lines, .csv, ...", None, "JSON lines to stdout", metavar="FILE", free=True,
    )  # fmt: skip
    task: str | None = option(COMMON, "What is answered", None, "the model's")
    set: tuple[str, ...] = option(
        COMMON, "Parameter of the task; repeatable", (), metavar="NAME=VALUE"
    )
    resume: bool = option(COMMON, "Go on with a run that was stopped", False, free=True)
    overwrite: bool = option(COMMON, "Replace the output, if it is there", False, free=True)

    format: str | None = option(RECORDS, ", ".join(FORMATS), None, "by its name")
    whole: bool = option(RECORDS, "A text file is one record, not one a line", False)
    column: tuple[str, ...] = option(
        RECORDS, "Column of a field, by FIELD=NAME; repeatable", (), metavar="FIELD=NAME"
    )
    keep: str | None = option(RECORDS, "Columns to repeat: NAME,NAME,...", None, metavar="NAMES")
    keep_all: bool = option(RECORDS, "Repeat all columns beside the answer", False)
    skip_bad: bool = option(RECORDS, "Answer bad records with their error", False, free=True)

    long: str = option(READING, "window, memory, truncate", "window")
    max_length: int = option(READING, "Tokens of a sequence, <sep> included", 512)
    stride: int | None = option(READING, "Tokens that windows share", None, "a quarter of it")
    tokenizer: str | None = option(READING, "Folder or Hub id", None, "the model's", free=True)

    batch_tokens: int = option(MACHINE, "Tokens of a batch, padding included", TOKEN_BUDGET)
    dtype: str = option(MACHINE, ", ".join(DTYPES), "fp32")
    device: str | None = option(MACHINE, "cpu, cuda or cuda:N", None, "the GPU if any")
    backend: str = option(MACHINE, "Backend of the attention", "auto")

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        if not self.model:
            raise ArgumentError(
                "no model was given, expected a folder or a Hub id: xlnet-fast predict RUN, where "
                "RUN is the --output of xlnet-fast finetune, say"
            )
        if self.input is None:
            raise ArgumentError(
                "no input was given, expected --input FILE, or - for standard input"
            )
        if self.dtype not in DTYPES:
            raise ArgumentError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.batch_tokens < 1:
            raise ArgumentError(f"batch_tokens is {self.batch_tokens}, expected at least 1")
        kind = self.input_format
        if self.whole and kind != "text":
            raise ArgumentError(
                f"whole is of texts, and the input is read as {kind}: --format text"
            )
        if self.keep is not None and self.keep_all:
            raise ArgumentError("keep names some columns and keep_all takes all: give one of them")
        if self.resume and self.overwrite:
            raise ArgumentError("resume goes on with an earlier run and overwrite starts anew")
        self.columns()
        self.parameters()

    @property
    def input_format(self) -> str:
        """One of ``FORMATS``, by ``format`` or the name of the input; raises ``ArgumentError``."""
        assert self.input is not None
        if self.format is not None:
            if self.format not in FORMATS:
                raise ArgumentError(
                    f"format must be one of {', '.join(FORMATS)}, got {self.format!r}"
                )
            return self.format
        found = SUFFIXES.get(Path(self.input).suffix.lower())
        if found is None:
            name = "standard input has no name" if self.input == STREAM else (
                f"{self.input} ends in none of {', '.join(SUFFIXES)}"
            )  # fmt: skip
            raise ArgumentError(f"{name}: say by --format which of {', '.join(FORMATS)} it is")
        return found

    @property
    def window_stride(self) -> int:
        """``stride``, or a quarter of ``max_length``."""
        return self.max_length // 4 if self.stride is None else self.stride

    def columns(self) -> dict[str, str]:
        """Field to column name, of ``column``; raises ``ArgumentError``."""
        return given_columns(self.column)

    def kept(self) -> tuple[str, ...]:
        """The names of ``keep``."""
        return tuple(filter(None, map(str.strip, (self.keep or "").split(","))))

    def parameters(self) -> dict[str, str]:
        """Name to what was written behind it, of ``set``.

        Raises:
            ArgumentError: a pair is no NAME=VALUE, or a name comes twice.
        """
        found: dict[str, str] = {}
        for pair in self.set:
            name, sign, value = pair.partition("=")
            if not name or not sign:
                raise ArgumentError(f"set must be NAME=VALUE, such as top_k=3, got {pair!r}")
            if name in found:
                raise ArgumentError(f"set gives the parameter {name!r} twice, expected it once")
            found[name] = value
        return found
