"""The original Transformer-XL by hand, key by key and word by word: the yardstick of conversions.

Written from the paper (Dai et al. 2019, section 3 and appendix B) and from what the two codes that
trained such models are known to do: a text starts without memory; the log-probability of cluster i
is entry -i of the head; with ``same_length`` a token sees ``mem_len`` keys, itself among them, and
in NVIDIA's code one more. Each pair of a token and a key is looked at alone: nothing is shifted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Original:
    """Sizes and options, under the original's names; ``more_keys`` is NVIDIA's 1."""

    n_token: int = 19
    cutoffs: tuple[int, ...] = (5, 11)
    d_model: int = 8
    d_embed: int = 8
    n_head: int = 2
    d_head: int = 3
    d_inner: int = 10
    n_layer: int = 2
    div_val: int = 1
    tied: bool = True
    tie_projs: tuple[bool, ...] = (False, True, True)
    untie_r: bool = False
    pre_lnorm: bool = False
    same_length: bool = False
    mem_len: int = 5
    clamp_len: int = -1
    more_keys: int = 0

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First word and end of each cluster."""
        ends = [0, *self.cutoffs, self.n_token]
        return list(pairwise(ends))

    @property
    def tables(self) -> list[tuple[int, int]]:
        """Words and width of each table."""
        if self.div_val == 1:
            return [(self.n_token, self.d_embed)]
        widths = (self.d_embed // self.div_val**number for number in range(len(self.spans)))
        return [(b - a, width) for (a, b), width in zip(self.spans, widths, strict=True)]

    @property
    def projects(self) -> bool:
        """Whether embeddings are brought to the width of the model by a matrix."""
        return self.div_val != 1 or self.d_embed != self.d_model

    def args(self) -> dict[str, Any]:
        """What a training keeps of its options, as plain values."""
        names = (
            "n_token", "d_model", "d_embed", "n_head", "d_head", "d_inner", "n_layer", "div_val",
            "tied", "pre_lnorm", "same_length", "mem_len", "clamp_len",
        )  # fmt: skip
        told = {name: getattr(self, name) for name in names}
        return {**told, "cutoffs": list(self.cutoffs), "attn_type": 0, "dropout": 0.1, "lr": 0.01}


def weights_of(original: Original, dtype: torch.dtype = torch.float64) -> Weights:
    """Random weights by the original's names; tied ones are one tensor."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int, scale: float = 0.4) -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        return drawn.to(dtype)

    o, weights = original, {}
    for number, (rows, width) in enumerate(o.tables):
        weights[f"word_emb.emb_layers.{number}.weight"] = random(rows, width)
        if o.projects:
            weights[f"word_emb.emb_projs.{number}"] = random(o.d_model, width)
    pairs = [f"layers.{number}.dec_attn." for number in range(o.n_layer)] if o.untie_r else [""]
    for place in pairs:
        weights[f"{place}r_w_bias"] = random(o.n_head, o.d_head)
        weights[f"{place}r_r_bias"] = random(o.n_head, o.d_head)
    for number in range(o.n_layer):
        weights |= _layer_of(o, f"layers.{number}.", random)
    inverse = 1 / 10000 ** (torch.arange(0, o.d_model, 2, dtype=torch.float64) / o.d_model)
    weights["pos_emb.inv_freq"] = inverse.float().to(dtype)
    for number, (rows, width) in enumerate(o.tables):
        table = weights[f"word_emb.emb_layers.{number}.weight"]
        weights[f"crit.out_layers.{number}.weight"] = table if o.tied else random(rows, width)
        weights[f"crit.out_layers.{number}.bias"] = random(rows, scale=1.0)
    for number in range(len(o.spans) if o.projects else 0):
        own = 0 if o.div_val == 1 else number
        shared = weights[f"word_emb.emb_projs.{own}"]
        weights[f"crit.out_projs.{number}"] = (
            shared if o.tie_projs[number] else random(*shared.shape)
        )
    if o.cutoffs:
        weights["crit.cluster_weight"] = random(len(o.cutoffs), o.d_embed)
        weights["crit.cluster_bias"] = random(len(o.cutoffs), scale=1.5)
    return weights


def _layer_of(o: Original, place: str, random: Any) -> Weights:
    heads = o.n_head * o.d_head
    shapes: dict[str, tuple[int, ...]] = {
        "dec_attn.qkv_net.weight": (3 * heads, o.d_model),
        "dec_attn.r_net.weight": (heads, o.d_model),
        "dec_attn.o_net.weight": (o.d_model, heads),
        "pos_ff.CoreNet.0.weight": (o.d_inner, o.d_model),
        "pos_ff.CoreNet.0.bias": (o.d_inner,),
        "pos_ff.CoreNet.3.weight": (o.d_model, o.d_inner),
        "pos_ff.CoreNet.3.bias": (o.d_model,),
    }
    layer = {f"{place}{name}": random(*shape) for name, shape in shapes.items()}
    for norm in ("dec_attn", "pos_ff"):
        layer[f"{place}{norm}.layer_norm.weight"] = 1 + random(o.d_model)
        layer[f"{place}{norm}.layer_norm.bias"] = random(o.d_model)
    return layer


def losses(original: Original, weights: Weights, text: Tensor, lengths: list[int]) -> list[Tensor]:
    """Losses of the words that follow, segment by segment, the memory carried along.

    Args:
        text: (B, T) words. lengths: of the segments; their sum is below T.

    Returns:
        (B, L) for each segment of L words.
    """
    o, at, found = original, 0, []
    like = weights["layers.0.dec_attn.qkv_net.weight"]
    memory = [like.new_zeros(len(text), 0, o.d_model) for _ in range(o.n_layer)]
    for length in lengths:
        h = _embedded(o, weights, text[:, at : at + length])
        for number in range(o.n_layer):
            keys = torch.cat([memory[number], h], dim=1)
            memory[number] = keys[:, max(0, keys.shape[1] - o.mem_len) :]
            h = _layer(o, weights, f"layers.{number}.", h, keys)
        targets = text[:, at + 1 : at + 1 + length]
        found.append(_negative_log_likelihoods(o, weights, h, targets))
        at += length
    return found


def _embedded(o: Original, w: Weights, words: Tensor) -> Tensor:
    rows = []
    for word in words.flatten().tolist():
        cluster = next(i for i, (a, b) in enumerate(o.spans) if a <= word < b)
        number, place = (0, word) if o.div_val == 1 else (cluster, word - o.spans[cluster][0])
        row = w[f"word_emb.emb_layers.{number}.weight"][place]
        rows.append(w[f"word_emb.emb_projs.{number}"] @ row if o.projects else row)
    return torch.stack(rows).view(*words.shape, o.d_model) * o.d_model**0.5


def _layer(o: Original, w: Weights, place: str, h: Tensor, keys: Tensor) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        scale, shift = (w[f"{place}{name}.layer_norm.{one}"] for one in ("weight", "bias"))
        return layer_norm(x, (o.d_model,), scale, shift)

    def feed(x: Tensor) -> Tensor:
        core = f"{place}pos_ff.CoreNet"
        inner = (x @ w[f"{core}.0.weight"].T + w[f"{core}.0.bias"]).clamp(min=0)
        return inner @ w[f"{core}.3.weight"].T + w[f"{core}.3.bias"]

    if o.pre_lnorm:
        h = h + _attention(o, w, place, h.shape[1], norm("dec_attn", keys))
        return h + feed(norm("pos_ff", h))
    h = norm("dec_attn", h + _attention(o, w, place, h.shape[1], keys))
    return norm("pos_ff", h + feed(h))


def _attention(o: Original, w: Weights, place: str, tokens: int, keys: Tensor) -> Tensor:
    """Of the last ``tokens`` of (B, J, H) keys."""
    heads = (o.n_head, o.d_head)
    q, k, v = (
        x.unflatten(-1, heads) for x in (keys @ w[f"{place}dec_attn.qkv_net.weight"].T).chunk(3, -1)
    )
    of_layer = f"{place}dec_attn." if o.untie_r else ""
    r_w_bias, r_r_bias = w[f"{of_layer}r_w_bias"], w[f"{of_layer}r_r_bias"]
    before = keys.shape[1] - tokens
    rows = []
    for i in range(before, keys.shape[1]):
        first = max(0, i + 1 - o.mem_len - o.more_keys) if o.same_length else 0
        scores = []
        for j in range(first, i + 1):
            distance = min(i - j, o.clamp_len) if o.clamp_len > 0 else i - j
            position = (w[f"{place}dec_attn.r_net.weight"] @ _sinusoid(w, distance)).view(heads)
            content = torch.einsum("bnd,bnd->bn", q[:, i] + r_w_bias, k[:, j])
            scores.append(content + torch.einsum("bnd,nd->bn", q[:, i] + r_r_bias, position))
        share = (torch.stack(scores, dim=-1) / o.d_head**0.5).softmax(-1)
        rows.append(torch.einsum("bnj,bjnd->bnd", share, v[:, first : i + 1]).flatten(1))
    return torch.stack(rows, dim=1) @ w[f"{place}dec_attn.o_net.weight"].T


def _sinusoid(w: Weights, distance: int) -> Tensor:
    angle = distance * w["pos_emb.inv_freq"]
    return torch.cat([angle.sin(), angle.cos()])


def _negative_log_likelihoods(o: Original, w: Weights, h: Tensor, targets: Tensor) -> Tensor:
    pairs = zip(h.flatten(0, 1), targets.flatten().tolist(), strict=True)
    return -torch.stack([_log_probability(o, w, x, word) for x, word in pairs]).view(targets.shape)


def _log_probability(o: Original, w: Weights, x: Tensor, word: int) -> Tensor:
    matrix, bias = _words_of(o, w, 0)
    matrices, biases = [matrix], [bias]
    if o.cutoffs:
        matrices.append(w["crit.cluster_weight"])
        biases.append(w["crit.cluster_bias"])
    head = (torch.cat(matrices) @ _projected(o, w, x, 0) + torch.cat(biases)).log_softmax(0)
    cluster = next(i for i, (a, b) in enumerate(o.spans) if a <= word < b)
    if cluster == 0:
        return head[word]
    matrix, bias = _words_of(o, w, cluster)
    tail = (matrix @ _projected(o, w, x, cluster) + bias).log_softmax(0)
    return head[-cluster] + tail[word - o.spans[cluster][0]]


def _projected(o: Original, w: Weights, x: Tensor, cluster: int) -> Tensor:
    return w[f"crit.out_projs.{cluster}"].T @ x if o.projects else x


def _words_of(o: Original, w: Weights, cluster: int) -> tuple[Tensor, Tensor]:
    begin, end = o.spans[cluster]
    if o.div_val == 1:
        layer = "crit.out_layers.0"
        return w[f"{layer}.weight"][begin:end], w[f"{layer}.bias"][begin:end]
    layer = f"crit.out_layers.{cluster}"
    return w[f"{layer}.weight"], w[f"{layer}.bias"]


def named_as_nvidia(original: Original, weights: Weights) -> Weights:
    """The same weights under the names of NVIDIA's code, without those that are tied."""
    o, named = original, {}
    for name, value in weights.items():
        parts = name.split(".")
        if not name.startswith("crit.") or parts[1].startswith("cluster"):
            named[name] = value
        elif parts[1] == "out_layers" and parts[3] == "bias":
            named[f"crit.out_layers_biases.{parts[2]}"] = value
        elif parts[1] == "out_layers" and not o.tied:
            named[f"crit.out_layers_weights.{parts[2]}"] = value
        elif parts[1] == "out_projs" and not o.tie_projs[int(parts[2])]:
            named[name] = value
    for name, value in weights.items():
        if name.startswith("word_emb.emb_projs."):
            named[name.replace("word_emb.emb_projs", "crit.shared_out_projs")] = value
    return named
