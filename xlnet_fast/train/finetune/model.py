"""The tokenizer and the model of a fine-tuning run, and whether they fit each other."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import XLNetConfig

from xlnet_fast.checkpoint import load_config, load_weights
from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf import accelerate
from xlnet_fast.train.finetune.options import MULTI, REGRESSION, SINGLE, FinetuneOptions
from xlnet_fast.train.finetune.task import Task
from xlnet_fast.train.shared.tokenizers import check_vocabulary, load_run_tokenizer

BEAM_HEAD = "XLNetForQuestionAnswering"
PROBLEM_TYPES = {  # as transformers calls them, in a config
    SINGLE: "single_label_classification",
    MULTI: "multi_label_classification",
    REGRESSION: "regression",
}
_SUMMARISING_TASKS = ("text-classification", "multiple-choice")
_SUMMARIES = ("last", "cls_index")  # both the <cls> at the end, as no index is given


def run_tokenizer(options: FinetuneOptions) -> Any:
    """The tokenizer of the options, the model's unless they name one."""
    return load_run_tokenizer(options.tokenizer, options.model)


def run_config(options: FinetuneOptions, tokenizer: Any) -> Any:
    """The model's config, with the dropout of the options.

    Raises:
        ArgumentError: there is none, its vocabulary is smaller than the tokenizer's, or the task's
            head would summarise padding.
    """
    config = load_config(options.model)
    check_vocabulary(tokenizer, config.vocab_size, options.model)
    if options.task in _SUMMARISING_TASKS and config.summary_type not in _SUMMARIES:
        raise ArgumentError(
            f"summary_type is {config.summary_type!r} in the config of {options.model}, expected "
            f"{' or '.join(_SUMMARIES)}: Hugging Face's other summaries have padding in them, and "
            "results would depend on the batch"
        )
    config.bi_data = False  # of pretraining: it reads half of a batch backwards
    # A classifier has no use for memory; pipelines would split that of all layers by the batch.
    config.use_mems_eval = False
    if options.dropout is not None:
        config.dropout = config.summary_last_dropout = options.dropout
    return config


def adopt_labels(config: Any, task: Task) -> bool:
    """Write the task's labels into the config; whether the checkpoint's head is for them.

    A checkpoint that was fine-tuned on the same labels keeps their order, so its head fits.
    """
    fits = task.architecture in (config.architectures or ())
    if task.architecture == "XLNetForQuestionAnsweringSimple":
        config.num_labels = 2  # its head has this many outputs: start and end
    if task.problem_type is not None:
        # Checkpoints of one label a row often do not say so.
        wanted = PROBLEM_TYPES[task.problem_type]
        fits = fits and (config.problem_type or PROBLEM_TYPES[SINGLE]) == wanted
        config.problem_type = wanted
    if task.number_of_outputs is not None:
        fits = fits and config.num_labels == task.number_of_outputs
        config.num_labels = task.number_of_outputs
    if task.labels:
        former = [config.id2label[i] for i in sorted(config.id2label)]
        fits = fits and sorted(former) == sorted(task.labels)
        if fits:
            task.labels = former
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: i for i, label in enumerate(task.labels)}
    return fits


def load_model(options: FinetuneOptions, config: XLNetConfig, task: Task, keep_head: bool) -> Any:
    """The task's model in fp32, accelerated if the options say so.

    The weights of the checkpoint, those of its head only if ``keep_head``; new ones are drawn from
    torch's generator. ``mask_emb``, which only pretraining uses, is frozen: it gets no gradient,
    and DDP would wait for it.

    Raises:
        ArgumentError: the weights cannot be read, or some of the trunk are missing.
    """
    architecture = getattr(transformers, task.architecture)
    model = architecture(config)
    if not options.from_scratch:
        kind = task.architecture if keep_head else "XLNetModel"
        loaded = load_weights(options.model, kind, config)
        part = model if keep_head else model.transformer
        part.load_state_dict(loaded.state_dict())
    model.transformer.mask_emb.requires_grad_(False)
    return accelerate(model, options.backend) if options.accelerate else model
