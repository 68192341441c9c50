"""Measures which tile of each Triton attention kernel is fastest on this GPU.

    python3 -m benchmarks tune --minutes 10 --out DIR [--write]

For every kernel, dtype, head dim, load and length class, all candidates of
`xlnet_fast.kernels.triton.tiles` are checked at a small size against the float64 reference, then
timed in interleaved rounds through the public op. Those of which two programs share a
multiprocessor, and which may spill registers in a loop, are marked (column paired). What does not
compile or is wrong is recorded with the reason. DIR/tune.csv grows as results come; with --write
the package's table of measured tiles gets the fastest of each, under the names of this GPU and of
the release of Triton, beside those of others.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch

from xlnet_fast.files import write_whole

from ..harness.timing import Deadline, Measurement, Plan, Timer, make_timer, measure, paired_ratio
from .tune_workbench import GpuWorkbench, Job

TUNE_FILE = "tune.csv"
NO_GPU = 2
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_DIMS = (64, 128, 32)
SHAPES = ("long", "short")
PLAN = Plan(min_rounds=5, max_rounds=20, budget_s=1.5, min_sample_us=2_000.0)
# Within this much of the fastest, the tile that is safe everywhere stays.
_WORTH = 1.01


@dataclass
class Trial:
    """One candidate of one job. status: ok, wrong, failed or not_run, with a reason."""

    gpu: str
    kernel: str
    dtype: str
    head_dim: int
    load: str
    shape: str
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    maxnreg: int
    registers: int
    shared_bytes: int
    status: str = "ok"
    reason: str = ""
    rounds: int = 0
    p50_us: float | None = None
    speedup_over_safe: float | None = None  # median over the rounds; the safe tile is tried first
    fastest: str = "false"
    paired: str = "false"  # whether it is of `tiles.paired_tiles`, never taken untimed


class Workbench(Protocol):
    """Runs a job's kernel with a candidate; `GpuWorkbench` is the real one."""

    def fault(self, job: Job, config: Any) -> str | None:
        """Say what is wrong with the results, None where they are right; may raise."""
        ...

    def function(self, job: Job, config: Any) -> Callable[[], Any]:
        """Return the function to time; may raise."""
        ...


def jobs(kernels: Sequence[str]) -> Iterator[Job]:
    """Yield every job, what most people run first: time may run out."""
    for dtype in DTYPES:
        for head_dim in HEAD_DIMS:
            for shape in SHAPES:
                for heavy in (False, True):
                    for kernel in kernels:
                        yield Job(kernel, dtype, head_dim, heavy, shape)


def try_job(
    job: Job,
    configs: Sequence[Any],
    bench: Workbench,
    timer: Timer,
    gpu: str,
    plan: Plan = PLAN,
    paired: Sequence[Any] = (),
) -> list[Trial]:
    """Check and time all candidates of a job; the first of `configs` is the safe one.

    Args:
        paired: of `configs`, those that are to be marked so.
    """
    trials, functions = [], {}
    for number, config in enumerate(configs):
        trial = Trial(
            gpu, job.kernel, str(job.dtype).removeprefix("torch."), job.head_dim,
            "heavy" if job.heavy else "light", job.shape, *astuple(config),
            paired=str(config in paired).lower(),
        )  # fmt: skip
        trials.append(trial)
        try:
            fault = bench.fault(job, config)
            if fault is None:
                functions[str(number)] = bench.function(job, config)
            else:
                trial.status, trial.reason = "wrong", fault
        except Exception as error:  # out of resources, a compiler's crash: the next may work
            trial.status, trial.reason = "failed", _one_line(error)
    measured = measure(functions, timer, plan)
    for name, measurement in measured.items():
        trial = trials[int(name)]
        if not measurement.ok:
            trial.status, trial.reason = "failed", measurement.failure or "no sample"
            continue
        trial.rounds = len(measurement.samples_us)
        trial.p50_us = measurement.percentile_us(50)
        safe = measured.get("0", Measurement())
        if safe.ok:
            trial.speedup_over_safe = paired_ratio(safe, measurement)
    best = fastest(trials)
    if best is not None:
        best.fastest = "true"
    return trials


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["(no message)"]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def fastest(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial to use: the safe one unless another is more than 1% faster; None if none."""
    timed = [trial for trial in trials if trial.status == "ok" and trial.p50_us is not None]
    if not timed:
        return None
    best = min(timed, key=lambda trial: trial.p50_us or 0.0)
    safe = trials[0]
    if safe in timed and (safe.p50_us or 0.0) <= _WORTH * (best.p50_us or 0.0):
        return safe
    return best


class TrialWriter:
    """Appends trials to `tune.csv`, each job complete on disk before the next begins."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        write_whole(path, ",".join(field.name for field in fields(Trial)) + "\n")

    def add(self, trials: Iterable[Trial]) -> None:
        """Write the trials of a job."""
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            for trial in trials:
                writer.writerow(_cell(value) for value in astuple(trial))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def merge_tuned(path: Path, gpu: str, entries: dict[str, list[int]]) -> None:
    """Put a GPU's entries into the table of measured tiles; all others stay as they are.

    Raises ValueError, and leaves the file alone, when it holds no such table.
    """
    tuned = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(tuned, dict) or not all(isinstance(each, dict) for each in tuned.values()):
        raise ValueError(f"{path.name} holds no table of measured tiles")
    tuned[gpu] = tuned.get(gpu, {}) | entries
    # One entry a line, sorted: a new measurement is a small difference.
    parts = []
    for name in sorted(tuned):
        lines = [f"    {json.dumps(k)}: {json.dumps(tuned[name][k])}" for k in sorted(tuned[name])]
        parts.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    write_whole(path, "{\n" + ",\n".join(parts) + "\n}\n")


def tune(
    tiles: Any,
    bench: Workbench,
    timer: Timer,
    gpu: str,
    arch: int,
    out: Path,
    *,
    minutes: float,
    table: Path | None = None,
    say: Callable[[str], None] = print,
    plan: Plan = PLAN,
) -> dict[str, list[int]]:
    """Try every job in the time given; return the entries found, also written into `table`.

    tiles: the module `xlnet_fast.kernels.triton.tiles`. table: None to leave it alone.
    """
    deadline = Deadline(minutes * 60)
    writer = TrialWriter(out / TUNE_FILE)
    entries: dict[str, list[int]] = {}
    left_out = 0
    for job in jobs(tiles.KERNELS):
        if deadline.passed():
            left_out += 1
            continue
        entry = (job.kernel, job.dtype, job.head_dim, job.heavy, arch)
        configs, paired = tiles.candidates(*entry), tiles.paired_tiles(*entry)
        trials = try_job(job, configs, bench, timer, gpu, plan, paired)
        writer.add(trials)
        best = next((trial for trial in trials if trial.fastest == "true"), None)
        if best is None:
            say(f"{job.label}: no candidate works: {trials[0].reason}")
            continue
        config = [getattr(best, field.name) for field in fields(tiles.Config)]
        key = tiles.tuned_key(job.kernel, job.dtype, job.head_dim, job.heavy, job.shape)
        entries[key] = config
        ratio = best.speedup_over_safe
        faster = "" if ratio is None else f", {ratio:.2f}x the safe one"
        wrong = sum(trial.status != "ok" for trial in trials)
        of_two = ", two a multiprocessor" if best.paired == "true" else ""
        tried = f"{config} of {len(trials)}, {wrong} left out{of_two}"
        say(f"{job.label}: {tried}, {best.p50_us:.0f} us{faster}")
        if table is not None:
            merge_tuned(table, tiles.tuned_gpu(gpu), {key: config})
    if left_out:
        say(f"Time was over: {left_out} entries were not tried.")
    return entries


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0, 1 when nothing was found, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no entry after that")
    parser.add_argument("--out", type=Path, default=Path("tune_out"))
    parser.add_argument("--write", action="store_true", help="also write the package's table")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes must be positive, got {options.minutes}")
    if not torch.cuda.is_available():
        print("error: there is no GPU here, so there is nothing to tune", file=sys.stderr)
        return NO_GPU
    from xlnet_fast.kernels.triton import tiles, why_unavailable

    device = torch.device("cuda", torch.cuda.current_device())
    obstacle = why_unavailable(device)
    if obstacle is not None:
        print(f"error: {obstacle}", file=sys.stderr)
        return NO_GPU
    major, minor = torch.cuda.get_device_capability(device)
    found = tune(
        tiles,
        GpuWorkbench(tiles, device),
        make_timer(device),
        torch.cuda.get_device_name(device),
        10 * major + minor,
        options.out,
        minutes=options.minutes,
        table=tiles.TUNED_FILE if options.write else None,
    )
    print(f"{len(found)} entries; trials in {options.out / TUNE_FILE}")
    if options.write and found:
        print(f"wrote {tiles.TUNED_FILE.name}")
    return 0 if found else 1


if __name__ == "__main__":
    raise SystemExit(main())
