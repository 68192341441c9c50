"""What a deployment is told; the command line, a YAML file and Python give the same names.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.options import COMMON, option

ENDPOINT = "Endpoint"
NETWORK = "Network and container"
RUN = "This run"
GROUPS = (COMMON, ENDPOINT, NETWORK, RUN)
"""The panels of the command's ``--help``, in order."""

# Of models and endpoint configs, whose names get the time behind it: 63 characters at most.
LONGEST_NAME = 47
SERVERLESS_MEMORY_MB = (1024, 2048, 3072, 4096, 5120, 6144)
USUAL_TARGET = {"real-time": 600.0, "asynchronous": 5.0}
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::(\d{12}):role/\S+")
_IMAGE = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/\S+")
_INSTANCE = re.compile(r"ml\.[a-z0-9-]+\.[a-z0-9]+")
_PLACE = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class DeployOptions:
    """One deployment; each field's help is in its metadata (``deploy sagemaker --help``).

    Raises:
        ArgumentError: from :meth:`check`, for the first value that cannot be used.
    """

    model: str = option(COMMON, "Folder, or s3://.../model.tar.gz of a job", metavar="MODEL")
    name: str = option(COMMON, "Of the endpoint; updates it where it is there")
    role: str = option(COMMON, "ARN of SageMaker's role", metavar="ARN")
    image: str = option(COMMON, "Of the container, in ECR", metavar="URI")
    s3: str = option(COMMON, "Place for the archive: s3://BUCKET/PREFIX", metavar="S3")

    instance: str | None = option(ENDPOINT, "Type, such as ml.c7i.xlarge", None, metavar="TYPE")
    instances: int = option(ENDPOINT, "How many", 1)
    serverless: bool = option(ENDPOINT, "No instances: paid by the request", False)
    memory_mb: int | None = option(ENDPOINT, "Serverless: 1024, 2048 to 6144", None, "4096")
    max_concurrency: int | None = option(ENDPOINT, "Serverless: requests at once", None, "5")
    async_output: str | None = option(
        ENDPOINT, "Asynchronous: answers go to this S3 place", None, metavar="S3"
    )
    autoscale: str | None = option(ENDPOINT, "Fewest and most instances", None, metavar="MIN:MAX")
    target: float | None = option(
        ENDPOINT, "Per instance: requests a minute (async: waiting)", None, "600; async: 5"
    )

    env: tuple[str, ...] = option(
        NETWORK, "Variable of the container; repeatable", (), metavar="NAME=VALUE"
    )
    subnet: tuple[str, ...] = option(NETWORK, "Of your VPC; repeatable", (), metavar="ID")
    security_group: tuple[str, ...] = option(NETWORK, "Of your VPC; repeatable", (), metavar="ID")
    isolate: bool = option(NETWORK, "The container reaches no network", False)

    region: str | None = option(RUN, "Of AWS", None, "the profile's")
    profile: str | None = option(RUN, "Of ~/.aws/config", None, "AWS_PROFILE")
    check_input: Path | None = option(
        RUN, "Ask the endpoint with it", None, "a sentence", metavar="FILE"
    )
    check_answer: bool = option(RUN, "Do not ask the endpoint a question", True)
    wait_minutes: float = option(RUN, "Longest wait for the endpoint", 60.0)
    dry_run: bool = option(RUN, "Print the plan; ask AWS for nothing", False)

    @property
    def kind(self) -> str:
        """``real-time``, ``asynchronous`` or ``serverless``."""
        if self.serverless:
            return "serverless"
        return "asynchronous" if self.async_output is not None else "real-time"

    @property
    def bounds(self) -> tuple[int, int] | None:
        """The fewest and the most instances, None where their number is fixed."""
        if self.autoscale is None:
            return None
        least, _, most = self.autoscale.partition(":")
        if not (least.isascii() and least.isdigit() and most.isascii() and most.isdigit()):
            raise ArgumentError(f"autoscale is {self.autoscale!r}, expected MIN:MAX such as 1:4")
        return int(least), int(most)

    @property
    def variables(self) -> dict[str, str]:
        """The container's variables by name."""
        found = {}
        for text in self.env:
            match = _VARIABLE.fullmatch(text)
            if match is None:
                raise ArgumentError(f"env is {text!r}, expected NAME=VALUE")
            found[match[1]] = match[2]
        return found

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        check_name(self.name, LONGEST_NAME)
        check_role(self.role)
        check_image(self.image, self.region)
        check_place("s3", self.s3)
        if self.wait_minutes <= 0 or not math.isfinite(self.wait_minutes):
            raise ArgumentError(f"wait_minutes is {self.wait_minutes}, expected more than 0")
        if self.check_input is not None and not self.check_input.is_file():
            raise ArgumentError(f"check_input {self.check_input} is no file")
        if self.check_input is not None and not self.check_answer:
            raise ArgumentError("check_input is asked by the check that --no-check-answer leaves")
        self.variables  # noqa: B018  # checks them
        check_network(self.subnet, self.security_group)
        if self.serverless:
            self._check_serverless()
        else:
            self._check_instances()

    def _check_serverless(self) -> None:
        forbidden = {
            "instance": self.instance is not None, "async_output": self.async_output is not None,
            "autoscale": self.autoscale is not None, "target": self.target is not None,
            "subnet": bool(self.subnet), "isolate": self.isolate, "instances": self.instances != 1,
        }  # fmt: skip
        for name, given in forbidden.items():
            if given:
                raise ArgumentError(
                    f"{name} is of endpoints with instances, and this is serverless"
                )
        if self.memory_mb is not None and self.memory_mb not in SERVERLESS_MEMORY_MB:
            sizes = ", ".join(map(str, SERVERLESS_MEMORY_MB))
            raise ArgumentError(f"memory_mb is {self.memory_mb}, expected one of {sizes}")
        if self.max_concurrency is not None and not 1 <= self.max_concurrency <= 200:
            raise ArgumentError(f"max_concurrency is {self.max_concurrency}, expected 1 to 200")

    def _check_instances(self) -> None:
        for name in ("memory_mb", "max_concurrency"):
            if getattr(self, name) is not None:
                raise ArgumentError(f"{name} is of serverless endpoints, expected --serverless too")
        check_instance(self.instance, "expected --instance TYPE or --serverless")
        if self.instances < 1:
            raise ArgumentError(f"instances is {self.instances}, expected at least 1")
        if self.async_output is not None:
            check_place("async_output", self.async_output)
        if self.target is not None and self.autoscale is None:
            raise ArgumentError("target is of scaling, expected --autoscale MIN:MAX with it")
        if self.target is not None and not (self.target > 0 and math.isfinite(self.target)):
            raise ArgumentError(f"target is {self.target}, expected more than 0")
        if self.bounds is not None:
            self._check_bounds(*self.bounds)

    def _check_bounds(self, least: int, most: int) -> None:
        if most < max(least, 1):
            raise ArgumentError(
                f"autoscale is {self.autoscale}, expected MIN up to MAX, MAX from 1"
            )
        if least == 0 and self.kind != "asynchronous":
            raise ArgumentError(
                "autoscale from 0 is of asynchronous endpoints, expected MIN from 1"
            )
        if not least <= self.instances <= most:
            raise ArgumentError(
                f"instances is {self.instances}, expected one within autoscale {self.autoscale}"
            )


def check_name(name: str, longest: int) -> None:
    """Raise ``ArgumentError`` for what SageMaker takes as no name."""
    if not NAME.fullmatch(name) or len(name) > longest:
        raise ArgumentError(
            f"name is {name!r}, expected letters, digits and single or several hyphens between "
            f"them, {longest} characters at most"
        )


def check_role(role: str) -> None:
    """Raise ``ArgumentError`` for what is no role's ARN."""
    if not _ROLE.fullmatch(role):
        raise ArgumentError(
            f"role is {role!r}, expected an ARN such as arn:aws:iam::123456789012:role/NAME"
        )


def check_account(role: str, account: str) -> None:
    """Raise ``ArgumentError`` for a role that is of another account."""
    match = _ROLE.fullmatch(role)
    if match is not None and match[1] != account:
        raise ArgumentError(
            f"the role is of the account {match[1]} and the credentials are of {account}: "
            "SageMaker takes roles of the same account alone"
        )


def check_image(image: str, region: str | None) -> None:
    """Raise ``ArgumentError`` for an image that SageMaker cannot fetch."""
    match = _IMAGE.fullmatch(image)
    if match is None:
        raise ArgumentError(
            f"image is {image!r}, expected one of ECR such as "
            "123456789012.dkr.ecr.eu-central-1.amazonaws.com/NAME:TAG, because SageMaker takes it "
            "from there alone"
        )
    if region is not None and match[2] != region:
        raise ArgumentError(
            f"the image lies in {match[2]} and the region is {region}: SageMaker takes images of "
            "the same region alone, so push it there"
        )


def check_instance(instance: str | None, otherwise: str) -> None:
    """Raise ``ArgumentError`` for what is no type of instance."""
    if instance is None:
        raise ArgumentError(f"no instance type was given, {otherwise}")
    if not _INSTANCE.fullmatch(instance):
        raise ArgumentError(f"instance is {instance!r}, expected a type such as ml.c7i.xlarge")


def check_place(name: str, place: str) -> None:
    """Raise ``ArgumentError`` for what is no place in S3."""
    if not _PLACE.fullmatch(place):
        raise ArgumentError(f"{name} is {place!r}, expected s3://BUCKET/PREFIX")


def check_network(subnets: tuple[str, ...], groups: tuple[str, ...]) -> None:
    """Raise ``ArgumentError`` where one of both is missing."""
    if bool(subnets) != bool(groups):
        raise ArgumentError("a VPC needs both --subnet and --security-group")
