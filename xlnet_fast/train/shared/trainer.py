"""HF's Trainer with saves that survive a kill, a stop by signal, and one progress bar."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import SaveStrategy, TrainOutput, has_length

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.callbacks import RichProgress, StopOnSignal
from xlnet_fast.train.shared.checkpoints import (
    AtomicSaves,
    check_checkpoint,
    newest_checkpoint,
    remove_leftovers,
    warn,
)
from xlnet_fast.train.shared.process_group import leave_at_exit, stay_at_exit

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
_FIELDS = frozenset(field.name for field in dataclasses.fields(TrainingArguments))


class XLNetTrainer(AtomicSaves, Trainer):
    """HF's Trainer for pretraining and fine-tuning; takes the arguments of ``Trainer``.

    Training that was stopped, by a signal or by force, and resumed gives the same weights as if it
    had run through, bit for bit where the device computes deterministically, and the same logged
    losses: whenever it saves it also logs, because the mean since the last log is not saved.
    """

    is_fsdp_enabled: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for former in (PrinterCallback, ProgressCallback):
            self.remove_callback(former)
        self._progress, self._stop = RichProgress(), StopOnSignal()
        self.add_callback(self._progress)
        self.add_callback(self._stop)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                # Without the date that HF appends, so that a resumed run continues its curves.
                callback.logging_dir = str(Path(self.args.output_dir) / "runs")

    def create_accelerator_and_postprocess(self) -> None:
        """As HF's; accelerate turns FSDP on for GPUs only, and would do DDP on CPUs unasked."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and not self.is_fsdp_enabled:
            state = self.accelerator.state
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            if state.mixed_precision != "no":
                state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
            state.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True

    @property
    def stopped_by(self) -> int | None:
        """The number of the signal that ended the last training, None if it ran to its end.

        The same in every process. There is a checkpoint of the last step then, the model has its
        weights, and the best model was not loaded.
        """
        return self._stop.stopped_by

    def train(
        self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """As HF's ``Trainer.train``, from the start or from a checkpoint (True: the newest one).

        Raises:
            ArgumentError: the checkpoint is damaged, or there is none.
            XLNetFastError: a checkpoint could not be written.
            KeyboardInterrupt: at the second SIGINT.
        """
        run = Path(self.args.output_dir)
        if self.is_world_process_zero():
            remove_leftovers(run)
        self.accelerator.wait_for_everyone()
        checkpoint: str | None = None
        if resume_from_checkpoint is True:
            newest = newest_checkpoint(run)
            if newest is None:
                raise ArgumentError(f"{run} holds no complete checkpoint to resume from")
            checkpoint = str(newest)
        elif resume_from_checkpoint:
            check_checkpoint(Path(resume_from_checkpoint))
            checkpoint = str(resume_from_checkpoint)
        stay_at_exit()
        try:
            output = super().train(checkpoint, *args, **kwargs)
        finally:
            self._stop.close()
            self._progress.close()
        leave_at_exit()
        return output

    def _tied_weights(self) -> dict[str, str]:
        """Name of each tied weight, to the name of the weight that it is tied to."""
        model = self.accelerator.unwrap_model(self.model)
        return getattr(model, "all_tied_weights_keys", {})

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        # Gathered from shards a tied weight is there twice; a file of HF has it once.
        if state_dict is not None:
            for name, source in self._tied_weights().items():
                if source in state_dict:
                    state_dict.pop(name, None)
        super()._save(output_dir, state_dict)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A tied weight is saved once, and loading the one has set the other.
        tied = self._tied_weights()
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # HF would train one step more of a run that was resumed at its end.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As HF's; the seeds that its data loader draws change nothing of the steps that follow."""
        with torch.random.fork_rng(devices=()):
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As HF's; its beginning is shown, and an error in it leaves no progress bar behind."""
        batches = len(dataloader) if has_length(dataloader) else None
        self._progress.begin_evaluation(self.state, batches)
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        except BaseException:
            self._progress.close()
            raise

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        saves_if_best = (
            self.args.save_strategy == SaveStrategy.BEST and self.control.should_evaluate
        )
        if self.control.should_save or saves_if_best:
            self.control.should_log = True
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        # With save_strategy "best" HF forgets that a save was asked for, if the step is no best.
        if self.stopped_by is not None and self._saved_step != self.state.global_step:
            self._save_checkpoint(model, trial)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._stop.agree(self.args, self.state)  # on a signal after the last step, too
        if self.stopped_by is None:
            return super()._finalize_training(*args, **kwargs)
        # HF would now load the best checkpoint and, if one alone is kept, delete the newest.
        best, self.state.best_model_checkpoint = self.state.best_model_checkpoint, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.state.best_model_checkpoint = best


def arguments_of(options: Any, **own: Any) -> TrainingArguments:
    """:func:`training_arguments` of :class:`TrainingOptions` and a learning rate.

    Args:
        own: those that a command adds.

    Raises:
        ArgumentError: a value cannot be used, alone or on this machine.
    """
    share = options.warmup < 1
    return training_arguments(
        options.output,
        precision=options.precision,
        logging_steps=options.log_every,
        save_total_limit=options.keep,
        warmup_ratio=options.warmup if share else 0.0,
        warmup_steps=0 if share else int(options.warmup),
        gradient_checkpointing=options.gradient_checkpointing,
        fsdp=options.fsdp,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.schedule,
        weight_decay=options.weight_decay,
        adam_epsilon=options.adam_epsilon,
        max_grad_norm=options.max_grad_norm,
        seed=options.seed,
        remove_unused_columns=False,
        **own,
    )


def training_arguments(
    output: Path,
    *,
    precision: Precision,
    logging_steps: int = 10,
    eval_steps: int | None = None,
    save_steps: int | None = 500,
    save_total_limit: int | None = 3,
    warmup_steps: int = 0,
    warmup_ratio: float = 0.0,
    gradient_checkpointing: bool = False,
    fsdp: bool = False,
    fsdp_layer: str = "XLNetLayer",
    **overrides: Any,
) -> TrainingArguments:
    """``transformers.TrainingArguments`` with the defaults of this package.

    Args:
        output: the run folder; checkpoints go into it, TensorBoard's files into ``runs`` below.
        precision: of the matrix products; weights and optimizer stay fp32.
        logging_steps: steps between two logs; a step is one update of the weights.
        eval_steps: steps between two evaluations; None for none.
        save_steps: steps between two checkpoints; None for none.
        save_total_limit: how many checkpoints are kept, the best one besides; None for all.
        warmup_steps: steps over which the learning rate rises.
        warmup_ratio: the same as a share of all steps, from 0 to less than 1.
        gradient_checkpointing: recompute activations in the backward pass, to save memory.
        fsdp: shard weights, gradients and optimizer over the processes (FSDP2), layer by layer.
        fsdp_layer: name of the class of these layers.
        overrides: any other field of ``TrainingArguments``, such as ``learning_rate``; or one that
            is set here.

    Raises:
        ArgumentError: a value cannot be used, alone or on this machine.
    """
    on_gpu = torch.cuda.is_available()
    if precision not in PRECISIONS:
        raise ArgumentError(
            f"unknown precision {precision!r}, expected one of: {', '.join(PRECISIONS)}"
        )
    if precision == "fp16" and not on_gpu:
        raise ArgumentError("fp16 needs a GPU; use --precision bf16 or fp32")
    if precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise ArgumentError("this GPU cannot compute in bf16; use --precision fp16 or fp32")
    values: dict[str, Any] = {
        "output_dir": str(output),
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": not torch.accelerator.is_available(),
        "logging_strategy": "steps",
        "logging_steps": logging_steps,
        "logging_nan_inf_filter": False,  # a loss that is NaN shall be seen
        **_interval("eval", eval_steps),
        **_interval("save", save_steps),
        "save_total_limit": save_total_limit,
        "warmup_steps": _warmup(warmup_steps, warmup_ratio),
        "report_to": ["tensorboard"],
        "disable_tqdm": True,
        "average_tokens_across_devices": True,
        "dataloader_pin_memory": on_gpu,
        "ddp_find_unused_parameters": False,
        "restore_callback_states_from_checkpoint": True,  # the patience of early stopping
        **_checkpointing(gradient_checkpointing, fsdp),
        **(_fsdp(fsdp_layer, gradient_checkpointing) if fsdp else {}),
        **overrides,
    }
    try:
        arguments = TrainingArguments(**values)
    except ValueError as error:
        raise ArgumentError(f"wrong training arguments: {error}") from error
    if arguments.n_gpu > 1:
        # Trainer would use DataParallel, which divides the loss of a global batch differently.
        warn(f"1 of {arguments.n_gpu} GPUs is used; torchrun uses all of them")
        arguments._n_gpu = 1
    if fsdp and arguments.world_size == 1:
        raise ArgumentError("FSDP needs several processes; start the command with torchrun")
    return arguments


def _interval(kind: str, steps: int | None) -> dict[str, Any]:
    if steps is not None and steps < 1:
        raise ArgumentError(f"{kind}_steps is {steps}, expected at least 1, or None for never")
    if steps is None:
        return {f"{kind}_strategy": "no"}
    return {f"{kind}_strategy": "steps", f"{kind}_steps": steps}


def _warmup(steps: int, ratio: float) -> float:
    """HF has one field for both: a share if it is less than 1."""
    if steps and ratio:
        raise ArgumentError("give warmup_steps or warmup_ratio, not both")
    if steps < 0 or not 0 <= ratio < 1:
        raise ArgumentError(
            f"warmup_steps is {steps} and warmup_ratio is {ratio}, expected at least 0 steps, and "
            "a ratio from 0 to less than 1"
        )
    return steps or ratio


def _checkpointing(wanted: bool, fsdp: bool) -> dict[str, Any]:
    """Newer versions of transformers rename the field; FSDP has an option of its own."""
    if not wanted or fsdp:
        return {}
    name = next(
        name for name in ("activation_checkpointing", "gradient_checkpointing") if name in _FIELDS
    )
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def _fsdp(layer: str, gradient_checkpointing: bool) -> dict[str, Any]:
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "transformer_layer_cls_to_wrap": [layer],
            "state_dict_type": "FULL_STATE_DICT",  # checkpoints then hold HF's weights, too
            "activation_checkpointing": gradient_checkpointing,
        },
    }
