"""What a training job is told; the command line, a YAML file and Python give the same names.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from xlnet_fast.deploy.deployment import (
    LONGEST_NAME,
    check_image,
    check_instance,
    check_name,
    check_network,
    check_place,
    check_role,
)
from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.options import COMMON, option

MACHINES = "Machines"
NETWORK = "Network and container"
RUN = "This run"
GROUPS = (COMMON, MACHINES, NETWORK, RUN)
"""The panels of the command's ``--help``, in order."""

COMMANDS = ("pretrain", "finetune")
FILE_SYSTEM = re.compile(r"(fsx|efs)://(fs-[0-9a-f]{8,})(/.*)")
"""A channel that the machines mount: its kind, its id and the folder in it."""
_CHANNEL = re.compile(r"([A-Za-z0-9.\-_]{1,64})=(.+)")
_PARAMETER = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)=(.*)", re.DOTALL)
_LONGEST_VALUE = 2500  # of a hyperparameter


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """One job; each field's help is in its metadata (``xlnet-fast train sagemaker --help``).

    Raises:
        ArgumentError: from :meth:`check`, for the first value that cannot be used.
    """

    command: str = option(COMMON, "pretrain or finetune", metavar="COMMAND", argument=True)
    name: str = option(COMMON, "Of the job; the time is added")
    role: str = option(COMMON, "ARN of SageMaker's role", metavar="ARN")
    image: str = option(COMMON, "Of the container, in ECR", metavar="URI")
    s3: str = option(COMMON, "Place for data, model, checkpoints", metavar="S3")
    channel: tuple[str, ...] = option(
        COMMON, "Data: S3, fsx://, efs://, or to send; repeatable", (), metavar="NAME=PLACE"
    )
    hyperparameter: tuple[str, ...] = option(
        COMMON, "Option of the command, value as JSON; repeatable", (), metavar="NAME=VALUE"
    )

    instance: str = option(MACHINES, "Type, such as ml.g6.xlarge", metavar="TYPE")
    instances: int = option(MACHINES, "How many", 1)
    volume_gb: int = option(MACHINES, "Disk of each", 50)
    max_hours: float = option(MACHINES, "Longest time of training", 24.0)
    spot: bool = option(MACHINES, "Spare capacity: cheaper, interrupted, goes on", False)
    max_wait_hours: float | None = option(
        MACHINES, "Spot: longest time with waiting", None, "twice max-hours"
    )
    checkpoints: str | None = option(
        MACHINES, "S3 place of checkpoints", None, "of --s3 if --spot", metavar="S3"
    )

    subnet: tuple[str, ...] = option(NETWORK, "Of your VPC; repeatable", (), metavar="ID")
    security_group: tuple[str, ...] = option(NETWORK, "Of your VPC; repeatable", (), metavar="ID")
    isolate: bool = option(NETWORK, "The container reaches no network", False)

    region: str | None = option(RUN, "Of AWS", None, "the profile's")
    profile: str | None = option(RUN, "Of ~/.aws/config", None, "AWS_PROFILE")
    wait: bool = option(RUN, "Start it and leave", True)
    dry_run: bool = option(RUN, "Print the plan; ask AWS for nothing", False)

    @property
    def channels(self) -> dict[str, str]:
        """The places of the data by the names of their channels."""
        found: dict[str, str] = {}
        for text in self.channel:
            match = _CHANNEL.fullmatch(text)
            if match is None or match[1] in found:
                raise ArgumentError(f"channel is {text!r}, expected NAME=PLACE, each name once")
            found[match[1]] = match[2]
        return found

    @property
    def hyperparameters(self) -> dict[str, str]:
        """The command and its options, each a text, as SageMaker wants them."""
        found = {"command": self.command}
        for text in self.hyperparameter:
            match = _PARAMETER.fullmatch(text)
            name = "" if match is None else match[1].replace("-", "_")
            if match is None or name in found:
                raise ArgumentError(
                    f"hyperparameter is {text!r}, expected NAME=VALUE, each name once; the command "
                    "has a place of its own"
                )
            if len(match[2]) > _LONGEST_VALUE:
                raise ArgumentError(
                    f"hyperparameter {name} has {len(match[2]):,} characters, expected at most "
                    f"{_LONGEST_VALUE:,}"
                )
            found[name] = match[2]
        return found

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        if self.command not in COMMANDS:
            raise ArgumentError(f"command is {self.command!r}, expected {' or '.join(COMMANDS)}")
        check_name(self.name, LONGEST_NAME)
        check_role(self.role)
        check_image(self.image, self.region)
        check_place("s3", self.s3)
        check_instance(self.instance, "expected --instance TYPE")
        check_network(self.subnet, self.security_group)
        self._check_numbers()
        self._check_spot()
        for name, place in self.channels.items():
            if place.startswith("s3://"):
                check_place(f"channel {name}", place)
            elif FILE_SYSTEM.fullmatch(place):
                if not self.subnet:
                    raise ArgumentError(
                        f"channel {name} is a file system, expected --subnet and --security-group"
                    )
            elif place.startswith(("fsx://", "efs://")):
                raise ArgumentError(
                    f"channel {name} is {place!r}, expected {place[:3]}://fs-ID/FOLDER"
                )
            elif not Path(place).expanduser().exists():
                raise ArgumentError(f"channel {name}: {place} does not exist")
        given = self.hyperparameters
        if self.instances > 1 and "output" not in given:
            raise ArgumentError(
                "a job on several instances needs the hyperparameter output, a folder that all of "
                "them mount: docs/train.md, SageMaker"
            )

    def _check_numbers(self) -> None:
        for name, least in (("instances", 1), ("volume_gb", 1)):
            if getattr(self, name) < least:
                raise ArgumentError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if not (0 < self.max_hours <= 28 * 24):
            raise ArgumentError(f"max_hours is {self.max_hours}, expected up to 672, 28 days")

    def _check_spot(self) -> None:
        if self.checkpoints is not None:
            check_place("checkpoints", self.checkpoints)
        if self.max_wait_hours is None:
            return
        if not self.spot:
            raise ArgumentError("max_wait_hours is of spot instances, expected --spot with it")
        if not self.max_hours <= self.max_wait_hours < math.inf:
            raise ArgumentError(
                f"max_wait_hours is {self.max_wait_hours}, expected at least max_hours, "
                f"{self.max_hours:g}"
            )
