"""Embeddings of words in clusters, the rarer the narrower (Baevski and Auli 2019), and positions.

Letters: V words, H width of the model, clusters 0, 1, ... of words.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from xlnet_fast.errors import ArgumentError
from xlnet_fast.nn.bare import is_bare
from xlnet_fast.nn.tied_rows import rows_of
from xlnet_fast.ops.linear import linear
from xlnet_fast.transforms import can_look, nobody_looks_on


class AdaptiveEmbedding(nn.Module):
    """Words to vectors times ``sqrt(H)``: every cluster has a table and a projection to H.

    Args:
        vocab_size: V. d_embed: width of the first cluster's table. d_model: H.
        cutoffs: first word of each cluster but the first. div_val: cluster i is ``div_val**i``
            times narrower; 1: one table for all clusters.
    """

    def __init__(
        self, vocab_size: int, d_embed: int, d_model: int, cutoffs: list[int], div_val: int
    ) -> None:
        super().__init__()
        self.n_token, self.d_embed, self.d_proj = vocab_size, d_embed, d_model
        self.cutoffs, self.div_val = [*cutoffs, vocab_size], div_val
        self.emb_scale = d_model**0.5
        self.emb_layers, self.emb_projs = nn.ModuleList(), nn.ParameterList()
        if div_val == 1:
            self.emb_layers.append(nn.Embedding(vocab_size, d_embed))
            if d_embed != d_model:
                self.emb_projs.append(nn.Parameter(torch.empty(d_model, d_embed)))
            return
        for number, (first, end) in enumerate(self.spans):
            width = d_embed // div_val**number
            self.emb_layers.append(nn.Embedding(end - first, width))
            self.emb_projs.append(nn.Parameter(torch.empty(d_model, width)))

    @property
    def cutoff_ends(self) -> list[int]:
        """0 and the end of each cluster."""
        return [0, *self.cutoffs]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First word and end of each cluster."""
        return list(zip(self.cutoff_ends, self.cutoffs, strict=False))

    def forward(self, ids: Tensor) -> Tensor:
        """(..., H) of words (...), int64.

        Raises:
            ArgumentError: a word that is not in 0..V-1, where looking costs nothing.
        """
        check_words("input_ids", ids, self.n_token)
        if self.div_val == 1:
            vectors = self._looked_up(0, ids)
            if len(self.emb_projs):
                vectors = linear(vectors, self.emb_projs[0])
            return vectors * self.emb_scale
        flat = ids.reshape(-1)
        selects = ids.device.type == "cpu" and nobody_looks_on()
        return (self._selected(flat) if selects else self._all(flat)).view(*ids.shape, self.d_proj)

    def _selected(self, ids: Tensor) -> Tensor:
        """Of each cluster the words that are in it: to find them would have a GPU waited for."""
        out = self.emb_projs[0].new_empty(len(ids), self.d_proj)
        for number, (first, end) in enumerate(self.spans):
            rows = ((ids >= first) & (ids < end)).nonzero().squeeze(1)
            if len(rows) or torch.is_grad_enabled():  # several processes want every gradient
                vectors = self._of_cluster(number, ids[rows] - first)
                out = out.to(vectors.dtype).index_copy(0, rows, vectors * self.emb_scale)
        return out

    def _all(self, ids: Tensor) -> Tensor:
        """Every word in every cluster, of which one counts; no shape depends on the words."""
        out: Tensor | None = None
        for number, (first, end) in enumerate(self.spans):
            inside = (ids >= first) & (ids < end)
            vectors = self._of_cluster(number, torch.where(inside, ids - first, 0))
            vectors = vectors * self.emb_scale
            out = vectors if out is None else torch.where(inside[:, None], vectors, out)
        assert out is not None
        return out

    def _of_cluster(self, number: int, ids: Tensor) -> Tensor:
        return linear(self._looked_up(number, ids), self.emb_projs[number])

    def _looked_up(self, number: int, ids: Tensor) -> Tensor:
        table: Any = self.emb_layers[number]
        plain = (
            type(table) is nn.Embedding
            and is_bare(table)
            and table.padding_idx is table.max_norm is None
            and not (table.sparse or table.scale_grad_by_freq)
        )
        vectors: Tensor = rows_of(table.weight, ids) if plain else table(ids)
        return vectors


def check_words(name: str, ids: Tensor, vocab_size: int, ignored: int | None = None) -> None:
    """Raise ArgumentError where a word is not in 0..V-1 and not ``ignored``; on a CPU alone.

    A GPU would be waited for; its own kernels stop at such a word.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ArgumentError(f"{name} has dtype {ids.dtype}, expected int64, the ids of words")
    if ids.device.type != "cpu" or not can_look(ids) or ids.numel() == 0:
        return
    looked = ids if ignored is None else ids.masked_fill(ids == ignored, 0)
    least, most = (int(x) for x in torch.aminmax(looked))
    if least < 0 or most >= vocab_size:
        beside = "" if ignored is None else f" or {ignored}"
        raise ArgumentError(
            f"{name} has the word {least if least < 0 else most}, expected 0 to {vocab_size - 1}"
            f"{beside}; is the tokenizer this model's?"
        )


class PositionalEmbedding(nn.Module):
    """Sinusoids of distances (Transformer-XL section 3.3): sines, then cosines."""

    inv_freq: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.width = d_model
        self.register_buffer("inv_freq", inverse_frequencies(d_model))

    def forward(self, keys: int, clamp_len: int, like: Tensor) -> Tensor:
        """(1, J, H) of the distances J - 1 .. 0, in the dtype and on the device of ``like``.

        In fp32 at least, unlike Hugging Face: bf16 has no 257. In inference on a CPU a table is
        kept, and with it what :func:`projected_table` keeps of it.
        """
        if torch.is_grad_enabled() or like.device.type != "cpu" or not nobody_looks_on():
            return self._made(keys, clamp_len, like)
        inverse = self.inv_freq
        stamp = (inverse.data_ptr(), 0 if inverse.is_inference() else inverse._version)
        key = (stamp, inverse.dtype, clamp_len, like.dtype)
        known, table = _TABLES.get(self, (None, None))
        if table is None or known != key or table.shape[1] < keys:
            with torch.inference_mode(False), torch.no_grad():
                table = self._made(keys, clamp_len, like)
            _TABLES[self] = (key, table)
        return table[:, table.shape[1] - keys :]

    def _made(self, keys: int, clamp_len: int, like: Tensor) -> Tensor:
        inverse = self.inv_freq
        if inverse.dtype not in (torch.float32, torch.float64):
            inverse = inverse_frequencies(self.width, inverse.device)
        distance = torch.arange(keys - 1, -1, -1, device=inverse.device, dtype=inverse.dtype)
        if clamp_len > 0:
            distance = distance.clamp(max=clamp_len)
        angle = distance[:, None] * inverse
        table = torch.cat([angle.sin(), angle.cos()], dim=-1)
        return table.to(device=like.device, dtype=like.dtype)[None]


_TABLES: WeakKeyDictionary[nn.Module, tuple[Hashable, Tensor]] = WeakKeyDictionary()


def inverse_frequencies(width: int, device: torch.device | None = None) -> Tensor:
    """(H / 2,) fp32."""
    return 1 / (10000 ** (torch.arange(0.0, width, 2.0, device=device) / width))
