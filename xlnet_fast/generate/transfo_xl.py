"""A Transformer-XL as ``generate`` takes it."""

from __future__ import annotations

from typing import Any

from xlnet_fast.checkpoint import load_transfo_xl
from xlnet_fast.errors import ArgumentError
from xlnet_fast.generate.options import GenerateOptions
from xlnet_fast.ops._dispatch import check_backend
from xlnet_fast.train.shared.text_tokenizers import load_transfo_xl_tokenizer

MODEL_TYPE = "transfo-xl"


def is_transfo_xl(model: Any) -> bool:
    """Whether a model is one of ours of this kind."""
    return bool(getattr(getattr(model, "config", None), "model_type", "") == MODEL_TYPE)


def load_transfo_xl_and_words(options: GenerateOptions, name: str) -> tuple[Any, Any]:
    """The model in fp32 and its tokenizer, which pads with the end of a text.

    Raises:
        ArgumentError: either cannot be read, they do not fit, or an option is of XLNet alone.
    """
    _check(options)
    model = load_transfo_xl(name)
    tokenizer = load_transfo_xl_tokenizer(options.tokenizer or name)
    # Without tokens that were added behind the vocabulary, which a text need not have.
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ArgumentError(
            f"the tokenizer has {tokenizer.vocab_size} words, {name} only "
            f"{model.config.vocab_size}: give the tokenizer that the model was trained with"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.transformer.backend = options.backend
    return model, tokenizer


def _check(options: GenerateOptions) -> None:
    check_backend(options.backend)
    for name, is_given, why in (
        ("--no-memory", not options.memory, "reads through its memory"),
        ("--segment-length", options.segment_length is not None, "reads a prompt in one piece"),
        ("--prompt-lookup", options.prompt_lookup is not None, "cannot take tokens back"),
    ):
        if is_given:
            raise ArgumentError(f"{name} is for an XLNet: a Transformer-XL {why}")
