"""Parameter groups: a learning rate for each layer, weight decay for some parameters."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

# The list of the original code (zihangdai/xlnet, model_utils.py), searched for in the names. It
# spares r_w_bias, r_r_bias and r_s_bias, and not seg_embed.
_NO_DECAY = re.compile("LayerNorm|layer_norm|bias")
_LAYER = re.compile(r"\btransformer\.layer\.(\d+)\.")
_EMBEDDINGS = re.compile(r"\btransformer\.(word_embedding|mask_emb)\b")


def rate_factor(name: str, n_layer: int, decay: float) -> float:
    """What the learning rate of a parameter is multiplied by.

    1 for the head and the top layer, ``decay ** (n_layer - 1 - i)`` for layer i (XLNet paper,
    section A.4), ``decay ** n_layer`` for the embeddings. The original code multiplies gradients
    instead, which Adam undoes, and leaves the embeddings at 1; this follows the paper's words.
    """
    layer = _LAYER.search(name)
    if layer is not None:
        return float(decay ** (n_layer - 1 - int(layer.group(1))))
    return float(decay**n_layer) if _EMBEDDINGS.search(name) else 1.0


def parameter_groups(
    model: nn.Module, n_layer: int, learning_rate: float, weight_decay: float, decay: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer, one for each learning rate and weight decay, highest rate first.

    The first group's rate is what Trainer logs, so it is that of the head.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (rate_factor(name, n_layer, decay), _NO_DECAY.search(name) is None)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": groups[factor, decayed],
            "lr": learning_rate * factor,
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for factor, decayed in sorted(groups, reverse=True)
    ]
