"""Questions to an endpoint: at once, as a stream, or by way of S3."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlnet_fast.deploy import s3_objects
from xlnet_fast.deploy.aws_clients import Aws
from xlnet_fast.deploy.aws_errors import AwsError, telling
from xlnet_fast.deploy.patience import wait_for
from xlnet_fast.deploy.s3_objects import Place
from xlnet_fast.errors import ArgumentError, XLNetFastError

JSON = "application/json"
EVENTS = "text/event-stream"
TYPES = {
    ".json": JSON,
    ".jsonl": "application/jsonlines",
    ".ndjson": "application/jsonlines",
    ".csv": "text/csv",
    ".txt": "text/plain",
}
_SENTENCE = "A fine film, and well played."
_RECORDS: dict[str, dict[str, Any]] = {
    "XLNetForSequenceClassification": {"text": _SENTENCE},
    "XLNetForTokenClassification": {"text": _SENTENCE},
    "XLNetForQuestionAnswering": {"question": "What is fine?", "context": _SENTENCE},
    "XLNetForQuestionAnsweringSimple": {"question": "What is fine?", "context": _SENTENCE},
    "XLNetForMultipleChoice": {"passage": _SENTENCE, "choices": ["It was good.", "It was bad."]},
    "XLNetModel": {"text": _SENTENCE},
    "XLNetLMHeadModel": {"text": _SENTENCE},
}
_ASYNC_MINUTES = 15.0  # as long as SageMaker works on one at most, unless told


@dataclass(frozen=True)
class Question:
    """A request's body.

    Attributes:
        body: bytes. content_type: what they are. accept: what the answer is to be.
    """

    body: bytes
    content_type: str = JSON
    accept: str = JSON

    @classmethod
    def of(cls, file: Path, content_type: str | None = None, accept: str | None = None) -> Question:
        """A file's bytes; its suffix tells what they are.

        Raises:
            ArgumentError: it cannot be read, is empty, or its suffix tells nothing.
        """
        kind = content_type or TYPES.get(file.suffix.lower())
        if kind is None:
            known = ", ".join(TYPES)
            raise ArgumentError(f"{file} is none of {known}: give --content-type")
        try:
            body = file.read_bytes()
        except OSError as error:
            raise ArgumentError(f"{file} cannot be read: {error.strerror}") from error
        if not body.strip():
            raise ArgumentError(f"{file} is empty")
        return cls(body, kind, accept or JSON)


def question_for(architecture: str) -> Question:
    """A record that a model of that class answers."""
    record = _RECORDS.get(architecture)
    if record is None:
        raise ArgumentError(f"no question is known for a {architecture}: give --check-input FILE")
    return Question(json.dumps({"instances": [record]}).encode())


def ask(aws: Aws, endpoint: str, question: Question, async_output: str | None) -> bytes:
    """The answer, whichever way the endpoint takes questions."""
    if async_output is not None:
        return ask_later(aws, endpoint, question, Place.of(async_output))
    with telling(f"asking the endpoint {endpoint}"):
        return bytes(
            aws.runtime.invoke_endpoint(EndpointName=endpoint, **_sent(question))["Body"].read()
        )


def _sent(question: Question) -> dict[str, Any]:
    return {
        "Body": question.body, "ContentType": question.content_type, "Accept": question.accept
    }  # fmt: skip


def ask_in_parts(aws: Aws, endpoint: str, question: Question) -> Iterator[bytes]:
    """The answer as it is written.

    Raises:
        AwsError: the endpoint refuses. XLNetFastError: the model fails in the middle.
    """
    doing = f"asking the endpoint {endpoint}"
    with telling(doing):
        events = aws.runtime.invoke_endpoint_with_response_stream(
            EndpointName=endpoint, **_sent(question)
        )["Body"]
        for event in events:
            if "PayloadPart" in event:
                yield event["PayloadPart"]["Bytes"]
            else:
                name, what = next(iter(event.items()))
                raise XLNetFastError(f"{doing} failed: {what.get('Message', name)} ({name})")


def ask_later(
    aws: Aws, endpoint: str, question: Question, place: Place, minutes: float = _ASYNC_MINUTES
) -> bytes:
    """The answer of an asynchronous endpoint; the question lies in S3 as long as it is open.

    Raises:
        AwsError: AWS refuses. XLNetFastError: the model could not answer, or not in time.
    """
    doing = f"asking the endpoint {endpoint}"
    asked = place.below("questions", uuid.uuid4().hex)
    with telling(doing):
        aws.s3.put_object(
            Bucket=asked.bucket,
            Key=asked.key,
            Body=question.body,
            ContentType=question.content_type,
            ChecksumAlgorithm="SHA256",
        )
    try:
        with telling(doing):
            going = aws.runtime.invoke_endpoint_async(
                EndpointName=endpoint,
                InputLocation=str(asked),
                ContentType=question.content_type,
                Accept=question.accept,
            )
        return _answer(aws, endpoint, going, minutes)
    finally:
        s3_objects.delete(aws, asked)


def _answer(aws: Aws, endpoint: str, going: dict[str, Any], minutes: float) -> bytes:
    answer = Place.of(going["OutputLocation"])
    failure = Place.of(going["FailureLocation"]) if going.get("FailureLocation") else None

    def state() -> str:
        if _is_there(aws, answer):
            return "Answered"
        return "Failed" if failure is not None and _is_there(aws, failure) else "Waiting"

    if wait_for(f"the answer at {answer}", state, "Waiting".__eq__, minutes=minutes) == "Answered":
        return s3_objects.read(aws, answer, f"reading the answer of {endpoint}")
    assert failure is not None
    why = s3_objects.read(aws, failure, f"reading why {endpoint} failed").decode(errors="replace")
    raise XLNetFastError(f"the endpoint {endpoint} could not answer: {' '.join(why.split())[:500]}")


def _is_there(aws: Aws, place: Place) -> bool:
    try:
        with telling(f"looking for {place}"):
            aws.s3.head_object(Bucket=place.bucket, Key=place.key)
    except AwsError as error:
        if error.not_found or error.code == "403":  # 403 where the bucket may not be listed
            return False
        raise
    return True


def async_output_of(aws: Aws, endpoint: str) -> str | None:
    """Where an endpoint's answers go, None where it answers at once.

    Raises:
        AwsError: there is no such endpoint.
    """
    with telling(f"looking for the endpoint {endpoint}"):
        there = aws.sagemaker.describe_endpoint(EndpointName=endpoint)
        config = aws.sagemaker.describe_endpoint_config(
            EndpointConfigName=there["EndpointConfigName"]
        )
    later = config.get("AsyncInferenceConfig") or {}
    output = later.get("OutputConfig", {}).get("S3OutputPath")
    return None if output is None else str(output)
