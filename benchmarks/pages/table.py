"""Results as tables: the same summary for the terminal, the HTML page and the README."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..harness.record import Row, cases

# Providers in the order of columns and bars, with what a reader calls them.
LABELS = {
    "hf_eager": "HF eager",
    "hf_compile": "HF compiled",
    "hf_no_memory": "HF without memory",
    "sdpa_bias": "SDPA + bias",
    "flex": "FlexAttention",
    "ours": "ours",
    "ours_compile": "ours compiled",
    "ours_no_memory": "ours without memory",
    "hf_graph": "HF graph",
    "ours_graph": "ours graph",
    "gemm_floor": "matrix products only",
    "sdpa_flash": "content-only SDPA",
}
KERNEL_TITLES = {
    "ceiling": "What this machine can do at best",
    "model": "Whole model",
    "latency": "Latency of one sequence",
    "rel_attention": "Relative attention, one layer",
    "two_stream": "Two-stream layer of a pretraining step",
    "pretraining": "Whole model with two streams and memory",
    "masked_softmax": "Masked softmax",
    "concat_memory": "Memory update of all layers",
    "generate": "Generation after a prompt",
    "speech": "Speech encoder",
    "speech_attention": "Attention of a speech encoder, one layer",
    "transfo_xl": "Transformer-XL",
}
PASS_TITLES = {
    "forward": "inference",
    "backward": "backward alone",
    "forward_backward": "forward and backward",
    "training_step": "training step",
    "text": "time per token of a text",
    "step": "one step",
}


def provider_label(name: str) -> str:
    """Return the reader's name of a provider."""
    if name.startswith("ours_") and name not in LABELS:
        return f"ours ({name.removeprefix('ours_').replace('_', ' ')})"
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


def tokens_text(row: Row | None) -> str:
    """Return tokens per second, whole."""
    rate = None if row is None else row.tokens_per_s
    return "" if rate is None else f"{rate:,.0f}"


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
    The speed-up over compiled HF is that of the faster of `ours` and `ours compiled`; the ratio to
    the floor, which leaves out work, that of our fastest backend, with its name. Tokens per second
    are those of the faster of `ours` and `ours compiled` too.
    """
    ceilings = [row for row in rows if row.kernel == "ceiling"]
    # Single steps are many, and their plot tells of them.
    rows = [row for row in rows if row.kernel != "ceiling" and row.pass_name != "step"]
    if not named_backends:
        rows = [row for row in rows if row.provider in LABELS]
    groups: dict[tuple[str, str], list[list[Row]]] = {}
    for case in cases(rows):
        groups.setdefault((case[0].kernel, case[0].pass_name), []).append(case)
    ordered = sorted(groups, key=lambda key: list(KERNEL_TITLES).index(key[0]))
    found = [_table(kernel, pass_name, groups[kernel, pass_name]) for kernel, pass_name in ordered]
    return ([_ceilings(ceilings)] if ceilings else []) + found


def _ceilings(rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        figures = (row.bandwidth_gb_s, row.tflop_per_s)
        cells = ["" if figure is None else f"{figure:,.3g}" for figure in figures]
        lines.append([row.pass_name, row.dtype, f"{row.length:,}", *cells])
    header = ["operation", "dtype", "elements,\nside", "GB/s", "TFLOP/s"]
    notes = [f"{row.pass_name} {row.dtype}: {row.reason}" for row in rows if row.status != "ok"]
    return Table(KERNEL_TITLES["ceiling"], header, lines, notes)


def _table(kernel: str, pass_name: str, group: list[list[Row]]) -> Table:
    providers = provider_order(row.provider for case in group for row in case)
    shown = [
        p for p in providers if any(r.p50_us for case in group for r in case if r.provider == p)
    ]
    layers = len({case[0].layers for case in group}) > 1
    features = len({case[0].features for case in group}) > 1
    floors = any(row.time_over_floor is not None for case in group for row in case)
    bandwidth = any(row.bandwidth_gb_s is not None for case in group for row in case)
    memory = any(row.peak_memory_mib is not None for case in group for row in case)
    # Elsewhere some of the tokens are padding.
    tokens = kernel in ("pretraining", "generate", "transfo_xl")
    header = ["batch x\nlength", "dtype"] + ["layers"] * layers + ["with"] * features
    # What readers come for stands first: of a wide table a narrow window shows the left.
    header += ["speed-up\nover\nHF eager", "speed-up\nover HF\ncompiled"]
    header += ["memory\nours,\nMiB", "memory\nHF,\nMiB"] if memory else []
    header += [provider_label(p).replace(" ", "\n", 1) + ",\nms" for p in shown]
    header += ["ours /\nfloor", "TFLOP/s\nours"] if floors else []
    header += ["GB/s\nours"] if bandwidth else []
    header += ["tokens/s\nours", "tokens/s\nHF"] if tokens else []
    header += ["error\nours", "error\nHF"]
    lines = []
    for case in group:
        by_name = {row.provider: row for row in case}
        line = [shape_label(case[0]), case[0].dtype] + [str(case[0].layers)] * layers
        line += [_short(case[0].features)] * features
        ours, eager = by_name.get("ours"), by_name.get("hf_eager")
        best = best_ours(by_name)
        line.append(speedup_text(ours.speedup_over_hf_eager) if ours else "")
        line.append(speedup_text(best.speedup_over_hf_compile) if best else "")
        if memory:
            line += [_memory_cell(ours), _memory_cell(eager)]
        line += [_time_cell(by_name.get(p)) for p in shown]
        fastest = _fastest_ours(case)
        if floors:
            line += [_floor_cell(fastest), _figure(fastest, "tflop_per_s")]
        if bandwidth:
            line.append(_figure(fastest, "bandwidth_gb_s"))
        if tokens:
            line += [tokens_text(best), tokens_text(eager)]
        line.append(_error_cell(ours))
        line.append(f"{eager.error:.1e}" if eager and eager.error is not None else "")
        lines.append(line)
    title = f"{KERNEL_TITLES[kernel]}, {PASS_TITLES[pass_name]}"
    return Table(title, header, lines, _notes(group))


def best_ours(by_name: dict[str, Row]) -> Row | None:
    """Return the faster of `ours` and `ours compiled`, None where neither was timed."""
    timed = [by_name[n] for n in ("ours", "ours_compile") if n in by_name and by_name[n].p50_us]
    return min(timed, key=lambda row: row.p50_us or 0.0, default=None)


def _short(features: str) -> str:
    for word in ("padding", "segments", "dropout", "permutation"):
        features = features.replace(word, word[: 3 if word in ("padding", "segments") else 4])
    return features


def _fastest_ours(case: Sequence[Row]) -> Row | None:
    """Return our fastest row that is not compiled as a whole."""
    timed = [
        r
        for r in case
        if r.provider.startswith("ours") and r.p50_us and "_compile" not in r.provider
    ]
    return min(timed, key=lambda row: row.p50_us or 0.0, default=None)


def _floor_cell(row: Row | None) -> str:
    if row is None or row.time_over_floor is None:
        return ""
    backend = row.provider.removeprefix("ours").removeprefix("_")
    return f"{row.time_over_floor:.2f}" + (f" ({backend})" if backend else "")


def _figure(row: Row | None, column: str) -> str:
    value = None if row is None else getattr(row, column)
    return "" if value is None else f"{value:,.3g}"


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
