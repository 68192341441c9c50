"""The real process as SageMaker starts it: one model, and several that requests load."""

from __future__ import annotations

import json
import shutil
import threading
import time

import httpx
import pytest
from real_server import answers, process_of

CONTAINER = ("-m", "xlnet_fast.cli.sagemaker_serving", "serve")
TEXTS = ["the value of an object", "this", "a class"]


@pytest.fixture(scope="module")
def container(folder):
    environment = {"SAGEMAKER_BIND_TO_PORT": "0", "SM_MODEL_DIR": str(folder / "reviews")}
    with process_of(*CONTAINER, **environment) as url:
        yield url


def test_one_model(container):
    assert httpx.get(f"{container}/ping").status_code == 200
    assert httpx.get(f"{container}/execution-parameters").json()["MaxPayloadInMB"] == 6
    lines = "".join(f"{json.dumps({'text': text})}\n" for text in TEXTS)
    response = httpx.post(
        f"{container}/invocations", content=lines,
        headers={"Content-Type": "application/jsonlines", "Accept": "application/jsonlines"},
    )  # fmt: skip
    found = [json.loads(line) for line in response.text.splitlines()]
    assert found == answers(container, "reviews", TEXTS)


def test_ping_is_quick_under_load(container):
    """SageMaker waits two seconds; a process without load answers in some milliseconds."""
    body, stop = "\n".join(TEXTS * 200), threading.Event()
    statuses = []

    def load():
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                headers = {"Content-Type": "text/plain"}
                response = client.post(f"{container}/invocations", content=body, headers=headers)
                statuses.append(response.status_code)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    times_s = []
    with httpx.Client() as client:
        for _ in range(100):
            begin = time.monotonic()
            assert client.get(f"{container}/ping").status_code == 200
            times_s.append(time.monotonic() - begin)
            time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    times_s.sort()
    print(f"ping under load: p50 {1e3 * times_s[50]:.0f} ms, p99 {1e3 * times_s[98]:.0f} ms")
    assert times_s[98] < 1


def test_several_models(folder, tmp_path):
    root = tmp_path / "models"
    for name, source in (("hash1", "reviews"), ("hash2", "writer")):
        shutil.copytree(folder / source, root / name / "model")
    environment = {
        "SAGEMAKER_BIND_TO_PORT": "0", "SAGEMAKER_MULTI_MODEL": "true",
        "XLNET_FAST_SERVE_LOAD_FROM": str(root),
    }  # fmt: skip
    with process_of(*CONTAINER, **environment) as url, httpx.Client(base_url=url) as client:
        client.timeout = httpx.Timeout(120)
        assert client.get("/ping").status_code == 200
        assert client.get("/models").json() == {"models": []}
        for name in ("hash1", "hash2"):
            load = {"model_name": name, "url": str(root / name / "model")}
            assert client.post("/models", json=load).status_code == 200
            assert client.post("/models", json=load).status_code == 409
        told = client.post("/models/hash1/invoke", json={"text": TEXTS[0]}).json()
        assert [told] == answers(url, "hash1", TEXTS[:1])
        asked = {"inputs": TEXTS[0], "parameters": {"max_new_tokens": 20}, "stream": True}
        with client.stream("POST", "/models/hash2/invoke", json=asked) as response:
            lines = [json.loads(line) for line in response.iter_lines()]
        (whole,) = answers(url, "hash2", TEXTS[:1], max_new_tokens=20)
        assert "".join(line.get("text", "") for line in lines) == whole["text"]
        assert lines[-1]["new_tokens"] == whole["new_tokens"]
        wrong = {"model_name": "x", "url": str(folder / "reviews")}
        assert client.post("/models", json=wrong).status_code == 400
        assert client.delete("/models/hash1").status_code == 200
        assert client.post("/models/hash1/invoke", json={"text": "a"}).status_code == 404
        assert client.get("/ping").status_code == 200
