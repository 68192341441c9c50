"""Sequences per second of the pretraining data, beside Hugging Face's permutation collator.

    python -m benchmarks.micro.pretraining_data [--batch 32] [--length 512] [--rounds 15]

The text is the built-in one, every call makes one batch in this process, and all see the same
sequences. "streams" cuts them from the text, pairs, segments and all, and collates; "collator" is
`PermutationCollator`, and "hf" is `DataCollatorForPermutationLanguageModeling`, on sequences that
are already cut. Rates are medians of interleaved rounds with the middle 60% of them; the last
column is the median over rounds of hf's time over that row's. Before anything is timed, one batch
of each is checked: it has targets, and none may see itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import DataCollatorForPermutationLanguageModeling, XLNetTokenizer

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.text import builtin_articles, builtin_text, train_tokenizer
from xlnet_fast.train.pretraining.collator import PermutationCollator, collate
from xlnet_fast.train.pretraining.corpus import Corpus, Vocabulary, encode
from xlnet_fast.train.pretraining.permutation import dense_masks
from xlnet_fast.train.pretraining.streams import PermutationStreams, SequenceShape

from ..harness.timing import CpuTimer, Measurement, Plan, measure, paired_ratio

BASELINE = "hf"
VOCABULARY_SIZE = 8000
BATCHES = 8
"""How many different ones a provider gives, at most, before it begins again."""
Batch = dict[str, Any]
Provider = Callable[[], Batch]


def load_text(vocab_size: int) -> tuple[Corpus, Vocabulary, Any]:
    """Return the built-in text as ids, its vocabulary and its tokenizer."""
    folder = train_tokenizer(builtin_text(), vocab_size)
    tokenizer = XLNetTokenizer.from_pretrained(str(folder))
    vocabulary = Vocabulary.of(tokenizer)
    return encode(builtin_articles().values(), tokenizer, vocabulary), vocabulary, tokenizer


def providers(
    corpus: Corpus, vocabulary: Vocabulary, tokenizer: Any, batch: int, length: int
) -> dict[str, Provider]:
    """Return, by name, functions that give one batch after the other, over and over.

    Raises `ArgumentError` for a length that is odd, which hf refuses, and what the streams refuse.
    """
    if length % 2:
        raise ArgumentError(f"the length is {length}, expected an even one: hf refuses others")

    def streams(bi_data: bool) -> PermutationStreams:
        half = length // 2
        shape = SequenceShape(length, half, half, max(1, length // 6), bi_data)
        return PermutationStreams(corpus, vocabulary, shape, batch)

    def rows_of(data: PermutationStreams) -> list[range]:
        return [range(batch * step, batch * (step + 1)) for step in range(min(BATCHES, data.steps))]

    def pipeline(bi_data: bool) -> Provider:
        data = streams(bi_data)
        rows = cycle(rows_of(data))
        return lambda: collate(data.__getitems__(next(rows)))

    plain = streams(False)
    sequences = [
        [item["input_ids"] for item in plain.__getitems__(rows)] for rows in rows_of(plain)
    ]

    def collator(function: Any, given: list[Any]) -> Provider:
        examples = cycle(given)
        return lambda: function(next(examples))

    tensors = [list(map(torch.from_numpy, rows)) for rows in sequences]
    return {
        "streams": pipeline(False),
        "streams, bi_data": pipeline(True),
        "collator": collator(PermutationCollator(tokenizer), sequences),
        "collator, dense": collator(PermutationCollator(tokenizer, dense=True), sequences),
        BASELINE: collator(DataCollatorForPermutationLanguageModeling(tokenizer), tensors),
    }


def check(name: str, batch: Batch) -> None:
    """Raise `XLNetFastError` unless every row has targets and none of them may see itself."""
    if "perm_mask" in batch:
        perm_mask, mapping = batch["perm_mask"], batch["target_mapping"]
    else:
        perm_mask, mapping = dense_masks(batch["permutation_ranks"], batch["target_positions"])
    counted = batch["labels"] != -100
    sees_itself = (mapping @ (1 - perm_mask) * mapping).sum(-1)
    if not counted.any(1).all() or bool((sees_itself[counted] != 0).any()):
        raise XLNetFastError(f"{name} gives a batch without targets, or one that sees itself")


def table_of(results: dict[str, Measurement], batch: int) -> Table:
    """Return a row for each provider."""
    table = Table(box=None)
    for heading in ("provider", "sequences/s", "middle 60%", "hf's time / its own"):
        table.add_column(heading, justify="left" if heading == "provider" else "right")
    for name, result in results.items():
        slow, median, fast = (batch * 1e6 / result.percentile_us(p) for p in (80, 50, 20))
        ratio = paired_ratio(results[BASELINE], result)
        table.add_row(name, f"{median:,.0f}", f"{slow:,.0f} to {fast:,.0f}", f"{ratio:.1f}")
    return table


def compare(functions: dict[str, Provider], batch: int, rounds: int) -> Table:
    """Check and time all; return the table. Raises `XLNetFastError` where one fails."""
    torch.manual_seed(0)
    for name, function in functions.items():
        check(name, function())
    plan = Plan(rounds, rounds, min_sample_us=50_000.0)
    results = measure(functions, CpuTimer(), plan)
    for name, result in results.items():
        if not result.ok:
            raise XLNetFastError(f"{name} failed: {result.failure}")
    return table_of(results, batch)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.batch < 2 or options.batch % 2:
        parser.error("--batch must be even: half of the rows of bi_data read backwards")
    try:
        text = load_text(VOCABULARY_SIZE)
        functions = providers(*text, options.batch, options.length)
    except ArgumentError as error:
        parser.error(str(error))
    console = Console(width=110, highlight=False)
    threads = torch.get_num_threads()
    console.print(f"batches of {options.batch} x {options.length}, {threads} threads")
    console.print(compare(functions, options.batch, options.rounds))


if __name__ == "__main__":
    main()
