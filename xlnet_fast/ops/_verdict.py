"""Choices in words for a user: a short reason for each, and one line on all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xlnet_fast import _extension
from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.ops._dispatch import (
    BY_NAME,
    ELSEWHERE,
    FAULT,
    KINDS,
    MISSING,
    SLOWER,
    UNPROVED,
    Choice,
    PassedOver,
    Request,
    choose,
)
from xlnet_fast.ops.qualification import proof
from xlnet_fast.ops.qualification.files import SWITCHED_OFF, Found

RAISES = "none: raises"
"""In the place of a backend, where a call would raise ``BackendUnavailable``."""

_KERNELS = {
    "cpu": "fused C++ kernels",
    "triton": "Triton kernels",
    "cuda": "CUDA kernels",
    "pallas": "Pallas kernels for TPUs",
}
_NAMES = {"triton": "Triton", "cuda": "CUDA"}


def choice_of(request: Request, backend: str = "auto") -> Choice:
    """As ``choose``; what would raise is a choice of :data:`RAISES`, with the reason."""
    try:
        return choose(request, backend)
    except BackendUnavailable as error:
        return Choice(RAISES, str(error))


def brief(choice: Choice, device: str) -> str:
    """One short reason of a choice, without the remedies; faults are told in full.

    Args:
        device: its type.
    """
    faults = [str(obstacle) for obstacle in choice.passed_over if obstacle.kind == FAULT]
    return "; ".join(dict.fromkeys([_short(choice, device), *faults]))


def _short(choice: Choice, device: str) -> str:
    if choice.backend == RAISES:
        return choice.why
    if not choice.passed_over and choice.speed is None and choice.why:
        return _without_remedy(choice.why)
    if choice.backend in _KERNELS:
        return _KERNELS[choice.backend]
    obstacle = _gravest(choice)
    if obstacle is None or obstacle.kind == ELSEWHERE:
        return f"no fused kernel for it on {device}"
    return str(obstacle) if obstacle.kind == FAULT else _without_remedy(str(obstacle))


def _without_remedy(why: str) -> str:
    return why.partition("; ")[0]


def _gravest(choice: Choice) -> PassedOver | None:
    """What a user should know of first; of equals the last, which was the next to be taken."""
    return min(reversed(choice.passed_over), key=lambda o: KINDS.index(o.kind), default=None)


def merged(brief: str, speeds: Sequence[float | None]) -> str:
    """A short reason that several choices of one backend share, with the range of their speeds."""
    known = [speed for speed in speeds if speed is not None]
    if not known:
        return brief
    low, high = f"{min(known):.1f}", f"{max(known):.1f}"
    return f"{brief}, {low if low == high else f'{low} to {high}'} times plain PyTorch's speed"


def verdict(
    device: str, attention: Sequence[Choice], others: Sequence[Choice], found: Found
) -> str:
    """What runs on a device, in one line that begins with "ready" where nothing is left to do.

    Args:
        device: its type. attention: the choices for attention. others: for everything else, of
            which only faults are told. found: the record of the device.
    """
    every = [*attention, *others]
    for choice in every:
        if choice.backend == RAISES:
            return f"cannot run: {choice.why}"
    for fault in (o for choice in every for o in choice.passed_over if o.kind == FAULT):
        return f"fault in {fault.backend}: {fault.why}; it is passed over"
    plain = [obstacle for choice in attention if (obstacle := _left_behind(choice)) is not None]
    if plain:
        return _why_plain(plain[0], device, found, in_part=len(plain) < len(attention))
    return f"ready: {_what_runs(device, attention)}"


def _left_behind(choice: Choice) -> PassedOver | None:
    """Why no kernel runs, where that was neither asked for nor measured to be best."""
    if choice.backend in _KERNELS or choice.why == BY_NAME:
        return None
    obstacle = _gravest(choice)
    return None if obstacle is None or obstacle.kind == SLOWER else obstacle


def _why_plain(obstacle: PassedOver, device: str, found: Found, in_part: bool) -> str:
    if obstacle.kind == MISSING:
        if obstacle.backend == "cpu" and _extension.why_missing() is not None:
            return "slower than it could be: the C++ extension is missing; run `xlnet-fast build`"
        return f"slower than it could be: {obstacle}"
    if obstacle.kind == UNPROVED and found.reason == SWITCHED_OFF:
        return f"plain PyTorch: {SWITCHED_OFF}"
    if obstacle.kind == UNPROVED and found.record is None:
        return f"GPU without a record: plain PyTorch; run `{proof.COMMAND}`"
    why = f"no fused kernel on {device}" if obstacle.kind == ELSEWHERE else str(obstacle)
    return f"plain PyTorch{' in part' if in_part else ''}: {why}"


def _what_runs(device: str, attention: Sequence[Choice]) -> str:
    backends = list(dict.fromkeys(choice.backend for choice in attention))
    if attention and all(choice.why == BY_NAME for choice in attention):
        return f"backend {backends[0]!r}, asked for by name"
    kernels = [backend for backend in backends if backend in _KERNELS]
    if device == "cuda":
        names = " and ".join(_NAMES[backend] for backend in kernels)
        return f"{names} kernels proved on this GPU" if names else "plain PyTorch, the faster here"
    if "pallas" in kernels:
        return f"Pallas kernels, lowered by the framework of device {device!r}"
    what = "fused CPU kernels" if kernels else "plain PyTorch, the faster here"
    unused = "the GPU is not used" if torch.cuda.is_available() else "no GPU"
    return f"{what}; {unused}"
