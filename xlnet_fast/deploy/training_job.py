"""``pretrain`` and ``finetune`` as training jobs of SageMaker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlnet_fast.deploy import s3_objects
from xlnet_fast.deploy.aws_clients import Aws
from xlnet_fast.deploy.aws_errors import telling
from xlnet_fast.deploy.deployment import check_account, check_image
from xlnet_fast.deploy.endpoint_plan import Step, printed, tag_list, tags_of
from xlnet_fast.deploy.patience import say, wait_for
from xlnet_fast.deploy.s3_objects import Place
from xlnet_fast.deploy.training_options import FILE_SYSTEM, TrainingOptions
from xlnet_fast.errors import XLNetFastError

# In the image's place of what SageMaker's toolkit would start, so that signals arrive.
ENTRY_POINT = ("python", "-m", "xlnet_fast.cli.sagemaker")
CHECKPOINTS = "/opt/ml/checkpoints"
_FILE_SYSTEM_TYPES = {"fsx": "FSxLustre", "efs": "EFS"}
_PASSING = ("InProgress", "Stopping")


@dataclass(frozen=True)
class JobPlan:
    """The request of a job.

    Attributes:
        options: checked. name: of the job, with the time in it.
    """

    options: TrainingOptions
    name: str

    @classmethod
    def now(cls, options: TrainingOptions) -> JobPlan:
        """Of this second."""
        return cls(options, f"{options.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")

    @property
    def place(self) -> Place:
        """Of all that the job reads and leaves."""
        return Place.of(self.options.s3).below(self.options.name)

    @property
    def checkpoints(self) -> str | None:
        """Where checkpoints are kept; the same for each job of a name, so that the next goes on."""
        if self.options.checkpoints is not None or not self.options.spot:
            return self.options.checkpoints
        return str(self.place.below("checkpoints"))

    @property
    def tags(self) -> dict[str, str]:
        """Of all that is made."""
        return tags_of(self.options.name)

    def sent(self) -> dict[str, Place]:
        """The channels whose data is here, with the places that it is sent to."""
        return {
            name: self.place.below("data", name)
            for name, place in self.options.channels.items()
            if not place.startswith("s3://") and not FILE_SYSTEM.fullmatch(place)
        }

    def request(self) -> dict[str, Any]:
        """Of ``CreateTrainingJob``."""
        options, seconds = self.options, round(self.options.max_hours * 3600)
        stopping = {"MaxRuntimeInSeconds": max(1, seconds)}
        if options.spot:
            hours = options.max_wait_hours or 2 * options.max_hours
            stopping["MaxWaitTimeInSeconds"] = max(1, round(hours * 3600))
        request: dict[str, Any] = {
            "TrainingJobName": self.name,
            "RoleArn": options.role,
            "AlgorithmSpecification": {
                "TrainingImage": options.image,
                "TrainingInputMode": "File",
                "ContainerEntrypoint": list(ENTRY_POINT),
            },
            "HyperParameters": options.hyperparameters,
            "OutputDataConfig": {"S3OutputPath": str(self.place.below("jobs"))},
            "ResourceConfig": {
                "InstanceType": options.instance,
                "InstanceCount": options.instances,
                "VolumeSizeInGB": options.volume_gb,
            },
            "StoppingCondition": stopping,
            "EnableManagedSpotTraining": options.spot,
            "EnableNetworkIsolation": options.isolate,
            "Tags": tag_list(self.tags),
        }
        return request | self._of_data()

    def _of_data(self) -> dict[str, Any]:
        """Channels, checkpoints and network, as far as they are wanted."""
        options = self.options
        places = {**options.channels, **{name: str(place) for name, place in self.sent().items()}}
        more: dict[str, Any] = {}
        if places:
            more["InputDataConfig"] = [_channel(name, place) for name, place in places.items()]
        if self.checkpoints is not None:
            more["CheckpointConfig"] = {"S3Uri": self.checkpoints, "LocalPath": CHECKPOINTS}
        if options.subnet:
            more["VpcConfig"] = {
                "Subnets": list(options.subnet),
                "SecurityGroupIds": list(options.security_group),
            }
        return more

    def steps(self) -> list[Step]:
        """All of it in words."""
        options, found = self.options, []
        for name, place in self.sent().items():
            what = f"send {options.channels[name]} to {place}, as the channel {name}"
            found.append(Step(what, "storage in S3, until it is deleted"))
        given = json.dumps(options.hyperparameters)
        kind = "spot instance" if options.spot else "instance"
        longest = f"at most {options.max_hours:g} hours"
        found.append(
            Step(
                f"start the training job {self.name} with {given}",
                f"{options.instances} x {options.instance} as {kind}, with {options.volume_gb} GB "
                f"of disk, by the second, {longest}; storage in S3 of its model",
            )
        )
        if self.checkpoints is not None:
            cost = "storage in S3, until it is deleted"
            found.append(Step(f"keep checkpoints at {self.checkpoints}", cost))
        return found


def _channel(name: str, place: str) -> dict[str, Any]:
    match = FILE_SYSTEM.fullmatch(place)
    if match is not None:
        shared = {
            "FileSystemId": match[2],
            "FileSystemType": _FILE_SYSTEM_TYPES[match[1]],
            "FileSystemAccessMode": "rw",
            "DirectoryPath": match[3],
        }
        return {"ChannelName": name, "DataSource": {"FileSystemDataSource": shared}}
    source = {"S3DataType": "S3Prefix", "S3Uri": place, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def train(options: TrainingOptions, make_aws: Callable[..., Aws] = Aws) -> str | None:
    """Start a job, and wait for its end unless told otherwise.

    Ctrl-C leaves the job, which goes on, and says how to stop it.

    Returns:
        The S3 URI of its model, None where nobody waited.

    Raises:
        ArgumentError: an option cannot be used. XLNetFastError: the job failed; says why.
    """
    options.check()
    plan = JobPlan.now(options)
    say(printed(plan.steps(), f"Training job {plan.name}, {options.command}:"))
    if options.dry_run:
        say("Nothing was done: --dry-run.")
        return None
    aws = make_aws(options.region, options.profile)
    check_account(options.role, aws.account())
    check_image(options.image, aws.region)
    for bucket in dict.fromkeys(_buckets(plan)):
        s3_objects.check_bucket(aws, bucket)
    for name, place in plan.sent().items():
        _send(aws, Path(options.channels[name]).expanduser(), place, plan.tags)
    with telling(f"starting the training job {plan.name}"):
        aws.sagemaker.create_training_job(**plan.request())
    stop = f"xlnet-fast train stop {plan.name}"
    if not options.wait:
        say(f"started {plan.name}; to stop it: {stop}")
        return None
    try:
        return wait_for_job(aws, plan.name, minutes=_longest_minutes(options))
    except KeyboardInterrupt:
        say(f"{plan.name} goes on, and costs money until it ends; to stop it: {stop}")
        raise


def _buckets(plan: JobPlan) -> list[str]:
    """Where the job reads and writes."""
    places = [plan.options.s3, *plan.options.channels.values(), plan.checkpoints or ""]
    return [Place.of(place).bucket for place in places if place.startswith("s3://")]


def _longest_minutes(options: TrainingOptions) -> float:
    """After which SageMaker has ended the job, its start and the upload of the model included."""
    hours = options.max_hours
    if options.spot:
        hours = options.max_wait_hours or 2 * options.max_hours
    return hours * 60 + 120


def _send(aws: Aws, path: Path, place: Place, tags: Mapping[str, str]) -> None:
    files = list(s3_objects.files_below(path))
    say(f"sending {len(files)} files of {path} to {place}")
    for file, name in files:
        digest = s3_objects.sha256_of(file)
        if not s3_objects.is_there(aws, place.below(name), digest):
            s3_objects.upload(aws, file, place.below(name), tags, digest)


def wait_for_job(aws: Aws, name: str, minutes: float) -> str:
    """The S3 URI of a job's model, once it has ended.

    Raises:
        XLNetFastError: it failed or was stopped; says why.
    """
    described: dict[str, Any] = {}

    def state() -> str:
        with telling(f"asking for the training job {name}"):
            described.update(aws.sagemaker.describe_training_job(TrainingJobName=name))
        status, second = described["TrainingJobStatus"], described.get("SecondaryStatus", "")
        return status if status not in _PASSING or not second else f"{status} ({second})"

    ended = wait_for(
        f"the training job {name}",
        state,
        lambda one: one.split(" ")[0] in _PASSING,
        minutes=minutes,
    )
    model = (described.get("ModelArtifacts") or {}).get("S3ModelArtifacts", "")
    if ended != "Completed":
        why = str(described.get("FailureReason") or "no reason is given").rstrip(".")
        raise XLNetFastError(
            f"the training job {name} is {ended}: {why}; its log is in CloudWatch, "
            f"/aws/sagemaker/TrainingJobs, {name}"
        )
    return str(model)


def stop(aws: Aws, name: str) -> None:
    """Tell a job to end; it saves a checkpoint first, and SageMaker keeps what is there."""
    with telling(f"stopping the training job {name}"):
        aws.sagemaker.stop_training_job(TrainingJobName=name)
