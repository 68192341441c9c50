"""Transformer-XL at the sizes of transfo-xl-wt103: segments of text, each with its memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .generate import TEXT
from .rel_attention import DTYPES, FORWARD
from .shapes import TRAINING_STEP

DROPOUT = 0.1
SEGMENTS = 4  # of a text, read in turn
_OFFSET = 3.0  # of Zipf's law: the most frequent word is no third of all text


@dataclass(frozen=True)
class TransfoXLGeometry:
    """The sizes of a Transformer-XL, as its config calls them."""

    n_layer: int
    d_model: int
    n_head: int
    d_inner: int
    vocab_size: int
    cutoffs: tuple[int, ...]
    div_val: int
    clamp_len: int

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.d_model // self.n_head

    def config(self) -> dict[str, Any]:
        """Return the arguments of a `TransfoXLConfig`, which JSON can hold."""
        return asdict(self) | {
            "cutoffs": list(self.cutoffs), "d_embed": self.d_model, "d_head": self.head_dim,
            "same_length": True, "dropout": DROPOUT, "dropatt": 0.0,
        }  # fmt: skip


# Two layers of the eighteen stand for all: the head weighs nine times what it does in the whole.
WT103_2 = TransfoXLGeometry(2, 1024, 16, 4096, 267735, (20000, 40000, 200000), 4, 1000)


@dataclass(frozen=True)
class TransfoXLCase:
    """What is done with a model, on how much text, and the dtype.

    pass_name: "forward" reads a text's segments and gives their losses, "training_step" also goes
    back from one, "text" writes `new` tokens after a prompt, greedily. length: tokens of a segment
    or of a prompt. memory: tokens of the memory. peak: also measure the peak memory.
    """

    pass_name: str
    batch: int
    length: int
    memory: int
    dtype: str = "fp32"
    new: int = 0
    peak: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.pass_name not in (FORWARD, TRAINING_STEP, TEXT):
            raise ValueError(
                f"pass must be {FORWARD}, {TRAINING_STEP} or {TEXT}, got {self.pass_name!r}"
            )
        if (self.new > 0) != (self.pass_name == TEXT):
            raise ValueError(f"{self.pass_name} with {self.new} new tokens: a text alone has some")

    @property
    def label(self) -> str:
        """A short name for progress bars."""
        more = f"+{self.new} new" if self.new else ""
        return f"{self.pass_name} {self.batch}x{self.length}+{self.memory} {self.dtype}{more}"

    @property
    def features(self) -> str:
        """What a reader of the results must know."""
        if self.pass_name == TEXT:
            return f"{self.new} tokens"
        return f"dropout {DROPOUT:g}" if self.pass_name == TRAINING_STEP else "memory carried"


def segments(case: TransfoXLCase, vocab_size: int) -> Tensor:
    """Return (segments, B, L) int64: words as frequent as in text, by Zipf's law.

    A vocabulary in the order of frequency, as wt103's; so most targets are in the first cluster,
    and each of the others has some.
    """
    count = 1 if case.pass_name == TEXT else SEGMENTS
    frequency = 1 / (torch.arange(vocab_size) + _OFFSET)
    ids = torch.multinomial(
        frequency, count * case.batch * case.length, replacement=True,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    return ids.view(count, case.batch, case.length)


def memories(case: TransfoXLCase, geometry: TransfoXLGeometry) -> list[Tensor]:
    """Return (M, B, d_model) fp32 for each layer, which bf16 represents exactly.

    The check starts with these: of the zeros that a text starts with, wrong rows would not show.
    """
    generator = torch.Generator().manual_seed(2)
    shape = (case.memory, case.batch, geometry.d_model)
    return [
        torch.randn(shape, generator=generator).bfloat16().float() for _ in range(geometry.n_layer)
    ]


def _cases(new: tuple[int, int]) -> tuple[TransfoXLCase, ...]:
    """The four that tell the most, one sequence each. new: tokens of the two texts."""
    return (
        TransfoXLCase(FORWARD, 1, 128, 1600, peak=True),
        TransfoXLCase(TRAINING_STEP, 1, 150, 150),
        TransfoXLCase(TEXT, 1, 64, 128, new=new[0]),
        TransfoXLCase(TEXT, 1, 64, 1600, new=new[1]),
        TransfoXLCase(TRAINING_STEP, 1, 512, 512, peak=True),
    )


# Hugging Face reads the whole memory again for each token: a text of 200 takes it a minute.
QUICK = (
    *_cases((60, 20)),
    TransfoXLCase(FORWARD, 1, 128, 1600, "bf16"),
    TransfoXLCase(TRAINING_STEP, 1, 150, 150, "bf16"),
)
FULL = (
    *_cases((200, 200)),
    TransfoXLCase(TRAINING_STEP, 2, 150, 150, peak=True),
    TransfoXLCase(TRAINING_STEP, 2, 512, 512, peak=True),
    TransfoXLCase(FORWARD, 1, 128, 1600, "bf16", peak=True),
    TransfoXLCase(TRAINING_STEP, 1, 150, 150, "bf16"),
    TransfoXLCase(TRAINING_STEP, 1, 512, 512, "bf16", peak=True),
)
