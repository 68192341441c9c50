"""Transformer-XL as the paper has it, token by token: no segments, no memory, no masks.

Each token attends to those that it sees, each of which was computed likewise, and the head is a
softmax over all words. Only a model with ``pre_lnorm`` off, ``div_val`` above 1 and ``untie_r``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class Straight:
    """The losses of a text by the weights of a ``TransfoXLLMHeadModel``.

    Args:
        model: read, not run. dtype: of all arithmetic.
        seen: how many tokens each sees, itself among them; None: all before.
        zeros: how many rows of zeros every layer has before the text.
        clamp_len: larger distances count as this one, if it is above 0.
    """

    def __init__(
        self, model: Any, dtype: torch.dtype, seen: int | None, zeros: int, clamp_len: int
    ) -> None:
        self.weights = {name: x.detach().to(dtype) for name, x in model.state_dict().items()}
        self.config, self.dtype = model.config, dtype
        self.seen, self.zeros, self.clamp_len = seen, zeros, clamp_len
        config = self.config
        self.spans = list(
            zip([0, *config.cutoffs], [*config.cutoffs, config.vocab_size], strict=True)
        )

    def losses(self, ids: list[int]) -> Tensor:
        """(T - 1,) of T ids."""
        rows = [self._embedded(i) for i in ids[:-1]]
        for number in range(self.config.n_layer):
            rows = self._layer(number, rows)
        return torch.stack([self._loss(h, i) for h, i in zip(rows, ids[1:], strict=True)])

    def _of(self, name: str) -> Tensor:
        return self.weights[name]

    def _embedded(self, word: int) -> Tensor:
        number, (first, _) = next(
            (n, span) for n, span in enumerate(self.spans) if span[0] <= word < span[1]
        )
        vector = self._of(f"transformer.word_emb.emb_layers.{number}.weight")[word - first]
        return (
            self._of(f"transformer.word_emb.emb_projs.{number}")
            @ vector
            * (self.config.d_model**0.5)
        )

    def _layer(self, number: int, rows: list[Tensor]) -> list[Tensor]:
        before = [torch.zeros_like(rows[0])] * self.zeros + rows
        return [
            self._token(number, before, place + self.zeros, rows[place])
            for place in range(len(rows))
        ]

    def _token(self, number: int, rows: list[Tensor], place: int, h: Tensor) -> Tensor:
        config, layer = self.config, f"transformer.layers.{number}"
        heads = (config.n_head, config.d_head)
        first = 0 if self.seen is None else max(0, place + 1 - self.seen)
        q_weight, k_weight, v_weight = self._of(f"{layer}.dec_attn.qkv_net.weight").chunk(3)
        q = (q_weight @ h).view(heads)
        scores, values = [], []
        for other in range(first, place + 1):
            k = (k_weight @ rows[other]).view(heads)
            r = (self._of(f"{layer}.dec_attn.r_net.weight") @ self._place(place - other)).view(
                heads
            )
            score = ((q + self._of(f"{layer}.dec_attn.r_w_bias")) * k).sum(1)
            score = score + ((q + self._of(f"{layer}.dec_attn.r_r_bias")) * r).sum(1)
            scores.append(score / config.d_head**0.5)
            values.append((v_weight @ rows[other]).view(heads))
        share = torch.stack(scores).softmax(0)  # (seen, N)
        vector = (share[..., None] * torch.stack(values)).sum(0).flatten()
        h = self._normed(
            f"{layer}.dec_attn", h + self._of(f"{layer}.dec_attn.o_net.weight") @ vector
        )
        core = f"{layer}.pos_ff.CoreNet"
        inner = (self._of(f"{core}.0.weight") @ h + self._of(f"{core}.0.bias")).relu()
        outer = self._of(f"{core}.3.weight") @ inner + self._of(f"{core}.3.bias")
        return self._normed(f"{layer}.pos_ff", h + outer)

    def _normed(self, part: str, h: Tensor) -> Tensor:
        name, epsilon = f"{part}.layer_norm", self.config.layer_norm_epsilon
        return F.layer_norm(
            h, h.shape, self._of(f"{name}.weight"), self._of(f"{name}.bias"), epsilon
        )

    def _place(self, distance: int) -> Tensor:
        if self.clamp_len > 0:
            distance = min(distance, self.clamp_len)
        width = self.config.d_model
        angles = distance / 10000 ** (torch.arange(0, width, 2, dtype=self.dtype) / width)
        return torch.cat([angles.sin(), angles.cos()])

    def _loss(self, h: Tensor, word: int) -> Tensor:
        """Of the head's clusters one, and within it a word."""
        logits = [self._words(number, h) for number in range(len(self.spans))]
        clusters = self._of("crit.cluster_weight") @ (self._of("crit.out_projs.0").T @ h)
        clusters = clusters + self._of("crit.cluster_bias")
        head = torch.cat([logits[0], clusters]).log_softmax(0)
        number, (first, _) = next(
            (n, span) for n, span in enumerate(self.spans) if span[0] <= word < span[1]
        )
        if number == 0:
            return -head[word]
        within = logits[number].log_softmax(0)[word - first]
        return -(head[len(logits[0]) + number - 1] + within)

    def _words(self, number: int, h: Tensor) -> Tensor:
        projected = self._of(f"crit.out_projs.{number}").T @ h
        layer = f"crit.out_layers.{number}"
        return self._of(f"{layer}.weight") @ projected + self._of(f"{layer}.bias")
