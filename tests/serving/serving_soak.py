"""A service under mixed, malformed and cancelled requests for minutes: does it keep its memory?

    python tests/serving/serving_soak.py [--minutes 5] [--clients 8]

`make soak` runs it. A process of `xlnet-fast serve` with a tiny classifier and a tiny writer; its
clients ask well and badly, and hang up. Prints the resident memory every ten seconds; exits with 1
where a request met an error of the server's, a health check took half a second, the memory of the
second half grew by more than a hundredth, or the end was no clean one.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import torch
from transformers import XLNetConfig, XLNetForSequenceClassification, XLNetLMHeadModel
from transformers.utils import logging

from xlnet_fast.text import builtin_text, train_tokenizer

SHAPE = {"d_model": 64, "n_layer": 2, "n_head": 2, "d_inner": 128, "vocab_size": 2000}
GROWTH = 0.01
SLOW_PING_MS = 500.0
PREDICT, COMPLETE = "/v1/models/labels:predict", "/v1/completions"


def write_models(folder: Path) -> None:
    """One of labels and one that writes."""
    torch.manual_seed(0)
    for name, cls in (("labels", XLNetForSequenceClassification), ("writer", XLNetLMHeadModel)):
        place = folder / name / "1"
        train_tokenizer(builtin_text()[:100_000], 2000, place)
        cls(XLNetConfig(**SHAPE)).save_pretrained(place)


class Client:
    """Asks, well and badly, until the time is over."""

    def __init__(self, client: httpx.AsyncClient, seed: int, seen: collections.Counter) -> None:
        """``seen`` counts what came of each kind of request."""
        self.client, self.seen = client, seen
        self.draw = random.Random(seed)
        self.words = builtin_text()[:50_000].split()

    def text(self) -> str:
        """Of 1 to 400 words."""
        count = min(400, int(self.draw.lognormvariate(3.0, 1.0)) + 1)
        first = self.draw.randrange(len(self.words) - count)
        return " ".join(self.words[first : first + count])

    async def run(self, until: float) -> None:
        """One request after the other."""
        kinds = [self.good] * 6 + [self.several, self.malformed, self.malformed]
        kinds += [self.cancelled, self.cancelled_stream, self.stream]
        while time.monotonic() < until:
            kind = self.draw.choice(kinds)
            try:
                status = await kind()
            except httpx.HTTPError as error:
                status = type(error).__name__
            self.seen[kind.__name__, status] += 1

    async def good(self) -> int:
        response = await self.client.post(PREDICT, json={"record": {"text": self.text()}})
        return response.status_code

    async def several(self) -> int:
        records = [{"text": self.text()} for _ in range(self.draw.randrange(1, 20))]
        return (await self.client.post(PREDICT, json={"records": records})).status_code

    async def malformed(self) -> int:
        body = self.draw.choice(
            [b"", b"{", b"[" * 5000, b'{"record": {"text": 1}}', b'{"records": []}', b"\xff\xfe",
             b'{"record": {"text": "a"}, "parameters": {"top_k": -1}}', b'{"record": {"txt": "a"}}',
             b'{"record": {"text": "' + b"a " * 200_000 + b'"}}', b"x" * 5_000_000]
        )  # fmt: skip
        headers = {"content-type": self.draw.choice(["application/json", "text/plain", "a/b"])}
        path = self.draw.choice([PREDICT, COMPLETE, "/invocations", "/v1/models/none:predict"])
        return (await self.client.post(path, content=body, headers=headers)).status_code

    async def cancelled(self) -> str:
        records = [{"text": self.text()} for _ in range(10)]
        asked = self.client.post(PREDICT, json={"records": records})
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asked, self.draw.random() * 0.05)
        return "hung up"

    def _writing(self) -> dict:
        return {"model": "writer", "prompt": self.text()[:200], "max_tokens": 30, "stream": True}

    async def cancelled_stream(self) -> str:
        async with self.client.stream("POST", COMPLETE, json=self._writing()) as response:
            async for _ in response.aiter_bytes():
                return f"hung up at {response.status_code}"
        return "ended before"

    async def stream(self) -> int:
        async with self.client.stream("POST", COMPLETE, json=self._writing()) as response:
            body = await response.aread()
        if response.status_code == 200 and not body.rstrip().endswith(b"[DONE]"):
            return 599
        return response.status_code


def resident_mib(pid: int) -> float:
    """Memory of a process that is in RAM (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line) / 1024


async def watch(client: httpx.AsyncClient, pid: int, until: float) -> tuple[list[float], list]:
    """Memory every second, printed every ten, and what health checks take."""
    memory, pings = [], []
    while time.monotonic() < until:
        begin = time.perf_counter()
        (await client.get("/healthz")).raise_for_status()
        pings.append((time.perf_counter() - begin) * 1e3)
        memory.append(resident_mib(pid))
        if len(memory) % 10 == 1:
            print(f"{len(memory):5d} s  {memory[-1]:7.1f} MiB", flush=True)
        await asyncio.sleep(1.0)
    return memory, pings


async def soak(address: str, pid: int, minutes: float, clients: int) -> list[str]:
    """Ask for minutes; what is wrong."""
    until = time.monotonic() + 60 * minutes
    seen: collections.Counter = collections.Counter()
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        asking = [Client(client, seed, seen).run(until) for seed in range(clients)]
        (memory, pings), *_ = await asyncio.gather(watch(client, pid, until), *asking)
    for (kind, status), count in sorted(seen.items(), key=str):
        print(f"{count:7d}  {kind}: {status}")
    half, ping = memory[len(memory) // 2 :], sorted(pings)[int(len(pings) * 0.99)]
    quarter = max(1, len(half) // 2)
    grown = statistics.median(half[-quarter:]) / statistics.median(half[:quarter]) - 1
    print(f"{sum(seen.values())} requests; memory grew by {grown:.2%} in the second half")
    print(f"health checks: 99th percentile {ping:.0f} ms")
    wrong = [
        f"{count} of {kind} met {status}"
        for (kind, status), count in seen.items()
        if (isinstance(status, int) and status >= 500 and status != 503)
        or (isinstance(status, str) and "Error" in status)
    ]
    if grown > GROWTH:
        wrong.append(f"memory grew by {grown:.2%}")
    if ping > SLOW_PING_MS:
        wrong.append(f"health checks took {ping:.0f} ms")
    if not seen["good", 200] or not seen["stream", 200]:
        wrong.append("no good request was answered")
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a command; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args(argv)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        write_models(Path(temporary))
        command = [sys.executable, "-m", "xlnet_fast", "serve", temporary, "--port", "0"]
        server = subprocess.Popen(
            [*command, "--log-level", "error"], stdout=subprocess.PIPE, text=True
        )
        try:
            address = next(line.split()[-1] for line in server.stdout if "http://" in line)
            wrong = asyncio.run(soak(address, server.pid, arguments.minutes, arguments.clients))
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
        finally:
            server.kill()
    if code:
        wrong.append(f"the service ended with {code}")
    print("\n".join(f"WRONG: {line}" for line in wrong) or "nothing wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
