"""The problems of ``hf_oracle`` with the memory apart, and as the types that backends take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hf_oracle import Problem
from torch import Tensor

from xlnet_fast.operands import Keys, Queries


def apart(problem: Problem) -> Problem:
    """The same problem, its first M keys and values in k_memory and v_memory."""
    memory = problem.options["memory_length"]
    operands = dict(problem.operands)
    for name in ("k", "v"):
        operands[name] = problem.operands[name][:, memory:]
        operands[f"{name}_memory"] = problem.operands[name][:, :memory]
    return replace(problem, operands=operands)


def joined(result: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a ``run`` on such a problem, the gradients of k and v for all J keys."""
    result = dict(result)
    for name in ("d k", "d v"):
        result[name] = torch.cat([result.pop(f"{name}_memory"), result[name]], dim=1)
    return result


def kernel_operands(
    problem: Problem, dropout_p: float = 0.0, seed: Tensor | None = None
) -> tuple[Keys, Queries]:
    """What a backend takes; the problem may have its memory apart."""
    x, options = problem.operands, problem.options
    names = ("k", "v", "k_memory", "v_memory", "r", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")
    operands: Any = {name: x.get(name) for name in names}
    keys = Keys(
        **operands, segments=options.get("segments_k"), memory_length=options["memory_length"],
        scale=options["scale"], dropout_p=dropout_p,
    )  # fmt: skip
    positions = options.get("positions")
    queries = Queries(x["q"], options.get("segments_q"), options["mask"], positions, seed)
    return keys, queries
