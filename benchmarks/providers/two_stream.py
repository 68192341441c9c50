"""One two-stream attention layer: Hugging Face's, it compiled, and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..cases.two_stream import TwoStreamCase, TwoStreamInputs
from .rel_attention import Attention, Prepared, prepare_attention


def prepare(provider: str, case: TwoStreamCase, inputs: TwoStreamInputs) -> Prepared:
    """Return a function that gives [h, g], or [h, g, *gradients of the leaves]."""
    if provider.startswith("hf_"):
        layer = hf_layer(case, inputs)
    else:
        backend = provider.removeprefix("ours").removeprefix("_") or "auto"
        layer = our_layer(case, inputs, backend)
    compiles = provider == "hf_compile"
    if compiles:
        layer = torch.compile(layer, dynamic=False)
    attention = Attention(layer, inputs.leaves(), inputs.grads)
    return prepare_attention(attention, case.pass_name, compiles=compiles)


def _with_parameters(module: Any, inputs: TwoStreamInputs) -> Any:
    """Put plain tensors in place of the parameters, so that all providers share the same leaves."""
    for name, x in inputs.parameters.items():
        delattr(module, name)
        setattr(module, name, x)
    module.layer_norm.to_empty(device=inputs.h.device)
    torch.nn.init.ones_(module.layer_norm.weight)
    torch.nn.init.zeros_(module.layer_norm.bias)
    module.layer_norm.to(inputs.h.dtype)
    return module.eval()


def hf_layer(case: TwoStreamCase, inputs: TwoStreamInputs) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return HF's layer, with the dense tensors that HF builds once per forward ready."""
    from transformers import XLNetConfig
    from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

    config = XLNetConfig(n_layer=1, n_head=case.heads, d_model=case.width, d_inner=1, dropout=0.0)
    with torch.device("meta"):
        module = XLNetRelativeAttention(config)
    module = _with_parameters(module, inputs)
    dtype, device = inputs.h.dtype, inputs.h.device
    hidden = (inputs.rank_q[:, :, None] <= inputs.rank_k[:, None, :]).permute(1, 2, 0)  # (I, J, B)
    own = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=device)
    rows = torch.arange(case.length, device=device)
    own[rows, case.memory + rows] = True
    arguments = {
        "attn_mask_h": (hidden & ~own[..., None])[..., None].to(dtype),
        "attn_mask_g": hidden[..., None].to(dtype),
        # One table per batch element, the second half running backwards.
        "r": inputs.table.repeat_interleave(case.batch // 2, dim=1),
        "mems": inputs.memory,
    }
    current = inputs.segments[:, case.memory :].t()
    differs = current[:, None] != inputs.segments.t()[None]
    arguments["seg_mat"] = torch.nn.functional.one_hot(differs.long(), 2).to(dtype)
    mapping = torch.nn.functional.one_hot(inputs.positions, case.length)  # (B, I', I)
    arguments["target_mapping"] = mapping.permute(1, 2, 0).to(dtype)

    def run() -> tuple[Tensor, Tensor]:
        output_h, output_g = module(inputs.h, inputs.g, **arguments)
        return output_h, output_g

    return run


def our_layer(
    case: TwoStreamCase, inputs: TwoStreamInputs, backend: str
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return our layer on the compact form of the same masks and targets."""
    from xlnet_fast.masks import AttentionMask
    from xlnet_fast.nn import AttentionContext, RelativeAttention

    with torch.device("meta"):
        module = RelativeAttention(case.width, case.heads)
    module = _with_parameters(module, inputs)
    context = AttentionContext(
        mask=AttentionMask(rank_q=inputs.rank_q, rank_k=inputs.rank_k),
        segments=inputs.segments,
        positions=inputs.positions,
        backend=backend,
    )

    def run() -> tuple[Tensor, Tensor]:
        output_h, output_g = module(inputs.h, inputs.g, context, inputs.table, inputs.memory)
        return output_h, output_g

    return run
