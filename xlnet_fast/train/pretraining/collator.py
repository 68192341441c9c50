"""Batches for the permutation objective: of pretraining streams, and of any tokenized dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.pretraining.corpus import Vocabulary
from xlnet_fast.train.pretraining.permutation import (
    Bools,
    Ints,
    SpanSampling,
    block_order,
    compact_positions,
    dense_masks,
    draws_for_targets,
    sample_targets,
    visibility_ranks,
)
from xlnet_fast.train.pretraining.text_streams import IGNORED

_PADDING_SEGMENT = 3  # Hugging Face's XLNet tokenizer gives padding a segment of its own


def collate(items: Sequence[Mapping[str, Any]], *, dense: bool = False) -> dict[str, Any]:
    """Make a batch of items of :class:`PermutationStreams` (``collate_fn`` of a data loader).

    Args:
        dense: give ``perm_mask`` and ``target_mapping``, which Hugging Face's own XLNet takes,
            instead of ``permutation_ranks`` and ``target_positions``.

    Returns:
        ``input_ids`` and ``token_type_ids`` (B, L), ``labels`` (B, I') and the masks; arguments of
        the forward of an (accelerated) ``XLNetLMHeadModel``.
    """

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([item[name] for item in items]))

    rank_q, rank_k = zip(*(item["permutation_ranks"] for item in items), strict=True)
    batch = {name: stacked(name) for name in ("input_ids", "token_type_ids", "labels")}
    ranks = (torch.from_numpy(np.stack(rank_q)), torch.from_numpy(np.stack(rank_k)))
    return batch | _masks(ranks, stacked("target_positions"), dense)


def _masks(ranks: tuple[Tensor, Tensor], positions: Tensor, dense: bool) -> dict[str, Any]:
    if dense:
        return dict(
            zip(("perm_mask", "target_mapping"), dense_masks(ranks, positions), strict=True)
        )
    return {"permutation_ranks": ranks, "target_positions": positions}


@dataclass
class PermutationCollator:
    """Collator for Hugging Face's Trainer: permutation targets for sequences of any length.

    Stands where ``DataCollatorForPermutationLanguageModeling`` does, which refuses odd lengths and
    gives dense tensors alone. Sequences are padded on the left, as XLNet's tokenizer does. <sep>,
    <cls> and padding are never targets. Random numbers come from torch's global generator, so
    ``torch.manual_seed``, the Trainer's seed and its resume decide them.

    Args:
        tokenizer: of transformers, with an XLNet vocabulary.
        num_predict: targets of each sequence, or as many as it has tokens that may be targets; by
            default ``mask_beta / mask_alpha`` of these, at least one. A span that runs over a
            <sep> gives fewer.
        perm_size: length of a block of the permutation; by default half the length, rounded up.
        spans: how targets are drawn.
        dense: give the dense ``perm_mask`` and ``target_mapping`` of Hugging Face's own XLNet.
        pad_to_multiple_of: of the length.

    Raises:
        ArgumentError: a tokenizer that is none of XLNet, or sizes below 1.
    """

    tokenizer: Any
    num_predict: int | None = None
    perm_size: int | None = None
    spans: SpanSampling = field(default_factory=SpanSampling)
    dense: bool = False
    pad_to_multiple_of: int = 1

    def __post_init__(self) -> None:
        self._vocabulary = Vocabulary.of(self.tokenizer)
        if self.tokenizer.pad_token_id is None:
            raise ArgumentError("the tokenizer has no padding token, expected <pad>")
        for name in ("num_predict", "perm_size", "pad_to_multiple_of"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"{name} is {value}, expected at least 1")

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Pad and draw.

        Args:
            examples: mappings with ``input_ids`` and perhaps ``token_type_ids``, or lists of ids.

        Returns:
            ``input_ids``, ``attention_mask``, ``token_type_ids`` (B, L), ``labels`` (B, I') and the
            masks of :func:`collate`.

        Raises:
            ArgumentError: no examples, an empty one, columns that are missing or do not fit each
                other, ids outside the vocabulary, or only <sep> and <cls>, which are no targets.
        """
        rows = [self._row(example) for example in examples]
        if not rows or any(len(ids) == 0 for ids, _ in rows):
            raise ArgumentError("a batch needs at least one sequence, and none may be empty")
        ids, segments, real = self._pad(rows)
        if ids.min() < 0 or ids.max() >= self._vocabulary.size:
            raise ArgumentError(
                f"input_ids go from {ids.min()} to {ids.max()}, expected 0 to "
                f"{self._vocabulary.size - 1}: another tokenizer made them"
            )
        functional = (ids == self._vocabulary.sep) | (ids == self._vocabulary.cls)
        length = ids.shape[1]
        size = min(self.perm_size or (length + 1) // 2, length)
        candidates = real & ~functional
        goals = self._goals(candidates)
        if not goals.any():
            raise ArgumentError("the batch holds only <sep> and <cls>: there is nothing to predict")
        count = draws_for_targets(length, int(goals.max()))
        seed = int(torch.randint(2**63 - 1, (1,)))
        draws = np.random.default_rng(seed).random((len(rows), count + size))
        drawn = sample_targets(
            self._vocabulary.starts[ids], candidates, goals, draws[:, :count], self.spans
        )
        targets = drawn & ~functional
        ranks = visibility_ranks(block_order(draws[:, count:], length), targets, functional & real)
        positions = compact_positions(targets, int(targets.sum(1).max()))
        taken = np.take_along_axis(ids, np.maximum(positions, 0), axis=1)
        batch = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "token_type_ids": torch.from_numpy(segments),
            "labels": torch.from_numpy(np.where(positions < 0, IGNORED, taken)),
        }
        rank_q, rank_k = (torch.from_numpy(rank.astype(np.int32)) for rank in ranks)
        return batch | _masks((rank_q, rank_k), torch.from_numpy(positions), self.dense)

    def _row(self, example: Any) -> tuple[Ints, Ints]:
        """Ids and segments of one example, 1-d."""
        if not isinstance(example, Mapping):
            example = {"input_ids": example}
        if "input_ids" not in example:
            raise ArgumentError(
                f"an example has the columns {', '.join(example) or 'none'}, expected input_ids: "
                "tokenize the text first"
            )
        ids = np.asarray(example["input_ids"], np.int64).reshape(-1)
        segments = np.asarray(example.get("token_type_ids", np.zeros_like(ids)), np.int64)
        keep = np.asarray(example.get("attention_mask", np.ones_like(ids))) > 0
        for name, values in (("token_type_ids", segments), ("attention_mask", keep)):
            if values.shape != ids.shape:
                raise ArgumentError(
                    f"{name} has {values.size} entries where input_ids has {ids.size}"
                )
        return ids[keep], segments[keep]

    def _pad(self, rows: list[tuple[Ints, Ints]]) -> tuple[Ints, Ints, Bools]:
        """(B, L) ids, segments, and True for what is no padding."""
        lengths = np.array([len(ids) for ids, _ in rows])
        multiple = self.pad_to_multiple_of
        length = -(-int(lengths.max()) // multiple) * multiple
        real = np.arange(length)[None] >= (length - lengths)[:, None]
        ids = np.full(real.shape, self.tokenizer.pad_token_id, np.int64)
        segments = np.full(real.shape, _PADDING_SEGMENT, np.int64)
        ids[real] = np.concatenate([ids for ids, _ in rows])
        segments[real] = np.concatenate([segments for _, segments in rows])
        return ids, segments, real

    def _goals(self, candidates: Bools) -> Ints:
        """(B,) targets of each row; none in a row without candidates."""
        lengths: Ints = candidates.sum(1)
        if self.num_predict is not None:
            return np.minimum(self.num_predict, lengths)
        share = self.spans.mask_beta / self.spans.mask_alpha
        wanted = np.maximum(1, np.round(lengths * share)).astype(np.int64)
        return np.minimum(wanted, lengths)
