"""Sizes off the shapes of weights, and the shapes of all weights off the sizes.

Names are Hugging Face's throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor

from xlnet_fast.errors import ArgumentError

BODY, HEAD = "transformer.", "crit."
Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
_TABLE = f"{BODY}word_emb.emb_layers.{{}}.weight"
_COMPARED = ("vocab_size", "n_layer", "d_model", "d_embed", "n_head", "d_head", "d_inner")


def refuse_other_models(weights: Weights, told: Mapping[str, Any], what: str) -> None:
    """Raise ArgumentError for the other attentions and the sampled softmax of the original code."""
    attention = told.get("attn_type") or 0
    if attention == 0:
        learned = f"{BODY}r_emb" in weights
        absolute = any(".dec_attn.q_net." in name for name in weights)
        attention = {(True, False): 1, (False, True): 2, (True, True): 3}.get(
            (learned, absolute), 0
        )
    if attention != 0:
        raise ArgumentError(
            f"{what} has attn_type {attention}, which is not Transformer-XL's own attention: "
            "expected a model of attn_type 0"
        )
    if f"{BODY}out_layer.weight" in weights or told.get("sample_softmax", -1) > 0:
        raise ArgumentError(
            f"{what} was trained with a sampled softmax, which has no probabilities to go on with: "
            "expected an adaptive or a plain one"
        )


def sizes_of(weights: Weights, told: Mapping[str, Any], what: str, where: str) -> dict[str, Any]:
    """The sizes of a model, as arguments of its config.

    Args:
        told: sizes that are known otherwise; with one table of embeddings for several clusters the
            ``cutoffs`` must be.
        what: what the weights are called in a message. where: what tells ``told``.

    Raises:
        ArgumentError: weights are missing or of no such model, or what is told differs.
    """
    first = f"{BODY}layers.0."
    tables = [
        _shape(weights, _TABLE.format(number), 2, what)
        for number in range(_count(weights, f"{BODY}word_emb.emb_layers."))
    ]
    if not tables:
        raise ArgumentError(f"{what} lacks {_TABLE.format(0)}: it is no Transformer-XL")
    shared = f"{BODY}r_w_bias" in weights
    bias = f"{BODY}r_w_bias" if shared else f"{first}dec_attn.r_w_bias"
    n_head, d_head = _shape(weights, bias, 2, what)
    sizes: dict[str, Any] = {
        "vocab_size": sum(rows for rows, _ in tables),
        "n_layer": _count(weights, f"{BODY}layers."),
        "d_model": _shape(weights, f"{first}dec_attn.qkv_net.weight", 2, what)[1],
        "d_embed": tables[0][1],
        "n_head": n_head,
        "d_head": d_head,
        "d_inner": _shape(weights, f"{first}pos_ff.CoreNet.0.weight", 2, what)[0],
        "untie_r": not shared,
    }
    sizes["cutoffs"] = _cutoffs(weights, [rows for rows, _ in tables], told, what, where)
    sizes["div_val"] = _div_val(weights, [width for _, width in tables], sizes, told, what)
    compared = [*_COMPARED, "cutoffs", *(["div_val"] if sizes["cutoffs"] else [])]
    for name in compared:
        value = list(told[name]) if name == "cutoffs" and name in told else told.get(name)
        if value is not None and value != sizes[name]:
            raise ArgumentError(
                f"{name} is {value!r} by {where} and {sizes[name]!r} by the shapes of the weights "
                f"in {what}: they are of two models"
            )
    return sizes


def _cutoffs(
    weights: Weights, rows: Sequence[int], told: Mapping[str, Any], what: str, where: str
) -> list[int]:
    """First word of each cluster but the first: off the tables, or as told where there is one."""
    if len(rows) > 1:
        return list(accumulate(rows))[:-1]
    known = [int(word) for word in told.get("cutoffs", ())]
    if not any(name.startswith(HEAD) for name in weights):
        return known  # no softmax: nothing is cut
    bias = weights.get(f"{HEAD}cluster_bias")
    clusters = 0 if bias is None else bias.numel()
    if clusters and not known:
        raise ArgumentError(
            f"{what} has {clusters + 1} clusters of words in one table, and {where} does not tell "
            "where they begin: give --cutoffs, the first word of each but the first, such as "
            "20000,40000,200000"
        )
    if len(known) != clusters:
        raise ArgumentError(
            f"cutoffs are {known} by {where}, and {what} has weights for {clusters} clusters "
            "beside the first"
        )
    return known


def _div_val(
    weights: Weights,
    widths: Sequence[int],
    sizes: Mapping[str, Any],
    told: Mapping[str, Any],
    what: str,
) -> int:
    """By how much each table is narrower than the one before."""
    known = told.get("div_val")
    if len(widths) == 1:
        if sizes["cutoffs"]:
            return 1
        projected = f"{BODY}word_emb.emb_projs.0" in weights
        # With one cluster a divisor above 1 means that there is a projection, whatever the widths.
        least = 2 if projected and sizes["d_embed"] == sizes["d_model"] else 1
        return int(known) if known is not None else least
    candidates = [known] if known is not None and known > 1 else []
    for value in (*candidates, *range(2, widths[0] + 1)):
        if all(width == widths[0] // value**number for number, width in enumerate(widths)):
            return int(value)
    raise ArgumentError(
        f"the embeddings in {what} are {', '.join(map(str, widths))} wide, expected each to be the "
        "one before over one whole number"
    )


def shapes_of(sizes: Mapping[str, Any], has_head: bool) -> Shapes:
    """Name and shape of every weight of a model.

    Args:
        sizes: as :func:`sizes_of` gives them. has_head: with the softmax.
    """
    shapes = dict(_tables(sizes, f"{BODY}word_emb.emb_layers.{{}}.weight", False))
    shapes |= dict(_projections(sizes, f"{BODY}word_emb.emb_projs.{{}}", 1))
    for number in range(sizes["n_layer"]):
        shapes |= _layer(sizes, f"{BODY}layers.{number}.")
    shapes[f"{BODY}pos_emb.inv_freq"] = (sizes["d_model"] // 2,)
    if not sizes["untie_r"]:
        for name in ("r_w_bias", "r_r_bias"):
            shapes[f"{BODY}{name}"] = (sizes["n_head"], sizes["d_head"])
    if has_head:
        shapes |= dict(_tables(sizes, f"{HEAD}out_layers.{{}}.weight", False))
        shapes |= dict(_tables(sizes, f"{HEAD}out_layers.{{}}.bias", True))
        shapes |= dict(_projections(sizes, f"{HEAD}out_projs.{{}}", len(sizes["cutoffs"]) + 1))
        if clusters := len(sizes["cutoffs"]):
            shapes[f"{HEAD}cluster_weight"] = (clusters, sizes["d_embed"])
            shapes[f"{HEAD}cluster_bias"] = (clusters,)
    return shapes


def _levels(sizes: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Words and width of each table."""
    if sizes["div_val"] == 1:
        return [(sizes["vocab_size"], sizes["d_embed"])]
    ends = [0, *sizes["cutoffs"], sizes["vocab_size"]]
    return [
        (end - begin, sizes["d_embed"] // sizes["div_val"] ** number)
        for number, (begin, end) in enumerate(pairwise(ends))
    ]


def _tables(
    sizes: Mapping[str, Any], name: str, of_biases: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for number, (rows, width) in enumerate(_levels(sizes)):
        yield name.format(number), (rows,) if of_biases else (rows, width)


def _projections(
    sizes: Mapping[str, Any], name: str, of_one_table: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A projection for each table; with one table ``of_one_table`` if it is not as wide as H."""
    if sizes["div_val"] != 1:
        for number, (_, width) in enumerate(_levels(sizes)):
            yield name.format(number), (sizes["d_model"], width)
    elif sizes["d_model"] != sizes["d_embed"]:
        for number in range(of_one_table):
            yield name.format(number), (sizes["d_model"], sizes["d_embed"])


def _layer(sizes: Mapping[str, Any], place: str) -> Shapes:
    width, inner = sizes["d_model"], sizes["d_inner"]
    heads = sizes["n_head"] * sizes["d_head"]
    attention, forward = f"{place}dec_attn.", f"{place}pos_ff."
    return {
        f"{attention}qkv_net.weight": (3 * heads, width),
        f"{attention}r_net.weight": (heads, width),
        f"{attention}o_net.weight": (width, heads),
        f"{attention}r_w_bias": (sizes["n_head"], sizes["d_head"]),
        f"{attention}r_r_bias": (sizes["n_head"], sizes["d_head"]),
        f"{attention}layer_norm.weight": (width,),
        f"{attention}layer_norm.bias": (width,),
        f"{forward}CoreNet.0.weight": (inner, width),
        f"{forward}CoreNet.0.bias": (inner,),
        f"{forward}CoreNet.3.weight": (width, inner),
        f"{forward}CoreNet.3.bias": (width,),
        f"{forward}layer_norm.weight": (width,),
        f"{forward}layer_norm.bias": (width,),
    }


def _count(weights: Weights, prefix: str) -> int:
    """How many numbers follow a prefix, from 0 up without a gap."""
    behind = (name.removeprefix(prefix) for name in weights if name.startswith(prefix))
    numbers = {rest.partition(".")[0] for rest in behind}
    count = 0
    while str(count) in numbers:
        count += 1
    return count


def _shape(weights: Weights, name: str, rank: int, what: str) -> tuple[int, ...]:
    if name not in weights:
        raise ArgumentError(f"{what} lacks {name}: it is cut short, or no Transformer-XL")
    shape = tuple(weights[name].shape)
    if len(shape) != rank:
        raise ArgumentError(f"{name} in {what} has shape {shape}, expected {rank} dimensions")
    return shape
