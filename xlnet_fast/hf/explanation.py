"""Which backend runs each op of a model here, and why."""

from __future__ import annotations

import io
from dataclasses import astuple, dataclass

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn
from transformers.models.xlnet.modeling_xlnet import XLNetModel

from xlnet_fast import _extension
from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.hf.adoption import checked_module, obstacle
from xlnet_fast.hf.modules import FastModel, takes_context
from xlnet_fast.ops._dispatch import OPS, choose, named_or_auto, request_on, usual_features
from xlnet_fast.ops.linear import library_of
from xlnet_fast.ops.qualification import proof


@dataclass(frozen=True)
class Row:
    """One op in one mode ("inference" or "training"); "linear" stands for the linear layers."""

    op: str
    mode: str
    backend: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """Prints as a table; ``rows`` and ``notes`` for programs."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def __rich__(self) -> Table:
        caption = Text("\n".join(self.notes)) if self.notes else None
        table = Table(title=Text(self.title), caption=caption, caption_justify="left")
        for column in ("op", "mode", "backend", "why"):
            table.add_column(column, overflow="fold")
        for row in self.rows:
            cells = (row.op, row.mode, row.backend, row.reason)
            table.add_row(*map(Text, cells))  # brackets in a reason are no markup
        return table

    def __str__(self) -> str:
        buffer = io.StringIO()
        Console(file=buffer, width=110).print(self)
        return buffer.getvalue()


def explain(model: nn.Module) -> Explanation:
    """Which backend runs each op of an XLNet, on its present device and in its present dtype.

    Args:
        model: accelerated or not.

    Returns:
        An :class:`Explanation`; its notes name every part that runs HF's own code, and why.

    Raises:
        ArgumentError: the model contains no HF XLNet.
    """
    transformer = next(
        (m for m in checked_module(model).modules() if isinstance(m, XLNetModel)), None
    )
    if transformer is None:
        raise ArgumentError(f"{type(model).__name__} contains no XLNetModel of transformers")
    parameter = next(transformer.parameters())
    dtype = _compute_dtype(parameter)
    title = f"{type(model).__name__} on {parameter.device.type}, {dtype}".replace("torch.", "")
    if not isinstance(transformer, FastModel):
        note = "not accelerated: Hugging Face's own code runs (xlnet_fast.accelerate changes that)"
        return Explanation(title, (), (note,))
    backend = transformer._xlnet_fast_options.backend
    rows = tuple(
        _row(op, mode, backend, parameter.device, dtype, transformer.config.d_head)
        for op in OPS
        for mode in (("inference",) if op == "concat_memory" else ("inference", "training"))
    )
    if parameter.device.type == "cpu":
        library = library_of(dtype)
        rows += tuple(Row("linear", mode, *astuple(library)) for mode in ("inference", "training"))
    notes = [*_proofs(parameter.device), *_notes(transformer)]
    return Explanation(title, rows, tuple(notes))


def _row(
    op: str, mode: str, backend: str, device: torch.device, dtype: torch.dtype, head_dim: int
) -> Row:
    backend, training = named_or_auto(op, backend), mode == "training"
    request = request_on(
        op, device, dtype, head_dim=head_dim, needs_grad=training,
        features=usual_features(op, training), proved=backend == "auto",
    )  # fmt: skip
    try:
        choice = choose(request, backend)
    except BackendUnavailable as error:
        return Row(op, mode, "none: raises", str(error))
    return Row(op, mode, choice.backend, choice.reason)


def _proofs(device: torch.device) -> list[str]:
    """Which record of a qualification decided, or that a GPU has none."""
    if device.type not in ("cpu", "cuda"):
        return []
    found = proof.found_for(device.type, device.index)
    if found.record is not None:
        return [f"decided by the record {found.source} of {found.record.created}"]
    if device.type == "cpu":
        return []
    return [f"{found.reason}: no GPU kernel is taken; `{proof.COMMAND}` proves them here"]


def _notes(transformer: FastModel) -> list[str]:
    notes = []
    if type(transformer).forward is not FastModel.forward:
        notes.append(
            f"{type(transformer).__name__} overrides XLNetModel.forward; what it does not pass to "
            "super().forward runs Hugging Face's own code"
        )
    if "forward" in transformer.__dict__:
        notes.append("the model has a forward of its own on the instance, which comes first")
    for number, layer in enumerate(transformer.layer):
        if not takes_context(layer):
            notes.append(f"layer {number} runs its own code: {obstacle(layer)}")
    missing = _extension.why_missing()
    if missing is not None:
        notes.append(f"the compiled extension is absent (dropout masks are slower): {missing}")
    return notes


def _compute_dtype(parameter: torch.Tensor) -> torch.dtype:
    device = parameter.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return parameter.dtype
