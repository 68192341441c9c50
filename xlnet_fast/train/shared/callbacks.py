"""What a running training shows, and how a signal stops it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback

from xlnet_fast.builder.progress import QUIET_S

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Processes ask each other about this often whether one was told to stop. It costs a wait for the
# device, which is nothing once in two seconds, and a stop may be two seconds late.
AGREEMENT_INTERVAL_S = 2.0
# What HF adds to the metrics of an evaluation.
TIMINGS = ("runtime", "samples_per_second", "steps_per_second", "preparation_time")


class RichProgress(TrainerCallback):
    """One progress bar on stderr in the main process; plain lines where stderr is no terminal.

    A line has the step, the logged loss and learning rate, the speed since the last one without
    evaluations and saves (tokens per second if the arguments' ``include_num_input_tokens_seen``
    counts them, else samples) and the time left. An evaluation begins with a line that has the
    number of its batches, where it lasts lines say how many are done, and its results are one.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._training: TaskID | None = None
        self._evaluation: TaskID | None = None
        self._batches: _BatchLines | None = None
        self._began = (0.0, 0)  # time and step at which this training began
        self._last = (0.0, 0, 0)  # time, step and tokens at the last log
        self._step_ended = 0.0
        self._paused_s = 0.0  # for evaluations and saves since the last log
        self._facts = ""

    def close(self) -> None:
        """End the bar and give the terminal back; after an error nobody else does."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._training = self._evaluation = self._batches = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar at the step where a resumed training goes on."""
        now = time.monotonic()
        self._began = (now, state.global_step)
        self._last = (now, state.global_step, state.num_input_tokens_seen)
        self._facts, self._paused_s = "", 0.0
        if state.is_world_process_zero and self.console.is_terminal:
            self._training = self._open().add_task(
                "training", total=state.max_steps, completed=state.global_step, facts=""
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        self._step_ended = time.monotonic()
        if self._bar is not None and self._training is not None:
            self._bar.update(self._training, completed=state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Show the loss; the logs of an evaluation and of the end of training have none."""
        if not state.is_world_process_zero or logs is None or "loss" not in logs:
            return
        now = time.monotonic()
        before, step, tokens = self._last
        elapsed_s = max(now - before - self._paused_s, 1e-9)
        if args.include_num_input_tokens_seen != "no":
            speed = f"{_short((state.num_input_tokens_seen - tokens) / elapsed_s)} tokens/s"
        else:
            samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            speed = f"{_short((state.global_step - step) * samples / elapsed_s)} samples/s"
        self._last = (now, state.global_step, state.num_input_tokens_seen)
        self._paused_s = 0.0
        self._facts = f"loss {logs['loss']:.4f}, lr {logs.get('learning_rate', 0.0):.2e}, {speed}"
        if self._bar is not None and self._training is not None:
            self._bar.update(self._training, facts=self._facts)
        elif not self.console.is_terminal:
            done = max(1, state.global_step - self._began[1])
            left_s = (now - self._began[0]) / done * (state.max_steps - state.global_step)
            left = timedelta(seconds=round(left_s))
            self._print(f"step {state.global_step}/{state.max_steps}: {self._facts}, {left} left")

    def begin_evaluation(self, state: Any, batches: int | None) -> None:
        """Open a second bar, which is gone when the evaluation is done; HF has no event for this.

        Args:
            batches: how many this process evaluates, None where that is unknown.
        """
        if not state.is_world_process_zero:
            return
        if self.console.is_terminal:
            self._evaluation = self._open().add_task("evaluation", total=batches, facts="")
        else:
            self._batches = _BatchLines(self._print, batches)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the second bar."""
        if self._bar is not None and self._evaluation is not None:
            self._bar.advance(self._evaluation)
        elif self._batches is not None:
            self._batches.advance()

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the results in one line."""
        self._pause()
        self._end_evaluation()
        if state.is_world_process_zero and metrics:
            shown = ", ".join(_metrics(metrics))
            self._print(f"evaluation at step {state.global_step}: {shown}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the time that it took out of the speed."""
        self._pause()

    def on_predict(self, args: Any, state: Any, control: Any, *rest: Any, **kwargs: Any) -> None:
        """Take the second bar away."""
        self._end_evaluation()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the bar."""
        self.close()

    def _pause(self) -> None:
        now = time.monotonic()
        self._paused_s += now - self._step_ended
        self._step_ended = now

    def _open(self) -> Progress:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
        return self._bar

    def _end_evaluation(self) -> None:
        if self._bar is not None and self._evaluation is not None:
            self._bar.remove_task(self._evaluation)
        self._evaluation = self._batches = None
        if self._training is None:
            self.close()

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _BatchLines:
    """Says how many batches an evaluation has and, after a silence, how many of them are done."""

    def __init__(self, say: Callable[[str], None], total: int | None) -> None:
        self._say, self._total, self._done = say, total, 0
        self._began_s = self._last_s = time.monotonic()
        number = "" if total is None else " 1 batch" if total == 1 else f" {total:,} batches"
        say(f"evaluating{number}")

    def advance(self) -> None:
        """One more is done."""
        self._done += 1
        now = time.monotonic()
        if now - self._last_s < QUIET_S:
            return
        self._last_s = now
        if self._total is None:
            self._say(f"evaluated {self._done:,} batches")
            return
        left_s = (now - self._began_s) / self._done * (self._total - self._done)
        left = timedelta(seconds=round(left_s))
        self._say(f"evaluated {self._done:,} of {self._total:,} batches, {left} left")


class StopOnSignal(TrainerCallback):
    """The first SIGINT or SIGTERM ends training after the step, with a checkpoint.

    A second SIGINT raises KeyboardInterrupt at once; a SIGTERM after the first signal changes
    nothing, because launchers such as torchrun send one after a Ctrl-C. With several processes all
    stop after the same step, whichever of them got the signal.
    """

    def __init__(self, interval_s: float = AGREEMENT_INTERVAL_S) -> None:
        self.interval_s = interval_s
        self.stopped_by: int | None = None
        self._received = 0
        self._previous: dict[signal.Signals, Any] = {}
        self._next_agreement = 0
        self._last_agreement = (0.0, 0)

    def close(self) -> None:
        """Put the former handlers back."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Install the handlers; only Python's main thread may do so."""
        self.stopped_by, self._received = None, 0
        self._next_agreement = state.global_step + 1
        self._last_agreement = (time.monotonic(), state.global_step)
        if threading.current_thread() is threading.main_thread() and not self._previous:
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint and the end of training if a process got a signal."""
        if args.world_size == 1:
            self.stopped_by = self._received or None
        elif state.global_step >= self._next_agreement:
            self.agree(args, state)
        if self.stopped_by is not None:
            control.should_save = control.should_training_stop = True

    def agree(self, args: Any, state: Any) -> None:
        """Set ``stopped_by`` to the same value in every process; each must call it."""
        if args.world_size == 1:
            self.stopped_by = self._received or None
            return
        then, step = self._last_agreement
        now = time.monotonic()
        step_s = (now - then) / max(1, state.global_step - step)
        shared = torch.tensor([self._received, step_s], dtype=torch.float32, device=args.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        received, step_s = shared.tolist()
        self.stopped_by = int(received) or None
        # From the shared figure, so that all processes come back after the same step.
        self._next_agreement = state.global_step + max(1, int(self.interval_s / step_s))
        self._last_agreement = (now, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the former handlers back."""
        self.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Only note it: a handler that prints may interrupt a print."""
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = self._received or number


def _metrics(metrics: dict[str, Any]) -> list[str]:
    """Each number as ``name value``, without HF's timings and the prefix ``eval_``."""
    return [
        f"{name.removeprefix('eval_').replace('_', ' ')} {value:.4g}"
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not name.endswith((*TIMINGS, "epoch"))
    ]


def _short(number: float) -> str:
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.3g}"
