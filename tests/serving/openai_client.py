"""OpenAI's own client asks our server."""

from __future__ import annotations

import time

import httpx
import openai
import pytest
from real_server import answers, served

TEXTS = ["the value of an object", "with a \N{SNOWMAN}", "this"]


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client):
    names = {model.id for model in client.models.list()}
    assert {"reviews", "vectors", "writer"} <= names
    assert client.models.retrieve("writer").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize("settings", [{}, {"encoding_format": "float"}])
def test_embeddings(client, url, settings):
    told = client.embeddings.create(model="vectors", input=TEXTS, **settings)
    expected = answers(url, "vectors", TEXTS)
    for one, answer in zip(told.data, expected, strict=True):
        assert one.embedding == pytest.approx(answer["embedding"], abs=1e-5)
    assert told.usage.prompt_tokens > 0


def test_completions(client, url):
    told = client.completions.create(
        model="writer", prompt=TEXTS[0], max_tokens=12, temperature=0, echo=True
    )
    (expected,) = answers(url, "writer", TEXTS[:1], max_new_tokens=12)
    assert told.choices[0].text == TEXTS[0] + expected["text"]
    assert told.usage.completion_tokens == expected["new_tokens"]


def test_streams(client):
    asked = {"model": "writer", "prompt": TEXTS[0], "max_tokens": 20, "temperature": 0}
    whole = client.completions.create(**asked)
    parts = list(
        client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert len(parts) > 3
    assert "".join(part.choices[0].text for part in parts[:-1]) == whole.choices[0].text
    assert parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_stream_that_is_left_ends(client, url):
    """Were it written to its end, the next answer would come after it."""
    begin = time.monotonic()
    asked = {"model": "writer", "prompt": TEXTS[0], "temperature": 1, "seed": 2}
    client.completions.create(**asked, max_tokens=1).model_dump()
    one_s = time.monotonic() - begin
    with client.completions.create(**asked, max_tokens=8000, stream=True) as stream:
        next(iter(stream))
    begin = time.monotonic()
    client.completions.create(**asked, max_tokens=1)
    assert time.monotonic() - begin < 20 * one_s + 2
    deadline = time.monotonic() + 10
    while True:
        page = httpx.get(f"{url}/metrics").text
        tokens = [line for line in page.splitlines() if "queue" in line and "writer" in line]
        if all(line.endswith((" 0.0", " 0")) for line in tokens if "queued" in line):
            return
        assert time.monotonic() < deadline, tokens
        time.sleep(0.1)


def test_errors(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="other", input="a")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="logprobs is not supported"):
        client.completions.create(model="writer", prompt="a", logprobs=1)
    with pytest.raises(openai.BadRequestError, match="cannot be cut"):
        client.embeddings.create(model="vectors", input="a", dimensions=3)


def test_tokens(folder, tmp_path):
    """Of the server's file; without one of them nothing is answered."""
    tokens = tmp_path / "tokens"
    tokens.write_text("tests: a-token-of-the-tests\n")
    tokens.chmod(0o600)
    with served(str(folder / "vectors"), "--tokens-file", str(tokens)) as url:
        settings = {"base_url": f"{url}/v1", "max_retries": 0}
        with openai.OpenAI(api_key="a-token-of-the-tests", **settings) as client:
            assert client.embeddings.create(model="vectors", input="a").data
        with (
            openai.OpenAI(api_key="another", **settings) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.embeddings.create(model="vectors", input="a")
        assert httpx.get(f"{url}/ping").status_code == 200
        assert httpx.get(url).status_code == 200
