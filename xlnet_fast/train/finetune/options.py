"""What a fine-tuning run is told; the command line, a YAML file and Python give the same names.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError

TASKS = ("text-classification", "token-classification", "question-answering", "multiple-choice")
PRECISIONS = ("fp32", "bf16", "fp16")
SCHEDULES = ("linear", "cosine", "constant_with_warmup")

# What a resumed run may change: how it runs and what it reports, not what it computes.
FREE_ON_RESUME = (
    "output", "resume", "overwrite", "test", "eval_batch_size", "eval_every", "log_every", "keep",
    "patience", "n_best", "max_answer_length", "null_threshold", "backend",
)  # fmt: skip

_DATA = (
    "a CSV, TSV, JSONL, JSON or Parquet file, a folder of save_to_disk, or NAME[:CONFIG][@SPLIT]"
)


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class FinetuneOptions:
    """One fine-tuning run; each field's help is in its metadata (``xlnet-fast finetune --help``).

    Raises:
        ArgumentError: from :meth:`check`, for the first value that cannot be used.
    """

    task: str = field(metadata={"help": f"{', '.join(TASKS)}; one label for each text or word."})
    model: str = field(metadata={"help": "Checkpoint folder or Hub id of any XLNet."})
    train: str = field(metadata={"help": f"Training data: {_DATA} of the Hub."})
    output: Path = field(
        metadata={"help": "Folder of the run: checkpoints, model, metrics, plots."}
    )
    eval: str | None = _option(None, "Evaluation data; default: its own split, else --eval-share.")
    test: str | None = _option(None, "Test data, for the best model; may be without labels.")
    tokenizer: str | None = _option(None, "Folder or Hub id; default: the model's.")
    from_scratch: bool = _option(False, "Random weights in the shape of the model's config.")
    column: tuple[str, ...] = _option(
        (),
        "ROLE=NAME of a column with an unusual name; may be given several times. Roles: text, "
        "text_pair, label; tokens, tags; question, context, answers, answer_start, id; passage, "
        "stem, choices (one, or NAME,NAME,...), choice.",
    )
    eval_share: float = _option(0.1, "Share of the training rows to evaluate on, if none given.")

    max_length: int = _option(512, "Tokens of a sequence, <sep> and <cls> included.")
    stride: int = _option(128, "Tokens that windows of a long context share; at most half of it.")
    truncate: bool = _option(False, "Cut long sentences in token classification, else refused.")

    batch_size: int = _option(8, "Sequences per process.")
    eval_batch_size: int = _option(16, "The same, in evaluations.")
    gradient_accumulation: int = _option(1, "Batches for one update.")
    epochs: float = _option(3.0, "Passes over the training data.")
    steps: int | None = _option(None, "Updates, instead of epochs.")
    learning_rate: float = _option(2e-5, "Highest learning rate, of the head and the top layer.")
    layerwise_decay: float = _option(
        1.0, "Learning rate of a layer relative to that above it; 0.75 for SQuAD in the paper."
    )
    schedule: str = _option("linear", f"Decay of the learning rate: {', '.join(SCHEDULES)}.")
    warmup: float = _option(0.1, "Steps over which it rises; less than 1: a share of all.")
    weight_decay: float = _option(0.01, "Decay of all but biases and layer norms.")
    adam_epsilon: float = _option(1e-6, "Of AdamW.")
    max_grad_norm: float = _option(1.0, "Gradients are clipped to this norm; 0: never.")
    dropout: float | None = _option(None, "Dropout; default: the model's.")
    precision: str = _option("fp32", "Of matrix products: fp32, bf16 or fp16 (GPU).")
    gradient_checkpointing: bool = _option(False, "Compute activations twice, to save memory.")
    fsdp: bool = _option(False, "Shard weights over the processes of torchrun (FSDP2).")
    seed: int = _option(0, "Of everything random.")

    best_metric: str | None = _option(
        None, "Metric of the best checkpoint; default: accuracy, entity_f1 or f1, by the task."
    )
    patience: int | None = _option(
        None, "Stop after this many evaluations without a better --best-metric."
    )
    n_best: int = _option(20, "Starts and ends of an answer that are combined.")
    max_answer_length: int = _option(30, "Longest answer, in tokens.")
    null_threshold: float = _option(
        0.0, "No answer if its score is higher than the best answer's by more than this."
    )
    eval_every: int | None = _option(
        None, "Steps between evaluations, each with a checkpoint; default: an epoch."
    )
    log_every: int = _option(10, "Steps between log lines.")
    keep: int = _option(2, "Checkpoints to keep.")
    resume: bool = _option(False, "Go on from the newest complete checkpoint in --output.")
    overwrite: bool = _option(False, "Delete what an earlier run left in --output.")
    accelerate: bool = _option(True, "--no-accelerate runs Hugging Face's own modules.")
    backend: str = _option("auto", "Backend of the attention.")

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        for name, known in (
            ("task", TASKS), ("precision", PRECISIONS), ("schedule", SCHEDULES)
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ArgumentError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ArgumentError(f"{name} is {value}, expected at least {least}")
        for name, (low, high) in _BETWEEN.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ArgumentError(f"{name} is {value}, expected {low} to {high}")
        for name in ("learning_rate", "epochs", "adam_epsilon", "eval_share", "layerwise_decay"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name} is {getattr(self, name)}, expected more than 0")
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ArgumentError(f"warmup is {self.warmup}, expected whole steps or a share below 1")
        if self.task == "question-answering" and self.stride > self.max_length // 2:
            raise ArgumentError(
                f"stride is {self.stride}, expected at most half of max_length {self.max_length}: "
                "windows share so many tokens, and must move on"
            )
        if self.resume and self.overwrite:
            raise ArgumentError("resume goes on with an earlier run and overwrite deletes it")
        self.columns()

    def columns(self) -> dict[str, str]:
        """Role to column name, of ``column``."""
        pairs = [pair.partition("=") for pair in self.column]
        for role, _, name in pairs:
            if not role or not name:
                raise ArgumentError(
                    f"column must be ROLE=NAME, such as text=review, got {role or name!r}"
                )
        return {role: name for role, _, name in pairs}

    def record(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        values = dataclasses.asdict(self)
        return {**values, "output": str(self.output), "column": list(self.column)}


_AT_LEAST = {
    "max_length": 8, "stride": 0, "batch_size": 1, "eval_batch_size": 1,
    "gradient_accumulation": 1, "steps": 1, "warmup": 0, "weight_decay": 0, "max_grad_norm": 0,
    "log_every": 1, "eval_every": 1, "keep": 1, "patience": 1, "n_best": 1,
    "max_answer_length": 1, "seed": 0,
}  # fmt: skip
_BETWEEN = {"eval_share": (0, 0.9), "layerwise_decay": (0, 1), "dropout": (0, 0.9)}
