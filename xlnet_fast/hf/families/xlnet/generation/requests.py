"""What ``generate`` is asked for, looked at before a token is made.

Hugging Face's ``generate`` is made for models that read a text from left to right with a cache of
keys and values. Of what it takes, XLNet's model ignores some and misreads some without a word;
here it is given, or refused in a sentence. ``docs/differences.md`` has the list.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.models.xlnet.modeling_xlnet import XLNetLMHeadModel

from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.families.xlnet.generation.arguments import (
    CACHES,
    MEMORIES,
    check_ids,
    check_mask,
    is_memory,
    rename_memory,
    repeated,
    set_segments,
    texts_of,
)
from xlnet_fast.hf.families.xlnet.generation.guidance import PromptGuidance, check_padding
from xlnet_fast.hf.families.xlnet.generation.options import (
    check_mode,
    check_options,
    options_of,
    refuse_paging,
    warn_once,
)
from xlnet_fast.hf.families.xlnet.inputs import check_mems
from xlnet_fast.hf.versions import MEMORY_NAME

_OF_A_STEP = {
    "perm_mask": "each step makes its own, in which a text does not see the token to predict",
    "target_mapping": "each step predicts the token that follows the text",
}
_RARE = frozenset({*_OF_A_STEP, *MEMORIES, *CACHES, "labels", "input_mask"})


class CheckedRequests(XLNetLMHeadModel):
    """HF's ``generate``, which gives what it was asked for, or says why not.

    No check looks at the values of a tensor, but of a mask that Hugging Face has just looked at,
    and of ``token_type_ids``.
    """

    @wraps(XLNetLMHeadModel.generate)
    def generate(
        self, inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As HF.

        Raises:
            ShapeError, ArgumentError: name the argument, what is wrong and what would be right.
        """
        if not isinstance(kwargs.get("custom_generate"), str):  # which has a reading of its own
            options = options_of(kwargs, generation_config, self.generation_config)
            check_options(options, kwargs)
            ids = inputs if inputs is not None else kwargs.get("input_ids")
            if ids is not None and kwargs.get("inputs_embeds") is None:
                check_ids(ids)
                if ids.dtype not in (torch.int32, torch.int64):
                    ids = ids.long()
                    if inputs is None:
                        kwargs["input_ids"] = ids
                    else:
                        inputs = ids
                self.__check_arguments(ids, kwargs, options)
        return super().generate(inputs, generation_config, *args, **kwargs)

    def __check_arguments(
        self, ids: Tensor, kwargs: dict[str, Any], options: dict[str, Any]
    ) -> None:
        """What goes with (B, I) ids; what can be mended is changed in ``kwargs``."""
        remembers = bool(kwargs.keys() & _RARE) and self.__check_rare(ids, kwargs, options)
        mask, batch = kwargs.get("attention_mask"), ids.shape[0]
        if mask is not None:
            check_mask("attention_mask", mask, ids, remembers)
            if mask.shape[0] != batch:
                kwargs["attention_mask"] = mask.expand(batch, -1)
        elif batch > 1:
            self.__warn_of_unknown_padding(options)
        if kwargs.get("token_type_ids") is not None:
            grows = self.__uses_memory(kwargs.get("use_mems")) and options["max_new_tokens"] != 1
            set_segments(kwargs, ids, remembers, grows)

    def __check_rare(self, ids: Tensor, kwargs: dict[str, Any], options: dict[str, Any]) -> bool:
        """What few calls have; True if it is memory."""
        for name, why in _OF_A_STEP.items():
            if kwargs.get(name) is not None:
                raise ArgumentError(f"generate() takes no {name}, as {why}: leave it out")
        if kwargs.get("labels") is not None:
            del kwargs["labels"]
            warn_once(
                "labels", "generate() reads no labels, and computes no loss: ignored", calls=2
            )
        rename_memory(kwargs)
        given = [name for name in MEMORIES if is_memory(kwargs.get(name))]
        for name in given:
            self.__check_memory(name, ids, kwargs, options)
        remembers = any(kwargs.get(name) is not None for name in given)
        if kwargs.get("input_mask") is not None:
            if kwargs.get("attention_mask") is not None:
                raise ArgumentError(
                    "give one of attention_mask (1 for real tokens) and input_mask (1 for padding)"
                )
            check_mask("input_mask", kwargs["input_mask"], ids, remembers)
            kwargs["attention_mask"] = (kwargs.pop("input_mask") <= 0).long()
        return remembers

    def __check_memory(
        self, name: str, ids: Tensor, kwargs: dict[str, Any], options: dict[str, Any]
    ) -> None:
        """``mems`` as a list with one (M, B, H) tensor a layer, for each beam or for each text."""
        memory = kwargs[name]
        if isinstance(memory, Tensor) or type(memory) is tuple:
            memory = kwargs[name] = list(memory)  # HF takes a tuple for a cache before 5.24
        if not isinstance(memory, (tuple, list)) or not memory:
            return  # a state of an earlier call, which is not to be made tensors of
        if all(layer is None for layer in memory):
            kwargs[name] = None
            return
        beams = max(options["num_beams"] or 1, options["num_return_sequences"] or 1)
        rows = len(ids)
        first = memory[0]
        if isinstance(first, Tensor) and first.dim() == 3 and first.shape[1] == rows * beams:
            rows *= beams
        hidden = torch.empty(0, rows, self.config.d_model, device=ids.device)
        _, length = check_mems(memory, self.config.n_layer, hidden)
        if name != MEMORY_NAME:
            return  # of an earlier text
        tokens, mem_len = ids.shape[1], self.config.mem_len
        if not self.config.reuse_len and length < min(tokens, mem_len or tokens):
            raise ArgumentError(
                f"{name} remembers {length} tokens and input_ids has {tokens}, of which generate() "
                f"reads the last two: the memory must be of all of input_ids, at least {tokens} "
                "tokens. Give input_ids alone, those of the earlier text included"
            )
        if length == tokens:
            return  # of input_ids, as far as lengths tell
        warn_once(
            f"{name} of a prompt",
            f"generate() reads the last two of input_ids and takes {name} for what came before "
            "them, the last two rows of it left out, as Hugging Face's does: right where the "
            "memory is of the same input_ids, wrong where it is of a text before them. There, give "
            "the earlier text's tokens in input_ids",
            calls=3,
        )

    def __uses_memory(self, use_mems: bool | None) -> bool:
        if use_mems is None:
            use_mems = self.config.use_mems_train if self.training else self.config.use_mems_eval
        return bool(use_mems)

    def __warn_of_unknown_padding(self, options: dict[str, Any]) -> None:
        pad, eos = options["pad_token_id"], options["eos_token_id"]
        if pad is None or (not isinstance(eos, Tensor) and pad in _listed(eos)):
            warn_once(
                "padding",
                "several texts, no attention_mask, and no pad_token_id that is not the end of a "
                "text too: padding is read as text. Give attention_mask if there is any",
                calls=2,
            )

    def generate_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not for XLNet.

        Raises:
            ArgumentError: always.
        """
        refuse_paging("generate_batch()")

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not for XLNet.

        Raises:
            ArgumentError: always.
        """
        refuse_paging("continuous batching")

    def _expand_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """As HF, and memory with them; HF has just found, or made, the mask."""
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.numel():
            check_padding(mask, "attention_mask, made of pad_token_id if it was not given,")
        ids, expanded = super()._expand_inputs_for_generation(*args, **kwargs)
        size = kwargs.get("expand_size", *args[:1])
        for name in MEMORIES:
            memory = expanded.get(name)
            if memory and is_memory(memory) and texts_of(memory) * (size or 1) == len(ids):
                expanded[name] = repeated(memory, size or 1, ids.device)
        return ids, expanded

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> Any:
        """As HF, with guidance by XLNet's own next token; HF has just completed the config."""
        config = kwargs.get("generation_config", *args[:1])
        use_mems = (kwargs.get("model_kwargs") or {}).get("use_mems")
        check_mode(config, self.__uses_memory(use_mems))
        processors = super()._get_logits_processor(*args, **kwargs)
        for place, theirs in enumerate(processors):
            guides = type(theirs) is UnbatchedClassifierFreeGuidanceLogitsProcessor
            if not guides or not isinstance(theirs.model, XLNetLMHeadModel):
                continue
            if config.num_beams > 1 and self.__uses_memory(use_mems):
                raise ArgumentError(
                    "guidance_scale with num_beams: the memory of the second prompt does not "
                    "follow the beams. Give use_mems=False, which reads it anew at each step"
                )
            second = theirs.unconditional_context
            processors[place] = PromptGuidance(
                theirs.guidance_scale,
                theirs.model,
                kwargs.get("input_ids_seq_length", *args[1:2]),
                second["input_ids"],
                second["attention_mask"],
                use_mems,
                ahead=config.prompt_lookup_num_tokens or 0,
            )
        return processors


def _listed(tokens: Any) -> Any:
    return tokens if isinstance(tokens, (list, tuple)) else (tokens,)
