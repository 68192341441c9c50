"""Drafted tokens: a text that repeats itself, by Hugging Face, by ours, and by ours with drafts.

    python -m benchmarks micro.drafts [--geometry base] [--new 300] [--rounds 3] [--threads 1]

A random model that takes the likeliest token soon goes round in circles, as texts with lists,
tables and code do in part: what drafts are for. `ms` is the time per token of one `generate`, and
`HF / it` Hugging Face's over it, medians of interleaved rounds. `passes` is how often the layers
ran for the text, the prompt included; `distinct` how many of its tokens are. What does not write
Hugging Face's tokens is not timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers.utils import logging

import xlnet_fast
from xlnet_fast.hf.families.xlnet import inputs

from ..cases.generate import ARCHITECTURE, prompts, widen
from ..cases.model import load_source, share
from ..cases.shapes import BASE_4, TINY, Geometry

GEOMETRIES = {"base": BASE_4, "tiny": TINY}
PROMPT = 20
DRAFTED = (3, 10)
"""Tokens that a pass tries at most."""
_ROW = "{:<24}  {:>8}  {:>8}  {:>7}  {:>9}"
Writers = dict[str, Callable[[], Tensor]]


def writers(geometry: Geometry, new: int) -> Writers:
    """By name, what writes (1, new) tokens; the first is Hugging Face's."""
    source = load_source(geometry, None, None, ARCHITECTURE)
    widen(source.model)
    source.model.generation_config.eos_token_id = None
    ids = prompts(source.corpus, 1, PROMPT)
    ours = xlnet_fast.accelerate(share(source.model))

    def writer(model: Any, **drafts: int) -> Callable[[], Tensor]:
        def write() -> Tensor:
            text: Tensor = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=False,
                **drafts,
            )
            return text[:, PROMPT:]

        return write

    found = {"Hugging Face": writer(source.model), "ours": writer(ours)}
    for count in DRAFTED:
        name = f"ours, {count} drafts at most"
        found[name] = writer(ours, prompt_lookup_num_tokens=count)
    return found


def passes_of(write: Callable[[], Tensor]) -> int:
    """How often the layers of ours run for a text."""
    count, embed = 0, inputs.embed_tokens

    def counted(*args: Any) -> Tensor:
        nonlocal count
        count += 1
        return embed(*args)

    inputs.embed_tokens = counted
    try:
        write()
    finally:
        inputs.embed_tokens = embed
    return count


def compare(found: Writers, rounds: int, console: Console) -> None:
    """Check each, time those that are right, and print a row for each."""
    (theirs, write), *_ = found.items()
    expected = write()
    console.print(_ROW.format("", "ms", "HF / it", "passes", "distinct"))
    right = {n: w for n, w in found.items() if torch.equal(w(), expected)}
    times: dict[str, list[float]] = {name: [] for name in right}
    for _ in range(rounds):
        for name, each in right.items():
            begin = time.perf_counter()
            each()
            times[name].append((time.perf_counter() - begin) * 1e3 / expected.shape[1])
    for name, each in found.items():
        if name not in right:
            console.print(_ROW.format(name, "red", "", "", ""))
            continue
        ratio = statistics.median(a / b for a, b in zip(times[theirs], times[name], strict=True))
        passes = expected.shape[1] if name == theirs else passes_of(each)
        cells = (f"{statistics.median(times[name]):.2f}", f"{ratio:.2f}", str(passes))
        console.print(_ROW.format(name, *cells, len(expected.unique())))


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks micro.drafts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), default="base")
    parser.add_argument("--new", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    console = Console(width=110, highlight=False)
    geometry = GEOMETRIES[arguments.geometry]
    console.print(f"{geometry.name}, fp32, a prompt of {PROMPT} tokens, {arguments.new} new ones")
    with torch.no_grad():
        compare(writers(geometry, arguments.new), arguments.rounds, console)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
