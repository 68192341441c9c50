"""What a pretraining run is told; the command line, a YAML file and SageMaker give the same names.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError

# Width, layers, heads, inner width; base and large are the published models.
SIZES = {
    "tiny": (128, 4, 4, 512),
    "small": (256, 6, 4, 1024),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}
PRECISIONS = ("fp32", "bf16", "fp16")
SCHEDULES = ("linear", "cosine", "constant_with_warmup")

# What a resumed run may change: how it runs and what it reports, not what it computes.
FREE_ON_RESUME = (
    "output", "resume", "overwrite", "workers", "eval_every", "save_every", "log_every", "keep",
    "backend", "text", "eval_text",
)  # fmt: skip


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class PretrainOptions:
    """One pretraining run; each field's help is in its metadata (``xlnet-fast pretrain --help``).

    Raises:
        ArgumentError: from :meth:`check`, for the first value that cannot be used.
    """

    output: Path = field(metadata={"help": "Folder of the run: checkpoints, model, plot, logs."})
    text: tuple[str, ...] = _option(
        (), "UTF-8 text file, folder or pattern; may be given several times. Default: built-in."
    )
    dataset: str | None = _option(None, "Dataset of the Hub, or a folder for load_dataset.")
    dataset_config: str | None = _option(None, "Its configuration.")
    dataset_split: str = _option("train", "Its split.")
    text_column: str = _option("text", "Its column; a row is a document.")
    eval_text: tuple[str, ...] = _option((), "Text to evaluate on; default: a share of the text.")
    eval_share: float = _option(0.05, "That share, whole documents from the end.")
    split_sentences: bool = _option(
        True, "Cut lines at sentence ends; --no-split-sentences: a line is a sentence."
    )
    tokenizer: str | None = _option(
        None, "Folder, SentencePiece file or Hub id. Default: the model's, else one is trained."
    )
    vocab_size: int = _option(32000, "Pieces of a tokenizer that is trained, at most.")

    model: str | None = _option(None, "Checkpoint folder or Hub id to go on from.")
    size: str = _option("base", f"Shape of a new model: {', '.join(SIZES)}.")
    d_model: int | None = _option(None, "Another width.")
    n_layer: int | None = _option(None, "Another number of layers.")
    n_head: int | None = _option(None, "Another number of heads.")
    d_inner: int | None = _option(None, "Another inner width.")
    dropout: float | None = _option(None, "Dropout; default 0.1, or that of --model.")

    seq_len: int = _option(512, "Tokens of a sequence.")
    reuse_len: int | None = _option(
        None, "Tokens of running text in it, by which a step advances; default: half."
    )
    mem_len: int | None = _option(None, "Tokens of memory; default: three quarters of seq_len.")
    perm_size: int | None = _option(
        None, "Block of the permutation; default: the shorter part's length."
    )
    num_predict: int | None = _option(None, "Targets of a sequence; default: a sixth of seq_len.")
    mask_alpha: int = _option(6, "Tokens of context for mask_beta targets.")
    mask_beta: int = _option(1, "Targets in mask_alpha tokens.")
    max_span: int = _option(5, "Longest span of targets.")
    whole_words: bool = _option(False, "Count spans in words, not in pieces as the original.")
    bi_data: bool = _option(False, "Half of the rows read the text backwards.")

    batch_size: int = _option(8, "Rows of a process; each is a stream of text.")
    gradient_accumulation: int = _option(1, "Batches for one update.")
    steps: int = _option(1000, "Updates.")
    learning_rate: float = _option(4e-4, "Highest learning rate.")
    schedule: str = _option("linear", f"Its decay: {', '.join(SCHEDULES)}.")
    warmup: float = _option(0.1, "Steps over which it rises; less than 1: a share of all.")
    weight_decay: float = _option(0.01, "Decay of matrices.")
    adam_epsilon: float = _option(1e-6, "Of AdamW.")
    max_grad_norm: float = _option(1.0, "Gradients are clipped to this norm; 0: never.")
    precision: str = _option("fp32", "Of matrix products: fp32, bf16 or fp16 (GPU).")
    gradient_checkpointing: bool = _option(False, "Compute activations twice, to save memory.")
    fsdp: bool = _option(False, "Shard weights over the processes of torchrun (FSDP2).")
    compile: bool = _option(False, "Run the model under torch.compile.")
    seed: int = _option(0, "Of everything random.")

    eval_every: int = _option(250, "Steps between evaluations.")
    save_every: int = _option(250, "Steps between checkpoints.")
    log_every: int = _option(10, "Steps between log lines.")
    keep: int = _option(2, "Checkpoints to keep.")
    workers: int = _option(0, "Processes that prepare data, per process.")
    resume: bool = _option(False, "Go on from the newest complete checkpoint in --output.")
    overwrite: bool = _option(False, "Delete what an earlier run left in --output.")
    accelerate: bool = _option(True, "--no-accelerate runs Hugging Face's own modules.")
    backend: str = _option("auto", "Backend of the attention.")

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        for name, known in (
            ("size", tuple(SIZES)),
            ("precision", PRECISIONS),
            ("schedule", SCHEDULES),
        ):
            if getattr(self, name) not in known:
                raise ArgumentError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ArgumentError(f"{name} is {value}, expected at least {least}")
        if not self.learning_rate > 0:
            raise ArgumentError(f"learning_rate is {self.learning_rate}, expected more than 0")
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ArgumentError(f"warmup is {self.warmup}, expected whole steps or a share below 1")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ArgumentError(f"dropout is {self.dropout}, expected 0 to less than 1")
        if self.resume and self.overwrite:
            raise ArgumentError("resume goes on with an earlier run and overwrite deletes it")
        if self.model is not None and any(
            getattr(self, name) is not None for name in ("d_model", "n_layer", "n_head", "d_inner")
        ):
            raise ArgumentError("d_model, n_layer, n_head and d_inner are those of --model")

    def record(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        values = dataclasses.asdict(self)
        return {
            name: str(value)
            if isinstance(value, Path)
            else list(value)
            if isinstance(value, tuple)
            else value
            for name, value in values.items()
        }


_AT_LEAST = {
    "vocab_size": 10, "d_model": 1, "n_layer": 1, "n_head": 1, "d_inner": 1, "seq_len": 6,
    "reuse_len": 1, "mem_len": 0, "perm_size": 1, "num_predict": 1, "batch_size": 1,
    "gradient_accumulation": 1, "steps": 1, "warmup": 0, "weight_decay": 0, "max_grad_norm": 0,
    "seed": 0, "eval_every": 1, "save_every": 1, "log_every": 1, "keep": 1, "workers": 0,
    "adam_epsilon": 0,
}  # fmt: skip
