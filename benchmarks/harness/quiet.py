"""Whether the machine is quiet: times say little where other programs use its cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

# A run keeps all cores busy itself, which alone gives a load of about their number.
_MARGIN = 0.7
# Of the ratios of a case's rounds, over their median. A quiet machine stays below a tenth.
UNSTEADY = 0.3


def _load() -> float | None:
    """The mean number of programs that wanted to run in the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


@dataclass
class Quiet:
    """What a run saw of its machine: the highest load, and cases whose rounds differ."""

    load: Callable[[], float | None] = _load
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    highest: float = 0.0
    cases: int = 0
    unsteady: list[str] = field(default_factory=list)

    def look(self) -> None:
        """Note the load of the last minute."""
        self.highest = max(self.highest, self.load() or 0.0)

    def case_done(self, label: str, spread: float | None) -> None:
        """Note a case and how far apart its rounds are, None where there is no such figure."""
        self.look()
        self.cases += 1
        if spread is not None and spread > UNSTEADY:
            self.unsteady.append(label)

    def crowded(self) -> str | None:
        """Say how high the load was, None where that was no more than a run's own."""
        if self.highest <= self.cores + _MARGIN:
            return None
        return f"a load average of {self.highest:.1f} on {self.cores} cores"

    def warning(self) -> str | None:
        """What to tell the reader of the figures in a sentence or two; None if all was quiet."""
        load = self.crowded()
        found = [load] if load else []
        if self.unsteady:
            found.append(
                f"rounds that differ by more than {UNSTEADY:.0%} in {len(self.unsteady)} of "
                f"{self.cases} cases ({'; '.join(self.unsteady)})"
            )
        if not found:
            return None
        return (
            f"The machine was busy: {' and '.join(found)}. Take these figures as rough, and run "
            "again when nothing else runs."
        )
