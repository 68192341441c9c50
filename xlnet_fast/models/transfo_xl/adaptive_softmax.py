"""The adaptive softmax (Grave et al. 2017) with a projection for each cluster of words.

The head's classes are the first cluster's words and one for each other cluster; a word of a tail
has the probability of its cluster times its own within. Letters: V words, H width of the model, C
clusters beside the first, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlnet_fast.errors import ShapeError
from xlnet_fast.models.transfo_xl.embedding import check_words
from xlnet_fast.nn.bare import is_bare
from xlnet_fast.nn.tied_rows import weight_of_product
from xlnet_fast.ops.linear import linear
from xlnet_fast.transforms import is_xla, nobody_looks_on

IGNORED = -100
"""A target that counts for nothing."""


class ProjectedAdaptiveLogSoftmax(nn.Module):
    """Hidden states to log-probabilities of words, or to the losses of targets alone.

    Parameters and their names are those of Hugging Face's class of this name: ``out_layers``, the
    words' vectors, ``out_projs`` (H, d), ``cluster_weight`` (C, d_embed) and ``cluster_bias`` (C,).

    Args:
        vocab_size, d_embed, d_model, cutoffs, div_val: as :class:`AdaptiveEmbedding`.
    """

    def __init__(
        self, vocab_size: int, d_embed: int, d_model: int, cutoffs: list[int], div_val: int
    ) -> None:
        super().__init__()
        self.n_token, self.d_embed, self.d_proj = vocab_size, d_embed, d_model
        self.cutoffs, self.div_val = [*cutoffs, vocab_size], div_val
        self.n_clusters = len(cutoffs)
        if self.n_clusters:
            self.cluster_weight = nn.Parameter(torch.zeros(self.n_clusters, d_embed))
            self.cluster_bias = nn.Parameter(torch.zeros(self.n_clusters))
        self.out_layers, self.out_projs = nn.ModuleList(), nn.ParameterList()
        if div_val == 1:
            self.out_layers.append(nn.Linear(d_embed, vocab_size))
            if d_model != d_embed:
                for _ in self.cutoffs:
                    self.out_projs.append(nn.Parameter(torch.empty(d_model, d_embed)))
            return
        for number, (first, end) in enumerate(self.spans):
            width = d_embed // div_val**number
            self.out_projs.append(nn.Parameter(torch.empty(d_model, width)))
            self.out_layers.append(nn.Linear(width, end - first))

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First word and end of each cluster."""
        return list(zip([0, *self.cutoffs], self.cutoffs, strict=False))

    @property
    def shortlist_size(self) -> int:
        """Words of the first cluster."""
        return self.cutoffs[0]

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-probabilities of (B, I, H), or losses with labels of the same tokens.

        Args:
            hidden: (B, I, H). labels: (B, I), shifted here: a token predicts the label behind it.

        Returns:
            (B * I, V) without labels, as Hugging Face's; (B * (I - 1),) with them, in the order of
            the tokens.
        """
        if labels is None:
            return self.log_prob(hidden.reshape(-1, hidden.shape[-1]))
        return self.losses(hidden[..., :-1, :], labels[..., 1:]).reshape(-1)

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihoods of targets: of a tail, only tokens whose target is there.

        Args:
            hidden: (..., H). targets: (...) int64, 0..V-1 or -100.

        Returns:
            (...) in the order of the tokens, 0 where the target is -100; fp32 at least.

        Raises:
            ShapeError: the shapes do not fit. ArgumentError: another target, on a CPU.
        """
        if hidden.shape[:-1] != targets.shape:
            raise ShapeError(
                f"targets have shape {tuple(targets.shape)}, expected {tuple(hidden.shape[:-1])}, "
                f"for hidden states {tuple(hidden.shape)}"
            )
        check_words("labels", targets, self.n_token, IGNORED)
        rows, flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1).contiguous()
        head_targets = flat
        for number, (first, end) in enumerate(self.spans[1:]):
            inside = (flat >= first) & (flat < end)
            head_targets = torch.where(inside, self.shortlist_size + number, head_targets)
        losses = _cross_entropy(self._head(rows), head_targets)
        if self.n_clusters:
            selects = nobody_looks_on() and not is_xla(targets.device)
            tails = self._selected_tails if selects else self._all_tails
            losses = tails(rows, flat, losses)
        return losses.view(targets.shape)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of all words, (..., H) to (..., V), in the dtype of hidden.

        Computed in fp32 at least.
        """
        head = _log_softmax(self._head(hidden))
        first = head[..., : self.shortlist_size]
        if not self.n_clusters:
            return first.to(hidden.dtype)
        if torch.is_grad_enabled() or not nobody_looks_on():
            return torch.cat([first, *self._tails(hidden, head)], dim=-1).to(hidden.dtype)
        out = hidden.new_empty(*hidden.shape[:-1], self.n_token)
        out[..., : self.shortlist_size] = first
        spans = self.spans[1:]
        for (begin, end), tail in zip(spans, self._tails(hidden, head), strict=True):
            out[..., begin:end] = tail
        return out

    def _tails(self, hidden: Tensor, head: Tensor) -> Iterator[Tensor]:
        for number in range(1, self.n_clusters + 1):
            cluster = self.shortlist_size + number - 1
            yield _log_softmax(self._cluster(number, hidden)) + head[..., cluster : cluster + 1]

    def _selected_tails(self, rows: Tensor, targets: Tensor, losses: Tensor) -> Tensor:
        """What the tails add, each for its own tokens; a GPU is waited for once, for their counts.

        Args:
            rows: (T, H). targets, losses: (T,).
        """
        inner = self.cutoffs[:-1]
        ends = torch.tensor(inner, device=targets.device)
        cluster = torch.bucketize(targets, ends, right=True)  # -100 is with the first, too
        order = torch.argsort(cluster, stable=True)
        counts = torch.bincount(cluster, minlength=self.n_clusters + 1).tolist()
        place = counts[0]
        for number, count in enumerate(counts[1:], start=1):
            if not count and not torch.is_grad_enabled():  # several processes want every gradient
                continue
            chosen = order[place : place + count]
            place += count
            logits = self._cluster(number, rows.index_select(0, chosen))
            added = _cross_entropy(logits, targets[chosen] - self.cutoffs[number - 1])
            losses = losses.index_add(0, chosen, added)
        return losses

    def _all_tails(self, rows: Tensor, targets: Tensor, losses: Tensor) -> Tensor:
        """The same with the shapes of any targets, as a program needs that is made once for all."""
        for number, (first, end) in enumerate(self.spans[1:], start=1):
            inside = (targets >= first) & (targets < end)
            own = torch.where(inside, targets - first, IGNORED)
            losses = losses + _cross_entropy(self._cluster(number, rows), own)
        return losses

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits of the first cluster's words and of the other clusters, (..., c + C)."""
        projected = self._projected(0, hidden)
        words = self._words(0, projected)
        if not self.n_clusters:
            return words
        return torch.cat([words, linear(projected, self.cluster_weight, self.cluster_bias)], -1)

    def _cluster(self, number: int, hidden: Tensor) -> Tensor:
        """Logits of a cluster's words."""
        return self._words(number, self._projected(number, hidden))

    def _projected(self, number: int, hidden: Tensor) -> Tensor:
        if number >= len(self.out_projs):
            return hidden
        return linear(hidden, self.out_projs[number].t())

    def _words(self, number: int, projected: Tensor) -> Tensor:
        if self.div_val != 1:
            layer: Any = self.out_layers[number]
            if not is_bare(layer):
                logits: Tensor = layer(projected)
                return logits
            return linear(projected, weight_of_product(layer.weight), layer.bias)
        (first, end), layer = self.spans[number], self.out_layers[0]
        weight = weight_of_product(layer.weight)
        return linear(projected, weight[first:end], layer.bias[first:end])


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """(T,) of (T, classes), 0 where the target is ignored."""
    return F.cross_entropy(_wide(logits), targets, ignore_index=IGNORED, reduction="none")


def _log_softmax(logits: Tensor) -> Tensor:
    return _wide(logits).log_softmax(-1)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
