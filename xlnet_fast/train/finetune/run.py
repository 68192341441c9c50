"""A fine-tuning run from its options to the files in its output folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from rich.console import Console
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments, set_seed

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import outputs
from xlnet_fast.train.finetune.data import cut_evaluation, hub_splits, load_rows
from xlnet_fast.train.finetune.labels import problem_of
from xlnet_fast.train.finetune.model import (
    BEAM_HEAD,
    adopt_labels,
    load_model,
    run_config,
    run_tokenizer,
)
from xlnet_fast.train.finetune.multi_label import MultiLabelClassification
from xlnet_fast.train.finetune.multiple_choice import MultipleChoice
from xlnet_fast.train.finetune.options import MULTI, REGRESSION, FinetuneOptions
from xlnet_fast.train.finetune.question_answering import BeamQuestionAnswering, QuestionAnswering
from xlnet_fast.train.finetune.regression import TextRegression
from xlnet_fast.train.finetune.task import Split, Task
from xlnet_fast.train.finetune.text_classification import TextClassification
from xlnet_fast.train.finetune.token_classification import TokenClassification
from xlnet_fast.train.finetune.trainer import FinetuneTrainer
from xlnet_fast.train.shared.checkpoints import newest_checkpoint, remove_leftovers
from xlnet_fast.train.shared.hub_data import quiet_datasets
from xlnet_fast.train.shared.run_folder import write_json
from xlnet_fast.train.shared.trainer import arguments_of

_TASKS: dict[str, type[Task]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "multiple-choice": MultipleChoice,
}
PROBLEMS: dict[str, type[Task]] = {
    kind.problem_type: kind
    for kind in (TextClassification, MultiLabelClassification, TextRegression)
}
MODEL = "model"
"""Name of the folder, inside the output, that ``from_pretrained`` loads."""
_EVALUATION_SPLITS = ("validation", "dev", "test")


@dataclass(frozen=True)
class FinetuneResult:
    """What a run came to.

    Attributes:
        output: the folder of the run.
        model: the folder in it that ``from_pretrained`` of transformers loads.
        metrics: "eval" and, where there are labelled test rows, "test": name to value.
        stopped_by: the signal that stopped the run before its end, or None. Its folder then has a
            checkpoint to resume from, and no model yet.
    """

    output: Path
    model: Path
    metrics: dict[str, dict[str, float]]
    stopped_by: int | None = None


def finetune(options: FinetuneOptions) -> FinetuneResult:
    """Fine-tune an XLNet on a task and write model, metrics, predictions and plots.

    Under torchrun every process calls it; the main one writes.

    Raises:
        ArgumentError: an option, file, row, tokenizer or checkpoint that cannot be used.
        XLNetFastError: a file or checkpoint could not be written.
    """
    options.check()
    arguments = _arguments(options)
    console = Console(stderr=True, quiet=arguments.process_index != 0)
    with quiet_datasets(), arguments.main_process_first(desc="data"):
        if arguments.process_index == 0:
            outputs.check_output(options)
        tokenizer = run_tokenizer(options)
        config = run_config(options, tokenizer)
        task, splits = _read(options, task_for(options, config, tokenizer), console)
        keeps_head = adopt_labels(config, task)
        for split in splits.values():
            encode_split(split, task, console)
    _plan(arguments, options, task, len(splits["train"].features or ()))
    set_seed(options.seed)
    model = load_model(options, config, task, keeps_head)
    with arguments.main_process_first(desc="output"):
        if arguments.process_index == 0:
            outputs.begin_output(options, splits)
    trainer = _trainer(task, options, arguments, model, splits, tokenizer)
    trainer.train(_checkpoint(options, console))
    if trainer.stopped_by is not None:
        return FinetuneResult(options.output, options.output / MODEL, {}, trainer.stopped_by)
    return _finish(trainer, task, options, splits, console)


def _arguments(options: FinetuneOptions) -> TrainingArguments:
    return arguments_of(
        options,
        eval_steps=options.eval_every or 1,  # `_plan` sets an epoch, once the data are read
        save_steps=options.eval_every or 1,
        num_train_epochs=options.epochs,
        max_steps=options.steps or -1,
        per_device_eval_batch_size=options.eval_batch_size,
        label_names=["labels"],
        load_best_model_at_end=True,
        metric_for_best_model="loss",  # `_plan` sets the task's own
        greater_is_better=True,
    )


def task_for(options: FinetuneOptions, config: Any, tokenizer: Any) -> Task:
    if options.task == "question-answering" and BEAM_HEAD in (config.architectures or ()):
        beam = BeamQuestionAnswering(options, tokenizer)
        beam.least_length = max(config.start_n_top, config.end_n_top)
        return beam
    return _TASKS[options.task](options, tokenizer)


def _read(options: FinetuneOptions, task: Task, console: Console) -> tuple[Task, dict[str, Split]]:
    """The rows of training, evaluation and, if asked for, test; and the task for their labels.

    Says how the labels are read, and that a test has none.
    """

    def load(source: str, split: str) -> datasets.Dataset:
        return load_rows(source, split, conll=options.task == "token-classification")

    train = task.split("train", options.train, load(options.train, "train"))
    if options.task == "text-classification":
        problem = problem_of(train, options.problem_type)
        options.check_threshold(problem)
        task = PROBLEMS[problem](options, task.tokenizer)
    found = task.fit_labels(train)
    _say(console, f"{train.source}, column {train.columns[task.label_role]!r}: {found}")
    splits = {"train": train}
    source = options.eval or _companion(options.train)
    if source is not None:
        splits["eval"] = task.split("eval", source, load(source, "validation"))
    else:
        places = cut_evaluation(train.rows, options.eval_share, options.seed, options.train)
        kept, held_out = (train.rows.select(part) for part in places)
        name = f"the evaluation rows cut from {options.train}"
        evaluation = splits["eval"] = task.split("eval", name, held_out)
        train.rows = kept
        train.origin, evaluation.origin = ((options.train, part) for part in places)
    if options.test is not None:
        test = splits["test"] = task.split("test", options.test, load(options.test, "test"))
        if not test.labelled:
            column = test.columns.get(task.label_role)
            given = options.columns().get(task.label_role, task.label_role)
            why = f"no column {given!r}" if column is None else f"no label in column {column!r}"
            _say(console, f"{test.source} has {why}: it is predicted, and gets no metrics")
    return task, splits


def _companion(train: str) -> str | None:
    """The evaluation split of a data set that has one."""
    there = hub_splits(train)
    split = next((name for name in _EVALUATION_SPLITS if name in there), None)
    return None if split is None else f"{train}@{split}"


def _say(console: Console, line: str) -> None:
    console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def encode_split(split: Split, task: Task, console: Console) -> None:
    split.features = task.encode(split)
    cut = sum(split.features["cut"])
    if cut:
        _say(
            console,
            f"warning: {cut} of {len(split.features)} sequences of {split.source} are longer than "
            f"{task.options.max_length} pieces and are cut (--max-length)",
        )


def _plan(arguments: TrainingArguments, options: FinetuneOptions, task: Task, rows: int) -> None:
    """What depends on the data: steps between evaluations, and the name of the best metric."""
    batches = math.ceil(rows / (options.batch_size * arguments.world_size))
    an_epoch = math.ceil(batches / options.gradient_accumulation)
    arguments.eval_steps = arguments.save_steps = options.eval_every or an_epoch
    metric = options.best_metric or task.metric_names[0]
    if metric not in task.metric_names:
        raise ArgumentError(
            f"best_metric must be one of {', '.join(task.metric_names)}, got {metric!r}"
        )
    arguments.metric_for_best_model = f"eval_{metric}"
    arguments.greater_is_better = metric not in task.lower_is_better


def _trainer(
    task: Task,
    options: FinetuneOptions,
    arguments: TrainingArguments,
    model: Any,
    splits: dict[str, Split],
    tokenizer: Any,
) -> FinetuneTrainer:
    callbacks: list[TrainerCallback] = []
    if options.patience is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=options.patience))
    trainer = FinetuneTrainer(
        task,
        options,
        args=arguments,
        model=model,
        train_dataset=splits["train"].features,
        eval_dataset=splits["eval"].features,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.compute_metrics = _metrics(task, splits["eval"])
    return trainer


def _metrics(task: Task, split: Split) -> Any:
    return lambda result: task.metrics(split, result.predictions, result.label_ids)


def _checkpoint(options: FinetuneOptions, console: Console) -> str | None:
    """The checkpoint to go on from; a run that was killed before its first one begins anew."""
    if not options.resume:
        return None
    remove_leftovers(options.output)
    checkpoint = newest_checkpoint(options.output)
    if checkpoint is None:
        _say(console, f"no checkpoint in {options.output}: the run begins anew")
        return None
    return str(checkpoint)


def _finish(
    trainer: FinetuneTrainer,
    task: Task,
    options: FinetuneOptions,
    splits: dict[str, Split],
    console: Console,
) -> FinetuneResult:
    """Save the best model, evaluate it on every split but training's, write it all down."""
    trainer.save_model(str(options.output / MODEL))
    results: dict[str, dict[str, float]] = {}
    record: dict[str, Any] = {
        "task": options.task,
        "model": options.model,
        "labels": task.labels,
        **({} if task.problem_type is None else {"problem_type": task.problem_type}),
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "rows": {name: len(split.rows) for name, split in splits.items()},
    }
    for name, split in splits.items():
        if name == "train":
            continue
        trainer.compute_metrics = _metrics(task, split) if split.labelled else None
        found = trainer.predict(split.features, metric_key_prefix=name)
        if trainer.args.process_index != 0:
            continue
        report = task.report(split, found.predictions, found.label_ids)
        outputs.write_predictions(options.output / f"predictions_{name}.jsonl", split, report)
        if split.labelled:
            results[name] = outputs.plain_metrics(found.metrics, name)
            record[name] = {**results[name], **report.details}
        if name == "eval":
            kind = task.problem_type if task.problem_type in (MULTI, REGRESSION) else options.task
            title = f"{kind}, evaluation"
            outputs.write_plots(options.output, task, trainer.state.log_history, report, title)
    if trainer.args.process_index == 0:
        write_json(options.output / "metrics.json", record)
        outputs.print_results(console, results)
    return FinetuneResult(options.output, options.output / MODEL, results)
