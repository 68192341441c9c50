"""A long prompt read in segments, through the memory of those before.

What Hugging Face's ``generate(ids, mems=mems)`` does with the memory: it cuts the last two rows off
and feeds the last two of ``ids`` again, with a token to predict behind them. So it takes the memory
of all of ``ids``, which is what is made here, the last segment included. The two tokens come out as
they did in their segment, if it has both, layer by layer: each sees the rows of all tokens before
the two, which were computed with the two in sight, and the two themselves. What is predicted is
thus what the last segment with a token to predict behind it gives, on the memory of the segments
before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, ShapeError


def boundaries(tokens: int, segment_length: int) -> list[tuple[int, int]]:
    """Where the segments of a prompt begin and end.

    The first one is the short one, so that the last has all the length it may have, and a prompt
    that is padded on the left to stand beside a longer one is cut at the same of its tokens.

    Args:
        tokens: of the prompt, 1 or more. segment_length: 1 or more.
    """
    first = tokens % segment_length
    ends = range(first or segment_length, tokens + 1, segment_length)
    return [(max(0, end - segment_length), end) for end in ends]


@torch.no_grad()
def read_in_segments(
    model: Any, input_ids: Tensor, segment_length: int, attention_mask: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The memory of a prompt, for ``model.generate(input_ids, mems=memory)``.

    Before transformers 5.24 it is ``past_key_values=list(memory)``; ``mems`` is of a text before.

    Args:
        model: an ``XLNetLMHeadModel``, in evaluation.
        input_ids: (B, I) int64, I at least 2.
        segment_length: tokens of a segment, at least 2; a segment sees itself and the memory of
            all before.
        attention_mask: (B, I), 0 where there is padding, on the left; needs an accelerated model,
            for Hugging Face's memory forgets what was padding. To be given to ``generate`` as well.

    Returns:
        One (M, B, H) tensor for each layer, where M is I, or less where ``mem_len`` says so.

    Raises:
        ShapeError: the prompt is shorter than the two tokens that ``generate`` feeds again.
        ArgumentError: the segments are shorter than these two, or the model's ``reuse_len`` keeps
            the first tokens of a segment in place of the last.
    """
    if segment_length < 2:
        raise ArgumentError(
            f"segment_length is {segment_length}, expected at least the 2 tokens that generate "
            "feeds again"
        )
    tokens = input_ids.shape[1]
    if tokens < 2:
        raise ShapeError(f"input_ids has {tokens} tokens a text, expected at least 2")
    transformer = model.transformer
    if transformer.reuse_len:
        raise ArgumentError(
            f"the model's reuse_len is {transformer.reuse_len}, with which memory keeps the first "
            "tokens of a segment: set model.transformer.reuse_len to None to generate"
        )
    memory: tuple[Tensor, ...] | None = None
    for begin, end in boundaries(tokens, segment_length):
        kept = 0 if memory is None else memory[0].shape[0]
        seen = None if attention_mask is None else attention_mask[:, begin - kept : end]
        # Of the transformer alone: nobody looks at the words that would come next.
        output = transformer(
            input_ids[:, begin:end], attention_mask=seen, mems=memory, use_mems=True
        )
        memory = tuple(output.mems)
    assert memory is not None
    return memory


def repeated(memory: tuple[Tensor, ...], times: int) -> tuple[Tensor, ...]:
    """The memory with each text's so many times side by side, as ``generate`` repeats the prompts.

    Hugging Face repeats what is a tensor, which a tuple of them is not.
    """
    if times == 1:
        return memory
    return tuple(layer.repeat_interleave(times, dim=1) for layer in memory)
