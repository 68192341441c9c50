"""What ``pretrain --arch transfo-xl`` is told besides; only light imports, as in the options."""

from __future__ import annotations

from dataclasses import dataclass

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.options import TRANSFO_XL, TrainingOptions, check_ranges, option

# Width, layers, heads, inner width; base and large are the original's for WikiText-103.
SIZES = {
    "tiny": (128, 4, 4, 512),
    "small": (256, 6, 4, 1024),
    "base": (410, 16, 10, 2100),
    "large": (1024, 18, 16, 4096),
}
INITIAL_MEMORY = ("empty", "zeros")


@dataclass(frozen=True, kw_only=True)
class TransfoXLOptions(TrainingOptions):
    """The options that Transformer-XL alone has; each one's help is in its metadata.

    Where one is None, a new model has the default that is shown, and one of ``--model`` its own.
    """

    d_head: int | None = option(TRANSFO_XL, "Width of a head", None, "--d-model / --n-head")
    d_embed: int | None = option(TRANSFO_XL, "Width of the embeddings", None, "--d-model")
    cutoffs: str | None = option(
        TRANSFO_XL, "Ids that begin rarer clusters; 0: none", None, "none to 50,000 ids"
    )
    div_val: int | None = option(TRANSFO_XL, "Divides the width cluster by cluster", None, "1")
    dropatt: float | None = option(TRANSFO_XL, "Dropout of the attention", None, "--model's, or 0")
    clamp_len: int | None = option(
        TRANSFO_XL, "Longest distance told apart; 0: any", None, "--model's, or 0"
    )
    same_length: bool | None = option(
        TRANSFO_XL, "A token sees --mem-len tokens, itself too", None, "--model's, or off"
    )
    initial_memory: str | None = option(
        TRANSFO_XL, "empty, or Hugging Face's zeros", None, "--model's; of a new one: empty"
    )
    shuffle: bool = option(TRANSFO_XL, "Documents in another order every epoch", False)


# Those that say what a new model is, so that a given one has them already.
OF_A_NEW_MODEL = ("d_head", "d_embed", "cutoffs", "div_val")
RANGES: dict[str, tuple[float, float | None]] = {
    "d_head": (1, None), "d_embed": (1, None), "div_val": (1, None), "dropatt": (0, 0.9),
    "clamp_len": (0, None),
}  # fmt: skip


def check_transfo_xl(options: TransfoXLOptions) -> None:
    """Check the options of Transformer-XL.

    Raises:
        ArgumentError: for the first value that cannot be used.
    """
    check_ranges(options, RANGES)
    if options.initial_memory not in (None, *INITIAL_MEMORY):
        raise ArgumentError(
            f"initial_memory must be one of {', '.join(INITIAL_MEMORY)}, "
            f"got {options.initial_memory!r}"
        )
    parse_cutoffs(options.cutoffs or "")


def parse_cutoffs(text: str) -> tuple[int, ...]:
    """The numbers of ``--cutoffs``; none of an empty text and of "0".

    Raises:
        ArgumentError: not whole numbers that grow.
    """
    try:
        numbers = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        numbers = (-1,)
    if numbers == (0,):
        return ()
    if any(number < 1 for number in numbers) or list(numbers) != sorted(set(numbers)):
        raise ArgumentError(
            f"cutoffs is {text!r}, expected whole numbers above 0 that grow, such as 20000,40000"
        )
    return numbers
