"""What a call costs beside its arithmetic: small models at batch 1, before and after `accelerate`.

    python -m benchmarks micro.host_time [--rounds 40] [--threads 1]

The widths are so small that the time is Python's, the checks' and the dispatcher's; on a GPU, where
kernels run beside it, the same host time is what a small model waits for. Each row is a geometry
and a kind of call, on random weights: `inference`, the same with an attention mask and segments,
`training` (forward and backward, with dropout), and `generation` of tokens with memory. Times are
medians of interleaved rounds in microseconds; "a layer" is the difference between two depths, and
"noise" where the deeper model took no longer, as on a busy machine. "HF/ours" is the median of the
ratios within a round, its middle 60% behind it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import XLNetConfig, XLNetLMHeadModel

import xlnet_fast

from ..harness.quiet import Quiet
from ..harness.timing import CpuTimer, Measurement, Plan, measure, paired_ratio, percentile

VOCABULARY = 128
DEPTHS = (2, 6)
NEW_TOKENS = 4
NOISE = "noise"
Function = Callable[[], Any]


@dataclass(frozen=True)
class Size:
    """A geometry and the tokens of a call."""

    d_model: int
    n_head: int
    tokens: int

    def __str__(self) -> str:
        return f"width {self.d_model}, {self.n_head} heads, 1x{self.tokens}"


SIZES = (Size(16, 2, 8), Size(64, 4, 16), Size(128, 4, 32), Size(256, 4, 32), Size(256, 4, 64))
CALLS = ("inference", "mask, segments", "training", "generation")


def models(size: Size, layers: int) -> dict[str, Any]:
    """Return Hugging Face's model and the accelerated one, of the same random weights."""
    torch.manual_seed(0)
    config = XLNetConfig(
        vocab_size=VOCABULARY, d_model=size.d_model, n_head=size.n_head, n_layer=layers,
        d_inner=4 * size.d_model, bos_token_id=1, eos_token_id=None, pad_token_id=5,
    )  # fmt: skip
    model = XLNetLMHeadModel(config)
    return {"hf": model, "ours": xlnet_fast.accelerate(copy.deepcopy(model))}


def work(model: Any, call: str, size: Size) -> Function:
    """Return one call of a kind."""
    ids = torch.randint(
        10, VOCABULARY, (1, size.tokens), generator=torch.Generator().manual_seed(0)
    )
    given: dict[str, Any] = {"input_ids": ids}
    if call == "mask, segments":
        given["attention_mask"] = torch.ones(1, size.tokens)
        given["token_type_ids"] = (torch.arange(size.tokens)[None] > size.tokens // 2).long()
    if call == "training":
        model.train()

        def step() -> None:
            model(**given, labels=ids).loss.backward()

        return step
    model.eval()
    if call == "generation":
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "use_mems": True}
        return lambda: model.generate(ids, **options)

    @torch.no_grad()
    def forward() -> None:
        model(**given)

    return forward


def measured(size: Size, call: str, rounds: int) -> dict[tuple[str, int], Measurement]:
    """Return the samples of both models at both depths."""
    functions = {
        (name, layers): work(model, call, size)
        for layers in DEPTHS
        for name, model in models(size, layers).items()
    }
    plan = Plan(rounds, rounds, min_sample_us=2_000.0, max_repeats=10)
    named = {f"{name} {layers}": function for (name, layers), function in functions.items()}
    found = measure(named, CpuTimer(), plan)
    return {key: found[f"{key[0]} {key[1]}"] for key in functions}


def row(samples: dict[tuple[str, int], Measurement]) -> list[str]:
    """Return microseconds of both models, whole and a layer, and the ratios of both depths."""
    shallow, deep = DEPTHS
    middle = {key: found.percentile_us(50) for key, found in samples.items()}
    cells = [f"{middle[name, shallow]:,.0f}" for name in ("hf", "ours")]
    for name in ("hf", "ours"):
        layer = (middle[name, deep] - middle[name, shallow]) / (deep - shallow)
        cells.append(f"{layer:,.0f}" if layer > 0 else NOISE)
    for layers in DEPTHS:
        base, other = samples["hf", layers], samples["ours", layers]
        ratios = [a / b for a, b in zip(base.samples_us, other.samples_us, strict=True)]
        low, high = percentile(ratios, 20), percentile(ratios, 80)
        cells.append(f"{paired_ratio(base, other):.2f} ({low:.2f} to {high:.2f})")
    return cells


def compare(sizes: Sequence[Size], calls: Sequence[str], rounds: int, console: Console) -> None:
    """Print the table."""
    quiet = Quiet()
    shallow, deep = DEPTHS
    columns = ("HF", "ours", "a layer, HF", "a layer, ours")
    table = Table("model", "call", title=f"microseconds; whole: {shallow} layers")
    for column in (*columns, f"HF/ours, {shallow} layers", f"HF/ours, {deep} layers"):
        table.add_column(column, justify="right", no_wrap=True)
    for size in sizes:
        for call in calls:
            table.add_row(str(size), call, *row(measured(size, call, rounds)))
            quiet.look()
    console.print(table)
    if warning := quiet.warning():
        console.print(warning)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--call", choices=CALLS, action="append", help="default: all")
    options = parser.parse_args(arguments)
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}, expected at least 1")
    torch.set_num_threads(options.threads)
    compare(SIZES, options.call or CALLS, options.rounds, Console(width=140))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
