"""Results as tables: the same summary for the terminal, the HTML page and the README."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .record import Row, cases

# Providers in the order of columns and bars, with what a reader calls them.
LABELS = {
    "hf_eager": "HF eager",
    "hf_compile": "HF compiled",
    "sdpa_bias": "SDPA + bias",
    "flex": "FlexAttention",
    "ours": "ours",
    "ours_compile": "ours compiled",
    "gemm_floor": "matrix products only",
    "sdpa_flash": "content-only SDPA",
}
KERNEL_TITLES = {
    "model": "Whole model",
    "rel_attention": "Relative attention, one layer",
    "masked_softmax": "Masked softmax",
    "concat_memory": "Memory update",
}
PASS_TITLES = {
    "forward": "inference",
    "forward_backward": "forward and backward",
    "training_step": "training step",
}


def provider_label(name: str) -> str:
    """Return the reader's name of a provider."""
    if name.startswith("ours_") and name not in LABELS:
        return f"ours ({name.removeprefix('ours_')})"
    return LABELS.get(name, name)


def provider_order(names: Iterable[str]) -> list[str]:
    """Sort provider names: rivals, ours, floors; named backends after `ours`."""
    order = list(LABELS)

    def rank(name: str) -> tuple[int, str]:
        known = name if name in LABELS else "ours"
        return order.index(known) if known in order else len(order), name

    return sorted(set(names), key=rank)


def shape_label(row: Row) -> str:
    """Return batch x length, with the memory where there is one."""
    memory = f"+{row.memory_length}" if row.memory_length else ""
    return f"{row.batch}x{row.length}{memory}"


def time_text(time_us: float | None) -> str:
    """Return milliseconds with three digits that count."""
    return (
        ""
        if time_us is None
        else f"{time_us / 1e3:.3g}"
        if time_us < 1e6
        else f"{time_us / 1e3:,.0f}"
    )


def speedup_text(ratio: float | None) -> str:
    """Return a speed-up; a loss says so."""
    if ratio is None:
        return ""
    return f"{ratio:.2f}x" if ratio >= 1 else f"{ratio:.2f}x slower"


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of text; `notes` explain empty cells."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def tables(rows: Sequence[Row], *, named_backends: bool = True) -> list[Table]:
    """Summarise rows: one table per kernel and pass, one line per shape and dtype.

    named_backends: also show our backends by name, beside `ours` as the dispatcher chooses.
    The speed-up over compiled HF is that of the faster of `ours` and `ours compiled`.
    """
    if not named_backends:
        rows = [row for row in rows if row.provider in LABELS]
    groups: dict[tuple[str, str], list[list[Row]]] = {}
    for case in cases(rows):
        groups.setdefault((case[0].kernel, case[0].pass_name), []).append(case)
    ordered = sorted(groups, key=lambda key: list(KERNEL_TITLES).index(key[0]))
    return [_table(kernel, pass_name, groups[kernel, pass_name]) for kernel, pass_name in ordered]


def _table(kernel: str, pass_name: str, group: list[list[Row]]) -> Table:
    providers = provider_order(row.provider for case in group for row in case)
    shown = [
        p for p in providers if any(r.p50_us for case in group for r in case if r.provider == p)
    ]
    memory = any(row.peak_memory_mib is not None for case in group for row in case)
    header = ["batch x\nlength", "dtype"]
    header += [provider_label(p).replace(" ", "\n", 1) + ",\nms" for p in shown]
    header += ["speed-up\nover\nHF eager", "speed-up\nover HF\ncompiled"]
    header += ["error\nours", "error\nHF"]
    header += ["memory\nours,\nMiB", "memory\nHF,\nMiB"] if memory else []
    lines = []
    for case in group:
        by_name = {row.provider: row for row in case}
        line = [shape_label(case[0]), case[0].dtype]
        line += [_time_cell(by_name.get(p)) for p in shown]
        ours, eager = by_name.get("ours"), by_name.get("hf_eager")
        best = _best_ours(by_name)
        line.append(speedup_text(ours.speedup_over_hf_eager) if ours else "")
        line.append(speedup_text(best.speedup_over_hf_compile) if best else "")
        line.append(_error_cell(ours))
        line.append(f"{eager.error:.1e}" if eager and eager.error is not None else "")
        if memory:
            line += [_memory_cell(ours), _memory_cell(eager)]
        lines.append(line)
    title = f"{KERNEL_TITLES[kernel]}, {PASS_TITLES[pass_name]}"
    return Table(title, header, lines, _notes(group))


def _best_ours(by_name: dict[str, Row]) -> Row | None:
    timed = [by_name[n] for n in ("ours", "ours_compile") if n in by_name and by_name[n].p50_us]
    return min(timed, key=lambda row: row.p50_us or 0.0, default=None)


def _time_cell(row: Row | None) -> str:
    if row is None:
        return ""
    return time_text(row.p50_us) if row.status == "ok" else row.status.replace("_", " ")


def _error_cell(row: Row | None) -> str:
    if row is None or row.error is None:
        return ""
    return f"{row.error:.1e}" + (" RED" if row.status == "red" else "")


def _memory_cell(row: Row | None) -> str:
    return "" if row is None or row.peak_memory_mib is None else f"{row.peak_memory_mib:,.0f}"


def _notes(group: list[list[Row]]) -> list[str]:
    """Return one line for each reason a provider was not timed, with the cases it applies to."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for case in group:
        for row in case:
            if row.status != "ok":
                where = f"{shape_label(row)} {row.dtype}"
                key = (row.provider, row.status, row.reason)
                reasons.setdefault(key, []).append(where)
    total = len(group)
    notes = []
    for (provider, status, reason), where in reasons.items():
        cases_text = "every case" if len(where) == total else ", ".join(where)
        notes.append(
            f"{provider_label(provider)}, {status.replace('_', ' ')} ({cases_text}): {reason}"
        )
    return notes
