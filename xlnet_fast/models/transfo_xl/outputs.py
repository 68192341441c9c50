"""What the models return, with the fields and their order that Hugging Face's had."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class TransfoXLModelOutput(ModelOutput):
    """Of the bare model.

    Attributes:
        last_hidden_state: (B, I, H).
        mems: one (M, B, H) for each layer, what it read, for the next segment; None without memory.
        hidden_states: (B, I, H) of the embeddings and of each layer, if asked for.
        attentions: (B, N, I, J) for each layer, after dropout, if asked for.
    """

    last_hidden_state: Tensor | None = None
    mems: list[Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class TransfoXLLMHeadModelOutput(ModelOutput):
    """With a language model head.

    Attributes:
        losses: (B, I - 1) negative log-likelihoods in the order of the tokens, 0 where the label is
            -100; with labels.
        prediction_scores: (B, I, V) log-probabilities; ``()`` with labels.
        loss: the mean over the labels that are not -100; with labels.
    """

    losses: Tensor | None = None
    prediction_scores: Tensor | tuple[()] | None = None
    mems: list[Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    loss: Tensor | None = None

    @property
    def logits(self) -> Tensor | tuple[()] | None:
        """``prediction_scores`` under the name that ``generate`` asks for."""
        return self.prediction_scores


@dataclass
class TransfoXLSequenceClassifierOutputWithPast(ModelOutput):
    """With a classifier on the last token: ``logits`` (B, labels)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    mems: list[Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
