"""Scores of every head, a key padding, and Hugging Face's dense mask of it."""

from __future__ import annotations

import torch
from torch import Tensor

# What the backward differentiates by.
LEAVES = ("content scores", "position scores")


class Scores:
    """ac (B, N, I, I), bd (B, N, I, 2I), key padding (B, I) and HF's dense mask (I, I, B, 1)."""

    def __init__(
        self, batch: int, length: int, heads: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        generator = torch.Generator(device).manual_seed(0)  # the host would take seconds

        def draw(keys: int) -> Tensor:
            values = torch.randn(batch, heads, length, keys, generator=generator, device=device)
            return (values * 4).bfloat16().to(dtype)

        self.content, self.position = draw(length), draw(2 * length)
        self.grad_out = draw(length)
        self.padding = torch.zeros(batch, length, dtype=torch.bool, device=device)
        self.padding[:, : length // 10] = True
        dense = self.padding.t()[None].expand(length, length, batch)
        own = torch.eye(length, dtype=torch.bool, device=device)[..., None]
        self.hf_mask = (dense & ~own)[..., None].to(dtype)

    def leaves(self) -> list[Tensor]:
        """Return what the backward differentiates by."""
        return [x.requires_grad_() for x in (self.content, self.position)]


def double_element(scores: Scores, element: int) -> Scores:
    """Return the scores of one batch element in float64."""
    part = object.__new__(Scores)
    own = slice(element, element + 1)
    for name in ("content", "position", "grad_out"):
        setattr(part, name, getattr(scores, name).detach()[own].double())
    part.padding = scores.padding[own]
    part.hf_mask = scores.hf_mask[:, :, own].double()
    return part
