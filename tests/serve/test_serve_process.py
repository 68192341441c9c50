"""The real process: the line that says it is there, a hot load on SIGHUP, its end under load."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

from served import TEXTS, classifier

PATH = "/v1/models/reviews:predict"
BODY = json.dumps({"records": [*TEXTS, TEXTS[2] * 3]})


class Client(threading.Thread):
    """Asks over one connection until it is told to come back later, or is not let in.

    Attributes:
        answered: versions that answered. ended: how it was sent away. lost: what should not be.
    """

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port = port
        self.answered, self.ended, self.lost = [], "", []
        self.start()

    def run(self):
        connection = None
        while not self.ended and not self.lost:
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                    connection.connect()
            except ConnectionRefusedError:
                self.ended = "not let in"
                return
            try:
                headers = {"content-type": "application/json"}
                connection.request("POST", PATH, BODY, headers)
                response = connection.getresponse()
                content = json.loads(response.read())
            except Exception as error:  # whatever it is, a request was lost
                self.lost.append(repr(error))
                return
            if response.status == 200 and len(content["answers"]) == 4:
                self.answered.append(content["version"])
                if response.getheader("connection") == "close":
                    connection = None
            elif response.status == 503 and response.getheader("retry-after"):
                assert response.getheader("connection") == "close"
                self.ended = "told to come back"
            else:
                self.lost.append((response.status, content))


def started(models, log):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "xlnet_fast", "serve", str(models), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--poll", "0", "--drain", "30"],
        stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
    )  # fmt: skip
    line = process.stdout.readline().strip()
    assert line.startswith("serving reviews at http://127.0.0.1:"), line
    return process, int(line.rpartition(":")[2])


def wait_for(condition, seconds=100):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_hot_load_and_the_end_lose_no_request(tmp_path):
    models = tmp_path / "models"
    first = classifier(models / "reviews" / "1")
    with open(tmp_path / "log", "w", encoding="utf-8") as log:
        process, port = started(models, log)
        try:
            clients = [Client(port) for _ in range(8)]
            wait_for(lambda: all(client.answered for client in clients))
            shutil.copytree(first, models / "reviews" / "2")
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: all(client.answered[-1] == "2" for client in clients))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            for client in clients:
                client.join(60)
        finally:
            process.kill()
            process.wait()
    assert [client.lost for client in clients] == [[]] * 8
    assert all(client.ended for client in clients)
    assert {version for client in clients for version in client.answered} == {"1", "2"}
    assert sum(client.ended == "told to come back" for client in clients) >= 1
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines[-1]["message"] == "ended"
    (ending,) = [line for line in lines if line["message"] == "ending"]
    assert ending["in_flight"] >= 1
    answered = sum(line.get("status") == 200 for line in lines)
    assert answered == sum(len(client.answered) for client in clients)
