"""Everything in one command: build, kernel and model timings, GPU tests, within a time limit.

    python3 -m benchmarks.reproduce --minutes 10 --out DIR

Needs torch, triton, transformers, numpy, pytest, matplotlib, rich and typer, and the repository as
the working directory; nothing is installed. The extension is built first, on a GPU machine for that
GPU alone. On a GPU the rows of the design's goals come next (our kernels beside content-only flash
attention, the large model, the pretraining step, latency), then the GPU tests, then everything
else, compiled rivals included, as far as the time goes. On a machine without a GPU it says so and
times the CPU. Every stage runs in its own process, so one that crashes (or poisons its CUDA
context) does not stop the others; results are on disk as they come.
The exit code is 1 when a stage failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from . import configs
from .console import Display
from .harness import Deadline, describe
from .record import (
    CSV_FILE,
    ENVIRONMENT_FILE,
    environment,
    read_results,
    write_atomically,
    write_environment,
)
from .run import finish
from .runner import OUT_OF_TIME

ROOT = Path(__file__).resolve().parent.parent
SUMMARY_FILE = "reproduce.json"
LOG_FILES = {"build": "build.txt", "GPU tests": "tests.txt"}
# With the two logs, the CSV, two JSON files and the page: eight files.
KEPT_PLOTS = ("model_speedup.png", "rel_attention_speedup.png")
SMALL_BENCHMARKS = ("two_stream", "masked_softmax", "concat_memory")
# A build is never given less: with the CUDA kernels for two chips it took 267 s on 2 cores
# (docs/measured.md), and on a GPU machine it is for that GPU alone.
_BUILD_S = 180.0
# Left at the end for plots, page and table.
_FINISH_S = 15.0
# A benchmark begins no case after its deadline, but finishes the one it is in.
_LAST_CASE_S = 120.0


@dataclass(frozen=True)
class Part:
    """One process of benchmarks: which, by which preset, in what share of the time left."""

    name: str
    only: tuple[str, ...]
    preset: str
    share: float


# What matters most first: the time may run out anywhere.
GPU_FIRST = (
    Part("headline kernels", ("ceiling", "rel_attention"), "headline", 0.4),
    Part("headline models", ("model",), "headline", 0.35),
    Part("headline pretraining", ("pretraining",), "headline", 0.4),
    Part("latency", ("latency",), "headline", 0.35),
    Part("small kernels", SMALL_BENCHMARKS, "headline", 0.35),
)


def parts_after(preset: str, gpu: bool) -> tuple[Part, ...]:
    """Return the parts that follow the build and the tests."""
    pretraining = Part("pretraining", ("pretraining",), preset, 1.0)
    if gpu:
        kernels = Part("kernels", ("rel_attention", *SMALL_BENCHMARKS), preset, 0.5)
        return kernels, Part("models", ("model",), preset, 0.6), pretraining
    small = SMALL_BENCHMARKS if preset == "full" else ()
    kernels = Part("kernels", ("ceiling", "rel_attention", *small), preset, 0.2)
    if preset != "full":
        return kernels, Part("models", ("model",), preset, 1.0)
    return kernels, Part("models", ("model",), preset, 0.8), pretraining


@dataclass
class StageResult:
    """How a stage went: "ok", "failed" or "skipped", with one line of detail."""

    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""


@dataclass
class StageRunner:
    """Runs stages one after the other; a failing one is recorded and the next one begins."""

    say: Callable[[str], None]
    results: list[StageResult] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic

    def run(self, name: str, stage: Callable[[], str | None], skip: str | None = None) -> None:
        """Run a stage, which raises to fail and may return a line of detail.

        skip: a reason not to run it, which is recorded and is no failure.
        """
        if skip is not None:
            self.results.append(StageResult(name, "skipped", detail=skip))
            self.say(f"{name}: skipped, {skip}")
            return
        self.say(f"{name} ...")
        start = self.clock()
        try:
            status, detail = "ok", stage() or ""
        except Exception as error:
            status, detail = "failed", describe(error)
        seconds = self.clock() - start
        self.results.append(StageResult(name, status, round(seconds, 1), detail))
        self.say(f"{name}: {status} after {seconds:.0f} s{', ' + detail if detail else ''}")

    def failed(self) -> list[str]:
        """Return the names of the stages that failed."""
        return [result.name for result in self.results if result.status == "failed"]


class StageFailed(Exception):
    """A command of a stage ended with an error."""


def run_command(
    command: Sequence[str], timeout_s: float, log: Path | None = None, cwd: Path = ROOT
) -> str:
    """Run a command; return the last line it printed.

    log: where its output goes; without it, it goes on to the terminal. Raises StageFailed with that
    last line when the command fails or takes longer than `timeout_s` seconds.
    """
    timeout_s = max(timeout_s, 1.0)
    captured = subprocess.PIPE if log is not None else None
    process = subprocess.Popen(
        list(command),
        cwd=cwd,
        stdout=captured,
        stderr=subprocess.STDOUT if log else None,
        text=True,
    )
    late = False
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        late = True
    except BaseException:
        process.kill()
        process.communicate()
        raise
    output = _without_paths(output or "")
    if log is not None:
        write_atomically(log, output)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    where = f" (see {log.name})" if log is not None else ""
    if late:
        raise StageFailed(f"not done after {timeout_s:.0f} s{where} {last}".strip())
    if process.returncode:
        raise StageFailed(f"exit code {process.returncode}{where} {last}".strip())
    return last


def _without_paths(output: str) -> str:
    """Return output without the folders of this machine, which are nobody's business elsewhere."""
    output = output.replace(str(ROOT) + os.sep, "").replace(str(ROOT), ".")
    for folder in (sys.prefix, sys.base_prefix):
        output = output.replace(folder, "<python>")
    home = str(Path.home())
    return output.replace(home, "~") if len(home) > 1 else output


def gpu_test_files(tests: Path) -> list[str]:
    """Return the test files that use the `gpu` marker.

    Only these are collected: others may import test tools that a GPU machine does not have.
    """
    files = sorted(tests.rglob("test_*.py"))
    return [str(f.relative_to(tests.parent)) for f in files if "mark.gpu" in f.read_text("utf-8")]


def cuda_arch(capability: tuple[int, int]) -> str:
    """Return the architecture to build for, "90a" for 9.0: kernels for one GPU alone."""
    major, minor = capability
    return f"{major}{minor}{'a' if major == 9 else ''}"


def _build(out: Path, timeout_s: float, has_gpu: bool) -> str:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    if has_gpu:
        arch = cuda_arch(torch.cuda.get_device_capability())
        os.environ.setdefault("XLNET_FAST_CUDA_ARCHS", arch)
        # Kernels that an nvcc failed on would be left out, and their tests skipped.
        os.environ.setdefault("XLNET_FAST_REQUIRE_EXT", "1")
    run_command(command, timeout_s, out / LOG_FILES["build"])
    # A fresh process: a module of the old build may be loaded in this one.
    code = (
        "from xlnet_fast import _extension as e; m = e.load(); "
        "print('extension built and loads, CUDA kernels for: '"
        " + (' '.join(m.build_info()['cuda_archs']) or 'nothing')"
        " if m else 'no extension: ' + str(e.why_missing()))"
    )
    return run_command([sys.executable, "-c", code], 120.0, out / ".load.txt")


def _test(out: Path, timeout_s: float) -> str:
    files = gpu_test_files(ROOT / "tests")
    if not files:
        raise StageFailed("no test carries the gpu marker")
    # The project's own options name plugins that this machine may lack.
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-o", "addopts=", *files]
    command += ["-p", "no:cacheprovider"]
    return run_command(command, timeout_s, out / LOG_FILES["GPU tests"])


def _bench(out: Path, part: Part, device: str, minutes: float) -> None:
    command = [
        sys.executable, "-m", f"{__package__}.run", "--preset", part.preset, "--device", device,
        "--out", str(out.resolve()), "--minutes", f"{minutes:.2f}", "--no-pages", "--append",
        "--only", *part.only,
    ]  # fmt: skip
    run_command(command, minutes * 60 + _LAST_CASE_S)


def reproduce(minutes: float, out: Path, preset: str | None = None, cpu: bool = False) -> int:
    """Run all stages within about `minutes` and leave at most eight files in `out`.

    cpu: time the CPU even where there is a GPU. Returns 0, or 1 when a stage failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    deadline = Deadline(minutes * 60 - _FINISH_S)
    display = Display()
    stages = StageRunner(display.say)
    has_gpu = torch.cuda.is_available() and not cpu
    device = "cuda" if has_gpu else "cpu"
    no_gpu = None if has_gpu else "there is no GPU here" if not cpu else "the CPU was asked for"
    preset = preset or ("full" if has_gpu or minutes >= 60 else "quick")
    where = torch.device(device)
    if no_gpu:
        display.say(f"Timing the CPU: {no_gpu}. All results carry the CPU's name.")
    write_environment(out, environment(where))
    (out / CSV_FILE).unlink(missing_ok=True)

    def bench(part: Part) -> None:
        seconds = deadline.left_s() * part.share
        late = OUT_OF_TIME if seconds <= 0 and (out / CSV_FILE).exists() else None
        stages.run(part.name, lambda: _bench(out, part, device, max(seconds / 60, 0.1)), late)

    stages.run("build", lambda: _build(out, max(deadline.left_s() / 4, _BUILD_S), has_gpu))
    (out / ".load.txt").unlink(missing_ok=True)
    for part in GPU_FIRST if has_gpu else ():
        bench(part)
    stages.run("GPU tests", lambda: _test(out, deadline.left_s() / 3), no_gpu)
    for part in parts_after(preset, has_gpu):
        bench(part)
    stages.run("plots and page", lambda: _finish(out, stages, display))
    summary = {"minutes": minutes, "device": device, "stages": [asdict(r) for r in stages.results]}
    write_atomically(out / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    failed = stages.failed()
    display.say(f"Failed: {', '.join(failed)}." if failed else "Every stage went well.")
    return 1 if failed else 0


def _finish(out: Path, stages: StageRunner, display: Display) -> None:
    rows = read_results(out / CSV_FILE)
    info = json.loads((out / ENVIRONMENT_FILE).read_text())
    notes = [
        f"Stage {r.name} {r.status}: {r.detail}" for r in stages.results if r.status == "failed"
    ]
    notes += [
        f"Stage {r.name} skipped: {r.detail}" for r in stages.results if r.status == "skipped"
    ]
    finish(out, rows, info, notes, display, KEPT_PLOTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0, help="time for everything")
    parser.add_argument("--out", type=Path, default=Path("reproduce_out"))
    parser.add_argument("--preset", choices=configs.PRESETS, help="of what follows the headline")
    parser.add_argument("--cpu", action="store_true", help="time the CPU even where there is a GPU")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes must be positive, got {options.minutes}")
    return reproduce(options.minutes, options.out, options.preset, options.cpu)


if __name__ == "__main__":
    raise SystemExit(main())
