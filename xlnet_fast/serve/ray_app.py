"""The service on many machines, under Ray Serve, which starts, scales and replaces its replicas.

serve run xlnet_fast.serve.ray_app:application models=/models max_replicas=8
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from xlnet_fast.errors import ArgumentError
from xlnet_fast.serve.app import create_app
from xlnet_fast.serve.options import ServeOptions


class RayArguments(BaseModel):
    """What ``serve run`` takes as NAME=VALUE, and a config file of Ray Serve as ``args``.

    Attributes:
        models: a model or a folder of models, at the same path on every machine.
        options: more of ``xlnet-fast serve``, by their names with underscores.
        min_replicas, max_replicas: processes, each with the models.
        target_requests: that a replica answers at once, before another one is started.
        most_requests: that a replica answers at once, at most; others wait.
        queued_requests: that wait at each of Ray's doors, before they are refused with 503.
        cpus, gpus: of a machine, for each replica.
    """

    model_config = ConfigDict(extra="forbid")
    models: str
    options: dict[str, Any] = Field(default_factory=dict)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    target_requests: float = Field(16, gt=0)
    most_requests: int = Field(64, ge=1)
    queued_requests: int = Field(256, ge=1)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)


def application(args: RayArguments) -> serve.Application:
    """The service as an application of Ray Serve.

    Raises:
        ArgumentError: an option that cannot be used.
    """
    options = _options(args)

    def build() -> FastAPI:
        return create_app(options)

    @serve.deployment(
        name="xlnet-fast",
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": args.target_requests,
        },
        max_ongoing_requests=args.most_requests,
        max_queued_requests=args.queued_requests,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        graceful_shutdown_timeout_s=options.drain + 5,
    )
    @serve.ingress(build)  # built in each replica: a model cannot be sent from one to another
    class Replica:
        """A process with the models; the application loads them before it is asked."""

    deployment: Any = Replica
    return deployment.bind()


def _options(args: RayArguments) -> ServeOptions:
    """Checked here, on one machine, before it fails on all of them."""
    unknown = args.options.keys() - ServeOptions.__dataclass_fields__.keys()
    if unknown:
        raise ArgumentError(f"options: xlnet-fast serve has no {', '.join(sorted(unknown))}")
    if args.max_replicas < args.min_replicas:
        raise ArgumentError(
            f"max_replicas is {args.max_replicas}, expected at least min_replicas, "
            f"{args.min_replicas}"
        )
    given = dict(args.options)
    for name in ("tokens_file", "load_from"):
        if given.get(name) is not None:
            given[name] = Path(given[name])
    # A process takes the cores that Ray has promised it, and no more.
    threads = max(1, math.floor(args.cpus))
    options = ServeOptions(**{"threads": threads, **given, "models": args.models})
    options.check()
    return options
