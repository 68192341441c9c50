"""What the options of all training commands share: fields with help, and their checks.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError

CHOICES = {
    "precision": ("fp32", "bf16", "fp16"),
    "schedule": ("linear", "cosine", "constant_with_warmup"),
}
_RANGES: dict[str, tuple[float, float | None]] = {
    "batch_size": (1, None), "gradient_accumulation": (1, None), "steps": (1, None),
    "warmup": (0, None), "weight_decay": (0, None), "max_grad_norm": (0, None),
    "adam_epsilon": (0, None), "dropout": (0, 0.9), "log_every": (1, None),
    "eval_every": (1, None), "keep": (1, None), "seed": (0, None),
}  # fmt: skip


def option(default: Any, help: str) -> Any:
    """A field of a dataclass with its help."""
    return field(default=default, metadata={"help": help})


def check_values(
    options: Any,
    choices: Mapping[str, tuple[str, ...]],
    ranges: Mapping[str, tuple[float, float | None]],
) -> None:
    """Check the fields that all commands have, and a command's own.

    Args:
        choices: field to known values. ranges: field to the least and the greatest value, or None;
            an option that is None is not checked.

    Raises:
        ArgumentError: names the first field with a wrong value, and what is right.
    """
    for name, known in {**CHOICES, **choices}.items():
        if getattr(options, name) not in known:
            raise ArgumentError(
                f"{name} must be one of {', '.join(known)}, got {getattr(options, name)!r}"
            )
    for name, (least, most) in {**_RANGES, **ranges}.items():
        value = getattr(options, name)
        if value is None or (value >= least and (most is None or value <= most)):
            continue
        wanted = f"at least {least}" if most is None else f"{least} to {most}"
        raise ArgumentError(f"{name} is {value}, expected {wanted}")
    if not options.learning_rate > 0:
        raise ArgumentError(f"learning_rate is {options.learning_rate}, expected more than 0")
    if options.warmup >= 1 and options.warmup != int(options.warmup):
        raise ArgumentError(f"warmup is {options.warmup}, expected whole steps or a share below 1")
    if options.resume and options.overwrite:
        raise ArgumentError("resume goes on with an earlier run and overwrite deletes it")


def warmup_arguments(warmup: float) -> dict[str, Any]:
    """One number as the two arguments of ``training_arguments``: a share below 1, else steps."""
    return {"warmup_ratio": warmup} if warmup < 1 else {"warmup_steps": int(warmup)}


def record_of(options: Any) -> dict[str, Any]:
    """The options as plain JSON values."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in dataclasses.asdict(options).items()}
