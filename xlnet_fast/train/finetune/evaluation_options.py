"""What an evaluation is told; the command line, a YAML file and Python give the same names.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.columns import given_columns
from xlnet_fast.train.shared.options import COMMON, DATA, MACHINE, PREDICTIONS, option

GROUPS = (COMMON, DATA, PREDICTIONS, MACHINE)
"""The panels of the command's ``--help``, in order."""
DTYPES = ("fp32", "bf16", "fp16")
_OF_THE_RUN = "the run's"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """One evaluation; each field's help is in its metadata (``xlnet-fast evaluate --help``).

    ``column``, ``max_length`` and ``stride`` are as in the run of ``finetune`` that left the model,
    if they are not given and its record is there; else as that command has them by default.

    Raises:
        ArgumentError: from :meth:`check`, for the first value that cannot be used.
    """

    model: str | None = option(
        COMMON, "Folder or Hub id; of a run of finetune, its --output", None,
        metavar="MODEL", argument=True,
    )  # fmt: skip
    data: str | None = option(COMMON, "Labelled data, as finetune --eval", None, metavar="FILE")
    output: Path | None = option(COMMON, "Folder of metrics, predictions, plots", None, "none")
    overwrite: bool = option(COMMON, "Replace an evaluation in --output", False)
    json: bool = option(COMMON, "Print the metrics as JSON", False)

    column: tuple[str, ...] = option(
        DATA, "Column by ROLE=NAME, repeatable", (), _OF_THE_RUN, metavar="ROLE=NAME"
    )
    max_length: int | None = option(DATA, "Tokens of a sequence", None, _OF_THE_RUN)
    stride: int | None = option(DATA, "Tokens that windows share", None, _OF_THE_RUN)
    truncate: bool = option(DATA, "Cut long sentences of token classification", False)
    tokenizer: str | None = option(DATA, "Folder or Hub id", None, "the model's")

    threshold: float = option(PREDICTIONS, "From which probability a label applies", 0.5)
    n_best: int = option(PREDICTIONS, "Starts and ends an answer is made of", 20)
    max_answer_length: int = option(PREDICTIONS, "Tokens of the longest answer", 30)
    null_threshold: float = option(PREDICTIONS, "No answer if better by more than this", 0.0)
    unanswerable: bool = option(PREDICTIONS, "Answer with nothing if that is likelier", False)

    batch_tokens: int = option(MACHINE, "Tokens of a batch, padding included", 4096)
    dtype: str = option(MACHINE, ", ".join(DTYPES), "fp32")
    device: str | None = option(MACHINE, "cpu, cuda or cuda:N", None, "the GPU if any")
    backend: str = option(MACHINE, "Backend of the attention", "auto")

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        if not self.model:
            raise ArgumentError(
                "no model was given, expected a folder or a Hub id: xlnet-fast evaluate RUN, where "
                "RUN is the --output of xlnet-fast finetune, say"
            )
        if not self.data:
            raise ArgumentError("no data were given, expected --data FILE with labels")
        if self.dtype not in DTYPES:
            raise ArgumentError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.batch_tokens < 1:
            raise ArgumentError(f"batch_tokens is {self.batch_tokens}, expected at least 1")
        if self.overwrite and self.output is None:
            raise ArgumentError("overwrite is of a folder, expected --output DIR with it")
        given_columns(self.column)
