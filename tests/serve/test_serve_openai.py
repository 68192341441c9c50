"""OpenAI's API: embeddings, completions and their streams, refusals in its shape."""

from __future__ import annotations

import asyncio
import base64
import json

import numpy
import pytest
from small_service import TEXTS, SmallService, classifier, client_of, refused
from tiny_finetuning import checkpoint

from xlnet_fast.predict import Predictor
from xlnet_fast.serve.contract import ModelFailed, Overloaded
from xlnet_fast.serve.protocols.openai import router

PROMPT = "the value of an object"
GREEDY = {"model": "writer", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    writer = checkpoint(folder / "writer", initializer_range=0.4)
    labels = classifier(folder / "reviews")
    return {
        "writer": Predictor.load(str(writer), task="generation"),
        "vectors": Predictor.load(str(writer), task="embeddings"),
        "reviews": Predictor.load(str(labels)),
    }


@pytest.fixture
def service(predictors):
    return SmallService(**predictors)


@pytest.fixture
def ask(service):
    return client_of(router, service)


@pytest.fixture
def embed(ask):
    return lambda given, **others: ask(
        "POST", "/v1/embeddings", json={"model": "vectors", "input": given, **others}
    )


@pytest.fixture
def complete(ask):
    return lambda **asked: ask("POST", "/v1/completions", json={**GREEDY, **asked})


def chunks(response):
    """The events of a stream, without the last one, which ends it."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


# --- embeddings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [TEXTS, TEXTS[:1], TEXTS[0]])
def test_embeddings(embed, predictors, given):
    told = embed(given).json()
    expected = predictors["vectors"]([given] if isinstance(given, str) else given)
    assert [one["index"] for one in told["data"]] == list(range(len(expected)))
    for one, answer in zip(told["data"], expected, strict=True):
        assert one["embedding"] == answer["embedding"]
    assert told["model"] == "vectors"


def test_embeddings_in_base64(embed, predictors):
    (one,) = embed(TEXTS[0], encoding_format="base64").json()["data"]
    found = numpy.frombuffer(base64.b64decode(one["embedding"]), "<f4")
    assert found.tolist() == predictors["vectors"](TEXTS[0])["embedding"]


def test_token_ids_are_their_text(embed, complete, predictors):
    ids = predictors["vectors"].task.token_ids(TEXTS[0])
    expected = predictors["vectors"](TEXTS[0])["embedding"]
    for given in (ids, [ids]):
        assert embed(given).json()["data"][0]["embedding"] == expected
    assert embed([ids, ids]).json()["usage"]["prompt_tokens"] == 2 * (len(ids) + 2)
    text = complete(prompt=ids).json()["choices"][0]["text"]
    assert text == complete(prompt=TEXTS[0]).json()["choices"][0]["text"]
    letters = predictors["vectors"].task.tokenizer.convert_tokens_to_ids(["▁", "t", "h", "e"])
    for wrong in ([10**6], [-1], letters, [[]], [[5], [10**30]]):
        refused(embed(wrong), 400, "token ids that the model's tokenizer makes of no text")


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"input": []}, 400, "input is empty"),
        ({"input": ""}, 400, "text is empty"),
        ({"input": ["a", ""]}, 400, "record 2: text is empty"),
        ({"input": 7}, 400, "input"),
        ({"input": [["a"]]}, 400, "input"),
        ({"input": ["a", 1]}, 400, "input"),
        ({"input": ["a"] * 129}, 413, "129 texts, expected at most 128"),
        ({"dimensions": 4}, 400, "cannot be cut"),
        ({"encoding_format": "hex"}, 400, "encoding_format"),
        ({"normalize": True}, 400, "normalize"),
        ({"model": "reviews"}, 400, "a model of text-classification, expected one of embeddings"),
        ({"model": "other"}, 404, "model_not_found"),
    ],
)
def test_embeddings_that_cannot_be(embed, asked, status, words):
    response = embed(asked.pop("input", "a"), **asked)
    refused(response, status, words)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    refused(embed("a", dimensions=None), 200, "embedding")


# --- completions ---------------------------------------------------------------------------------


def test_greedy_completions(complete, predictors):
    told = complete(prompt=[PROMPT, TEXTS[1]]).json()
    expected = predictors["writer"]([PROMPT, TEXTS[1]], max_new_tokens=12)
    assert [one["text"] for one in told["choices"]] == [one["text"] for one in expected]
    assert [one["finish_reason"] for one in told["choices"]] == [
        "stop" if one["ended"] else "length" for one in expected
    ]
    ids = [len(predictors["writer"].encode(x).pieces[0].input_ids) for x in (PROMPT, TEXTS[1])]
    written = sum(one["new_tokens"] for one in expected)
    assert told["usage"] == {
        "prompt_tokens": sum(ids), "completion_tokens": written,
        "total_tokens": sum(ids) + written,
    }  # fmt: skip
    assert (told["object"], told["model"]) == ("text_completion", "writer")


def test_parameters_reach_the_task(complete, service):
    asked = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["x", "y"], "user": "u"}
    assert complete(**asked).status_code == 200
    assert service.asked[-1][2] == {
        "max_new_tokens": 12, "do_sample": True, "temperature": 0.5, "top_p": 0.9, "seed": 3,
        "stop": ["x", "y"], "top_k": 0,
    }  # fmt: skip
    assert complete(max_tokens=None, temperature=None, top_p=None).status_code == 200
    assert service.asked[-1][2] == {
        "max_new_tokens": 16, "do_sample": True, "temperature": 1.0, "top_k": 0,
    }  # fmt: skip
    assert complete(temperature=5e-324).status_code == 200
    assert service.asked[-1][2] == {"max_new_tokens": 12}


def test_several_texts_of_a_prompt(complete):
    drawn = {"temperature": 1, "seed": 5, "n": 3}
    told = complete(prompt=[PROMPT, TEXTS[1]], **drawn).json()
    texts = [one["text"] for one in told["choices"]]
    assert [one["index"] for one in told["choices"]] == list(range(6))
    assert len(set(texts)) == 6
    again = complete(prompt=[PROMPT, TEXTS[1]], **drawn).json()
    assert [one["text"] for one in again["choices"]] == texts
    told = complete(n=2).json()
    assert told["choices"][0]["text"] == told["choices"][1]["text"]


def test_echo_and_stop(complete):
    text = complete().json()["choices"][0]["text"]
    assert complete(echo=True).json()["choices"][0]["text"] == PROMPT + text
    stop = text.split()[2]
    told = complete(stop=stop).json()["choices"][0]
    assert told["text"] == text[: text.index(stop)]
    assert told["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"logprobs": 0}, 400, "logprobs is not supported"),
        ({"best_of": 2}, 400, "best_of is not supported"),
        ({"suffix": "x"}, 400, "suffix is not supported"),
        ({"presence_penalty": 0.1}, 400, "presence_penalty is not supported"),
        ({"frequency_penalty": 0.1}, 400, "frequency_penalty is not supported"),
        ({"logit_bias": {"1": 2}}, 400, "logit_bias is not supported"),
        ({"stop": list("abcde")}, 400, "expected at most 4"),
        ({"stop": [""]}, 400, "stop has an empty text"),
        ({"stream_options": {"include_usage": True}}, 400, "expected stream true"),
        ({"n": 0}, 400, "n: "),
        ({"n": 100, "prompt": ["a", "b"]}, 413, "200 texts"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": 3}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"seed": -1}, 400, "seed"),
        ({"prompt": " "}, 400, "text is empty"),
        ({"prompt": []}, 400, "prompt is empty"),
        ({"messages": []}, 400, "messages"),
        ({"model": "vectors"}, 400, "expected one of generation"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_completions_that_cannot_be(complete, asked, status, words, stream):
    if not (stream and "stream_options" in asked):
        refused(complete(**asked, stream=stream), status, words)


def test_refusals_have_types(complete, service):
    service.refusal = Overloaded("the queue is full")
    for stream in (False, True):
        response = complete(stream=stream)
        refused(response, 429, "rate_limit_exceeded")
        assert response.headers["Retry-After"] == "1"
    service.refusal = ModelFailed("the model could not compute it")
    refused(complete(), 500, "server_error")


# --- streams -------------------------------------------------------------------------------------


def test_a_stream_is_the_text_in_parts(complete, service):
    whole = complete(echo=True).json()
    told = chunks(complete(stream=True, echo=True, stream_options={"include_usage": True}))
    *parts, usage = told
    assert "".join(part["choices"][0]["text"] for part in parts) == whole["choices"][0]["text"]
    reasons = [part["choices"][0]["finish_reason"] for part in parts]
    assert reasons[-1] == whole["choices"][0]["finish_reason"]
    assert set(reasons[:-1]) == {None}
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert len({part["id"] for part in told}) == 1
    assert service.ended == 1


def test_several_streams_side_by_side(complete):
    asked = {"prompt": [PROMPT, TEXTS[1]], "n": 2, "stream": True, "temperature": 1, "seed": 1}
    texts = ["", "", "", ""]
    for part in chunks(complete(**asked)):
        (choice,) = part["choices"]
        texts[choice["index"]] += choice["text"]
    assert len(set(texts)) == 4
    assert all(texts)


def test_an_error_within_a_stream_is_an_event(complete, service, monkeypatch):
    def broken(encoded):
        yield "the "
        raise ModelFailed("the values are no numbers")

    monkeypatch.setattr(service.predictors["writer"], "stream", broken)
    response = complete(stream=True)
    first, last = response.text.strip().split("\n\n")
    assert '"the "' in first
    assert (
        json.loads(last.removeprefix("data: "))["error"]["message"] == "the values are no numbers"
    )
    assert "[DONE]" not in response.text


def test_a_fault_within_a_stream_does_not_hang(complete, service, monkeypatch):
    def broken(encoded):
        yield "the "
        raise KeyError("a fault of ours")

    monkeypatch.setattr(service.predictors["writer"], "stream", broken)
    with pytest.raises(KeyError):
        complete(stream=True)


@pytest.mark.parametrize("copies", [1, 3])
def test_a_client_that_goes_ends_what_is_written(ask, service, copies):
    service.pause_s = 0.02
    body = json.dumps({**GREEDY, "max_tokens": 2000, "stream": True, "n": copies}).encode()
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": "POST", "path": "/v1/completions", "raw_path": b"", "query_string": b"",
        "root_path": "", "scheme": "http", "headers": [(b"content-type", b"application/json")],
        "client": ("test", 1), "server": ("test", 80),
    }  # fmt: skip

    async def leaving():
        sent, gone = [], asyncio.Event()
        incoming = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if incoming:
                return incoming.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if len(sent) > 3:
                gone.set()

        await asyncio.wait_for(ask.app(scope, receive, send), 20)
        return sent

    sent = asyncio.run(leaving())
    assert service.ended == copies
    assert len(sent) < 20
    assert b"[DONE]" not in b"".join(message.get("body", b"") for message in sent)
