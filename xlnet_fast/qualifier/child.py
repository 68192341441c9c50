"""The process that runs one backend's kernels on one device: it may crash, hang or be killed.

It reads one order on its standard input and answers there where its standard output was, which
whatever else prints no longer reaches. When its parent goes, it goes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import IO

import torch

from xlnet_fast.ops.qualification.identity import identity_of
from xlnet_fast.ops.qualification.proof import recorded_tiles
from xlnet_fast.ops.qualification.record import FAILED, FORWARD, PASSED, UNAVAILABLE, Row
from xlnet_fast.qualifier import messages
from xlnet_fast.qualifier.availability import why_unavailable
from xlnet_fast.qualifier.cases import TimedCase, hostile_problems, timed_problems
from xlnet_fast.qualifier.checks import check, in_words, rehearse
from xlnet_fast.qualifier.messages import Order
from xlnet_fast.qualifier.tasks import Task
from xlnet_fast.qualifier.timing import MOST_S, time_problem

Verdict = tuple[Task, str, Row]
"""A class, a direction, and the row about them."""


def main() -> None:
    """Carry out the order on standard input."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    order = Order.from_json(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, args=(sys.stdin,), daemon=True).start()
    end_s = time.monotonic() + order.seconds
    # Before CUDA starts: products of matrices are then the same in every run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    tiles = recorded_tiles(torch.device(order.device))
    os.environ["XLNET_FAST_QUALIFICATION"] = "none"  # an earlier verdict is nothing to start from

    def tell(kind: str, **content: object) -> None:
        print(messages.line(kind, **content), file=answers, flush=True)

    Worker(order, end_s, tell, tiles).run()


def _leave_with_parent(stdin: IO[str]) -> None:
    while stdin.readline():
        pass
    os._exit(1)


class Worker:
    """Carries out one order."""

    def __init__(
        self,
        order: Order,
        end_s: float,
        tell: Callable[..., None],
        tiles: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        self.order, self.end_s, self.tell, self.tiles = order, end_s, tell, tiles
        self.device = torch.device(order.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.zeros(1, device=self.device)  # a context, or the reason why there is none

    def run(self) -> None:
        """Answer with the identity of the device, then with a row for each verdict."""
        self.tell(messages.READY, identity=asdict(identity_of(self.device)))
        if self.order.backend == "triton":
            self._take_tiles()
        if self.order.mode == messages.COMPILE:
            self._compile()
        else:
            self._time(self._check())
        self.tell(messages.DONE)

    def _take_tiles(self) -> None:
        """Those of the record that counts now; with ``full`` those that are the fastest."""
        from xlnet_fast.qualifier import tiles  # imports Triton, and no other backend needs it

        order, device = self.order, self.device
        chosen: Mapping[str, Sequence[int]] = self.tiles
        if order.full and order.mode == messages.COMPILE:
            tiles.compile_candidates(order.tasks, device, self._over)
        elif order.full and why_unavailable(order.tasks[0], "triton", FORWARD, device) is None:
            now_s = time.monotonic()
            end_s = now_s + (self.end_s - now_s) / 3
            chosen = tiles.choose(
                order.tasks, device, end_s, lambda text: self.tell(messages.BEGIN, text=text)
            )
        tiles.use(chosen)
        if order.mode == messages.CHECK:
            self.tell(messages.TILES, tiles=dict(chosen))

    def _over(self) -> bool:
        return time.monotonic() >= self.end_s

    def _check(self) -> list[Verdict]:
        """Verdicts on every class; those that passed are to be timed."""
        passed: list[Verdict] = []
        order, device = self.order, self.device
        for task in order.tasks:
            for key in task.row_keys():
                if self._over():
                    return passed
                op, operands, dtype, head_dim, direction = key
                self.tell(messages.BEGIN, text=f"{task.name} {direction}")
                row = Row(op, operands, order.backend, dtype, head_dim, direction, UNAVAILABLE)
                reason = why_unavailable(task, order.backend, direction, device)
                if reason is not None:
                    row = replace(row, reason=reason)
                else:
                    problems = hostile_problems(task, device, order.full)
                    row = replace(row, **asdict(check(problems, order.backend, direction, device)))
                self._tell_row(row)
                self._leave_if_broken()
                if row.status == PASSED:
                    passed.append((task, direction, row))
        return passed

    def _time(self, passed: list[Verdict]) -> None:
        """Times of what passed: of all classes at their first shape, then at the next."""
        cases = [list(timed_problems(task, self.device, self.order.full)) for task, *_ in passed]
        rows = [row for *_, row in passed]
        turns = [
            (number, shape)
            for shape in range(max(map(len, cases), default=0))
            for number in range(len(passed))
            if shape < len(cases[number])
        ]
        for turn, (number, shape) in enumerate(turns):
            if self._over():
                return
            if rows[number].status != PASSED:
                continue
            share_s = (self.end_s - time.monotonic()) / (len(turns) - turn)
            rows[number] = self._with_time(
                passed[number], rows[number], cases[number][shape], share_s
            )
            self._tell_row(rows[number])
            self._leave_if_broken()

    def _with_time(self, verdict: Verdict, row: Row, case: TimedCase, share_s: float) -> Row:
        """The row with the times of one more shape; a failed one where the backend raises."""
        task, direction, _ = verdict
        shape, make = case
        self.tell(messages.BEGIN, text=f"{task.name} {direction} {shape}, time")
        budget_s = min(MOST_S, share_s / 2)  # the other half: to make the call, and to warm up
        try:
            timing = time_problem(
                shape, make(), self.order.backend, direction, self.device, budget_s
            )
        except Exception as error:
            reason = f"timed at {shape}: {in_words(error)}"
            return replace(row, status=FAILED, reason=reason, timings=())
        return replace(row, timings=(*row.timings, timing))

    def _compile(self) -> None:
        """Every call once, whatever comes of it: its kernels are then in the compiler's cache."""
        for task in self.order.tasks:
            for direction in task.directions:
                if self._over():
                    return
                self.tell(messages.BEGIN, text=f"{task.name} {direction}, compile")
                for problem in hostile_problems(task, self.device, self.order.full):
                    rehearse(problem, self.order.backend, direction)
                for _, make in timed_problems(task, self.device, self.order.full):
                    rehearse(make(), self.order.backend, direction)

    def _tell_row(self, row: Row) -> None:
        self.tell(messages.ROW, row=asdict(row))

    def _leave_if_broken(self) -> None:
        """After an illegal access nothing works here, and no further verdict would be true."""
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self.device)
        except Exception as error:
            self.tell(messages.FATAL, text=str(error).strip().splitlines()[0])
            os._exit(1)


if __name__ == "__main__":
    main()
