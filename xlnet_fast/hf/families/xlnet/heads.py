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

from xlnet_fast.hf.families.xlnet.generation import FastLMHeadModel
from xlnet_fast.hf.options import Options
from xlnet_fast.hf.patches import patched
from xlnet_fast.hf.versions import HAS_HEAD_MASK
from xlnet_fast.transforms import can_look

_OF_TOKEN_CLASSIFICATION = frozenset({
    "input_ids", "attention_mask", "mems", "perm_mask", "target_mapping", "token_type_ids",
    "input_mask", "inputs_embeds", "labels", "use_mems", "output_attentions",
    "output_hidden_states", "return_dict", *(["head_mask"] if HAS_HEAD_MASK else []),
})  # fmt: skip
"""What HF's forward reads; asking the function itself would ask whatever was put in its place."""


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
        given: Any = self
        if patched(XLNetForTokenClassification, "forward") is None:
            further = {name: kwargs.pop(name) for name in kwargs.keys() - _OF_TOKEN_CLASSIFICATION}
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
        rows = target_mapping is not None or kwargs.get("target_positions") is not None
        given = self if rows else _summarising(self, attention_mask, input_mask)
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
        mems: Any = None,
        perm_mask: Tensor | None = None,
        target_mapping: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As HF."""
        rows = target_mapping is not None or kwargs.get("target_positions") is not None
        given = self if rows else _summarising(self, attention_mask, input_mask)
        return XLNetForMultipleChoice.forward(
            given, input_ids, token_type_ids, input_mask, attention_mask, mems, perm_mask,
            target_mapping, *args, **kwargs,
        )  # fmt: skip


def _summarising(model: Any, attention_mask: Any, input_mask: Any) -> Any:
    """The model, with a summary of the real tokens alone where that was asked for."""
    if isinstance(attention_mask, Tensor):
        real = attention_mask >= 1  # as in HF, where 1 - attention_mask > 0 is hidden
    elif isinstance(input_mask, Tensor):
        real = input_mask <= 0
    else:
        return model
    kind = getattr(model.sequence_summary, "summary_type", None)
    if kind is None or real.dim() < 2:
        return model  # a user's own, which nobody can tell of; or an error of the transformer
    real = real.flatten(0, -2)  # of all choices
    if model._xlnet_fast_options.summarize_real_tokens:
        return _With(model, sequence_summary=partial(_real_summary, model, real, kind))
    _warn_of_padding(real, kind)
    return model


def _real_summary(model: Any, real: Tensor, kind: str, output: Tensor, *args: Any) -> Any:
    """What the model's summary gives of (B, I, H) without its padding.

    Args:
        real: (B or 1, I or M + I) bool, without which a text counts as one of real tokens.
    """
    real = real[:, -output.shape[1] :].expand(output.shape[0], -1)
    real = real | ~real.any(1, keepdim=True)
    if kind == "mean":
        weights = real.to(output.dtype)[..., None]
        output = (output * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    else:
        order = torch.arange(1, real.shape[1] + 1, device=real.device)
        one = (real * (order.flip(0) if kind == "first" else order)).argmax(1)
        output = output.gather(1, one[:, None, None].expand(-1, 1, output.shape[2]))
    return model.sequence_summary(output, *args)


_warned: set[str] = set()


def _warn_of_padding(real: Tensor, kind: str) -> None:
    """Once, where looking is free: the summary has padding in it, and depends on the batch."""
    if kind in _warned or real.device.type != "cpu" or not can_look(real) or not real.numel():
        return
    summarised = {"mean": real, "first": real[:, :1]}.get(kind, real[:, -1:])
    if bool(summarised.all()):
        return
    warnings.warn(
        f"the summary of a text (summary_type={kind!r}) has padding in it, as in Hugging Face's "
        "code, and depends on how much there is. Pad on the left (tokenizer.padding_side), or take "
        "accelerate(model, summarize_real_tokens=True)",
        stacklevel=4,
    )
    _warned.add(kind)


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
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As HF."""
        given: Any = self
        embeds = kwargs.get("inputs_embeds", *args[HAS_HEAD_MASK : HAS_HEAD_MASK + 1])
        rows = (kwargs.get("target_positions"), target_mapping, input_ids, embeds)
        first = next((x for x in rows if x is not None), None)
        if first is not None and first.dim() > 1 and _runs_once():
            beam = [min(width, first.shape[1]) for width in (self.start_n_top, self.end_n_top)]
            if beam != [self.start_n_top, self.end_n_top]:
                given = _With(self, start_n_top=beam[0], end_n_top=beam[1])
        return XLNetForQuestionAnswering.forward(
            given, input_ids, attention_mask, mems, perm_mask, target_mapping, token_type_ids,
            input_mask, *args, **kwargs,
        )  # fmt: skip


def _runs_once() -> bool:
    """Whether no program is made of this call, which would keep its sizes."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined]


HEADS: dict[type, type] = {
    XLNetForTokenClassification: FastTokenClassification,
    XLNetForSequenceClassification: FastSequenceClassification,
    XLNetForMultipleChoice: FastMultipleChoice,
    XLNetForQuestionAnswering: FastQuestionAnswering,
    XLNetLMHeadModel: FastLMHeadModel,
}
"""By HF's class."""
