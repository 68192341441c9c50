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
    followed by the same new tokens. Without one it is the last token of the prompt.

    Args:
        scale: ``guidance_scale``. model: the language model.
        prompt: (B, I') ids, or None. mask: (B, I') its ``attention_mask``, or None.
        use_mems: as ``generate`` was given it.

    Raises:
        ShapeError: the prompt, or its mask, has another shape.
    """

    def __init__(
        self,
        scale: float,
        model: Any,
        prompt: Tensor | None,
        mask: Tensor | None,
        use_mems: bool | None,
    ) -> None:
        if prompt is not None and (prompt.dim() != 2 or prompt.shape[1] == 0):
            raise ShapeError(
                f"negative_prompt_ids has shape {tuple(prompt.shape)}, expected (B, I') with at "
                "least one token"
            )
        if mask is not None and (prompt is None or mask.shape != prompt.shape):
            expected = None if prompt is None else tuple(prompt.shape)
            raise ShapeError(
                f"negative_prompt_attention_mask has shape {tuple(mask.shape)}, expected that of "
                f"negative_prompt_ids: {expected}"
            )
        if mask is not None:
            check_padding(mask, "negative_prompt_attention_mask")
        self._scale, self._model, self._prompt, self._mask = scale, model, prompt, mask
        self._state: dict[str, Any] = {"use_mems": use_mems}
        self._length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) scores of the next token, guided.

        Args:
            input_ids: (B, I) prompt and what was generated. scores: (B, V) of the next token.
        """
        if self._length is None:
            self._begin(input_ids)
        assert self._prompt is not None
        ids = torch.cat([self._prompt, input_ids[:, self._length :]], dim=1)
        model = self._model
        prepared = model.prepare_inputs_for_generation(ids, **self._state)
        output = model(**prepared, return_dict=True)
        self._state = model._update_model_kwargs_for_generation(output, self._state)
        second = output.logits[:, -1].to(scores.device, torch.float32).log_softmax(dim=-1)
        return self._scale * (scores.log_softmax(dim=-1) - second) + second

    def _begin(self, input_ids: Tensor) -> None:
        """The second prompt of each row: several rows may go on from one prompt."""
        rows, self._length = input_ids.shape
        prompt, mask = self._prompt, self._mask
        prompt = input_ids[:, -1:] if prompt is None else prompt.to(input_ids.device)
        if rows % len(prompt):
            raise ShapeError(
                f"negative_prompt_ids has {len(prompt)} texts, expected one for each prompt"
            )
        repeats = rows // len(prompt)
        self._prompt = prompt.repeat_interleave(repeats, 0)
        if mask is not None:
            mask = mask.to(input_ids.device).repeat_interleave(repeats, 0)
        # Before transformers 5 what follows reads on from these positions, which XLNet does not.
        positions = torch.arange(prompt.shape[1], device=input_ids.device)
        self._state |= {"attention_mask": mask, "cache_position": positions}
        if mask is None:
            del self._state["attention_mask"]


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
