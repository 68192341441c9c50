"""What all training commands are told, how an option is declared, and the checks.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError

# The panels of a command's --help, in order.
GROUPS = (
    "Common options", "Data", "Model", "Sequences and targets", "Of --arch transfo-xl alone",
    "Optimisation", "Evaluation and checkpoints", "Predictions", "Memory, speed and processes",
)  # fmt: skip
(
    COMMON, DATA, MODEL, SEQUENCES, TRANSFO_XL, OPTIMISATION, EVALUATION, PREDICTIONS, MACHINE,
) = GROUPS  # fmt: skip
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


def option(
    group: str,
    help: str,
    default: Any = MISSING,
    shown: str = "",
    *,
    free: bool = False,
    metavar: str = "",
    argument: bool = False,
) -> Any:
    """A field of an options dataclass.

    Args:
        group: one of GROUPS, under which ``--help`` lists it.
        help: a phrase, short enough for one line beside the name; of a switch that is on, what
            ``--no-name`` does.
        default: without one the option must be given.
        shown: what the default comes to, where that is not the value itself, such as "half".
        free: a resumed run may change it: how it runs and what it reports, not what it computes.
        metavar: what stands for the value, where its type does not say it.
        argument: it is given by its place, without ``--name``.
    """
    metadata = {
        "group": group, "help": help, "shown": shown, "free": free, "metavar": metavar,
        "argument": argument,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def is_switch(hint: Any) -> bool:
    """Whether a field of this type is ``--name`` and ``--no-name``, without a value."""
    return bool in (hint, *typing.get_args(hint))


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What every training is told; ``--help`` lists it behind a command's own, in each group."""

    output: Path = option(COMMON, "Folder of checkpoints and model", free=True)
    batch_size: int = option(COMMON, "Sequences per process", 8)
    precision: str = option(COMMON, "fp32, bf16, or fp16 on a GPU", "fp32")
    resume: bool = option(COMMON, "Go on from the newest checkpoint in --output", False, free=True)
    overwrite: bool = option(
        COMMON, "Delete what an earlier run left in --output", False, free=True
    )
    gradient_accumulation: int = option(OPTIMISATION, "Batches for one update", 1)
    schedule: str = option(OPTIMISATION, f"Of the rate: {', '.join(CHOICES['schedule'])}", "linear")
    warmup: float = option(OPTIMISATION, "Steps the rate rises; <1: a share", 0.1)
    weight_decay: float = option(OPTIMISATION, "Decay; none of biases, norms", 0.01)
    adam_epsilon: float = option(OPTIMISATION, "Epsilon of AdamW", 1e-6)
    max_grad_norm: float = option(OPTIMISATION, "Clip gradients to it; 0: never", 1.0)
    seed: int = option(OPTIMISATION, "Seed of everything random", 0)
    log_every: int = option(EVALUATION, "Steps between log lines", 10, free=True)
    keep: int = option(EVALUATION, "Checkpoints to keep", 2, free=True)
    gradient_checkpointing: bool = option(MACHINE, "Save memory: compute activations twice", False)
    fsdp: bool = option(MACHINE, "FSDP2: shard weights over processes", False)
    accelerate: bool = option(MACHINE, "Run Hugging Face's own modules", True)
    backend: str = option(MACHINE, "Backend of the attention", "auto", free=True)

    def record(self) -> dict[str, Any]:
        """The options as plain JSON values."""

        def plain(value: Any) -> Any:
            if isinstance(value, Path):
                return str(value)
            return list(value) if isinstance(value, tuple) else value

        return {name: plain(value) for name, value in dataclasses.asdict(self).items()}

    def deciding(self) -> dict[str, Any]:
        """The part of :meth:`record` that decides the results, so a resumed run must share it."""
        free = {field.name for field in dataclasses.fields(self) if field.metadata["free"]}
        return {name: value for name, value in self.record().items() if name not in free}


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
    check_ranges(options, {**_RANGES, **ranges})
    if not options.learning_rate > 0:
        raise ArgumentError(f"learning_rate is {options.learning_rate}, expected more than 0")
    if options.warmup >= 1 and options.warmup != int(options.warmup):
        raise ArgumentError(f"warmup is {options.warmup}, expected whole steps or a share below 1")
    if options.resume and options.overwrite:
        raise ArgumentError("resume goes on with an earlier run and overwrite deletes it")


def check_ranges(options: Any, ranges: Mapping[str, tuple[float, float | None]]) -> None:
    """Check numbers, unless they are None.

    Args:
        ranges: field to the least and the greatest value, or None where there is none.

    Raises:
        ArgumentError: names the first field with a wrong value, and what is right.
    """
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if value is None or (value >= least and (most is None or value <= most)):
            continue
        wanted = f"at least {least}" if most is None else f"{least} to {most}"
        raise ArgumentError(f"{name} is {value}, expected {wanted}")
