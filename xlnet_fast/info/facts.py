"""What ``info`` tells, as plain data."""

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

from xlnet_fast import _extension, lowering
from xlnet_fast._version import __version__
from xlnet_fast.kernels import cuda, triton
from xlnet_fast.kernels.report import triton as report
from xlnet_fast.kernels.triton import tiles
from xlnet_fast.ops._dispatch import (
    ATTENTION,
    GPU_KERNELS,
    OPS,
    Choice,
    request_on,
    usual_features,
)
from xlnet_fast.ops._verdict import brief, choice_of, verdict
from xlnet_fast.ops.qualification import files, proof
from xlnet_fast.ops.qualification.identity import cpu_name
from xlnet_fast.ops.qualification.record import NOT_RUN, PASSED, UNAVAILABLE

SCHEMA = 1
"""Raised when a key of the JSON changes its meaning or goes."""

PACKAGES = ("torch", "triton", "transformers", "numpy", "sentencepiece", "matplotlib")
TPU_PACKAGES = ("jax", "libtpu", "torchax")
"""Told of where they are installed; few machines want them."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Instructions that decide how fast matrix products and dropout masks are on a CPU.
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_fp16", "asimd", "bf16")
# What was done with GPU kernels that no GPU has run.
_TRIED = {
    "triton": "compiled, interpreted, executed as PTX for sm_80 and sm_90",
    "cuda": "emulated on the CPU, executed as PTX for sm_80 and sm_90",
}
_EXTRAS = {
    "matplotlib": "the plots of `xlnet-fast bench`",
    "sentencepiece": "tokenizers, so `xlnet-fast bench` uses bytes in place of word pieces",
}


def gather() -> dict[str, Any]:
    """Everything ``info`` tells, as plain data.

    Returns:
        schema (int), verdict (one line), versions {name: version or None}, devices [{device, name,
        verdict, ...}], extension {built, reason, path, compiler, ...}, kernels [{kernel, status,
        architectures}], qualification [{device, source, created, passed, not_passed, reason}],
        missing [{what, effect, remedy}], backends [{op, device, dtype, mode, backend, reason,
        brief, speed}].
    """
    devices = _devices()
    chosen = {device["device"]: _choices(device["device"]) for device in devices}
    for device in devices:
        device["verdict"] = _verdict(device, chosen[device["device"]])
    return {
        "schema": SCHEMA,
        "verdict": _worst(devices),
        "versions": _versions(),
        "devices": devices,
        "extension": _built(),
        "kernels": _kernels(devices),
        "qualification": [_qualification(device) for device in devices],
        "missing": _missing(),
        "backends": [row for name, choices in chosen.items() for row in _rows(name, choices)],
    }


def to_json(facts: dict[str, Any]) -> str:
    """The facts as JSON text."""
    return json.dumps(facts, indent=2)


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "xlnet_fast": __version__,
        "python": platform.python_version(),
    }
    for name in (*PACKAGES, *TPU_PACKAGES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in PACKAGES:
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
    """GPU and TPU kernels, their chips, and the GPUs that they were proved on."""
    archs = {
        "triton": [str(arch) for arch in report.ARCHS],
        "cuda": cuda_archs(),
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
    rows.append(_tpu_kernels())
    rows.append(
        {
            "kernel": "CUDA graph of a generation step",
            "status": "replayed on the CPU, never run on a GPU",
            "architectures": [],
            "measured_on": [],
            "unavailable_here": None if torch.cuda.is_available() else "PyTorch sees no GPU",
        }
    )
    return rows


def _tpu_kernels() -> dict[str, Any]:
    has_jax = importlib.util.find_spec("jax") is not None
    return {
        "kernel": "pallas rel_attention",
        "status": "compiled, run in JAX's interpret mode, never run on a TPU",
        "architectures": list(lowering.TPUS),
        "measured_on": [],
        "unavailable_here": None if has_jax else "no JAX: pip install 'xlnet-fast[tpu]'",
    }


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


def _any_gpu() -> str:
    return "cuda:0" if torch.cuda.is_available() else "cuda"


def cuda_archs() -> list[str]:
    """The chips that the extension has CUDA kernels for."""
    built = _extension.build_info()
    return [] if built is None else built["cuda_archs"]


def _missing() -> list[dict[str, str]]:
    rows = []
    reason = _extension.why_missing()
    if reason is not None:
        effect = "attention on the CPU and dropout masks are made by slower PyTorch code"
        rows.append(_lack("C++ extension", effect, reason))
    elif torch.cuda.is_available() and not cuda_archs():
        effect = "Triton's kernels alone can run on this GPU"
        rows.append(_lack("CUDA kernels", effect, f"with nvcc on the path, `{cuda.BUILD}`"))
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


_Choices = dict[tuple[str, torch.dtype, str], Choice]
"""By op, dtype and mode."""


def _choices(device: str) -> _Choices:
    """What `backend="auto"` takes on a device, for every op, dtype and mode."""
    found = {}
    where = torch.device(device)
    for op in OPS:
        for dtype in DTYPES:
            # The memory carries no gradient.
            for mode in ("inference",) if op == "concat_memory" else ("inference", "training"):
                training = mode == "training"
                features = usual_features(op, training)
                request = request_on(op, where, dtype, needs_grad=training, features=features)
                found[op, dtype, mode] = choice_of(request)
    return found


def _rows(device: str, choices: _Choices) -> list[dict[str, Any]]:
    return [
        {
            "op": op,
            "device": device,
            "dtype": str(dtype).removeprefix("torch."),
            "mode": mode,
            "backend": choice.backend,
            "reason": choice.reason,
            "brief": brief(choice, torch.device(device).type),
            "speed": choice.speed,
        }
        for (op, dtype, mode), choice in choices.items()
    ]


def _verdict(device: dict[str, Any], choices: _Choices) -> str:
    """Of one device, by what attention takes in its usual dtype."""
    found = _found(device)
    failed = 0 if found.record is None else len(found.record.failed)
    kind = torch.device(device["device"]).type
    usual = torch.bfloat16 if kind == "cuda" else torch.float32
    attention = {key: c for key, c in choices.items() if key[0] in ATTENTION and key[1] == usual}
    others = [choice for key, choice in choices.items() if key not in attention]
    line = verdict(kind, list(attention.values()), others, found)
    if failed and not line.startswith(("fault", "cannot")):
        classes = "class of calls" if failed == 1 else "classes of calls"
        return f"fault: {failed} {classes} did not pass; `{proof.COMMAND} --show {found.source}`"
    return line


def _worst(devices: list[dict[str, Any]]) -> str:
    """The verdict on the machine: of its GPUs, or of its CPU where it has none or has a fault."""
    gpus = [device for device in devices if device["device"] != "cpu"]
    for device in devices:
        if device["verdict"].startswith(("fault", "cannot")):
            return f"{device['device']}: {device['verdict']}"
    lines = {device["verdict"]: device["device"] for device in gpus or devices}
    if len(lines) == 1:
        return next(iter(lines))
    line = next((line for line in lines if not line.startswith("ready")), next(iter(lines)))
    return f"{lines[line]}: {line}"
