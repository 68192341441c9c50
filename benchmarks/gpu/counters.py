"""What the chip counted while attention kernels ran, by Nsight Compute (`ncu`), where it is there.

    python -m benchmarks.gpu.counters --seconds 40 --out FILE [--log FILE]

One launch of each kernel of a forward and backward pass at a headline size is profiled, of backend
triton and of cuda. FILE gets a line of JSON for each kernel, with the metrics below. The exit code
is 0, also where this user may not read the counters, which is said; 1 when the profiler failed, 2
when it is not there.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..harness.stages import ROOT, Evidence, end_group, ended_like_an_interrupt, without_paths
from ..harness.timing import Deadline
from .supervise import python_module

STAGE = "counters"
BACKENDS = ("triton", "cuda")
METRICS = {
    "gpu__time_duration.sum": "time",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_percent",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "l2_percent",
    "l1tex__throughput.avg.pct_of_peak_sustained_elapsed": "l1_percent",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active": "tensor_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps_percent",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "bank_conflicts",
    "launch__registers_per_thread": "registers",
    "launch__occupancy_limit_registers": "blocks_by_registers",
}
# The kernels of ours, whatever PyTorch launches beside them, and each a few times at most.
_KERNELS = r"regex:(_forward_kernel|_backward_q_kernel|_backward_kv_kernel|rel_attention)"
_LAUNCHES = 5
_NO_PERMISSION = "ERR_NVGPUCTRPERM"
SKIPPED = f"skipped, this user may not read the GPU's counters ({_NO_PERMISSION})"


def profiler() -> str | None:
    """The path of `ncu`, None where there is none."""
    beside = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda") / "bin" / "ncu"
    return shutil.which("ncu") or (str(beside) if beside.is_file() else None)


def command(ncu: str, backend: str) -> list[str]:
    """The command that profiles one pass of a backend."""
    return [
        ncu, "--csv", "--page", "raw", "--target-processes", "application-only",
        "--kernel-name-base", "function", "--kernel-name", _KERNELS,
        "--launch-count", str(_LAUNCHES), "--metrics", ",".join(METRICS),
        *python_module("counters", "--pass", backend),
    ]  # fmt: skip


def rows(output: str) -> Iterator[dict[str, Any]]:
    """The kernels of a profile: `ncu`'s CSV, which follows what the program printed itself."""
    lines = output.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return
    table = csv.DictReader(io.StringIO("\n".join(lines[start:])))
    units = next(table, None)
    for row in table:
        found: dict[str, Any] = {"kernel": row.get("Kernel Name", "")}
        for metric, name in METRICS.items():
            if row.get(metric):
                unit = (units or {}).get(metric) or ""
                found[name] = f"{row[metric]} {unit}".strip()
        yield found


def profile(backend: str, ncu: str, seconds: float, evidence: Evidence, log: Path | None) -> str:
    """Profile a backend; return "passed", or in a sentence why there is nothing."""
    process = subprocess.Popen(
        command(ncu, backend), cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        return f"not done after {seconds:.0f} s"
    finally:
        end_group(process)
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(without_paths(output))
    if _NO_PERMISSION in output:
        return SKIPPED
    found = list(rows(output))
    for row in found:
        evidence.add(STAGE, "passed", backend=backend, **row)
    if found:
        return "passed"
    last = [line for line in output.splitlines() if line.strip()]
    return f"no kernel was profiled, exit code {process.returncode}: {''.join(last[-1:])[:200]}"


def run_pass(backend: str) -> None:
    """Forward and backward of 8 x 512 tokens, 16 heads of 64, padding and segments, in bf16."""
    from ..cases.rel_attention import FORWARD_BACKWARD, RelAttentionCase, make_inputs
    from ..providers.rel_attention import named_provider, prepare

    case = RelAttentionCase(8, 512, 0, 16, 64, "bf16", "cuda", FORWARD_BACKWARD)
    prepare(named_provider(backend), case, make_inputs(case)).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--out", type=Path, default=Path("evidence.jsonl"))
    parser.add_argument("--log", type=Path)
    parser.add_argument("--pass", dest="run", choices=BACKENDS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run:
        run_pass(options.run)
        return 0
    ncu = profiler()
    if ncu is None:
        print("error: ncu is neither on the path nor in CUDA_HOME", file=sys.stderr)
        return 2
    evidence, deadline, told = Evidence(options.out), Deadline(options.seconds), []
    with ended_like_an_interrupt():
        for number, backend in enumerate(BACKENDS):
            share = deadline.left_s() / (len(BACKENDS) - number)
            told.append(profile(backend, ncu, share, evidence, options.log))
            if told[-1] != "passed":
                outcome = "skipped" if told[-1] == SKIPPED else "failed"
                evidence.add(STAGE, outcome, backend=backend, reason=told[-1])
    print("; ".join(f"{b}: {t}" for b, t in zip(BACKENDS, told, strict=True)), flush=True)
    return 0 if {"passed", SKIPPED} & set(told) else 1


if __name__ == "__main__":
    raise SystemExit(main())
