"""SageMaker's container contract: media types in and out, batches in order, several models."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from types import SimpleNamespace

import pytest
from small_service import TEXTS, SmallService, classifier, client_of, refused

from xlnet_fast.predict import Predictor
from xlnet_fast.predict.writing import Ending
from xlnet_fast.serve.contract import Limits, NoRoom, Overloaded, TimedOut
from xlnet_fast.serve.protocols import sagemaker
from xlnet_fast.serve.protocols.media import accepted
from xlnet_fast.serve.protocols.sagemaker import (
    ATTRIBUTES,
    TARGET_MODEL,
    parameters_of_batches,
    parts,
    router,
)

LINES, CSV, PLAIN = "application/jsonlines", "text/csv", "text/plain"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("models") / "reviews")


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor.load(str(folder))


@pytest.fixture
def service(predictor):
    return SmallService(reviews=predictor)


@pytest.fixture
def ask(service):
    return client_of(router, service)


def invoke(ask, content, kind="application/json", **headers):
    named = {"Content-Type": kind, **{k.replace("_", "-"): v for k, v in headers.items()}}
    body = content if isinstance(content, (str, bytes)) else json.dumps(content)
    return ask("POST", "/invocations", content=body, headers=named)


def test_ping(ask, service):
    assert ask("GET", "/ping").status_code == 200
    service.ready = False
    assert ask("GET", "/ping").status_code == 503


def test_json(ask, predictor):
    answers = predictor(TEXTS)
    assert invoke(ask, {"text": TEXTS[0]}).json() == answers[0]
    assert invoke(ask, json.dumps(TEXTS[0])).json() == answers[0]
    assert invoke(ask, TEXTS).json() == answers
    assert invoke(ask, {"inputs": TEXTS[0]}).json() == answers[0]
    assert invoke(ask, {"inputs": TEXTS[:1]}).json() == answers[:1]
    asked = {"instances": [{"text": text} for text in TEXTS], "parameters": {"top_k": 1}}
    assert invoke(ask, asked).json() == {"predictions": predictor(TEXTS, top_k=1)}
    assert invoke(ask, {"records": TEXTS}).json() == {"answers": answers}


def test_json_lines_in_order(ask, predictor):
    body = f"{json.dumps(TEXTS[0])}\r\n{json.dumps({'text': TEXTS[1], 'text_pair': 'a'})}\n"
    response = invoke(ask, body, LINES)
    assert response.headers["Content-Type"].startswith(LINES)
    found = [json.loads(line) for line in response.text.splitlines()]
    expected = [predictor(TEXTS[0]), predictor({"text": TEXTS[1], "text_pair": "a"})]
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected])


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('text,text_pair\n"a, b","x\ny"\nc,z\n', CSV),
        ('text_pair,text\n"x\ny","a, b"\nz,c', CSV),
        ('"a, b","x\ny"\nc,z\n', CSV),
        ('\ufeff"a, b","x\ny"\nc,z\n', f"{CSV}; charset=utf-8"),
        ('"a, b","x\ny"\nc,z\n', f"{CSV}; header=absent"),
    ],
)
def test_csv(ask, service, body, kind):
    response = invoke(ask, body.encode(), kind)
    assert response.status_code == 200, response.text
    assert service.asked[0][1] == [
        {"text": "a, b", "text_pair": "x\ny"},
        {"text": "c", "text_pair": "z"},
    ]
    rows = list(csv.reader(io.StringIO(response.text)))
    assert [len(row) for row in rows] == [4, 4]
    assert rows[0][3] == "false"


def test_csv_of_one_column_and_its_header(ask, service, predictor):
    response = invoke(ask, "text\ntext\n", f"{CSV}; header=absent", Accept=f"{CSV}; header=present")
    assert service.asked[0][1] == [{"text": "text"}] * 2
    names, row, _ = csv.reader(io.StringIO(response.text))
    assert names == ["label", "score", "scores", "cut"]
    answer = predictor("text")
    assert row[0] == answer["label"]
    assert json.loads(row[2]) == pytest.approx(answer["scores"])
    assert invoke(ask, "a" + " " * 200_000 + "b", CSV).status_code == 200


def test_plain_text_is_one_record_a_line(ask, service):
    response = invoke(ask, "\n".join(TEXTS), PLAIN)
    assert service.asked[0][1] == TEXTS
    assert len(response.text.splitlines()) == 3


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        ("{", "application/json", 400, "no JSON"),
        ("[]", "application/json", 400, "empty"),
        ("[1]", "application/json", 400, "record 1 is of type int"),
        ("7", "application/json", 400, "expected an object"),
        ('{"instances": "a"}', "application/json", 400, "no list"),
        ('{"inputs": "a", "options": 1}', "application/json", 400, "'options'"),
        ('{"inputs": "a", "parameters": 1}', "application/json", 400, "no object"),
        ('{"inputs": "a", "stream": 1}', "application/json", 400, "neither true nor false"),
        ('{"text": ""}', "application/json", 400, "text is empty"),
        ("", LINES, 400, "no record"),
        ('"a"\n\n"b"\n', LINES, 400, "line 2 is empty"),
        ('"a"\n{"b"\n', LINES, 400, "line 2 is no JSON"),
        (b"\xff", PLAIN, 400, "no UTF-8"),
        ("", CSV, 400, "no record"),
        ("text\n", CSV, 400, "no record"),
        ("a,b,c\n", CSV, 400, "row 1 has 3 columns"),
        ("a,b\nc\n", CSV, 400, "row 2 has 1 columns, expected 2"),
        ('"a', CSV, 400, "no CSV"),
        ("text,text\na,b\n", CSV, 400, "the columns text, text"),
        ("txt\na\n", f"{CSV}; header=present", 400, "unknown field 'txt'"),
        ("a\n\nb\n", CSV, 400, "row 2 is empty"),
        ("a\n", f"{CSV}; header=maybe", 400, "expected present or absent"),
        ("a", "image/png", 415, "expected application/json"),
        ('"a"', "", 200, "label"),
    ],
)
def test_bodies(ask, body, kind, status, words):
    response = invoke(ask, body, kind)
    refused(response, status, words)


@pytest.mark.parametrize(
    ("header", "own", "kind"),
    [
        ("", "application/json", "application/json"),
        ("*/*", LINES, LINES),
        ("*/*", PLAIN, LINES),
        ("text/html, application/json;q=0.5, text/csv;q=0.9", LINES, CSV),
        ("application/*", LINES, LINES),
        ("application/*", CSV, "application/json"),
        ("text/*", LINES, CSV),
        ("application/x-ndjson", CSV, LINES),
    ],
)
def test_accept(header, own, kind):
    assert accepted(header, own)[0] == kind


def test_accept_nothing_of_ours(ask):
    for header in ("image/png", "application/json;q=0", "application/json;q=x"):
        refused(invoke(ask, '"a"', Accept=header), 406, "expected one of")


def test_custom_attributes(ask, service):
    response = invoke(ask, "a\n", PLAIN, **{ATTRIBUTES: '{"top_k": 1}'})
    assert service.asked[0][2] == {"top_k": 1}
    assert ATTRIBUTES not in response.headers
    response = invoke(ask, "a\n", PLAIN, **{ATTRIBUTES: "trace-7"})
    assert response.headers[ATTRIBUTES] == "trace-7"
    refused(invoke(ask, '"a"', **{ATTRIBUTES: '{"top_k'}), 400, "no JSON")
    both = {"inputs": "a", "parameters": {"top_k": 1}}
    refused(invoke(ask, both, **{ATTRIBUTES: '{"top_k": 2}'}), 400, "top_k is both")


def test_which_model(ask, service, predictor):
    service.predictors["other"] = predictor
    refused(invoke(ask, '"a"'), 400, "there are other, reviews")
    assert invoke(ask, '"a"', **{TARGET_MODEL: "other"}).status_code == 200
    assert service.asked[-1][0] == "other"
    refused(invoke(ask, '"a"', **{TARGET_MODEL: "x"}), 404, "no model")
    service.predictors.clear()
    refused(invoke(ask, '"a"'), 404, "no model is loaded")


def test_batch_transform(ask, service):
    told = ask("GET", "/execution-parameters").json()
    assert told == {
        "MaxConcurrentTransforms": 4, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 4,
    }  # fmt: skip
    for body_bytes in (1024, 20 << 20, 1 << 30):
        told = parameters_of_batches(Limits(body_bytes=body_bytes))
        assert told["MaxConcurrentTransforms"] * told["MaxPayloadInMB"] <= 100
    service.limited(records=4)
    texts = [f"the value of {i}" for i in range(11)]
    response = invoke(ask, "\n".join(texts), PLAIN)
    assert len(response.text.splitlines()) == 11
    assert [len(records) for _, records, _ in service.asked] == [4, 4, 3]
    assert [text for _, records, _ in service.asked for text in records] == texts
    body = "\n".join([*(json.dumps(text) for text in texts), '{"t": 1}'])
    refused(invoke(ask, body, LINES), 400, "of the records after the first 8, record 4")


def test_all_parts_have_one_time_together(ask, service, monkeypatch):
    service.limited(records=1, timeout_s=5.0)
    assert invoke(ask, "\n".join(TEXTS), PLAIN).status_code == 200
    assert len(service.times) == len(TEXTS)
    assert service.times[0] <= 5.0
    assert service.times == sorted(service.times, reverse=True)  # what is left of it
    assert service.times[-1] < service.times[0]
    clock = iter([0.0, 3.0, 6.0])
    monkeypatch.setattr(sagemaker, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    asked = len(service.asked)
    with pytest.raises(TimedOut, match="1 of 3 records were answered in 5 s: send fewer at once"):
        asyncio.run(sagemaker._answers(service, "reviews", TEXTS, {}))
    assert len(service.asked) == asked + 1  # nothing is computed for a client that has its 504


def test_parts_fill_half_the_queue():
    records = ["a" * 10, {"text": "b" * 30, "choices": ["c" * 5, "d" * 5]}, "e", "f" * 400, "g"]
    limits = Limits(queued_tokens=100)
    assert [len(part) for part in parts(records, limits)] == [2, 1, 1, 1]


def test_overload(ask, service):
    service.refusal = Overloaded("the queue is full")
    response = invoke(ask, '"a"')
    refused(response, 429, "the queue is full")
    assert response.headers["Retry-After"] == "1"


class Writer:
    """What a predictor of text generation offers a protocol."""

    def __init__(self, task):
        self.task = task

    def encode(self, record, **parameters):
        return record

    def stream(self, encoded):
        yield from ("the ", "va\u2028lue", "\n")
        yield Ending.of({"text": "the va\u2028lue\n", "new_tokens": 3, "ended": True})


@pytest.mark.parametrize(
    ("body", "accept", "begin"),
    [
        ({"inputs": "a", "stream": True}, "", ""),
        ({"text": "a"}, "text/event-stream", "data: "),
    ],
)
def test_streams(predictor, body, accept, begin):
    service = SmallService(writer=Writer(predictor.task))
    response = invoke(client_of(router, service), body, Accept=accept)
    lines = [line for line in response.text.split("\n") if line]
    assert all(line.startswith(begin) for line in lines)
    found = [json.loads(line.removeprefix(begin)) for line in lines]
    assert [one["text"] for one in found[:-1]] == ["the ", "va\u2028lue", "\n"]
    assert found[-1] == {"done": True, "new_tokens": 3, "ended": True}
    assert service.ended == 1


def test_streams_that_cannot_be(ask, predictor, service):
    service.refusal = Overloaded("the queue is full")
    refused(invoke(ask, {"inputs": "a", "stream": True}), 429, "the queue is full")
    refused(invoke(ask, {"inputs": ["a", "b"], "stream": True}), 400, "expected one")
    refused(invoke(ask, {"inputs": "a", "stream": True}, Accept=CSV), 400, "not text/csv")


# --- several models ------------------------------------------------------------------------------


@pytest.fixture
def several(service, folder):
    service.predictors.clear()
    return client_of(router, service, load_from=folder.parent)


def load(several, name, url):
    return several("POST", "/models", json={"model_name": name, "url": str(url)})


def test_models_come_and_go(several, folder, predictor):
    assert several("GET", "/models").json() == {"models": []}
    told = {"modelName": "a", "modelUrl": str(folder)}
    assert load(several, "a", folder).json() == told
    refused(load(several, "a", folder), 409, "is loaded")
    assert several("GET", "/models/a").json() == told
    answer = several("POST", "/models/a/invoke", json={"text": TEXTS[0]})
    assert answer.json() == predictor(TEXTS[0])
    assert several("DELETE", "/models/a").status_code == 200
    for method, path in (("GET", "/models/a"), ("DELETE", "/models/a")):
        refused(several(method, path), 404, "no model")
    refused(several("POST", "/models/a/invoke", json={"text": "a"}), 404, "no model")


def test_models_in_pages(several, service, predictor):
    service.predictors |= {f"m{i}": predictor for i in range(5)}
    names, token = [], ""
    for expected in (2, 2, 1):
        page = several("GET", "/models", params={"limit": 2, "next_page_token": token}).json()
        assert len(page["models"]) == expected
        names += [one["modelName"] for one in page["models"]]
        token = page.get("nextPageToken", "")
    assert names == [f"m{i}" for i in range(5)]
    assert token == ""
    refused(several("GET", "/models", params={"limit": 0}), 400, "limit")


def test_ping_of_several_models(several, service):
    """One that is being loaded, or has failed, is no reason to end the container."""
    service.ready = False
    assert several("GET", "/ping").status_code == 200
    service.draining = True
    assert several("GET", "/ping").status_code == 503


def test_no_room(several, service, folder):
    service.refusal = NoRoom("there is no memory for another model")
    refused(load(several, "a", folder), 507, "no memory")


def test_paths_of_requests_stay_below_the_root(several, folder, tmp_path):
    root = folder.parent
    link, circle = root / "link", root / "circle"
    (tmp_path / "elsewhere").mkdir()
    if not link.is_symlink():
        link.symlink_to(tmp_path / "elsewhere")
        circle.symlink_to(circle)
    twin = root.parent / f"{root.name}-twin"
    twin.mkdir(exist_ok=True)
    for url in (
        root, "/", "/etc", twin, link, circle, root / "missing", folder / "config.json",
        f"{root}/../{root.name}-twin", "reviews", f"file://{folder}", f"{folder}\0",
        "/" + "a" * 999, f"{root}/reviews/../../../../etc",
    ):  # fmt: skip
        refused(load(several, "a", url), 400, f"url must be a folder below {root}")
    refused(several("POST", "/models", json={"model_name": "a"}), 400, "url")


def test_without_the_setting_there_are_no_routes_of_models(ask):
    for method, path in (("GET", "/models"), ("POST", "/models"), ("POST", "/models/a/invoke")):
        assert ask(method, path).status_code == 404


def test_ping_answers_while_another_is_answered(service):
    """It asks for nothing but what is known."""
    gate = asyncio.Event()

    async def slow(*args, **settings):
        await gate.wait()
        return [{}]

    service.predict = slow
    app = client_of(router, service).app

    async def both():
        import httpx

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = asyncio.create_task(client.post("/invocations", json={"text": "a"}))
            await asyncio.sleep(0)
            assert (await client.get("/ping")).status_code == 200
            assert not answer.done()
            gate.set()
            assert (await answer).json() == {}

    asyncio.run(both())


def test_an_unknown_charset_is_refused(ask):
    refused(invoke(ask, "a", "text/plain; charset=zzz"), 415, "charset is zzz, expected utf-8")
    assert invoke(ask, "a", 'text/plain; charset="UTF-8"').status_code == 200
