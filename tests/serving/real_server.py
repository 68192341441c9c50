"""`xlnet-fast serve` as a process of another environment than the clients', which is their own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx

PYTHON = os.environ.get("SERVER_PYTHON", sys.executable)
MODELS = str(Path(__file__).with_name("tiny_models.py"))
END_S = 60


def models(folder: Path) -> Path:
    """A folder of a model of every task; see tiny_models.py."""
    subprocess.run([PYTHON, MODELS, str(folder)], check=True)
    return folder


def served(*arguments: str) -> contextlib.AbstractContextManager[str]:
    """The URL of ``xlnet-fast serve`` at a free port."""
    return process_of("-m", "xlnet_fast", "serve", *arguments, "--port", "0")


@contextlib.contextmanager
def process_of(*arguments: str, **environment: str) -> Iterator[str]:
    """The URL of a server that a command of Python starts; it ends by SIGTERM, with 0."""
    process = subprocess.Popen(
        [PYTHON, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"serving.* at http://[\d.]+:(\d+)", line):
                break
        else:
            raise AssertionError("".join(said))
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield f"http://127.0.0.1:{found[1]}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_S) == 0
    finally:
        process.kill()
        process.wait()


def answers(url: str, model: str, records: list, **parameters: object) -> list[dict]:
    """By the service's own protocol."""
    body = {"records": records, "parameters": parameters}
    response = httpx.post(f"{url}/v1/models/{model}:predict", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["answers"]
