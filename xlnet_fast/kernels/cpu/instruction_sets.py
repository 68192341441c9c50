"""Which instruction set the CPU kernels use: the best this CPU has, or a lower one on request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from xlnet_fast import _extension
from xlnet_fast.errors import ArgumentError

VARIABLE = "XLNET_FAST_CPU_ISA"
"""Environment variable: the highest instruction set to use, as ``xlnet-fast info`` names them."""

_chosen: str | None = None


def instruction_set() -> str:
    """The highest instruction set to use: "auto", or the one asked for.

    Raises:
        ArgumentError: the environment variable names none that this CPU has.
    """
    global _chosen
    if _chosen is None:
        try:
            _chosen = _checked(os.environ.get(VARIABLE, "auto"))
        except ArgumentError as error:
            raise ArgumentError(f"environment variable {VARIABLE}: {error}") from None
    return _chosen


@contextmanager
def using(name: str) -> Iterator[None]:
    """Use at most this instruction set within the block.

    Raises:
        ArgumentError: no such instruction set here.
    """
    global _chosen
    before, _chosen = _chosen, _checked(name)
    try:
        yield
    finally:
        _chosen = before


def _checked(name: str) -> str:
    module = _extension.require()
    known = ("auto", *module.attention_isa_available())
    if name not in (*known, *module.attention_isa_emulated()):
        raise ArgumentError(f"instruction set {name!r} is not one of {', '.join(known)}")
    return name
