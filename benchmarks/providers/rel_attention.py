"""The competitors of the relative attention benchmark.

Each provider takes prepared inputs and returns a function that does the work once: what Hugging
Face computes once per forward (dense mask, one-hot segments) is ready beforehand for everyone, what
it computes in every layer (the position scores) is inside the timed region for everyone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cases.rel_attention import (
    BACKWARD,
    DTYPES,
    FORWARD,
    FORWARD_BACKWARD,
    RelAttentionCase,
    RelAttentionInputs,
)

Result = list[Tensor]


@dataclass(frozen=True)
class Attention:
    """An attention ready to run in a provider's own layout.

    run: does the forward once; returns its output, or all of them.
    leaves, grad_out: what the backward differentiates by, and where it starts (one per output).
    to_standard: turns [out] or [out, *gradients] into the package's layout, outside the timing.
    """

    run: Callable[[], Tensor | tuple[Tensor, ...]]
    leaves: list[Tensor]
    grad_out: Tensor | tuple[Tensor, ...]
    to_standard: Callable[[Result], Result] = lambda result: result


# HF's names of the parameters that rel_attn_core reads.
_HF_PARAMETERS = ("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")


@dataclass(frozen=True)
class Provider:
    """A way to compute the attention.

    build: makes the attention for the inputs of a case.
    why_not: a reason why it cannot run a case, or None.
    exact: computes the same maths as HF, so it is checked; a floor is not.
    compiles: goes through torch.compile, which costs time the first time.
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
    """Return a function that gives [out], or [out, *gradients of the leaves] with the backward.

    For the pass "backward" the forward is done once, here, and every call goes back through it.
    """
    return prepare_attention(
        provider.build(case, inputs), case.pass_name, provider.exact, provider.compiles
    )


def prepare_attention(
    attention: Attention, pass_name: str, exact: bool = True, compiles: bool = False
) -> Prepared:
    """Return one pass over an attention, as `prepare` does; exact and compiles: see `Provider`."""

    def forward() -> Result:
        with torch.no_grad():
            return [*_all(attention.run())]

    def gradients(outs: tuple[Tensor, ...], *, keep: bool) -> Result:
        # A floor leaves the position terms out, so their gradients do not exist.
        found = torch.autograd.grad(
            outs, attention.leaves, _all(attention.grad_out),
            retain_graph=keep, allow_unused=not exact,
        )  # fmt: skip
        return [*outs, *found]

    def forward_backward() -> Result:
        return gradients(_all(attention.run()), keep=False)

    if pass_name == BACKWARD:
        with _repeatable_backward(compiles):
            outs = _all(attention.run())
        return Prepared(lambda: gradients(outs, keep=True), attention.to_standard)
    passes = {FORWARD: forward, FORWARD_BACKWARD: forward_backward}
    return Prepared(passes[pass_name], attention.to_standard)


def _all(x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def _repeatable_backward(compiles: bool) -> AbstractContextManager[object]:
    """Compiled backward passes may overwrite what the forward saved, unless told not to."""
    if not compiles:
        return nullcontext()
    from torch._functorch import config

    patched: AbstractContextManager[object] = config.patch(donated_buffer=False)
    return patched


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
        n_layer=1, n_head=case.heads, d_model=case.heads * case.head_dim, d_inner=1,
        dropout=case.dropout,
    )  # fmt: skip
    with torch.device("meta"):
        module = XLNetRelativeAttention(config).train(case.dropout > 0)
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
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=case.dropout, scale=inputs.scale
        )
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


# Score matrices that HF, compiled or not, and a materialised bias hold at once (measured: 5).
_DENSE_SCORES = 6


def _dense_why_not(case: RelAttentionCase) -> str | None:
    """Leave a CPU's user the memory: a machine that swaps, or kills the run, measures nothing."""
    if torch.device(case.device).type != "cpu":
        return None
    itemsize = DTYPES[case.dtype].itemsize
    scores = case.batch * case.heads * case.queries * (case.queries + case.memory) * itemsize
    needed, available = _DENSE_SCORES * scores, _available_memory()
    if needed <= 0.6 * available:
        return None
    return f"its scores need about {needed / 2**30:.0f} GiB of {available / 2**30:.0f} GiB free"


def _available_memory() -> int:
    """Bytes of memory that a new process may take (Linux; elsewhere no bound is known)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return sys.maxsize
    (kib,) = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(kib)


def _flex_why_not(case: RelAttentionCase) -> str | None:
    if torch.device(case.device).type != "cuda":
        return "FlexAttention with a precomputed bias is benchmarked on GPUs only"
    if case.dropout:
        return "FlexAttention has no dropout"
    return None


def _build_content_only(case: RelAttentionCase, inputs: RelAttentionInputs) -> Attention:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))
    # On a GPU flash attention by name: what PyTorch picks by itself differs between chips. It takes
    # half precision only; fp32, and the CPU, run whatever PyTorch has.
    flash = q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16)

    def run() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if flash else nullcontext():
            out = F.scaled_dot_product_attention(
                q, k, v, dropout_p=case.dropout, scale=inputs.scale
            )
        return out.transpose(1, 2)

    return Attention(run, inputs.leaves(), inputs.grad_out)


def _build_ours(backend: str) -> Callable[[RelAttentionCase, RelAttentionInputs], Attention]:
    def build(case: RelAttentionCase, inputs: RelAttentionInputs) -> Attention:
        from xlnet_fast.masks import AttentionMask
        from xlnet_fast.ops import rel_attention

        mask = None
        if inputs.key_padding is not None:
            mask = AttentionMask(key_padding=inputs.key_padding, see_self=True)
        segments = inputs.segments_q is not None
        seed = torch.ones(1, dtype=torch.int64, device=inputs.q.device) if case.dropout else None

        k, v = inputs.k, inputs.v
        memory: dict[str, Any] = {}
        leaves, to_standard = inputs.leaves(), _unchanged
        if case.memory:
            # A model projects memory and current tokens apart, so that is how they come.
            (k_memory, k), (v_memory, v) = (_split(x, case.memory) for x in (k, v))
            memory = {"k_memory": k_memory, "v_memory": v_memory}
            leaves = [inputs.q, k, v, *leaves[3:], k_memory, v_memory]
            to_standard = _join_memory

        def run() -> Tensor:
            return rel_attention(
                inputs.q, k, v, inputs.r, inputs.r_w_bias, inputs.r_r_bias, **memory,
                r_s_bias=inputs.r_s_bias if segments else None,
                seg_embed=inputs.seg_embed if segments else None,
                segments_q=inputs.segments_q, segments_k=inputs.segments_k,
                mask=mask, scale=inputs.scale, dropout_p=case.dropout, seed=seed, backend=backend,
            )  # fmt: skip

        return Attention(run, leaves, inputs.grad_out, to_standard)

    return build


def _unchanged(result: Result) -> Result:
    return result


def _split(x: Tensor, memory: int) -> tuple[Tensor, Tensor]:
    """Return the memory's part of (B, J, N, D) and the rest, leaves of their own."""
    parts = x.detach().split([memory, x.shape[1] - memory], dim=1)
    first, rest = (part.contiguous().requires_grad_(x.requires_grad) for part in parts)
    return first, rest


def _join_memory(result: Result) -> Result:
    """Put the gradients of the memory's keys and values, which come last, before the others."""
    if len(result) == 1:
        return result
    *result, k_memory, v_memory = result
    result[2] = torch.cat([k_memory, result[2]], dim=1)
    result[3] = torch.cat([v_memory, result[3]], dim=1)
    return result


HF_EAGER = Provider("hf_eager", _build_hf, _dense_why_not)
HF_COMPILE = Provider(
    "hf_compile",
    lambda case, inputs: _build_hf(case, inputs, compiled=True),
    _dense_why_not,
    compiles=True,
)
SDPA_BIAS = Provider("sdpa_bias", _build_sdpa_bias, _dense_why_not)
FLEX = Provider("flex", _build_flex, _flex_why_not, compiles=True)
SDPA_FLASH = Provider("sdpa_flash", _build_content_only, exact=False)
OURS = Provider("ours", _build_ours("auto"))


def named_provider(backend: str) -> Provider:
    """Return ours on a backend by name."""
    return Provider(f"ours_{backend}", _build_ours(backend))


def all_providers() -> tuple[Provider, ...]:
    """Return the rivals, ours as `auto` chooses, and each of our backends by name.

    Whether a named backend runs a case is the dispatcher's to say: it raises, the reason is shown.
    Those that compile, which may take a minute, come last: time may run out.
    """
    from xlnet_fast.ops._dispatch import CAPABILITIES

    timed = {"cpu", "cuda"}  # what is measured here
    named = [c.name for c in CAPABILITIES if not timed.isdisjoint(c.devices or ())]
    ours = (OURS, *map(named_provider, named))
    return (HF_EAGER, SDPA_FLASH, *ours, SDPA_BIAS, HF_COMPILE, FLEX)
