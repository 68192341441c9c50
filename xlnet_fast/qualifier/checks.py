"""Is a backend right on a call? By the one tolerance rule, between guard bands, and repeatedly.

The yardstick is the reference in the working dtype, which is Hugging Face's formula, product by
product, with the softmax in fp32: in half precision it errs less than Hugging Face's code, whose
softmax is rounded too, so the bound is never the wider one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from xlnet_fast.ops.qualification.record import BACKWARD, FAILED, PASSED
from xlnet_fast.qualifier.problems import Guards, Problem, same_bits
from xlnet_fast.tolerance import error_and_bound

DRAWS = {torch.float32: 7}
"""Gradients of the output that a bound is taken over; of any other dtype 3. A gradient such as that
of a bias is small, so eager's largest error in it is one of few, and by luck far too small."""
REPEATS = {"cpu": 1, "cuda": 3}
"""Further runs whose bits are compared: on a GPU a race shows in some of them only."""

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """Of one backend on the calls of one class in one direction; fields as of ``record.Row``."""

    status: str
    reason: str = ""
    error: float | None = None
    bound: float | None = None


class _Wrong(Exception):
    """What a backend did wrong, in words."""

    def __init__(self, reason: str, error: float | None = None, bound: float | None = None) -> None:
        super().__init__(reason)
        self.error, self.bound = error, bound


class Yardstick:
    """What is exact on a problem, and what the tolerance rule allows."""

    def __init__(self, problem: Problem, direction: str) -> None:
        self.problem, self.direction = problem, direction
        self.grad_outs: tuple[Tensor, ...] | None = None
        if direction == BACKWARD:
            self.grad_outs = problem.grad_outs()
        self.exact, self.bounds = self._measure()

    def _measure(self) -> tuple[Results, dict[str, float]]:
        problem = self.problem
        if problem.exact:
            outs = problem.reference(problem.operands)
            return {f"out {n}": out.cpu() for n, out in enumerate(outs)}, {}
        dtype = next(iter(problem.operands.values())).dtype
        exact: Results = {}
        bounds: dict[str, float] = {}
        draws = 1 if self.grad_outs is None else DRAWS.get(dtype, 3)
        graphs = [_graph(problem, kind) for kind in (dtype, torch.float64)]
        for shift in range(draws):
            grads = None if self.grad_outs is None else _rolled(self.grad_outs, shift)
            eager, right = (graph(grads) for graph in graphs)
            for name, value in eager.items():
                _, bound = error_and_bound(value, value, right[name])
                bounds[name] = max(bounds.get(name, 0.0), bound)
            if shift == 0:
                exact = right
        return exact, bounds

    def hold(self, results: Results) -> tuple[float, float]:
        """The error and the bound of the tensor that is nearest to its bound.

        Raises:
            _Wrong: one is beyond it.
        """
        worst = (0.0, 0.0)
        for name, right in self.exact.items():
            value = results[name].detach().cpu()
            if self.problem.exact:
                if not torch.equal(value, right):
                    raise _Wrong(f"{name} is no copy")
                continue
            value, right = self._where_it_counts(name, value, right)
            error, _ = error_and_bound(value, value, right)
            bound = self.bounds[name]
            if not error <= bound:
                stored = error if math.isfinite(error) else None
                raise _Wrong(f"{name} is off by {error:.3g}, allowed {bound:.3g}", stored, bound)
            if _ratio(error, bound) >= _ratio(*worst):
                worst = error, bound
        return worst

    def _where_it_counts(self, name: str, value: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """A gradient and the right one, without that of NaN in padded keys, finite as it may be.

        Backends differ there where a row sees no other key: some give the gradient of the 0 that
        NaN counts as, others none. Models have no NaN there, it only shows who reads it.
        """
        operand = self.problem.operands.get(name.removeprefix("d "))
        if operand is None or not name.startswith("d "):
            return value, right
        free = operand.isnan().cpu() & value.isfinite()
        return value.masked_fill(free, 0), right.masked_fill(free, 0)


def check(
    problems: Iterable[Problem], backend: str, direction: str, device: torch.device
) -> Verdict:
    """The verdict on a backend; an exception of its kernels is one."""
    worst = (0.0, 0.0)
    for number, problem in enumerate(problems, 1):
        try:
            with _one_thread():
                yardstick = Yardstick(problem, direction)
                _finish(device)
                found = _examine(yardstick, backend, device)
        except _Wrong as wrong:
            return Verdict(FAILED, f"call {number}: {wrong}", wrong.error, wrong.bound)
        except Exception as error:  # whatever it is, this backend cannot be used
            return Verdict(FAILED, f"call {number}: {in_words(error)}")
        if _ratio(*found) >= _ratio(*worst):
            worst = found
    return Verdict(PASSED, "", *worst)


def rehearse(problem: Problem, backend: str, direction: str) -> None:
    """One run without a verdict: compilers of kernels keep what they made."""
    grad_outs = problem.grad_outs() if direction == BACKWARD else None
    try:
        _by_op(problem, backend, grad_outs)
        if grad_outs is not None:
            with _deterministic():
                _by_op(problem, backend, grad_outs)
    except Exception:  # the checks will meet it, too, and say so
        return


def _examine(yardstick: Yardstick, backend: str, device: torch.device) -> tuple[float, float]:
    """Error and bound nearest to each other over all runs of one problem; raises ``_Wrong``."""
    problem, grad_outs = yardstick.problem, yardstick.grad_outs
    by_op = _by_op(problem, backend, grad_outs)
    _finish(device)
    worst = yardstick.hold(by_op)
    first: Results | None = None
    for _ in range(1 + REPEATS[device.type]):
        guards = Guards()
        with _all_threads(backend):
            outs, grads = problem.launch(backend, guards, grad_outs)
        _finish(device)
        touched = guards.touched()
        if touched is not None:
            raise _Wrong(f"wrote outside of {touched}")
        results = _named(outs, grads)
        _compare(results, by_op, [name for name in results if name.startswith("out")], "the op")
        if first is None:
            first = results
            known = {name: results.get(name, value) for name, value in by_op.items()}
            found = yardstick.hold(known)
            worst = found if _ratio(*found) > _ratio(*worst) else worst
        _compare(results, first, list(results), "a second run")
    _repeat_op(problem, backend, grad_outs, by_op)
    return worst


def _repeat_op(
    problem: Problem, backend: str, grad_outs: Sequence[Tensor] | None, before: Results
) -> None:
    """The op itself again: with gradients the same bits are promised in deterministic mode only."""
    if grad_outs is None:
        _compare(_by_op(problem, backend, None), before, list(before), "a second run")
        return
    with _deterministic():
        runs = [_by_op(problem, backend, grad_outs) for _ in range(2)]
    _compare(runs[1], runs[0], list(before), "a second run in deterministic mode")


def _by_op(problem: Problem, backend: str, grad_outs: Sequence[Tensor] | None) -> Results:
    if grad_outs is None:
        with torch.no_grad():
            return _named(problem.run(problem.operands, backend), {})
    leaves = problem.leaves()
    outs = problem.run(leaves, backend)
    grads = torch.autograd.grad(outs, list(leaves.values()), problem.unread(grad_outs))
    return _named([out.detach() for out in outs], dict(zip(leaves, grads, strict=True)))


def _graph(problem: Problem, dtype: torch.dtype) -> Callable[[Sequence[Tensor] | None], Results]:
    """The reference's outputs, once, and its gradients as often as asked for."""
    leaves = problem.clean_leaves(dtype)
    outs = problem.reference(leaves)

    def results(grad_outs: Sequence[Tensor] | None) -> Results:
        if grad_outs is None:
            return _on_host(_named(outs, {}))
        like = [grad.to(out.dtype) for grad, out in zip(grad_outs, outs, strict=True)]
        grads = torch.autograd.grad(
            outs, list(leaves.values()), like, retain_graph=True, materialize_grads=True
        )
        return _on_host(_named(outs, dict(zip(leaves, grads, strict=True))))

    return results


def _rolled(grad_outs: Sequence[Tensor], shift: int) -> list[Tensor]:
    """Another draw: rows and columns moved round."""
    return [x.roll((shift, shift), dims=(1, -1)) for x in grad_outs]


def _named(outs: Sequence[Tensor], grads: Results) -> Results:
    """Outputs and gradients by name."""
    named = {f"out {number}": out for number, out in enumerate(outs)}
    return named | {(n if n.startswith("d ") else f"d {n}"): grad for n, grad in grads.items()}


def _on_host(results: Results) -> Results:
    return {name: x.detach().cpu() for name, x in results.items()}


def _compare(results: Results, others: Results, names: Sequence[str], than: str) -> None:
    for name in names:
        if not same_bits(results[name], others[name]):
            raise _Wrong(f"{name} has other bits than {than}")


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


_THREADS = torch.get_num_threads()


def _all_threads(backend: str) -> AbstractContextManager[None]:
    """Of the host, for the kernels that promise the same bits on any number of threads."""
    return _threads(_THREADS if backend == "cpu" else 1)


def _one_thread() -> AbstractContextManager[None]:
    """Tensors are so small that the threads of a busy host would mostly wait for each other."""
    return _threads(1)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _finish(device: torch.device) -> None:
    """Wait for the device, so that a fault shows at the call that made it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_words(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"raised {type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


def _ratio(error: float, bound: float) -> float:
    return error / bound if bound > 0 else (math.inf if error > 0 else 0.0)
