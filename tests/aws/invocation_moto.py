"""Questions to endpoints: at once, by way of S3, and as a stream of real bytes."""

from __future__ import annotations

import binascii
import io
import struct

import deployable
import pytest
from botocore.awsrequest import AWSResponse
from botocore.stub import Stubber
from command_line import refused, run
from moto.sagemakerruntime.models import sagemakerruntime_backends

from xlnet_fast import cli
from xlnet_fast.cli import deploy as deploy_command
from xlnet_fast.deploy import invocation
from xlnet_fast.deploy.endpoint import deploy
from xlnet_fast.deploy.invocation import Question
from xlnet_fast.deploy.s3_objects import Place
from xlnet_fast.errors import XLNetFastError

QUESTION = Question(b'{"instances": [{"text": "x"}]}')
ANSWERS = Place(deployable.BUCKET, "answers")


def message(payload: bytes, **headers: str) -> bytes:
    """One message of AWS' event streams."""
    packed = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value))
        + value.encode()
        for name, value in headers.items()
    )  # fmt: skip
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    body = prelude + struct.pack("!I", binascii.crc32(prelude)) + packed + payload
    return body + struct.pack("!I", binascii.crc32(body))


def part(text: str) -> bytes:
    return message(text.encode(), **{":message-type": "event", ":event-type": "PayloadPart"})


def streams(cloud, *messages: bytes) -> None:
    """Answer with these messages as they come over the wire."""

    class Raw(io.BytesIO):
        def stream(self, amount=1024, decode_content=None):
            while chunk := self.read(7):  # no message arrives whole
                yield chunk

    def send(request, **_):
        headers = {"Content-Type": "application/vnd.amazon.eventstream"}
        return AWSResponse(request.url, 200, headers, Raw(b"".join(messages)))

    cloud.aws.runtime.meta.events.register("before-send.*.InvokeEndpointWithResponseStream", send)


def test_a_stream_arrives_part_by_part(cloud):
    streams(cloud, part("Once "), part("upon "), part("a time"))
    parts = list(invocation.ask_in_parts(cloud.aws, "reviews", QUESTION))
    assert parts == [b"Once ", b"upon ", b"a time"]
    (asked,) = cloud.asked_for("InvokeEndpointWithResponseStream")
    assert (asked["Body"], asked["ContentType"]) == (QUESTION.body, "application/json")


def test_a_model_that_fails_in_the_middle_of_a_stream(cloud):
    failed = message(
        b'{"Message": "out of memory", "ErrorCode": "ModelStreamError"}',
        **{":message-type": "exception", ":exception-type": "ModelStreamError"},
    )
    streams(cloud, part("Once "), failed)
    parts = invocation.ask_in_parts(cloud.aws, "reviews", QUESTION)
    assert next(parts) == b"Once "
    with pytest.raises(XLNetFastError, match="out of memory"):
        next(parts)


def test_an_endpoint_that_cannot_stream(cloud):
    with Stubber(cloud.aws.runtime) as stubber:
        stubber.add_client_error(
            "invoke_endpoint_with_response_stream", "ModelError", "Received 400", 424
        )
        with pytest.raises(XLNetFastError, match="the container's log says why"):
            list(invocation.ask_in_parts(cloud.aws, "reviews", QUESTION))


def test_an_asynchronous_failure_is_told_in_the_model_s_words(cloud):
    backend = sagemakerruntime_backends[deployable.ACCOUNT][deployable.REGION]
    backend.async_results_queue.append((True, "the text is\ntoo long"))
    with pytest.raises(XLNetFastError, match="could not answer: the text is too long"):
        invocation.ask_later(cloud.aws, "reviews", QUESTION, ANSWERS)
    assert cloud.objects() == []


def test_an_asynchronous_answer_that_does_not_come_in_time(cloud):
    cloud.s3.create_bucket(
        Bucket="else", CreateBucketConfiguration={"LocationConstraint": deployable.REGION}
    )
    with Stubber(cloud.aws.runtime) as stubber:
        places = {"OutputLocation": "s3://else/a.out", "FailureLocation": "s3://else/a.err"}
        stubber.add_response("invoke_endpoint_async", places)
        with pytest.raises(XLNetFastError, match="still Waiting after"):
            invocation.ask_later(cloud.aws, "reviews", QUESTION, ANSWERS, minutes=0.0005)
    assert cloud.objects() == []


def test_the_commands_ask_list_and_delete(cloud, folder, tmp_path):
    deploy(deployable.deployment(folder), cloud.make)
    file = tmp_path / "input.json"
    file.write_bytes(QUESTION.body)
    asked = run("deploy", "invoke", "reviews", "--input", file)
    assert (asked.exit_code, asked.stdout) == (0, "body\n"), asked.output
    written = run("deploy", "invoke", "reviews", "--input", file, "--output", tmp_path / "out")
    assert written.exit_code == 0
    assert (tmp_path / "out").read_text() == "body"
    listed = run("deploy", "list")
    assert listed.stdout == "reviews\tInService\n"
    assert "give --yes" in refused(run("deploy", "delete", "reviews")).replace("\n", " ")
    assert run("deploy", "delete", "reviews", "--dry-run").exit_code == 0
    assert cloud.names("endpoint") == ["reviews"]
    assert run("deploy", "delete", "reviews", "--yes").exit_code == 0
    assert cloud.is_empty()
    assert "there is nothing of a deployment" in refused(run("deploy", "delete", "reviews"))


def test_the_command_asks_asynchronous_endpoints_too(cloud, folder, tmp_path):
    deploy(deployable.deployment(folder, async_output=f"s3://{deployable.BUCKET}/a"), cloud.make)
    file = tmp_path / "input.csv"
    file.write_text("text\nx\n")
    asked = run("deploy", "invoke", "reviews", "--input", file)
    assert asked.stdout == '{"default": "response"}\n'
    streamed = run("deploy", "invoke", "reviews", "--input", file, "--stream")
    assert "cannot stream" in refused(streamed)


def test_the_command_streams(cloud, folder, tmp_path, monkeypatch):
    deploy(deployable.deployment(folder), cloud.make)
    monkeypatch.setattr(deploy_command, "Aws", cloud.make)
    streams(cloud, part("Once "), part("upon"))
    file = tmp_path / "input.txt"
    file.write_text("Once")
    asked = run("deploy", "invoke", "reviews", "--input", file, "--stream")
    assert asked.stdout == "Once upon"
    (request,) = cloud.asked_for("InvokeEndpointWithResponseStream")
    assert (request["ContentType"], request["Accept"]) == ("text/plain", "text/event-stream")


def test_an_endpoint_that_is_not_there(cloud, tmp_path):
    file = tmp_path / "input.json"
    file.write_bytes(QUESTION.body)
    result = run("deploy", "invoke", "absent", "--input", file)
    assert "check the name and the region" in refused(result)
    assert result.exit_code == cli.BAD_INPUT
