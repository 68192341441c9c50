"""What a pretraining run is told; the command line, a YAML file and SageMaker give the same names.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.option_fields import CHOICES, check_values, option, record_of

# Width, layers, heads, inner width; base and large are the published models.
SIZES = {
    "tiny": (128, 4, 4, 512),
    "small": (256, 6, 4, 1024),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}

# What a resumed run may change: how it runs and what it reports, not what it computes.
FREE_ON_RESUME = (
    "output", "resume", "overwrite", "workers", "eval_every", "save_every", "log_every", "keep",
    "backend", "text", "eval_text",
)  # fmt: skip


@dataclass(frozen=True)
class PretrainOptions:
    """One pretraining run; each field's help is in its metadata (``xlnet-fast pretrain --help``).

    Raises:
        ArgumentError: from :meth:`check`, for the first value that cannot be used.
    """

    output: Path = field(metadata={"help": "Folder of the run: checkpoints, model, plot, logs."})
    text: tuple[str, ...] = option(
        (), "UTF-8 text file, folder or pattern; may be given several times. Default: built-in."
    )
    dataset: str | None = option(None, "Dataset of the Hub, or a folder for load_dataset.")
    dataset_config: str | None = option(None, "Its configuration.")
    dataset_split: str = option("train", "Its split.")
    text_column: str = option("text", "Its column; a row is a document.")
    eval_text: tuple[str, ...] = option((), "Text to evaluate on; default: a share of the text.")
    eval_share: float = option(0.05, "That share, whole documents from the end.")
    split_sentences: bool = option(
        True, "Cut lines at sentence ends; --no-split-sentences: a line is a sentence."
    )
    tokenizer: str | None = option(
        None, "Folder, SentencePiece file or Hub id. Default: the model's, else one is trained."
    )
    vocab_size: int = option(32000, "Pieces of a tokenizer that is trained, at most.")

    model: str | None = option(None, "Checkpoint folder or Hub id to go on from.")
    size: str = option("base", f"Shape of a new model: {', '.join(SIZES)}.")
    d_model: int | None = option(None, "Another width.")
    n_layer: int | None = option(None, "Another number of layers.")
    n_head: int | None = option(None, "Another number of heads.")
    d_inner: int | None = option(None, "Another inner width.")
    dropout: float | None = option(None, "Dropout; default 0.1, or that of --model.")

    seq_len: int = option(512, "Tokens of a sequence.")
    reuse_len: int | None = option(
        None, "Tokens of running text in it, by which a step advances; default: half."
    )
    mem_len: int | None = option(None, "Tokens of memory; default: three quarters of seq_len.")
    perm_size: int | None = option(
        None, "Block of the permutation; default: the shorter part's length."
    )
    num_predict: int | None = option(None, "Targets of a sequence; default: a sixth of seq_len.")
    mask_alpha: int = option(6, "Tokens of context for mask_beta targets.")
    mask_beta: int = option(1, "Targets in mask_alpha tokens.")
    max_span: int = option(5, "Longest span of targets.")
    whole_words: bool = option(False, "Count spans in words, not in pieces as the original.")
    bi_data: bool = option(False, "Half of the rows read the text backwards.")

    batch_size: int = option(8, "Rows of a process; each is a stream of text.")
    gradient_accumulation: int = option(1, "Batches for one update.")
    steps: int = option(1000, "Updates.")
    learning_rate: float = option(4e-4, "Highest learning rate.")
    schedule: str = option("linear", f"Its decay: {', '.join(CHOICES['schedule'])}.")
    warmup: float = option(0.1, "Steps over which it rises; less than 1: a share of all.")
    weight_decay: float = option(0.01, "Decay of matrices.")
    adam_epsilon: float = option(1e-6, "Of AdamW.")
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm; 0: never.")
    precision: str = option("fp32", "Of matrix products: fp32, bf16 or fp16 (GPU).")
    gradient_checkpointing: bool = option(False, "Compute activations twice, to save memory.")
    fsdp: bool = option(False, "Shard weights over the processes of torchrun (FSDP2).")
    compile: bool = option(False, "Run the model under torch.compile.")
    seed: int = option(0, "Of everything random.")

    eval_every: int = option(250, "Steps between evaluations.")
    save_every: int = option(250, "Steps between checkpoints.")
    log_every: int = option(10, "Steps between log lines.")
    keep: int = option(2, "Checkpoints to keep.")
    workers: int = option(0, "Processes that prepare data, per process.")
    resume: bool = option(False, "Go on from the newest complete checkpoint in --output.")
    overwrite: bool = option(False, "Delete what an earlier run left in --output.")
    accelerate: bool = option(True, "--no-accelerate runs Hugging Face's own modules.")
    backend: str = option("auto", "Backend of the attention.")

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        check_values(self, {"size": tuple(SIZES)}, _RANGES)
        if self.model is not None and any(
            getattr(self, name) is not None for name in ("d_model", "n_layer", "n_head", "d_inner")
        ):
            raise ArgumentError("d_model, n_layer, n_head and d_inner are those of --model")

    def record(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        return record_of(self)


_RANGES: dict[str, tuple[float, float | None]] = {
    "vocab_size": (10, None), "d_model": (1, None), "n_layer": (1, None), "n_head": (1, None),
    "d_inner": (1, None), "seq_len": (6, None), "reuse_len": (1, None), "mem_len": (0, None),
    "perm_size": (1, None), "num_predict": (1, None), "save_every": (1, None),
    "workers": (0, None),
}  # fmt: skip
