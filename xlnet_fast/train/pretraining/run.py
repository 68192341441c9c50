"""``pretrain``: from text to a pretrained model that Hugging Face loads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainingArguments, set_seed

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.pretraining.architecture import Architecture
from xlnet_fast.train.pretraining.corpus import Corpus, TextVocabulary
from xlnet_fast.train.pretraining.memory_trainer import MemoryTrainer
from xlnet_fast.train.pretraining.options import PretrainOptions
from xlnet_fast.train.pretraining.sources import TextSource, encoded
from xlnet_fast.train.pretraining.text_streams import IGNORED, TextStreams
from xlnet_fast.train.pretraining.xlnet import XLNetPretraining
from xlnet_fast.train.shared.checkpoints import newest_checkpoint, remove_leftovers
from xlnet_fast.train.shared.plots import plot_losses
from xlnet_fast.train.shared.run_folder import (
    check_folder,
    check_same_run,
    prepare_folder,
    write_json,
)
from xlnet_fast.train.shared.trainer import arguments_of

RECORD = "pretrain.json"


@dataclass(frozen=True)
class PretrainResult:
    """What a run gave.

    Attributes:
        metrics: ``eval_loss``, ``eval_perplexity``, ``unigram_perplexity`` (of the same targets,
            by the frequencies of the training text), ``train_loss`` (at the last log), ``steps``,
            ``tokens_in_the_text`` to train on, however many it was trained on.
        stopped_by: the signal that ended it early, or None.
        model: folder of the model, or of the last checkpoint where a signal ended it.
    """

    metrics: dict[str, float]
    stopped_by: int | None
    model: Path


def pretrain(options: PretrainOptions) -> PretrainResult:
    """Pretrain a model; in every process of ``torchrun`` alike.

    Raises:
        ArgumentError: an option, a file, a checkpoint or a tokenizer that cannot be used.
        XLNetFastError: a checkpoint could not be written.
    """
    options.check()
    architecture = _architecture(options)
    arguments = _arguments(options, architecture)
    set_seed(options.seed)
    if arguments.process_index == 0:
        check_folder(options.output, options.resume or options.overwrite)
    with arguments.main_process_first(local=True, desc="text"):
        tokenizer, model, (train_text, eval_text) = _prepare(architecture)
    vocabulary = architecture.vocabulary(tokenizer)
    train_data, eval_data = _streams(architecture, vocabulary, train_text, eval_text, arguments)
    arguments.per_device_eval_batch_size = eval_data.streams // arguments.world_size
    record = _record(options, (train_text, eval_text), model, arguments)
    with arguments.main_process_first(local=False, desc="run folder"):
        if options.resume:
            check_same_run(options.output / RECORD, record, {"arch": "xlnet", "shuffle": False})
        if arguments.process_index == 0:  # all input is known to be good
            prepare_folder(options.output, options.resume, options.overwrite)
            remove_leftovers(options.output)
            write_json(options.output / RECORD, record)

    trainer = architecture.trainer(
        model=model,
        args=arguments,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=architecture.saved_tokenizer(tokenizer),
        carry_memory=architecture.mem_len > 0,
    )
    checkpoint = newest_checkpoint(options.output) if options.resume else None
    if checkpoint is not None:
        _say(arguments, f"resuming from {checkpoint}")
    trainer.train(checkpoint)
    if trainer.stopped_by is not None:
        last = options.output / f"checkpoint-{trainer.state.global_step}"
        return PretrainResult({}, trainer.stopped_by, last)
    metrics = _last_evaluation(trainer)
    metrics = {
        "eval_loss": metrics["eval_loss"],
        "eval_perplexity": metrics["eval_perplexity"],
        "unigram_perplexity": unigram_perplexity(train_text, eval_data),
        "train_loss": next(e["loss"] for e in reversed(trainer.state.log_history) if "loss" in e),
        "steps": trainer.state.global_step,
        "tokens_in_the_text": len(train_text),
    }
    folder = options.output / "model"
    trainer.save_model(str(folder))
    if arguments.process_index == 0:
        write_json(options.output / "metrics.json", metrics)
        title = f"Pretraining, {options.seq_len} tokens, {options.steps} steps"
        plot_losses(trainer.state.log_history, options.output / "loss.png", title)
    return PretrainResult(metrics, None, folder)


def _architecture(options: PretrainOptions) -> Architecture:
    if options.arch == "xlnet":
        return XLNetPretraining(options)
    # Here, because it registers a model with transformers.
    from xlnet_fast.train.pretraining.transfo_xl.architecture import TransfoXLPretraining

    return TransfoXLPretraining(options)


def _last_evaluation(trainer: MemoryTrainer) -> dict[str, float]:
    """That of the last step, made now if its turn was not there."""
    for entry in trainer.state.log_history:
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step:
            return entry
    return trainer.evaluate()


def _say(arguments: TrainingArguments, line: str) -> None:
    if arguments.process_index == 0:
        print(line, flush=True)


def _arguments(options: PretrainOptions, architecture: Architecture) -> TrainingArguments:
    return arguments_of(
        options,
        eval_steps=options.eval_every,
        save_steps=options.save_every,
        max_steps=options.steps,
        dataloader_num_workers=options.workers,
        torch_compile=options.compile,
        include_num_input_tokens_seen="all",
        prediction_loss_only=True,
        fsdp_layer=architecture.layer,
    )


def _prepare(architecture: Architecture) -> tuple[Any, Any, tuple[Corpus, Corpus]]:
    """Tokenizer, model, and the encoded texts to train and to evaluate on."""
    options = architecture.options
    source = TextSource(
        options.text,
        options.dataset,
        options.dataset_config,
        options.dataset_split,
        options.text_column,
    ).open()
    tokenizer = architecture.tokenizer(source)
    vocabulary = architecture.vocabulary(tokenizer)
    model = architecture.model(tokenizer, vocabulary)
    sentences = options.split_sentences and not vocabulary.line_ends
    corpus = encoded(source, tokenizer, vocabulary, split_sentences=sentences)
    if options.eval_text:
        held_out = TextSource(options.eval_text).open()
        texts = (corpus, encoded(held_out, tokenizer, vocabulary, split_sentences=sentences))
    else:
        texts = corpus.split(options.eval_share)
    return tokenizer, model, texts


def _streams(
    architecture: Architecture,
    vocabulary: TextVocabulary,
    train_text: Corpus,
    eval_text: Corpus,
    arguments: TrainingArguments,
) -> tuple[TextStreams, TextStreams]:
    """The data of training, and of evaluation with as many rows as its text has room for."""
    options, world = architecture.options, arguments.world_size
    train = architecture.streams(
        train_text, vocabulary, options.batch_size * world, world, evaluation=False
    )
    least = architecture.directions
    room = len(eval_text) // options.seq_len * least  # rows of one sequence each
    rows = min(options.batch_size, room // world) // least * least
    if rows < least:
        raise ArgumentError(
            f"the evaluation text has {len(eval_text)} tokens, too few for sequences of "
            f"{options.seq_len} on {world} process(es): give more with eval_share or eval_text"
        )
    evaluation = architecture.streams(eval_text, vocabulary, rows * world, world, evaluation=True)
    return train, evaluation


def _record(
    options: PretrainOptions,
    texts: tuple[Corpus, Corpus],
    model: Any,
    arguments: TrainingArguments,
) -> dict[str, Any]:
    """What decides the results of a run, which a resumed one must share."""
    return {
        **options.deciding(),
        "processes": arguments.world_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        # What was read, wherever it lies now.
        "train_text_sha256": texts[0].digest(),
        "eval_text_sha256": texts[1].digest(),
    }


def unigram_perplexity(text: Corpus, data: TextStreams) -> float:
    """Perplexity of the targets of ``data`` by how often tokens occur in ``text``, plus one."""
    counts = np.ones(data.vocabulary.size)
    for start in range(0, len(text), 1 << 24):
        block = np.asarray(text.tokens[start : start + (1 << 24)])
        counts += np.bincount(block, minlength=len(counts))
    surprise = -np.log(counts / counts.sum())
    total, number = 0.0, 0
    for start in range(0, len(data), data.streams):
        for item in data.__getitems__(range(start, start + data.streams)):
            labels = item["labels"][item["labels"] != IGNORED]
            total += float(surprise[labels].sum())
            number += len(labels)
    return math.exp(total / max(number, 1))
