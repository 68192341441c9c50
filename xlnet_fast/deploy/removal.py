"""Taking a deployment back later: what bears its tags, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from xlnet_fast.deploy import found, s3_objects
from xlnet_fast.deploy.aws_clients import Aws
from xlnet_fast.deploy.aws_errors import AwsError
from xlnet_fast.deploy.endpoint import (
    delete_config,
    delete_endpoint,
    delete_model,
    delete_scaling,
)
from xlnet_fast.deploy.endpoint_plan import DEPLOYMENT_TAG
from xlnet_fast.deploy.patience import say
from xlnet_fast.deploy.s3_objects import Place
from xlnet_fast.errors import ArgumentError, XLNetFastError


@dataclass(frozen=True)
class Item:
    """Something to delete: its name and how."""

    what: str
    delete: Callable[[], None]


def items_of(aws: Aws, name: str, keep_archives: bool = False) -> list[Item]:
    """All that a deployment has left, in the order in which it can be deleted.

    Raises:
        ArgumentError: there is nothing, or an endpoint of that name is not ours.
    """
    there = found.endpoint(aws, name)
    if there is not None and found.deployment_of(aws, there["EndpointArn"]) != name:
        raise ArgumentError(f"the endpoint {name} was not made by xlnet-fast deploy; it stays")
    items = []
    if there is not None:
        if found.scaling(aws, name) is not None:
            items.append(Item(f"the scaling of {name}", partial(delete_scaling, aws, name)))
        items.append(Item(f"the endpoint {name}", partial(delete_endpoint, aws, name)))
    for config in found.ours(aws, "endpoint config", name):
        items.append(Item(f"the endpoint config {config}", partial(delete_config, aws, config)))
    archives: dict[str, None] = {}
    for model in found.ours(aws, "model", name):
        archives |= dict.fromkeys(found.archives_of(aws, model))
        items.append(Item(f"the model {model}", partial(delete_model, aws, model)))
    if not keep_archives:
        items += _archives(aws, name, archives)
    if not items:
        raise ArgumentError(
            f"there is nothing of a deployment {name} in {aws.region}; xlnet-fast deploy list "
            "shows what there is"
        )
    return items


def _archives(aws: Aws, name: str, used: dict[str, None]) -> list[Item]:
    """The archives of models that are there, and those of earlier versions beside them."""
    places: dict[Place, None] = {}
    for uri in used:
        place = Place.of(uri)
        if not _is_ours(aws, place, name):
            continue
        places[place] = None
        # PREFIX/NAME/DIGEST/model.tar.gz
        parent = Place(place.bucket, place.key.rsplit("/", 2)[0] + "/")
        for other in s3_objects.below(aws, parent):
            if other not in places and _is_ours(aws, other, name):
                places[other] = None
    return [
        Item(f"the archive {place}", partial(s3_objects.delete, aws, place)) for place in places
    ]


def _is_ours(aws: Aws, place: Place, name: str) -> bool:
    try:
        return s3_objects.tags_of(aws, place).get(DEPLOYMENT_TAG) == name
    except AwsError as error:
        if not error.not_found:
            say(f"warning: {error}; it stays")
        return False


def remove(items: list[Item]) -> None:
    """Delete each; one that is gone is as good.

    Raises:
        XLNetFastError: some are still there; says which, and why.
    """
    left = []
    for item in items:
        try:
            item.delete()
        except AwsError as error:
            if not error.not_found:
                left.append(f"{item.what} ({error})")
                continue
        except XLNetFastError as error:
            left.append(f"{item.what} ({error})")
            continue
        say(f"deleted {item.what}")
    if left:
        raise XLNetFastError(f"{len(left)} of {len(items)} are still there: {'; '.join(left)}")
