"""Open Inference Protocol: tensors in, tensors out, in JSON and in binary."""

from __future__ import annotations

import json
import struct

import numpy
import pytest
from small_service import TEXTS, SmallService, classifier, client_of, refused
from tiny_finetuning import checkpoint
from transformers import XLNetForMultipleChoice, XLNetForTokenClassification

from xlnet_fast.predict import Predictor
from xlnet_fast.serve.contract import Overloaded
from xlnet_fast.serve.protocols.open_inference import JSON_LENGTH, router

INFER = "/v2/models/reviews/infer"


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.load(str(classifier(tmp_path_factory.mktemp("served"))))


@pytest.fixture
def service(predictor):
    return SmallService(reviews=predictor)


@pytest.fixture
def ask(service):
    return client_of(router, service)


def tensor(name="text", data=TEXTS, shape=None, **others):
    return {"name": name, "datatype": "BYTES", "shape": shape or [len(data)], "data": data} | others


def body(*tensors, **others):
    return {"inputs": list(tensors), **others}


def outputs(response):
    assert response.status_code == 200, response.text
    return {one["name"]: one for one in response.json()["outputs"]}


def packed(texts):
    raw = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in raw)


def test_server_and_health(ask, service):
    assert ask("GET", "/v2").json()["extensions"] == ["binary_tensor_data"]
    assert ask("GET", "/v2/health/live").json() == {"live": True}
    assert ask("GET", "/v2/health/ready").json() == {"ready": True}
    assert ask("GET", "/v2/models").json() == {"models": ["reviews"]}
    service.ready = False
    assert ask("GET", "/v2/health/live").status_code == 200
    response = ask("GET", "/v2/health/ready")
    assert (response.status_code, response.json()) == (503, {"ready": False})


@pytest.mark.parametrize("path", ["/v2/models/reviews", "/v2/models/reviews/versions/1"])
def test_metadata_and_readiness(ask, path):
    told = ask("GET", path).json()
    assert told["versions"] == ["1"]
    assert [(one["name"], one["datatype"], one["shape"]) for one in told["inputs"]] == [
        ("text", "BYTES", [-1]),
        ("text_pair", "BYTES", [-1]),
    ]
    by_name = {one["name"]: one for one in told["outputs"]}
    assert by_name["scores"]["shape"] == [-1, 3]
    assert json.loads(by_name["scores"]["parameters"]["labels"])[:2] == ["good", "bad"]
    assert ask("GET", f"{path}/ready").json() == {"name": "reviews", "ready": True}


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/reviews/versions/7"])
def test_unknown_models(ask, path):
    for response in (ask("GET", path), ask("GET", f"{path}/ready")):
        refused(response, 404, "error")
    refused(ask("POST", f"{path}/infer", json=body(tensor())), 404, "error")


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_answers_are_the_predictors(ask, predictor, shape):
    response = ask("POST", INFER, json=body(tensor(shape=shape), id="a1"))
    assert response.json()["id"] == "a1"
    assert response.json()["model_version"] == "1"
    found, expected = outputs(response), predictor(TEXTS)
    assert set(found) == {"label", "score", "scores", "cut"}
    assert found["label"]["data"] == [one["label"] for one in expected]
    scores = numpy.array(found["scores"]["data"]).reshape(found["scores"]["shape"])
    for row, one in zip(scores, expected, strict=True):
        assert row.tolist() == [one["scores"][label] for label in LABELS(predictor)]
    assert found["cut"]["data"] == [False] * 3


def LABELS(predictor):
    names = predictor.task.model.config.id2label
    return [names[i] for i in range(3)]


def test_nested_data_and_pairs(ask, service, predictor):
    pair = tensor("text_pair", [[text] for text in reversed(TEXTS)], [3, 1])
    found = outputs(ask("POST", INFER, json=body(tensor(), pair)))
    expected = [
        predictor({"text": a, "text_pair": b}) for a, b in zip(TEXTS, reversed(TEXTS), strict=True)
    ]
    assert found["score"]["data"] == pytest.approx([one["score"] for one in expected])
    assert service.asked[0][1][0] == {"text": TEXTS[0], "text_pair": TEXTS[2]}


def test_outputs_that_are_named(ask, predictor):
    wanted = [{"name": "answer"}, {"name": "label"}]
    response = ask("POST", INFER, json=body(tensor(), outputs=wanted, parameters={"top_k": 1}))
    assert [one["name"] for one in response.json()["outputs"]] == ["answer", "label"]
    answers = [json.loads(text) for text in outputs(response)["answer"]["data"]]
    assert answers == predictor(TEXTS, top_k=1)
    refused(ask("POST", INFER, json=body(tensor(), outputs=[{"name": "x"}])), 400, "no output")
    refused(
        ask("POST", INFER, json=body(tensor(), parameters={"top_k": 1})), 400, "leave top_k out"
    )


def test_binary_data(ask, predictor):
    raw = packed(TEXTS)
    given = tensor(parameters={"binary_data_size": len(raw)})
    del given["data"]
    wanted = [
        {"name": "label", "parameters": {"binary_data": True}},
        {"name": "scores"},
        {"name": "cut", "parameters": {"binary_data": False}},
    ]
    head = json.dumps(body(given, outputs=wanted, parameters={"binary_data_output": True})).encode()
    response = ask("POST", INFER, content=head + raw, headers={JSON_LENGTH: str(len(head))})
    assert response.status_code == 200, response.text
    end = int(response.headers[JSON_LENGTH])
    label, scores, cut = json.loads(response.content[:end])["outputs"]
    size = label["parameters"]["binary_data_size"]
    expected = predictor(TEXTS)
    assert response.content[end : end + size] == packed([one["label"] for one in expected])
    found = numpy.frombuffer(response.content[end + size :], "<f4").reshape(scores["shape"])
    assert found[:, 0].tolist() == [one["scores"]["good"] for one in expected]
    assert cut["data"] == [False] * 3


@pytest.mark.parametrize(
    ("size", "raw", "length", "words"),
    [
        (7, packed(["abc"]), None, "binary data are not all there"),
        (7, packed(["abc"]) + b"x", 0, "belong to no input"),
        (6, packed(["abc"])[:6], 0, "end within an element"),
        (2, b"ab", 0, "end within an element"),
        (5, struct.pack("<I", 1) + b"\xff", 0, "no UTF-8"),
        (-1, b"", 0, "expected a number of bytes"),
        (8, struct.pack("<I", 2**31) + b"abcd", 0, "end within an element"),
        (7, packed(["abc"]), 10**6, "expected the length of the JSON"),
        (7, packed(["abc"]), "0" * 5000, "expected the length of the JSON"),
        (7, packed(["abc"]), "-1", "expected the length of the JSON"),
    ],
)
def test_binary_data_that_cannot_be_read(ask, size, raw, length, words):
    given = {"name": "text", "datatype": "BYTES", "shape": [1]}
    head = json.dumps(body(given | {"parameters": {"binary_data_size": size}})).encode()
    content = head + raw
    if length is None:
        content = content[: len(head) + 3]
    sent = length if isinstance(length, str) else str(length or len(head))
    refused(ask("POST", INFER, content=content, headers={JSON_LENGTH: sent}), 400, words)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (body(), "inputs"),
        (body(tensor(shape=[2])), "has the shape [2], but 3 element(s)"),
        (body(tensor(shape=[1, 3])), "expected [n] or [n, 1]"),
        (body(tensor(shape=[-3])), "expected sizes"),
        (body(tensor(data=[])), "no record"),
        (body(tensor(data=[1, 2])), "type int, expected a text"),
        (body(tensor(datatype="FP32")), "expected BYTES"),
        (body(tensor("texts")), "it has: text, text_pair"),
        (body(tensor(), tensor()), "twice"),
        (body(tensor(), tensor("text_pair", ["a"])), "different numbers of records"),
        (body(tensor("text_pair")), "no text"),
        (body(tensor(), parameters={"temperature": 1}), "no parameter 'temperature'"),
        (body(tensor(parameters={"x": 1})), "has parameters other than"),
        (body(tensor(), surprise=1), "surprise"),
        (body(tensor(data=["", "a", "b"])), "record 1: text is empty"),
        ([], "valid dictionary"),
    ],
)
def test_requests_that_cannot_be_answered(ask, wrong, words):
    response = ask("POST", INFER, json=wrong)
    refused(response, 400, words)
    assert set(response.json()) == {"error"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff", "no JSON"),
        (b'{"inputs": NaN}', "NaN is no number"),
        (b'{"id": "\\ud800", "inputs": []}', "half of a surrogate pair"),
    ],
)
def test_bodies_that_are_no_json(ask, content, words):
    refused(ask("POST", INFER, content=content), 400, words)


def test_overload_says_when_to_come_again(ask, service):
    service.refusal = Overloaded("the queue is full")
    response = ask("POST", INFER, json=body(tensor()))
    refused(response, 429, "the queue is full")
    assert response.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("problem", "labels", "expected"),
    [
        ("regression", {0: "LABEL_0"}, {"value", "cut"}),
        ("multi_label_classification", {0: "a", 1: "b"}, {"labels", "scores", "cut"}),
    ],
)
def test_other_problems(tmp_path, problem, labels, expected):
    folder = classifier(tmp_path, problem_type=problem, id2label=labels)
    predictor = Predictor.load(str(folder))
    found = outputs(
        client_of(router, SmallService(reviews=predictor))("POST", INFER, json=body(tensor()))
    )
    assert set(found) == expected
    if "labels" in found:
        answers = predictor(TEXTS)
        assert [json.loads(one) for one in found["labels"]["data"]] == [
            one["labels"] for one in answers
        ]


def test_lists_of_texts(tmp_path):
    folder = classifier(tmp_path, architecture=XLNetForMultipleChoice)
    predictor = Predictor.load(str(folder))
    ask = client_of(router, SmallService(reviews=predictor))
    choices = [["a value", "a class"], ["this", "of"]]
    records = [{"passage": x, "choices": y} for x, y in zip(TEXTS[:2], choices, strict=True)]
    passage = tensor("passage", TEXTS[:2])
    for data, shape in ((choices, [2, 2]), ([json.dumps(one) for one in choices], [2, 1])):
        found = outputs(ask("POST", INFER, json=body(passage, tensor("choices", data, shape))))
        expected = predictor(records)
        assert found["choice"]["data"] == [one["choice"] for one in expected]
        assert found["text"]["data"] == [one["text"] for one in expected]
    wrong = body(passage, tensor("choices", ["a", "[]"]))
    refused(ask("POST", INFER, json=wrong), 400, "input choices is no JSON")
    inputs = ask("GET", "/v2/models/reviews").json()["inputs"]
    assert [one["shape"] for one in inputs] == [[-1], [-1, -1], [-1]]


def test_written_texts(tmp_path):
    writer = Predictor.load(str(checkpoint(tmp_path)), task="generation")
    ask = client_of(router, SmallService(reviews=writer))
    wanted = {"parameters": {"max_new_tokens": 3}}
    found = outputs(ask("POST", INFER, json=body(tensor(), **wanted)))
    expected = writer(TEXTS, max_new_tokens=3)
    for name, kind in (("text", "BYTES"), ("new_tokens", "INT64"), ("ended", "BOOL")):
        assert found[name]["data"] == [one[name] for one in expected]
        assert found[name]["datatype"] == kind
    wanted["parameters"] |= {"num_beams": 2, "num_return_sequences": 2}
    refused(ask("POST", INFER, json=body(tensor(), **wanted)), 400, "leave num_return_sequences")


def test_vectors_and_entities(tmp_path):
    vectors = Predictor.load(str(checkpoint(tmp_path / "a")), task="embeddings")
    ask = client_of(router, SmallService(reviews=vectors))
    found = outputs(ask("POST", INFER, json=body(tensor())))["embedding"]
    assert (found["shape"], found["datatype"]) == ([3, 32], "FP32")
    rows = numpy.array(found["data"]).reshape(3, 32).tolist()
    assert rows == [one["embedding"] for one in vectors(TEXTS)]
    folder = classifier(tmp_path / "b", architecture=XLNetForTokenClassification)
    words = Predictor.load(str(folder))
    found = outputs(
        client_of(router, SmallService(reviews=words))("POST", INFER, json=body(tensor()))
    )
    assert set(found) == {"cut", "answer"}
    assert [json.loads(one) for one in found["answer"]["data"]] == words(TEXTS)


def test_the_description_can_be_made(ask):
    paths = ask("GET", "/openapi.json").json()["paths"]
    content = paths["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "application/octet-stream"}
    assert "$ref" not in json.dumps(content)
