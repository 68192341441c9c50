"""XLNet: the chain of its predictions from left to right, by two-stream attention.

An XLNet has no loss of running text by itself: it was trained to foretell some tokens of a
sequence in a random order. In the natural order each token's prediction is a distribution given all
earlier tokens, so that the losses of all tokens add up to the text's log-likelihood under that one
order, which training drew as one of many. One pass gives them all: the content stream of a token
sees it and what comes before, the query stream only what comes before.

Segments see the memory of those before, whose rows were made in the same order. Without memory
segments overlap by a token: the first one of a text is the only one that nothing foretells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.checkpoint import load_weights
from xlnet_fast.errors import ArgumentError
from xlnet_fast.generate.run import LM_CLASS
from xlnet_fast.hf import accelerate
from xlnet_fast.perplexity.options import AUTO, EMPTY, RAW, PerplexityOptions
from xlnet_fast.perplexity.pieces import encoder
from xlnet_fast.perplexity.tokens import Tokens, read
from xlnet_fast.train.pretraining.corpus import Vocabulary
from xlnet_fast.train.shared.tokenizers import check_vocabulary, load_run_tokenizer

USUAL_MEMORY_LENGTH = 384
"""Of the published pretraining; a config as a rule names none, which stands for no end."""
_MOST_LOGITS = 2**24
"""At a time: 64 MiB in fp32."""


class XLNetReader:
    """An ``XLNetLMHeadModel``, accelerated, and its tokenizer.

    Args:
        options: how to read. name: of the checkpoint. config: of it.
        device, dtype: of the weights.

    Raises:
        ArgumentError: the checkpoint or the tokenizer cannot be read, they do not fit each other,
            or an option is of Transformer-XL alone.
        BackendUnavailable: the backend that was named cannot run.
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
                f"{name} is an {heads[0]}, which has no language model head: expected an {LM_CLASS}"
            )
        _check_options(options)
        tokenizer = load_run_tokenizer(options.tokenizer, name)
        check_vocabulary(tokenizer, config.vocab_size, name)
        vocabulary = Vocabulary.of(tokenizer)
        self._encode = encoder(tokenizer, vocabulary.eod, vocabulary.unk)
        model = load_weights(name, LM_CLASS).eval()
        transformer = model.transformer
        usual: int = config.mem_len or USUAL_MEMORY_LENGTH
        self._memory_length = usual if options.memory_length is None else options.memory_length
        transformer.mem_len = self._memory_length or None
        # Of pretraining: the memory would be of the first tokens of a segment, and half the rows
        # would be read backwards. Hugging Face's heads look into the config too.
        transformer.reuse_len = model.config.reuse_len = None
        transformer.bi_data = model.config.bi_data = False
        if options.clamp_len is not None:
            transformer.clamp_len = options.clamp_len
        self._model: Any = accelerate(model.to(device=device, dtype=dtype), options.backend)
        self._segment_length = options.segment_length
        self.settings: dict[str, Any] = {
            "form": RAW,
            "segment_length": options.segment_length,
            "memory_length": self._memory_length,
            "clamp_len": transformer.clamp_len,
        }

    def tokens(self, text: str, name: str, limit: int | None) -> Tokens:
        """As :class:`Reader`; an empty line ends a document, as ``pretrain`` reads text."""
        return read(text, self._encode, name, limit)

    @torch.no_grad()
    def losses(self, streams: Tensor) -> Iterator[Tensor]:
        """As :class:`Reader`."""
        memory: Any = None
        remembers, length, begin = self._memory_length > 0, streams.shape[1], 0
        while True:
            end = min(begin + self._segment_length, length)
            ids = streams[:, begin:end]
            first = 1 if memory is None else 0  # whose query stream sees something
            place = torch.arange(end - begin, device=ids.device)[None]
            # No token_type_ids: with one segment they add the same to all scores of a token.
            output = self._model.transformer(
                ids, mems=memory, use_mems=remembers, permutation_ranks=(place, place),
                target_positions=place[:, first:],
            )  # fmt: skip
            yield self._cross_entropy(output.last_hidden_state, ids[:, first:])
            if end == length:
                return
            memory = output.mems if remembers else None
            begin = end if remembers else end - 1

    def _cross_entropy(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(B, n) of (B, n, H), with logits for some rows at a time."""
        rows = max(1, _MOST_LOGITS // self._model.config.vocab_size)
        parts = zip(hidden.flatten(0, 1).split(rows), targets.flatten().split(rows), strict=True)
        losses = [
            F.cross_entropy(self._model.lm_loss(part).float(), own, reduction="none")
            for part, own in parts
        ]
        return torch.cat(losses).view(targets.shape)


def _check_options(options: PerplexityOptions) -> None:
    """What an XLNet would not read.

    Raises:
        ArgumentError: such an option was given, or segments are too short.
    """
    if options.same_length is not None or options.initial_memory != EMPTY:
        name = "initial_memory" if options.same_length is None else "same_length"
        raise ArgumentError(f"{name} is of a Transformer-XL, and the model is an XLNet: leave it")
    if options.form not in (AUTO, RAW):
        raise ArgumentError(
            f"form is {options.form!r}, expected {RAW!r} or {AUTO!r}: an XLNet reads plain text"
        )
    if options.segment_length < 2:
        raise ArgumentError(
            f"segment_length is {options.segment_length}, expected at least 2 for an XLNet: "
            "nothing foretells the first token of the first segment"
        )
