"""What a pretraining run is told; the command line, a YAML file and SageMaker give the same names.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.pretraining.transfo_xl.options import (
    OF_A_NEW_MODEL,
    TransfoXLOptions,
    check_transfo_xl,
)
from xlnet_fast.train.shared.options import (
    COMMON,
    DATA,
    EVALUATION,
    MACHINE,
    MODEL,
    SEQUENCES,
    TrainingOptions,
    check_values,
    option,
)

ARCHITECTURES = ("xlnet", "transfo-xl")
# Width, layers, heads, inner width; base and large are the published models.
SIZES = {
    "tiny": (128, 4, 4, 512),
    "small": (256, 6, 4, 1024),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(TransfoXLOptions):
    """One pretraining run; each field's help is in its metadata (``xlnet-fast pretrain --help``).

    Raises:
        ArgumentError: from :meth:`check`, for the first value that cannot be used.
    """

    text: tuple[str, ...] = option(
        COMMON, "File, folder or pattern; repeatable", (), "built-in", free=True
    )
    arch: str = option(COMMON, f"Of the model: {' or '.join(ARCHITECTURES)}", "xlnet")
    model: str | None = option(COMMON, "Folder or Hub id to begin with", None, "a new one")
    size: str = option(COMMON, f"Of a new model: {', '.join(SIZES)}", "base")
    seq_len: int = option(COMMON, "Tokens of a sequence", 512)
    steps: int = option(COMMON, "Updates of the weights", 1000)
    learning_rate: float = option(COMMON, "Highest learning rate", 4e-4)

    dataset: str | None = option(DATA, "Hub dataset, or a folder of one", None)
    dataset_config: str | None = option(DATA, "Its configuration", None)
    dataset_split: str = option(DATA, "Its split", "train")
    text_column: str = option(DATA, "Its column; a row is a document", "text")
    eval_text: tuple[str, ...] = option(
        DATA, "Text to evaluate on; repeatable", (), "a share", free=True
    )
    eval_share: float = option(DATA, "That share, from the text's end", 0.05)
    split_sentences: bool = option(DATA, "A line is a sentence, whatever is in it", True)

    tokenizer: str | None = option(MODEL, "Folder, file or Hub id", None, "--model's, or a new one")
    vocab_size: int = option(MODEL, "Most pieces of a new tokenizer", 32000)
    d_model: int | None = option(MODEL, "Width", None, "of --size")
    n_layer: int | None = option(MODEL, "Layers", None, "of --size")
    n_head: int | None = option(MODEL, "Heads", None, "of --size")
    d_inner: int | None = option(MODEL, "Inner width", None, "of --size")
    dropout: float | None = option(MODEL, "Dropout", None, "--model's, or 0.1")

    reuse_len: int | None = option(
        SEQUENCES, "Running text, a step's advance", None, "half of --seq-len"
    )
    mem_len: int | None = option(
        SEQUENCES, "Tokens of memory", None, "3/4 of --seq-len; transfo-xl: all of it"
    )
    perm_size: int | None = option(SEQUENCES, "Block of the permutation", None, "shorter part")
    num_predict: int | None = option(SEQUENCES, "Targets", None, "1/6 of --seq-len")
    mask_alpha: int = option(SEQUENCES, "Tokens for --mask-beta targets", 6)
    mask_beta: int = option(SEQUENCES, "Targets in --mask-alpha tokens", 1)
    max_span: int = option(SEQUENCES, "Longest span of targets", 5)
    whole_words: bool = option(SEQUENCES, "Count spans in words, not in pieces", False)
    bi_data: bool = option(SEQUENCES, "Half of the rows read the text backwards", False)

    eval_every: int = option(EVALUATION, "Steps between evaluations", 250, free=True)
    save_every: int = option(EVALUATION, "Steps between checkpoints", 250, free=True)

    compile: bool = option(MACHINE, "Run the model under torch.compile", False)
    workers: int = option(MACHINE, "Processes that prepare data", 0, free=True)

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        check_values(self, {"arch": ARCHITECTURES, "size": tuple(SIZES)}, _RANGES)
        other = _OF_TRANSFO_XL if self.arch == "xlnet" else _OF_XLNET
        for field in dataclasses.fields(self):
            if field.name in other and getattr(self, field.name) != field.default:
                belongs = "transfo-xl" if self.arch == "xlnet" else "xlnet"
                raise ArgumentError(f"{field.name} is of --arch {belongs}, not of {self.arch}")
        least = _LEAST_LENGTH[self.arch]
        if self.seq_len < least:
            raise ArgumentError(f"seq_len is {self.seq_len}, expected at least {least}")
        check_transfo_xl(self)
        if self.model is not None and any(getattr(self, name) is not None for name in _NEW_MODEL):
            names = _NEW_MODEL if self.arch == "transfo-xl" else _NEW_MODEL[:4]
            raise ArgumentError(f"{', '.join(names[:-1])} and {names[-1]} are those of --model")


# What a new model is; a given one is it already.
_NEW_MODEL = ("d_model", "n_layer", "n_head", "d_inner", *OF_A_NEW_MODEL)
_OF_TRANSFO_XL = {
    field.name
    for field in dataclasses.fields(TransfoXLOptions)
    if field.name not in {inherited.name for inherited in dataclasses.fields(TrainingOptions)}
}
_OF_XLNET = {
    "split_sentences", "reuse_len", "perm_size", "num_predict", "mask_alpha", "mask_beta",
    "max_span", "whole_words", "bi_data", "accelerate",
}  # fmt: skip
_LEAST_LENGTH = {"xlnet": 6, "transfo-xl": 1}
_RANGES: dict[str, tuple[float, float | None]] = {
    "vocab_size": (10, None), "d_model": (1, None), "n_layer": (1, None), "n_head": (1, None),
    "d_inner": (1, None), "reuse_len": (1, None), "mem_len": (0, None),
    "perm_size": (1, None), "num_predict": (1, None), "save_every": (1, None),
    "workers": (0, None),
}  # fmt: skip
