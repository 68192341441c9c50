"""``pretrain``: from text to a pretrained XLNet that Hugging Face loads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments, XLNetConfig, XLNetLMHeadModel, set_seed

from xlnet_fast.checkpoint import load_config, load_weights
from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf import accelerate
from xlnet_fast.train.pretraining.corpus import Corpus, Vocabulary
from xlnet_fast.train.pretraining.options import SIZES, PretrainOptions
from xlnet_fast.train.pretraining.permutation import IGNORED, SpanSampling
from xlnet_fast.train.pretraining.sources import TextSource, encoded, train_on
from xlnet_fast.train.pretraining.streams import PermutationStreams, SequenceShape
from xlnet_fast.train.pretraining.trainer import PretrainingTrainer
from xlnet_fast.train.shared.checkpoints import newest_checkpoint, remove_leftovers
from xlnet_fast.train.shared.plots import plot_losses
from xlnet_fast.train.shared.run_folder import (
    check_folder,
    check_same_run,
    prepare_folder,
    write_json,
)
from xlnet_fast.train.shared.tokenizers import check_vocabulary, load_run_tokenizer
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
    arguments = _arguments(options)
    set_seed(options.seed)
    if arguments.process_index == 0:
        check_folder(options.output, options.resume or options.overwrite)
    with arguments.main_process_first(local=True, desc="text"):
        tokenizer, model, (train_text, eval_text) = _prepare(options)
    vocabulary = Vocabulary.of(tokenizer)
    train_data, eval_data = _streams(options, vocabulary, train_text, eval_text, arguments)
    arguments.per_device_eval_batch_size = eval_data.streams // arguments.world_size
    record = _record(options, (train_text, eval_text), model, arguments)
    with arguments.main_process_first(local=False, desc="run folder"):
        if options.resume:
            check_same_run(options.output / RECORD, record)
        if arguments.process_index == 0:  # all input is known to be good
            prepare_folder(options.output, options.resume, options.overwrite)
            remove_leftovers(options.output)
            write_json(options.output / RECORD, record)

    trainer = PretrainingTrainer(
        model=model,
        args=arguments,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=tokenizer,
        carry_memory=_mem_len(options) > 0,
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
        title = f"Pretraining, {train_data.shape.seq_len} tokens, {options.steps} steps"
        plot_losses(trainer.state.log_history, options.output / "loss.png", title)
    return PretrainResult(metrics, None, folder)


def _last_evaluation(trainer: PretrainingTrainer) -> dict[str, float]:
    """That of the last step, made now if its turn was not there."""
    for entry in trainer.state.log_history:
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step:
            return entry
    return trainer.evaluate()


def _say(arguments: TrainingArguments, line: str) -> None:
    if arguments.process_index == 0:
        print(line, flush=True)


def _arguments(options: PretrainOptions) -> TrainingArguments:
    return arguments_of(
        options,
        eval_steps=options.eval_every,
        save_steps=options.save_every,
        max_steps=options.steps,
        dataloader_num_workers=options.workers,
        torch_compile=options.compile,
        include_num_input_tokens_seen="all",
        prediction_loss_only=True,
    )


def _prepare(options: PretrainOptions) -> tuple[Any, Any, tuple[Corpus, Corpus]]:
    """Tokenizer, model, and the encoded texts to train and to evaluate on."""
    source = TextSource(
        options.text,
        options.dataset,
        options.dataset_config,
        options.dataset_split,
        options.text_column,
    ).open()
    if options.tokenizer or options.model:
        tokenizer = load_run_tokenizer(options.tokenizer, options.model)
    else:
        tokenizer = train_on(source, options.vocab_size)
    model = _model(options, tokenizer)
    vocabulary = Vocabulary.of(tokenizer)
    sentences = options.split_sentences
    corpus = encoded(source, tokenizer, vocabulary, split_sentences=sentences)
    if options.eval_text:
        held_out = TextSource(options.eval_text).open()
        texts = (corpus, encoded(held_out, tokenizer, vocabulary, split_sentences=sentences))
    else:
        texts = corpus.split(options.eval_share)
    return tokenizer, model, texts


def _model(options: PretrainOptions, tokenizer: Any) -> Any:
    """A new or a loaded model, accelerated unless told otherwise, set up for memory."""
    if options.model is None:
        shape = zip(("d_model", "n_layer", "n_head", "d_inner"), SIZES[options.size], strict=True)
        sizes = {name: getattr(options, name) or size for name, size in shape}
        if sizes["d_model"] % sizes["n_head"]:
            raise ArgumentError(
                f"d_model is {sizes['d_model']} and n_head {sizes['n_head']}; expected a multiple"
            )
        dropout = 0.1 if options.dropout is None else options.dropout
        # As in the published configs: who uses the model says how much memory it keeps.
        config = XLNetConfig(vocab_size=len(tokenizer), dropout=dropout, mem_len=None, **sizes)
        model: Any = XLNetLMHeadModel(config)
    else:
        load_config(options.model)
        model = load_weights(options.model, "XLNetLMHeadModel")
        check_vocabulary(tokenizer, model.config.vocab_size, options.model)
        if options.dropout is not None:
            model.config.dropout = options.dropout
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = options.dropout
    if options.accelerate:
        accelerate(model, options.backend)
    # Attributes, not the config: a saved config with these would make inference carry memory, and
    # refuse odd batches.
    transformer = model.transformer
    transformer.mem_len = _mem_len(options)
    transformer.reuse_len = _shape(options).reuse_len
    transformer.bi_data = options.bi_data
    return model


def _mem_len(options: PretrainOptions) -> int:
    return options.seq_len * 3 // 4 if options.mem_len is None else options.mem_len


def _shape(options: PretrainOptions) -> SequenceShape:
    reuse_len = options.seq_len // 2 if options.reuse_len is None else options.reuse_len
    shorter = min(reuse_len, options.seq_len - reuse_len)
    return SequenceShape(
        seq_len=options.seq_len,
        reuse_len=reuse_len,
        perm_size=shorter if options.perm_size is None else options.perm_size,
        num_predict=max(1, options.seq_len // 6)
        if options.num_predict is None
        else options.num_predict,
        bi_data=options.bi_data,
        spans=SpanSampling(
            options.mask_alpha, options.mask_beta, options.max_span, options.whole_words
        ),
    )


def _streams(
    options: PretrainOptions,
    vocabulary: Vocabulary,
    train_text: Corpus,
    eval_text: Corpus,
    arguments: TrainingArguments,
) -> tuple[PermutationStreams, PermutationStreams]:
    """The data of training, and of evaluation with as many rows as its text has room for."""
    shape, world = _shape(options), arguments.world_size
    train = PermutationStreams(
        train_text,
        vocabulary,
        shape,
        options.batch_size * world,
        processes=world,
        seed=options.seed,
    )
    least = 2 if shape.bi_data else 1
    room = len(eval_text) // shape.seq_len * least  # rows of one sequence each
    rows = min(options.batch_size, room // world) // least * least
    if rows < least:
        raise ArgumentError(
            f"the evaluation text has {len(eval_text)} tokens, too few for sequences of "
            f"{shape.seq_len} on {world} process(es): give more with eval_share or eval_text"
        )
    evaluation = PermutationStreams(
        eval_text,
        vocabulary,
        shape,
        rows * world,
        processes=world,
        seed=options.seed,
        shuffle=False,
    )
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


def unigram_perplexity(text: Corpus, data: PermutationStreams) -> float:
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
