"""HF's Trainer for a task: loss over global batches, predictions, learning rates by layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from xlnet_fast.train.finetune.layerwise import parameter_groups
from xlnet_fast.train.finetune.options import FinetuneOptions
from xlnet_fast.train.finetune.task import IGNORED, Batch, Task
from xlnet_fast.train.shared.trainer import XLNetTrainer


class FinetuneTrainer(XLNetTrainer):
    """``XLNetTrainer`` that asks a :class:`Task` for loss and predictions.

    The loss is a sum over the labels of a global batch (all accumulation steps of all processes)
    over their number, so accumulation, processes and an uneven last batch change nothing.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(self, task: Task, options: FinetuneOptions, **arguments: Any) -> None:
        """The arguments are those of HF's Trainer."""
        super().__init__(data_collator=_Collator(task), compute_loss_func=self._loss, **arguments)
        self.task = task
        self.options = options
        self._batch: Batch = {}
        # XLNet's forward takes any keyword, from which Trainer concludes that it divides its loss
        # by num_items_in_batch. It does not; `_loss` does.
        self.model_accepts_loss_kwargs = False

    def _loss(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        count = labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return self.task.loss(outputs, {**self._batch, "labels": labels}, count)

    def compute_loss(self, model: nn.Module, inputs: Batch, *arguments: Any, **options: Any) -> Any:
        """As HF's, with the inputs that the task chooses."""
        self._batch = inputs  # HF hands the labels alone to the loss
        chosen = _without_memory(self.task.model_inputs(inputs, training=True))
        return super().compute_loss(
            model, {**chosen, "labels": inputs["labels"]}, *arguments, **options
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Any, Tensor | None]:
        """The task's predictions and the labels.

        No loss: HF averages it over batches, filled-up ones too. The tasks' metrics have the exact
        one, over all rows.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**_without_memory(self.task.model_inputs(inputs, training=False)))
        predictions = self.task.predictions(outputs, inputs)
        return None, predictions if len(predictions) > 1 else predictions[0], inputs.get("labels")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As HF's, with the groups of :func:`parameter_groups`."""
        if self.optimizer is None:
            target: Any = self.model if model is None else model
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, target)
            groups = parameter_groups(
                target,
                target.config.n_layer,
                self.args.learning_rate,
                self.args.weight_decay,
                self.options.layerwise_decay,
            )
            self.optimizer = kind(groups, **settings)
        return self.optimizer

    def get_train_dataloader(self) -> Any:
        """As HF's; the rows are filled up to whole batches of all processes.

        Accelerate fills the last batch with rows from the beginning, which would count twice. Here
        copies fill it that count nothing.
        """
        rows, batch = self.train_dataset, self.args.train_batch_size * self.args.world_size
        missing = -len(rows) % batch if self.args.world_size > 1 else 0
        sampler = _EpochSampler(len(rows), missing, self.args.seed)
        return self._get_dataloader(
            dataset=_FilledRows(rows, sampler),
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=lambda dataset: sampler,
            is_training=True,
        )


class _EpochSampler(Sampler[int]):
    """A new order for each epoch, the same in all processes and after a resume; fill-ups come last.

    Trainer and accelerate do not pass the epoch on to their own sampler when a run with several
    processes is resumed in the midst of an epoch, so it would go on with other rows.
    """

    def __init__(self, rows: int, missing: int, seed: int) -> None:
        self.rows, self.missing, self.seed, self.epoch = rows, missing, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows + self.missing

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.randperm(self.rows, generator=generator).tolist()
        yield from range(self.rows, self.rows + self.missing)


class _FilledRows(Dataset[Any]):
    """The training features, and beyond their end copies that are marked as no real rows."""

    def __init__(self, rows: Any, sampler: _EpochSampler) -> None:
        self.rows = rows
        self.sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        """Accelerate calls this one where it does not reach the sampler."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """A batch at once, which `datasets` reads faster than row by row."""
        count = len(self.rows)
        features = self.rows.__getitems__([index % count for index in indices])
        return [
            {**feature, _FILLED_UP: index >= count}
            for feature, index in zip(features, indices, strict=True)
        ]


_FILLED_UP = "filled_up"


class _Collator:
    """The task's collator; the labels of rows that only fill up a batch are ignored."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, features: list[dict[str, Any]]) -> Batch:
        batch = self.task.collate(features)
        for i, feature in enumerate(features):
            if feature.get(_FILLED_UP):
                batch["labels"][i] = IGNORED
        return batch


def _without_memory(inputs: dict[str, Any]) -> dict[str, Any]:
    """XLNet's config asks for the memory of every layer outside training; nobody reads it here."""
    return {**inputs, "use_mems": False}
