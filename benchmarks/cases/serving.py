"""Requests to a service: texts of mixed lengths, and when they come."""

from __future__ import annotations

import numpy as np

LEAST, MOST = 4, 512
"""Tokens of a text."""


def mixed_lengths(count: int, seed: int = 0) -> list[int]:
    """Return tokens of texts, log-normal: half below 55, one in fifty at 350 or more."""
    drawn = np.random.default_rng(seed).lognormal(4.0, 0.9, count)
    return [int(length) for length in np.clip(drawn, LEAST, MOST)]


def arrivals(rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Return when requests come, in seconds: independent of each other and of the answers.

    An open loop: who asks does not wait for who is served (Poisson, rate in requests a second).
    """
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, int(rate * seconds * 2) + 20)
    times = np.cumsum(gaps)
    return [float(time) for time in times[times < seconds]]
