"""An AWS in this process, by moto, with hooks for what it lacks.

boto3 and moto are imported by who asks for it: every run of tests meets this file, and `make aws`
alone has them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deployable
import pytest

from xlnet_fast.deploy import patience
from xlnet_fast.deploy.aws_clients import Aws

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))  # command_line


class Cloud:
    """The mocked AWS: clients to look into it, and how it misbehaves.

    Attributes:
        calls: (operation, parameters) of every call that was made through ``aws``.
    """

    def __init__(self) -> None:
        import boto3

        self.s3 = boto3.client("s3", region_name=deployable.REGION)
        self.sagemaker = boto3.client("sagemaker", region_name=deployable.REGION)
        self.aws = Aws(deployable.REGION)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        for client in (self.aws.sagemaker, self.aws.s3, self.aws.scaling, self.aws.runtime):
            client.meta.events.register("before-parameter-build.*.*", self._note)

    def _note(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        self.calls.append((model.name, dict(params)))

    def asked_for(self, operation: str) -> list[dict[str, Any]]:
        """The parameters of each call of an operation."""
        return [params for name, params in self.calls if name == operation]

    def make(self, region: str | None = None, profile: str | None = None) -> Aws:
        """In place of the class ``Aws``."""
        return self.aws

    def answers(self, client: Any, operation: str, answer: Callable[[], Any]) -> None:
        """Answer an operation here: with a dictionary, or with what it raises."""

        def handle(**_: Any) -> Any:
            found = answer()
            return None if found is None else (_Http(), found)

        client.meta.events.register(f"before-call.*.{operation}", handle)

    def refuses(self, client: Any, operation: str, code: str, message: str) -> None:
        """Answer an operation with an error."""
        error = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {}}
        client.meta.events.register(f"before-call.*.{operation}", lambda **_: (_Http(400), error))

    def describes(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change what is said of an endpoint."""
        client = self.aws.sagemaker
        client.meta.events.register(
            "after-call.sagemaker.DescribeEndpoint", lambda parsed, **_: change(parsed)
        )

    def names(self, kind: str) -> list[str]:
        """Of what is there: models, endpoint configs or endpoints."""
        operation, items, key = {
            "model": ("list_models", "Models", "ModelName"),
            "config": ("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName"),
            "endpoint": ("list_endpoints", "Endpoints", "EndpointName"),
        }[kind]
        return [item[key] for item in getattr(self.sagemaker, operation)()[items]]

    def objects(self) -> list[str]:
        """The keys of the bucket."""
        found = self.s3.list_objects_v2(Bucket=deployable.BUCKET)
        return [item["Key"] for item in found.get("Contents", ())]

    def is_empty(self) -> bool:
        """Whether nothing of a deployment is there."""
        kinds = ("model", "config", "endpoint")
        return not self.objects() and not any(self.names(kind) for kind in kinds)


class _Http:
    def __init__(self, status: int = 200) -> None:
        self.status_code = status
        self.headers: dict[str, str] = {}


@pytest.fixture(scope="session")
def descriptions() -> Any:
    """What botocore knows of the services: megabytes, read once for all tests."""
    import botocore.session

    return botocore.session.get_session().get_component("data_loader")


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, descriptions: Any) -> Iterator[Cloud]:
    """An account with one bucket."""
    import botocore.session
    from moto import mock_aws

    def described(session: Any) -> None:
        session._components.lazy_register_component("data_loader", lambda: descriptions)

    register = "_register_data_loader"
    monkeypatch.setattr(botocore.session.Session, register, described)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", deployable.REGION)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setattr(patience, "INTERVAL_S", 0.001)
    with mock_aws():
        made = Cloud()
        made.s3.create_bucket(
            Bucket=deployable.BUCKET,
            CreateBucketConfiguration={"LocationConstraint": deployable.REGION},
        )
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that can be deployed."""
    return deployable.model(tmp_path / "model")
