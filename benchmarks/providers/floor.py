"""`gemm_floor`: the matrix products that an XLNet forward cannot do without, and nothing else.

Per layer: the projections q, k, v and o, the two feed-forward layers, r projected once (not once
per batch element), and the attention products ac, bd and pv over exactly the (query, key) pairs, 64
query rows at a time. The scores of such a step overwrite one buffer that stays in cache; softmax,
masks, biases, activations and norms are left out. A model cannot be much faster than this with the
same library of matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..cases.shapes import Geometry

ROWS = 64


class GemmFloor:
    """Runs the products of one model on one batch shape, with the model's own weights."""

    def __init__(self, model: nn.Module, geometry: Geometry, batch: int, length: int) -> None:
        self.geometry = geometry
        self.batch, self.length = batch, length
        parameter = next(model.parameters())
        self._layers = [_weights(layer, geometry) for layer in model.layer]  # type: ignore[union-attr]
        d = geometry.d_model
        make = {"device": parameter.device, "dtype": parameter.dtype}
        generator = torch.Generator().manual_seed(0)
        self._hidden = torch.randn(batch * length, d, generator=generator).to(**make)
        self._positions = torch.randn(2 * length, d, generator=generator).to(**make)
        heads = batch * geometry.n_head
        self._scores = torch.empty(heads * ROWS * length, **make)
        self._out = torch.empty(heads, length, d // geometry.n_head, **make)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Run all layers once; the result means nothing."""
        b, length, n = self.batch, self.length, self.geometry.n_head
        h = x = self._hidden
        for w in self._layers:
            q, k, v = (self._heads(h @ w[name], b, length, n) for name in ("q", "k", "v"))
            r = self._heads(self._positions @ w["r"], 1, 2 * length, n)
            self._attention(q, k, v, r)
            mixed = self._out.view(b, n, length, -1).transpose(1, 2).reshape(b * length, -1)
            # Every layer starts from the same input: without norms the values would grow from layer
            # to layer into infinities.
            x = mixed @ w["o"] @ w["up"] @ w["down"]
        return x

    @staticmethod
    def _heads(x: Tensor, batch: int, length: int, heads: int) -> Tensor:
        """(B * L, N * D) to (B * N, L, D), contiguous."""
        return x.view(batch, length, heads, -1).transpose(1, 2).reshape(batch * heads, length, -1)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, r: Tensor) -> None:
        n, b, length = self.geometry.n_head, self.batch, self.length
        keys = k.transpose(1, 2)
        for start in range(0, length, ROWS):
            rows = slice(start, min(start + ROWS, length))
            count = rows.stop - rows.start
            scores = self._scores[: b * n * count * length].view(b * n, count, length)
            torch.bmm(q[:, rows], keys, out=scores)
            # As many rows of r as each query meets. Which ones differs from row to row, and that is
            # the skew that a real kernel pays for; the number of products does not.
            window = r[:, length - start : 2 * length - start].transpose(1, 2)
            if b > 1:
                q_by_head = (
                    q[:, rows].view(b, n, count, -1).transpose(0, 1).reshape(n, b * count, -1)
                )
                torch.bmm(q_by_head, window, out=scores.view(n, b * count, length))
            else:
                torch.bmm(q[:, rows], window, out=scores)
            torch.bmm(scores, v, out=self._out[:, rows])


def _weights(layer: nn.Module, geometry: Geometry) -> dict[str, Tensor]:
    attention, feed_forward = layer.rel_attn, layer.ff
    d = geometry.d_model
    weights = {
        name: getattr(attention, name).detach().reshape(d, d)  # type: ignore[union-attr]
        for name in ("q", "k", "v", "r")
    }
    weights["o"] = attention.o.detach().reshape(d, d).t()  # type: ignore[union-attr,operator]
    weights["up"] = feed_forward.layer_1.weight.detach().t()  # type: ignore[union-attr]
    weights["down"] = feed_forward.layer_2.weight.detach().t()  # type: ignore[union-attr]
    return weights
