"""The service under Ray Serve, on this machine: replicas are killed under load, and added."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import ray
import torch
from ray import serve
from tiny_finetuning import checkpoint
from transformers import XLNetConfig, XLNetForSequenceClassification

from xlnet_fast.errors import ArgumentError
from xlnet_fast.serve.ray_app import RayArguments, application

ROOT = Path(__file__).resolve().parents[2]
RECORD = {"text": "the value of an object with a function"}
CLIENTS, TRIES = 4, 5
READY_S = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = checkpoint(tmp_path_factory.mktemp("ray") / "model")
    torch.manual_seed(0)
    config = XLNetConfig.from_pretrained(folder)
    XLNetForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def door():
    """A Ray of this machine alone; the address of its HTTP door."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15, and others on this machine come first
    variables = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XLNET_FAST_QUALIFICATION": "none",
    }
    ray.init(
        num_cpus=4, include_dashboard=False, logging_level="warning",
        runtime_env={"env_vars": variables},
    )  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def running(name: str) -> int:
    """How many replicas answer."""
    deployment = serve.status().applications[name].deployments["xlnet-fast"]
    return {str(state): count for state, count in deployment.replica_states.items()}.get(
        "RUNNING", 0
    )


def wait_for_replicas(name: str, count: int) -> float:
    """Seconds until so many answer."""
    began = time.monotonic()
    while running(name) < count:
        assert time.monotonic() - began < READY_S, serve.status()
        time.sleep(0.2)
    return time.monotonic() - began


def replicas(name: str) -> list[int]:
    """Process ids, of this application's alone."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(f"ray::ServeReplica:{name}:".encode()):
            found.append(int(process.name))
    return found


def load(url: str, seconds: float) -> tuple[Counter[str], list[float]]:
    """Ask all the time, from several clients; (what was counted, seconds of each answer)."""
    counted: Counter[str] = Counter()
    took: list[float] = []
    lock, end = threading.Lock(), time.monotonic() + seconds

    def client(_: int) -> None:
        with httpx.Client(timeout=30) as http:
            while time.monotonic() < end:
                began = time.monotonic()
                outcome, tries = ask(http, url)
                with lock:
                    counted[outcome] += 1
                    counted["requests"] += 1
                    counted["retries"] += tries - 1
                    took.append(time.monotonic() - began)

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(client, range(CLIENTS)))
    return counted, took


def ask(http: httpx.Client, url: str) -> tuple[str, int]:
    """A request that is tried again, as clients should: ("answered" or "failed", tries)."""
    for number in range(1, TRIES + 1):
        try:
            response = http.post(url, json={"records": [RECORD]})
            if response.status_code == 200:
                assert response.json()["answers"][0]["label"]
                return "answered", number
        except httpx.TransportError:
            pass
        time.sleep(0.1 * 2**number)
    return "failed", TRIES


def test_a_replica_that_is_killed_under_load_costs_no_answer(door, model):
    arguments = RayArguments(
        models=str(model), options={"name": "reviews"}, min_replicas=2, max_replicas=2, cpus=0.5
    )
    serve.run(application(arguments), name="steady", route_prefix="/steady")
    wait_for_replicas("steady", 2)
    before = replicas("steady")
    assert len(before) == 2
    url = f"{door}/steady/v1/models/reviews:predict"
    killer = threading.Timer(4.0, os.kill, (before[0], signal.SIGKILL))
    killer.start()
    counted, took = load(url, 20.0)
    print(f"\nkilled one of two after 4 of 20 s: {dict(counted)}")
    seconds = wait_for_replicas("steady", 2)
    print(f"two again {seconds:.0f} s later")
    took.sort()
    print(f"median {took[len(took) // 2] * 1e3:.0f} ms, longest {took[-1] * 1e3:.0f} ms")
    after = replicas("steady")
    assert before[0] not in after
    assert before[1] in after
    assert counted["failed"] == 0
    assert counted["answered"] == counted["requests"] > 50
    serve.delete("steady")


def test_replicas_are_added_under_load_and_what_is_too_much_is_refused(door, model):
    arguments = RayArguments(
        models=str(model), options={"name": "reviews"}, min_replicas=1, max_replicas=2,
        target_requests=1, most_requests=2, queued_requests=2, cpus=0.5,
    )  # fmt: skip
    serve.run(application(arguments), name="growing", route_prefix="/growing")
    wait_for_replicas("growing", 1)
    assert running("growing") == 1
    url = f"{door}/growing/v1/models/reviews:predict"
    codes: Counter[int] = Counter()
    end = time.monotonic() + READY_S

    def client(_: int) -> None:
        with httpx.Client(timeout=60) as http:
            while running("growing") < 2 and time.monotonic() < end:
                response = http.post(url, json={"records": [RECORD] * 64})
                codes[response.status_code] += 1
                if response.status_code != 200:
                    time.sleep(0.5)  # a new replica needs this machine's cores too

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(client, range(8)))
    print(f"\nfrom one replica to two: {dict(codes)}")
    assert running("growing") == 2
    assert codes[503] > 0  # the queue of Ray's door has an end
    assert codes[200] > 0
    assert set(codes) <= {200, 503, 429}
    serve.delete("growing")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"options": {"prot": 1}}, "xlnet-fast serve has no prot"),
        ({"min_replicas": 3, "max_replicas": 2}, "expected at least min_replicas"),
        ({"options": {"dtype": "int3"}}, "dtype must be one of"),
    ],
)
def test_what_is_refused_before_ray_is_asked(given, told):
    with pytest.raises(ArgumentError, match=told):
        application(RayArguments(models="m", **given))
