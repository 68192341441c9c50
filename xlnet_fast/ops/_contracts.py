"""torch.library contracts of the ops: schemas, real and fake implementations, autograd.

Registered with ``define``/``impl``/``register_fake`` (less overhead per call than ``custom_op``).
Each op takes its backend by name, already chosen by :mod:`xlnet_fast.ops._dispatch`; an
:class:`AttentionMask` travels as its parts. The reference backend is not here: it is plain ATen and
is called directly, so that exported graphs lower anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels.sdpa import concat_memory as sdpa_memory
from xlnet_fast.kernels.sdpa import masked_softmax as sdpa_softmax
from xlnet_fast.kernels.sdpa import rel_attention as sdpa_attention
from xlnet_fast.masks import AttentionMask, take_rows
from xlnet_fast.ops._validation import check_positions

_LIBRARY = torch.library.Library("xlnet_fast", "FRAGMENT")

_PARTS = (  # of an AttentionMask, and what belongs to every attention op
    "Tensor? key_padding, Tensor? rank_q, Tensor? rank_k, Tensor? bits, Tensor? positions, "
    "Tensor? seed, bool causal, bool same_length, bool see_self, SymInt memory_length, "
    "float scale, float dropout_p"
)
_ATTENTION = (
    "Tensor k, Tensor v, Tensor r, Tensor r_w_bias, Tensor r_r_bias, "
    "Tensor? r_s_bias, Tensor? seg_embed, Tensor? segments_q, Tensor? segments_k, "
    f"{_PARTS}, str backend"
)
_SOFTMAX = (
    "Tensor scores, Tensor? position_scores, Tensor? segment_scores, "
    f"Tensor? segments_q, Tensor? segments_k, {_PARTS}"
)
_SEVEN = "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor"

_LIBRARY.define(f"rel_attention(Tensor q, {_ATTENTION}) -> Tensor")
_LIBRARY.define(
    f"rel_attention_backward(Tensor grad_out, Tensor out, Tensor q, {_ATTENTION}) "
    f"-> (Tensor, {_SEVEN})"
)
_LIBRARY.define(f"two_stream_attention(Tensor q_h, Tensor q_g, {_ATTENTION}) -> (Tensor, Tensor)")
_LIBRARY.define(
    "two_stream_attention_backward(Tensor grad_h, Tensor grad_g, Tensor out_h, Tensor out_g, "
    f"Tensor q_h, Tensor q_g, {_ATTENTION}) -> (Tensor, Tensor, {_SEVEN})"
)
_LIBRARY.define(f"masked_softmax({_SOFTMAX}) -> Tensor")
_LIBRARY.define(
    f"masked_softmax_backward(Tensor grad_out, Tensor out, {_SOFTMAX}) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define("concat_memory(Tensor hidden, Tensor? memory, SymInt start, SymInt kept) -> Tensor")


# --- rel_attention -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """Schema arguments of an attention op after its queries, in schema order."""

    k: Tensor
    v: Tensor
    r: Tensor
    r_w_bias: Tensor
    r_r_bias: Tensor
    r_s_bias: Tensor | None
    seg_embed: Tensor | None
    segments_q: Tensor | None
    segments_k: Tensor | None
    key_padding: Tensor | None
    rank_q: Tensor | None
    rank_k: Tensor | None
    bits: Tensor | None
    positions: Tensor | None
    seed: Tensor | None
    causal: bool
    same_length: bool
    see_self: bool
    memory_length: int
    scale: float
    dropout_p: float
    backend: str

    def kernel_args(self) -> tuple[Any, ...]:
        """What follows q in a kernel's signature, up to its output."""
        mask = AttentionMask(
            self.key_padding, self.rank_q, self.rank_k, self.bits,
            self.causal, self.same_length, self.see_self,
        )  # fmt: skip
        return (
            self.k, self.v, self.r, self.r_w_bias, self.r_r_bias, self.r_s_bias, self.seg_embed,
            self.segments_q, self.segments_k, mask, self.positions, self.memory_length,
            self.scale, self.dropout_p, self.seed,
        )  # fmt: skip

    @property
    def gradient_likes(self) -> tuple[Tensor | None, ...]:
        """The arguments that get a gradient; None where there is none."""
        segmented = self.segments_q is not None
        optional = (self.r_s_bias, self.seg_embed) if segmented else (None, None)
        return self.k, self.v, self.r, self.r_w_bias, self.r_r_bias, *optional

    def streams(self) -> tuple[_Call, _Call]:
        """The content stream's call and the query stream's, from a two-stream call."""
        segments_q, rank_q, bits = self.segments_q, self.rank_q, self.bits
        if self.positions is not None:
            check_positions(self.positions, self.k.shape[1] - self.memory_length)
            per_row = (segments_q, rank_q, bits)
            segments_q, rank_q, bits = (take_rows(x, self.positions) for x in per_row)
        content = replace(self, positions=None, see_self=True)
        query = replace(
            self, segments_q=segments_q, rank_q=rank_q, bits=bits, see_self=False,
            seed=None if self.seed is None else self.seed + 1,
        )  # fmt: skip
        return content, query


def _rel_attention(q: Tensor, *args: Any) -> Tensor:
    call = _Call(*args)
    out = torch.empty_like(q)
    check_positions(call.positions, call.k.shape[1] - call.memory_length)
    if q.numel() == 0:
        return out
    arguments = (q, *call.kernel_args(), out)
    if call.backend == "sdpa":
        sdpa_attention.rel_attention_forward(*arguments)
    elif call.backend == "triton":
        from xlnet_fast.kernels.triton import rel_attention as triton_attention

        triton_attention.rel_attention_forward(*arguments)
    else:
        raise BackendUnavailable(f"no registered backend {call.backend!r} of rel_attention")
    return out


def _rel_attention_backward(
    grad_out: Tensor, out: Tensor, q: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    call = _Call(*args)
    if call.backend != "sdpa":
        raise BackendUnavailable(
            f"backend {call.backend!r} has no backward pass of rel_attention; use backend='sdpa'"
        )
    grads = _empty_grads((q, *call.gradient_likes))
    if q.numel() == 0:
        return tuple(grad.zero_() for grad in grads)
    arguments = (grad_out, out, q, *call.kernel_args(), grads)
    sdpa_attention.rel_attention_backward(*arguments)
    return grads


def _empty_grads(likes: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Schemas cannot return an optional tensor: an empty one stands for None."""
    first = likes[0]
    assert first is not None
    return tuple(first.new_empty(0) if x is None else torch.empty_like(x) for x in likes)


# --- two_stream_attention ------------------------------------------------------------------------


def _two_stream_attention(q_h: Tensor, q_g: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    out_h, out_g = (
        _rel_attention(q, *_values(call))
        for q, call in zip((q_h, q_g), _Call(*args).streams(), strict=True)
    )
    return out_h, out_g


def _two_stream_attention_backward(
    grad_h: Tensor,
    grad_g: Tensor,
    out_h: Tensor,
    out_g: Tensor,
    q_h: Tensor,
    q_g: Tensor,
    *args: Any,
) -> tuple[Tensor, ...]:
    content, query = _Call(*args).streams()
    of_h = _rel_attention_backward(grad_h, out_h, q_h, *_values(content))
    of_g = _rel_attention_backward(grad_g, out_g, q_g, *_values(query))
    return of_h[0], of_g[0], *(h.add_(g) for h, g in zip(of_h[1:], of_g[1:], strict=True))


def _values(call: _Call) -> Iterator[Any]:
    return (getattr(call, field.name) for field in fields(call))


# --- masked_softmax ------------------------------------------------------------------------------


def _softmax_args(args: Sequence[Any]) -> tuple[Any, ...]:
    """Schema arguments after ``scores`` to a kernel's arguments."""
    scores, parts, positions, seed, flags = args[:4], args[4:8], args[8], args[9], args[10:13]
    memory_length, scale, dropout_p = args[13:]
    mask = AttentionMask(*parts, *flags)
    return (*scores, mask, positions, memory_length, scale, dropout_p, seed)


def _masked_softmax(scores: Tensor, *args: Any) -> Tensor:
    out = torch.empty_like(scores, memory_format=torch.contiguous_format)
    check_positions(args[8], scores.shape[3] - args[13])
    if scores.numel():
        arguments = (scores, *_softmax_args(args), out)
        sdpa_softmax.masked_softmax_forward(*arguments)
    return out


def _masked_softmax_backward(
    grad_out: Tensor, out: Tensor, scores: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    grads = _empty_grads((scores, args[0], args[1]))
    if scores.numel() == 0:
        return tuple(grad.zero_() for grad in grads)
    arguments = (grad_out, out, scores, *_softmax_args(args), grads)
    sdpa_softmax.masked_softmax_backward(*arguments)
    return grads


# --- concat_memory -------------------------------------------------------------------------------


def _new_memory(hidden: Tensor, memory: Tensor | None, start: int, kept: int) -> Tensor:
    length = kept if memory is None else kept + memory.shape[0]
    return hidden.new_empty(length - start, *hidden.shape[1:])


def _concat_memory(hidden: Tensor, memory: Tensor | None, start: int, kept: int) -> Tensor:
    out = _new_memory(hidden, memory, start, kept)
    sdpa_memory.concat_memory_forward(hidden, memory, start, kept, out)
    return out


# --- registration --------------------------------------------------------------------------------


def _register(
    name: str,
    forward: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    fake_backward: Callable[..., Any] | None = None,
    queries: int = 1,
) -> None:
    """Attach implementations to a schema. ``queries`` is the number of outputs with a gradient."""
    op = f"xlnet_fast::{name}"
    _LIBRARY.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(op, fake, lib=_LIBRARY)
    if backward is None or fake_backward is None:
        return
    _LIBRARY.impl(f"{name}_backward", backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{op}_backward", fake_backward, lib=_LIBRARY)
    _register_autograd(op, getattr(torch.ops.xlnet_fast, f"{name}_backward"), queries)

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise BackendUnavailable(
            f"this backend has no second derivative of {name}; use backend='reference'"
        )

    torch.library.register_autograd(f"{op}_backward", refuse, lib=_LIBRARY)


def _register_autograd(op: str, backward_op: Callable[..., Any], outputs: int) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_tensor = [isinstance(x, Tensor) for x in inputs]
        ctx.constants = [x for x in inputs if not isinstance(x, Tensor)]
        outs = output if isinstance(output, tuple) else (output,)
        ctx.save_for_backward(*outs, *(x for x in inputs if isinstance(x, Tensor)))

    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved, constants = iter(ctx.saved_tensors), iter(ctx.constants)
        outs = [next(saved) for _ in range(outputs)]
        inputs = [next(saved if is_tensor else constants) for is_tensor in ctx.is_tensor]
        values = backward_op(*grads, *outs, *inputs)
        missing = (None,) * (len(inputs) - len(values))
        present = (
            value if wanted else None
            for value, wanted in zip(values, ctx.needs_input_grad[: len(values)], strict=True)
        )
        return *present, *missing

    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=_LIBRARY)


_register(
    "rel_attention",
    _rel_attention,
    lambda q, *args: torch.empty_like(q),
    _rel_attention_backward,
    lambda grad, out, q, *args: _empty_grads((q, *_Call(*args).gradient_likes)),
)
_register(
    "two_stream_attention",
    _two_stream_attention,
    lambda q_h, q_g, *args: (torch.empty_like(q_h), torch.empty_like(q_g)),
    _two_stream_attention_backward,
    lambda grad_h, grad_g, out_h, out_g, q_h, q_g, *args: _empty_grads(
        (q_h, q_g, *_Call(*args).gradient_likes)
    ),
    queries=2,
)
_register(
    "masked_softmax",
    _masked_softmax,
    lambda scores, *args: torch.empty_like(scores, memory_format=torch.contiguous_format),
    _masked_softmax_backward,
    lambda grad, out, scores, *args: _empty_grads((scores, args[0], args[1])),
)
_register("concat_memory", _concat_memory, _new_memory)
