"""The position-wise feed-forward of a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xlnet_fast.nn.bare import is_bare
from xlnet_fast.nn.dropout import drop
from xlnet_fast.nn.projection import project, project_residual


class PositionwiseFF(nn.Module):
    """Two linear layers with ReLU, a residual and a layer norm before or behind.

    Args:
        d_model: H. d_inner: between the two. dropout: behind each.
        pre_lnorm: normalise what comes in. layer_norm_epsilon: of the norm.
    """

    def __init__(
        self, d_model: int, d_inner: int, dropout: float, pre_lnorm: bool, layer_norm_epsilon: float
    ) -> None:
        super().__init__()
        self.CoreNet = nn.Sequential(
            nn.Linear(d_model, d_inner),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(d_inner, d_model),
            nn.Dropout(dropout),
        )
        self.layer_norm = nn.LayerNorm(d_model, eps=layer_norm_epsilon)
        self.pre_lnorm = pre_lnorm

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) to (..., H)."""
        if self.pre_lnorm:
            return self._core(self.layer_norm(x), x)
        normed: Tensor = self.layer_norm(self._core(x, x))
        return normed

    def _core(self, x: Tensor, residual: Tensor) -> Tensor:
        core = self.CoreNet
        usual = len(core) == 5 and type(core[1]) is nn.ReLU and is_bare(core[1])
        if not usual or not is_bare(core):
            output: Tensor = core(x)
            return output + residual
        inner = torch.relu_(project(core[0], x))
        return project_residual(core[3], drop(core[2], inner), core[4], residual)
