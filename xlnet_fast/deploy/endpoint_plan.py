"""What a deployment will ask AWS for, and which parts of it cost money. Nothing here asks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xlnet_fast._version import __version__
from xlnet_fast.deploy.deployment import USUAL_TARGET, DeployOptions
from xlnet_fast.deploy.model_archive import ModelFolder
from xlnet_fast.deploy.s3_objects import Place

VARIANT = "main"
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
DEPLOYMENT_TAG = "xlnet-fast:deployment"
_POLICY = "xlnet-fast"
_BACKLOG = "ApproximateBacklogSizePerInstance"
_COOLDOWN_S = {"ScaleInCooldown": 300, "ScaleOutCooldown": 60}


def tags_of(name: str) -> dict[str, str]:
    """Of all that is made for a deployment or a job, which is found by them later."""
    return {
        DEPLOYMENT_TAG: name,
        "xlnet-fast:package": "xlnet-fast",
        "xlnet-fast:version": __version__,
    }


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """As SageMaker writes tags."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


@dataclass(frozen=True)
class Step:
    """Something that is done, and what it costs, or ""."""

    what: str
    cost: str = ""


def printed(steps: list[Step], title: str) -> str:
    """A plan, with the parts that cost money named as such."""
    lines = [title]
    for number, step in enumerate(steps, 1):
        lines.append(f"{number:3}. {step.what}")
        if step.cost:
            lines.append(f"     COSTS: {step.cost}")
    costs = sum(bool(step.cost) for step in steps)
    return "\n".join([*lines, f"{costs} of {len(steps)} steps cost money; the rest are free."])


@dataclass(frozen=True)
class Names:
    """Of what a deployment makes: models and endpoint configs cannot be changed, so each is new."""

    endpoint: str
    model: str
    config: str

    @classmethod
    def now(cls, name: str) -> Names:
        """Of this second."""
        dated = f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        return cls(name, dated, dated)


@dataclass(frozen=True)
class EndpointPlan:
    """The requests of one deployment.

    Attributes:
        options: checked. names: of what is made.
        model: what is packed; None where the archive is in S3 already.
    """

    options: DeployOptions
    names: Names
    model: ModelFolder | None

    @property
    def archive(self) -> Place:
        """Where the model lies; the same files go to the same place."""
        if self.model is None:
            return Place.of(self.options.model)
        digest = self.model.digest[:16]
        return Place.of(self.options.s3).below(self.options.name, digest, "model.tar.gz")

    @property
    def tags(self) -> dict[str, str]:
        """Of all that is made."""
        return tags_of(self.options.name)

    def model_request(self) -> dict[str, Any]:
        """Of ``CreateModel``."""
        options = self.options
        request: dict[str, Any] = {
            "ModelName": self.names.model,
            "ExecutionRoleArn": options.role,
            "PrimaryContainer": {
                "Image": options.image,
                "ModelDataUrl": str(self.archive),
                "Environment": options.variables,
            },
            "Tags": tag_list(self.tags),
        }
        if options.isolate:
            request["EnableNetworkIsolation"] = True
        if options.subnet:
            request["VpcConfig"] = {
                "Subnets": list(options.subnet),
                "SecurityGroupIds": list(options.security_group),
            }
        return request

    def config_request(self) -> dict[str, Any]:
        """Of ``CreateEndpointConfig``."""
        options = self.options
        variant: dict[str, Any] = {"VariantName": VARIANT, "ModelName": self.names.model}
        if options.serverless:
            variant["ServerlessConfig"] = {
                "MemorySizeInMB": options.memory_mb or 4096,
                "MaxConcurrency": options.max_concurrency or 5,
            }
        else:
            variant |= {
                "InstanceType": options.instance,
                "InitialInstanceCount": options.instances,
                "InitialVariantWeight": 1.0,
            }
        request: dict[str, Any] = {
            "EndpointConfigName": self.names.config,
            "ProductionVariants": [variant],
            "Tags": tag_list(self.tags),
        }
        if options.async_output is not None:
            place = {"S3OutputPath": options.async_output}
            request["AsyncInferenceConfig"] = {"OutputConfig": place}
        return request

    def create_request(self) -> dict[str, Any]:
        """Of ``CreateEndpoint``."""
        return {
            "EndpointName": self.names.endpoint,
            "EndpointConfigName": self.names.config,
            "Tags": tag_list(self.tags),
        }

    def update_request(self, running: int, scales: bool) -> dict[str, Any]:
        """Of ``UpdateEndpoint``.

        Args:
            running: instances that the endpoint has. scales: by itself, so their number stays.
        """
        request: dict[str, Any] = {
            "EndpointName": self.names.endpoint,
            "EndpointConfigName": self.names.config,
            "RetainAllVariantProperties": scales,
        }
        # A step takes at most half of the instances; of fewer than two, all are replaced at once,
        # which is SageMaker's own way: the new one takes over when it is healthy.
        if self.options.kind != "serverless" and running >= 2:
            half = {"Type": "CAPACITY_PERCENT", "Value": 50}
            request["DeploymentConfig"] = {
                "RollingUpdatePolicy": {"MaximumBatchSize": half, "WaitIntervalInSeconds": 60}
            }
        return request

    def target_request(self) -> dict[str, Any]:
        """Of ``RegisterScalableTarget``."""
        assert self.options.bounds is not None
        least, most = self.options.bounds
        return {
            **scaled(self.names.endpoint),
            "MinCapacity": least,
            "MaxCapacity": most,
            "Tags": self.tags,
        }

    def policy_request(self) -> dict[str, Any]:
        """Of ``PutScalingPolicy``: by requests a minute, or by the queue of asynchronous ones."""
        kind = self.options.kind
        tracking: dict[str, Any] = {
            "TargetValue": float(self.options.target or USUAL_TARGET[kind]), **_COOLDOWN_S
        }  # fmt: skip
        if kind == "asynchronous":
            tracking["CustomizedMetricSpecification"] = {
                "MetricName": _BACKLOG,
                "Namespace": "AWS/SageMaker",
                "Dimensions": [{"Name": "EndpointName", "Value": self.names.endpoint}],
                "Statistic": "Average",
            }
        else:
            metric = "SageMakerVariantInvocationsPerInstance"
            tracking["PredefinedMetricSpecification"] = {"PredefinedMetricType": metric}
        return {
            **scaled(self.names.endpoint),
            "PolicyName": _POLICY,
            "PolicyType": "TargetTrackingScaling",
            "TargetTrackingScalingPolicyConfiguration": tracking,
        }

    def steps(self) -> list[Step]:
        """All of it in words."""
        options, found = self.options, []
        if self.model is None:
            found.append(Step(f"take {options.model} as it is; what is in it is not looked at"))
        else:
            found += self._of_the_archive(self.model)
        variables = "".join(f", {name}" for name in options.variables)
        found.append(Step(f"create the model {self.names.model}: {options.image}{variables}"))
        found.append(Step(f"create the endpoint config {self.names.config}"))
        found.append(
            Step(
                f"create the {options.kind} endpoint {self.names.endpoint}, or update it where it "
                f"is there, and wait up to {options.wait_minutes:g} minutes",
                self._of_running(),
            )
        )
        if options.check_answer and (self.model is not None or options.check_input is not None):
            asked = options.check_input or "a sentence"
            found.append(Step(f"ask it once, with {asked}", "one request"))
        if options.bounds is not None:
            found.append(Step(*self._of_scaling(*options.bounds)))
        return found

    def _of_the_archive(self, model: ModelFolder) -> list[Step]:
        left = f"; left out: {', '.join(model.left_out)}" if model.left_out else ""
        size = f"{model.size_bytes / 2**20:,.1f} MiB"
        return [
            Step(f"pack {len(model.files)} files ({size}) of {model.folder}{left}"),
            Step(
                f"send the archive to {self.archive}, unless it is there",
                f"storage in S3 of up to {size}, until it is deleted",
            ),
        ]

    def _of_running(self) -> str:
        options = self.options
        if options.serverless:
            return "each request, by its duration and memory; nothing while there are none"
        count = f"{options.instances} x {options.instance}"
        also = ", and files in S3" if options.kind == "asynchronous" else ""
        return f"{count}, by the second, used or not, until the endpoint is deleted{also}"

    def _of_scaling(self, least: int, most: int) -> tuple[str, str]:
        what = f"let it scale from {least} to {most} instances"
        return what, f"up to {most} x {self.options.instance}, and alarms of CloudWatch"


def scaled(endpoint: str) -> dict[str, str]:
    """What scales, as application-autoscaling names it."""
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/{VARIANT}",
        "ScalableDimension": DIMENSION,
    }
