"""Who writes text: Hugging Face's model and ours, with memory and without, by one `generate`."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.utils import logging

from ..cases.generate import GenerationCase

HF, HF_NO_MEMORY = "hf_eager", "hf_no_memory"
OURS, OURS_NO_MEMORY = "ours", "ours_no_memory"
# Who is compared with whom: with memory and without, a bidirectional model writes another text.
ORACLES = {OURS: HF, OURS_NO_MEMORY: HF_NO_MEMORY}


def provider_names(without_memory: bool) -> tuple[str, ...]:
    """Return the names of all providers, or of those with memory alone."""
    return (HF, OURS, HF_NO_MEMORY, OURS_NO_MEMORY) if without_memory else (HF, OURS)


class Scores(LogitsProcessor):
    """Adds the noise of the step to the scores, and notes when it was called."""

    def __init__(self, noise: Tensor, prompt: int) -> None:
        """`noise`: (new, V). `prompt`: tokens before the first step."""
        self._noise, self._prompt = noise, prompt
        self.stamps: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: Any) -> Any:
        """Return (B, V) scores; each row of the batch takes the noise of another step."""
        if scores.device.type == "cuda":
            torch.cuda.synchronize(scores.device)
        self.stamps.append(time.perf_counter())
        steps, rows = len(self._noise), torch.arange(len(scores), device=scores.device)
        return scores + self._noise[(input_ids.shape[1] - self._prompt + rows) % steps]


class Writer:
    """A provider of one case: `writer()` writes the texts once.

    step_us: the times between the choices of two tokens, (new - 1) of each call since the last
    `forget`.
    """

    def __init__(self, name: str, model: Any, ids: Tensor, case: GenerationCase, noise: Tensor):
        """`model`: Hugging Face's; ours is made of it in place."""
        if name.startswith("ours"):
            import xlnet_fast

            model = xlnet_fast.accelerate(model)
        # A text that ended early would not be as long as said.
        model.generation_config.eos_token_id = None
        self._model, self._ids, self._case, self._noise = model, ids, case, noise
        self._memory = name not in (HF_NO_MEMORY, OURS_NO_MEMORY)
        self.step_us: list[list[float]] = []

    def __call__(self) -> Tensor:
        """Return the (B, new) tokens."""
        scores = Scores(self._noise, self._case.prompt)
        level = logging.get_verbosity()
        logging.set_verbosity_error()  # generate tells of each argument that a model does not read
        try:
            with torch.no_grad():
                tokens: Tensor = self._model.generate(
                    self._ids,
                    attention_mask=torch.ones_like(self._ids),
                    max_new_tokens=self._case.new,
                    do_sample=False,
                    use_mems=self._memory,
                    logits_processor=LogitsProcessorList([scores]),
                )
        finally:
            logging.set_verbosity(level)
        self.step_us.append([(b - a) * 1e6 for a, b in pairwise(scores.stamps)])
        return tokens[:, self._ids.shape[1] :]

    def forget(self) -> None:
        """Drop the times so far: those of the check, which warmed up."""
        self.step_us = []


def difference(tokens: Tensor, expected: Tensor) -> str:
    """Return "" for the same (B, new) tokens, else where the first one differs."""
    if tokens.shape != expected.shape:
        return f"{tokens.shape[1]} tokens where Hugging Face wrote {expected.shape[1]}"
    places = (tokens != expected).nonzero()
    if not len(places):
        return ""
    row, column = min(places.tolist(), key=lambda place: place[1])
    return (
        f"token {column + 1} of text {row + 1} is {int(tokens[row, column])} where Hugging Face "
        f"wrote {int(expected[row, column])}"
    )
