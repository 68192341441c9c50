"""``xlnet-fast info``: versions, devices, what is built or missing, which backend runs what."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xlnet_fast import _extension
from xlnet_fast._version import __version__
from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels import cuda, triton
from xlnet_fast.kernels.triton import report, tiles
from xlnet_fast.ops._dispatch import GPU_KERNELS, OPS, choose, request_on, usual_features
from xlnet_fast.ops.qualification import files, proof
from xlnet_fast.ops.qualification.identity import cpu_name
from xlnet_fast.ops.qualification.record import NOT_RUN, PASSED, UNAVAILABLE

SCHEMA = 1
"""Raised when a key of the JSON changes its meaning or goes."""

PACKAGES = ("torch", "triton", "transformers", "numpy", "sentencepiece", "matplotlib")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Instructions that decide how fast matrix products and dropout masks are on a CPU.
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_fp16", "asimd", "bf16")
# What was done with GPU kernels that no GPU has run.
_TRIED = {"triton": "compiled and interpreted", "cuda": "emulated on the CPU"}
_EXTRAS = {
    "matplotlib": "the plots of `xlnet-fast bench`",
    "sentencepiece": "tokenizers, so `xlnet-fast bench` uses bytes in place of word pieces",
}


def gather() -> dict[str, Any]:
    """Everything ``info`` tells, as plain data.

    Returns:
        schema (int), versions {name: version or None}, devices [{device, name, ...}],
        extension {built, reason, path, compiler, ...}, kernels [{kernel, status, architectures}],
        qualification [{device, source, created, passed, not_passed, reason}], missing [{what,
        effect, remedy}], backends [{op, device, dtype, mode, backend, reason}].
    """
    devices = _devices()
    return {
        "schema": SCHEMA,
        "versions": _versions(),
        "devices": devices,
        "extension": _built(),
        "kernels": _kernels(devices),
        "qualification": [_qualification(device) for device in devices],
        "missing": _missing(),
        "backends": [row for device in devices for row in _choices(device)],
    }


def to_json(facts: dict[str, Any]) -> str:
    """The facts as JSON text."""
    return json.dumps(facts, indent=2)


def render(facts: dict[str, Any], console: Console | None = None) -> None:
    """Print the facts for people."""
    console = console or _console()
    versions = {name: version or "absent" for name, version in facts["versions"].items()}
    _print_pairs(console, "Versions", versions)
    _print_pairs(console, "Devices", {row["device"]: _device_text(row) for row in facts["devices"]})
    _print_pairs(console, "C++ extension", _extension_text(facts["extension"]))
    kernels = {row["kernel"]: _kernel_text(row) for row in facts["kernels"]}
    _print_pairs(console, "GPU kernels", kernels)
    proofs = {row["device"]: _proof_text(row) for row in facts["qualification"]}
    _print_pairs(console, "Qualification", proofs)
    missing = {row["what"]: f"{row['effect']}; {row['remedy']}" for row in facts["missing"]}
    _print_pairs(console, "Missing", missing or {"nothing": "everything this version has is here"})
    console.print(_backend_table(facts["backends"]))


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "xlnet_fast": __version__,
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    # The build tells CPU from CUDA ("2.13.0+cpu"), the package's metadata may not.
    versions["torch"] = str(torch.__version__)
    return versions


def _devices() -> list[dict[str, Any]]:
    cpu: dict[str, Any] = {
        "device": "cpu",
        "name": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "features": _cpu_features(),
    }
    found = [cpu]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found.append(
                {
                    "device": f"cuda:{index}",
                    "name": properties.name,
                    "capability": f"{properties.major}.{properties.minor}",
                    "memory_gib": round(properties.total_memory / 2**30, 1),
                }
            )
    return found


def _cpu_lines(field: str) -> list[str]:
    """Values of a field of /proc/cpuinfo; none where there is no such file."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.partition(":")[2].strip() for line in lines if line.startswith(field)]


def _cpu_features() -> list[str]:
    lines = _cpu_lines("flags") or _cpu_lines("Features")
    flags = set(lines[0].split()) if lines else set()
    return [flag for flag in _CPU_FLAGS if flag in flags]


def _built() -> dict[str, Any]:
    built = _extension.build_info()
    if built is None:
        return {"built": False, "reason": _extension.why_missing()}
    return {"built": True, "reason": None, "path": _extension.path(), **built}


def _kernels(devices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """GPU kernels, the chips they are compiled for, and the GPUs that they were proved on."""
    built = _extension.build_info()
    archs = {
        "triton": [str(arch) for arch in report.ARCHS],
        "cuda": [] if built is None else built["cuda_archs"],
    }
    modules = {"triton": triton, "cuda": cuda}
    records = [found.record for found in map(_found, devices) if found.record is not None]
    records += files.shipped()
    rows = []
    for name in GPU_KERNELS:
        proved = {
            record.identity.name: None
            for record in records
            for row in record.rows
            if row.backend == name and row.status == PASSED
        }
        status = f"{_TRIED[name]}, never run on a GPU"
        if proved:
            status = f"run and proved on {', '.join(proved)}"
        rows.append(
            {
                "kernel": f"{name} rel_attention",
                "status": status,
                "architectures": [f"sm_{arch}" for arch in archs[name]],
                "measured_on": list(proved),
                "unavailable_here": modules[name].why_unavailable(_any_gpu()),
            }
        )
    return rows


def _found(device: dict[str, Any]) -> files.Found:
    kind, _, index = device["device"].partition(":")
    return proof.found_for(kind, int(index) if index else None)


def _qualification(device: dict[str, Any]) -> dict[str, Any]:
    """The record that counts for a device: what it proved, or why there is none."""
    found = _found(device)
    record = found.record
    statuses = [] if record is None else [row.status for row in record.rows]
    tried = [status for status in statuses if status not in (NOT_RUN, UNAVAILABLE)]
    return {
        "device": device["device"],
        "source": found.source or None,
        "created": None if record is None else record.created,
        "passed": statuses.count(PASSED),
        "not_passed": len(tried) - tried.count(PASSED),
        "not_tried": len(statuses) - len(tried),
        "reason": found.reason or None,
    }


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


def _any_gpu() -> str:
    return "cuda:0" if torch.cuda.is_available() else "cuda"


def _missing() -> list[dict[str, str]]:
    rows = []
    reason = _extension.why_missing()
    if reason is not None:
        effect = "attention on the CPU and dropout masks are made by slower PyTorch code"
        rows.append(_lack("C++ extension", effect, reason))
    if not torch.cuda.is_available():
        remedy = "use a machine with an NVIDIA GPU of compute capability 8.0 or newer"
        if torch.version.cuda is None:
            remedy += f" and a CUDA build of PyTorch in place of {torch.__version__}"
        rows.append(_lack("GPU", "PyTorch sees no CUDA device: everything runs on the CPU", remedy))
    if triton.triton is None:
        rows.append(
            _lack("triton", "no GPU kernels and no kernels-report", "pip install triton (Linux)")
        )
    else:
        table, remark = tiles.installed_table()
        if remark is not None:
            release = tiles.release_of(triton.triton.__version__)
            effect = f"the kernels take those for {table.release}, which may spill registers"
            remedy = "xlnet-fast kernels-report --backend triton tells, with --write-tiles mends"
            rows.append(_lack(f"tiles for Triton {release}", effect, remedy))
    for name, effect in _EXTRAS.items():
        if importlib.util.find_spec(name) is None:
            rows.append(_lack(name, f"no part of this: {effect}", f"pip install {name}"))
    compilers = (os.environ.get("CXX") or "c++", "g++", "clang++", "cl")
    if not any(shutil.which(name.split()[0]) for name in compilers):
        rows.append(
            _lack(
                "C++ compiler",
                "torch.compile on the CPU cannot run, nor can the extension be built",
                "install g++ or clang++",
            )
        )
    return rows


def _lack(what: str, effect: str, remedy: str) -> dict[str, str]:
    return {"what": what, "effect": effect, "remedy": remedy}


def _choices(device: dict[str, Any]) -> list[dict[str, Any]]:
    """What `backend="auto"` takes on a device, for every op, dtype and mode."""
    rows = []
    where = torch.device(device["device"])
    for op in OPS:
        for dtype in DTYPES:
            for mode in ("inference", "training"):
                if (op, mode) == ("concat_memory", "training"):
                    continue  # the memory carries no gradient
                training = mode == "training"
                features = usual_features(op, training)
                request = request_on(op, where, dtype, needs_grad=training, features=features)
                try:
                    choice = choose(request)
                    backend, reason = choice.backend, choice.reason
                except BackendUnavailable as error:
                    backend, reason = "none", str(error)
                rows.append(
                    {
                        "op": op,
                        "device": device["device"],
                        "dtype": str(dtype).removeprefix("torch."),
                        "mode": mode,
                        "backend": backend,
                        "reason": reason,
                    }
                )
    return rows


# --- for people ----------------------------------------------------------------------------------


def _console() -> Console:
    console = Console(highlight=False)
    return (
        console if console.is_terminal else Console(width=max(console.width, 110), highlight=False)
    )


def _print_pairs(console: Console, title: str, pairs: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        table.add_row(Text(f"  {name}"), Text(value, overflow="fold"))
    console.print(Text(title, style="bold"))
    console.print(table)
    console.print()


def _device_text(row: dict[str, Any]) -> str:
    if row["device"] == "cpu":
        features = ", ".join(row["features"]) or "no vector extension known"
        return f"{row['name']}; cores: {row['cores']}, threads: {row['threads']}; {features}"
    return f"{row['name']}; compute capability {row['capability']}; {row['memory_gib']} GiB"


def _extension_text(built: dict[str, Any]) -> dict[str, str]:
    if not built["built"]:
        return {"not built": built["reason"]}
    return {
        "loaded from": str(built["path"]),
        "built with": f"{built['compiler']}, pybind11 {built['pybind11']}",
        "flags": " ".join(built["flags"]),
        "dropout variants": f"{', '.join(built['isa_compiled'])}; here {built['isa_used']}",
        "attention variants": f"{', '.join(built['attention_isa'])}, on threads of "
        f"{built['thread_runtime']}. amx_bf16 was tested by emulation only: by name alone",
        "CUDA archs": _cuda_text(built),
    }


def _cuda_text(built: dict[str, Any]) -> str:
    if not built["cuda_archs"]:
        return "none: built without CUDA C++ kernels; `xlnet-fast build` adds them where nvcc is"
    archs = ", ".join(f"sm_{arch}" for arch in built["cuda_archs"])
    return f"{archs}, by nvcc {built['cuda_compiler']}"


def _kernel_text(row: dict[str, Any]) -> str:
    archs = ", ".join(row["architectures"])
    text = f"{row['status']}; {f'compiles for {archs}' if archs else 'not compiled here'}"
    here = row["unavailable_here"]
    return text if here is None else f"{text}. Not here: {here}"


def _backend_table(rows: list[dict[str, Any]]) -> Table:
    """One line for all dtypes and modes of an op that run alike."""
    grouped: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("device", "op", "backend", "reason"))
        grouped.setdefault(key, []).append(row)
    table = Table(title='What backend="auto" runs here', title_justify="left", title_style="bold")
    for column in ("device", "op", "dtypes", "mode", "backend", "why"):
        table.add_column(column, overflow="fold")
    for (device, op, backend, reason), members in grouped.items():
        modes = list(dict.fromkeys(row["mode"] for row in members))
        dtypes = list(dict.fromkeys(row["dtype"] for row in members))
        if len(modes) * len(dtypes) == len(members):
            names = ", ".join(dtypes)
        else:  # some dtypes run so in one mode only
            names = ", ".join(f"{row['dtype']} {row['mode']}" for row in members)
        cells = (device, op, names, ", ".join(modes), backend, reason)
        table.add_row(*(Text(cell) for cell in cells))
    return table
