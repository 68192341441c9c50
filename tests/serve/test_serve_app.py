"""The application in this process: answers, refusals, limits, tokens, health, metrics and logs."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
import time

import httpx
import pytest
import torch
from served import LABELS, TEXTS, classifier, options, run, serving, until
from tiny_finetuning import checkpoint

from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict import Predictor
from xlnet_fast.predict.writing import Words
from xlnet_fast.serve import auth, limits, logs
from xlnet_fast.serve.app import create_app
from xlnet_fast.serve.contract import TimedOut
from xlnet_fast.serve.lifecycle import address_of, listening

PREDICT = "/v1/models/tiny:predict"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("served") / "tiny")


def gate(service):
    """The model holds its batches until the event is set."""
    closed = threading.Event()
    worker = service.manager.lookup("tiny").worker
    compute = worker._run
    worker._run = lambda *batch: closed.wait(20) and compute(*batch)
    return closed


def error(response, status, kind):
    assert response.status_code == status, response.text
    told = response.json()["error"]
    assert set(told) == {"type", "message"}
    assert told["type"] == kind
    return told["message"]


def test_the_answers_are_those_of_the_predictor_alone(folder):
    """To 1e-6, whatever stood beside them in the batches."""
    predictor = Predictor.load(str(folder))
    records = [{"text": f"{text} {n}"} for n in range(20) for text in TEXTS]

    async def work(service, client):
        calls = [client.post(PREDICT, json={"record": record}) for record in records]
        return [response.json() for response in await asyncio.gather(*calls)]

    for record, found in zip(records, run(options(folder), work), strict=True):
        assert (found["model"], found["version"]) == ("tiny", "1")
        assert found["task"] == "text-classification"
        (answer,) = found["answers"]
        alone = predictor(record)
        assert answer["label"] == alone["label"]
        for label, score in alone["scores"].items():
            assert answer["scores"][label] == pytest.approx(score, abs=1e-6)


def test_the_native_protocol(folder):
    async def work(service, client):
        several = {"records": [TEXTS[0], {"text": TEXTS[1]}], "parameters": {"top_k": 1}}
        found = (await client.post("/v1/models/tiny/versions/1:predict", json=several)).json()
        assert [len(answer["scores"]) for answer in found["answers"]] == [1, 1]
        listed = (await client.get("/v1/models")).json()
        assert [one["id"] for one in listed["data"]] == ["tiny"]
        model = (await client.get("/v1/models/tiny")).json()
        assert model["versions"] == [{"version": "1", "state": "ready", "default": True}]
        assert model["labels"] == list(LABELS.values())
        assert model["fields"] == {"required": {"text": "text"}, "optional": {"text_pair": "text"}}
        assert model["parameters"]["top_k"]["type"] == "int"
        explained = await client.post("/v1/models/tiny:explain", json={"record": TEXTS[1]})
        assert explained.json()["method"] == "gradient_x_input"
        assert len(explained.json()["tokens"]) > 5
        for label in LABELS.values():
            body = {"record": TEXTS[1], "target": label, "parameters": {"top_k": 1}}
            told = (await client.post("/v1/models/tiny:explain", json=body)).json()
            assert told["label"] == label
        for odd in ("target", "record", "self", "method"):
            for path in ("explain", "predict"):
                body = {"record": TEXTS[1], "parameters": {odd: 1}}
                refused = await client.post(f"/v1/models/tiny:{path}", json=body)
                assert refused.status_code == 400, refused.text
                assert f"no parameter '{odd}'" in refused.json()["error"]["message"]
        schema = (await client.get("/openapi.json")).json()
        assert "/v1/models/{name}:predict" in schema["paths"]

    run(options(folder), work)


BAD = [
    ({"records": []}, "there are no records"),
    ({}, "expected record, or records, and not both"),
    ({"record": "a", "records": ["a"]}, "expected record, or records, and not both"),
    ({"records": "a"}, "records: Input should be a valid list"),
    ({"record": "a", "paramters": {}}, "paramters: Extra inputs"),
    ({"record": ""}, "text is empty"),
    ({"record": {"txt": "a"}}, "the record has an unknown field 'txt'"),
    ({"records": ["a", {"text": 3}]}, "record 2: text is of type int"),
    ({"records": ["a", "b"], "parameters": {"top_k": 0}}, "record 1: top_k is 0"),
    ({"record": "a", "parameters": {"beams": 3}}, "has no parameter 'beams'"),
    ({"record": "a", "timeout_s": 0}, "timeout_s"),
    ({"record": {"text": "a", "text_pair": ["b"]}}, "text_pair is of type list"),
]


def test_what_is_wrong_is_told(folder):
    async def work(service, client):
        for body, words in BAD:
            response = await client.post(PREDICT, json=body)
            assert words in error(response, 400, "ArgumentError"), body
        raw = {"content-type": "application/json"}
        for content, words in [
            (b"{", "the body is no JSON: Expecting"),
            (b'{"record": {"text": "half \\ud800 of it"}}', "half of a character"),
            (b'{"record": "half \\ud800 of it"}', "half of a character"),
            (b'{"record": {"text": "a", "\\ud800": 1}}', "half of a character"),
            (b'{"record": "a", "parameters": {"top_k": 1e999}}', "top_k"),
            (b'{"record": "a", "parameters": {"threshold": NaN}}', "threshold"),
            (b'{"record": "a", "timeout_s": NaN}', "timeout_s"),
            (b'{"record": "a", "parameters": {"threshold": 1' + b"0" * 400 + b"}}", ""),
            (b'{"record": "a", "parameters": {"top_k": 1' + b"0" * 9000 + b"}}", "digits"),
            (b"[" * 100_000, "nested more than 32 deep"),
            (b'{"record":' + b'{"a":' * 40 + b"1" + b"}" * 41, "nested more than 32 deep"),
        ]:
            response = await client.post(PREDICT, content=content, headers=raw)
            assert response.status_code == 400, content[:60]
            assert words in response.json()["error"]["message"], (content[:60], response.text)
        missing = await client.post("/v1/models/other:predict", json={"record": "a"})
        assert "no model 'other'" in error(missing, 404, "UnknownModel")
        for version in ("2", "x", "..%2f..%2fetc"):
            path = f"/v1/models/tiny/versions/{version}:predict"
            assert (await client.post(path, json={"record": "a"})).status_code == 404
        error(await client.get("/nowhere"), 404, "NotFound")
        error(await client.delete("/v1/models"), 405, "HTTPError")
        flat = b'{"record": "' + b"[{" * 100 + b'"}'
        assert (await client.post(PREDICT, content=flat, headers=raw)).status_code == 200

    run(options(folder), work)


def test_errors_of_single_records(folder):
    async def work(service, client):
        body = {"records": ["a class", {"txt": 1}, "of a value"], "errors": "record"}
        answers = (await client.post(PREDICT, json=body)).json()["answers"]
        assert [set(answer) for answer in answers][::2] == [{"label", "score", "scores"}] * 2
        assert answers[1]["error"]["type"] == "ArgumentError"

    run(options(folder), work)


def test_limits_of_a_request(folder):
    chosen = options(folder, body_bytes=2000, max_records=3, max_tokens=50, queue_tokens=60)

    async def chunks():
        for _ in range(100):
            yield b" " * 100

    async def work(service, client):
        many = await client.post(PREDICT, json={"records": ["a"] * 4})
        assert "4 records, expected at most 3" in error(many, 413, "TooLarge")
        long = await client.post(PREDICT, json={"records": ["a", "a class " * 40]})
        assert "record 2: it has" in error(long, 413, "TooLarge")
        endless = await client.post(PREDICT, json={"record": "a" * 801})
        assert "801 characters, expected at most 800" in error(endless, 413, "TooLarge")
        sum_of_all = await client.post(PREDICT, json={"records": ["a class of it " * 6] * 3})
        assert "expected at most 60 in a request" in error(sum_of_all, 413, "TooLarge")
        told = await client.post(PREDICT, content=b" " * 2001)
        assert "longer than 2000 bytes" in error(told, 413, "TooLarge")
        assert told.headers["connection"] == "close"
        counted = await client.post(PREDICT, content=chunks())
        error(counted, 413, "TooLarge")
        assert (await client.post(PREDICT, json={"record": "a class"})).status_code == 200

    run(chosen, work)


def test_a_slow_body_has_an_end(folder):
    async def slow():
        yield b"{"
        await asyncio.sleep(20)

    async def work(service, client):
        error(await client.post(PREDICT, content=slow()), 408, "TooSlow")

    run(options(folder, timeout=0.2), work)


@pytest.mark.parametrize("setting", ["queue_tokens", "max_requests"])
def test_overload_is_refused_at_once(folder, setting):
    full = {
        "queue_tokens": {"queue_tokens": 60, "max_tokens": 60},
        "max_requests": {"max_requests": 4},
    }[setting]
    chosen = options(folder, **full)

    async def work(service, client):
        closed = gate(service)
        body = {"record": "a class of the value " * 4}
        found = service.manager.lookup("tiny")
        need = len(found.predictor.encode(body["record"]).pieces[0])
        assert 20 < need < 60
        calls = [asyncio.ensure_future(client.post(PREDICT, json=body))]
        await until(lambda: found.worker._pieces and not found.worker._queue.tokens)
        calls += [asyncio.ensure_future(client.post(PREDICT, json=body)) for _ in range(3)]
        await until(lambda: found.worker._queue.tokens + need > (60 if "max_tokens" in full else 0))
        await asyncio.sleep(0.1)
        more = [client.post(PREDICT, json=body) for _ in range(20)]
        started = time.perf_counter()
        refused = await asyncio.gather(*more)
        took = time.perf_counter() - started
        health = [(await client.get(path)).status_code for path in ("/healthz", "/readyz")]
        closed.set()
        answered = await asyncio.gather(*calls)
        return refused, took, health, answered

    refused, took, health, answered = run(chosen, work)
    assert took / 20 < 0.1
    assert health == [200, 200]
    for response in refused:
        error(response, 429, "Overloaded")
        assert 1 <= int(response.headers["retry-after"]) <= 30
    assert 200 in [response.status_code for response in answered]
    assert {response.status_code for response in answered} <= {200, 429}


def test_time_runs_out_and_clients_go(folder):
    """Neither is computed afterwards."""

    async def work(service, client):
        closed = gate(service)
        worker = service.manager.lookup("tiny").worker
        first = asyncio.ensure_future(client.post(PREDICT, json={"record": "a class"}))
        await until(lambda: worker._pieces and not worker._queue.tokens)
        late = await client.post(PREDICT, json={"record": "a value", "timeout_s": 0.1})
        assert "within the request's time" in error(late, 504, "TimedOut")
        assert worker.tokens == 0
        gone = asyncio.ensure_future(client.post(PREDICT, json={"record": "an object"}))
        await until(lambda: worker.tokens)
        gone.cancel()
        await until(lambda: not worker.tokens)
        closed.set()
        assert (await first).status_code == 200
        await until(lambda: service.in_flight == 0)
        assert not worker._pieces

    run(options(folder), work)


def test_a_client_that_goes_away_is_noticed(folder):
    """By the ASGI message that a server then gives."""

    async def work(service, client):
        closed = gate(service)
        worker = service.manager.lookup("tiny").worker
        body = json.dumps({"record": "a class"}).encode()
        messages = asyncio.Queue()
        messages.put_nowait({"type": "http.request", "body": body})
        scope = {
            "type": "http", "method": "POST", "path": PREDICT, "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "http_version": "1.1",
        }  # fmt: skip
        sent = []

        async def send(message):
            sent.append(message)

        app = client._transport.app
        answer = asyncio.ensure_future(app(scope, messages.get, send))
        await until(lambda: worker._pieces)
        messages.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(answer, 5)
        assert sent == []
        assert not worker._pieces
        assert service.in_flight == 0
        closed.set()

    run(options(folder), work)


def test_a_poisoned_request_fails_alone_and_a_model_of_nan_is_not_ready(folder):
    async def work(service, client):
        found = service.manager.lookup("tiny")
        compute = found.worker._run

        def poisoned(pieces, interrupted):
            if any(len(piece) > 60 for piece in pieces):
                raise RuntimeError("a long text")
            return compute(pieces, interrupted)

        found.worker._run = poisoned
        bodies = [{"record": text} for text in (TEXTS[0], TEXTS[2], TEXTS[1])]
        calls = await asyncio.gather(*(client.post(PREDICT, json=body) for body in bodies))
        assert [response.status_code for response in calls] == [200, 500, 200]
        assert "could not compute this record" in error(calls[1], 500, "ModelFailed")
        each = {"records": [TEXTS[0], TEXTS[2]], "errors": "record"}
        answers = (await client.post(PREDICT, json=each)).json()["answers"]
        assert answers[1]["error"]["type"] == "ModelFailed"
        assert (await client.get("/readyz")).status_code == 200
        found.worker._run = compute
        weights = found.predictor.task.model.logits_proj.weight
        weights.fill_(float("nan"))
        for _ in range(3):
            refused = await client.post(PREDICT, json={"record": TEXTS[0]})
            assert refused.json()["error"]["type"] in ("ModelFailed", "NotReady")
        await until(lambda: found.state == "failed")
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["models"]) == (503, {"tiny/1": "failed"})
        refused = await client.post(PREDICT, json={"record": TEXTS[0]})
        error(refused, 503, "NotReady")
        assert refused.headers["retry-after"] == "5"
        (version,) = (await client.get("/v1/models/tiny")).json()["versions"]
        assert "no numbers" in version["reason"]
        assert (await client.get("/healthz")).status_code == 200
        service.manager.rescan()
        await until(lambda: service.ready)
        assert (await client.post(PREDICT, json={"record": TEXTS[0]})).status_code == 200

    run(options(folder), work)


def test_a_request_that_is_too_odd_to_answer_is_told_without_its_text(folder, caplog):
    stream = io.StringIO()
    logs.setup("info", "json", stream)

    async def work(service, client):
        def crash(record, **parameters):
            raise LookupError(record)

        service.manager.lookup("tiny").predictor.encode = crash
        return await client.post(PREDICT, json={"record": "secret words"})

    response = run(options(folder), work)
    error(response, 500, "InternalError")
    assert "secret" not in stream.getvalue() + response.text
    assert '"error": "LookupError"' in stream.getvalue()


def test_ids_logs_and_metrics(folder):
    stream = io.StringIO()
    logs.setup("info", "json", stream)

    async def work(service, client):
        mine = await client.post(
            PREDICT, json={"record": "very secret words"}, headers={"x-request-id": "mine-1"}
        )
        assert mine.headers["x-request-id"] == "mine-1"
        odd = await client.get("/v1/models", headers={"x-request-id": "a b\u00ff".encode()})
        assert len(odd.headers["x-request-id"]) == 32
        await client.get("/healthz")
        await client.get("/secret/words")
        return (await client.get("/metrics")).text

    page = run(options(folder), work)
    text = stream.getvalue()
    assert "secret" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    first, second, third, *_ = [line for line in lines if line["message"] == "request"]
    assert first["id"] == "mine-1"
    assert (first["model"], first["version"], first["status"]) == ("tiny", "1", 200)
    assert first["route"] == "/v1/models/{name}:predict"
    assert first["tokens"] > 3
    assert first["ms"] > 0
    assert (second["route"], third["route"], third["status"]) == ("/v1/models", "", 404)
    for line in (
        'request_seconds_count{model="tiny",protocol="native",status="200"} 1.0',
        'queue_tokens{model="tiny",version="1"} 0.0',
        'model_state{model="tiny",state="ready",version="1"} 1.0',
        'batch_padding_ratio_count{model="tiny"} 1.0',
        'batch_tokens_count{model="tiny"} 1.0',
        'wait_seconds_count{model="tiny"} 1.0',
        'model_loads_total{model="tiny",result="ok"} 1.0',
        "requests_in_flight 1.0",
    ):
        assert f"xlnet_fast_{line}" in page, line


def test_plain_lines():
    record = logging.makeLogRecord({"msg": "loaded", "model": "tiny", "version": "", "n": 3})
    assert logs.PlainLines().format(record).endswith("loaded model=tiny n=3")


def test_tokens(folder, tmp_path):
    file = tmp_path / "tokens"
    file.write_text("# who\n\nreviews: 0123456789abcdef\nfedcba9876543210\n", encoding="utf-8")
    chosen = options(folder, tokens_file=file)

    async def work(service, client):
        async def status(token, path="/v1/models"):
            headers = {} if token is None else {"authorization": token}
            return (await client.get(path, headers=headers)).status_code

        for bad in (
            None,
            "0123456789abcdef",
            "Bearer nothing",
            "Basic 0123456789abcdef",
            "Bearer ",
        ):
            assert await status(bad) == 401
        refused = await client.post(PREDICT, json={"record": "a"})
        error(refused, 401, "Unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert await status("Bearer 0123456789abcdef") == 200
        assert await status("bearer fedcba9876543210") == 200
        assert [await status(None, path) for path in ("/healthz", "/readyz")] == [200, 200]
        assert await status(None, "/metrics") == 401

    run(chosen, work)


def test_a_tokens_file_is_read_again(tmp_path):
    file, now = tmp_path / "tokens", [0.0]
    file.write_text("a: 0123456789abcdef\n", encoding="utf-8")
    tokens = auth.Tokens(file, clock=lambda: now[0])
    assert tokens.client("0123456789abcdef") == "a"
    assert "0123456789abcdef" not in repr(vars(tokens))
    file.write_text("b: 00000000000000001\n", encoding="utf-8")
    now[0] += 2
    assert tokens.client("00000000000000001") == "b"
    assert tokens.client("0123456789abcdef") is None
    file.write_text("short\n", encoding="utf-8")
    now[0] += 2
    assert tokens.client("00000000000000001") == "b"  # it stays as it was
    file.unlink()
    now[0] += 2
    assert tokens.client("00000000000000001") == "b"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# nobody\n", "has no token"),
        ("short\n", "line 1 of .* has 5 characters, expected at least 16"),
        ("ok: 0123456789abcdef\nwith blanks in it here\n", "line 2 of .* is no token"),
        ("a b: 0123456789abcdef\n", "line 1 of .* is no token"),
    ],
)
def test_bad_tokens(tmp_path, content, words):
    file = tmp_path / "tokens"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ArgumentError, match=words) as told:
        auth.Tokens(file)
    assert "0123456789abcdef" not in str(told.value)


def test_while_it_ends_nothing_new_is_taken(folder):
    async def work(service, client):
        closed = gate(service)
        first = asyncio.ensure_future(client.post(PREDICT, json={"record": "a class"}))
        await until(lambda: service.manager.lookup("tiny").worker._pieces)
        service.draining = True
        refused = await client.post(PREDICT, json={"record": "a class"})
        error(refused, 503, "NotReady")
        assert refused.headers["connection"] == "close"
        assert refused.headers["retry-after"] == "5"
        assert [(await client.get(path)).status_code for path in ("/healthz", "/readyz")] == [
            200,
            503,
        ]
        closed.set()
        answered = await first
        assert (answered.status_code, answered.headers["connection"]) == (200, "close")

    run(options(folder), work)


@pytest.mark.parametrize(
    ("json_text", "deep"),
    [
        (b'{"a": [1, {"b": []}]}', False),
        (b"[" * 32 + b"]" * 32, False),
        (b"[" * 33 + b"]" * 33, True),
        (b'["' + b"[" * 99 + b'"]', False),
        (b'["\\"' + b"[" * 99 + b'"]', False),
        (b"[]" * 100_000, False),
        (b"]" * 1000, False),
    ],
)
def test_depth_of_json(json_text, deep):
    assert limits.is_deep(json_text) == deep


def test_ports(folder):
    with listening("127.0.0.1", 0) as door:
        address = address_of(door)
        port = int(address.rpartition(":")[2])
        assert address == f"http://127.0.0.1:{port}"
        with pytest.raises(ArgumentError, match=rf"port {port} of 127.0.0.1 cannot be listened at"):
            listening("127.0.0.1", port)
    with pytest.raises(ArgumentError, match="no address of this machine"):
        listening("no.such.host.invalid", 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": None}, "no model was given"),
        ({"models": ""}, "no model was given"),
        ({"port": 70000}, "port is 70000, expected 0 to 65535"),
        ({"name": "../x"}, "name is '../x', expected letters"),
        ({"max_tokens": 10, "queue_tokens": 5}, "max_tokens is 10, expected at most queue_tokens"),
        ({"drain": float("nan")}, "drain is nan"),
        ({"timeout": 0.0}, "timeout is 0.0"),
        ({"log_level": "loud"}, "log_level must be one of"),
        ({"threads": 0}, "threads is 0"),
    ],
    ids=str,
)
def test_options_that_cannot_be_used(folder, changes, words):
    with pytest.raises(ArgumentError, match=words):
        create_app(options(folder, **changes) if "models" not in changes else
                   options(folder).__class__(**changes))  # fmt: skip


def stream_threads():
    return [one for one in threading.enumerate() if one.name == "xlnet-fast-stream"]


def test_streams_and_work_of_a_generator(tmp_path):
    """The parts are the whole answer's text; who goes away ends the writing."""
    writer = checkpoint(tmp_path / "writer")
    chosen = options(writer, task="generation")

    async def work(service, client):
        parameters = {"max_new_tokens": 12}
        (whole,) = await service.predict("writer", [TEXTS[0]], parameters=parameters)
        parts = [p async for p in service.stream("writer", TEXTS[0], parameters=parameters)]
        assert "".join(parts) == whole["text"]
        assert [part for part in parts if not part] == parts[-1:]
        stream = service.stream("writer", TEXTS[0], parameters={"max_new_tokens": 500})
        found = service.manager.lookup("writer")
        assert await anext(stream)
        assert found.users == 1
        await stream.aclose()
        await until(lambda: not found.worker._pieces)
        assert found.users == 0
        with pytest.raises(ArgumentError, match="num_beams"):
            await anext(service.stream("writer", TEXTS[0], parameters={"num_beams": 2}))
        with pytest.raises(ArgumentError):
            await anext(service.stream("writer", "", parameters=parameters))
        await until(lambda: not stream_threads())

    run(chosen, work)


def test_a_long_text_that_nobody_waits_for_ends(tmp_path, monkeypatch):
    """Late, or left by the client, as an answer or as a stream: the next request is answered."""
    long = {"max_new_tokens": 8000}  # minutes

    async def work(service, client):
        worker = service.manager.lookup("writer").worker
        path = "/v1/models/writer:predict"
        body = {"record": TEXTS[0], "parameters": long}

        async def next_one():
            begun = time.monotonic()
            short = {"record": TEXTS[0], "parameters": {"max_new_tokens": 2}}
            assert (await client.post(path, json=short)).status_code == 200
            assert time.monotonic() - begun < 2

        begun = time.monotonic()
        late = await client.post(path, json={**body, "timeout_s": 0.3})
        error(late, 504, "TimedOut")
        await next_one()
        assert time.monotonic() - begun < 3
        gone = asyncio.ensure_future(client.post(path, json=body))
        await until(lambda: worker._pieces and not worker._queue.tokens)
        gone.cancel()
        await next_one()
        stream = asyncio.ensure_future(
            anext(service.stream("writer", TEXTS[0], parameters=long, timeout_s=0.3))
        )
        await asyncio.gather(next_one(), next_one())  # while it is written
        with pytest.raises(TimedOut):
            await stream
        await next_one()
        await until(lambda: not stream_threads())
        assert not worker._pieces
        assert worker.alive

    monkeypatch.setattr(Words, "put", lambda self, value: None)  # as if no word ever ended
    run(options(checkpoint(tmp_path / "writer"), task="generation"), work)


def test_a_model_that_cannot_be_loaded_ends_the_start(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        ArgumentError, match=r"has no model\.safetensors: other weights are pickles"
    ):
        run(options(tmp_path, name="x"), None)


def test_an_export_is_no_folder_of_models(tmp_path):
    (tmp_path / "export.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArgumentError, match="is what xlnet-fast export made, and serve takes"):
        run(options(tmp_path, name="x"), None)


def test_threads_end(folder):
    async def work(service, client):
        await client.post(PREDICT, json={"record": "a class"})

    before = threading.active_count()
    run(options(folder), work)
    assert threading.active_count() <= before + 2  # of pools, which end when they are idle
    assert not [one.name for one in threading.enumerate() if one.name == "xlnet-tiny"]


def test_serving_is_an_application_for_any_server(folder):
    """``serving`` runs it as a server does, and twice in a process."""

    async def main():
        async with serving(options(folder)) as (one, first), serving(options(folder)) as (two, _):
            assert one is not two
            return (await first.get("/readyz")).status_code

    assert asyncio.run(main()) == 200
    assert isinstance(httpx.ASGITransport(create_app(options(folder))), httpx.ASGITransport)
    assert torch.get_num_threads() == 1
