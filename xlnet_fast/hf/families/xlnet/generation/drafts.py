"""Where the tokens come from that a pass tries ahead: the text itself, or a smaller model."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.models.xlnet.modeling_xlnet import XLNetLMHeadModel

from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.versions import HAS_HEAD_MASK

_MOST = 20
"""Tokens that an assistant drafts at most, where nothing is said: as Hugging Face."""


class Drafts(Protocol):
    """A source of drafts for one text."""

    def after(self, ids: Tensor) -> list[int]:
        """The tokens that may follow ids (1, L); none where there is no guess."""


class Limit:
    """How many tokens to draft: a wrong one makes its pass longer for nothing.

    Args:
        most: at any time.
    """

    _FIRST = 4

    def __init__(self, most: int) -> None:
        self._most, self._now = most, min(most, self._FIRST)
        self._length = 0
        self._drafts: list[int] = []

    def after(self, text: list[int]) -> int:
        """The limit for what follows a text: twice that of drafts that all held, or one more than
        held.
        """
        came = text[self._length : self._length + len(self._drafts)]
        held = next(
            (n for n, (a, b) in enumerate(zip(came, self._drafts, strict=False)) if a != b),
            len(came),
        )
        if self._drafts:
            self._now = min(2 * self._now if held == len(self._drafts) else held + 1, self._most)
            self._drafts = []
        return self._now

    def note(self, text: list[int], drafts: list[int]) -> list[int]:
        """Remember what was drafted, and return it."""
        self._length, self._drafts = len(text), drafts
        return drafts


class FromHuggingFace:
    """What followed the last words of the text where they stood before, or what an assistant of
    another family says, by Hugging Face's code.

    Args:
        generator: HF's ``CandidateGenerator``. most: tokens to take of what it says.
    """

    def __init__(self, generator: Any, most: int) -> None:
        self._generator, self._limit = generator, Limit(most)

    def after(self, ids: Tensor) -> list[int]:
        """As :class:`Drafts`."""
        text: list[int] = ids[0].tolist()
        candidates, _ = self._generator.get_candidates(ids)
        found: list[int] = candidates[0, len(text) :].tolist()
        return self._limit.note(text, found[: self._limit.after(text)])


class Assistant:
    """What a smaller XLNet would say, as long as it is sure.

    Args:
        model: the assistant. limit: at most so many tokens. confidence: it stops below this
            probability. prompt_length: in tokens; what is read at once. max_length: of the text.
    """

    def __init__(
        self, model: Any, limit: int, confidence: float, prompt_length: int, max_length: int
    ) -> None:
        self._model, self._limit, self._confidence = model, Limit(limit), confidence
        self._prompt_length, self._max_length = prompt_length, max_length
        self._read: list[tuple[list[int], dict[str, Any]]] = []  # texts and what follows them

    def after(self, ids: Tensor) -> list[int]:
        """As :class:`Drafts`."""
        text: list[int] = ids[0].tolist()
        goal = min(len(text) + self._limit.after(text), self._max_length - 1)
        self._read = [(read, kept) for read, kept in self._read if text[: len(read)] == read]
        device, drafted = self._model.device, list(text)
        while len(drafted) < goal:
            read, kept = self._read[-1] if self._read else ([], self.__beginning())
            end = len(read) + 1 if read else self._prompt_length  # a step reads one token more
            given = torch.tensor([drafted[:end]], device=device)
            probabilities, kept = self.__step(given, kept)
            self._read.append((drafted[:end], kept))
            if end < len(drafted):
                continue
            best = int(probabilities.argmax())
            if float(probabilities[best]) < self._confidence:
                break
            drafted.append(best)
        return self._limit.note(text, drafted[len(text) :])

    def __beginning(self) -> dict[str, Any]:
        kept: dict[str, Any] = {"use_mems": True}
        if HAS_HEAD_MASK:  # version 4 of transformers counts its steps
            kept["cache_position"] = torch.arange(self._prompt_length)
        return kept

    @torch.no_grad()
    def __step(self, ids: Tensor, kept: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """(V,) probabilities of what follows ids, and what to go on with."""
        model = self._model
        outputs = model(**model.prepare_inputs_for_generation(ids, **kept), return_dict=True)
        kept = model._update_model_kwargs_for_generation(outputs, dict(kept))
        return outputs.logits[0, -1].float().softmax(-1), kept


def drafts_for(
    model: Any, config: Any, assistant: Any, input_ids: Tensor, **generator_arguments: Any
) -> Drafts:
    """The source that the arguments of ``generate`` ask for.

    Args:
        model: whose text it is. config: the ``GenerationConfig`` of this run. assistant: a model,
            or None. generator_arguments: of HF's ``_get_candidate_generator``.

    Raises:
        ArgumentError: a kind of drafts that XLNet has not.
    """
    lookup = config.prompt_lookup_num_tokens is not None
    if lookup == (assistant is not None):
        raise ArgumentError(
            "XLNet takes drafts from the text (prompt_lookup_num_tokens) or from a smaller model "
            "with the same vocabulary (assistant_model), one of both"
        )
    number = config.prompt_lookup_num_tokens
    if lookup and (not isinstance(number, int) or number < 1):
        raise ArgumentError(
            f"prompt_lookup_num_tokens is {number!r}, expected an integer of at least 1"
        )
    if isinstance(assistant, XLNetLMHeadModel):
        if assistant.config.vocab_size != model.config.vocab_size:
            raise ArgumentError(
                f"the assistant's vocabulary has {assistant.config.vocab_size} entries, expected "
                f"the model's {model.config.vocab_size}: drafts are ids of one tokenizer"
            )
        own = assistant.generation_config
        limit = getattr(config, "num_assistant_tokens", None) or own.num_assistant_tokens or _MOST
        confidence = own.assistant_confidence_threshold
        return Assistant(
            assistant, int(limit), 0.4 if confidence is None else confidence,
            input_ids.shape[1], config.max_length,
        )  # fmt: skip
    generator = model._get_candidate_generator(
        generation_config=config,
        input_ids=input_ids,
        inputs_tensor=input_ids,
        assistant_model=assistant,
        model_kwargs={},
        **generator_arguments,
    )
    if getattr(generator, "eos_token_id", 0) is None:  # which version 4 cannot do without
        generator.eos_token_id = torch.tensor([-1], device=input_ids.device)
    most = config.prompt_lookup_num_tokens if lookup else _MOST
    return FromHuggingFace(generator, most)
