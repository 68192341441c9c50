"""Options of ``generate``: refused where tokens would be wrong, a warning where nothing happens."""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

from transformers import GenerationConfig

from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.families.xlnet.generation.arguments import CACHES, is_memory
from xlnet_fast.hf.versions import MEMORY_NAME

_TOKENS = 20
"""How many Hugging Face makes where no length is said."""
_UNSAID = (None, GenerationConfig().max_length)
_WARNED_OF: set[str] = set()

_REFUSED = {
    "prefill_chunk_size": "XLNet reads a prompt at once: leave it out",
    "use_mtp": "XLNet has no heads for several tokens: leave it out",
    "assistant_early_exit": "no layer of XLNet but the last predicts tokens: leave it out",
    "token_healing": "it reads the prompts anew with a tokenizer, and XLNet's ends them with <sep> "
    "and <cls>: cut the last token off the prompt instead",
}
_OF_CAUSAL_MODELS = {
    "DOLA_GENERATION": "dola_layers contrasts the hidden states of layers, of which XLNet has two "
    "streams, and takes those that have not seen the token to predict",
    "CONTRASTIVE_SEARCH": "penalty_alpha has single tokens read after a cache of keys and values, "
    "which XLNet has not",
}
_OF_BEAMS = {"GROUP_BEAM_SEARCH": "num_beam_groups", "CONSTRAINED_BEAM_SEARCH": "constrained beams"}
_OPTIONS = (
    *_REFUSED, "cache_implementation", "compile_config", "max_length", "max_new_tokens",
    "guidance_scale", "num_beams", "num_return_sequences", "speculation_type", "use_cache",
    "pad_token_id", "eos_token_id",
)  # fmt: skip


def options_of(kwargs: dict[str, Any], *configs: Any) -> dict[str, Any]:
    """What was asked for, by name, None where it was not: an argument counts before a config."""
    found = dict.fromkeys(_OPTIONS)
    for config in reversed(configs):
        if config is not None:
            known = vars(config)
            found.update({name: known[name] for name in _OPTIONS if known.get(name) is not None})
    found.update({name: kwargs[name] for name in kwargs.keys() & found.keys()})
    return found


def check_options(options: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """Refuse what makes other tokens, warn of what changes none, say the length where it is not."""
    cache = options["cache_implementation"]
    if cache == "paged":
        refuse_paging("cache_implementation='paged'")
    for name, why in _REFUSED.items():
        if options[name] is not None and options[name] is not False:
            raise ArgumentError(f"generate() takes no {name}, as {why}")
    for name in CACHES:
        _check_cache(name, kwargs.get(name))
    if cache is not None:
        warn_once(
            "cache_implementation",
            f"cache_implementation={cache!r} is ignored, as Hugging Face ignores it: XLNet has a "
            "memory in the place of a cache (use_mems, config.mem_len)",
        )
    if options["compile_config"] is not None:
        warn_once(
            "compile_config",
            "compile_config is ignored, as Hugging Face ignores it: it compiles models with a "
            "static cache, which XLNet has not",
        )
    if options["use_cache"] is False:
        warn_once(
            "use_cache",
            "use_cache=False is ignored, as Hugging Face ignores it: use_mems=False is what lets "
            "XLNet read all tokens anew at each step",
        )
    if kwargs.get("negative_prompt_ids") is not None and options["guidance_scale"] in (None, 1):
        warn_once(
            "negative_prompt_ids",
            "negative_prompt_ids is ignored, as Hugging Face ignores it without a guidance_scale "
            "other than 1",
        )
    if options["speculation_type"] is not None and kwargs.get("assistant_model") is None:
        warn_once(
            "speculation_type",
            "speculation_type is ignored, as Hugging Face ignores it without an assistant_model",
        )
    length = kwargs.get("max_length")
    if options["max_new_tokens"] is None and length is None and options["max_length"] in _UNSAID:
        # HF's default length is cut to max_position_embeddings, which XLNet's config says is -1.
        kwargs["max_new_tokens"] = _TOKENS
        warn_once(
            "max_new_tokens",
            f"no max_new_tokens and no max_length: {_TOKENS} tokens, Hugging Face's default",
        )


def _check_cache(name: str, cache: Any) -> None:
    """Refuse a cache of another text, which XLNet would not see; warn of an empty one."""
    if cache is None or is_memory(cache):
        return
    length = getattr(cache, "get_seq_length", None)
    if length is None:
        raise ArgumentError(
            f"{name} is a {type(cache).__name__}, but XLNet remembers in mems: a tuple of one "
            "(M, B, H) tensor for each layer"
        )
    if length() > 0:
        raise ArgumentError(
            f"{name} is a cache that holds {int(length())} tokens, which XLNet would not see: give "
            "those tokens in input_ids, or XLNet's memory of them as mems"
        )
    warn_once(
        "cache",
        f"{name} is ignored, as Hugging Face ignores it: XLNet has a memory in the place of a "
        "cache (use_mems, config.mem_len), and the object stays empty",
        calls=2,
    )


def check_mode(config: Any, uses_memory: bool) -> None:
    """Refuse what code from the hub would do wrong with XLNet: HF itself has it no more.

    Args:
        config: the generation config, complete. uses_memory: from step to step.

    Raises:
        ArgumentError: it would.
    """
    mode = config.get_generation_mode().name
    if mode in _OF_CAUSAL_MODELS:
        raise ArgumentError(f"{_OF_CAUSAL_MODELS[mode]}: leave it out")
    if mode in _OF_BEAMS and uses_memory and MEMORY_NAME == "mems":
        raise ArgumentError(
            f"{_OF_BEAMS[mode]}: its code on the hub reorders past_key_values and not mems, so "
            "that beams would read each other's memory. Give use_mems=False"
        )


def refuse_paging(what: str) -> NoReturn:
    raise ArgumentError(
        f"{what}: Hugging Face's continuous batching calls models with a paged cache, which XLNet "
        "has not, and would get wrong tokens. Give generate() the prompts as a batch, padded on "
        "the left, with attention_mask"
    )


def warn_once(about: str, message: str, *, calls: int = 1) -> None:
    """Once for each thing, at the line that called ``generate``, so many calls above this one's."""
    if about not in _WARNED_OF:
        _WARNED_OF.add(about)
        warnings.warn(message, stacklevel=3 + calls)
