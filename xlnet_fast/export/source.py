"""What is exported: a checkpoint, from tensors to tensors, with Hugging Face's own beside it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xlnet_fast.checkpoint import CLASSES, load_config, load_weights
from xlnet_fast.errors import ArgumentError
from xlnet_fast.generate.run import checkpoint_of
from xlnet_fast.hf import accelerate

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Of every export, in this order; int64 (batch, length)."""

OUTPUTS = {
    "XLNetModel": ("last_hidden_state",),
    "XLNetForQuestionAnsweringSimple": ("start_logits", "end_logits"),
    "XLNetForQuestionAnswering": (
        "start_top_log_probs", "start_top_index", "end_top_log_probs", "end_top_index",
        "cls_logits",
    ),
}  # fmt: skip
"""Of the classes that return something else than ``logits``."""


class Head(nn.Module):
    """A model from three tensors to a tuple of tensors, without memory.

    Of XLNetForMultipleChoice each row is one choice, and ``logits`` (batch, 1) is its score.
    """

    def __init__(self, model: Any, architecture: str) -> None:
        super().__init__()
        self.model = model
        self.outputs = OUTPUTS.get(architecture, ("logits",))
        self.by_choice = architecture == "XLNetForMultipleChoice"

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """(batch, length) each; :attr:`outputs` in their order."""
        if self.by_choice:
            input_ids, attention_mask, token_type_ids = (
                x[:, None] for x in (input_ids, attention_mask, token_type_ids)
            )
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            use_mems=False,
        )
        return tuple(found[name] for name in self.outputs)


@dataclass(frozen=True)
class Source:
    """A checkpoint that is read.

    Attributes:
        name: the checkpoint. architecture: its class. config: without what is of pretraining.
        plain: Hugging Face's own model. head: the accelerated one, that is exported.
        least_length: tokens that the head needs. portable: whether PyTorch's own ops are to do.
    """

    name: str
    architecture: str
    config: Any
    plain: Head
    head: Head
    least_length: int
    portable: bool

    @property
    def labels(self) -> list[str] | None:
        """Of a classifier, in the order of its logits."""
        if self.architecture not in (
            "XLNetForSequenceClassification", "XLNetForTokenClassification"
        ):  # fmt: skip
            return None
        return [self.config.id2label[i] for i in range(self.config.num_labels)]


def read(model: str, portable: bool = False, dtype: torch.dtype = torch.float32) -> Source:
    """A checkpoint, on the CPU.

    Args:
        model: folder of a checkpoint or of a run, or a Hub id.
        portable: by PyTorch's own ops alone. dtype: of the weights.

    Raises:
        ArgumentError: it cannot be read.
    """
    name = checkpoint_of(model)
    config = load_config(name)
    architecture = next((a for a in config.architectures or () if a in CLASSES), None)
    if architecture is None:
        named = ", ".join(config.architectures or ()) or "none"
        raise ArgumentError(
            f"{name} names the class {named} in its config, expected one of {', '.join(CLASSES)}"
        )
    plain = load_weights(name, architecture).to(dtype).eval().requires_grad_(False)
    for one in (plain, getattr(plain, "transformer", plain)):
        for where in (one, one.config):  # memory and bi_data are of pretraining
            where.reuse_len, where.bi_data = None, False
    plain.config.use_mems_eval = False
    least = 1
    if architecture == "XLNetForQuestionAnswering":
        least = max(config.start_n_top, config.end_n_top)
    ours = accelerate(copy.deepcopy(plain), "reference" if portable else "auto")
    return Source(
        name, architecture, plain.config, Head(plain, architecture).eval(),
        Head(ours, architecture).eval(), least, portable,
    )  # fmt: skip


def inputs_of(
    rows: int, length: int, vocab_size: int, seed: int = 0, padding: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens of three segments, with padding on the left.

    Args:
        padding: of each row; default: each row but the first has more.
    """
    if padding is None:
        padding = [row * length // (rows + 1) for row in range(rows)]
    generator = torch.Generator().manual_seed(seed + 100_003 * rows + length)
    ids = torch.randint(vocab_size, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row, hidden in enumerate(padding):
        mask[row, :hidden] = 0
    segments = torch.randint(3, (rows, length), generator=generator).sort(-1).values
    return ids, mask, segments
