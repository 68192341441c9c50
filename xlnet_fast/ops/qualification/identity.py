"""What a record of a qualification holds for: a device, and the software that drives it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch

from xlnet_fast import _extension
from xlnet_fast.builder import recipe
from xlnet_fast.kernels.cpu.instruction_sets import instruction_set
from xlnet_fast.ops.qualification.record import Identity

_SOURCES = ("kernels/**/*.py", "kernels/**/*.json", "masks.py", "operands.py", "philox.py")
_DRIVER_FILE = Path("/proc/driver/nvidia/version")


@functools.cache
def identity_of(device: torch.device) -> Identity:
    """The identity of a device with this process's software; of a GPU it starts CUDA.

    Args:
        device: "cpu", or "cuda" with an index, which exists.
    """
    if device.type == "cpu":
        return Identity(
            device="cpu",
            name=cpu_name(),
            capability=_cpu_capability(),
            multiprocessors=os.cpu_count() or 1,
            driver="",
            cuda="",
            **_software(),
        )
    properties = torch.cuda.get_device_properties(device)
    return Identity(
        device="cuda",
        name=properties.name,
        capability=f"{properties.major}.{properties.minor}",
        multiprocessors=properties.multi_processor_count,
        driver=driver_branch(),
        cuda=torch.version.cuda or "",
        **_software(),
    )


def cpu_name() -> str:
    """The processor's model name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


@functools.cache
def driver_branch() -> str:
    """Branch of NVIDIA's driver, such as "580"; "" where it cannot be told. Starts no CUDA."""
    try:
        text = _DRIVER_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = _ask_nvidia_smi()
    found = re.search(r"\b(\d{3,})\.\d+(\.\d+)?\b", text)
    return found[1] if found else ""


def _ask_nvidia_smi() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _cpu_capability() -> str:
    built = _extension.build_info()
    kernels = [] if built is None else built["attention_isa"]
    if not kernels:
        return str(torch.backends.cpu.get_cpu_capability())
    asked_for = instruction_set()
    return kernels[-1] if asked_for == "auto" else asked_for


def _software() -> dict[str, str]:
    from xlnet_fast.kernels import triton

    version = "" if triton.triton is None else str(triton.triton.__version__)
    return {
        "torch": str(torch.__version__),
        "triton": version,
        "kernels": kernels_digest(),
        "extension": extension_digest(),
    }


@functools.cache
def kernels_digest() -> str:
    """A hash of what computes in Python, names included, as 16 hexadecimal digits."""
    total = hashlib.sha256()
    files = {path for pattern in _SOURCES for path in recipe.PACKAGE.glob(pattern)}
    for path in sorted(files):
        content = path.read_bytes()
        total.update(f"{path.relative_to(recipe.PACKAGE)} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()[:16]


@functools.cache
def extension_digest() -> str:
    """A hash of the compiled extension's file, or of what it says of itself; "" without one."""
    file = _extension.path()
    if file is not None:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    built = _extension.build_info()
    if built is None:
        return ""
    return hashlib.sha256(json.dumps(built, sort_keys=True).encode()).hexdigest()[:16]
