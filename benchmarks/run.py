"""Runs the benchmarks of a preset and leaves CSV, environment, plots and one HTML page.

python -m benchmarks.run --preset quick --out bench_out
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.files import write_whole

from . import (
    bench_ceilings,
    bench_concat_memory,
    bench_generate,
    bench_latency,
    bench_masked_softmax,
    bench_model,
    bench_pretraining,
    bench_rel_attention,
    bench_speech,
    bench_transfo_xl,
    bench_two_stream,
)
from .cases.corpus import load_corpus
from .cases.model import Source, load_source
from .harness import presets
from .harness.memory import MemoryWorker
from .harness.presets import Preset
from .harness.record import (
    CSV_FILE,
    ResultsWriter,
    Row,
    environment,
    merged_environment,
    read_environment,
    read_results,
    write_environment,
)
from .harness.runner import Context
from .harness.session import Session
from .harness.timing import Deadline, describe, make_timer
from .pages.console import Display, print_table
from .pages.headline import case_line, headline, what_next
from .pages.plot import FILE_NAMES, draw_all
from .pages.report import write_report
from .pages.table import tables

# In the order in which they run.
_SMALL: dict[str, Any] = {
    module.KERNEL: module
    for module in (bench_two_stream, bench_masked_softmax, bench_concat_memory, bench_latency)
}
KERNELS = (
    "ceiling", "rel_attention", *_SMALL, "model", bench_pretraining.KERNEL, bench_generate.KERNEL,
)  # fmt: skip
# Other models than XLNet, which run only where they are asked for.
_OTHERS: dict[str, Any] = {module.KERNEL: module for module in (bench_speech, bench_transfo_xl)}
OTHERS = tuple(_OTHERS)
INTERRUPTED = 130


def run_bench(
    preset: str | Preset = "quick",
    model: str | None = None,
    text: str | os.PathLike[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    out: str | os.PathLike[str] = "bench_out",
    *,
    only: Collection[str] = KERNELS,
    minutes: float | None = None,
    append: bool = False,
    pages: bool = True,
    compiled: bool = True,
    old_python: str | os.PathLike[str] | None = None,
    display: Display | None = None,
) -> int:
    """Benchmark and leave results.csv, environment.json, PNG plots and index.html in `out`.

    preset: "quick" or "full". model: checkpoint folder or Hub id of an XLNet, by default
    xlnet-base geometry with random weights. text: a UTF-8 file, by default the built-in text.
    device: "cpu", "cuda", "cuda:1"; by default the GPU if there is one. dtype: "fp32", "bf16" or
    "fp16" alone; by default all of the preset.
    only: which benchmarks to run. minutes: begin no case after that. append: add to the CSV in
    `out`. pages: also write plots and the HTML page, and print the tables. compiled: also time what
    `torch.compile` makes. old_python: the interpreter of an environment with transformers 4.37.2,
    for the models that later releases lack.

    Returns 0; 1 when a check of ours was red, ours raised or nothing was timed; 130 when
    interrupted, with the results so far in place.
    Raises `ArgumentError` for arguments, a model or a text that cannot be used.
    """
    where = _device(device)
    chosen = _preset(preset, where, dtype)
    known = (*KERNELS, *OTHERS)
    if not only or set(only) - set(known):
        raise ArgumentError(f"benchmarks are {', '.join(known)}; got {', '.join(only) or 'none'}")
    if minutes is not None and minutes <= 0:
        raise ArgumentError(f"minutes must be positive, got {minutes}")
    if set(only) <= set(OTHERS) and (model is not None or text is not None):
        raise ArgumentError(f"{', '.join(only)}: random weights, which read no model and no text")
    old = _old_python(old_python, only)
    if not compiled:
        chosen = replace(chosen, compile_budget_s=0.0)
    folder = _folder(out)
    file = None if text is None else str(text)
    display = display or Display()
    # Before anything is overwritten: a wrong model or text must not cost the earlier results.
    only = _chosen(chosen, only)
    display.say(f"Preparing the {chosen.name} preset.")
    source = _source(chosen, model, file, only)
    if file is not None and source is None:
        load_corpus(file)
    if model is not None and source is not None:
        chosen = presets.scaled(chosen, max(1.0, source.geometry.work / chosen.geometry.work))
    extra = {"preset": chosen.name, "text": "none", "model": "none"}
    if source is not None:
        extra |= {
            "text": source.corpus.description,
            "model": _model_text(chosen, model, source, only),
        }
    elif others := [module.MODEL for name, module in _OTHERS.items() if name in only]:
        extra["model"] = "; ".join(others)
    info = environment(where, extra)
    record = info
    if append:
        record = merged_environment(read_environment(folder), info)
    with _told(folder), MemoryWorker() as worker:
        write_environment(folder, record)
        with ResultsWriter(folder / CSV_FILE, info, chosen.name, append=append) as writer, display:
            context = Context(
                writer, make_timer(where), chosen.plan, say=display.say, step=display.step,
                time_is_over=Deadline(chosen.limit_s if minutes is None else minutes * 60).passed,
                done=_teller(display),
            )  # fmt: skip
            session = Session(
                context, chosen, where, worker, advance=display.advance, old_python=old
            )
            display.say(f"Measuring on {info['device']}{_until(chosen)}; a line for each case:")
            context.quiet.look()
            if load := context.quiet.crowded():
                display.say(f"Other programs run here ({load}): the times will be rough.")
            interrupted = _run_all(session, only, model, file, source, display)
    rows = read_results(folder / CSV_FILE)
    notes = [f"Red check, so no speed-up: {red}" for red in context.red]
    notes += [f"Failed: {failure}" for failure in context.failed]
    if interrupted:
        notes.append("Interrupted: the results are those up to then.")
    if warning := context.quiet.warning():
        notes.append(warning)
    if pages:
        with _told(folder):
            finish(folder, rows, record, notes, display)
        display.say(f"\n{headline(rows, record)}.\nNext:")
        for command, effect in what_next(record):
            command = command.replace("MODEL", "MODEL" if model is None else shlex.quote(model))
            display.say(f"  {command:32}  {effect}")
    return _exit_code(context, writer.rows, interrupted)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Say in a sentence that there is no room for the results."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
            raise
        raise XLNetFastError(
            f"the results cannot be written to {folder}: {error.strerror}; --out DIR writes "
            "elsewhere, and what was printed is right"
        ) from error


def _until(preset: Preset) -> str:
    return "" if preset.limit_s == float("inf") else f", no new case after {preset.limit_s:.0f} s"


def _teller(display: Display) -> Callable[[Sequence[Row]], None]:
    """What prints a line for each case that is done, and after how many seconds."""
    start = time.monotonic()

    def tell(rows: Sequence[Row]) -> None:
        display.say(f"[{time.monotonic() - start:4.0f} s] {case_line(rows)}")

    return tell


def _exit_code(context: Context, rows: Sequence[Row], interrupted: bool) -> int:
    if interrupted:
        return INTERRUPTED
    timed = any(row.status == "ok" for row in rows)
    return 1 if context.red or context.failed or not timed else 0


def _chosen(preset: Preset, only: Collection[str]) -> tuple[str, ...]:
    """Return which benchmarks to run, without those that the preset leaves out.

    A preset that leaves some out still runs them when they are asked for alone.
    """
    optional = set[str]()
    if not preset.small_ops and "rel_attention" in only:
        optional |= {*_SMALL, bench_pretraining.KERNEL, bench_generate.KERNEL}
    if preset.model_alone and "model" in only:
        optional |= {"ceiling", "rel_attention"}
    return tuple(n for n in (*KERNELS, *OTHERS) if n in only and n not in optional)


def _run_all(
    session: Session,
    only: Collection[str],
    model: str | None,
    text: str | None,
    source: Source | None,
    display: Display,
) -> bool:
    """Run the chosen benchmarks; return whether the user interrupted them."""
    parts: list[tuple[int, Any]] = []
    if "ceiling" in only:
        parts.append((bench_ceilings.steps(session), bench_ceilings.run))
    if "rel_attention" in only:
        parts.append((len(bench_rel_attention.cases(session)), bench_rel_attention.run))
    parts += [(m.steps(session), m.run) for name, m in _SMALL.items() if name in only]
    if source is not None and "model" in only:
        trunk = source
        count = len(bench_model.cases(session))
        parts.append((count, lambda s: bench_model.run(s, model, text, trunk)))
        source = None  # the pretraining step needs a model with its head
    if bench_pretraining.KERNEL in only:
        count = bench_pretraining.steps(session, model)
        headed = source
        parts.append((count, lambda s: bench_pretraining.run(s, model, text, headed)))
        source = None
    if bench_generate.KERNEL in only:
        count = bench_generate.steps(session, model)
        parts.append((count, lambda s: bench_generate.run(s, model, text, source)))
    parts += [(m.steps(session), m.run) for name, m in _OTHERS.items() if name in only]
    display.set_total(sum(count for count, _ in parts))
    try:
        for _, part in parts:
            part(session)
    except KeyboardInterrupt:
        return True
    return False


def finish(
    folder: Path,
    rows: Sequence[Row],
    info: dict[str, Any],
    notes: Sequence[str],
    display: Display,
    keep_plots: Collection[str] | None = None,
) -> None:
    """Write plots and page, print the tables, and say where everything is.

    keep_plots: names of the PNGs to leave in the folder, by default all. The page holds all.
    """
    console = display.console
    with tempfile.TemporaryDirectory() as scratch:
        plots = _draw(rows, Path(scratch), display)
        page = write_report(folder, rows, info, plots, notes)
        kept = [p for p in plots if keep_plots is None or p.name in keep_plots]
        for path in kept:
            write_whole(folder / path.name, path.read_bytes())
    for name in FILE_NAMES - {path.name for path in kept}:
        (folder / name).unlink(missing_ok=True)  # of an earlier run, so of other results
    # On a GPU a backend that `auto` does not choose yet is what the run is about.
    for table in tables(rows, named_backends=info.get("device_type") == "cuda"):
        print_table(console, table)
    for note in notes:
        console.print(note, style="bold red", markup=False)
    written = [CSV_FILE, "environment.json", page.name]
    written += [path.name for path in kept]
    console.print(f"Results in {folder}: {', '.join(written)}", markup=False, soft_wrap=True)


def _draw(rows: Sequence[Row], folder: Path, display: Display) -> list[Path]:
    try:
        return draw_all(rows, folder)
    except ImportError as error:
        display.say(f"No plots: {describe(error)}. Get them with: pip install matplotlib")
        return []


def _device(name: str | None) -> torch.device:
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(name))
    except RuntimeError:
        raise ArgumentError(f"device must be cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ArgumentError(f"benchmarks run on cpu and cuda, got device {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ArgumentError(f"device {name!r} was asked for, but PyTorch sees {count} GPUs")
    return device


def _preset(preset: str | Preset, device: torch.device, dtype: str | None) -> Preset:
    try:
        if isinstance(preset, Preset):
            return presets.narrowed(preset, dtype)
        return presets.preset(preset, device.type, dtype)
    except ValueError as error:
        raise ArgumentError(str(error)) from None


def _old_python(path: str | os.PathLike[str] | None, only: Collection[str]) -> str | None:
    if path is None:
        return None
    if bench_transfo_xl.KERNEL not in only:
        raise ArgumentError(f"an old interpreter is for {bench_transfo_xl.KERNEL} alone")
    found = shutil.which(path)
    if found is None:
        raise ArgumentError(f"--old-python {path} is no program that can be run")
    return found


def _folder(out: str | os.PathLike[str]) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"cannot make the folder {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ArgumentError(f"the folder {folder} cannot be written to")
    return folder


def _source(
    preset: Preset, model: str | None, text: str | None, only: Collection[str]
) -> Source | None:
    """Return what the first benchmark of whole models needs, None where there is none."""
    if "model" in only:
        first = preset.model_shapes[0].geometry if preset.model_shapes else None
        return load_source(first or preset.geometry, model, text)
    if bench_pretraining.KERNEL in only and preset.pretraining_shapes:
        return bench_pretraining.load(preset.pretraining_shapes[0].geometry, model, text)
    if bench_generate.KERNEL in only and preset.generation_shapes:
        return bench_generate.load(preset.generation_shapes[0].geometry, model, text)
    return None


def _model_text(preset: Preset, model: str | None, source: Source, only: Collection[str]) -> str:
    if model is not None:
        g = source.geometry
        return f"the user's: {g.n_layer} layers, width {g.d_model}, {g.n_head} heads"
    names = set()
    if "model" in only:
        names |= {(shape.geometry or preset.geometry).name for shape in preset.model_shapes}
    if bench_pretraining.KERNEL in only:
        names |= {shape.geometry.name for shape in preset.pretraining_shapes}
    if bench_generate.KERNEL in only:
        names |= {shape.geometry.name for shape in preset.generation_shapes}
    return f"{' and '.join(sorted(names))} geometry, random weights"


def main(arguments: Sequence[str] | None = None, only: Collection[str] = KERNELS) -> int:
    """Command line of the benchmarks; bad arguments give one sentence and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", choices=presets.PRESETS, default="quick")
    parser.add_argument(
        "--quick", dest="preset", action="store_const", const="quick", help="as --preset quick"
    )
    parser.add_argument("--model", help="checkpoint folder or Hub id; default: random weights")
    parser.add_argument("--text", type=Path, help="UTF-8 text file; default: built-in text")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: the GPU if there is one")
    parser.add_argument("--dtype", help="fp32, bf16 or fp16 alone")
    parser.add_argument("--out", type=Path, default=Path("bench_out"))
    parser.add_argument("--minutes", type=float, help="begin no case after that")
    parser.add_argument("--only", nargs="+", choices=(*KERNELS, *OTHERS), default=list(only))
    parser.add_argument("--append", action="store_true", help="add to the CSV in --out")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--old-python", type=Path, metavar="PATH",
        help="interpreter of an environment with transformers 4.37.2, for transfo_xl",
    )  # fmt: skip
    parser.add_argument("--no-pages", action="store_true", help="write no plots and no page")
    options = parser.parse_args(arguments)
    try:
        return run_bench(
            options.preset, options.model, options.text, options.device, options.dtype,
            options.out, only=options.only, minutes=options.minutes, append=options.append,
            pages=not options.no_pages, compiled=not options.no_compile,
            old_python=options.old_python,
        )  # fmt: skip
    except XLNetFastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
