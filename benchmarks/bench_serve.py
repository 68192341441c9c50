"""A service under load: batches by length, in order of arrival, and one by one.

    python -m benchmarks serve --out DIR [--rounds 5] [--seconds 15] [--rates 0.3 0.6 ...]

First the fixed mix: 64 texts of log-normal lengths that all wait, in the batches that each policy
makes of them. `requests/s` is by CPU time, medians of interleaved rounds, `over FIFO` the median of
the rounds' ratios, `error` the largest difference of a logit from that of one by one.

Then the load: a process of `xlnet-fast serve` for each policy, and requests that come when they
come (an open loop: nobody waits for an answer before asking), in turn to each. The rates are shares
of what FIFO batches can do in the mix. A request counts as answered within `--timeout` seconds;
`ping p99` is what a health check takes meanwhile.
Writes serve.csv, serve.json and serve.png. A classifier of xlnet-base's geometry with 4 layers.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging

from xlnet_fast.files import write_whole
from xlnet_fast.predict import Predictor
from xlnet_fast.predict.pieces import Encoded
from xlnet_fast.text import builtin_text, train_tokenizer

from .cases.model import random_model
from .cases.serving import arrivals, mixed_lengths
from .cases.shapes import BASE_4, TINY, Geometry
from .harness.quiet import Quiet
from .harness.record import environment
from .pages.serving_plot import draw
from .providers.serving import FIFO, QUEUES, SINGLE, batches

GEOMETRIES = {"base": BASE_4, "tiny": TINY}
ARCHITECTURE = "XLNetForSequenceClassification"
REQUESTS = 64  # of the mix
SHARES = (0.3, 0.6, 0.9, 1.2, 1.6, 2.0, 2.6)
LARGEST_ERROR = 1e-5  # of the largest logit; what it is stands in the table
_ROW = "{:<16}  {:>8}  {:>11}  {:>9}  {:>11}  {:>8}"
_LOAD_ROW = "{:<16}  {:>7}  {:>9}  {:>9}  {:>8}  {:>8}  {:>8}  {:>9}"


def write_model(folder: Path, geometry: Geometry) -> None:
    """Write a random classifier of the geometry, and a tokenizer of the built-in text."""
    train_tokenizer(builtin_text(), 8000, folder)
    random_model(geometry, ARCHITECTURE).save_pretrained(folder)


def texts_of(predictor: Predictor, lengths: Sequence[int]) -> list[str]:
    """Return texts of about so many tokens, one after the other from the built-in text."""
    tokenizer = predictor.task.tokenizer
    ids = tokenizer(builtin_text()[:200_000], add_special_tokens=False)["input_ids"]
    texts, first = [], 0
    for length in lengths:
        count = max(1, length - 2)  # <sep> and <cls> follow
        if first + count > len(ids):
            first = 0
        texts.append(tokenizer.decode(ids[first : first + count]).strip() or "a")
        first += count
    return texts


def compare_mix(
    predictor: Predictor, encoded: Sequence[Encoded], rounds: int
) -> list[dict[str, Any]]:
    """Time the batches of each policy; a row for each.

    Raises `RuntimeError` where a policy changes the logits.
    """
    pieces = [one.pieces[0] for one in encoded]
    plans = {policy: batches(policy, [len(piece) for piece in pieces]) for policy in QUEUES}

    def run(plan: list[list[int]]) -> tuple[float, torch.Tensor]:
        results: list[Any] = [None] * len(pieces)
        begin = time.process_time()
        for batch in plan:
            for i, result in zip(batch, predictor.run([pieces[i] for i in batch]), strict=True):
                results[i] = result
        return time.process_time() - begin, torch.stack(results)

    expected = run(plans[SINGLE])[1]
    times: dict[str, list[float]] = {policy: [] for policy in plans}
    errors = dict.fromkeys(plans, 0.0)
    for _ in range(rounds):
        for policy, plan in plans.items():
            seconds, logits = run(plan)
            times[policy].append(seconds)
            error = ((logits - expected).abs().max() / expected.abs().max()).item()
            errors[policy] = max(errors[policy], error)
            if error > LARGEST_ERROR:
                raise RuntimeError(f"{policy}: the logits are {error:.1e} from those one by one")
    real = sum(map(len, pieces))
    return [
        {
            "policy": policy,
            "batches": len(plan),
            "tokens_over_real": sum(
                len(batch) * max(len(pieces[i]) for i in batch) for batch in plan
            )
            / real,
            "requests_per_cpu_s": len(pieces) / statistics.median(times[policy]),
            "over_fifo": statistics.median(
                a / b for a, b in zip(times[FIFO], times[policy], strict=True)
            ),
            "error": errors[policy],
        }
        for policy, plan in plans.items()
    ]


@contextmanager
def serving(policy: str, model: Path, timeout_s: float) -> Iterator[str]:
    """A service in a process of its own; its address, once it is ready."""
    command = [
        *(sys.executable, "-m", f"{__package__}.providers.serving"),
        *(policy, str(model), str(timeout_s)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = next((line.split()[-1] for line in process.stdout if "http://" in line), None)
        if address is None:
            raise RuntimeError(f"the service of {policy} ended with {process.wait()}")
        yield address
    finally:
        process.terminate()
        process.wait(60)


async def load(
    address: str, texts: Sequence[str], times: Sequence[float], timeout_s: float
) -> tuple[list[tuple[float, int]], list[float]]:
    """Ask at the given times.

    Returns:
        Milliseconds and status of each request, 0 where there was none in time; milliseconds of
        health checks, ten a second.
    """
    import httpx

    async def check() -> None:
        while True:
            start = time.perf_counter()
            (await client.get("/ping")).raise_for_status()
            pings.append((time.perf_counter() - start) * 1e3)
            await asyncio.sleep(0.1)

    pings: list[float] = []

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=2 * timeout_s, limits=limits) as client:
        begin = time.perf_counter()

        async def ask(text: str, due: float) -> tuple[float, int]:
            await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
            body = {"records": [{"text": text}]}
            try:
                response = await client.post("/v1/models/model:predict", json=body)
                status = response.status_code
            except httpx.HTTPError:
                status = 0
            # From when it was due: what the client is late counts too.
            return (time.perf_counter() - begin - due) * 1e3, status

        asked = [ask(texts[i % len(texts)], due) for i, due in enumerate(times)]
        checks = asyncio.ensure_future(check())
        found = list(await asyncio.gather(*asked))
        checks.cancel()
        return found, pings


def load_row(
    policy: str, rate: float, found: Sequence[tuple[float, int]], pings: Sequence[float]
) -> dict[str, Any]:
    """The figures of one policy at one rate; latencies are those of answered requests."""
    answered = sorted(ms for ms, status in found if status == 200)
    row = {
        "policy": policy,
        "rate": rate,
        "requests": len(found),
        "answered": len(answered),
        "refused": sum(status in (429, 503) for _, status in found),
    }
    for percent in (50, 95, 99):
        row[f"p{percent}_ms"] = percentile(answered, percent)
    row["ping_p99_ms"] = percentile(sorted(pings), 99)
    return row


def percentile(ordered: Sequence[float], percent: int) -> float:
    """That of values in ascending order; NaN of none."""
    place = min(len(ordered) - 1, int(len(ordered) * percent / 100))
    return ordered[place] if ordered else float("nan")


def compare_load(
    model: Path, texts: Sequence[str], rates: Sequence[float], seconds: float, timeout_s: float,
    console: Console,
) -> list[dict[str, Any]]:  # fmt: skip
    """Every policy at every rate, in turn; prints a row as soon as it is there."""
    rows = []
    columns = ("policy", "rate", "requests", "answered", "p50 ms", "p95 ms", "p99 ms", "ping p99")
    console.print(_LOAD_ROW.format(*columns))
    with ExitStack() as stack:
        servers = {p: stack.enter_context(serving(p, model, timeout_s)) for p in QUEUES}
        for address in servers.values():  # the first calls warm up
            asyncio.run(load(address, texts, [0.0] * 8, timeout_s))
        for rate in rates:
            for policy, address in servers.items():
                times = arrivals(rate, seconds)
                row = load_row(policy, rate, *asyncio.run(load(address, texts, times, timeout_s)))
                rows.append(row)
                cells = [f"{row[f'{name}_ms']:.0f}" for name in ("p50", "p95", "p99", "ping_p99")]
                console.print(
                    _LOAD_ROW.format(policy, f"{rate:.1f}", len(times), row["answered"], *cells)
                )
    return rows


def write(out: Path, mix: list[dict[str, Any]], rows: list[dict[str, Any]], title: str) -> None:
    """Write the CSV, the JSON with the mix and the environment, and the plot."""
    out.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(out / "serve.csv", table.getvalue())
    facts = {"mix": mix, "environment": environment(torch.device("cpu")), "title": title}
    write_whole(out / "serve.json", json.dumps(facts, indent=1, default=str) + "\n")
    draw(rows, out / "serve.png", title)


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("bench_out"))
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), default="base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of load at each rate")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for an answer")
    parser.add_argument(
        "--rates", type=float, nargs="*", default=SHARES, help="shares of FIFO's throughput"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console, quiet = Console(highlight=False, width=100), Quiet()
    geometry = GEOMETRIES[arguments.geometry]
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "model"
        write_model(model, geometry)
        predictor = Predictor.load(str(model))
        texts = texts_of(predictor, mixed_lengths(REQUESTS))
        mix = compare_mix(predictor, [predictor.encode(text) for text in texts], arguments.rounds)
        columns = ("the mix", "batches", "requests/s", "over FIFO", "tokens/real", "error")
        console.print(_ROW.format(*columns))
        for row in mix:
            cells = (f"{row[key]:.2f}" for key in ("over_fifo", "tokens_over_real"))
            speed = f"{row['requests_per_cpu_s']:.1f}"
            error = f"{row['error']:.1e}"
            console.print(_ROW.format(row["policy"], row["batches"], speed, *cells, error))
        capacity = next(row["requests_per_cpu_s"] for row in mix if row["policy"] == FIFO)
        rates = [share * capacity for share in arguments.rates]
        if rates:
            texts = texts_of(predictor, mixed_lengths(8 * REQUESTS, seed=1))
            rows = compare_load(model, texts, rates, arguments.seconds, arguments.timeout, console)
            title = f"{geometry.name}, classification, lengths 4 to 512 (median 55), one thread"
            write(arguments.out, mix, rows, title)
            console.print(f"written: {arguments.out}/serve.csv, serve.json, serve.png")
    quiet.look()
    if warning := quiet.warning():
        console.print(warning)
    return 0
