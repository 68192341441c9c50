"""Classifier-free guidance: the second prompt's next token, as ``generate`` would predict it.

Hugging Face's processor calls the model on the bare tokens and takes the logits of the last one.
XLNet predicts a token from a position of its own, which follows the text, so those logits are of a
token that the model has just read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from xlnet_fast.errors import ArgumentError, ShapeError


class PromptGuidance(LogitsProcessor):
    """Scores pushed away from what a second prompt would be continued with (arXiv 2306.17806).

    scale * (log p - log p_second) + log p_second, where the second prompt, the negative one, is
    followed by the same new tokens. Without one it is the last token of the prompt. Drafts may be
    asked about ahead of the text: a call does not depend on those before it.

    Args:
        scale: ``guidance_scale``. model: the language model. length: of the first prompt.
        second: (B, I') ids of the second, or None. mask: (B, I') its ``attention_mask``, or None.
        use_mems: as ``generate`` was given it. ahead: how many tokens drafts may have.

    Raises:
        ShapeError: the second prompt, or its mask, has another shape.
        ArgumentError: its mask hides the last token.
    """

    def __init__(
        self,
        scale: float,
        model: Any,
        length: int,
        second: Tensor | None,
        mask: Tensor | None,
        use_mems: bool | None,
        ahead: int,
    ) -> None:
        if second is not None and (second.dim() != 2 or second.shape[1] == 0):
            raise ShapeError(
                f"negative_prompt_ids has shape {tuple(second.shape)}, expected (B, I') with at "
                "least one token"
            )
        if mask is not None and (second is None or mask.shape != second.shape):
            expected = None if second is None else tuple(second.shape)
            raise ShapeError(
                f"negative_prompt_attention_mask has shape {tuple(mask.shape)}, expected that of "
                f"negative_prompt_ids: {expected}"
            )
        if mask is not None:
            check_padding(mask, "negative_prompt_attention_mask")
        self._scale, self._model, self._length, self._ahead = scale, model, length, ahead
        self._second, self._mask, self._use_mems = second, mask, use_mems
        self._states: dict[int, dict[str, Any]] = {}  # by the number of new tokens read

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) scores of the next token, guided.

        Args:
            input_ids: (B, I) prompt and what was generated. scores: (B, V) of the next token.
        """
        if not self._states:
            self._begin(input_ids)
        new = input_ids.shape[1] - self._length
        for known in range(max(n for n in self._states if n <= new), new + 1):
            logits, self._states[known + 1] = self._step(input_ids, known)
        kept = range(new - self._ahead, new + 2)
        self._states = {n: state for n, state in self._states.items() if n in kept or n == 0}
        second = logits.to(scores.device, torch.float32).log_softmax(dim=-1)
        return self._scale * (scores.log_softmax(dim=-1) - second) + second

    def _step(self, input_ids: Tensor, new: int) -> tuple[Tensor, dict[str, Any]]:
        """(B, V) logits after so many new tokens, and what to go on with."""
        assert self._second is not None
        made = input_ids[:, self._length : self._length + new]
        ids, state = torch.cat([self._second, made], dim=1), dict(self._states[new])
        output = self._model(
            **self._model.prepare_inputs_for_generation(ids, **state), return_dict=True
        )
        state = self._model._update_model_kwargs_for_generation(output, state)
        return output.logits[:, -1], state

    def _begin(self, input_ids: Tensor) -> None:
        """The second prompt of each row: several rows may go on from one prompt."""
        second, mask, device = self._second, self._mask, input_ids.device
        if second is None:
            second = input_ids[:, self._length - 1 : self._length]
        if input_ids.shape[0] % second.shape[0]:
            raise ShapeError(
                f"negative_prompt_ids has {second.shape[0]} texts, expected one for each prompt"
            )
        repeats = input_ids.shape[0] // second.shape[0]
        self._second = second.to(device).repeat_interleave(repeats, 0)
        # Before transformers 5 what follows reads on from these positions, which XLNet does not.
        positions = torch.arange(second.shape[1], device=device)
        self._states[0] = {"use_mems": self._use_mems, "cache_position": positions}
        if mask is not None:
            self._states[0]["attention_mask"] = mask.to(device).repeat_interleave(repeats, 0)


def check_padding(mask: Tensor, name: str) -> None:
    """The last column of a (B, I) mask hides no token.

    Raises:
        ArgumentError: it does.
    """
    hidden = mask[:, -1] < 1  # as in HF's forward, where 1 - attention_mask > 0 is hidden
    if bool(hidden.any()):
        rows = hidden.nonzero().flatten().tolist()
        raise ArgumentError(
            f"{name} hides the last token of text {', '.join(map(str, rows))}, which generate() "
            "would go on from: pad on the left (tokenizer.padding_side = 'left'), and give each "
            "text a token"
        )
