"""The projected position rows of all layers: a row depends on its distance alone, so it is made
once for all steps of a text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xlnet_fast.hf.families.xlnet.generation.parts import Parts
from xlnet_fast.nn import relative_positions
from xlnet_fast.ops.linear import linear

_BLOCK = 128


class DistanceTable:
    """Rows of r for the distances ``far``, ``far - 1``, ... ``-near``, which grows at both ends.

    Attributes:
        far: the distance of row 0.
        layers: (N, P, D) for each layer, P = far + near + 1.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.far, self.near = -1, 0
        self.layers: list[Tensor] = []

    def reach(self, far: int, near: int) -> None:
        """Have the distances ``far`` down to ``-near``, and some that will be asked for next."""
        first = not self.layers
        if far > self.far:
            # A quarter more: what is there is copied each time.
            goal = max(far, _BLOCK) if first else far + max(_BLOCK, far // 4)
            rows = self.__project(goal, self.far + 1 if not first else -near)
            if first:
                self.layers, self.near = rows, near
            else:
                self.layers = _joined(rows, self.layers)
            self.far = goal
        if near > self.near:
            self.layers = _joined(self.layers, self.__project(-self.near - 1, -near))
            self.near = near

    def forget_beyond(self, near: int) -> None:
        """Give back the room of distances below ``-near``, which only a prompt has."""
        if near < self.near:
            rows = self.far + near + 1
            self.layers = [layer[:, :rows].clone() for layer in self.layers]
            self.near = near

    def __project(self, first: int, last: int) -> list[Tensor]:
        """(N, P, D) of each layer, for the distances ``first`` down to ``last``."""
        parts = self._parts
        sinusoids = relative_positions(
            1 - last, first, parts.hidden_size, clamp_len=parts.clamp_len, device=parts.device
        )[:, 0].to(parts.dtype)  # (P, H)
        return [
            linear(sinusoids, layer.r).unflatten(-1, parts.heads).transpose(0, 1).contiguous()
            for layer in parts.layers
        ]


def _joined(farther: list[Tensor], nearer: list[Tensor]) -> list[Tensor]:
    return [torch.cat(pair, dim=1) for pair in zip(farther, nearer, strict=True)]
