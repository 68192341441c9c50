"""The permutation objective of XLNet, with each row's memory carried along."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from xlnet_fast.hf import is_accelerated
from xlnet_fast.train.pretraining.collator import collate
from xlnet_fast.train.pretraining.memory_trainer import Memory, MemoryTrainer
from xlnet_fast.train.pretraining.text_streams import IGNORED


def permutation_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the negative log-likelihoods of the targets, and how many there are.

    Args:
        logits: (B, I', V) in any floating dtype; the loss is computed in fp32.
        labels: (B, I'), -100 for no prediction.

    Returns:
        Two fp32 scalars.
    """
    flat = labels.reshape(-1)
    total = F.cross_entropy(
        logits.reshape(len(flat), -1).float(), flat, ignore_index=IGNORED, reduction="sum"
    )
    return total, (flat != IGNORED).sum().float()


class PretrainingTrainer(MemoryTrainer):
    """Pretrains an ``XLNetLMHeadModel`` on :class:`PermutationStreams`.

    Args:
        train_dataset, eval_dataset, carry_memory: as in :class:`MemoryTrainer`.

    Raises:
        ArgumentError: batch sizes that do not fit the streams.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        model: Any = keywords.get("model", arguments[0] if arguments else None)
        collator = partial(collate, dense=not is_accelerated(model))
        super().__init__(*arguments, data_collator=collator, **keywords)

    def predict_targets(
        self, model: nn.Module, inputs: dict[str, Any], memory: Memory | None
    ) -> tuple[Any, Tensor, Tensor]:
        """The loss of the predicted positions."""
        arguments = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**arguments, mems=memory, use_mems=self.carry_memory, return_dict=True)
        return outputs, *permutation_loss(outputs.logits, inputs["labels"])
