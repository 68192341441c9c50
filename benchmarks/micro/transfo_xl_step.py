"""A Transformer-XL's training step on a CPU beside its matrix products alone, and huge pages.

    python -m benchmarks.micro.transfo_xl_step [--dtype fp32] [--length 150] [--rounds 9]

Two layers at the sizes of transfo-xl-wt103, one segment with as much memory, without an optimizer.
The first row is the step, the second the same with the embedding's gradient in arrays of its own,
as autograd makes it, and not added to the softmax's. `products` are those that no step can do
without, forwards and both ways backwards, by our linear layer and by `F.linear`: the layers'
projections and feed-forward, the head's words and the tails', each tail for the tokens whose target
is there. Attention, dropout, norms, the softmax and the gradients of the embeddings are left out.
Each row is a median of rounds in turn, and its share of the step.

The last row is the step with `THP_MEM_ALLOC_ENABLE=1`, by which PyTorch asks the system for pages
of 2 MiB (Linux, where /sys/kernel/mm/transparent_hugepage/enabled says madvise or always), over the
step without, each in a process of its own, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.models.transfo_xl import TransfoXLConfig, TransfoXLLMHeadModel, embedding
from xlnet_fast.ops.linear import linear

from ..cases.rel_attention import DTYPES
from ..cases.transfo_xl import WT103_2, TransfoXLCase, segments

PAGES = "THP_MEM_ALLOC_ENABLE"
PROCESSES = 3  # of each kind


def training_step(case: TransfoXLCase) -> Callable[[], None]:
    """Return a function that trains one segment, the next each time."""
    config = WT103_2.config() | {"mem_len": case.memory}
    model = TransfoXLLMHeadModel(TransfoXLConfig(**config)).to(DTYPES[case.dtype]).train()
    texts, state = segments(case, WT103_2.vocab_size), {"mems": None, "turn": 0}

    def step() -> None:
        ids = texts[state["turn"] % len(texts)]
        output = model(ids, mems=state["mems"], labels=ids)
        output.loss.backward()
        model.zero_grad(set_to_none=True)
        state.update(mems=output.mems, turn=state["turn"] + 1)

    return step


def with_two_gradients(step: Callable[[], None]) -> None:
    """Call a step whose embedding and softmax each make a gradient of the words' vectors."""
    with mock.patch.object(embedding, "rows_of", lambda table, ids: F.embedding(ids, table)):
        step()


def shapes(case: TransfoXLCase) -> list[tuple[int, int, int, bool]]:
    """Return (rows, in, out, whether the input has a gradient) of every product of a step."""
    g, tokens, memory = WT103_2, case.batch * case.length, case.batch * case.memory
    d = g.d_model
    layer = [
        (tokens, d, 3 * d, True), (memory, d, 2 * d, False),
        (case.length + case.memory, d, d, False), (tokens, d, d, True),
        (tokens, d, g.d_inner, True), (tokens, g.d_inner, d, True),
    ]  # fmt: skip
    edges = [0, *g.cutoffs, g.vocab_size]
    words = segments(case, g.vocab_size)[0].flatten()
    head = []
    for number, (first, end) in enumerate(pairwise(edges)):
        inside = int(((words >= first) & (words < end)).sum())
        rows, width = (inside if number else tokens), d // g.div_val**number
        head += [(rows, d, width, True), (rows, width, end - first, True)]
    return g.n_layer * layer + head


def products(
    case: TransfoXLCase, multiply: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[], None]:
    """Return a function that does the products of a step by `multiply`."""
    made: list[tuple[Tensor, Tensor, Tensor, bool]] = []
    generator = torch.Generator().manual_seed(0)
    for rows, terms, out, needs in shapes(case):
        sizes = ((rows, terms), (out, terms), (rows, out))
        x, weight, grad = (torch.randn(s, generator=generator) for s in sizes)
        x, weight, grad = (t.to(DTYPES[case.dtype]) for t in (x, weight, grad))
        made.append((x.requires_grad_(needs), weight.requires_grad_(), grad, needs))

    def run() -> None:
        for x, weight, grad, needs in made:
            torch.autograd.grad(multiply(x, weight), [x, weight] if needs else [weight], grad)

    return run


def seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turn(case: TransfoXLCase, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round of the step and of what it is compared with."""
    step = training_step(case)
    calls = {
        "step": step,
        "step, two gradients": partial(with_two_gradients, step),
        "products, ours": products(case, linear),
        "products, F.linear": products(case, F.linear),
    }
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            took_s = seconds(call)
            if number:
                found[name].append(took_s)
    return found


def in_a_process(arguments: argparse.Namespace, pages: str) -> float:
    """Return the seconds of a step in a new process with PyTorch's huge pages "1" or "0"."""
    command = [
        sys.executable, "-m", __spec__.name, "--dtype", arguments.dtype, "--length",
        str(arguments.length), "--rounds", str(arguments.rounds), "--step-alone",
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, PAGES: pages}, capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--length", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--step-alone", action="store_true", help="print its seconds, as JSON")
    arguments = parser.parse_args()
    case = TransfoXLCase("training_step", 1, arguments.length, arguments.length, arguments.dtype)
    if arguments.step_alone:
        step = training_step(case)
        step()
        print(json.dumps(statistics.median(seconds(step) for _ in range(arguments.rounds))))
        return
    console = Console()
    console.print(f"{case.label}, {torch.get_num_threads()} threads")
    found = in_turn(case, arguments.rounds)
    for name, times in found.items():
        share = statistics.median(t / s for t, s in zip(times, found["step"], strict=True))
        console.print(f"{name:20} {1e3 * statistics.median(times):7.0f} ms  {share:5.2f}")
    turns = [(in_a_process(arguments, "0"), in_a_process(arguments, "1")) for _ in range(PROCESSES)]
    gain = statistics.median(small / huge for small, huge in turns)
    huge_s = statistics.median(huge for _, huge in turns)
    console.print(f"{'step, huge pages':20} {1e3 * huge_s:7.0f} ms  {gain:5.2f} times as fast")


if __name__ == "__main__":
    main()
