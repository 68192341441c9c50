"""``predict``: records of a file in, answers out, in batches of like lengths."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from xlnet_fast._version import __version__
from xlnet_fast.checkpoint import load_config
from xlnet_fast.errors import ArgumentError
from xlnet_fast.generate.run import checked_device, checkpoint_of, peak_memory_mib
from xlnet_fast.predict.answer_files import (
    Answers,
    Stream,
    check_output,
    is_stream,
    unfinished,
)
from xlnet_fast.predict.blocks import Blocks
from xlnet_fast.predict.layout import Layout, layout_of, survey
from xlnet_fast.predict.options import STREAM, PredictOptions
from xlnet_fast.predict.predictor import Predictor, task_of
from xlnet_fast.predict.record_progress import RecordProgress
from xlnet_fast.predict.records import Rows, open_rows
from xlnet_fast.predict.stopping import StopOnSignal
from xlnet_fast.predict.tasks.base import Parameter, Reading

_MOST_SHOWN = 3
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class PredictResult:
    """What a prediction came to.

    Attributes:
        metrics: of this run: ``records`` that it answered, ``bad_records`` among them that have an
            error for an answer, ``tokens``, ``seconds`` (without loading), ``records_per_second``,
            ``tokens_per_second``, ``padding`` (share of the batches that is none of their tokens)
            and ``peak_memory_mib`` (of the process, or of the GPU; left out where the system does
            not tell).
        answered: how many records have an answer, earlier runs' included. of: how many there are.
        stopped_by: the signal that ended the run before its end, or None.
    """

    metrics: dict[str, float]
    answered: int
    of: int
    stopped_by: int | None = None


def predict(
    options: PredictOptions,
    say: Callable[[str], None] = print,
    tell: Callable[[str], None] = lambda line: None,
) -> PredictResult:
    """Answer the records of a file.

    Args:
        say: called with each answer, a JSON line, unless there is an output file.
        tell: called with what is to be known beside the answers, such as the columns that are read.

    Raises:
        ArgumentError: an option, a record, a file, a model or a tokenizer that cannot be used. What
            was answered before stays for ``resume``.
        BackendUnavailable: the backend that was named cannot run.
        XLNetFastError: the output could not be written.
    """
    options.check()
    reading = Reading(
        max_length=options.max_length, long=options.long, stride=options.window_stride
    )
    device = checked_device(options.device)
    check_output(options.output, options.resume, options.overwrite)
    assert options.model is not None
    assert options.input is not None
    name = checkpoint_of(options.model)
    kind = task_of(options.task, load_config(name), name)
    parameters = parsed_parameters(options, kind.parameters)
    with open_rows(options.input, options.input_format, options.whole) as rows:
        found = survey(rows)
        layout = layout_of(kind, options, found.names, rows.name)
        tell(f"{found.count:,} records of {rows.name}: {layout.told()}")
        if not options.skip_bad:
            _check_rows(rows, layout)
        predictor = Predictor.load(
            options.model,
            task=options.task,
            tokenizer=options.tokenizer,
            dtype=options.dtype,
            device=options.device,
            backend=options.backend,
            reading=reading,
        )
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        # Before, there is nothing to lose, and a signal ends it at once.
        with StopOnSignal() as stop, _answers(options, predictor, rows, parameters, say) as answers:
            blocks = Blocks(
                predictor=predictor,
                layout=layout,
                rows=rows,
                parameters=parameters,
                token_budget=options.batch_tokens,
                skip_bad=options.skip_bad,
                stop=stop,
            )
            before = answers.done + len(answers.answered)
            if before:
                tell(f"{before:,} records are answered already")
            with RecordProgress(found.count, before) as progress:
                tally = blocks.answer(answers, found.count, progress)
    metrics, peak = tally.metrics(), peak_memory_mib(device)
    if peak is not None:
        metrics["peak_memory_mib"] = peak
    stopped_by = None if tally.finished else stop.signal
    return PredictResult(metrics, before + tally.records, found.count, stopped_by)


def parsed_parameters(options: PredictOptions, known: Mapping[str, Parameter]) -> dict[str, Any]:
    """The parameters of ``set`` as their types.

    Raises:
        ArgumentError: the task has none of that name, or the value is none of its type.
    """
    values: dict[str, Any] = {}
    for name, text in options.parameters().items():
        if name not in known:
            there = ", ".join(known) or "none"
            raise ArgumentError(f"the task has no parameter {name!r}; it has: {there}")
        values[name] = known[name].checked(name, _parsed(known[name], text))
    return values


def _parsed(parameter: Parameter, text: str) -> Any:
    """What a text stands for; where it stands for nothing of the type, the text itself."""
    if getattr(parameter, "many", False) and text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    if parameter.kind is bool:
        return _TRUTH.get(text.strip().lower(), text)
    if parameter.kind in (int, float):
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def _check_rows(rows: Rows, layout: Layout) -> None:
    """Before hours of work: what can be known of every record without a model.

    Raises:
        ArgumentError: one is bad; tells the first ones and how many there are.
    """
    bad = 0
    shown: list[str] = []
    for row in rows:
        problem = layout.problem(row)
        if problem:
            bad += 1
            if len(shown) < _MOST_SHOWN:
                shown.append(f"{row.place}: {problem}")
    if bad:
        more = f"; and {bad - len(shown)} more" if bad > len(shown) else ""
        raise ArgumentError(
            f"{bad} bad record{'s' * (bad > 1)} in {rows.name}: {'; '.join(shown)}{more}. Mend "
            f"{'them' if bad > 1 else 'it'}, or answer with an error there by --skip-bad"
        )


@contextmanager
def _answers(
    options: PredictOptions,
    predictor: Predictor,
    rows: Rows,
    parameters: Mapping[str, Any],
    say: Callable[[str], None],
) -> Iterator[Answers]:
    """Where the answers go."""
    output = options.output
    if output is None or str(output) == STREAM:
        yield Stream(say)
    elif is_stream(output):  # a device or a pipe, which nothing may be put in the place of
        with output.open("w", encoding="utf-8") as file:
            yield Stream(lambda line: print(line, file=file, flush=True))
    else:
        run = _identity(options, predictor, rows, parameters)
        with closing(unfinished(output, run, options.resume)) as answers:
            yield answers


def _identity(
    options: PredictOptions, predictor: Predictor, rows: Rows, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides over the answers, so that a run that goes on must share it."""
    task = predictor.task
    words = task.tokenizer.backend_tokenizer.to_str()
    return {
        "version": __version__,
        "task": task.name,
        "parameters": json.loads(json.dumps(parameters, sort_keys=True)),  # tuples as lists
        "format": options.input_format,
        "whole": options.whole,
        "column": sorted(options.column),
        "keep": "all" if options.keep_all else list(options.kept()),
        "long": options.long,
        "max_length": options.max_length,
        "stride": options.window_stride,
        "batch_tokens": options.batch_tokens,
        "dtype": options.dtype,
        "device": task.model.device.type,
        "backend": options.backend,
        "input_sha256": rows.digest(),
        "model_sha256": _digest(task.model),
        "tokenizer_sha256": hashlib.sha256(words.encode()).hexdigest(),
    }


def _digest(model: Any) -> str:
    """Of all weights and of the config: a folder may have another model by the time of a resume."""
    digest = hashlib.sha256(json.dumps(_told(model.config), sort_keys=True).encode())
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weights.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _told(config: Any) -> dict[str, Any]:
    """A config without what tells where it comes from."""
    found = config.to_diff_dict()
    return {name: value for name, value in found.items() if not name.startswith("_")}
