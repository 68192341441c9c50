"""The table of the TPU compiler's figures in docs/benchmarks.md, and their line in the README."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cells import joined

START = "<!-- tpu:start -->"
END = "<!-- tpu:end -->"
NAME = "tpu-compile.json"
_PROVIDERS = {"hf": "HF", "reference": "reference", "pallas": "Pallas"}
Rows = dict[str, Mapping[str, Any]]  # by provider


def long_table(path: Path) -> str:
    """The table of every case and chip of the file of `micro.tpu_compile`."""
    record = _read(path)
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        f"XLNet-base with random weights, padding and segments, compiled for TPUs: "
        f"{record['note']}. MiB of temporary memory, and GB of main memory that all operations "
        f"access; a kernel's are its own estimate ({versions}; `python -m benchmarks "
        f"micro.tpu_compile`, `benchmarks/results/{path.name}`).",
        "",
        f"| case | chip | {' | '.join(f'{name}, MiB' for name in _PROVIDERS.values())} "
        f"| {' | '.join(f'{name}, GB' for name in _PROVIDERS.values())} | HF's GB over Pallas's |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    return "\n".join([*lines, *map(_line, _cases(record["rows"]))])


def short_line(path: Path) -> str:
    """What the largest forward pass saves on all chips that it was compiled for."""
    record = _read(path)
    found = [case for case in _cases(record["rows"]) if {"hf", "pallas"} <= set(case)]
    found = [case for case in found if not case["hf"]["training"]]
    if not found:
        raise ValueError(f"{path.name} has no forward pass of both Hugging Face and Pallas")
    size = max(map(_size, found))
    largest = [case for case in found if _size(case) == size]
    accessed = sorted(_ratio(case, "accessed_bytes") for case in largest)
    temporary = sorted(100 / _ratio(case, "temporary_bytes") for case in largest)
    row = largest[0]["hf"]
    chips = ", ".join(case["hf"]["chip"] for case in largest)
    return (
        f"compiled for {chips}, {row['layers']} layers of xlnet-base at {row['batch']}x"
        f"{row['length']} in {row['dtype']} move {_span(accessed)} times less than Hugging Face's, "
        f"in {_span(temporary)}% of the temporary memory ({record['note']})"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from error
    return record


def _cases(rows: Sequence[Mapping[str, Any]]) -> list[Rows]:
    """The rows of each case and chip, by provider."""
    found: dict[tuple[Any, ...], Rows] = {}
    names = ("layers", "dtype", "batch", "length", "training", "chip")
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), {})[row["provider"]] = row
    return list(found.values())


def _size(case: Rows) -> tuple[int, int]:
    """Tokens, and layers: figures of fewer layers are not those of the whole model."""
    row = case["hf"]
    return row["batch"] * row["length"], row["layers"]


def _line(case: Rows) -> str:
    row = next(iter(case.values()))
    what = "gradients" if row["training"] else "forward"
    sizes = f"{row['batch']}x{row['length']}, {row['layers']} layers, {row['dtype']}, {what}"
    both = "hf" in case and "pallas" in case
    return joined([
        sizes,
        row["chip"],
        *(_cell(case, name, "temporary_bytes", 2**20, 0) for name in _PROVIDERS),
        *(_cell(case, name, "accessed_bytes", 1e9, 1) for name in _PROVIDERS),
        f"{_ratio(case, 'accessed_bytes'):.1f}x" if both else "-",
    ])  # fmt: skip


def _cell(case: Rows, provider: str, name: str, unit: float, digits: int) -> str:
    return f"{case[provider][name] / unit:,.{digits}f}" if provider in case else "-"


def _ratio(case: Rows, name: str) -> float:
    """How many times as much Hugging Face's has."""
    return case["hf"][name] / max(case["pallas"][name], 1)


def _span(values: Sequence[float]) -> str:
    """The least and the largest of sorted values, once where they read alike."""
    words = list(dict.fromkeys(f"{value:.1f}" for value in (values[0], values[-1])))
    return " to ".join(words)
