"""One step of `generate` by context: Hugging Face's and ours, with memory.

    python -m benchmarks micro.generation_steps [--geometry base] [--rounds 3] [--threads 1]

A row is a batch of texts whose prompt has so many tokens; a time is that between the choices of two
tokens, in milliseconds, the median of interleaved rounds of nine tokens. `HF / ours` is the median
of paired rounds, with the middle 60% of them; `of first` ours over ours at the first context of the
same batch, which grows by what attention alone takes. What does not write Hugging Face's tokens is
not timed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from rich.console import Console

from ..cases.generate import ARCHITECTURE, GenerationCase, noise, prompts, widen
from ..cases.model import Source, load_source, share
from ..cases.shapes import BASE_4, TINY
from ..harness.timing import Measurement, paired_ratio
from ..providers.generate import HF, OURS, Writer, difference

GEOMETRIES = {"base": BASE_4, "tiny": TINY}
SHAPES = ((1, 150), (1, 300), (1, 600), (1, 1000), (8, 150), (8, 300))
"""Batch size and context."""
NEW = 10
_ROW = "{:>5}  {:>7}  {:>9}  {:>9}  {:>22}  {:>7}"


def rounds_of(source: Source, case: GenerationCase, rounds: int) -> dict[str, list[float]]:
    """The median step of each round in ms, by provider; an error where the tokens differ."""
    ids = prompts(source.corpus, case.batch, case.prompt)
    added = noise(case.new, source.geometry.vocab_size)
    writers = {name: Writer(name, share(source.model), ids, case, added) for name in (HF, OURS)}
    texts = {name: writer() for name, writer in writers.items()}
    wrong = difference(texts[OURS], texts[HF])
    if wrong:
        raise ValueError(wrong)
    found: dict[str, list[float]] = {name: [] for name in writers}
    for _ in range(rounds):
        for name, writer in writers.items():
            writer.forget()
            writer()
            found[name].append(statistics.median(writer.step_us[0]) / 1e3)
    return found


def compare(
    source: Source, shapes: Sequence[tuple[int, int]], rounds: int, console: Console
) -> None:
    """Print a row for each shape."""
    console.print(_ROW.format("batch", "context", "HF", "ours", "HF / ours", "of first"))
    first: dict[int, float] = {}
    for batch, context in shapes:
        try:
            times = rounds_of(source, GenerationCase(batch, context, NEW, "fp32"), rounds)
        except ValueError as error:
            console.print(_ROW.format(batch, context, "", "red", str(error), ""))
            continue
        theirs, ours = (statistics.median(times[name]) for name in (HF, OURS))
        pairs = sorted(a / b for a, b in zip(times[HF], times[OURS], strict=True))
        ratio = paired_ratio(*(Measurement([t * 1e3 for t in times[name]]) for name in (HF, OURS)))
        low, high = pairs[len(pairs) // 5], pairs[-1 - len(pairs) // 5]
        start = first.setdefault(batch, ours)
        cells = (f"{theirs:.2f}", f"{ours:.2f}", f"{ratio:.2f} ({low:.2f} to {high:.2f})")
        console.print(_ROW.format(batch, context, *cells, f"{ours / start:.2f}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks micro.generation_steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--geometry", choices=sorted(GEOMETRIES), default="base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    geometry = GEOMETRIES[arguments.geometry]
    source = load_source(geometry, None, None, ARCHITECTURE)
    widen(source.model)
    console = Console(width=110, highlight=False)
    console.print(f"{geometry.name}, fp32, {arguments.threads} thread(s)")
    compare(source, SHAPES, arguments.rounds, console)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
