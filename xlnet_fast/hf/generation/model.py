"""The class that an accelerated language model takes on."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers.models.xlnet.modeling_xlnet import XLNetLMHeadModel, XLNetLMHeadModelOutput

from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.generation.parts import Parts, can_step, obstacle_to_steps
from xlnet_fast.hf.generation.requests import CheckedRequests
from xlnet_fast.hf.generation.state import GenerationState, ReadText, first_step
from xlnet_fast.hf.generation.step import Step, run
from xlnet_fast.hf.memory import Memory
from xlnet_fast.hf.modules import Options
from xlnet_fast.hf.versions import generated_memory
from xlnet_fast.nn.linear import is_plain_linear
from xlnet_fast.ops.linear import linear
from xlnet_fast.transforms import can_look

_READ = "xlnet_fast_read_text"
"""The name under which a run without memory hands on what it has read."""
_OF_A_STEP = {
    "attention_mask", "cache", "cache_position", "is_first_iteration", "logits_to_keep", "mems",
    "next_sequence_length", "output_attentions", "output_hidden_states", "past_key_values",
    "position_ids", "return_dict", "use_cache", "use_mems",
}  # fmt: skip
"""What ``generate`` hands to a step whose tokens do not depend on it, or which it reads."""


class FastLMHeadModel(CheckedRequests, XLNetLMHeadModel):
    """HF's model, whose ``generate`` computes at each step what is new, and no more.

    HF's ``generate`` stays the driver; what it keeps from step to step is a
    :class:`GenerationState`. Padding of a batch of prompts is not seen.
    """

    _xlnet_fast_options = Options()

    @wraps(XLNetLMHeadModel.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """As HF, or one :class:`Step` in the place of the memory."""
        read = kwargs.pop(_READ, None)
        step = self.__step(input_ids, args, kwargs, read)
        if step is not None:
            use_mems = kwargs.get("use_mems", *args[1:2])
            return {"input_ids": step.ids, "mems": step, "use_mems": use_mems}
        return self.__as_theirs(input_ids, *args, **kwargs)

    def __step(
        self, input_ids: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], read: Any
    ) -> Step | None:
        """The next step, or None where it is to be Hugging Face's."""
        memory = generated_memory(args, kwargs)
        if not _may_step(input_ids, memory, kwargs):
            return None
        remembers = kwargs.get("use_mems", *args[1:2])
        if remembers is None:
            remembers = self.config.use_mems_eval
        mask = kwargs.get("attention_mask")
        if memory and not remembers:
            return None  # HF reads a memory then that never grows
        if isinstance(memory, GenerationState):
            return self.__next(input_ids, mask, memory)
        if memory and mask is not None:
            return None
        parts = self.__parts(read)
        if parts is None:
            return None
        if memory:
            earlier = tuple(layer[:-2] for layer in memory)
            return first_step(parts, input_ids[:, -2:], None, remembers=True, memory=earlier)
        padding = None if mask is None or self.config.reuse_len else mask < 1
        if isinstance(read, ReadText) and read.step.parts is parts and not remembers:
            return read.next(input_ids, padding)
        return first_step(parts, input_ids, padding, remembers=bool(remembers))

    def __next(self, input_ids: Tensor, mask: Tensor | None, state: GenerationState) -> Step | None:
        if not state.parts.belong_to(self):
            raise ArgumentError(
                "mems is the state of another model's generate; its memory, as tensors, is "
                "xlnet_fast.to_mems(mems)"
            )
        if not state.parts.are_as_before():
            return None  # the memory as tensors, from which the next step begins anew
        tail = input_ids[:, -2:]
        padding = None if mask is None or self.config.reuse_len else mask[:, -tail.shape[1] :] < 1
        return state.next(tail, padding)

    def __parts(self, read: Any) -> Parts | None:
        if isinstance(read, ReadText) and read.step.parts.are_as_before():
            return read.step.parts
        return None if obstacle_to_steps(self, FastLMHeadModel) else Parts(self)

    def __as_theirs(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As HF, with the mask of all tokens that are seen, those of the memory included."""
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        kept = prepared["mems"][0].shape[0] if prepared.get("mems") else 0
        memory = generated_memory(args, kwargs)
        remembers = kept > 0 and isinstance(memory, Memory)
        if remembers:
            prepared["mems"] = memory.first(kept)  # HF's has forgotten its padding
        mask = kwargs.get("attention_mask")
        if mask is None or mask.dim() != 2 or "attention_mask" in prepared or self.config.reuse_len:
            return prepared  # reuse_len remembers other tokens than the last
        dummy = mask.new_ones(len(mask), 1)  # the token to predict, which follows all others
        mask = torch.cat([mask, dummy], dim=1)
        columns = prepared["input_ids"].shape[1]
        if not remembers and mask.shape[1] >= kept + columns:  # or the memory is of an earlier text
            columns += kept
        prepared["attention_mask"] = mask[:, -columns:]
        return prepared

    @wraps(XLNetLMHeadModel.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As HF; ``mems`` may be a :class:`Step` or a :class:`GenerationState`."""
        step = kwargs.get("mems")
        if type(step) is not Step:
            return super().forward(*args, **kwargs)
        kwargs.pop("mems")
        kwargs.pop("input_ids", None)
        if args or not self.__takes(kwargs):
            use_mems = {"use_mems": kwargs.pop("use_mems", None)}
            return super().forward(*args, **step.as_arguments(), **use_mems, **kwargs)
        rows, ran = run(step)
        logits = self.__logits(rows.transpose(0, 1))
        if step.remembers:
            state: Any = GenerationState(step, ran, self.__mems_of)
            return XLNetLMHeadModelOutput(logits=logits, mems=state)
        output = XLNetLMHeadModelOutput(logits=logits)
        output.__dict__[_READ] = ReadText.after(step, ran)
        return output

    def __takes(self, kwargs: dict[str, Any]) -> bool:
        """Whether a step gives all that its forward is asked for."""
        config = self.config
        wanted = {name for name, value in kwargs.items() if value is not None}
        return not (
            wanted - _OF_A_STEP
            or kwargs.get("output_attentions", config.output_attentions)
            or kwargs.get("output_hidden_states", config.output_hidden_states)
            or kwargs.get("return_dict") is False
            or torch.is_grad_enabled()
        )

    def __logits(self, hidden: Tensor) -> Tensor:
        """(B, 1, V) of (B, 1, H)."""
        head = self.lm_loss
        if is_plain_linear(head) and head.weight.dtype == hidden.dtype:
            return linear(hidden, head.weight, head.bias)
        logits: Tensor = head(hidden)
        return logits

    def __mems_of(self, step: Step) -> tuple[Tensor, ...]:
        """What Hugging Face's forward remembers of a step."""
        with torch.no_grad():
            output = self.transformer(**step.as_arguments(), use_mems=True, return_dict=True)
        return tuple(output.mems)

    @wraps(XLNetLMHeadModel._update_model_kwargs_for_generation)
    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """As HF; a run without memory keeps what it has read."""
        read = getattr(outputs, "__dict__", {}).get(_READ)
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        if read is not None:
            updated[_READ] = read
        return updated

    @staticmethod
    def _reorder_cache(mems: Any, beam_idx: Tensor) -> Any:
        """As HF."""
        if isinstance(mems, GenerationState):
            return mems.select(beam_idx)
        return XLNetLMHeadModel._reorder_cache(mems, beam_idx)


def _may_step(input_ids: Any, memory: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the arguments of ``prepare_inputs_for_generation`` are those of a plain run."""
    mask = kwargs.get("attention_mask")
    return (
        isinstance(input_ids, Tensor)
        and input_ids.dim() == 2
        and input_ids.shape[1] > 0
        and can_look(input_ids)
        and can_step(input_ids)
        and not isinstance(memory, Memory)
        and (mask is None or mask.shape == input_ids.shape)
        and not any(kwargs.get(name) for name in ("output_attentions", "output_hidden_states"))
        and not {name for name, x in kwargs.items() if x is not None} - _OF_A_STEP
    )
