"""The class that an accelerated language model takes on."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LogitsProcessorList
from transformers.models.xlnet.modeling_xlnet import XLNetLMHeadModel, XLNetLMHeadModelOutput

from xlnet_fast.errors import ArgumentError, PerformanceWarning, ShapeError
from xlnet_fast.hf.families.xlnet.generation.ahead import can_run_ahead, run_ahead
from xlnet_fast.hf.families.xlnet.generation.drafts import drafts_for
from xlnet_fast.hf.families.xlnet.generation.parts import Parts, can_step, obstacle_to_steps
from xlnet_fast.hf.families.xlnet.generation.recorded import run_recorded
from xlnet_fast.hf.families.xlnet.generation.requests import CheckedRequests
from xlnet_fast.hf.families.xlnet.generation.state import (
    GenerationState,
    ReadText,
    begun_from,
    first_step,
)
from xlnet_fast.hf.families.xlnet.generation.step import Step
from xlnet_fast.hf.families.xlnet.memory import Memory
from xlnet_fast.hf.options import Options
from xlnet_fast.hf.versions import (
    generated_memory,
    is_of_earlier_text,
    with_generated_memory,
)
from xlnet_fast.nn.linear import is_plain_linear
from xlnet_fast.ops.linear import linear
from xlnet_fast.transforms import can_look

_READ = "xlnet_fast_read_text"
"""The name under which a run without memory hands on what it has read."""
_DRAFTS = "xlnet_fast_drafts"
"""The name under which a run hands on where its drafts come from."""
_ALONE = "xlnet_fast_alone"
"""The name under which beam search says that it keeps no state but the last."""
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
        read, drafts = kwargs.pop(_READ, None), kwargs.pop(_DRAFTS, None)
        alone = kwargs.pop(_ALONE, False)
        step = self.__step(input_ids, args, kwargs, read)
        if step is not None:
            if drafts is not None and step.frozen.slots is not None and step.done is None:
                step = replace(step, drafts=tuple(drafts.after(input_ids)))
            if alone and not step.alone and step.remembers and not step.frozen.length:
                step = replace(step, alone=True)
            use_mems = kwargs.get("use_mems", *args[1:2])
            return {"input_ids": step.ids, "mems": step, "use_mems": use_mems}
        memory = generated_memory(args, kwargs)
        if isinstance(memory, GenerationState):
            earlier = self.__next_step(input_ids, kwargs.get("attention_mask"), memory).frozen
            rows = _with_rows_to_cut(earlier.inputs(), memory)
            args, kwargs = with_generated_memory(args, kwargs, rows)
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
        if memory and not (isinstance(memory, GenerationState) or _are_layers(memory)):
            return None  # an error of HF's
        if memory and (not remembers or is_of_earlier_text(args, kwargs)):
            return None  # HF reads a memory then that never grows, or all of the ids behind it
        if isinstance(memory, GenerationState):
            return self.__next(input_ids, mask, memory)
        parts = self.__parts(read)
        if parts is None:
            return None
        padding = None if mask is None or self.config.reuse_len else mask < 1
        if memory:
            earlier, tail = tuple(layer[:-2] for layer in memory), input_ids[:, -2:]
            return begun_from(parts, tail, padding, earlier, input_ids.shape[1] - 1)
        if isinstance(read, ReadText) and read.step.parts is parts and not remembers:
            return read.next(input_ids, padding)
        return first_step(parts, input_ids, padding, remembers=bool(remembers))

    def __next(self, input_ids: Tensor, mask: Tensor | None, state: GenerationState) -> Step | None:
        step = self.__next_step(input_ids, mask, state)
        if not state.parts.are_as_before():
            if obstacle_to_steps(self, FastLMHeadModel):
                return None
            return step.renewed(Parts(self))
        return step if state.ahead is None else replace(step, done=state.foreseen(step.ids))

    def __next_step(self, input_ids: Tensor, mask: Tensor | None, state: GenerationState) -> Step:
        """What follows a state, whatever became of the model meanwhile."""
        if not state.parts.belong_to(self):
            raise ArgumentError(
                "mems is the state of another model's generate; its memory, as tensors, is "
                "xlnet_fast.to_mems(mems)"
            )
        if input_ids.shape[1] > state.told + 1:
            raise ArgumentError(
                f"mems has read {state.told} tokens and input_ids has {input_ids.shape[1]}, of "
                "which a step reads the last two: those between would be skipped. Give input_ids "
                "alone, without mems"
            )
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
        given = kwargs.pop("input_ids", step.ids)
        if given is not step.ids:
            step = _with_ids(step, given)
        if args or not self.__takes(kwargs):
            use_mems = {"use_mems": kwargs.pop("use_mems", None)}
            return super().forward(*args, **step.as_arguments(), **use_mems, **kwargs)
        if step.done is not None:
            return XLNetLMHeadModelOutput(logits=step.done.logits, mems=step.done.state)
        if step.drafts:
            logits, state = run_ahead(step, step.drafts, self.__logits, self.__mems_of)
            return XLNetLMHeadModelOutput(logits=logits, mems=state)
        logits, ran = run_recorded(step, self.__logits)
        if step.remembers:
            state = GenerationState(step, ran, self.__mems_of)
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
        """(rows, 1, V) of (rows, 1, H)."""
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

    def _assisted_decoding(
        self,
        input_ids: Tensor,
        *,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        assistant_model: Any = None,
        **kwargs: Any,
    ) -> Any:
        """HF's plain decoding, whose steps are computed several at once where drafts hold.

        The tokens are those of the same ``generate`` without drafts, sampled ones too.

        Raises:
            ArgumentError: more than one text, no memory, or drafts that XLNet has not.
        """
        tokenizers = {name: kwargs.pop(name, None) for name in ("tokenizer", "assistant_tokenizer")}
        kwargs.pop("inputs_tensor", None)
        remembers = kwargs.get("use_mems")
        if len(input_ids) != 1:
            raise ArgumentError(
                f"drafts are for one text at a time, but input_ids has {len(input_ids)}"
            )
        if not (self.config.use_mems_eval if remembers is None else remembers):
            raise ArgumentError("drafts need the memory: leave use_mems, or give use_mems=True")
        why = obstacle_to_steps(self, FastLMHeadModel)
        parts = None if why else Parts(self)
        if parts is None or not can_run_ahead(parts):
            why = why or "config.mem_len below 2 or config.reuse_len below 3 forgets them"
            warnings.warn(
                f"drafts are not used, the tokens are the same without: {why}",
                PerformanceWarning,
                stacklevel=4,
            )
        else:
            kwargs[_DRAFTS] = drafts_for(
                self, generation_config, assistant_model, input_ids,
                logits_processor=LogitsProcessorList(),  # those of the run may count their calls
                target_tokenizer=tokenizers["tokenizer"],
                assistant_tokenizer=tokenizers["assistant_tokenizer"],
            )  # fmt: skip
        return self._sample(
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            synced_gpus=synced_gpus,
            streamer=streamer,
            **kwargs,
        )

    def _beam_search(self, *args: Any, **kwargs: Any) -> Any:
        """As HF, which keeps no state but the last: its rows are moved in place."""
        return super()._beam_search(*args, **kwargs, **{_ALONE: True})

    @staticmethod
    def _reorder_cache(mems: Any, beam_idx: Tensor) -> Any:
        """As HF."""
        if isinstance(mems, GenerationState):
            return mems.select(beam_idx)
        return XLNetLMHeadModel._reorder_cache(mems, beam_idx)


def _with_rows_to_cut(rows: tuple[Tensor, ...], state: GenerationState) -> tuple[Tensor, ...]:
    """Frozen rows (M, B, H) of each layer, and two more, which HF's ``generate`` cuts off."""
    if not rows:
        parts = state.parts
        empty = torch.empty(
            0, state.batch, parts.hidden_size, dtype=parts.dtype, device=parts.device
        )
        rows = (empty,) * len(parts.layers)
    return tuple(F.pad(layer, (0, 0, 0, 0, 0, 2)) for layer in rows)


def _with_ids(step: Step, ids: Any) -> Step:
    """The step with other tokens than it was prepared with."""
    if not isinstance(ids, Tensor) or ids.shape != step.ids.shape:
        what = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ShapeError(
            f"input_ids is {what}, expected {tuple(step.ids.shape)} as prepared: an accelerated "
            "model's step has no dummy token behind the last"
        )
    return replace(step, ids=ids, drafts=(), done=None)


def _are_layers(memory: Any) -> bool:
    return isinstance(memory, (tuple, list)) and all(isinstance(x, Tensor) for x in memory)


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
