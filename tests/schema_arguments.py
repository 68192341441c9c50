"""Arguments of the registered ops, for tests that call them without their public functions."""

from __future__ import annotations

from typing import Any

import torch
from hf_oracle import Problem, make_problem
from torch import Tensor

SEED = torch.tensor(11)
OPERANDS = ("k", "v", "k_memory", "v_memory", "r", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")


def schema_arguments(
    problem: Problem, dropout_p: float = 0.0, backend: str = "sdpa"
) -> tuple[Any, ...]:
    """The arguments of ``xlnet_fast::rel_attention`` after q, in schema order."""
    x, options = problem.operands, problem.options
    mask = options["mask"]
    return (
        *(x.get(name) for name in OPERANDS), options.get("segments_q"), options.get("segments_k"),
        *mask.tensors, options.get("positions"), SEED if dropout_p else None, *mask.flags,
        options["memory_length"], options.get("r_start", 0), options["scale"], dropout_p, backend,
    )  # fmt: skip


def with_grad(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in args
    )


def opcheck_backward(op: Any, gradients: int, args: tuple[Any, ...]) -> None:
    """Check a backward op with all gradients asked for, and with every second.

    Each is asked for by itself, so sizes need to be dynamic (which is slow) only once.
    """
    torch.library.opcheck(op, ([True] * gradients, *args))
    every_second = [number % 2 == 1 for number in range(gradients)]
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(op, (every_second, *args), test_utils=utils)


def small(**case: Any) -> Problem:
    return make_problem(**{"batch": 2, "queries": 4, "memory": 2, "dim": 3, **case})
