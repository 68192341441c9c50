"""Runs every GPU kernel at a few small shapes under NVIDIA's compute-sanitizer.

    python3 -m benchmarks sanitize [--tool memcheck racecheck] [--backend triton cuda] [--minutes M]

memcheck finds accesses outside of allocations; for that the caching allocator is off, so that each
tensor is an allocation of its own. racecheck finds hazards in shared memory, and only there: races
in global memory, such as of atomic additions, are not its business. The exit code is 0 when both
are clean, 1 when something was found or a tool did not finish, 2 without a GPU or the sanitizer.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

import torch

from ..harness.stages import ROOT

TOOLS = ("memcheck", "racecheck")
BACKENDS = ("triton", "cuda")
MISSING = 2
# What compute-sanitizer is to return for errors: not a code that Python itself uses.
_FOUND = 99
_WORKLOAD = f"{(__package__ or '').rpartition('.')[0]}.micro.gpu_kernels"


def sanitizer_path() -> str | None:
    """Return compute-sanitizer on the path or beside CUDA, None where there is none."""
    on_path = shutil.which("compute-sanitizer")
    if on_path is not None:
        return on_path
    for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        for folder in ("bin", "compute-sanitizer"):
            found = shutil.which("compute-sanitizer", path=f"{root}/{folder}") if root else None
            if found is not None:
                return found
    return None


def command(sanitizer: str, tool: str, backend: str) -> list[str]:
    """Return the command that runs the workload of a backend under a tool."""
    return [
        sanitizer, "--tool", tool, "--target-processes", "application-only",
        "--error-exitcode", str(_FOUND), "--print-limit", "20",
        sys.executable, "-m", _WORKLOAD, "--backend", backend,
    ]  # fmt: skip


def run_tool(sanitizer: str, tool: str, backend: str, timeout_s: float) -> str | None:
    """Run a backend's workload under a tool; return what is wrong, None when it is clean."""
    # Set before the process starts: PyTorch reads the switch when it makes its first allocation.
    settings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command(sanitizer, tool, backend),
            cwd=ROOT,
            env=os.environ | settings,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return f"{tool} was not done after {timeout_s:.0f} s"
    if done.returncode == _FOUND:
        return f"{tool} found errors, listed above"
    if done.returncode:
        return f"the workload under {tool} ended with exit code {done.returncode}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tool", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--minutes", type=float, default=10.0, help="for each tool and backend")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes must be positive, got {options.minutes}")
    if not torch.cuda.is_available():
        print("error: there is no GPU here, so nothing to sanitize", file=sys.stderr)
        return MISSING
    sanitizer = sanitizer_path()
    if sanitizer is None:
        print(
            "error: compute-sanitizer is neither on the path nor in CUDA_HOME; it comes with the "
            "CUDA toolkit",
            file=sys.stderr,
        )
        return MISSING
    faults = []
    for backend, tool in itertools.product(options.backend, options.tool):
        print(f"{backend}, {tool} ...", flush=True)
        fault = run_tool(sanitizer, tool, backend, options.minutes * 60)
        print(f"{backend}, {fault or f'{tool}: clean'}", flush=True)
        faults += [fault] if fault else []
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
