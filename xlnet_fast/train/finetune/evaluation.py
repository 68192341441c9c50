"""``evaluate``: the metrics of a trained model on labelled data, by the code of fine-tuning."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from xlnet_fast.builder.progress import QUIET_S
from xlnet_fast.checkpoint import load_config
from xlnet_fast.errors import ArgumentError
from xlnet_fast.generate.run import checked_device, checkpoint_of
from xlnet_fast.train.finetune.data import load_rows
from xlnet_fast.train.finetune.evaluation_options import EvaluateOptions
from xlnet_fast.train.finetune.labels import problem_of
from xlnet_fast.train.finetune.model import (
    BEAM_HEAD,
    PROBLEM_TYPES,
    adopt_labels,
    load_model,
    run_config,
    run_tokenizer,
)
from xlnet_fast.train.finetune.options import REGRESSION, SINGLE, FinetuneOptions
from xlnet_fast.train.finetune.outputs import (
    RUN_FILE,
    write_predictions,
    write_report_plots,
)
from xlnet_fast.train.finetune.question_answering import QuestionAnswering
from xlnet_fast.train.finetune.run import PROBLEMS, encode_split, task_for
from xlnet_fast.train.finetune.task import IGNORED, Batch, Split, Task
from xlnet_fast.train.shared.hub_data import quiet_datasets
from xlnet_fast.train.shared.run_folder import check_folder, prepare_folder, write_json

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TASKS = {
    "XLNetForSequenceClassification": "text-classification",
    "XLNetForTokenClassification": "token-classification",
    "XLNetForQuestionAnsweringSimple": "question-answering",
    BEAM_HEAD: "question-answering",
    "XLNetForMultipleChoice": "multiple-choice",
}
_OF_THE_RUN = ("max_length", "stride")
_UNNAMED = re.compile(r"LABEL_(\d+)")  # what transformers calls labels that nobody named


@dataclass(frozen=True)
class EvaluateResult:
    """What an evaluation came to.

    Attributes:
        task: of the model. rows: how many were evaluated.
        metrics: as :func:`finetune` reports them: name to value.
        details: what is more than a number, such as the scores of each label.
        output: the folder that was written, or None.
    """

    task: str
    rows: int
    metrics: dict[str, float]
    details: dict[str, Any]
    output: Path | None


def evaluate(options: EvaluateOptions) -> EvaluateResult:
    """Compare a model's answers with the labels of data; shows what it does on standard error.

    Raises:
        ArgumentError: an option, file, row or checkpoint that cannot be used, such as a label that
            the model does not have.
        XLNetFastError: a file could not be written.
    """
    options.check()
    device = checked_device(options.device)
    console = Console(stderr=True)
    if options.output is not None:
        check_folder(options.output, options.overwrite)
    assert options.model is not None
    assert options.data is not None
    name = checkpoint_of(options.model)
    config = load_config(name)
    given = _finetune_options(options, name, config, console)
    with quiet_datasets():
        tokenizer = run_tokenizer(given)
        config = run_config(given, tokenizer)
        rows = load_rows(options.data, "validation", conll=given.task == "token-classification")
        task, split = _task(given, config, tokenizer, rows, options.unanswerable)
        encode_split(split, task, console)
    model = load_model(given, config, task, keep_head=True).eval()
    model.to(device=device, dtype=DTYPES[options.dtype])
    predictions, labels = predicted(model, task, split, options.batch_tokens, console)
    metrics = task.metrics(split, predictions, labels)
    report = task.report(split, predictions, labels)
    if options.output is not None:
        prepare_folder(options.output, False, options.overwrite)
        record = {
            "task": given.task,
            "model": options.model,
            "data": options.data,
            "labels": task.labels,
            **({} if task.problem_type is None else {"problem_type": task.problem_type}),
            "rows": len(split.rows),
            **metrics,
            **report.details,
        }
        write_json(options.output / "metrics.json", record)
        write_predictions(options.output / "predictions.jsonl", split, report)
        write_report_plots(options.output, task, report, f"{given.task}, {split.source}")
    return EvaluateResult(given.task, len(split.rows), metrics, report.details, options.output)


def _finetune_options(
    options: EvaluateOptions, name: str, config: Any, console: Console
) -> FinetuneOptions:
    """The options of a run on these data that would end with this model.

    Raises:
        ArgumentError: the model is of no task, or a value cannot be used.
    """
    heads = [head for head in config.architectures or () if head in _TASKS]
    if not heads:
        found = (config.architectures or ["XLNet of no class"])[0]
        raise ArgumentError(
            f"{options.model} is an {found}, expected a model that xlnet-fast finetune left: "
            f"{', '.join(_TASKS)}"
        )
    before = _record(Path(name))
    settings: dict[str, Any] = {}
    for field in _OF_THE_RUN:
        value = getattr(options, field)
        settings[field] = before.get(field) if value is None else value
    settings["column"] = options.column or tuple(before.get("column", ()))
    settings = {field: value for field, value in settings.items() if value is not None}
    task = _TASKS[heads[0]]
    read = _OF_THE_RUN if task == "question-answering" else _OF_THE_RUN[:1]
    adopted = [f"{field} {settings[field]}" for field in read if field in before]
    if before:
        told = ", ".join([*adopted, *(f"column {pair}" for pair in settings["column"])])
        console.print(f"as {RUN_FILE} of its run or as given: {told}", highlight=False)
    problem = _problem(config) if task == "text-classification" else "auto"
    given = FinetuneOptions(
        task=task, model=name, train=str(options.data), output=Path(), tokenizer=options.tokenizer,
        problem_type=problem, truncate=options.truncate, threshold=options.threshold,
        n_best=options.n_best, max_answer_length=options.max_answer_length,
        null_threshold=options.null_threshold, backend=options.backend, **settings,
    )  # fmt: skip
    given.check()
    return given


def _record(checkpoint: Path) -> Mapping[str, Any]:
    """What the run of a checkpoint was told, if it lies in the folder of one."""
    path = checkpoint.expanduser().absolute().parent / RUN_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _problem(config: Any) -> str:
    """What the labels of a classifier are; transformers takes one output for a regression."""
    names = {there: ours for ours, there in PROBLEM_TYPES.items()}
    default = REGRESSION if config.num_labels == 1 else SINGLE
    return names[config.problem_type] if config.problem_type else default


def _task(
    options: FinetuneOptions, config: Any, tokenizer: Any, rows: Any, unanswerable: bool
) -> tuple[Task, Split]:
    """The task with the model's labels, and the rows."""
    task = task_for(options, config, tokenizer)
    if options.problem_type in PROBLEMS:
        task = PROBLEMS[options.problem_type](options, tokenizer)
    split = task.split("eval", options.train, rows)
    if options.problem_type in PROBLEMS:
        problem_of(split, options.problem_type)
    if options.task in ("text-classification", "token-classification"):
        if task.number_of_outputs is None:
            task.adopt([config.id2label[i] for i in sorted(config.id2label)])
    else:
        task.fit_labels(split)
    if not adopt_labels(config, task):
        raise ArgumentError(f"the head of {options.model} does not fit {options.task}")
    task.adopt(_as_in(split, task))
    if isinstance(task, QuestionAnswering) and unanswerable:
        task.some_have_none = True
    return task, split


def _as_in(split: Split, task: Task) -> list[str]:
    """The model's labels as the data call them: by number, if the model has no names for them."""
    numbers = [_UNNAMED.fullmatch(name) for name in task.labels]
    values = split.rows[split.columns[task.label_role]]
    if not all(numbers) or any("LABEL_" in str(value) for value in values):
        return task.labels
    return [match[1] for match in numbers if match]


def predicted(
    model: Any, task: Task, split: Split, token_budget: int, console: Console
) -> tuple[Any, np.ndarray]:
    """What the task's metrics are made of: its predictions and the labels, in the rows' order.

    The batches are of rows of like lengths. Where arrays of several batches differ in their second
    axis, they are filled up with ``IGNORED``, as HF's Trainer does.
    """
    features = split.features
    assert features is not None, "rows are encoded before they are evaluated"
    lengths = [_length(ids) for ids in features["input_ids"]]
    order: list[int] = []
    parts: list[tuple[np.ndarray, ...]] = []
    begin = last = time.monotonic()
    for batch in _batches(lengths, token_budget):
        order += batch
        parts.append(_computed(model, task, task.collate([features[i] for i in batch])))
        now = time.monotonic()
        if now - last >= QUIET_S:
            last = now
            left = timedelta(seconds=round((now - begin) * (len(lengths) / len(order) - 1)))
            console.print(f"evaluated {len(order):,} of {len(lengths):,} sequences, {left} left")
    back = np.argsort(order)
    arrays = [_joined(column)[back] for column in zip(*parts, strict=True)]
    *found, labels = arrays
    return (tuple(found) if len(found) > 1 else found[0]), labels


def _length(ids: Any) -> int:
    """Tokens of a feature, which may be several sequences side by side."""
    return sum(map(len, ids)) if ids and isinstance(ids[0], list) else len(ids)


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Places of features, the longest first, so that a batch times its longest fits the budget."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.no_grad()
def _computed(model: Any, task: Task, batch: Batch) -> tuple[np.ndarray, ...]:
    """The predictions and, at the end, the labels of a batch."""
    batch = {name: values.to(model.device) for name, values in batch.items()}
    outputs = model(**task.model_inputs(batch, training=False), use_mems=False)
    found: tuple[Tensor, ...] = (*task.predictions(outputs, batch), batch["labels"])
    return tuple(values.cpu().numpy() for values in found)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Along the first axis, filled up to the widest."""
    if parts[0].ndim < 2:
        return np.concatenate(parts)
    widest = max(part.shape[1] for part in parts)
    return np.concatenate(
        [
            np.pad(part, ((0, 0), (0, widest - part.shape[1])), constant_values=IGNORED)
            for part in parts
        ]
    )
