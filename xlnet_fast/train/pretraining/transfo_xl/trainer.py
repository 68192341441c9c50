"""The next token of running text, with each row's memory carried along."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from xlnet_fast.train.pretraining.memory_trainer import Memory, MemoryTrainer
from xlnet_fast.train.pretraining.text_streams import IGNORED
from xlnet_fast.train.pretraining.transfo_xl.streams import collate


class SegmentTrainer(MemoryTrainer):
    """Pretrains a ``TransfoXLLMHeadModel`` on :class:`SegmentStreams`.

    Args:
        train_dataset, eval_dataset, carry_memory: as in :class:`MemoryTrainer`.

    Raises:
        ArgumentError: batch sizes that do not fit the streams.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, data_collator=collate, **keywords)

    def predict_targets(
        self, model: nn.Module, inputs: dict[str, Any], memory: Memory | None
    ) -> tuple[Any, Tensor, Tensor]:
        """The loss of every token's successor, that of the segment's last token among them."""
        labels = inputs["labels"]
        outputs = model(
            input_ids=inputs["input_ids"], mems=memory, targets=labels, return_dict=True
        )
        return outputs, outputs.losses.float().sum(), (labels != IGNORED).sum().float()
