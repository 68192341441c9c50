"""What a run has made, so that a run that fails takes back that and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xlnet_fast.deploy.aws_errors import AwsError
from xlnet_fast.errors import XLNetFastError


@dataclass(frozen=True)
class _Step:
    what: str
    undo: Callable[[], None]
    holds: bool


class Made:
    """Steps that were done, the last first to be undone."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._steps: list[_Step] = []

    def add(self, what: str, undo: Callable[[], None], *, holds: bool = False) -> None:
        """Remember a step.

        Args:
            what: a name for it, such as "the model a-1".
            undo: takes it back; what is gone already is no error.
            holds: what was made before it is in use as long as it is there, and stays with it.
        """
        self._steps.append(_Step(what, undo, holds))

    def make(
        self, what: str, do: Callable[[], object], undo: Callable[[], None], *, holds: bool = False
    ) -> None:
        """Do a step and remember it, also where it ends in doubt: cut off, or without an answer."""
        try:
            do()
        except BaseException as error:
            if not (isinstance(error, AwsError) and error.answered):
                self.add(what, undo, holds=holds)
            raise
        self.add(what, undo, holds=holds)

    def take_back(self, say: Callable[[str], None]) -> list[str]:
        """Undo all steps, the last first.

        Returns what is still there, with reasons; nothing is raised but a signal.
        """
        left: list[str] = []
        while self._steps:
            step = self._steps.pop()
            try:
                step.undo()
            except AwsError as error:
                if not error.not_found:
                    left.append(f"{step.what} ({error})")
            except XLNetFastError as error:
                left.append(f"{step.what} ({error})")
            else:
                say(f"taken back: {step.what}")
            if left and step.holds:
                left += [f"{one.what} (in use by {step.what})" for one in reversed(self._steps)]
                self._steps.clear()
        return left
