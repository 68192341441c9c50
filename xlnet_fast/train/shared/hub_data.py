"""Data sets of the Hub: told at once where they cannot be had, without the client's own lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from huggingface_hub import constants

from xlnet_fast.checkpoint import quiet, why_out_of_reach
from xlnet_fast.errors import ArgumentError


def check_dataset(name: str) -> None:
    """Check that ``datasets.load_dataset`` has a chance, before it tries for minutes.

    Args:
        name: of the Hub, or a path.

    Raises:
        ArgumentError: it is no path, is not in the local cache, and the Hub is out of reach.
    """
    places = (
        Path(name).expanduser(),
        Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}",
        Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___"),
    )
    if any(place.exists() for place in places):
        return
    why = why_out_of_reach()
    if why is not None:
        raise ArgumentError(
            f"{name} is neither a file or folder here, nor a data set in the local cache, and {why}"
        )


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Without what `datasets` logs and shows of its own: an error of ours says what was wrong."""
    log = datasets.logging
    level, shown = log.get_verbosity(), not datasets.are_progress_bars_disabled()
    log.set_verbosity(log.CRITICAL)
    datasets.disable_progress_bars()
    try:
        with quiet():
            yield
    finally:
        log.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()
