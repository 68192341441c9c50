"""Which versions of transformers are supported, and what they differ in: asked here, nowhere else.

| version | what changed for XLNet |
|---|---|
| 5.0 | no `head_mask` any more; before, an argument by position ahead of the newer ones |
| 5.0 | `config.torchscript` no longer asks for tuples |
| 5.4 | `relative_positional_encoding` takes the device |
| 5.17 | speech encoders have the shape that their families know |
| 5.18 | a padded frame of Parakeet attends to all frames alike, before to nothing |
| 5.24 | `generate` keeps the memory as `mems`, before as `past_key_values` |
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import transformers

from xlnet_fast.builder import recipe
from xlnet_fast.errors import UnsupportedVersion

if TYPE_CHECKING:
    import torch

OLDEST = (4, 57)
NEWEST = (5, 24)
"""The oldest and the newest that the tests pass with."""


def parsed(version: str) -> tuple[int, int]:
    """Major and minor number of "5.24.0" or "5.25.0.dev0"."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def check(version: str) -> None:
    """Warn of a version newer than any that was tried, once; `XLNET_FAST_NO_WARN=1` silences it.

    Raises:
        UnsupportedVersion: it is older than the oldest that works.
    """
    oldest, newest = (".".join(map(str, end)) for end in (OLDEST, NEWEST))
    if parsed(version) < OLDEST:
        raise UnsupportedVersion(
            f"transformers {version} is too old for xlnet_fast, which is tested with {oldest} to "
            f"{newest}: pip install 'transformers>={oldest}'"
        )
    if parsed(version) > NEWEST and not recipe.is_set("XLNET_FAST_NO_WARN"):
        warnings.warn(
            f"transformers {version} is newer than what xlnet_fast was tested with ({oldest} to "
            f"{newest}). `xlnet-fast check` compares every result with Hugging Face's own code; "
            "XLNET_FAST_NO_WARN=1 silences this",
            stacklevel=2,
        )


check(transformers.__version__)  # before any module of hf imports what an old version lacks

_VERSION = parsed(transformers.__version__)
HAS_HEAD_MASK = _VERSION < (5, 0)
"""Whether Hugging Face's own classes take `head_mask`, the argument before `inputs_embeds`."""
TABLE_OPTIONS: Callable[[torch.device], dict[str, Any]] = (
    (lambda device: {"device": device}) if _VERSION >= (5, 4) else (lambda device: {})
)
"""Further arguments of `relative_positional_encoding`."""

MEMORY_NAME = "mems" if _VERSION >= (5, 24) else "past_key_values"
"""The argument of `generate` for a memory that the prompt's own tokens are in, which goes on from
its last two: the name under which it keeps its own. Before 5.24, `mems` is of an earlier text.
"""

SPEECH = (5, 17)
"""The oldest with which the families other than XLNet are tested."""


PARAKEETS_BLIND_ARE_ZERO = _VERSION < (5, 18)
"""Whether a padded frame of Parakeet attends to nothing, and not to all frames alike."""


def why_no_speech() -> str | None:
    """Why these families keep Hugging Face's code with this version; None if they need not."""
    if _VERSION >= SPEECH:
        return None
    oldest = ".".join(map(str, SPEECH))
    return f"transformers {transformers.__version__} is older than {oldest}, the oldest tried"


def recorded_outputs() -> Collection[str]:
    """What the model that is running now collects of its layers, such as "attentions"."""
    if _VERSION < SPEECH:
        return ()
    from transformers.utils import output_capturing

    return output_capturing._active_collector.get() or ()


Forward = TypeVar("Forward", bound=Callable[..., Any])


def with_head_mask_at(place: int) -> Callable[[Forward], Forward]:
    """A forward that takes `head_mask` by name; where Hugging Face's has it, by position as well.

    Args:
        place: its number in Hugging Face's signature, without `self`; later ones move up.
    """

    def decorate(forward: Forward) -> Forward:
        if not HAS_HEAD_MASK:
            return forward

        @wraps(forward)
        def in_their_order(self: Any, *args: Any, **kwargs: Any) -> Any:
            if len(args) > place:
                kwargs = {"head_mask": args[place], **kwargs}
                args = args[:place] + args[place + 1 :]
            return forward(self, *args, **kwargs)

        return in_their_order  # type: ignore[return-value]

    return decorate


def returns_dict(config: Any) -> bool:
    """What a config says of outputs: True for a `ModelOutput`, False for a tuple."""
    return config.return_dict and not (HAS_HEAD_MASK and config.torchscript)


def generated_memory(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The memory among the arguments of `prepare_inputs_for_generation` after the ids, or None."""
    if _VERSION >= (5, 24):
        return kwargs.get("mems")
    memory = kwargs.get("past_key_values", *args[:1])
    return memory or kwargs.get("mems")  # what the user began with


def is_of_earlier_text(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the memory is of a text before the ids, as `mems` is before 5.24, not of the ids."""
    return _VERSION < (5, 24) and not kwargs.get("past_key_values", *args[:1])


def with_generated_memory(
    args: tuple[Any, ...], kwargs: dict[str, Any], memory: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with another memory."""
    if _VERSION >= (5, 24):
        return args, {**kwargs, "mems": memory}
    if args:
        return (memory, *args[1:]), kwargs
    return args, {**kwargs, "past_key_values": memory}
