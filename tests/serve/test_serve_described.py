"""What the service says of itself in OpenAPI, and of bodies that it cannot read."""

from __future__ import annotations

import json
import re

import pytest
from served import classifier, options, run

PREDICT = "/v1/models/tiny:predict"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("described") / "tiny")


def error(response, status, kind):
    """The message of a refusal of this status and kind."""
    assert response.status_code == status, response.text
    assert response.json()["error"]["type"] == kind
    return response.json()["error"]["message"]


UNREAD = [
    (b"\x1f\x8b\x08\xff", "application/json", "the body is no UTF-8 from its byte 1"),
    (b'{"record": ' + b"1" * 5000 + b"}", "application/json", "a number of thousands of digits"),
    (b'{"a"', "application/json", "the body is no JSON: Expecting ':' delimiter at character 4"),
    (b'{"record": "a"}', "text/plain", "Content-Type is text/plain, expected application/json"),
    (b'{"record": "a"}', "", "Content-Type is missing, expected application/json"),
    (b'{"record": "a", "timeout_s": true}', "application/json", "timeout_s: Input should be"),
    (b'{"record": "a", "timeout_s": "5"}', "application/json", "timeout_s: Input should be"),
]


def test_what_cannot_be_read_is_refused_in_words(folder):
    async def work(service, client):
        for content, kind, words in UNREAD:
            headers = {"content-type": kind} if kind else {}
            response = await client.post(PREDICT, content=content, headers=headers)
            assert words in error(response, 400, "ArgumentError")
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        packed = await client.post(PREDICT, content=b"{}", headers=headers)
        assert "'gzip', expected the body as it is" in error(packed, 415, "Encoded")
        right = await client.post(PREDICT, json={"record": "a", "timeout_s": 5})
        assert right.status_code == 200

    run(options(folder), work)


def test_health_is_told_to_those_who_ask_for_its_head(folder):
    async def work(service, client):
        for path in ("/healthz", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready"):
            assert (await client.head(path)).status_code == 200, path

    run(options(folder), work)


def test_every_status_is_described_and_no_other_is_by_itself(folder):
    async def work(service, client):
        schema = (await client.get("/openapi.json")).json()
        told = {
            f"{method} {path}": set(one["responses"])
            for path, methods in schema["paths"].items()
            for method, one in methods.items()
        }
        assert not [route for route, statuses in told.items() if "422" in statuses]
        asking = {"200", "400", "401", "404", "408", "413", "415", "429", "500", "503", "504"}
        for route in (
            "post /v1/models/{name}:predict", "post /v2/models/{name}/infer",
            "post /v1/embeddings", "post /v1/completions",
        ):  # fmt: skip
            assert told[route] == asking
        assert told["post /invocations"] == asking | {"406"}
        assert told["post /models"] == asking | {"409", "507"}
        assert told["get /ping"] == {"200", "503"}
        assert "404" in told["get /v2/models/{name}"]
        assert "content" not in schema["paths"]["/ping"]["get"]["responses"]["200"]
        names = set(schema["components"]["schemas"])
        assert "HTTPValidationError" not in names
        used = set(re.findall("#/components/schemas/([A-Za-z]+)", json.dumps(schema)))
        assert used == names  # no reference leads nowhere, nothing is described for nobody

    run(options(folder, load_from=folder.parent), work)
