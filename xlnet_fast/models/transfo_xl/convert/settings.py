"""What the shapes of weights do not tell: from the checkpoint, a JSON file or the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlnet_fast.errors import ArgumentError

NEEDED = ("pre_lnorm", "same_length", "mem_len", "clamp_len")
"""What changes the results, and has no value that could be taken for granted."""
_OF_A_MODEL = (
    "vocab_size", "cutoffs", "d_model", "d_embed", "n_head", "d_head", "d_inner", "n_layer",
    "div_val", "untie_r", "tie_word_embeddings", "tie_projs", "pre_lnorm", "attn_type",
    "sample_softmax",
)  # fmt: skip
_ALIASES = {"n_token": "vocab_size", "tied": "tie_word_embeddings"}
_ALIASES |= {"tie_weight": "tie_word_embeddings"}
_WHOLE = ("mem_len", "clamp_len", "div_val", "attn_type", "sample_softmax", "ext_len")
_SWITCHES = ("same_length", "pre_lnorm", "tie_word_embeddings", "untie_r")
_SHARES = ("dropout", "dropatt")


def normal(told: Mapping[str, Any]) -> dict[str, Any]:
    """The same under the names of the config, without what says nothing.

    Raises:
        ArgumentError: a value is of a type that cannot be meant.
    """
    found = {_ALIASES.get(name, name): value for name, value in told.items() if value is not None}
    d_embed = found.get("d_embed")
    if isinstance(d_embed, int) and d_embed < 0:
        del found["d_embed"]  # the original's word for that of the model
    for names, kinds, wanted in (
        (_WHOLE, int, "a whole number"),
        (_SWITCHES, bool, "true or false"),
        (_SHARES, (int, float), "a number"),
    ):
        for name in names:
            value = found.get(name)
            is_wrong_switch = isinstance(value, bool) and kinds is not bool
            if value is not None and (not isinstance(value, kinds) or is_wrong_switch):
                raise ArgumentError(f"{name} is {value!r}, expected {wanted}")
    for name in ("cutoffs", "tie_projs"):
        if name in found and not isinstance(found[name], (list, tuple)):
            raise ArgumentError(f"{name} is {found[name]!r}, expected a list")
    return found


def merged(told: Mapping[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the checkpoint tells, and what was given beside it.

    How a model is used may be chosen otherwise than its training did, such as ``mem_len``; of the
    model itself both must agree.

    Args:
        where: what tells it, for the message, such as "config.json".

    Raises:
        ArgumentError: both tell a thing, and differ.
    """
    told, given = normal(told), normal(given)
    for name, value in given.items():
        before = told.get(name, value)
        if isinstance(value, (list, tuple)) and isinstance(before, (list, tuple)):
            value, before = list(value), list(before)
        if name in _OF_A_MODEL and before != value:
            raise ArgumentError(f"{name} is {value!r} as given and {before!r} by {where}")
    return {**told, **given}


def needed(told: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments of a config that no shape tells.

    Args:
        where: what does not tell them, for the message.

    Raises:
        ArgumentError: names those that are missing.
    """
    missing = [name for name in NEEDED if name not in told]
    if missing:
        options = " ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise ArgumentError(
            f"{where} tells nothing of {', '.join(missing)}: give {options}, or --args FILE with "
            "the training's arguments as JSON"
        )
    return {
        **{name: told[name] for name in NEEDED},
        "dropout": float(told.get("dropout", 0.0)),
        "dropatt": float(told.get("dropatt", 0.0)),
    }
