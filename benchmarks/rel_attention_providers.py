"""The competitors of the relative attention benchmark.

Each provider takes prepared inputs and returns a function that does the work once: what Hugging
Face computes once per forward (dense mask, one-hot segments) is ready beforehand for everyone, what
it computes in every layer (the position scores) is inside the timed region for everyone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .rel_attention_case import FORWARD_BACKWARD, RelAttentionCase, RelAttentionInputs

Result = list[Tensor]


@dataclass(frozen=True)
class Attention:
    """An attention ready to run in a provider's own layout.

    run: does the forward once.
    leaves, grad_out: what the backward differentiates by, and where it starts.
    to_standard: turns [out] or [out, *gradients] into the package's layout, outside the timing.
    """

    run: Callable[[], Tensor]
    leaves: list[Tensor]
    grad_out: Tensor
    to_standard: Callable[[Result], Result] = lambda result: result


# HF's names of the parameters that rel_attn_core reads.
_HF_PARAMETERS = ("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")


@dataclass(frozen=True)
class Provider:
    """A way to compute the attention.

    build: makes the attention for the inputs of a case.
    why_not: a reason why it cannot run a case, or None.
    exact: computes the same maths as HF, so it is checked; a floor is not.
    """

    name: str
    build: Callable[[RelAttentionCase, RelAttentionInputs], Attention]
    why_not: Callable[[RelAttentionCase], str | None] = lambda case: None
    exact: bool = True
    compiles: bool = False


@dataclass(frozen=True)
class Prepared:
    """`run` does the case's pass once; `standard` turns its result into the package's layout."""

    run: Callable[[], Result]
    standard: Callable[[Result], Result]


def prepare(provider: Provider, case: RelAttentionCase, inputs: RelAttentionInputs) -> Prepared:
    """Return a function that gives [out], or [out, *gradients of the leaves] with the backward."""
    attention = provider.build(case, inputs)

    def forward() -> Result:
        with torch.no_grad():
            return [attention.run()]

    def forward_backward() -> Result:
        out = attention.run()
        # A floor leaves the position terms out, so their gradients do not exist.
        gradients = torch.autograd.grad(
            out, attention.leaves, attention.grad_out, allow_unused=not provider.exact
        )
        return [out, *gradients]

    run = forward_backward if case.pass_name == FORWARD_BACKWARD else forward
    return Prepared(run, attention.to_standard)


def _build_hf(
    case: RelAttentionCase, inputs: RelAttentionInputs, *, compiled: bool = False
) -> Attention:
    from transformers import XLNetConfig
    from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

    # HF works in (length, batch, head, dim) and projects r once for every batch element. The model
    # hands over tensors in that layout, so the change of layout is not part of the measurement.
    def native(x: Tensor) -> Tensor:
        return x.detach().transpose(0, 1).contiguous().requires_grad_(x.requires_grad)

    r_per_element = inputs.r.expand(case.batch, -1, -1, -1)
    leaves = [native(x) for x in (inputs.q, inputs.k, inputs.v, r_per_element)]
    config = XLNetConfig(
        n_layer=1, n_head=case.heads, d_model=case.heads * case.head_dim, d_inner=1, dropout=0.0
    )
    with torch.device("meta"):
        module = XLNetRelativeAttention(config).eval()
    for name in _HF_PARAMETERS:
        # Plain tensors in place of the parameters, so that all providers share the same values.
        delattr(module, name)
        setattr(module, name, getattr(inputs, name))
    core = torch.compile(module.rel_attn_core, dynamic=False) if compiled else module.rel_attn_core

    def run() -> Tensor:
        return core(*leaves, seg_mat=inputs.hf_segments, attn_mask=inputs.hf_mask)

    def to_standard(result: Result) -> Result:
        result = [x.transpose(0, 1) if x.dim() == 4 else x for x in result]
        if len(result) > 1:
            per_element = result[4]  # r is one for the batch, so its gradients add up
            result[4] = per_element.double().sum(0, keepdim=True).to(per_element.dtype)
        return result

    return Attention(run, leaves + inputs.leaves()[4:], native(inputs.grad_out), to_standard)


def position_scores(inputs: RelAttentionInputs) -> Tensor:
    """Return bd, (B, N, I, J): (q_i + r_r_bias) . r[j - i + I], by one product and HF's shift."""
    i, j = inputs.q.shape[1], inputs.k.shape[1]
    q = (inputs.q + inputs.r_r_bias).transpose(1, 2)  # (B, N, I, D)
    bd = q @ inputs.r.permute(0, 2, 3, 1)  # (B, N, I, P)
    b, n, _, p = bd.shape
    return bd.reshape(b, n, p, i)[:, :, 1:].reshape(b, n, i, p - 1)[..., :j]


def segment_scores(inputs: RelAttentionInputs) -> Tensor:
    """Return c, (B, N, I): what a key of the other segment adds to the score of query i."""
    difference = inputs.seg_embed[1] - inputs.seg_embed[0]
    return torch.einsum("bind,nd->bni", inputs.q + inputs.r_s_bias, difference)


def _build_sdpa_bias(case: RelAttentionCase, inputs: RelAttentionInputs) -> Attention:
    hidden = differs = None
    if inputs.hf_mask is not None:
        hidden = (
            inputs.hf_mask[..., 0].permute(2, 0, 1)[:, None].bool().contiguous()
        )  # (B, 1, I, J)
    if inputs.segments_q is not None and inputs.segments_k is not None:
        differs = (inputs.segments_q[:, :, None] != inputs.segments_k[:, None, :])[:, None]
    k, v = inputs.k.transpose(1, 2), inputs.v.transpose(1, 2)
    lowest = torch.finfo(inputs.q.dtype).min

    def run() -> Tensor:
        bias = position_scores(inputs)
        if differs is not None:
            bias = bias + differs * segment_scores(inputs)[..., None]
        bias = bias * inputs.scale
        if hidden is not None:
            bias = bias.masked_fill(hidden, lowest)
        q = (inputs.q + inputs.r_w_bias).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=inputs.scale)
        return out.transpose(1, 2)

    return Attention(run, inputs.leaves(), inputs.grad_out)


def _build_flex(case: RelAttentionCase, inputs: RelAttentionInputs) -> Attention:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    i_total, j_total, memory, scale = case.queries, case.keys, case.memory, inputs.scale
    padding, segments_q, segments_k = inputs.key_padding, inputs.segments_q, inputs.segments_k
    k, v = inputs.k.transpose(1, 2), inputs.v.transpose(1, 2)
    block_mask = None
    if padding is not None:

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return ~padding[b, j] | (j == i + memory)

        block_mask = create_block_mask(
            visible, case.batch, None, i_total, j_total, device=inputs.q.device
        )

    def attention(q: Tensor, bd: Tensor, c: Tensor | None) -> Tensor:
        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            s = s + bd[b, h, i, j - i + i_total] * scale
            if c is not None and segments_q is not None and segments_k is not None:
                differs = segments_q[b, i] != segments_k[b, j]
                s = s + torch.where(differs, c[b, h, i] * scale, 0.0)
            return s

        return flex_attention(q, k, v, score_mod=score, block_mask=block_mask, scale=scale)

    compiled = torch.compile(attention, dynamic=False)

    def run() -> Tensor:
        q = (inputs.q + inputs.r_w_bias).transpose(1, 2)
        bd = (inputs.q + inputs.r_r_bias).transpose(1, 2) @ inputs.r.permute(0, 2, 3, 1)
        c = segment_scores(inputs) if segments_q is not None else None
        return compiled(q, bd, c).transpose(1, 2)

    return Attention(run, inputs.leaves(), inputs.grad_out)


def _flex_why_not(case: RelAttentionCase) -> str | None:
    if torch.device(case.device).type != "cuda":
        return "FlexAttention with a precomputed bias is benchmarked on GPUs only"
    return None


def _build_content_only(case: RelAttentionCase, inputs: RelAttentionInputs) -> Attention:
    q, k, v = (x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))

    def run() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=inputs.scale).transpose(1, 2)

    return Attention(run, inputs.leaves(), inputs.grad_out)


def _build_ours(backend: str) -> Callable[[RelAttentionCase, RelAttentionInputs], Attention]:
    def build(case: RelAttentionCase, inputs: RelAttentionInputs) -> Attention:
        from xlnet_fast.masks import AttentionMask
        from xlnet_fast.ops import rel_attention

        mask = None
        if inputs.key_padding is not None:
            mask = AttentionMask(key_padding=inputs.key_padding, see_self=True)
        segments = inputs.segments_q is not None

        def run() -> Tensor:
            return rel_attention(
                inputs.q, inputs.k, inputs.v, inputs.r, inputs.r_w_bias, inputs.r_r_bias,
                r_s_bias=inputs.r_s_bias if segments else None,
                seg_embed=inputs.seg_embed if segments else None,
                segments_q=inputs.segments_q, segments_k=inputs.segments_k,
                mask=mask, scale=inputs.scale, backend=backend,
            )  # fmt: skip

        return Attention(run, inputs.leaves(), inputs.grad_out)

    return build


HF_EAGER = Provider("hf_eager", _build_hf)
HF_COMPILE = Provider(
    "hf_compile", lambda case, inputs: _build_hf(case, inputs, compiled=True), compiles=True
)
SDPA_BIAS = Provider("sdpa_bias", _build_sdpa_bias)
FLEX = Provider("flex", _build_flex, _flex_why_not, compiles=True)
SDPA_FLASH = Provider("sdpa_flash", _build_content_only, exact=False)
OURS = Provider("ours", _build_ours("auto"))
RIVALS = (HF_EAGER, HF_COMPILE, SDPA_BIAS, FLEX, SDPA_FLASH)


def all_providers() -> tuple[Provider, ...]:
    """Return the rivals, ours as `auto` chooses, and each of our backends by name.

    Whether a named backend runs a case is the dispatcher's to say: it raises, the reason is shown.
    """
    from xlnet_fast.ops._dispatch import BACKENDS

    named = [name for name in BACKENDS if name != "reference"]
    return (*RIVALS, OURS, *(Provider(f"ours_{name}", _build_ours(name)) for name in named))
