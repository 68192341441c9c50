"""The progress display on a terminal and in a log file, and a node with a disk of its own."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _tiny_trainer as tiny
import pytest
from rich.console import Console
from transformers import TrainerCallback

from xlnet_fast.train.shared.callbacks import RichProgress, StopOnSignal
from xlnet_fast.train.shared.checkpoints import AtomicSaves

SHOW_CURSOR = "\x1b[?25h"


def showing(trainer: Any, terminal: bool) -> io.StringIO:
    """Send a trainer's display to a text, as if that were a terminal or a file."""
    text = io.StringIO()
    trainer._progress.console = Console(file=text, force_terminal=terminal, width=120)
    return text


def test_lines_in_a_log_file(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, eval_steps=4, save_steps=None)
    text = showing(trainer, terminal=False)
    trainer.train()
    lines = text.getvalue().splitlines()
    assert "\x1b" not in text.getvalue()
    number = r"[\d.e+-]+k?"
    assert re.fullmatch(
        rf"step 3/8: loss {number}, lr 7\.50e-03, {number} samples/s, \d+:\d\d:\d\d left", lines[0]
    )
    assert [line.split(":")[0] for line in lines] == [
        "step 3/8", "evaluating 1 batch", "evaluation at step 4",
        "step 6/8", "evaluating 1 batch", "evaluation at step 8",
    ]  # fmt: skip
    assert re.fullmatch(rf"evaluation at step 4: loss {number}", lines[2])


@pytest.mark.parametrize(
    ("batches", "lines"),
    [
        (1483, ["evaluating 1,483 batches", "evaluated 3 of 1,483 batches, 3:17:20 left"]),
        (None, ["evaluating", "evaluated 3 batches"]),
    ],
)
def test_a_long_evaluation_says_how_far_it_is(
    batches: int | None, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 8 seconds each: after the third, 20 seconds went by without a line."""
    text, clock = io.StringIO(), itertools.count(0, 8)
    monkeypatch.setattr("xlnet_fast.train.shared.callbacks.time.monotonic", lambda: next(clock))
    progress = RichProgress(Console(file=text, width=200))
    state = SimpleNamespace(is_world_process_zero=True, global_step=0)
    progress.begin_evaluation(state, batches)
    for _ in range(5):
        progress.on_prediction_step(None, state, None)
    assert text.getvalue().splitlines() == lines
    progress.on_prediction_step(None, state, None)
    assert len(text.getvalue().splitlines()) == 3


def test_a_prediction_says_how_many_batches_it_has(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, per_device_eval_batch_size=2)
    text = showing(trainer, terminal=False)
    trainer.predict(tiny.dataset(5))
    assert text.getvalue() == "evaluating 3 batches\n"


def test_tokens_are_counted_on_request(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, include_num_input_tokens_seen="all", save_steps=None)
    text = showing(trainer, terminal=False)
    trainer.train()
    assert " tokens/s" in text.getvalue()
    assert " samples/s" not in text.getvalue()


def test_evaluations_and_saves_do_not_slow_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of a second each with 4 samples, and 8 seconds of other work between them."""
    text, clock = io.StringIO(), iter([0.0, 1.0, 1.0, 6.0, 9.0, 10.0, 10.0])
    monkeypatch.setattr("xlnet_fast.train.shared.callbacks.time.monotonic", lambda: next(clock))
    progress = RichProgress(Console(file=text, width=200))
    args = SimpleNamespace(
        include_num_input_tokens_seen="no",
        train_batch_size=2,
        gradient_accumulation_steps=2,
        world_size=1,
    )
    state = SimpleNamespace(
        is_world_process_zero=True, global_step=0, max_steps=4, num_input_tokens_seen=0
    )
    progress.on_train_begin(args, state, None)
    for step in (1, 2):
        state.global_step = step
        progress.on_step_end(args, state, None)
        progress.on_log(args, state, None, logs={"loss": 1.0})
        if step == 1:
            progress.on_evaluate(args, state, None, metrics={"eval_loss": 1.0})
            progress.on_save(args, state, None)
    lines = text.getvalue().splitlines()
    assert lines[0] == "step 1/4: loss 1.0000, lr 0.00e+00, 4 samples/s, 0:00:03 left"
    assert lines[2] == "step 2/4: loss 1.0000, lr 0.00e+00, 4 samples/s, 0:00:10 left"


def test_the_bar_on_a_terminal(tmp_path: Path) -> None:
    """It goes on where a resumed run does, shows the last loss, and gives the cursor back."""
    tiny.trainer(tmp_path, max_steps=6).train()
    trainer = tiny.trainer(tmp_path, eval_steps=4)
    text = showing(trainer, terminal=True)
    trainer.train(resume_from_checkpoint=True)
    shown = text.getvalue()
    assert "6/8" in shown
    assert "8/8" in shown
    assert "0/8" not in shown
    assert re.search(r"loss \d\.\d{4}, lr", shown)
    assert shown.count("evaluation at step 8: loss") == 1
    assert shown.endswith(SHOW_CURSOR) or SHOW_CURSOR in shown[-40:]
    assert trainer._progress._bar is None


def test_an_evaluation_without_training_has_a_bar_of_its_own(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path)
    text = showing(trainer, terminal=True)
    trainer.evaluate()
    assert "evaluation at step 0" in text.getvalue()
    assert trainer._progress._bar is None
    trainer.predict(tiny.dataset(4))
    assert trainer._progress._bar is None


class _Bug(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise LookupError("a bug")


def test_the_bar_ends_on_an_error(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, callbacks=[_Bug()])
    for error, call in ((KeyboardInterrupt, trainer.train), (LookupError, trainer.evaluate)):
        text = showing(trainer, terminal=True)
        with pytest.raises(error):
            call()
        assert SHOW_CURSOR in text.getvalue()
        assert trainer._progress._bar is None


def test_other_processes_show_nothing() -> None:
    text = io.StringIO()
    progress = RichProgress(Console(file=text, force_terminal=True))
    args = SimpleNamespace(include_num_input_tokens_seen="no")
    state = SimpleNamespace(
        is_world_process_zero=False, global_step=1, max_steps=2, num_input_tokens_seen=0
    )
    progress.on_train_begin(args, state, None)
    progress.on_step_end(args, state, None)
    progress.on_log(args, state, None, logs={"loss": 1.0})
    progress.begin_evaluation(state, 3)
    progress.on_prediction_step(args, state, None)
    progress.on_evaluate(args, state, None, metrics={"eval_loss": 1.0})
    progress.on_train_end(args, state, None)
    assert text.getvalue() == ""


def test_only_numbers_are_shown_of_an_evaluation() -> None:
    text = io.StringIO()
    progress = RichProgress(Console(file=text, width=200))
    state = SimpleNamespace(is_world_process_zero=True, global_step=12345)
    metrics = {
        "eval_loss": 0.25, "eval_macro_f1": 0.87654321, "eval_matrix": [[1, 2]],
        "eval_runtime": 3.0, "eval_samples_per_second": 9.0, "epoch": 1.0,
    }  # fmt: skip
    progress.on_evaluate(None, state, None, metrics=metrics)
    assert text.getvalue() == "evaluation at step 12345: loss 0.25, macro f1 0.8765\n"


def test_the_interval_of_agreement_follows_the_slowest_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half a second a step, as the slowest process tells: the next question comes 4 steps on."""
    import torch.distributed as dist

    asked = []

    def slowest(shared: Any, operation: Any) -> None:
        asked.append(shared.tolist())
        shared[1] = 0.5

    monkeypatch.setattr(dist, "all_reduce", slowest)
    stop = StopOnSignal()
    args = SimpleNamespace(world_size=2, device="cpu")
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    for step in range(1, 11):
        stop.on_step_end(args, SimpleNamespace(global_step=step), control)
    assert len(asked) == 3  # steps 1, 5 and 9
    assert not control.should_training_stop


class _Node(AtomicSaves):
    """The first process of a second node."""

    args = SimpleNamespace(should_save=False)
    accelerator = SimpleNamespace(wait_for_everyone=lambda: None)

    def is_local_process_zero(self) -> bool:
        return True


def test_a_node_with_a_disk_of_its_own_renames_there(tmp_path: Path) -> None:
    """Where the main process's rename is not seen, the folder still gets its name."""
    written, final = tmp_path / ".saving-checkpoint-2" / "checkpoint-2", tmp_path / "checkpoint-2"
    written.mkdir(parents=True)
    (written / "rng_state_8.pth").touch()
    _Node()._rename(written, final)
    assert (final / "rng_state_8.pth").exists()
    written.mkdir()
    _Node()._rename(written, final)  # never over what another node has put there
    assert (final / "rng_state_8.pth").exists()
