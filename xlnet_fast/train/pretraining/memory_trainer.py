"""Hugging Face's Trainer on streams of text, with each row's memory carried along."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.pretraining.text_streams import IGNORED, TextStreams
from xlnet_fast.train.shared.trainer import XLNetTrainer

Memory = tuple[Tensor, ...]


class MemoryTrainer(XLNetTrainer):
    """Pretrains a model with memory on :class:`TextStreams`.

    Every row's memory goes from step to step, through gradient accumulation and into checkpoints,
    each process keeping that of its rows; it starts anew with each epoch and each evaluation. The
    loss of a step is the mean over all targets of all processes and accumulated batches, so it does
    not depend on how a global batch is divided.

    Args:
        train_dataset, eval_dataset: streams that hand each process its rows. The batch size of the
            arguments must be the rows of one process.
        carry_memory: False trains every sequence by itself.

    Raises:
        ArgumentError: batch sizes that do not fit the streams.
    """

    def __init__(
        self,
        *arguments: Any,
        train_dataset: TextStreams,
        eval_dataset: TextStreams | None = None,
        carry_memory: bool = True,
        **keywords: Any,
    ) -> None:
        super().__init__(
            *arguments, train_dataset=train_dataset, eval_dataset=eval_dataset, **keywords
        )
        world = self.args.world_size
        for name, data, size in (
            ("train", train_dataset, self.args.per_device_train_batch_size),
            ("eval", eval_dataset, self.args.per_device_eval_batch_size),
        ):
            if data is not None and (data.processes, data.streams) != (world, size * world):
                raise ArgumentError(
                    f"the {name} streams have {data.streams} rows for {data.processes} process(es);"
                    f" expected {size * world} rows for {world}, as the batch size says"
                )
        self.carry_memory = carry_memory
        self._memory: Memory | None = None
        self._memory_epoch = -1
        self._eval_memory: Memory | None = None
        self._eval_sums = torch.zeros(2)

    @abstractmethod
    def predict_targets(
        self, model: nn.Module, inputs: dict[str, Any], memory: Memory | None
    ) -> tuple[Any, Tensor, Tensor]:
        """One forward pass.

        Returns:
            The model's outputs, with ``mems``; the sum of the negative log-likelihoods of the
            targets, and how many there are, two fp32 scalars.
        """

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        """In order: the dataset shuffles documents, and a row's text must go on."""
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The next batches, and the number of targets in all of them, over all processes.

        Trainer's own would count, too, and otherwise.
        """
        samples = list(islice(epoch_iterator, num_batches))
        if not samples:
            return samples, None
        count = sum((batch["labels"] != IGNORED).sum() for batch in samples)
        count = torch.as_tensor(count, device=device)
        return samples, self.accelerator.reduce(count, "sum").clamp(min=1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This process's share of the mean loss; remembers the hidden states for the next step.

        Gradients are averaged over processes later on, so the share is that of the whole batch
        times the number of processes.
        """
        epoch = self.train_dataset.epoch
        if epoch != self._memory_epoch:
            self._memory, self._memory_epoch = None, epoch
        outputs, total, count = self.predict_targets(model, inputs, self._memory)
        self._memory = self._remembered(outputs)
        items = count if num_items_in_batch is None else num_items_in_batch
        loss = total / items * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    # Trainer must not divide by the number of accumulated batches again. transformers before 5.19
    # go by `model_accepts_loss_kwargs` instead, which XLNet's `**kwargs` make true.
    loss_is_scaled_for_ga = True

    def _remembered(self, outputs: Any) -> Memory | None:
        if not self.carry_memory or outputs.mems is None:
            return None
        return tuple(layer.detach() for layer in outputs.mems)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The mean loss of a batch; sums over the evaluation go to :meth:`evaluation_loop`."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs, total, count = self.predict_targets(model, inputs, self._eval_memory)
        self._eval_memory = self._remembered(outputs)
        self._eval_sums = self._eval_sums.to(total.device) + torch.stack([total, count])
        return total / count.clamp(min=1), None, None

    def evaluation_loop(self, *arguments: Any, **keywords: Any) -> Any:
        """As Trainer; the loss is the mean over all targets, and its exponential the perplexity."""
        self._eval_memory, self._eval_sums = None, torch.zeros(2)
        result = super().evaluation_loop(*arguments, **keywords)
        self._eval_memory = None
        total, count = self.accelerator.reduce(self._eval_sums.to(self.args.device), "sum").tolist()
        prefix = keywords.get("metric_key_prefix", "eval")
        loss = total / max(count, 1.0)
        result.metrics[f"{prefix}_loss"] = loss
        result.metrics[f"{prefix}_perplexity"] = math.exp(min(loss, 700.0))
        return result

    def save_extra(self, folder: Path) -> None:
        """Each process's memory, beside the model."""
        super().save_extra(folder)
        if self._memory is not None:
            layers = {f"{n}": layer.contiguous() for n, layer in enumerate(self._memory)}
            save_file(
                {name: layer.cpu() for name, layer in layers.items()},
                self._memory_file(folder),
                metadata={"epoch": str(self._memory_epoch)},
            )

    def _memory_file(self, folder: Path) -> Path:
        return Path(folder) / f"memory-{self.args.process_index}.safetensors"

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The model, and the memory that :meth:`save_extra` wrote."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = self._memory_file(Path(resume_from_checkpoint))
        self._memory, self._memory_epoch = None, -1
        if not self.carry_memory:
            return
        if not path.exists():
            raise ArgumentError(
                f"the checkpoint {resume_from_checkpoint} has no memory of process "
                f"{self.args.process_index}: another number of processes or another command "
                "made it"
            )
        try:
            with safe_open(path, framework="pt") as file:
                layers = [file.get_tensor(name) for name in sorted(file.keys(), key=int)]
                self._memory = tuple(layer.to(self.args.device) for layer in layers)
                self._memory_epoch = int((file.metadata() or {})["epoch"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ArgumentError(f"{path} is damaged: {error}") from error
