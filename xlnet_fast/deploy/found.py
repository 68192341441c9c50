"""What a deployment has left at SageMaker, found by its name and its tags."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xlnet_fast.deploy.aws_clients import Aws
from xlnet_fast.deploy.aws_errors import AwsError, telling
from xlnet_fast.deploy.endpoint_plan import DEPLOYMENT_TAG, scaled

_LISTS = {
    "endpoint": ("list_endpoints", "Endpoints", "EndpointName", "EndpointArn"),
    "endpoint config": (
        "list_endpoint_configs", "EndpointConfigs", "EndpointConfigName", "EndpointConfigArn",
    ),
    "model": ("list_models", "Models", "ModelName", "ModelArn"),
}  # fmt: skip


def endpoint(aws: Aws, name: str) -> dict[str, Any] | None:
    """The description of an endpoint, None if there is none."""
    try:
        with telling(f"looking for the endpoint {name}"):
            return dict(aws.sagemaker.describe_endpoint(EndpointName=name))
    except AwsError as error:
        if error.not_found:
            return None
        raise


def status(aws: Aws, name: str) -> str:
    """The status of an endpoint, ``Gone`` if there is none."""
    found = endpoint(aws, name)
    return "Gone" if found is None else str(found["EndpointStatus"])


def deployment_of(aws: Aws, arn: str) -> str | None:
    """The deployment that something was made for by us, None if it was not."""
    with telling(f"reading the tags of {arn}"):
        pages = aws.sagemaker.get_paginator("list_tags").paginate(ResourceArn=arn)
        tags = {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}
    return tags.get(DEPLOYMENT_TAG)


def ours(aws: Aws, kind: str, name: str) -> list[str]:
    """Names of a deployment's endpoints, endpoint configs or models."""
    return [found for found, deployment in all_of(aws, kind, name) if deployment == name]


def all_of(aws: Aws, kind: str, part: str | None = None) -> Iterator[tuple[str, str]]:
    """Names of what deployments of ours have made, with the deployment.

    Args:
        part: of the names.
    """
    operation, items, key, arn = _LISTS[kind]
    with telling(f"listing each {kind}"):
        wanted = {} if part is None else {"NameContains": part}
        pages = aws.sagemaker.get_paginator(operation).paginate(**wanted)
        listed = [item for page in pages for item in page[items]]
    for item in listed:
        if part is not None and not item[key].startswith(part):
            continue
        deployment = deployment_of(aws, item[arn])
        if deployment is not None:
            yield item[key], deployment


def scaling(aws: Aws, name: str) -> dict[str, Any] | None:
    """How an endpoint scales, None if it does not."""
    place = scaled(name)
    with telling(f"asking how {name} scales"):
        found = aws.scaling.describe_scalable_targets(
            ServiceNamespace=place["ServiceNamespace"],
            ResourceIds=[place["ResourceId"]],
            ScalableDimension=place["ScalableDimension"],
        )["ScalableTargets"]
    return found[0] if found else None


def models_of(aws: Aws, config: str) -> list[str]:
    """Names of the models that an endpoint config has; none if it is gone."""
    try:
        with telling(f"reading the endpoint config {config}"):
            found = aws.sagemaker.describe_endpoint_config(EndpointConfigName=config)
    except AwsError as error:
        if error.not_found:
            return []
        raise
    return [variant["ModelName"] for variant in found["ProductionVariants"]]


def archives_of(aws: Aws, model: str) -> list[str]:
    """The S3 URIs of the archives that a model loads; none if it is gone."""
    try:
        with telling(f"reading the model {model}"):
            found = aws.sagemaker.describe_model(ModelName=model)
    except AwsError as error:
        if error.not_found:
            return []
        raise
    containers = [found.get("PrimaryContainer") or {}, *(found.get("Containers") or [])]
    return [one["ModelDataUrl"] for one in containers if one.get("ModelDataUrl")]
