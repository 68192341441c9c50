"""Everything in one command: build, smoke, timings, counters, GPU tests, within a time limit.

    python3 -m benchmarks.reproduce --minutes 9 --out DIR

Needs torch, triton, transformers, numpy, pytest, matplotlib, rich and typer, and the repository as
the working directory; nothing is installed. On a GPU the extension is built for that GPU alone, the
Triton kernels are compiled side by side, every op is checked against float64, the kernels qualify,
and then come the rows of the design's goals, the profiler's counters where `ncu` is there, models,
and the GPU tests, those of the kernels first; everything else, compiled rivals included, takes the
time that is left. On a machine without a GPU it says so, checks and times the CPU.

Every stage runs in processes of its own with a limit, so one that crashes, hangs or poisons its
CUDA context does not stop the others. DIR/evidence.jsonl gets a line for each result as it happens,
DIR/results.csv a row for each time. The exit code is 1 when a stage failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .gpu import counters, gpu_tests
from .gpu.supervise import python_module
from .harness import presets
from .harness.record import CSV_FILE, ENVIRONMENT_FILE, environment, read_results, write_environment
from .harness.runner import OUT_OF_TIME
from .harness.stages import (
    EVIDENCE_FILE,
    Evidence,
    StageFailed,
    StageRunner,
    ended_like_an_interrupt,
    run_command,
)
from .harness.timing import Deadline
from .pages.console import Display
from .run import finish

LOG_FILE = "log.txt"
QUALIFICATION_FILE = "qualification.json"
# With log, evidence, the qualification, the CSV, the environment and the page: eight files.
KEPT_PLOTS = ("model_speedup.png", "rel_attention_speedup.png")
SMALL_BENCHMARKS = ("two_stream", "masked_softmax", "concat_memory")
# What cuBLAS needs to give the same bits twice: read when its library is loaded.
CHILDREN = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
# A build is never given less: with the CUDA kernels for two chips it took 267 s on 2 cores
# (docs/measured.md), and on a GPU machine it is for that GPU alone.
_BUILD_S = 180.0
# Left at the end for plots, page and table.
_FINISH_S = 15.0
# A benchmark begins no case after its deadline, but finishes the one it is in.
_LAST_CASE_S = {"cuda": 45.0, "cpu": 120.0}
# What a stage that watches its own time may take beyond it.
_MARGIN_S = 15.0


@dataclass(frozen=True)
class Budget:
    """The time of a stage: so many seconds, or a share of what is left where that is more."""

    seconds: float
    share: float

    def of(self, left_s: float) -> float:
        """The seconds it gets, never more than there are."""
        return min(max(self.seconds, self.share * left_s), left_s)


@dataclass(frozen=True)
class Part:
    """One process of benchmarks: which, by which preset, and its time."""

    name: str
    only: tuple[str, ...]
    preset: str
    budget: Budget


COMPILE = Budget(60.0, 0.08)
SMOKE = Budget(45.0, 0.08)
QUALIFY = Budget(90.0, 0.12)
COUNTERS = Budget(40.0, 0.06)
TELLING_TESTS = Budget(90.0, 0.5)
OTHER_TESTS = Budget(40.0, 0.4)
# What matters most first: the time may run out anywhere.
HEADLINE = Part("headline kernels", ("ceiling", "rel_attention"), "headline", Budget(70.0, 0.15))
HEADLINE_MODELS = Part("headline models", ("model",), "headline", Budget(45.0, 0.2))
AFTER_TESTS = (
    Part("headline pretraining", ("pretraining",), "headline", Budget(30.0, 0.4)),
    Part("latency", ("latency",), "headline", Budget(0.0, 0.35)),
    Part("small kernels", SMALL_BENCHMARKS, "headline", Budget(0.0, 0.35)),
)


def parts_after(preset: str, gpu: bool) -> tuple[Part, ...]:
    """Return the parts that come last: everything, as far as the time goes."""

    def part(name: str, only: tuple[str, ...], share: float) -> Part:
        return Part(name, only, preset, Budget(0.0, share))

    pretraining = part("pretraining", ("pretraining",), 1.0)
    if gpu:
        kernels = part("kernels", ("rel_attention", *SMALL_BENCHMARKS), 0.5)
        return kernels, part("models", ("model",), 0.6), pretraining
    small = SMALL_BENCHMARKS if preset == "full" else ()
    kernels = part("kernels", ("ceiling", "rel_attention", *small), 0.2)
    if preset != "full":
        return kernels, part("models", ("model",), 1.0)
    return kernels, part("models", ("model",), 0.8), pretraining


def cuda_arch(capability: tuple[int, int]) -> str:
    """Return the architecture to build for, "90a" for 9.0: kernels for one GPU alone."""
    major, minor = capability
    return f"{major}{minor}{'a' if major == 9 else ''}"


def _build(out: Path, timeout_s: float, has_gpu: bool) -> str:
    log, command = out / LOG_FILE, [sys.executable, "setup.py", "build_ext", "--inplace"]
    settings: dict[str, str] = {}
    if has_gpu:
        # Kernels that an nvcc failed on would be left out, and their tests skipped.
        arch = cuda_arch(torch.cuda.get_device_capability())
        settings = {"XLNET_FAST_CUDA_ARCHS": arch, "XLNET_FAST_REQUIRE_EXT": "1"}
    try:
        run_command(command, timeout_s, log, environment=settings)
    except StageFailed:
        if has_gpu:  # the CPU's kernels need no nvcc, and the other stages go on with them
            run_command(command, timeout_s, log, environment={"XLNET_FAST_NO_CUDA": "1"})
        raise
    # A fresh process: a module of the old build may be loaded in this one.
    code = (
        "from xlnet_fast import _extension as e; m = e.load(); "
        "print('extension built and loads, CUDA kernels for: '"
        " + (' '.join(m.build_info()['cuda_archs']) or 'nothing')"
        " if m else 'no extension: ' + str(e.why_missing()))"
    )
    return run_command([sys.executable, "-c", code], 120.0, log)


def _smoke(out: Path, seconds: float, device: str, compiling: bool) -> str:
    """Check every op against float64, or compile the Triton kernels that this takes."""
    command = python_module(
        "smoke", "--device", device, "--seconds", f"{seconds:.0f}", "--out",
        str((out / EVIDENCE_FILE).resolve()), *(["--compile"] if compiling else []),
    )  # fmt: skip
    return run_command(command, seconds + _MARGIN_S, out / LOG_FILE, environment=CHILDREN)


def _counters(out: Path, seconds: float) -> str:
    log, evidence = ((out / name).resolve() for name in (LOG_FILE, EVIDENCE_FILE))
    command = python_module("counters", "--seconds", f"{seconds:.0f}", "--out", str(evidence))
    command += ["--log", str(log)]
    return run_command(command, seconds + _MARGIN_S, log, environment=CHILDREN)


_QUALIFY = [sys.executable, "-m", "xlnet_fast", "qualify"]


def _why_no_qualify(out: Path) -> str | None:
    try:
        run_command([*_QUALIFY, "--help"], 60.0, out / LOG_FILE)
    except StageFailed:
        return "this version has no `xlnet-fast qualify`"
    return None


def _qualify(out: Path, seconds: float, device: str) -> str:
    """Let the kernels qualify on this machine; the record stays in `out`."""
    record = (out / QUALIFICATION_FILE).resolve()
    command = [*_QUALIFY, "--device", device, "--minutes", f"{seconds / 60:.2f}"]
    command += ["--out", str(record)]
    return run_command(command, seconds + 2 * _MARGIN_S, out / LOG_FILE, environment=CHILDREN)


def _test(out: Path, seconds: float, files: Sequence[str]) -> str:
    command = gpu_tests.command(files)
    evidence = (out / EVIDENCE_FILE).resolve()
    settings = CHILDREN | gpu_tests.settings(evidence)
    return run_command(command, seconds, out / LOG_FILE, environment=settings)


def _bench(out: Path, part: Part, device: str, minutes: float) -> None:
    command = [
        sys.executable, "-m", f"{__package__}.run", "--preset", part.preset, "--device", device,
        "--out", str(out.resolve()), "--minutes", f"{minutes:.2f}", "--no-pages", "--append",
        "--only", *part.only,
    ]  # fmt: skip
    record = (out / QUALIFICATION_FILE).resolve()
    # What `auto` takes once the kernels have qualified is what is timed.
    settings = {"XLNET_FAST_QUALIFICATION": str(record)} if record.is_file() else {}
    run_command(command, minutes * 60 + _LAST_CASE_S[device], environment=CHILDREN | settings)


class _Run:
    """The stages of one run, in order."""

    def __init__(self, out: Path, minutes: float, has_gpu: bool, display: Display) -> None:
        self.out, self.has_gpu = out, has_gpu
        self.device = "cuda" if has_gpu else "cpu"
        self.deadline = Deadline(minutes * 60 - _FINISH_S)
        self.stages = StageRunner(display.say, Evidence(out / EVIDENCE_FILE))

    def seconds(self, budget: Budget) -> float:
        return budget.of(self.deadline.left_s())

    def late(self) -> str | None:
        return OUT_OF_TIME if self.deadline.left_s() <= 0 else None

    def first(self, no_gpu: str | None) -> None:
        """Build, compile, check, qualify: what tells whether anything works."""
        out, run = self.out, self.stages.run
        build_s = max(self.deadline.left_s() / 4, _BUILD_S)
        run("build", lambda: _build(out, build_s, self.has_gpu))
        run(
            "compile", lambda: _smoke(out, self.seconds(COMPILE), self.device, True),
            no_gpu or self.late(),
        )  # fmt: skip
        run(
            "smoke", lambda: _smoke(out, self.seconds(SMOKE), self.device, False), self.late()
        )  # fmt: skip
        run(
            "qualify", lambda: _qualify(out, self.seconds(QUALIFY), self.device),
            self.late() or _why_no_qualify(out),
        )  # fmt: skip

    def headline(self) -> None:
        """The design's goals on a GPU, the profiler's counters, models, the tests."""
        out, run = self.out, self.stages.run
        self.bench(HEADLINE)
        missing = None if counters.profiler() else "ncu is neither on the path nor in CUDA_HOME"
        run(
            "counters", lambda: _counters(out, self.seconds(COUNTERS)), self.late() or missing
        )  # fmt: skip
        self.bench(HEADLINE_MODELS)
        self.tests(None)
        for part in AFTER_TESTS:
            self.bench(part)

    def tests(self, skip: str | None) -> None:
        """The GPU tests, those of the kernels first."""
        telling, others = gpu_tests.in_order()
        for name, files, budget in (
            ("GPU tests of the kernels", telling, TELLING_TESTS),
            ("GPU tests of the rest", others, OTHER_TESTS),
        ):
            reason = skip or self.late() or gpu_tests.why_not()

            def test(files: list[str] = files, budget: Budget = budget) -> str:
                return _test(self.out, self.seconds(budget), files)

            self.stages.run(name, test, reason)

    def bench(self, part: Part) -> None:
        seconds = self.seconds(part.budget)
        # The first is begun whatever the time, so that there is something to show.
        late = OUT_OF_TIME if seconds <= 0 and (self.out / CSV_FILE).exists() else None
        minutes = max(seconds / 60, 0.1)
        self.stages.run(part.name, lambda: _bench(self.out, part, self.device, minutes), late)


def reproduce(minutes: float, out: Path, preset: str | None = None, cpu: bool = False) -> int:
    """Run all stages within about `minutes` and leave at most eight files in `out`.

    cpu: time the CPU even where there is a GPU. Returns 0, or 1 when a stage failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    display = Display()
    has_gpu = torch.cuda.is_available() and not cpu
    no_gpu = None if has_gpu else "there is no GPU here" if not cpu else "the CPU was asked for"
    preset = preset or ("full" if has_gpu or minutes >= 60 else "quick")
    if no_gpu:
        display.say(f"Timing the CPU: {no_gpu}. All results carry the CPU's name.")
    for name in (CSV_FILE, EVIDENCE_FILE, LOG_FILE, QUALIFICATION_FILE):
        (out / name).unlink(missing_ok=True)
    run = _Run(out, minutes, has_gpu, display)
    write_environment(out, environment(torch.device(run.device)))
    with ended_like_an_interrupt():
        run.first(no_gpu)
        if has_gpu:
            run.headline()
        else:
            run.tests(no_gpu)
        for part in parts_after(preset, has_gpu):
            run.bench(part)
        run.stages.run("plots and page", lambda: _finish(out, run.stages, display))
    failed = run.stages.failed()
    outcome = "failed" if failed else "ok"
    Evidence(out / EVIDENCE_FILE).add("reproduce", outcome, minutes=minutes, device=run.device)
    display.say(f"Failed: {', '.join(failed)}." if failed else "Every stage went well.")
    return 1 if failed else 0


def _finish(out: Path, stages: StageRunner, display: Display) -> None:
    rows = read_results(out / CSV_FILE)
    info = json.loads((out / ENVIRONMENT_FILE).read_text())
    notes = [
        f"Stage {r.name} {status}: {r.detail}"
        for status in ("failed", "skipped")
        for r in stages.results
        if r.status == status
    ]
    finish(out, rows, info, notes, display, KEPT_PLOTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything")
    parser.add_argument("--out", type=Path, default=Path("reproduce_out"))
    parser.add_argument("--preset", choices=presets.PRESETS, help="of what follows the headline")
    parser.add_argument("--cpu", action="store_true", help="time the CPU even where there is a GPU")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes must be positive, got {options.minutes}")
    return reproduce(options.minutes, options.out, options.preset, options.cpu)


if __name__ == "__main__":
    raise SystemExit(main())
