"""One vector for a text, from any XLNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.pieces import Encoded, Piece
from xlnet_fast.predict.tasks.base import Parameter, text_field
from xlnet_fast.predict.tasks.text_classification import weighted_mean
from xlnet_fast.predict.tasks.texts import TextTask

MEAN, CLS = POOLINGS = ("mean", "cls")
_ENDS = 2  # <sep> <cls>


class Embeddings(TextTask):
    """Of the last layer: the mean over a text's tokens without <sep> and <cls>, or that of <cls>.

    Checkpoints with a head are read without it. The vector of a long text is the mean of its
    windows', weighted by their tokens; read through memory, that of all its tokens, or of the one
    <cls> at its end.
    """

    name = "embeddings"
    architectures = ("XLNetModel",)
    optional: ClassVar = {}
    parameters: ClassVar = {
        "pooling": Parameter(MEAN, str, "of the text's tokens, or the <cls>", choices=POOLINGS),
        "normalize": Parameter(False, bool, "to the length 1"),
    }

    def pieces(
        self, record: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> tuple[list[Piece], bool]:
        """One, or several windows."""
        ids = self.token_ids(text_field(record, "text"))
        if not ids:
            raise ArgumentError("text comes to no token, expected some words")
        (pieces,), cut = self.sequences(ids, [None], "")
        return pieces, cut

    def run(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """The mean and the <cls>, (2, H), in fp32."""
        longest = max(len(piece) for piece in pieces)
        firsts = torch.tensor([[longest - len(piece)] for piece in pieces])
        total, last = 0.0, torch.empty(0)
        for output, begin in self.outputs(pieces, last=False):
            hidden = output.last_hidden_state.float()
            places = torch.arange(begin, begin + hidden.shape[1])
            counted = (places >= firsts) & (places < longest - _ENDS)
            # Not a product: what padding comes to may be no number.
            total += hidden.masked_fill(~counted[..., None].to(hidden.device), 0).sum(1)
            last = hidden[:, -1]
        counts = torch.tensor([[float(len(piece) - _ENDS)] for piece in pieces])
        mean = total / counts.to(last.device)
        return list(torch.stack([mean, last], 1).cpu())

    def decode(self, encoded: Encoded, results: Sequence[Tensor]) -> dict[str, Any]:
        """``embedding``, a list of numbers."""
        row = POOLINGS.index(encoded.parameters["pooling"])
        vector = weighted_mean(encoded.pieces, [result[row] for result in results])
        if encoded.parameters["normalize"]:
            vector = F.normalize(vector, dim=0)
        return {"embedding": vector.tolist()}
