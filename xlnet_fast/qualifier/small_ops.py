"""Calls of ``masked_softmax``, ``concat_memory`` and ``linear``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast import ops, reference
from xlnet_fast.kernels.cpu import linear as cpu_linear
from xlnet_fast.masks import AttentionMask, pack_bits
from xlnet_fast.operands import SoftmaxInputs
from xlnet_fast.ops import linear as _linear  # noqa: F401 (registers the op)
from xlnet_fast.qualifier.problems import Far, Guards, Operands, Problem, kernels_of, moved, normal
from xlnet_fast.qualifier.tasks import Task

DROPOUT_P = 0.2
LAYERS = 3


class SoftmaxProblem(Problem):
    """One call of ``masked_softmax``."""

    TERMS = ("scores", "position_scores", "segment_scores")

    def __init__(self, operands: Operands, options: dict[str, Any]) -> None:
        super().__init__(operands)
        self.options = options

    def reference(self, operands: Operands) -> tuple[Tensor, ...]:
        return (reference.masked_softmax(**{**self.options, **operands}),)

    def run(self, operands: Operands, backend: str) -> tuple[Tensor, ...]:
        return (ops.masked_softmax(**{**self.options, **operands}, backend=backend),)

    def launch(
        self, backend: str, guards: Guards, grad_outs: Sequence[Tensor] | None
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        kernels = kernels_of("masked_softmax", backend)
        given = dict.fromkeys(field.name for field in fields(SoftmaxInputs))
        inputs = SoftmaxInputs(**{**given, **self.options, **self.operands})
        out = self._contiguous(guards, "out", inputs.scores)
        kernels.masked_softmax_forward(inputs, out)
        if grad_outs is None:
            return (out,), {}
        terms = zip(self.TERMS, inputs.terms, strict=True)
        empty = out.new_empty(0)
        grads = {
            name: empty if x is None else self._contiguous(guards, f"d {name}", x)
            for name, x in terms
        }
        kernels.masked_softmax_backward(inputs, out, grad_outs[0], list(grads.values()))
        return (out,), {name: grads[name] for name in self.operands}

    @staticmethod
    def _contiguous(guards: Guards, name: str, x: Tensor) -> Tensor:
        return guards.empty(name, x.shape, None, x.dtype, x.device)


def softmax_problem(
    task: Task,
    sizes: tuple[int, int, int, int],
    device: torch.device,
    seed: int = 0,
    with_all: bool = True,
    hostile: bool = True,
    far: bool = False,
) -> SoftmaxProblem:
    """A call of a class.

    Args:
        sizes: batch, heads, rows, memory keys, which say no more than which position is which.
        with_all: with position and segment scores where the class has them, and dropout.
        hostile: rows that see no key and scores that lie head by head.
        far: scores of two batch elements lie beyond 2^31 elements.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, heads, rows, memory = sizes
    keys = rows + memory

    def draw(*shape: int) -> Tensor:
        return (3 * normal(generator, torch.float32, *shape)).to(device, task.torch_dtype)

    operands = {"scores": draw(batch, heads, rows, keys)}
    if hostile:  # rows before heads in memory
        operands["scores"] = operands["scores"].transpose(1, 2).contiguous().transpose(1, 2)
    if far:
        operands["scores"] = Far(task.torch_dtype, device).place(operands["scores"])
    options: dict[str, Any] = {
        "memory_length": memory, "scale": 0.125, "mask": AttentionMask(),
        "dropout_p": 0.0, "seed": None,
    }  # fmt: skip
    if with_all:
        operands["position_scores"] = draw(batch, heads, rows, rows + keys)
    if task.operands == "plain":
        return SoftmaxProblem(operands, options)
    parts = _mask_parts(batch, rows, memory, generator, hostile)
    options["mask"] = AttentionMask(**{name: moved(x, device) for name, x in parts.items()})
    if with_all:
        operands["segment_scores"] = draw(batch, heads, rows)
        segments = torch.randint(0, 3, (batch, keys), generator=generator).to(device)
        options |= {"segments_k": segments, "segments_q": segments[:, memory:]}
        options |= {"dropout_p": DROPOUT_P, "seed": torch.tensor(987 + seed).to(device)}
        if hostile:
            places = [torch.randperm(rows, generator=generator) for _ in range(batch)]
            options["positions"] = torch.stack(places).to(device)
    return SoftmaxProblem(operands, options)


def _mask_parts(
    batch: int, rows: int, memory: int, generator: torch.Generator, hostile: bool
) -> dict[str, Any]:
    keys = rows + memory
    padding = torch.zeros(batch, keys, dtype=torch.bool)
    padding[0, keys - keys // 3 :] = True
    parts: dict[str, Any] = {"key_padding": padding}
    if not hostile:
        return parts
    padding[-1] = True
    order = torch.stack([torch.randperm(rows, generator=generator) for _ in range(batch)])
    hidden = torch.rand((batch, rows, keys), generator=generator) < 0.3
    past = torch.full((batch, memory), -1)
    return parts | {
        "rank_q": order, "rank_k": torch.cat([past, order], 1),
        "bits": pack_bits(hidden), "causal": True, "window": (rows // 2 + 5, 3), "chunk": 4,
    }  # fmt: skip


class MemoryProblem(Problem):
    """One call of ``concat_memories``: copies, which are right bit for bit or wrong."""

    exact = True

    def __init__(
        self, hidden: list[Tensor], memory: list[Tensor] | None, mem_len: int, reuse_len: int | None
    ) -> None:
        super().__init__({})
        self.hidden, self.memory = hidden, memory
        self.mem_len, self.reuse_len = mem_len, reuse_len

    def reference(self, operands: Operands) -> tuple[Tensor, ...]:
        memories: Sequence[Tensor | None] = self.memory or [None] * len(self.hidden)
        pairs = zip(self.hidden, memories, strict=True)
        return tuple(reference.concat_memory(h, m, self.mem_len, self.reuse_len) for h, m in pairs)

    def run(self, operands: Operands, backend: str) -> tuple[Tensor, ...]:
        return tuple(
            ops.concat_memories(
                self.hidden, self.memory, self.mem_len, self.reuse_len, backend=backend
            )
        )

    def launch(
        self, backend: str, guards: Guards, grad_outs: Sequence[Tensor] | None
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        first = self.hidden[0]
        kept = min(self.reuse_len or first.shape[0], first.shape[0])
        total = kept + (0 if self.memory is None else self.memory[0].shape[0])
        start = max(0, total - self.mem_len)
        shape = (len(self.hidden), total - start, *first.shape[1:])
        out = guards.empty("out", shape, None, first.dtype, first.device)
        kernels = kernels_of("concat_memory", backend)
        kernels.concat_memory_forward(self.hidden, self.memory, start, kept, out)
        return tuple(out.unbind()), {}


def memory_problem(
    task: Task, sizes: tuple[int, int, int, int], mem_len: int, device: torch.device
) -> MemoryProblem:
    """``sizes``: rows of a segment, batch, width, rows of memory; strides with gaps."""
    generator = torch.Generator().manual_seed(0)
    rows, batch, width, memory = sizes

    def layers(count: int) -> list[Tensor]:
        wide = (normal(generator, task.torch_dtype, count, batch, width + 8) for _ in range(LAYERS))
        return [x.to(device)[..., :width] for x in wide]

    return MemoryProblem(layers(rows), layers(memory) if memory else None, mem_len, None)


class LinearProblem(Problem):
    """One linear layer by our kernels, with what follows it: nothing, GELU, or a residual."""

    def __init__(self, operands: Operands, activation: str) -> None:
        super().__init__(operands)
        self.activation = activation

    def reference(self, operands: Operands) -> tuple[Tensor, ...]:
        out = F.linear(operands["x"], operands["weight"], operands.get("bias"))
        if "residual" in operands:
            out = out + operands["residual"]
        return (F.gelu(out) if self.activation == "gelu" else out,)

    def run(self, operands: Operands, backend: str) -> tuple[Tensor, ...]:
        if backend == "aten":
            return self.reference(operands)
        optional = (operands.get("bias"), operands.get("residual"))
        out: Tensor = torch.ops.xlnet_fast.linear(
            operands["x"], operands["weight"], *optional, self.activation
        )
        return (out,)

    def launch(
        self, backend: str, guards: Guards, grad_outs: Sequence[Tensor] | None
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Its backward pass is made of this one forward kernel and a product of PyTorch's."""
        x, weight = self.operands["x"], self.operands["weight"]
        rows = x.flatten(0, -2)
        out = guards.empty("out", (rows.shape[0], weight.shape[0]), None, x.dtype, x.device)
        residual = self.operands.get("residual")
        added = None if residual is None else residual.flatten(0, -2)
        gelu = self.activation == "gelu"
        cpu_linear.linear(rows, weight, self.operands.get("bias"), added, gelu, out)
        return (out.view(*x.shape[:-1], -1),), {}


def linear_problem(
    task: Task,
    sizes: tuple[int, int, int],
    device: torch.device,
    activation: str = "none",
    bias: bool = True,
    residual: bool = False,
) -> LinearProblem:
    """``sizes``: rows, terms of a sum, columns."""
    generator = torch.Generator().manual_seed(0)
    rows, terms, columns = sizes

    def draw(*shape: int) -> Tensor:
        return normal(generator, task.torch_dtype, *shape).to(device)

    operands = {"x": draw(1, rows, terms), "weight": draw(columns, terms)}
    if bias:
        operands["bias"] = draw(columns)
    if residual:
        operands["residual"] = draw(1, rows, columns)
    return LinearProblem(operands, activation)
