"""What looks on while ``generate`` writes: ends of texts, values that are no numbers, words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from xlnet_fast.errors import NotFinite, XLNetFastError


class Ending(str):
    """The last part of a stream: no text, but the ``answer`` that ``decode`` would give."""

    answer: dict[str, Any]

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Ending:
        """With its answer."""
        ending = cls()
        ending.answer = answer
        return ending


class Interrupted(XLNetFastError):
    """What was being computed is not wanted any more."""


class Interruption(StoppingCriteria):
    """Ends, after each token, what is not wanted any more; by an exception, as beams have no end.

    Raises:
        Interrupted: ``interrupted`` says so.
    """

    def __init__(self, interrupted: Callable[[], bool]) -> None:
        """``interrupted`` is asked after each token."""
        self._interrupted = interrupted

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """(rows,) bool, all false."""
        if self._interrupted():
            raise Interrupted("the text is not wanted any more")
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class AllFinite(LogitsProcessor):
    """Notes which prompts have scores that are NaN, and changes nothing."""

    def __init__(self, prompts: int) -> None:
        """``prompts``: of the batch; each may have several rows, side by side."""
        self._prompts = prompts
        self._bad: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, (rows, vocabulary); without waiting for a GPU."""
        bad = scores.isnan().any(-1).view(self._prompts, -1).any(1)
        self._bad = bad if self._bad is None else self._bad | bad
        return scores

    def values(self) -> Tensor:
        """(prompts,): 0, or NaN of a prompt that had one."""
        zeros = torch.zeros(self._prompts)
        return zeros if self._bad is None else zeros.masked_fill(self._bad.cpu(), float("nan"))


class Stops(StoppingCriteria):
    """Ends a row in whose new text one of several texts stands, wherever tokens begin and end.

    Hugging Face's own looks at the prompt too, and only at the last token's end.
    """

    def __init__(self, tokenizer: Any, prompt: int, stop: Sequence[str]) -> None:
        """``prompt``: tokens of a row that are not new."""
        self._tokenizer, self._prompt, self._stop = tokenizer, prompt, stop

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """(rows,) bool."""
        rows = input_ids[:, self._prompt - 1 :].tolist()
        texts = [new_text(self._tokenizer, row[:1], row[1:]) for row in rows]
        ended = [any(stop in text for stop in self._stop) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


class Words(BaseStreamer):
    """Gives each part of a text on as soon as nothing that follows can change it.

    The last word is kept back, and the blank before it, for decoders may join words; so is what may
    be the beginning of a text that ends it.
    """

    def __init__(
        self, tokenizer: Any, stop: Sequence[str], give: Callable[[str], None], finite: AllFinite
    ) -> None:
        """``give`` is called with each part."""
        self._tokenizer, self._stop, self._give, self._finite = tokenizer, stop, give, finite
        self._prompt: list[int] | None = None
        self._new: list[int] = []
        self._given = ""

    def put(self, value: Tensor) -> None:
        """At first the prompt's ids, then each new one."""
        if self._prompt is None:
            self._prompt = value.flatten().tolist()[-1:]
            return
        if self._finite.values().isnan().any():
            raise NotFinite("the model computed values that are no numbers")
        self._new += value.flatten().tolist()
        text = cut_at(new_text(self._tokenizer, self._prompt, self._new), self._stop)
        text = text[: max(0, text.rfind(" "))]
        self._add(text[: len(text) - self._kept_back(text)])

    def end(self) -> None:
        """Nothing: only who writes knows the whole text."""

    def finish(self, text: str) -> None:
        """Give what is left of the whole text."""
        self._add(text)

    def _add(self, text: str) -> None:
        if len(text) > len(self._given) and text.startswith(self._given):
            self._give(text[len(self._given) :])
            self._given = text

    def _kept_back(self, text: str) -> int:
        """Characters at the end that may be the beginning of a text that ends it."""
        return max(
            (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])),
            default=0,
        )


def new_text(tokenizer: Any, prompt: list[int], new: list[int]) -> str:
    """What new tokens say behind those of a prompt, of which the last is enough."""
    head, whole = (
        tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + new)
    )
    if whole.startswith(head):
        return str(whole[len(head) :])
    return str(tokenizer.decode(new, skip_special_tokens=True))


def cut_at(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of several others in it."""
    places = [place for place in map(text.find, stop) if place >= 0]
    return text[: min(places)] if places else text
