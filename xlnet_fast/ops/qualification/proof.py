"""Which record counts for a device of this process, and what it says of each backend.

Looked for in this order: the file that ``XLNET_FAST_QUALIFICATION`` names, the user's cache, the
records that ship with the package. A record counts where its identity is the device's; any other is
stale and counts as none. What was found stays for the process (:func:`forget` drops it).
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import torch

from xlnet_fast.builder import recipe
from xlnet_fast.builder.progress import Progress
from xlnet_fast.ops.qualification.files import SWITCHED_OFF, Found, look, may_have
from xlnet_fast.ops.qualification.identity import identity_of
from xlnet_fast.ops.qualification.jobs import is_job, pinned
from xlnet_fast.ops.qualification.record import (
    BACKWARD,
    FAILED,
    FORWARD,
    NOT_RUN,
    PASSED,
    UNAVAILABLE,
    Identity,
    Row,
    covering,
)
from xlnet_fast.ops.qualification.telling import warn_once
from xlnet_fast.transforms import constant_when_traced

AUTO_VARIABLE = "XLNET_FAST_QUALIFY"
"""Environment variable: "auto" qualifies a GPU that has no record at first use, by a child."""
COMMAND = "xlnet-fast qualify"
_AUTO_TIMEOUT_S = 900.0
_QUALIFY = (  # this very package, and nothing of the folder that the process happens to be in
    "import sys; sys.path[:] = [p for p in sys.path if p]; "
    f"sys.path.insert(0, {str(recipe.PACKAGE.parent)!r}); "
    "from xlnet_fast.cli import main; main()"
)
_NOBODY = "no GPU is at hand to ask"


ON_FORGET: list[Callable[[], None]] = []
"""What else drops a choice that a record decided."""

Verdict = tuple[str, bool, float | None, str]
"""A backend, whether it is right, its speed over the baseline where it was timed, and words."""


@constant_when_traced  # a traced graph must not read files
def why_none(device: str, index: int | None) -> str:
    """Why no record counts for a device, "cpu" or "cuda"; "" where one does.

    Warns:
        PerformanceWarning: once a process, where a GPU has none.
    """
    reason = found_for(device, index).reason
    if device == "cuda" and reason not in ("", _NOBODY, SWITCHED_OFF):
        warn_once(
            f"attention on this GPU runs on plain PyTorch: {reason}. `{COMMAND}` proves the fused "
            f"kernels on this very GPU and times them, in about two minutes"
        )
    return reason


@constant_when_traced
def verdicts(
    device: str,
    index: int | None,
    op: str,
    dtype: str,
    head_dim: str,
    needs_grad: bool,
    features: tuple[str, ...],
) -> tuple[Verdict, ...]:
    """What the record of a device says of the backends for a class of calls; () without one.

    Args:
        device: "cpu" or "cuda". index: of a GPU. head_dim: as ``record.head_dim_class``; "" for ops
            without heads. features: of the call, as in ``record.CLASSES``, sorted.
    """
    return _cached_verdicts(device, index, op, dtype, head_dim, needs_grad, features)


@functools.cache
def _cached_verdicts(
    device: str,
    index: int | None,
    op: str,
    dtype: str,
    head_dim: str,
    needs_grad: bool,
    features: tuple[str, ...],
) -> tuple[Verdict, ...]:
    record, operands = found_for(device, index).record, covering(op, features)
    if record is None or operands is None:
        return ()
    direction = BACKWARD if needs_grad else FORWARD
    rows = record.rows_of((op, operands, dtype, head_dim, direction)).values()
    return tuple(_verdict(row) for row in rows if row.status not in (NOT_RUN, UNAVAILABLE))


def _verdict(row: Row) -> Verdict:
    if row.status != PASSED:
        how = row.status if row.status == FAILED else f"{row.status} in"
        words = f"{how} its qualification here: {row.reason or 'nobody wrote why'}"
        return row.backend, False, None, words
    speed = row.speedup("baseline")
    if speed is None:
        return row.backend, True, None, "right, but it was not timed here"
    words = f"{speed:.2f} times the plain path's speed on {row.operands!r} operands here"
    return row.backend, True, speed, words


@functools.cache
def found_for(device: str, index: int | None) -> Found:
    """The record that counts for a device of this process, looked for once.

    Args:
        device: "cpu" or "cuda". index: of a GPU; None means that nobody knows which.
    """
    if device == "cuda" and (index is None or not torch.cuda.is_available()):
        return Found(None, reason=_NOBODY)
    if device == "cpu" and not is_job() and not may_have(device):
        return Found(None, reason="no record of this CPU")  # its identity takes a while to make
    identity = identity_of(torch.device(device if index is None else f"{device}:{index}"))
    if is_job():
        return pinned(identity)
    found = look(identity)
    automatic = device == "cuda" and os.environ.get(AUTO_VARIABLE) == "auto"
    if automatic and found.record is None and found.reason != SWITCHED_OFF:
        return _qualify_now(index or 0, identity, found)
    return found


def recorded_tiles(device: torch.device) -> Mapping[str, Sequence[int]]:
    """The tiles that Triton's kernels take on a device, as `kernels.triton.tiles.recorded_on`.

    They hold for a backend that is named as well, which asks for no record and starts no
    qualification.
    """
    if _given_tiles is not None:
        return _given_tiles
    return _cached_tiles(device.index or 0) if device.type == "cuda" else {}


def give_tiles(tiles: Mapping[str, Sequence[int]] | None) -> None:
    """Have kernels take these tiles, whatever the record says; None undoes it."""
    global _given_tiles
    _given_tiles = tiles


_given_tiles: Mapping[str, Sequence[int]] | None = None


@functools.cache
def _cached_tiles(index: int) -> Mapping[str, Sequence[int]]:
    identity = identity_of(torch.device("cuda", index))
    record = (pinned(identity) if is_job() else look(identity)).record
    return {} if record is None else record.tiles


def forget() -> None:
    """Look for records anew at the next call."""
    found_for.cache_clear()
    _cached_tiles.cache_clear()
    _cached_verdicts.cache_clear()
    for drop in ON_FORGET:
        drop()


def _qualify_now(index: int, identity: Identity, before: Found) -> Found:
    """Qualify a GPU in a child process, which makes its own context, and look again."""
    command = [sys.executable, "-c", _QUALIFY, "qualify", "--device", f"cuda:{index}"]
    environment = {name: text for name, text in os.environ.items() if name != AUTO_VARIABLE}
    warn_once(
        f"{AUTO_VARIABLE}=auto: {identity.name} has no record, so its kernels are proved and timed "
        f"now, which takes about two minutes"
    )
    try:
        with Progress(lambda line: print(f"xlnet_fast: {line}", file=sys.stderr)) as progress:
            progress.note(f"qualifying {identity.name}")
            done = subprocess.run(
                command, env=environment, timeout=_AUTO_TIMEOUT_S, capture_output=True, text=True
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        warn_once(f"`{COMMAND}` could not be run: {error}")
        return before
    _cached_tiles.cache_clear()
    found = look(identity)
    if found.record is None:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        warn_once(f"`{COMMAND}` left no record (exit code {done.returncode}): {lines[-1]}")
    return found


# ---- kernels that failed in this process ----

REVOKED: dict[str, str] = {}
"""Backends that raised at a launch in this process, and what they said: ``auto`` passes them by."""


def revoke(backend: str, error: BaseException) -> None:
    """Take a backend from ``auto`` for the rest of this process.

    Warns:
        PerformanceWarning: once for each backend.
    """
    if backend not in REVOKED:
        first = str(error).strip().splitlines() or [""]
        REVOKED[backend] = f"raised {type(error).__name__}: {first[0]}"
        warn_once(
            f"backend {backend!r} {REVOKED[backend]}; this process goes on without it. "
            f"`{COMMAND}` tells whether it runs here at all"
        )
