"""Transformer-XL: a segment after the other, each on the memory of those before.

The tokens of a segment foretell those one place on, so the last of it foretells the first of the
next, and no token but the text's first goes without a loss. Source: the original's ``eval.py`` and
``LMOrderedIterator`` (kimiyoung/transformer-xl), which start with an empty memory.

With ``same_length`` each token sees as many as ``memory_length`` says, itself among them, wherever
segments end: losses do not depend on the segment length. Without it they do, unless the memory
starts empty and holds the whole text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.checkpoint import load_transfo_xl
from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl import TransfoXLTokenizer
from xlnet_fast.perplexity.options import AUTO, RAW, PerplexityOptions
from xlnet_fast.perplexity.pieces import encoder
from xlnet_fast.perplexity.symbols import Symbols
from xlnet_fast.perplexity.tokens import Encoder, Tokens, read
from xlnet_fast.train.pretraining.transfo_xl.tokenizers import text_vocabulary
from xlnet_fast.train.shared.text_tokenizers import load_transfo_xl_tokenizer
from xlnet_fast.train.shared.tokenizers import check_vocabulary

LM_CLASS = "TransfoXLLMHeadModel"


class TransfoXLReader:
    """A ``TransfoXLLMHeadModel`` and its vocabulary.

    Args:
        options: how to read. name: of the checkpoint. config: of it.
        device, dtype: of the weights.

    Raises:
        ArgumentError: the checkpoint or the vocabulary cannot be read, they do not fit each other,
            or the options leave a token nothing to see.
    """

    def __init__(
        self,
        options: PerplexityOptions,
        name: str,
        config: Any,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        heads = config.architectures or [LM_CLASS]
        if LM_CLASS not in heads:
            raise ArgumentError(
                f"{name} is a {heads[0]}, which has no language model head: expected a {LM_CLASS}"
            )
        memory_length = _given(options.memory_length, config.mem_len)
        same_length = _given(options.same_length, bool(config.same_length))
        if same_length and memory_length == 0:
            raise ArgumentError(
                "memory_length is 0, and with same_length, which is how many tokens each sees, "
                "that is none: give a memory, or --no-same-length"
            )
        self._form = options.form
        tokenizer = load_transfo_xl_tokenizer(options.tokenizer or name)
        kind = Symbols.of if isinstance(tokenizer, TransfoXLTokenizer) else _Pieces
        self._symbols = kind(tokenizer, config.vocab_size, name)
        self._model: Any = load_transfo_xl(name).eval().to(device=device, dtype=dtype)
        transformer = self._model.transformer
        transformer.same_length, transformer.backend = same_length, options.backend
        transformer.clamp_len = _given(options.clamp_len, config.clamp_len)
        transformer.config.initial_memory = options.initial_memory
        self._model.reset_memory_length(memory_length)
        self._segment_length = options.segment_length
        self.settings: dict[str, Any] = {
            "segment_length": options.segment_length,
            "memory_length": memory_length,
            "clamp_len": transformer.clamp_len,
            "same_length": same_length,
            "initial_memory": options.initial_memory,
        }

    def tokens(self, text: str, name: str, limit: int | None) -> Tokens:
        """As :class:`Reader`; the form of the text, if it is to be told, goes into the settings."""
        form = self._symbols.form_of(text) if self._form == AUTO else self._form
        self.settings = {"form": form, **self.settings}
        return read(text, self._symbols.encoder(form), name, limit)

    @torch.no_grad()
    def losses(self, streams: Tensor) -> Iterator[Tensor]:
        """As :class:`Reader`."""
        memory: Any = None
        last = streams.shape[1] - 1
        for begin in range(0, last, self._segment_length):
            end = min(begin + self._segment_length, last)
            output = self._model.transformer(streams[:, begin:end], mems=memory)
            memory = output.mems
            # Of the head, the losses alone: not (B, I, V) log-probabilities.
            yield self._model.crit.losses(output.last_hidden_state, streams[:, begin + 1 : end + 1])


def _given(option: Any, otherwise: Any) -> Any:
    return otherwise if option is None else option


class _Pieces:
    """Of a tokenizer of pieces, in the place of :class:`Symbols`: texts have one form."""

    def __init__(self, tokenizer: Any, vocab_size: int, model: str) -> None:
        check_vocabulary(tokenizer, vocab_size, model)
        vocabulary = text_vocabulary(tokenizer)
        self._encode = encoder(tokenizer, vocabulary.eod, vocabulary.unk)

    def form_of(self, text: str) -> str:
        """As :meth:`Symbols.form_of`."""
        return RAW

    def encoder(self, form: str) -> Encoder:
        """As :meth:`Symbols.encoder`.

        Raises:
            ArgumentError: another form.
        """
        if form != RAW:
            raise ArgumentError(
                f"form is {form!r}, expected {RAW!r} or {AUTO!r}: the vocabulary is one of pieces, "
                "which are made of plain text"
            )
        return self._encode
