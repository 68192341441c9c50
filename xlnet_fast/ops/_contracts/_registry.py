"""The library all ops are registered in, and how an op is attached to its schema.

Registered with ``define``/``impl``/``register_fake`` (less overhead per call than ``custom_op``).
Each op takes its backend by name, already chosen by :mod:`xlnet_fast.ops._dispatch`, or by two, as
its ``spelled`` says; an :class:`AttentionMask` travels as its parts. The reference backend is not
here: it is plain ATen and is called directly, so that exported graphs lower anywhere. Only where
gradients are to be differentiated in their turn, a backward pass is that of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from xlnet_fast import transforms
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


def register(name: str, forward: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Attach implementations to the schema of an op without derivatives."""
    LIBRARY.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"xlnet_fast::{name}", fake, lib=LIBRARY)


def register_differentiable(
    name: str,
    forward: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    fake_backward: Callable[..., Any],
    plain: Callable[..., tuple[Tensor, ...]],
    queries: int = 1,
    selective: bool = False,
) -> None:
    """Attach implementations to the schemas of an op and of its backward op.

    Args:
        plain: the outputs with a gradient, from the op's arguments, in PyTorch's own code.
        queries: the number of these outputs, which come first; further ones are statistics for the
            backward pass, which takes them after these outputs.
        selective: the first argument of the backward op says which of its gradients are wanted.
    """
    op, backward_op = f"xlnet_fast::{name}", f"xlnet_fast::{name}_backward"
    register(name, _reverse_only(name, forward), fake)
    register(f"{name}_backward", _reverse_only(f"{name}_backward", backward), fake_backward)
    _register_autograd(
        op, getattr(torch.ops.xlnet_fast, f"{name}_backward"), plain, queries, selective
    )

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise BackendUnavailable(f"{backward_op} has no derivative; differentiate {op} twice")

    torch.library.register_autograd(backward_op, refuse, lib=LIBRARY)


def _reverse_only(name: str, run: Callable[..., _T]) -> Callable[..., _T]:
    """``run``, which would drop the derivatives of forward mode, refusing where there may be any.

    The public functions do not come here then. An exported program does.
    """

    def guarded(*args: Any) -> _T:
        refuse_forward_mode(name)
        return run(*args)

    return guarded


def refuse_forward_mode(name: str) -> None:
    """Raise where a kernel that knows no derivative would be differentiated without a word.

    Raises:
        BackendUnavailable: a level of forward-mode differentiation is active.
    """
    if transforms.in_forward_mode():
        raise BackendUnavailable(
            f"xlnet_fast::{name} has no forward-mode derivative; backend='reference' has one"
        )


def _register_autograd(
    op: str,
    backward_op: Any,
    plain: Callable[..., tuple[Tensor, ...]],
    queries: int,
    selective: bool,
) -> None:
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
        present = [
            torch.zeros_like(out) if grad is None else grad
            for grad, out in zip(grads, outs[:queries], strict=False)
        ]
        wanted = list(ctx.needs_input_grad[:returned])
        if torch.is_grad_enabled() or transforms.active():
            # The kernels' gradients would have no derivative.
            values = _differentiable_gradients(plain, inputs, wanted, present)
        else:
            values = backward_op(*([wanted] if selective else []), *present, *outs, *inputs)
        missing = (None,) * (len(inputs) - returned)
        return *(v if w else None for v, w in zip(values, wanted, strict=True)), *missing

    torch.library.register_autograd(op, backward, setup_context=setup_context, lib=LIBRARY)


def _differentiable_gradients(
    plain: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Any],
    wanted: Sequence[bool],
    grad_outs: Sequence[Tensor],
) -> list[Tensor | None]:
    """The gradients of the first ``len(wanted)`` inputs by those of ``plain``, None if unwanted.

    They have every derivative that PyTorch knows, and cost the memory of PyTorch's own code.
    """
    operands, rest = inputs[: len(wanted)], inputs[len(wanted) :]

    def of_wanted(*chosen: Tensor) -> tuple[Tensor, ...]:
        given = iter(chosen)
        return plain(
            *(next(given) if w else x for x, w in zip(operands, wanted, strict=True)), *rest
        )

    chosen = (x for x, want in zip(operands, wanted, strict=True) if want)
    gradients_of = torch.func.vjp(of_wanted, *chosen)[1]
    found = iter(gradients_of(tuple(grad_outs)))
    return [next(found) if want else None for want in wanted]
