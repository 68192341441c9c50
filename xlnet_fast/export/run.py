"""``export``: build in a temporary folder, compare with the model, and only then move in place."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xlnet_fast.checkpoint import quiet
from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.export import accuracy, aoti, int8, onnx, program, record
from xlnet_fast.export.check import Ranges, Run, check
from xlnet_fast.export.options import (
    USUAL_MAX_BATCH,
    USUAL_MAX_LENGTH,
    USUAL_MOST_ERROR,
    USUAL_TPU_BATCH,
    ExportOptions,
)
from xlnet_fast.export.source import Head, Source, read
from xlnet_fast.export.speed import SHAPES, measure
from xlnet_fast.export.stablehlo import StableHLO
from xlnet_fast.files import folder_written_whole, write_whole
from xlnet_fast.train.shared.tokenizers import check_vocabulary, load_run_tokenizer

Say = Callable[[str], None]
_PROGRAMS: dict[str, Any] = {"torch": program, "aoti": aoti, "onnx": onnx}
_DTYPES = {None: torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        output: folder or file. record: what ``export.json`` says.
    """

    output: Path
    record: dict[str, Any]


def export(options: ExportOptions, say: Say = print) -> ExportResult:
    """Export a model, check it, write it.

    Args:
        say: called with a sentence at each step.

    Raises:
        ArgumentError: an option or a model that cannot be used.
        XLNetFastError: something that the format needs is not here, the export is not the model up
            to rounding, or it could not be written. Nothing is left then.
    """
    options.check()
    assert options.output is not None
    assert options.model is not None
    output = options.output.expanduser()
    _check_output(output, options)
    kind = _kind(options)
    if options.format in ("aoti", "onnx", "stablehlo"):
        kind.require()
    portable = options.portable or options.platform == "cpu"
    source = read(options.model, portable, _DTYPES[options.dtype])
    tokenizer = None
    if not options.is_file:
        tokenizer = load_run_tokenizer(options.tokenizer, source.name)
        check_vocabulary(tokenizer, source.config.vocab_size, source.name)
    say(f"{source.architecture} from {source.name}, as {options.format}")
    try:
        with _built(output, options.is_file) as folder:
            if options.format == "int8":
                found = _int8(source, options, folder, tokenizer, say)
            else:
                found = _program(kind, source, options, folder, tokenizer, say)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            _write_record(folder, output, options.is_file, found)
    except OSError as error:
        raise XLNetFastError(f"{output} could not be written: {error.strerror or error}") from error
    return ExportResult(output, found)


def _kind(options: ExportOptions) -> Any:
    """What writes the program of a format and loads it: a module, or an object like one."""
    if options.format == "stablehlo":
        assert options.platform is not None
        return StableHLO(options.platform, options.dtype or "fp32", options.chip)
    return _PROGRAMS.get(options.format or "")


def _program(
    kind: Any, source: Source, options: ExportOptions, folder: Path, tokenizer: Any, say: Say
) -> dict[str, Any]:
    """Write a program into the folder; what is to be recorded of it."""
    assert options.output is not None
    ranges = _ranges(source, options)
    path = folder / (options.output.name if options.is_file else kind.FILE)
    kind.write(source, ranges, path)
    if options.is_file and len(list(folder.iterdir())) > 1:
        raise ArgumentError(
            "the weights are too many for one file of this format: name a folder as the output"
        )
    run = kind.load(path)
    seen = check(run, source, ranges, adds_otherwise=options.format == "stablehlo")
    worst = max(seen, key=lambda one: one.error / one.bound if one.bound else 0.0)
    say(
        f"the same as the model {ranges.told()}: largest error {worst.error:.2g}, rounding allows "
        f"{worst.bound:.2g}"
    )
    found = record.facts(source, options) | record.of_check(seen, ranges)
    lines = kind.example(path.name, options.portable)
    if options.format == "stablehlo":
        found |= kind.facts(path, found["versions"], say)
        found["run"] = record.command_of_arrays(lines, ranges)
    else:
        found["run"] = record.command(lines, tokenizer is not None)
    if options.format == "stablehlo" and not kind.runs_here():
        say("no TPU is here: the kernels were interpreted on the CPU, and no speed is measured")
    elif options.speed:
        shapes = [(min(rows, ranges.max_batch), min(n, ranges.max_length)) for rows, n in SHAPES]
        found["speed"] = _speed(source, run, shapes, say)
    return found


def _ranges(source: Source, options: ExportOptions) -> Ranges:
    """What a program is to take.

    Raises:
        ArgumentError: the model needs more tokens.
    """
    is_tpu = options.platform == "tpu"
    ranges = Ranges(
        options.max_batch or (USUAL_TPU_BATCH if is_tpu else USUAL_MAX_BATCH),
        source.least_length,
        options.max_length or USUAL_MAX_LENGTH,
        fixed=is_tpu,
    )
    if ranges.max_length <= ranges.least_length:
        raise ArgumentError(
            f"max_length is {ranges.max_length}, and {source.architecture} needs "
            f"{ranges.least_length} tokens at least: expected more"
        )
    return ranges


def _int8(
    source: Source, options: ExportOptions, folder: Path, tokenizer: Any, say: Say
) -> dict[str, Any]:
    """Write a quantised model into the folder; what is to be recorded of it."""
    records = accuracy.records_of(options.data, source) if options.data else None
    before = int8.quantise(copy.deepcopy(source.head.model))
    with quiet():
        int8.write(before, source.architecture, folder)
    loaded = int8.load_int8(folder)
    head = Head(loaded, source.architecture).eval()
    same = accuracy.agreement(source.head, head, source, tokenizer)
    error, most = same["relative_error"], options.most_error or USUAL_MOST_ERROR
    say(f"on {same['texts']} texts: {_told(same)}")
    if not error <= most:
        raise XLNetFastError(
            f"int8 changes the outputs by {error:.3g} of their size, more than most_error, {most}: "
            "nothing was written"
        )
    found = record.facts(source, options) | {"texts": same}
    if records is not None:
        found["data"] = accuracy.accuracy(source.head.model, loaded, records, source, tokenizer)
        say(f"on {options.data}: {_told(found['data'])}")
    found["run"] = record.command(int8.example(), has_tokenizer=True)
    if options.speed:
        found["speed"] = _speed(source, head, SHAPES, say)
    return found


def _told(values: dict[str, Any]) -> str:
    """Figures as half a sentence."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in values.items()
        if name not in ("texts", "records")
    )


def _speed(
    source: Source, run: Run, shapes: Sequence[tuple[int, int]], say: Say
) -> list[dict[str, Any]]:
    """Time the export beside both models, and say whether it is the faster one."""
    runs: dict[str, Run] = {"hugging_face": source.plain, "accelerated": source.head, "export": run}
    table = measure(runs, source.config.vocab_size, list(dict.fromkeys(shapes)))
    for row in table:
        ratio = row["accelerated_ms"] / row["export_ms"]
        verdict = f"{ratio:.2f} times as fast as" if ratio >= 1 else f"SLOWER ({ratio:.2f}x) than"
        say(
            f"{row['rows']}x{row['length']}: Hugging Face {row['hugging_face_ms']:.1f} ms, "
            f"accelerated {row['accelerated_ms']:.1f}, export {row['export_ms']:.1f}: "
            f"{verdict} the accelerated model in this process"
        )
    return table


def _check_output(output: Path, options: ExportOptions) -> None:
    """Before minutes of work: may this be written?"""
    parent = output.absolute().parent
    if not parent.is_dir():
        raise ArgumentError(f"the output {output}: the folder {output.parent} does not exist")
    if not os.access(parent, os.W_OK):
        raise ArgumentError(f"the output {output} cannot be written to")
    if options.is_file:
        if output.is_dir():
            raise ArgumentError(f"the output {output} is a folder, expected the name of a file")
        if output.exists() and not options.overwrite:
            raise ArgumentError(f"the output {output} exists: add --overwrite to replace it")
        return
    if output.exists() and not output.is_dir():
        raise ArgumentError(f"the output {output} is a file, expected the name of a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / record.FILE).is_file():
        raise ArgumentError(
            f"the folder {output} holds other things than an export: name a new one"
        )
    if not options.overwrite:
        raise ArgumentError(f"{output} holds an export: add --overwrite to replace it")


@contextlib.contextmanager
def _built(output: Path, is_file: bool) -> Iterator[Path]:
    """A temporary folder beside the output; what is in it is moved there if nothing was raised."""
    if not is_file:
        with folder_written_whole(output) as folder:
            yield folder
        return
    output = Path(os.path.realpath(output))
    folder = output.with_name(f".{output.name}.{os.getpid()}.{threading.get_ident()}")
    shutil.rmtree(folder, ignore_errors=True)  # of a process of this number that was killed
    folder.mkdir()
    try:
        yield folder
        # The record goes first, the new one comes last: it never describes another file.
        record.record_path(output, True).unlink(missing_ok=True)
        for file in sorted(folder.iterdir(), key=lambda path: path.name != output.name):
            os.replace(file, output.with_name(file.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_record(folder: Path, output: Path, is_file: bool, found: dict[str, Any]) -> None:
    name = record.record_path(output, is_file).name
    write_whole(folder / name, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
