"""A checkpoint of any kind in the names of Hugging Face: made whole, and checked."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl.convert.shapes import BODY, HEAD, Shapes, Weights, shapes_of

LANGUAGE_MODEL = "TransfoXLLMHeadModel"
CLASSIFIER = "TransfoXLForSequenceClassification"
BARE = "TransfoXLModel"
FREQUENCIES = f"{BODY}pos_emb.inv_freq"
SCORE = "score.weight"
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Of weights."""


@dataclass
class Found:
    """What is to be written.

    Attributes:
        weights: by Hugging Face's names, all of them, tied ones as the same tensor.
        config: arguments of ``TransfoXLConfig``. architecture: class of the model.
        symbols: the vocabulary's words in order, or None. tokenizer: arguments of the tokenizer
            that reads text as it was read in training.
        flipped: the weights whose order was turned round. notes: what else was changed, sentences.
    """

    weights: Weights
    config: dict[str, Any]
    architecture: str
    symbols: list[str] | None = None
    tokenizer: dict[str, Any] = field(default_factory=dict)
    flipped: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def architecture_of(weights: Weights) -> str:
    """The class of model that has these weights."""
    if any(name.startswith(HEAD) for name in weights):
        return LANGUAGE_MODEL
    return CLASSIFIER if SCORE in weights else BARE


def ties_of(
    weights: Weights, sizes: Mapping[str, Any], told: Mapping[str, Any], what: str, where: str
) -> dict[str, Any]:
    """Whether the softmax has the embeddings' words, and which of their projections.

    A weight that is not there is the embeddings', and one that equals them is too, unless it is
    told otherwise.

    Returns:
        ``tie_word_embeddings`` and ``tie_projs`` of the config.

    Raises:
        ArgumentError: it is told otherwise than the weights are.
    """
    tables = 1 if sizes["div_val"] == 1 else len(sizes["cutoffs"]) + 1
    words = [
        _is_tied(weights, f"{HEAD}out_layers.{number}.weight", table(number))
        for number in range(tables)
    ]
    known = told.get("tie_word_embeddings")
    _agree("the words of the softmax", words, [known] * tables, what, where)
    count = len(sizes["cutoffs"]) + 1
    told_projections = told.get("tie_projs") or [None] * count
    if len(told_projections) != count:
        raise ArgumentError(
            f"tie_projs has {len(told_projections)} entries by {where}, expected {count}, one for "
            "each cluster"
        )
    if sizes["div_val"] == 1 and sizes["d_model"] == sizes["d_embed"]:
        tied = [bool(one) for one in told_projections]  # there are none
    else:
        projections = [
            _is_tied(weights, f"{HEAD}out_projs.{number}", projection(number, sizes))
            for number in range(count)
        ]
        _agree("projections of the softmax", projections, told_projections, what, where)
        tied = [
            found if one is None else bool(one)
            for found, one in zip(projections, told_projections, strict=True)
        ]
    return {"tie_word_embeddings": all(words) if known is None else known, "tie_projs": tied}


def table(number: int) -> str:
    """Name of a table of the embeddings."""
    return f"{BODY}word_emb.emb_layers.{number}.weight"


def projection(number: int, sizes: Mapping[str, Any]) -> str:
    """Name of the embeddings' projection that cluster ``number`` has, or may share."""
    return f"{BODY}word_emb.emb_projs.{0 if sizes['div_val'] == 1 else number}"


def _is_tied(weights: Weights, own: str, other: str) -> bool:
    if own not in weights or other not in weights:
        return own not in weights
    return torch.equal(weights[own], weights[other])


def _agree(name: str, found: list[bool], told: list[bool | None], what: str, where: str) -> None:
    for is_tied, is_told in zip(found, told, strict=True):
        if is_told and not is_tied:
            raise ArgumentError(
                f"{name} are those of the embeddings by {where}, and have other values in {what}: "
                "correct what says that they are tied"
            )


def made_whole(
    weights: Weights, config: Mapping[str, Any], architecture: str, what: str
) -> Weights:
    """All weights of a model, those that were left out because they are another's included.

    In one dtype, the widest of what is there.

    Raises:
        ArgumentError: weights are missing, unknown, of other shapes or not finite.
    """
    has_head = architecture == LANGUAGE_MODEL
    shapes = shapes_of(config, has_head)
    if architecture == CLASSIFIER and SCORE in weights:
        shapes[SCORE] = (weights[SCORE].shape[0], config["d_model"])
    whole = dict(weights)
    for name, other in shared_names(config, has_head).items():
        if name in shapes and name not in whole and other in whole:
            whole[name] = whole[other]
    if FREQUENCIES not in whole:
        whole[FREQUENCIES] = frequencies(config["d_model"])
    _check_names(whole, shapes, what)
    for name, shape in shapes.items():
        _check_values(name, whole[name], shape, what)
    return _in_one_dtype(whole)


def shared_names(config: Mapping[str, Any], has_head: bool) -> dict[str, str]:
    """Names of weights that are another's, with its name."""
    shared: dict[str, str] = {}
    if not config["untie_r"]:
        for number in range(config["n_layer"]):
            for name in ("r_w_bias", "r_r_bias"):
                shared[f"{BODY}layers.{number}.dec_attn.{name}"] = f"{BODY}{name}"
    if has_head:
        for number, is_tied in enumerate(config["tie_projs"]):
            if config["tie_word_embeddings"]:
                shared[f"{HEAD}out_layers.{number}.weight"] = table(number)
            if is_tied:
                shared[f"{HEAD}out_projs.{number}"] = projection(number, config)
    return shared


def _check_names(weights: Weights, shapes: Shapes, what: str) -> None:
    missing = [name for name in shapes if name not in weights]
    if missing:
        raise ArgumentError(
            f"{what} lacks {len(missing)} of the {len(shapes)} weights of such a model, for "
            f"example {missing[0]}: it is cut short, or of another model"
        )
    unknown = [name for name in weights if name not in shapes]
    if unknown:
        raise ArgumentError(
            f"{what} has {len(unknown)} weights that no such model has, for example {unknown[0]}: "
            "it is of another model"
        )


def _check_values(name: str, value: Tensor, shape: tuple[int, ...], what: str) -> None:
    if tuple(value.shape) != shape:
        raise ArgumentError(
            f"{name} in {what} has shape {tuple(value.shape)}, expected {shape} by the others"
        )
    if value.dtype not in DTYPES:
        raise ArgumentError(
            f"{name} in {what} is of {value.dtype}, expected floating point of 16 bits or more"
        )
    if not bool(torch.isfinite(value).all()):
        raise ArgumentError(
            f"{name} in {what} has NaN or infinite values: the training failed before it was saved"
        )


def _in_one_dtype(weights: Weights) -> Weights:
    """Tied weights stay one tensor."""
    dtypes = [value.dtype for name, value in weights.items() if name != FREQUENCIES]
    dtype = functools.reduce(torch.promote_types, dtypes)
    changed: dict[int, Tensor] = {}
    for value in weights.values():
        if id(value) not in changed:
            changed[id(value)] = value.detach().to(dtype)
    return {name: changed[id(value)] for name, value in weights.items()}


def frequencies(width: int) -> Tensor:
    """Those of the sinusoids, (width / 2,) fp32."""
    return 1 / (10000 ** (torch.arange(0.0, width, 2.0) / width))


def note_of_frequencies(weights: Weights) -> list[str]:
    """A sentence where a checkpoint's own frequencies are not those of the formula."""
    own = weights.get(FREQUENCIES)
    if own is None or own.ndim != 1:
        return []
    right = frequencies(2 * len(own)).double()
    away = float(((own.double() - right) / right).abs().max())
    if away < 1e-6:
        return []
    return [
        f"inv_freq is kept as it was saved, up to {away:.1e} off the formula, as a training in "
        "half precision leaves it"
    ]
