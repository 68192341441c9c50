"""What plain Hugging Face's XLNet refuses and the accelerated one does, tried on this machine.

    python -m benchmarks micro.beyond_hugging_face [--layers 12] [--width 768] [--length 512]

Each line of the table, in Markdown, is one attempt: what Hugging Face's code answered, and ours.
Nothing is timed, so it may run beside other work, and no network is needed. Weights are random, and
wide enough that rounding seldom decides a generated token. The last line is the peak of resident
memory in a training step above weights and gradients. Exit code 1 where ours fails.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.export import Dim, export
from transformers import XLNetConfig, XLNetForSequenceClassification, XLNetLMHeadModel

import xlnet_fast

from ..harness.memory import MemoryWorker

MODULE = f"{__package__}.beyond_hugging_face"  # for the child process that measures memory
VOCABULARY = 500
NEW_TOKENS = 16
Model = Any


def tiny(**options: Any) -> XLNetConfig:
    """Return a geometry that runs at once."""
    sizes = {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128}
    return XLNetConfig(vocab_size=VOCABULARY, initializer_range=0.2, **(sizes | options))


def token_ids(batch: int, length: int) -> Tensor:
    """Return random ids that are no special tokens."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(10, VOCABULARY, (batch, length), generator=generator)


def relative_error(actual: Tensor, exact: Tensor) -> str:
    """Return the largest difference as a share of the largest value."""
    return f"{((actual.double() - exact).abs().max() / exact.abs().max()).item():.1e}"


def loaded(accelerate: bool, **options: Any) -> tuple[Model, Model]:
    """Return a checkpoint as `from_pretrained(dtype=bfloat16)` gives it, and its float64 form."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        XLNetLMHeadModel(tiny(**options)).save_pretrained(folder)
        half = XLNetLMHeadModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    exact = xlnet_fast.accelerate(copy.deepcopy(half).double())
    return (xlnet_fast.accelerate(half) if accelerate else half), exact


def one_stream(accelerate: bool) -> str:
    """`from_pretrained(dtype=bfloat16)` and a forward pass."""
    model, exact = loaded(accelerate)
    return f"error {relative_error(model(token_ids(2, 32)).logits, exact(token_ids(2, 32)).logits)}"


def two_streams(accelerate: bool) -> str:
    """The same after `.bfloat16()`, with `target_mapping`."""
    model, exact = loaded(accelerate)
    mapping = torch.eye(32)[[5, 20]].expand(2, -1, -1)
    actual = model.bfloat16()(token_ids(2, 32), target_mapping=mapping.bfloat16()).logits
    expected = exact(token_ids(2, 32), target_mapping=mapping.double()).logits
    return f"error {relative_error(actual, expected)}"


def generation(accelerate: bool) -> str:
    """`generate()` after `.bfloat16()`."""
    model, exact = loaded(accelerate)
    answers = [
        candidate.generate(token_ids(2, 16), max_length=16 + NEW_TOKENS, do_sample=False)[:, 16:]
        for candidate in (model.bfloat16(), exact)
    ]
    same = (answers[0] == answers[1]).sum().item()
    return f"{same} of {answers[0].numel()} tokens as in float64"


def causal_padding(accelerate: bool) -> str:
    """`attn_type="uni"` with padding in a batch of two."""
    torch.manual_seed(0)
    model = XLNetLMHeadModel(tiny(attn_type="uni")).eval()
    exact = xlnet_fast.accelerate(copy.deepcopy(model).double())
    model = xlnet_fast.accelerate(model) if accelerate else model
    mask = torch.ones(2, 32)
    mask[1, :9] = 0
    actual = model(token_ids(2, 32), attention_mask=mask).logits[1, 9:]
    return f"error {relative_error(actual, exact(token_ids(2, 32)[1:, 9:]).logits[0])}"


def exporting(accelerate: bool) -> str:
    """`torch.export` with a stated range of batches and lengths."""
    torch.manual_seed(0)
    model = XLNetForSequenceClassification(tiny()).eval()
    model = xlnet_fast.accelerate(model) if accelerate else model
    ranges = {0: Dim("batch", min=1, max=64), 1: Dim("length", min=1, max=512)}
    program = export(
        model, (token_ids(2, 16),), {"use_mems": False},
        dynamic_shapes={"input_ids": ranges, "use_mems": None}, strict=False,
    ).module()  # fmt: skip
    shapes = ((1, 1), (3, 33), (2, 512))
    for shape in shapes:
        ids = token_ids(*shape)
        torch.testing.assert_close(
            program(ids, use_mems=False).logits, model(ids, use_mems=False).logits
        )
    return "one program for " + ", ".join(f"{batch}x{length}" for batch, length in shapes)


def checkpointing(accelerate: bool, sizes: dict[str, int]) -> str:
    """`gradient_checkpointing_enable()`, and the peak memory of a training step."""
    with MemoryWorker() as worker:

        def peak(checkpoint: bool) -> str:
            request = {"accelerate": accelerate, "checkpoint": checkpoint, **sizes}
            measured = worker.peak_mib(MODULE, request)
            return "not measurable here" if measured is None else f"{measured:,.0f} MiB"

        without = peak(False)
        try:
            return f"{without}, with it {peak(True)}"
        except RuntimeError as error:
            if accelerate:
                raise
            return f"{without}; {shortened(str(error))}"


def memory_request(request: dict[str, Any]) -> Callable[[], Any]:
    """Return the training step whose memory the child process measures, above its gradients."""
    accelerate, checkpoint = request.pop("accelerate"), request.pop("checkpoint")
    length = request.pop("length")
    model = XLNetLMHeadModel(tiny(**request)).train()
    if accelerate:
        xlnet_fast.accelerate(model)
    if checkpoint:
        model.gradient_checkpointing_enable()
    ids = token_ids(1, length)
    return lambda: model(ids, labels=ids).loss.backward()


ATTEMPTS: tuple[tuple[str, Callable[[bool], str]], ...] = (
    ("`from_pretrained(dtype=bfloat16)`, one stream", one_stream),
    ("two streams in bf16", two_streams),
    ("`generate()` in bf16", generation),
    ('`attn_type="uni"`, padding in a batch', causal_padding),
    ("`torch.export`, batch 1 to 64, length 1 to 512", exporting),
)


def refusal(error: Exception) -> str:
    """Return an error's kind and the beginning of its first line."""
    return shortened(f"{type(error).__name__}: {error}")


def shortened(message: str) -> str:
    """Return the beginning of the first line."""
    line = message.strip().splitlines()[0]
    return line if len(line) <= 90 else line[:87] + "..."


def tried(attempt: Callable[[bool], str], accelerate: bool) -> tuple[bool, str]:
    """Return whether it went well, and what came of it."""
    try:
        with torch.no_grad():
            return True, attempt(accelerate)
    except Exception as error:  # whatever it is, it is what a user would meet
        return False, refusal(error)


def lines(sizes: dict[str, int]) -> tuple[list[str], bool]:
    """Return the table's lines, and whether ours did everything."""
    table, well = ["| what | Hugging Face | ours |", "|---|---|---|"], True
    measured = (
        f"gradient checkpointing, {sizes['n_layer']} layers of width {sizes['d_model']}, "
        f"1x{sizes['length']}, peak memory of a training step"
    )
    for what, attempt in (*ATTEMPTS, (measured, partial(checkpointing, sizes=sizes))):
        _, theirs = tried(attempt, False)
        went_well, ours = tried(attempt, True)
        well &= went_well
        table.append(f"| {what} | {theirs} | {ours} |")
    return table, well


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    width = options.width
    sizes = {"d_model": width, "n_head": width // 64, "d_inner": 4 * width}
    table, well = lines(sizes | {"n_layer": options.layers, "length": options.length})
    print(*table, sep="\n")
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())
