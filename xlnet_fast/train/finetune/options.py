"""What a fine-tuning run is told; the command line, a YAML file and Python give the same names.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

from dataclasses import dataclass

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.columns import given_columns
from xlnet_fast.train.shared.options import (
    COMMON,
    DATA,
    EVALUATION,
    MODEL,
    OPTIMISATION,
    PREDICTIONS,
    TrainingOptions,
    check_values,
    option,
)

TASKS = ("text-classification", "token-classification", "question-answering", "multiple-choice")
SINGLE, MULTI, REGRESSION = PROBLEM_TYPES = ("single-label", "multi-label", "regression")
"""What the labels of text-classification may be; "auto": what they look like."""

CONLL_SUFFIXES = (".conll", ".bio", ".iob", ".iob2", ".txt", ".train", ".testa", ".testb")
"""Of files of words and tags; those of CoNLL-2003 are called eng.train, eng.testa and eng.testb."""

_OF_ANSWERS = ("stride", "n_best", "max_answer_length", "null_threshold")
"""Options that only question-answering reads."""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    """One fine-tuning run; each field's help is in its metadata (``xlnet-fast finetune --help``).

    Raises:
        ArgumentError: from :meth:`check`, for the first value that cannot be used.
    """

    task: str = option(COMMON, ", ".join(TASKS))
    model: str = option(COMMON, "Folder or Hub id of any XLNet")
    train: str = option(
        COMMON,
        "CSV, TSV, JSONL, JSON, Parquet or CoNLL file, folder of save_to_disk, or "
        "NAME, NAME:CONFIG or NAME@SPLIT of the Hub",
        free=True,
    )
    eval: str | None = option(
        COMMON, "The same, to evaluate on", None, "its split or a share", free=True
    )
    max_length: int = option(COMMON, "Tokens of a sequence, <sep> included", 512)
    epochs: float = option(COMMON, "Passes over the training data", 3.0)
    steps: int | None = option(COMMON, "Updates of the weights, instead of epochs", None)
    learning_rate: float = option(COMMON, "Highest learning rate, of the head", 2e-5)

    test: str | None = option(DATA, "The same, to test on; labels may be missing", None, free=True)
    eval_share: float = option(DATA, "Training rows to evaluate on", 0.1)
    column: tuple[str, ...] = option(
        DATA,
        "Column by ROLE=NAME, repeatable. Roles: text, text_pair, label*; tokens, tags; question, "
        "context, answers, answer_start, id; passage, stem, choices*, choice (*: or NAME,NAME,...)",
        (),
    )
    problem_type: str = option(DATA, ", ".join(PROBLEM_TYPES), "auto")
    stride: int = option(DATA, "Tokens shared by windows of a context", 128)
    truncate: bool = option(DATA, "Cut long sentences of token classification", False)

    tokenizer: str | None = option(MODEL, "Folder or Hub id", None, "the model's")
    from_scratch: bool = option(MODEL, "Random weights in the model's shape", False)
    dropout: float | None = option(MODEL, "Dropout", None, "the model's")

    layerwise_decay: float = option(OPTIMISATION, "Factor on the rate per layer down", 1.0)

    eval_every: int | None = option(
        EVALUATION, "Steps between evaluations, saves", None, "an epoch", free=True
    )
    eval_batch_size: int = option(EVALUATION, "Sequences per process", 16, free=True)
    best_metric: str | None = option(EVALUATION, "By which the best is chosen", None, "the task's")
    patience: int | None = option(
        EVALUATION, "Evaluations without a best before it stops", None, free=True
    )

    threshold: float = option(PREDICTIONS, "From which probability a label applies", 0.5, free=True)
    n_best: int = option(PREDICTIONS, "Starts and ends an answer is made of", 20, free=True)
    max_answer_length: int = option(PREDICTIONS, "Tokens of the longest answer", 30, free=True)
    null_threshold: float = option(
        PREDICTIONS, "No answer if better by more than this", 0.0, free=True
    )

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        check_values(self, {"task": TASKS, "problem_type": (*PROBLEM_TYPES, "auto")}, _RANGES)
        for name in ("epochs", "eval_share", "layerwise_decay"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name} is {getattr(self, name)}, expected more than 0")
        if not 0 < self.threshold < 1:
            raise ArgumentError(f"threshold is {self.threshold}, expected more than 0, less than 1")
        if self.problem_type != "auto" and self.task != "text-classification":
            raise ArgumentError(f"problem_type is of text-classification; {self.task} has but one")
        if self.task != "text-classification":
            self.check_threshold(self.task)
        elif self.problem_type != "auto":
            self.check_threshold(self.problem_type)
        for name in _OF_ANSWERS if self.task != "question-answering" else ():
            if getattr(self, name) != getattr(type(self), name):
                raise ArgumentError(f"{name} is of question-answering; {self.task} ignores it")
        if self.task == "question-answering" and self.stride > self.max_length // 2:
            raise ArgumentError(
                f"stride is {self.stride}, expected at most half of max_length {self.max_length}: "
                "windows share so many tokens, and must move on"
            )
        self.columns()

    def check_threshold(self, kind: str) -> None:
        """Raise ``ArgumentError`` if a threshold is given where none is read.

        Args:
            kind: of the labels, or the task where its labels are of one kind; "auto" is known
                only after the rows were read.
        """
        if kind != MULTI and self.threshold != type(self).threshold:
            raise ArgumentError(f"threshold is of {MULTI} rows; {kind} has no use for it")

    def columns(self) -> dict[str, str]:
        """Role to column name, of ``column``.

        Raises:
            ArgumentError: a pair is no ROLE=NAME, or a role or a column comes twice.
        """
        return given_columns(self.column)


_RANGES: dict[str, tuple[float, float | None]] = {
    "max_length": (8, None), "stride": (0, None), "eval_batch_size": (1, None),
    "patience": (1, None), "n_best": (1, None), "max_answer_length": (1, None),
    "eval_share": (0, 0.9), "layerwise_decay": (0, 1),
}  # fmt: skip
