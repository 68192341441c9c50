"""Tiny models of Hugging Face under torchax: outputs and gradients as JAX compiles them."""

from __future__ import annotations

from typing import Any

import jax
import torch
import torchax
from torch import Tensor, nn
from torchax import interop
from tpu_interpreted import QUICK
from transformers import XLNetConfig

_KERNEL = "xlnet_rel_attention"
TINY = {
    "vocab_size": 50, "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 32, "dropout": 0.0,
    "initializer_range": 0.1, "summary_last_dropout": 0.0,
}  # fmt: skip


def config(**more: Any) -> XLNetConfig:
    return XLNetConfig(**{**TINY, **more})


def arrays(tree: Any) -> Any:
    """A tree of the CPU's tensors as JAX arrays."""
    return torchax.default_env().t2j_copy(tree)


def state_of(model: nn.Module) -> dict[str, jax.Array]:
    return arrays({name: x.detach() for name, x in model.named_parameters()})


def batch(length: int = 20, **more: Any) -> dict[str, Any]:
    """Two texts: the first has a second segment, the second is padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 50, (2, length), generator=generator)
    mask = torch.ones(2, length)
    mask[1, length - 6 :] = 0
    segments = torch.zeros(2, length, dtype=torch.long)
    segments[0, length // 2 :] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments, **more}


def kernels_in(traced: Any) -> int:
    """How many of our kernels a traced program calls."""
    return str(traced.jaxpr).count(f"name={_KERNEL}")


class Run:
    """``model(**inputs, **options)`` traced by JAX, and what came of it.

    Attributes:
        kernels: how many of ours are in the program. values: its outputs, flat, on the CPU.
    """

    def __init__(self, model: nn.Module, inputs: dict[str, Any], **options: Any) -> None:
        def forward(parameters: Any, given: Any) -> Any:
            outputs = torch.func.functional_call(model, parameters, (), {**given, **options})
            return [x for x in jax.tree.leaves(outputs.to_tuple()) if isinstance(x, Tensor)]

        arguments = state_of(model), arrays(inputs)
        traced = jax.jit(interop.jax_view(forward)).trace(*arguments)
        self.kernels = kernels_in(traced)
        compiled = traced.lower().compile(compiler_options=QUICK)
        self.values = [torchax.default_env().j2t_copy(x) for x in compiled(*arguments)]


def flat(outputs: Any) -> list[Tensor]:
    """Tensors of Hugging Face's outputs in the order of :class:`Run`."""
    return [x for x in jax.tree.leaves(outputs.to_tuple()) if isinstance(x, Tensor)]
