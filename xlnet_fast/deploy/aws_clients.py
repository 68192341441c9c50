"""Clients of AWS' services, made by boto3, and who they speak for."""

from __future__ import annotations

import functools
from typing import Any

from xlnet_fast.deploy.aws_errors import telling
from xlnet_fast.errors import ArgumentError

# Retries are botocore's: more of them where AWS says that it is asked too often.
_RETRIES = {"mode": "adaptive", "max_attempts": 8}


class Aws:
    """The services of one region, for one identity.

    Attributes:
        region: where everything is made.
    """

    def __init__(self, region: str | None = None, profile: str | None = None) -> None:
        """Of the environment and of ~/.aws, unless named.

        Raises:
            ArgumentError: boto3 is not installed.
            AwsError: there is no such profile, or no region.
        """
        try:
            import boto3
        except ImportError as error:
            raise ArgumentError(
                "SageMaker is spoken to by boto3, which is not installed: pip install boto3"
            ) from error
        with telling("reading the settings of AWS"):
            self._session = boto3.Session(profile_name=profile, region_name=region)
            # It names the region's absence in its own words.
            self.region: str = self.sagemaker.meta.region_name

    def _client(self, service: str, **settings: Any) -> Any:
        from botocore.config import Config

        with telling("reading the settings of AWS"):
            return self._session.client(service, config=Config(retries=_RETRIES, **settings))

    @functools.cached_property
    def sagemaker(self) -> Any:
        """Models, endpoints and jobs."""
        return self._client("sagemaker")

    @functools.cached_property
    def runtime(self) -> Any:
        """Requests to endpoints; an answer takes a minute at most, and eight while it streams."""
        return self._client("sagemaker-runtime", read_timeout=480)

    @functools.cached_property
    def s3(self) -> Any:
        """Files."""
        return self._client("s3")

    @functools.cached_property
    def scaling(self) -> Any:
        """Numbers of instances."""
        return self._client("application-autoscaling")

    def account(self) -> str:
        """The number of the account that the credentials are of.

        Raises:
            AwsError: there are none, or they are not valid.
        """
        with telling("asking AWS who this is"):
            return str(self._client("sts").get_caller_identity()["Account"])
