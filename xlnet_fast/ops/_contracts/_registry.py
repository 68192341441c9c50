"""The library all ops are registered in, and how an op is attached to its schema.

Registered with ``define``/``impl``/``register_fake`` (less overhead per call than ``custom_op``).
Each op takes its backend by name, already chosen by :mod:`xlnet_fast.ops._dispatch`, or by two, as
its ``spelled`` says; an :class:`AttentionMask` travels as its parts. The reference backend is not
here: it is plain ATen and is called directly, so that exported graphs lower anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.masks import AttentionMask
from xlnet_fast.ops.qualification import proof

_T = TypeVar("_T")

LIBRARY = torch.library.Library("xlnet_fast", "FRAGMENT")

PARTS = (  # of an AttentionMask, and what belongs to every attention op
    "Tensor? key_padding, Tensor? rank_q, Tensor? rank_k, Tensor? bits, Tensor? positions, "
    "Tensor? seed, bool causal, bool same_length, bool see_self, SymInt memory_length, "
    "float scale, float dropout_p"
)


def parts_of(
    args: Sequence[Any],
) -> tuple[AttentionMask, Tensor | None, Tensor | None, Sequence[Any]]:
    """From the arguments of ``PARTS`` on: mask, positions, seed; memory length, scale, dropout."""
    return AttentionMask(*args[:4], *args[6:9]), args[4], args[5], args[9:12]


def names(backend: str) -> tuple[str, str]:
    """The backend that an op is told to run, and the one that takes over if it raises, or ""."""
    first, _, second = backend.partition("|")
    return first, second


def launch(backend: str, run: Callable[[str], _T]) -> _T:
    """What ``run`` gives with the backend's name; with the second's, once the first has raised.

    Outputs are filled anew by the second. Memory that ran out and arguments that no kernel takes
    are not a kernel's fault: they are raised.
    """
    first, second = names(backend)
    if not second:
        return run(first)
    if first not in proof.REVOKED:
        try:
            return run(first)
        except (torch.OutOfMemoryError, ArgumentError):
            raise
        except Exception as error:
            proof.revoke(first, error)
    return run(second)


def empty_grads(likes: Sequence[Tensor | None], first: Tensor) -> tuple[Tensor, ...]:
    """Schemas cannot return an optional tensor: an empty one, like ``first``, stands for None."""
    return tuple(first.new_empty(0) if x is None else torch.empty_like(x) for x in likes)


def register(
    name: str,
    forward: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    fake_backward: Callable[..., Any] | None = None,
    queries: int = 1,
    selective: bool = False,
) -> None:
    """Attach implementations to a schema.

    Args:
        queries: the number of outputs with a gradient, which come first; further ones are
            statistics for the backward pass, which takes them after these outputs.
        selective: the first argument of the backward op says which of its gradients are wanted.
    """
    op = f"xlnet_fast::{name}"
    LIBRARY.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(op, fake, lib=LIBRARY)
    if backward is None or fake_backward is None:
        return
    LIBRARY.impl(f"{name}_backward", backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{op}_backward", fake_backward, lib=LIBRARY)
    _register_autograd(op, getattr(torch.ops.xlnet_fast, f"{name}_backward"), queries, selective)

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise BackendUnavailable(
            f"this backend has no second derivative of {name}; use backend='reference'"
        )

    torch.library.register_autograd(f"{op}_backward", refuse, lib=LIBRARY)


def _register_autograd(op: str, backward_op: Any, queries: int, selective: bool) -> None:
    returned = len(backward_op.default._schema.returns)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_tensor = [isinstance(x, Tensor) for x in inputs]
        ctx.constants = [x for x in inputs if not isinstance(x, Tensor)]
        outs = output if isinstance(output, tuple) else (output,)
        ctx.outputs = len(outs)
        ctx.mark_non_differentiable(*outs[queries:])
        ctx.set_materialize_grads(False)  # or the statistics get one, of zeros, at every call
        ctx.save_for_backward(*outs, *(x for x in inputs if isinstance(x, Tensor)))

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        saved, constants = iter(ctx.saved_tensors), iter(ctx.constants)
        outs = [next(saved) for _ in range(ctx.outputs)]
        inputs = [next(saved if is_tensor else constants) for is_tensor in ctx.is_tensor]
        present = (
            torch.zeros_like(out) if grad is None else grad
            for grad, out in zip(grads, outs[:queries], strict=False)
        )
        wanted = list(ctx.needs_input_grad[:returned])
        values = backward_op(*([wanted] if selective else []), *present, *outs, *inputs)
        missing = (None,) * (len(inputs) - returned)
        return *(v if w else None for v, w in zip(values, wanted, strict=True)), *missing

    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=LIBRARY)
