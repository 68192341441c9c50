"""The library all ops are registered in, and how an op is attached to its schema.

Registered with ``define``/``impl``/``register_fake`` (less overhead per call than ``custom_op``).
Each op takes its backend by name, already chosen by :mod:`xlnet_fast.ops._dispatch`, or by two, as
its ``spelled`` says; an :class:`AttentionMask` travels as its parts. The reference backend is not
here: it is plain ATen and is called directly, so that exported graphs lower anywhere. Only where
gradients are to be differentiated in their turn, a backward pass is that of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    "Tensor? seed, bool causal, bool same_length, bool see_self, SymInt window_left, "
    "SymInt window_right, SymInt chunk, SymInt memory_length, {more}float scale, float dropout_p"
)
SOFTMAX_PARTS, ATTENTION_PARTS = PARTS.format(more=""), PARTS.format(more="SymInt r_start, ")


def parts_of(
    args: Sequence[Any],
) -> tuple[AttentionMask, Tensor | None, Tensor | None, Sequence[Any]]:
    """From the arguments of ``PARTS`` on: mask, positions, seed; the numbers behind the mask's."""
    return AttentionMask.from_parts(args[:4], args[6:12]), args[4], args[5], args[12:-1]


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


@dataclass(frozen=True)
class Differentiable:
    """An op whose backward pass is an op, and its parts in plain Python.

    Attributes:
        forward: from the op's arguments to its results. backward: that of the backward op.
        plain: the outputs with a gradient, from the op's arguments, in PyTorch's own code.
        queries: the number of these outputs, which come first; further ones are statistics for the
            backward pass, which takes them after these outputs.
        selective: the first argument of the backward op says which of its gradients are wanted.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., tuple[Tensor, ...]]
    plain: Callable[..., tuple[Tensor, ...]]
    queries: int = 1
    selective: bool = False

    @property
    def op(self) -> Any:
        """Of ``torch.ops``."""
        return getattr(torch.ops.xlnet_fast, self.name)

    @property
    def backward_op(self) -> Any:
        """Of ``torch.ops``."""
        return getattr(torch.ops.xlnet_fast, f"{self.name}_backward")

    @property
    def operands(self) -> int:
        """How many of the op's arguments, the first, have a gradient."""
        return len(self.backward_op.default._schema.returns)

    def gradients(
        self,
        wanted: list[bool],
        grad_outs: Sequence[Tensor | None],
        results: Sequence[Tensor],
        inputs: Sequence[Any],
    ) -> list[Tensor | None]:
        """The gradients of the operands, None where not wanted.

        Args:
            grad_outs: of the first ``queries`` of the op's ``results``, None for zeros.
            inputs: the op's arguments.
        """
        present = [
            torch.zeros_like(out) if grad is None else grad
            for grad, out in zip(grad_outs, results[: self.queries], strict=False)
        ]
        if torch.is_grad_enabled() or transforms.active():
            # The kernels' gradients would have no derivative.
            return _differentiable_gradients(self.plain, inputs, wanted, present)
        direct = transforms.nobody_looks_on() and transforms.are_plain((*present, *inputs))
        compute = self.backward if direct else self.backward_op
        values = compute(*([wanted] if self.selective else []), *present, *results, *inputs)
        return [v if want else None for v, want in zip(values, wanted, strict=True)]


def register_differentiable(
    op: Differentiable, fake: Callable[..., Any], fake_backward: Callable[..., Any]
) -> None:
    """Attach implementations to the schemas of an op and of its backward op."""
    name = f"xlnet_fast::{op.name}"
    register(op.name, _reverse_only(op.name, op.forward), fake)
    register(
        f"{op.name}_backward", _reverse_only(f"{op.name}_backward", op.backward), fake_backward
    )
    _register_autograd(op)

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise BackendUnavailable(f"{name}_backward has no derivative; differentiate {name} twice")

    torch.library.register_autograd(f"{name}_backward", refuse, lib=LIBRARY)


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


def _register_autograd(op: Differentiable) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_tensor = [isinstance(x, Tensor) for x in inputs]
        ctx.constants = [x for x in inputs if not isinstance(x, Tensor)]
        outs = output if isinstance(output, tuple) else (output,)
        ctx.outputs = len(outs)
        ctx.mark_non_differentiable(*outs[op.queries :])
        ctx.set_materialize_grads(False)  # or the statistics get one, of zeros, at every call
        ctx.save_for_backward(*outs, *(x for x in inputs if isinstance(x, Tensor)))

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        saved, constants = iter(ctx.saved_tensors), iter(ctx.constants)
        outs = [next(saved) for _ in range(ctx.outputs)]
        inputs = [next(saved if is_tensor else constants) for is_tensor in ctx.is_tensor]
        wanted = list(ctx.needs_input_grad[: op.operands])
        missing = (None,) * (len(inputs) - op.operands)
        return *op.gradients(wanted, grads, outs, inputs), *missing

    torch.library.register_autograd(
        f"xlnet_fast::{op.name}", backward, setup_context=setup_context, lib=LIBRARY
    )


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
