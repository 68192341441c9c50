"""Which backend runs each op of a model here, and why."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass

import torch
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from torch import nn
from transformers.models.xlnet.modeling_xlnet import XLNetModel

from xlnet_fast import _extension
from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.adoption import (
    checked_module,
    new_forward,
    obstacle,
    original_class,
    unwrapped,
)
from xlnet_fast.hf.feed_forward import why_own_code
from xlnet_fast.hf.generation import FastLMHeadModel
from xlnet_fast.hf.generation.parts import obstacle_to_steps
from xlnet_fast.hf.generation.recorded import recorder_for
from xlnet_fast.hf.heads import HEADS
from xlnet_fast.hf.layers import takes_context
from xlnet_fast.hf.modules import FastModel, overrides
from xlnet_fast.hf.patches import patched
from xlnet_fast.hf.projections import PROJECTIONS
from xlnet_fast.nn.dropout import rate_of
from xlnet_fast.ops._dispatch import (
    ATTENTION,
    OPS,
    Choice,
    named_or_auto,
    request_on,
    usual_features,
)
from xlnet_fast.ops._verdict import brief, choice_of, merged, verdict
from xlnet_fast.ops.linear import library_of
from xlnet_fast.ops.qualification import proof
from xlnet_fast.ops.qualification.files import Found

_NOT_ACCELERATED = (
    "not accelerated: Hugging Face's own code runs (xlnet_fast.accelerate changes that)"
)


@dataclass(frozen=True)
class Row:
    """One op in one mode ("inference" or "training"); "linear" stands for the linear layers.

    Attributes:
        reason: with everything that was passed over. brief: the short form of it.
        speed: over the plain path, measured on this device; None where it was not.
    """

    op: str
    mode: str
    backend: str
    reason: str
    brief: str = ""
    speed: float | None = None


@dataclass(frozen=True)
class Explanation:
    """Prints as a verdict and a short table, or with all reasons if ``verbose``.

    Attributes:
        verdict: one line, which begins with "ready" where nothing is left to do.
        title: the model, its device and dtype. rows, notes: for programs, always whole.
    """

    verdict: str
    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    verbose: bool = False

    def __rich__(self) -> Group:
        table = _long_table(self.rows) if self.verbose else _short_table(self.rows)
        notes = [Text(f"- {note}") for note in self.notes if note != self.verdict]
        above = (Text(self.verdict, style="bold"), Text(self.title), *notes)
        return Group(*above, Text(), table) if self.rows else Group(*above)

    def __str__(self) -> str:
        buffer = io.StringIO()
        Console(file=buffer, width=110).print(self)
        return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _long_table(rows: tuple[Row, ...]) -> Table:
    table = Table()
    for column in ("op", "mode", "backend", "why"):
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = (row.op, row.mode, row.backend, row.reason)
        table.add_row(*map(Text, cells))  # brackets in a reason are no markup
    return table


def _short_table(rows: tuple[Row, ...]) -> Table:
    """A line for each op; one for each of its modes where they differ."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("op", "backend", "why"):
        table.add_column(column, overflow="fold")
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.op, row.backend, row.brief), []).append(row)
    lines = Counter(op for op, _, _ in groups)
    for (op, backend, why), alike in groups.items():
        name = op if lines[op] == 1 else f"{op}, {alike[0].mode}"
        measured = merged(why, [row.speed for row in alike])
        table.add_row(*map(Text, (name, backend, measured)))
    return table


def explain(model: nn.Module, verbose: bool = False) -> Explanation:
    """Which backend runs each op of an XLNet, on its present device and in its present dtype.

    Args:
        model: accelerated or not.
        verbose: print the table with everything that was passed over, and why.

    Returns:
        Its rows and notes; these name every part that runs HF's own code, and why.

    Raises:
        ArgumentError: the model contains no HF XLNet.
    """
    transformer = next(
        (m for m in checked_module(model).modules() if isinstance(m, XLNetModel)), None
    )
    if transformer is None:
        raise ArgumentError(f"{type(model).__name__} contains no XLNetModel of transformers")
    device, dtype = _place(transformer)
    name = type(getattr(model, "_orig_mod", model)).__name__  # of what torch.compile wraps
    title = f"{name} on {device.type}, {dtype}".replace("torch.", "")
    if not isinstance(transformer, FastModel):
        return Explanation(_NOT_ACCELERATED, title, (), (_NOT_ACCELERATED,), verbose)
    chosen = _choices(transformer, device, dtype)
    rows = tuple(
        Row(op, mode, c.backend, c.reason, brief(c, device.type), c.speed)
        for (op, mode), c in chosen.items()
    )
    own_code = _own_code(transformer) + _own_heads(model)
    line = verdict(
        device.type,
        [choice for (op, _), choice in chosen.items() if op in ATTENTION],
        [choice for (op, _), choice in chosen.items() if op not in ATTENTION],
        _found(device),
    )
    if own_code and not line.startswith(("fault", "cannot")):
        line = _in_part(transformer, own_code)
    notes = (
        *_proofs(device), *own_code, *_linear_attention(transformer), *_generation(model),
        *_machine(),
    )  # fmt: skip
    return Explanation(line, title, rows, notes, verbose)


def _choices(
    transformer: FastModel, device: torch.device, dtype: torch.dtype
) -> dict[tuple[str, str], Choice]:
    """By op and mode."""
    found = {}
    for op in OPS:
        backend = named_or_auto(op, transformer._xlnet_fast_options.backend)
        for mode in ("inference",) if op == "concat_memory" else ("inference", "training"):
            training = mode == "training"
            request = request_on(
                op, device, dtype, head_dim=transformer.config.d_head, needs_grad=training,
                features=usual_features(op, training), proved=backend == "auto",
            )  # fmt: skip
            found[op, mode] = choice_of(request, backend)
    if device.type == "cpu":
        found |= {("linear", mode): library_of(dtype) for mode in ("inference", "training")}
    return found


def _found(device: torch.device) -> Found:
    known = device.type in ("cpu", "cuda")
    return proof.found_for(device.type, device.index) if known else Found(None)


def _proofs(device: torch.device) -> list[str]:
    """Which record of a qualification decided, or that a GPU has none."""
    found = _found(device)
    if found.record is not None:
        failed = len(found.record.failed)
        note = f"decided by the record {found.source} of {found.record.created}"
        return [f"{note}; {failed} of its classes did not pass" if failed else note]
    if device.type != "cuda":
        return []
    return [f"{found.reason}: no GPU kernel is taken; `{proof.COMMAND}` proves them here"]


def _own_code(transformer: FastModel) -> list[str]:
    """Every part that runs HF's or the user's own code, and why."""
    notes = []
    if type(transformer).forward is not FastModel.forward:
        notes.append(
            f"{type(transformer).__name__} overrides XLNetModel.forward; what it does not pass to "
            "super().forward runs Hugging Face's own code"
        )
    changed = patched(XLNetModel, "forward", "cache_mem")
    if changed is not None:
        speed = ": the model runs at Hugging Face's speed" if changed == "forward" else ""
        notes.append(f"XLNetModel.{changed} was replaced, and is called{speed}")
    if "forward" in transformer.__dict__:
        notes.append("the model has a forward of its own on the instance, which comes first")
    if transformer.attn_type == "uni" and overrides(transformer, "create_mask"):
        notes.append(
            "create_mask is not Hugging Face's: keys that it shows ahead of a query have no "
            "position score, where Hugging Face's rel_shift reads the next row's"
        )
    return notes + _own_layers(transformer)


def _own_heads(model: nn.Module) -> list[str]:
    """The models with a head whose forward is not ours, and what that leaves out."""
    notes = []
    for module in model.modules():
        if not isinstance(module, tuple(HEADS)):
            continue
        name = type(module).__name__
        left_out = "what this package adds to models with a head is left out"
        if original_class(module) is None:
            notes.append(f"the {name} is not accelerated, only the XLNetModel in it: {left_out}")
        elif "forward" in module.__dict__ and not new_forward(module):
            notes.append(
                f"the {name} had a forward of its own on the instance before accelerate(), which "
                f"comes first: {left_out}"
            )
    return notes


def _own_layers(transformer: FastModel) -> list[str]:
    """The layers, or parts of them, that stay as they are, by the reason."""
    layers: dict[str, list[int]] = {}
    blocks: dict[str, list[int]] = {}
    dropouts: list[int] = []
    for number, layer in enumerate(transformer.layer):
        if not takes_context(layer):
            since = "it was put there since; call accelerate() again"
            layers.setdefault(obstacle(unwrapped(layer)) or since, []).append(number)
            continue
        inner = unwrapped(layer)
        if rate_of(unwrapped(inner.rel_attn).dropout) is None:
            dropouts.append(number)
        why = why_own_code(inner.ff)
        if why is not None:
            blocks.setdefault(why, []).append(number)
    notes = []
    if dropouts:
        notes.append(
            f"the dropout in the attention of {_layers(dropouts)} is no bare nn.Dropout, or drops "
            "everything: it is called, on probabilities that are made in full"
        )
    for why, numbers in layers.items():
        runs = "runs its" if len(numbers) == 1 else "run their"
        notes.append(f"{_layers(numbers)} {runs} own code: {why}")
    for why, numbers in blocks.items():
        notes.append(f"the feed-forward block of {_layers(numbers)} runs its own code: {why}")
    return notes


def _linear_attention(transformer: FastModel) -> list[str]:
    """That the projections are modules, and of which kind."""
    kinds = {
        f"{type(module).__module__}.{type(module).__name__}"
        for layer in transformer.layer
        for name, module in unwrapped(getattr(unwrapped(layer), "rel_attn", layer)).named_children()
        if name in PROJECTIONS
    }
    if not kinds:
        return []
    linear = f"{nn.Linear.__module__}.{nn.Linear.__name__}"
    names = ", ".join(sorted(kinds - {linear}))
    called = f"; what is no nn.Linear is called as it is: {names}" if names else ""
    return [f"q, k, v, o and r of the attention are modules (linear_attention){called}"]


def _generation(model: nn.Module) -> list[str]:
    """Whether the steps of ``generate`` are ours, where a language model is there."""
    notes = []
    for module in model.modules():
        if not isinstance(module, FastLMHeadModel) or module.training:
            continue
        why = obstacle_to_steps(module, FastLMHeadModel)
        if why is not None:
            notes.append(
                "generate() takes Hugging Face's steps, which compute keys and values of the whole "
                f"memory again for each token: {why}"
            )
        elif recorder_for(module.device) is not None:
            notes.append(
                "generate() records its steps as CUDA graphs, which no GPU has run yet: each "
                "process compares the first one with the same step launched kernel by kernel"
            )
    return notes


def _layers(numbers: list[int]) -> str:
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _in_part(transformer: FastModel, own_code: list[str]) -> str:
    """The verdict on a model with code of its own."""
    layers = len(transformer.layer)
    own = sum(not takes_context(layer) for layer in transformer.layer)
    what = f"{own} of {layers} layers keep their own code" if own else own_code[0]
    return f"accelerated in part: {what}"


def _machine() -> list[str]:
    """What is wrong with this process or installation."""
    notes = [
        f"backend {backend!r} {said}; this process goes on without it"
        for backend, said in proof.REVOKED.items()
    ]
    missing = _extension.why_missing()
    if missing is not None:
        notes.append(f"the compiled extension is absent (dropout masks are slower): {missing}")
    return notes


def _place(transformer: XLNetModel) -> tuple[torch.device, torch.dtype]:
    """Where and in what dtype attention is computed."""
    parameter = next(transformer.parameters())
    kind = parameter.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return parameter.device, torch.get_autocast_dtype(kind)
    return parameter.device, parameter.dtype
