"""A tiny XLNet that learns to predict real text by permutation, and the loss of each step.

The text goes by in parallel streams, one segment a step, and every segment sees the memory of the
one before it, as in pretraining (XLNet section 2.4). Everything random is drawn from fixed seeds,
so that two runs differ only by how they round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import XLNetConfig, XLNetLMHeadModel

from xlnet_fast import accelerate
from xlnet_fast.text import MODEL_FILE, builtin_text, train_tokenizer
from xlnet_fast.tolerance import move_by_one_rounding

VOCABULARY = 300
CHARACTERS = 60_000  # of the text, about 26 000 pieces


@dataclass(frozen=True)
class Task:
    """Sizes of a run: B streams, L tokens a segment of which I' are predicted, M of memory."""

    steps: int = 42
    batch: int = 4
    length: int = 32
    predicted: int = 6
    memory: int = 32
    learning_rate: float = 3e-3


def read_tokens(directory: Path) -> Tensor:
    """The pieces of the text, (n,) int64; the tokenizer is put into ``directory``."""
    text = builtin_text()[:CHARACTERS]
    folder = train_tokenizer(text, VOCABULARY, directory)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
    return torch.tensor(processor.encode(text))


def make_model(task: Task) -> XLNetLMHeadModel:
    """Two layers of d_model 32 and two heads, the same weights at every call.

    The weights are wide: from HF's 0.02 so small a model attends to all keys alike for long, and a
    wrong score would hardly show in the loss.
    """
    torch.manual_seed(0)
    config = XLNetConfig(
        vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=2, d_inner=64, dropout=0.0,
        mem_len=task.memory, initializer_range=0.2,
    )  # fmt: skip
    return XLNetLMHeadModel(config).train()


def batches(tokens: Tensor, task: Task) -> Iterator[dict[str, Tensor]]:
    """Arguments of HF's forward for each step, with a new factorisation order for every row."""
    generator = torch.Generator().manual_seed(1)
    streams = tokens[: tokens.numel() // task.batch * task.batch].view(task.batch, -1)
    for step in range(task.steps):
        ids = streams[:, step * task.length : (step + 1) * task.length]
        assert ids.shape[1] == task.length, "the text is too short for so many steps"
        order = torch.rand(ids.shape, generator=generator).argsort(1)
        targets = order[:, : task.predicted]  # (B, I') positions, in the order of prediction
        # Of a target only later targets see the content; what is not predicted all may see.
        rank_q = torch.zeros_like(ids).scatter_(1, targets, torch.arange(task.predicted).expand(
            task.batch, -1
        ))  # fmt: skip
        rank_k = torch.full_like(ids, -1).scatter_(1, targets, rank_q.gather(1, targets))
        yield {
            "input_ids": ids,
            "perm_mask": (rank_q[:, :, None] <= rank_k[:, None]).float(),
            "target_mapping": F.one_hot(targets, task.length).float(),
            "token_type_ids": (torch.arange(task.length) >= task.length // 2).long().expand_as(ids),
            "labels": ids.gather(1, targets),
        }


def loss_curve(
    tokens: Tensor,
    task: Task,
    *,
    backend: str | None = None,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
    moved: int | None = None,
) -> Tensor:
    """Train, and return the loss before each step, (steps,) float64.

    Args:
        backend: of ``accelerate``; None trains HF's own model.
        autocast: dtype of the matrix products; None: fp32.
        moved: seed of :func:`move_by_one_rounding`, or None.
    """
    model = make_model(task)
    if moved is not None:
        move_by_one_rounding(model, moved)
    model.to(device)
    if backend is not None:
        accelerate(model, backend=backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.learning_rate)
    memory, losses = None, []
    for batch in batches(tokens, task):
        on_device = {name: x.to(device) for name, x in batch.items()}
        context = torch.autocast(device, autocast) if autocast else contextlib.nullcontext()
        with context:
            outputs = model(**on_device, mems=memory)
        memory = outputs.mems
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        losses.append(outputs.loss.item())
    return torch.tensor(losses, dtype=torch.float64)
