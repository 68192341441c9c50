"""``xlnet-fast info`` for people: a verdict, what is here or missing, and what runs each op."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xlnet_fast.kernels import cuda
from xlnet_fast.ops._verdict import merged
from xlnet_fast.ops.qualification import proof

WIDTH = 110


def render(facts: dict[str, Any], verbose: bool = False, console: Console | None = None) -> None:
    """Print the facts for people, in short or whole."""
    console = console or _console()
    console.print(Text(facts["verdict"], style="bold"))
    console.print()
    (_print_whole if verbose else _print_short)(facts, console)


def _print_short(facts: dict[str, Any], console: Console) -> None:
    versions = [f"{name} {version or 'absent'}" for name, version in facts["versions"].items()]
    lines = [("versions", ", ".join(versions))]
    lines += [(row["device"], _device_text(row)) for row in facts["devices"]]
    lines.append(("extension", _extension_in_short(facts["extension"])))
    lines += [(f"record of {row['device']}", _proof_text(row)) for row in facts["qualification"]]
    lines += [("missing", _missing_text(row)) for row in facts["missing"]]
    table = Table.grid(padding=(0, 2))
    for name, value in lines:
        table.add_row(Text(name), Text(value, overflow="fold"))
    console.print(table)
    console.print()
    console.print(_short_table(facts["backends"]))
    console.print(Text("`xlnet-fast info --verbose` shows what was passed over, and the build"))


def _print_whole(facts: dict[str, Any], console: Console) -> None:
    versions = {name: version or "absent" for name, version in facts["versions"].items()}
    _print_pairs(console, "Versions", versions)
    _print_pairs(console, "Devices", {row["device"]: _device_text(row) for row in facts["devices"]})
    _print_pairs(console, "C++ extension", _extension_text(facts["extension"]))
    kernels = {row["kernel"]: _kernel_text(row) for row in facts["kernels"]}
    _print_pairs(console, "GPU and TPU kernels", kernels)
    proofs = {row["device"]: _proof_text(row) for row in facts["qualification"]}
    _print_pairs(console, "Qualification", proofs)
    missing = {row["what"]: f"{row['effect']}; {row['remedy']}" for row in facts["missing"]}
    _print_pairs(console, "Missing", missing or {"nothing": "everything this version has is here"})
    console.print(_backend_table(facts["backends"]))


def _console() -> Console:
    console = Console(highlight=False)
    return (
        console
        if console.is_terminal
        else Console(width=max(console.width, WIDTH), highlight=False)
    )


def _print_pairs(console: Console, title: str, pairs: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        table.add_row(Text(f"  {name}"), Text(value, overflow="fold"))
    console.print(Text(title, style="bold"))
    console.print(table)
    console.print()


def _missing_text(row: dict[str, str]) -> str:
    return f"{row['what']}: {row['effect']}; {row['remedy']}"


def _device_text(row: dict[str, Any]) -> str:
    if row["device"] == "cpu":
        features = ", ".join(row["features"]) or "no vector extension known"
        return f"{row['name']}; cores: {row['cores']}, threads: {row['threads']}; {features}"
    return f"{row['name']}; compute capability {row['capability']}; {row['memory_gib']} GiB"


def _proof_text(row: dict[str, Any]) -> str:
    if row["created"] is None:
        what = "fixed rules decide" if row["device"] == "cpu" else "no GPU kernel is used"
        device = "" if row["device"] == "cpu" else f" --device {row['device']}"
        return f"{row['reason']}: {what}; `{proof.COMMAND}{device or ' --device cpu'}` makes one"
    return (
        f"{row['passed']} classes passed, {row['not_passed']} did not, {row['not_tried']} were not "
        f"tried; {row['source']}, "
        f"{row['created']}"
    )


def _extension_text(built: dict[str, Any]) -> dict[str, str]:
    if not built["built"]:
        return {"not built": built["reason"]}
    return {
        "loaded from": str(built["path"]),
        "built with": f"{built['compiler']}, pybind11 {built['pybind11']}",
        "flags": " ".join(built["flags"]),
        "dropout variants": f"{', '.join(built['isa_compiled'])}; here {built['isa_used']}",
        "attention variants": f"{', '.join(built['attention_isa'])} on this CPU, on threads of "
        f"{built['thread_runtime']}. amx_bf16 was tested by emulation only: by name alone",
        "CUDA archs": _cuda_text(built),
    }


def _extension_in_short(built: dict[str, Any]) -> str:
    if not built["built"]:
        return "not built"
    attention = (built["attention_isa"] or ["no"])[-1]
    return f"attention kernels for {attention}; CUDA kernels: {_cuda_text(built)}"


def _cuda_text(built: dict[str, Any]) -> str:
    if not built["cuda_archs"]:
        return f"none; with nvcc on the path, `{cuda.BUILD}` compiles them"
    archs = ", ".join(f"sm_{arch}" for arch in built["cuda_archs"])
    return f"{archs}, by nvcc {built['cuda_compiler']}"


def _kernel_text(row: dict[str, Any]) -> str:
    archs, text = ", ".join(row["architectures"]), row["status"]
    if "graph" not in row["kernel"]:  # which is recorded, not compiled
        text += f"; compiles for {archs}" if archs else "; not compiled here"
    here = row["unavailable_here"]
    return text if here is None else f"{text}. Not here: {here}"


def _short_table(rows: list[dict[str, Any]]) -> Table:
    """A line for each op and backend of a device; float64, which no kernel takes, in the title."""
    plain = {row["backend"] for row in rows if row["dtype"] == "float64"} == {"sdpa"}
    title = 'what backend="auto" runs' + (" (float64: always sdpa)" if plain else "")
    shown = [row for row in rows if not (plain and row["dtype"] == "float64")]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("device", "op", "dtypes", "backend", "why"):
        table.add_column(column, overflow="fold")
    for key, members in _grouped(shown, "device", "op", "backend", "brief"):
        device, op, backend, brief = key
        same_op = [row for row in shown if (row["device"], row["op"]) == (device, op)]
        names = "all" if members == same_op else _dtypes(members, {row["mode"] for row in same_op})
        why = merged(brief, [row["speed"] for row in members])
        table.add_row(*map(Text, (device, op, names, backend, why)))
    return table


def _backend_table(rows: list[dict[str, Any]]) -> Table:
    """One line for all dtypes and modes of an op that run alike."""
    table = Table(title='What backend="auto" runs here', title_justify="left", title_style="bold")
    for column in ("device", "op", "dtypes", "mode", "backend", "why"):
        table.add_column(column, overflow="fold")
    for key, members in _grouped(rows, "device", "op", "backend", "reason"):
        device, op, backend, reason = key
        modes = dict.fromkeys(row["mode"] for row in members)
        cells = (device, op, _dtypes(members, modes), ", ".join(modes), backend, reason)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _grouped(
    rows: list[dict[str, Any]], *names: str
) -> list[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    """Rows that are alike in these columns, in the order of the first of each."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.items())


def _dtypes(members: list[dict[str, Any]], modes: Collection[str]) -> str:
    """The dtypes of rows, each with its mode where there are more modes than it runs so in."""
    names: dict[str, list[str]] = {}
    for row in members:
        names.setdefault(row["dtype"], []).append(row["mode"])
    return ", ".join(
        dtype if len(own) == len(modes) else f"{dtype} {own[0]}" for dtype, own in names.items()
    )
