"""The trainer: resuming bit for bit, stopping by a signal, and its arguments."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _tiny_trainer as tiny
import _two_trainers as two
import pytest
import torch
from _two_trainers import SignalAt
from transformers import TrainerCallback, TrainingArguments
from two_processes import in_two_processes

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared import process_group
from xlnet_fast.train.shared import trainer as trainer_module
from xlnet_fast.train.shared.checkpoints import newest_checkpoint
from xlnet_fast.train.shared.trainer import XLNetTrainer, training_arguments


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, accumulation: int) -> None:
    """With dropout; in the middle of an epoch and at its end (step 6 or 3), between two logs."""
    options: dict[str, Any] = {"gradient_accumulation_steps": accumulation, "dropout": 0.3}
    through = tiny.trainer(tmp_path, **options)
    through.train()
    assert len(tiny.losses(through.state.log_history)) == 5  # steps 3 and 6, and each save
    for step in (4, 6):
        resumed = tiny.trainer(tmp_path / f"from-{step}", **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert tiny.same(dict(through.model.state_dict()), dict(resumed.model.state_dict()))
        assert tiny.losses(resumed.state.log_history) == tiny.losses(through.state.log_history)


def test_evaluations_change_nothing_of_the_training(tmp_path: Path) -> None:
    trained = []
    for every in (None, 3):
        trainer = tiny.trainer(tmp_path / str(every), eval_steps=every)  # this sets the seed
        trainer.train()
        trained.append(dict(trainer.model.state_dict()))
    assert tiny.same(*trained)


def test_two_trainings_differ_without_the_same_seed(tmp_path: Path) -> None:
    """Dropout and the order of the data are drawn, or the test above would show nothing."""
    options = {"save_steps": None, "max_steps": 2}
    first, second = (tiny.trainer(tmp_path / str(seed), seed=seed, **options) for seed in (1, 2))
    first.train()
    second.train()
    assert not tiny.same(dict(first.model.state_dict()), dict(second.model.state_dict()))


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> XLNetTrainer:
    """A run that nothing stops and that saves nothing."""
    trainer = tiny.trainer(tmp_path_factory.mktemp("through"), save_steps=None)
    trainer.train()
    return trainer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_with_a_checkpoint(
    tmp_path: Path, through: XLNetTrainer, number: int
) -> None:
    run = tmp_path / "stopped"
    # A launcher's SIGTERM after a Ctrl-C is no second Ctrl-C.
    stopped = tiny.trainer(run, save_steps=None, callbacks=[SignalAt(3, number, signal.SIGTERM)])
    stopped.train()
    assert stopped.stopped_by == number
    assert stopped.state.global_step == 4
    assert newest_checkpoint(run) == run / "checkpoint-4"
    resumed = tiny.trainer(run, save_steps=None)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.stopped_by is None
    assert tiny.same(dict(resumed.model.state_dict()), dict(through.model.state_dict()))


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, callbacks=[SignalAt(3, signal.SIGINT, signal.SIGINT)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2"]


def test_a_stop_neither_loads_the_best_model_nor_deletes_the_newest(tmp_path: Path) -> None:
    """With one checkpoint to keep, HF deletes what is not the best at the end of training."""
    scores = iter([0.9, 0.5])
    trainer = tiny.trainer(
        tmp_path, eval_steps=2, save_total_limit=1, load_best_model_at_end=True,
        metric_for_best_model="score", compute_metrics=lambda _: {"score": next(scores)},
        callbacks=[SignalAt(3, signal.SIGTERM)],
    )  # fmt: skip
    trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert tiny.same(dict(trainer.model.state_dict()), tiny.weights(tmp_path / "checkpoint-4"))
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def test_a_stop_saves_even_if_only_the_best_is_saved(tmp_path: Path) -> None:
    scores = iter([0.9, 0.5])
    trainer = tiny.trainer(
        tmp_path, eval_steps=2, save_steps=None, save_strategy="best",
        metric_for_best_model="score", compute_metrics=lambda _: {"score": next(scores)},
        callbacks=[SignalAt(3, signal.SIGTERM)],
    )  # fmt: skip
    trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert [step for step, _ in tiny.losses(trainer.state.log_history)] == [2, 3, 4]


class _SignalAtLastSave(TrainerCallback):
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_after_the_last_step_is_told(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, callbacks=[_SignalAtLastSave()])
    trainer.train()
    assert trainer.stopped_by == signal.SIGTERM
    assert trainer.state.global_step == 8
    trainer.train()
    assert trainer.stopped_by is not None  # again; then without the callback:
    trainer.remove_callback(_SignalAtLastSave)
    trainer.train()
    assert trainer.stopped_by is None


class _Bug(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise LookupError("a bug")


def test_an_error_gives_the_signals_back(tmp_path: Path) -> None:
    """The fixture of this file compares the handlers."""
    with pytest.raises(LookupError):
        tiny.trainer(tmp_path, callbacks=[_Bug()]).train()


def test_the_process_group_is_left_at_exit_after_a_training_that_went_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure a collective may be pending, for which the exit would wait."""
    registered: list[Any] = []
    handlers = SimpleNamespace(register=registered.append, unregister=lambda _: registered.clear())
    monkeypatch.setattr(process_group, "atexit", handlers)
    tiny.trainer(tmp_path / "well", max_steps=1).train()
    assert registered == [process_group.leave]
    failing = tiny.trainer(tmp_path / "failing", callbacks=[_Bug()], max_steps=1)
    with pytest.raises(LookupError):
        failing.train()
    assert registered == []


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=2)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_stop_together_and_resume(tmp_path: Path, fsdp: bool) -> None:
    in_two_processes(two.interrupt_and_resume, tmp_path, fsdp)


def test_fsdp_computes_what_ddp_computes(tmp_path: Path) -> None:
    """On CPUs, too, where accelerate by itself would do DDP instead."""
    in_two_processes(two.ddp_and_fsdp_agree, tmp_path)


def test_two_processes_and_a_full_disk(tmp_path: Path) -> None:
    in_two_processes(two.full_disk_of_one, tmp_path)


def test_early_stopping_keeps_its_patience_over_a_resume(tmp_path: Path) -> None:
    """Three evaluations without progress end training, one of them before the interruption."""
    from transformers import EarlyStoppingCallback

    def options(*scores: float) -> dict[str, Any]:
        given = iter(scores)
        return {
            "eval_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": "score",
            "compute_metrics": lambda _: {"score": next(given)}, "max_steps": 20,
        }  # fmt: skip

    stopped = tiny.trainer(
        tmp_path,
        callbacks=[EarlyStoppingCallback(3), SignalAt(3, signal.SIGTERM)],
        **options(0.9, 0.8),
    )
    stopped.train()
    resumed = tiny.trainer(tmp_path, callbacks=[EarlyStoppingCallback(3)], **options(0.7, 0.6))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    assert resumed.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def test_tensorboard_continues_in_one_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A resumed run writes beside the first one's file; and nothing but our lines is printed."""
    tiny.trainer(tmp_path, report_to=["tensorboard"], max_steps=4).train()
    tiny.trainer(tmp_path, report_to=["tensorboard"]).train(resume_from_checkpoint=True)
    assert len(list((tmp_path / "runs").glob("events.*"))) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert [line.split(":")[0] for line in printed.err.splitlines()] == [
        "step 2/4", "step 3/4", "step 4/4", "step 6/8", "step 8/8",
    ]  # fmt: skip


def test_the_defaults_of_the_arguments(tmp_path: Path) -> None:
    arguments = training_arguments(tmp_path, precision="fp32", learning_rate=3e-4)
    assert arguments.output_dir == str(tmp_path)
    assert (arguments.bf16, arguments.fp16) == (False, False)
    assert arguments.learning_rate == 3e-4
    assert arguments.report_to == ["tensorboard"]
    assert (arguments.eval_strategy, arguments.save_strategy) == ("no", "steps")
    assert (arguments.logging_steps, arguments.save_steps) == (10, 500)
    assert arguments.save_total_limit == 3
    assert arguments.disable_tqdm
    assert arguments.average_tokens_across_devices
    assert arguments.ddp_find_unused_parameters is False
    assert arguments.use_cpu == (not torch.accelerator.is_available())
    assert arguments.dataloader_pin_memory == torch.cuda.is_available()


def test_the_other_arguments(tmp_path: Path) -> None:
    arguments = training_arguments(
        tmp_path, precision="bf16", eval_steps=7, save_steps=None, warmup_ratio=0.1,
        gradient_checkpointing=True, eval_strategy="epoch", lr_scheduler_type="cosine",
    )  # fmt: skip
    assert arguments.bf16
    assert (arguments.eval_strategy, arguments.save_strategy) == ("epoch", "no")
    assert arguments.get_warmup_steps(200) == 20
    assert training_arguments(tmp_path, precision="fp32", warmup_steps=5).get_warmup_steps(9) == 5
    name = next(
        name
        for name in ("activation_checkpointing", "gradient_checkpointing")
        if name in TrainingArguments.__dataclass_fields__
    )
    assert getattr(arguments, name) is True
    assert getattr(arguments, f"{name}_kwargs") == {"use_reentrant": False}


def test_gradient_checkpointing_computes_the_same(tmp_path: Path) -> None:
    plain = tiny.trainer(tmp_path / "a", max_steps=2)
    plain.train()
    recomputed = tiny.trainer(tmp_path / "b", max_steps=2, gradient_checkpointing=True)
    recomputed.train()
    assert tiny.same(dict(plain.model.state_dict()), dict(recomputed.model.state_dict()))


def test_bf16_trains_fp32_weights(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, precision="bf16", max_steps=2)
    trainer.train()
    saved = json.loads((tmp_path / "checkpoint-2" / "config.json").read_text())
    assert saved["dtype"] == "float32"
    assert all(weight.isfinite().all() for weight in trainer.model.state_dict().values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "unknown precision 'fp8', expected one of: fp32, bf16, fp16"),
        ({"eval_steps": 0}, "eval_steps is 0, expected at least 1"),
        ({"save_steps": -1}, "save_steps is -1, expected at least 1"),
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "warmup_steps or warmup_ratio, not both"),
        ({"warmup_ratio": 1.0}, "a ratio from 0 to less than 1"),
        ({"warmup_steps": -1}, "expected at least 0 steps"),
        ({"lr_scheduler_type": "wavy"}, "wrong training arguments: .*wavy"),
        ({"fsdp": True}, "FSDP needs several processes; start the command with torchrun"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as raised:
        training_arguments(tmp_path, **{"precision": "fp32", **options})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("gpu", "precision", "message"),
    [
        (False, "fp16", "fp16 needs a GPU; use --precision bf16 or fp32"),
        (True, "bf16", "this GPU cannot compute in bf16"),
    ],
)
def test_precisions_that_the_machine_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, precision: Any, message: str
) -> None:
    monkeypatch.setattr(trainer_module.torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(trainer_module.torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(ArgumentError, match=message):
        training_arguments(tmp_path, precision=precision)


def test_several_gpus_without_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is used, and that is said: DataParallel would divide the loss of a batch differently."""
    gpus = property(lambda self: 1 if self.__dict__["_n_gpu"] == 1 else 4)
    monkeypatch.setattr(TrainingArguments, "n_gpu", gpus)
    arguments = training_arguments(tmp_path, precision="fp32")
    assert arguments.n_gpu == 1
    assert "1 of 4 GPUs is used; torchrun uses all of them" in capsys.readouterr().err
