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

from xlnet_fast import _extension
from xlnet_fast.hf.families.family import Description, place_of
from xlnet_fast.hf.patching import known_families
from xlnet_fast.ops._dispatch import ATTENTION, Choice, named_or_auto, request_on
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
        family: whose op it is, where a model has several families.
    """

    op: str
    mode: str
    backend: str
    reason: str
    brief: str = ""
    speed: float | None = None
    family: str = ""


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
        cells = (_named(row), row.mode, row.backend, row.reason)
        table.add_row(*map(Text, cells))  # brackets in a reason are no markup
    return table


def _short_table(rows: tuple[Row, ...]) -> Table:
    """A line for each op; one for each of its modes where they differ."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("op", "backend", "why"):
        table.add_column(column, overflow="fold")
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((_named(row), row.backend, row.brief), []).append(row)
    lines = Counter(op for op, _, _ in groups)
    for (op, backend, why), alike in groups.items():
        name = op if lines[op] == 1 else f"{op}, {alike[0].mode}"
        measured = merged(why, [row.speed for row in alike])
        table.add_row(*map(Text, (name, backend, measured)))
    return table


def _named(row: Row) -> str:
    return f"{row.op} ({row.family})" if row.family else row.op


def explain(model: nn.Module, verbose: bool = False) -> Explanation:
    """Which backend runs each op of a model, on its present device and in its present dtype.

    Args:
        model: accelerated or not.
        verbose: print the table with everything that was passed over, and why.

    Returns:
        Its rows and notes; these name every part that runs HF's own code, and why. Where a model
        has several families, each has its rows.

    Raises:
        ArgumentError: the model contains nothing of a known family.
    """
    told = [(family.title, family.describe(model)) for family in known_families(model)]
    device, dtype = place_of(told[0][1].example)
    name = type(getattr(model, "_orig_mod", model)).__name__  # of what torch.compile wraps
    title = f"{name} on {device.type}, {dtype}".replace("torch.", "")
    ours = [(family, each) for family, each in told if each.accelerated]
    left = [(family, each) for family, each in told if not each.accelerated]
    if not ours:
        kept = [sentence for _, each in left for sentence in each.own_code]
        return Explanation(_NOT_ACCELERATED, title, (), (_NOT_ACCELERATED, *kept), verbose)
    several = len(told) > 1
    rows: list[Row] = []
    choices: dict[tuple[str, str, str], Choice] = {}
    for family, each in ours:
        chosen = _choices(each)
        rows += _rows(chosen, family if several else "", device.type)
        choices |= {(family, *key): choice for key, choice in chosen.items()}
    line = verdict(
        device.type,
        [choice for (_, op, _), choice in choices.items() if op in ATTENTION],
        [choice for (_, op, _), choice in choices.items() if op not in ATTENTION],
        _found(device),
    )
    in_part = [each.in_part for _, each in ours if each.in_part]
    in_part += [f"{family} is not accelerated" for family, _ in left]
    if in_part and not line.startswith(("fault", "cannot")):
        line = f"accelerated in part: {in_part[0]}"
    own_code = [sentence for _, each in ours for sentence in each.own_code]
    own_code += [f"{family}: {_NOT_ACCELERATED}" for family, _ in left]
    own_code += [sentence for _, each in left for sentence in each.own_code]
    others = [note for _, each in ours for note in each.notes]
    notes = (*_proofs(device), *own_code, *others, *_machine())
    return Explanation(line, title, tuple(rows), notes, verbose)


def _rows(chosen: dict[tuple[str, str], Choice], family: str, device: str) -> list[Row]:
    return [
        Row(op, mode, c.backend, c.reason, brief(c, device), c.speed, family)
        for (op, mode), c in chosen.items()
    ]


def _choices(told: Description) -> dict[tuple[str, str], Choice]:
    """By op and mode."""
    device, dtype = place_of(told.example)
    found = {}
    for op in told.ops:
        backend = named_or_auto(op, told.backend)
        for mode in ("inference",) if op == "concat_memory" else ("inference", "training"):
            training = mode == "training"
            request = request_on(
                op, device, dtype, head_dim=told.head_dim, needs_grad=training,
                features=told.features(op, training), proved=backend == "auto",
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
