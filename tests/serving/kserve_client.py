"""KServe's own client asks our server, in JSON and in binary."""

from __future__ import annotations

import asyncio
import json

import httpx
import numpy
import pytest
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from real_server import answers

TEXTS = ["the value of an object", "with a \N{SNOWMAN}", "this"]


def asked(url, what):
    """What a call of the client gives."""

    async def run():
        async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
            return await what(client)

    return asyncio.run(run())


def texts(name, values, binary):
    array = numpy.array(values, dtype=numpy.object_)
    tensor = InferInput(name, list(array.shape), "BYTES")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def infer(url, model, inputs, **settings):
    request = InferRequest(model_name=model, infer_inputs=inputs, **settings)
    return asked(url, lambda client: client.infer(url, request, model_name=model))


def words(array):
    return [one.decode() if isinstance(one, bytes) else one for one in array.flatten()]


def test_health(url):
    assert asked(url, lambda client: client.is_server_live(url)) is True
    assert asked(url, lambda client: client.is_server_ready(url)) is True
    assert asked(url, lambda client: client.is_model_ready(url, "reviews")) is True
    assert asked(url, lambda client: client.is_model_ready(url, "other")) is False


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_labels(url, binary_in, binary_out):
    parameters = {"binary_data_output": binary_out}
    response = infer(url, "reviews", [texts("text", TEXTS, binary_in)], parameters=parameters)
    found = {output.name: output.as_numpy() for output in response.outputs}
    expected = answers(url, "reviews", TEXTS)
    assert words(found["label"]) == [one["label"] for one in expected]
    labels = httpx.get(f"{url}/v1/models/reviews").json()["labels"]
    wanted = [[one["scores"][label] for label in labels] for one in expected]
    numpy.testing.assert_allclose(found["scores"], wanted, atol=1e-6)
    assert found["cut"].tolist() == [False] * 3


def test_named_outputs_and_lists(url):
    choices = [["a", "the value"], ["this", "class"]]
    inputs = [texts("passage", TEXTS[:2], True), texts("choices", choices, True)]
    wanted = [RequestedOutput("answer"), RequestedOutput("choice", {"binary_data": True})]
    response = infer(url, "choices", inputs, request_outputs=wanted)
    answer, choice = response.outputs
    records = [
        {"passage": text, "choices": two} for text, two in zip(TEXTS[:2], choices, strict=True)
    ]
    expected = answers(url, "choices", records)
    assert choice.as_numpy().tolist() == [one["choice"] for one in expected]
    found = [json.loads(text) for text in words(answer.as_numpy())]
    assert [one["text"] for one in found] == [one["text"] for one in expected]


def test_vectors(url):
    response = infer(url, "vectors", [texts("text", TEXTS, False)])
    found = {output.name: output.as_numpy() for output in response.outputs}["embedding"]
    expected = [one["embedding"] for one in answers(url, "vectors", TEXTS)]
    numpy.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_is_wrong_is_told(url):
    with pytest.raises(httpx.HTTPStatusError, match="has no input 'words'"):
        infer(url, "reviews", [texts("words", TEXTS, False)])
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        infer(url, "other", [texts("text", TEXTS, False)])
