"""What a fine-tuning run is told; the command line, a YAML file and Python give the same names.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.option_fields import CHOICES, check_values, option, record_of

TASKS = ("text-classification", "token-classification", "question-answering", "multiple-choice")

# What a resumed run may change: how it runs and what it reports, not what it computes.
FREE_ON_RESUME = (
    "output", "resume", "overwrite", "train", "eval", "test", "eval_batch_size", "eval_every",
    "log_every", "keep", "patience", "n_best", "max_answer_length", "null_threshold", "backend",
)  # fmt: skip

_DATA = (
    "a CSV, TSV, JSONL, JSON or Parquet file, a folder of save_to_disk, or NAME[:CONFIG][@SPLIT]"
)


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
    eval: str | None = option(None, "Evaluation data; default: its own split, else --eval-share.")
    test: str | None = option(None, "Test data, for the best model; may be without labels.")
    tokenizer: str | None = option(None, "Folder or Hub id; default: the model's.")
    from_scratch: bool = option(False, "Random weights in the shape of the model's config.")
    column: tuple[str, ...] = option(
        (),
        "ROLE=NAME of a column with an unusual name; may be given several times. Roles: text, "
        "text_pair, label; tokens, tags; question, context, answers, answer_start, id; passage, "
        "stem, choices (one, or NAME,NAME,...), choice.",
    )
    eval_share: float = option(0.1, "Share of the training rows to evaluate on, if none given.")

    max_length: int = option(512, "Tokens of a sequence, <sep> and <cls> included.")
    stride: int = option(128, "Tokens that windows of a long context share; at most half of it.")
    truncate: bool = option(False, "Cut long sentences in token classification, else refused.")

    batch_size: int = option(8, "Sequences per process.")
    eval_batch_size: int = option(16, "The same, in evaluations.")
    gradient_accumulation: int = option(1, "Batches for one update.")
    epochs: float = option(3.0, "Passes over the training data.")
    steps: int | None = option(None, "Updates, instead of epochs.")
    learning_rate: float = option(2e-5, "Highest learning rate, of the head and the top layer.")
    layerwise_decay: float = option(
        1.0, "Learning rate of a layer relative to that above it; 0.75 for SQuAD in the paper."
    )
    schedule: str = option(
        "linear", f"Decay of the learning rate: {', '.join(CHOICES['schedule'])}."
    )
    warmup: float = option(0.1, "Steps over which it rises; less than 1: a share of all.")
    weight_decay: float = option(0.01, "Decay of all but biases and layer norms.")
    adam_epsilon: float = option(1e-6, "Of AdamW.")
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm; 0: never.")
    dropout: float | None = option(None, "Dropout; default: the model's.")
    precision: str = option("fp32", "Of matrix products: fp32, bf16 or fp16 (GPU).")
    gradient_checkpointing: bool = option(False, "Compute activations twice, to save memory.")
    fsdp: bool = option(False, "Shard weights over the processes of torchrun (FSDP2).")
    seed: int = option(0, "Of everything random.")

    best_metric: str | None = option(
        None, "Metric of the best checkpoint; default: accuracy, entity_f1 or f1, by the task."
    )
    patience: int | None = option(
        None, "Stop after this many evaluations without a better --best-metric."
    )
    n_best: int = option(20, "Starts and ends of an answer that are combined.")
    max_answer_length: int = option(30, "Longest answer, in tokens.")
    null_threshold: float = option(
        0.0, "No answer if its score is higher than the best answer's by more than this."
    )
    eval_every: int | None = option(
        None, "Steps between evaluations, each with a checkpoint; default: an epoch."
    )
    log_every: int = option(10, "Steps between log lines.")
    keep: int = option(2, "Checkpoints to keep.")
    resume: bool = option(False, "Go on from the newest complete checkpoint in --output.")
    overwrite: bool = option(False, "Delete what an earlier run left in --output.")
    accelerate: bool = option(True, "--no-accelerate runs Hugging Face's own modules.")
    backend: str = option("auto", "Backend of the attention.")

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        check_values(self, {"task": TASKS}, _RANGES)
        for name in ("epochs", "eval_share", "layerwise_decay"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name} is {getattr(self, name)}, expected more than 0")
        if self.task == "question-answering" and self.stride > self.max_length // 2:
            raise ArgumentError(
                f"stride is {self.stride}, expected at most half of max_length {self.max_length}: "
                "windows share so many tokens, and must move on"
            )
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
        return record_of(self)


_RANGES: dict[str, tuple[float, float | None]] = {
    "max_length": (8, None), "stride": (0, None), "eval_batch_size": (1, None),
    "patience": (1, None), "n_best": (1, None), "max_answer_length": (1, None),
    "eval_share": (0, 0.9), "layerwise_decay": (0, 1),
}  # fmt: skip
