"""One backend's results held to Hugging Face's, batch by batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from xlnet_fast.check.subject import DTYPES, TRAINING, Computation, Results, Subject
from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.hf import accelerate
from xlnet_fast.ops._dispatch import choose, request_on
from xlnet_fast.tolerance import error_and_bound


@dataclass(frozen=True)
class Verdict:
    """One computation on one device in one dtype by one backend.

    ``error`` and ``bound`` are those of ``worst``, the tensor nearest to its bound or furthest
    beyond; ``status`` is "ok", "FAILED" or "not run", and ``reason`` says why it is not "ok".
    ``cancelling`` tensors are inside by one rounding of every step, not by one of the result.
    """

    computation: str
    device: str
    dtype: str
    backend: str
    status: str
    reason: str = ""
    tensors: int = 0
    worst: str = ""
    error: float = math.nan
    bound: float = math.nan
    cancelling: int = 0


class Trial:
    """One backend's results on all batches of one computation, held to the rule.

    A tensor's error is the largest over the batches, and so is its bound: on one batch alone,
    Hugging Face is exact by luck now and then, and a bound from that would fail code as good.
    """

    def __init__(
        self, computation: str, device: str, dtype: str, backend: str, subject: Subject
    ) -> None:
        self.device, self.backend = device, backend
        self.where = (computation, device, dtype, backend)
        self.obstacle = _cannot_run(computation, device, DTYPES[dtype], backend, subject)
        self.failure = ""
        self.batches: dict[str, list[tuple[float, float]]] = {}  # error and bound of each
        self.outside_at_first = 0

    def run(
        self, compute: Computation, model: nn.Module, batch: int, eager: Results, exact: Results
    ) -> None:
        """One batch; after a failure, nothing."""
        if self.obstacle or self.failure:
            return
        try:
            actual = compute(accelerate(copy.deepcopy(model), self.backend), batch)
        except Exception as error:  # whatever it is, the user asked whether this works
            self.failure = f"raised {type(error).__name__}: {error}"
            return
        if actual.keys() != exact.keys():
            self.failure = f"not Hugging Face's tensors: {sorted(actual.keys() ^ exact.keys())}"
            return
        for key, value in exact.items():
            self.batches.setdefault(key, []).append(error_and_bound(actual[key], eager[key], value))

    def judge_again(self, more: Callable[[int], dict[str, float]]) -> None:
        """Widens the bounds by what rounding before the result does, where a tensor needs it.

        Args:
            more: of a batch, what is added to each tensor's bound. It takes as long as the batch
                took, so it is asked for until all is inside, where errors are largest first.
        """
        asked: set[int] = set()
        self.outside_at_first = len(self._outside())
        while not self.failure and (outside := self._outside()):
            errors = [error for error, _ in self.batches[self._worst(outside)]]
            left = set(range(len(errors))) - asked
            if not left or not math.isfinite(max(errors)):
                return
            batch = max(left, key=errors.__getitem__)
            asked.add(batch)
            for key, added in more(batch).items():
                error, bound = self.batches[key][batch]
                self.batches[key][batch] = error, bound + added

    def _pooled(self, key: str) -> tuple[float, float]:
        """A tensor's error and bound over all batches."""
        errors, bounds = zip(*self.batches[key], strict=True)
        return max(errors), max(bounds)

    def _worst(self, keys: Iterable[str]) -> str:
        return max(keys, key=lambda key: _ratio(*self._pooled(key)))

    def _outside(self) -> list[str]:
        pooled = {key: self._pooled(key) for key in self.batches}
        return [key for key, (error, bound) in pooled.items() if not error <= bound]

    def verdict(self) -> Verdict:
        """What to tell of it."""
        if self.obstacle:
            return Verdict(*self.where, "not run", self.obstacle)
        if self.failure:
            return Verdict(*self.where, "FAILED", self.failure)
        count = len(self.batches)
        worst, outside = self._worst(self.batches), self._outside()
        status = reason = ""
        if outside:
            reason = f"{len(outside)} of {count} tensors outside: {', '.join(outside[:4])}"
        status = "FAILED" if outside else "ok"
        cancelling = max(0, self.outside_at_first - len(outside))
        return Verdict(*self.where, status, reason, count, worst, *self._pooled(worst), cancelling)


def _ratio(error: float, bound: float) -> float:
    return error / bound if bound > 0 else (math.inf if error > 0 else 0.0)


def _cannot_run(
    name: str, device: str, dtype: torch.dtype, backend: str, subject: Subject
) -> str | None:
    where, training = torch.device(device), name == TRAINING
    request = request_on(
        subject.op_of(name), where, dtype, head_dim=subject.head_dim, needs_grad=training
    )
    try:
        choose(request, backend)
    except BackendUnavailable as error:
        return str(error).partition(": ")[2]
    return None
