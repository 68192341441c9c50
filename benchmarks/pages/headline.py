"""What a run found, in one sentence, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..harness.record import Row
from .table import KERNEL_TITLES, PASS_TITLES, provider_label, shape_label, speedup_text, time_text

# What counts, the first that a run has: a kernel, and its passes (None: all).
_HEADLINES = (
    ("model", ("forward",)), ("model", None), ("rel_attention", None), ("speech", None),
    ("transfo_xl", None),
)  # fmt: skip
TITLE = "xlnet_fast against Hugging Face"
# What to type or write, and what that does.
NEXT = (
    ("xlnet-fast check MODEL", "compares every backend with Hugging Face's code, on your model"),
    ("xlnet_fast.accelerate(model)", "is the one line that your code needs"),
    (
        "xlnet-fast bench --preset full",
        "measures everything: more shapes, memory, training steps, each kernel alone",
    ),
)


def what_next(environment: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the commands to go on with, and what each does; a full run is not done twice."""
    return NEXT[:2] if "full" in str(environment.get("preset", "")).split(", ") else NEXT


def headline(rows: Sequence[Row], environment: Mapping[str, Any]) -> str:
    """Return the gain of a run in one sentence: the best case, and the span of all of them.

    Whole models count, in inference where it was measured; without any, one layer's attention.
    """
    gains = _gains(rows)
    if not gains:
        return TITLE
    best = max(gains, key=lambda row: row.speedup_over_hf_eager or 0.0)
    low, high = (f(row.speedup_over_hf_eager or 0.0 for row in gains) for f in (min, max))
    what = _subject(best, environment)
    where = f"{shape_label(best)} {best.dtype}"
    if high < 1:
        return f"{what}: not faster than Hugging Face eager in any of {len(gains)} cases"
    span = f"; {low:.2g}x to {high:.2g}x over {len(gains)} cases" if len(gains) > 1 else ""
    return f"{what}: {high:.1f}x at {where} over Hugging Face eager{span}"


def _gains(rows: Sequence[Row]) -> list[Row]:
    ours = [row for row in rows if row.provider == "ours" and row.speedup_over_hf_eager]
    for kernel, passes in _HEADLINES:
        found = [
            row
            for row in ours
            if row.kernel == kernel and (passes is None or row.pass_name in passes)
        ]
        if found:
            return found
    return []


def _subject(row: Row, environment: Mapping[str, Any]) -> str:
    if row.kernel != "model":
        return KERNEL_TITLES[row.kernel]
    if str(environment.get("model", "")).startswith("the user's"):
        return "Your model"
    return f"XLNet with {row.layers} layers of width {row.heads * row.head_dim}"


def case_line(rows: Sequence[Row]) -> str:
    """Return one line for a case that is done: times, and speed-ups over Hugging Face eager."""
    first = rows[0]
    label = f"{first.kernel} {shape_label(first)} {first.dtype} {PASS_TITLES[first.pass_name]}"
    if first.kernel.startswith(("speech", "transfo_xl")):
        label += f" ({first.features})"
    parts = []
    for row in rows:
        if row.p50_us is None:
            continue
        ratio = row.speedup_over_hf_eager if row.provider != "hf_eager" else None
        gain = f" ({speedup_text(ratio)})" if ratio is not None else ""
        parts.append(f"{provider_label(row.provider)} {time_text(row.p50_us)} ms{gain}")
    if not parts:
        reason = next((row.reason for row in rows if row.reason), "nothing could be run")
        return f"{label}: not timed: {reason}"
    return f"{label}: {', '.join(parts)}"
