"""What each of two processes runs in the tests of several processes."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import _tiny_trainer as tiny
import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from xlnet_fast.errors import XLNetFastError
from xlnet_fast.train.shared.trainer import XLNetTrainer


class SignalAt(TrainerCallback):
    """Sends this process signals before a step."""

    def __init__(self, step: int, *numbers: int) -> None:
        self.step, self.numbers = step, numbers

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


class RankFiles(XLNetTrainer):
    """Keeps a file of each process in its checkpoints."""

    def save_extra(self, folder: Path) -> None:
        (folder / f"extra_{self.args.process_index}").touch()


def interrupt_and_resume(rank: int, run: Path, fsdp: bool) -> None:
    """Train through; train, be stopped by a signal to the second process, and resume."""
    options = {"fsdp": fsdp, "save_steps": 100, "logging_steps": 1, "kind": RankFiles}
    tiny.trainer(run / "through", **options).train()
    # No more than one step passes before the two ask each other again: the steps are quick.
    callbacks = [SignalAt(3, signal.SIGTERM)] if rank == 1 else []
    stopped = tiny.trainer(run / "stopped", callbacks=callbacks, **options)
    stopped._stop.interval_s = 0.0
    stopped.train()
    assert stopped.stopped_by == signal.SIGTERM
    assert stopped.state.global_step == 4
    resumed = tiny.trainer(run / "stopped", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.stopped_by is None
    resumed.save_model(str(run / "model"))
    torch.distributed.barrier()
    if rank == 0:
        check(run, fsdp)


def check(run: Path, fsdp: bool) -> None:
    through, resumed = run / "through" / "checkpoint-8", run / "stopped" / "checkpoint-8"
    names = {path.name for path in (run / "stopped" / "checkpoint-4").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "extra_0", "extra_1"} <= names
    assert ("pytorch_model_fsdp.bin" in names) == fsdp
    assert tiny.same(tiny.weights(through), tiny.weights(resumed))
    assert tiny.same(tiny.weights(through), tiny.weights(run / "model"))
    assert tiny.hidden(run / "stopped") == tiny.hidden(run / "model") == []


def full_disk_of_one(rank: int, run: Path) -> None:
    """The main process cannot write: it says so, and the other one does not wait forever."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = full
    expected = (XLNetFastError, "No space left") if rank == 0 else (RuntimeError, "onnection")
    with pytest.raises(expected[0], match=expected[1]):
        tiny.trainer(run).train()
    assert list(run.iterdir()) == []


def ddp_and_fsdp_agree(rank: int, run: Path) -> None:
    """The same weights after four steps, sharded or not, recomputed or not, in bf16 nearly."""
    options: dict[str, Any] = {"max_steps": 4, "dropout": 0.0, "save_steps": None}
    variants: dict[str, dict[str, Any]] = {
        "ddp": {},
        "fsdp": {"fsdp": True},
        "recomputed": {"fsdp": True, "gradient_checkpointing": True},
        "bf16": {"fsdp": True, "precision": "bf16"},
    }
    for name, variant in variants.items():
        trainer = tiny.trainer(run / name, **options, **variant)
        trainer.train()
        sharded = [isinstance(weight, DTensor) for weight in trainer.model.parameters()]
        assert all(sharded) == any(sharded) == (name != "ddp")
        trainer.save_model()
    torch.distributed.barrier()
    expected = tiny.weights(run / "ddp")
    for name in ("fsdp", "recomputed"):
        torch.testing.assert_close(tiny.weights(run / name), expected, rtol=1e-4, atol=1e-5)
    bf16 = tiny.weights(run / "bf16")
    for weight, value in bf16.items():
        assert value.dtype == torch.float32
        # Four steps move a weight by at most 0.04. Where a gradient is near zero Adam may go
        # either way, so single weights say little.
        assert (value - expected[weight]).abs().mean() < 2e-3
