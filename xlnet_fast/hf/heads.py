"""Models with a head that keeps arguments, or what is padding, from its parts in HF's code."""

from __future__ import annotations

import warnings
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from transformers.models.xlnet.modeling_xlnet import (
    XLNetForMultipleChoice,
    XLNetForQuestionAnswering,
    XLNetForSequenceClassification,
    XLNetForTokenClassification,
    XLNetLMHeadModel,
)

from xlnet_fast.hf import inputs
from xlnet_fast.hf.modules import Options
from xlnet_fast.transforms import can_look


class _With:
    """A model of which some parts are others: HF's own forward, given this, calls them."""

    def __init__(self, model: Any, **parts: Any) -> None:
        self.__dict__.update(parts, _model=model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class FastTokenClassification(XLNetForTokenClassification):
    """HF's model, whose own forward hands no further arguments to its transformer."""

    @wraps(XLNetForTokenClassification.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As HF; ``labels`` has a row for each predicted position, where there are such."""
        further = {name: kwargs.pop(name) for name in kwargs.keys() - inputs.OF_HUGGING_FACE}
        given: Any = self
        if further:
            given = _With(self, transformer=partial(self.transformer, **further))
        return XLNetForTokenClassification.forward(given, *args, **kwargs)


class FastSequenceClassification(XLNetForSequenceClassification):
    """HF's model, whose summary of a text may leave its padding out."""

    _xlnet_fast_options = Options()

    @wraps(XLNetForSequenceClassification.forward)
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mems: Any = None,
        perm_mask: Tensor | None = None,
        target_mapping: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        input_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As HF."""
        given = _summarising(self, attention_mask, input_mask)
        return XLNetForSequenceClassification.forward(
            given, input_ids, attention_mask, mems, perm_mask, target_mapping, token_type_ids,
            input_mask, *args, **kwargs,
        )  # fmt: skip


class FastMultipleChoice(XLNetForMultipleChoice):
    """HF's model, whose summary of a choice may leave its padding out."""

    _xlnet_fast_options = Options()

    @wraps(XLNetForMultipleChoice.forward)
    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        input_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As HF."""
        given = _summarising(self, attention_mask, input_mask)
        return XLNetForMultipleChoice.forward(
            given, input_ids, token_type_ids, input_mask, attention_mask, *args, **kwargs
        )


def _summarising(model: Any, attention_mask: Tensor | None, input_mask: Tensor | None) -> Any:
    """The model, with a summary of the real tokens alone where that was asked for."""
    if attention_mask is not None:
        real = attention_mask > 0
    elif input_mask is not None:
        real = input_mask <= 0
    else:
        return model
    real = real.flatten(0, -2)  # of all choices
    kind = getattr(model.sequence_summary, "summary_type", None)
    if kind is None:
        return model  # a user's own, which nobody can tell of
    if model._xlnet_fast_options.summarize_real_tokens:
        return _With(model, sequence_summary=partial(_real_summary, model, real, kind))
    _warn_of_padding(real, kind)
    return model


def _real_summary(model: Any, real: Tensor, kind: str, output: Tensor, *args: Any) -> Any:
    """What the model's summary gives of (B, I, H) without its padding, real being (B, I)."""
    if output.shape[:2] == real.shape:  # not the rows of a target_mapping
        if kind == "mean":
            weights = real.to(output.dtype)[..., None]
            output = (output * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        else:
            order = torch.arange(1, real.shape[1] + 1, device=real.device)
            one = (real * (order.flip(0) if kind == "first" else order)).argmax(1)
            output = output[torch.arange(len(output), device=one.device), one][:, None]
    return model.sequence_summary(output, *args)


_warned: set[str] = set()


def _warn_of_padding(real: Tensor, kind: str) -> None:
    """Once, where looking is free: the summary has padding in it, and depends on the batch."""
    if kind in _warned or real.device.type != "cpu" or not can_look(real) or not real.numel():
        return
    summarised = {"mean": real, "first": real[:, :1]}.get(kind, real[:, -1:])
    if bool(summarised.all()):
        return
    _warned.add(kind)
    warnings.warn(
        f"the summary of a text (summary_type={kind!r}) has padding in it, as in Hugging Face's "
        "code, and depends on how much there is. Pad on the left (tokenizer.padding_side), or take "
        "accelerate(model, summarize_real_tokens=True)",
        stacklevel=3,
    )


class FastQuestionAnswering(XLNetForQuestionAnswering):
    """HF's beam search, for inputs shorter than its beam too: all their positions are tried."""

    @wraps(XLNetForQuestionAnswering.forward)
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mems: Any = None,
        perm_mask: Tensor | None = None,
        target_mapping: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        input_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As HF."""
        given: Any = self
        rows = (kwargs.get("target_positions"), target_mapping, input_ids, inputs_embeds)
        first = next((x for x in rows if x is not None), None)
        if first is not None and not torch.compiler.is_compiling() and first.dim() > 1:
            beam = [min(width, first.shape[1]) for width in (self.start_n_top, self.end_n_top)]
            if beam != [self.start_n_top, self.end_n_top]:
                given = _With(self, start_n_top=beam[0], end_n_top=beam[1])
        return XLNetForQuestionAnswering.forward(
            given, input_ids, attention_mask, mems, perm_mask, target_mapping, token_type_ids,
            input_mask, inputs_embeds, *args, **kwargs,
        )  # fmt: skip


class FastLMHeadModel(XLNetLMHeadModel):
    """HF's model, whose ``generate`` forgets what is padding in a batch of prompts."""

    @wraps(XLNetLMHeadModel.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """As HF, with the mask of all tokens that are seen, those of the memory included."""
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        mask = kwargs.get("attention_mask")
        if mask is None or mask.dim() != 2 or "attention_mask" in prepared or self.config.reuse_len:
            return prepared  # reuse_len remembers other tokens than the last
        dummy = mask.new_ones(len(mask), 1)  # the token to predict, which follows all others
        keys = prepared["input_ids"].shape[1]
        if prepared.get("mems"):
            keys += prepared["mems"][0].shape[0]
        prepared["attention_mask"] = torch.cat([mask, dummy], dim=1)[:, -keys:]
        return prepared


HEADS: dict[type, type] = {
    XLNetForTokenClassification: FastTokenClassification,
    XLNetForSequenceClassification: FastSequenceClassification,
    XLNetForMultipleChoice: FastMultipleChoice,
    XLNetForQuestionAnswering: FastQuestionAnswering,
    XLNetLMHeadModel: FastLMHeadModel,
}
"""By HF's class."""
