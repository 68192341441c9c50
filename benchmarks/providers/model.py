"""Whole models: Hugging Face's, it compiled, ours, and the bare matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..cases.model import ModelCase, compared_parameters, last_hidden, share
from ..cases.rel_attention import FORWARD
from ..cases.shapes import TRAINING_STEP, Geometry
from .floor import GemmFloor
from .work import Tensors, Work


def provider_names(device: torch.device) -> tuple[str, ...]:
    """Return the names of all providers; what takes minutes to compile comes last.

    On a GPU the kernels that `auto` does not choose are timed by name too.
    """
    from xlnet_fast.ops._dispatch import choose, request_on

    ours: tuple[str, ...] = ("ours",)
    if device.type == "cuda":
        features = ("padding", "segments")
        request = request_on("rel_attention", device, torch.bfloat16, features=features)
        chosen = choose(request).backend
        ours += tuple(f"ours_{name}" for name in ("cuda", "triton") if name != chosen)
    compiled = tuple(f"{name}_compile" for name in ours)
    return ("hf_eager", "gemm_floor", *ours, "hf_compile", *compiled)


def backend_of(provider: str) -> str:
    """Return the backend that a provider of ours names: `ours_triton_compile` names triton."""
    words = provider.removeprefix("ours").removesuffix("_compile").removesuffix("_graph")
    return words.removeprefix("_") or "auto"


def make_work(
    name: str,
    geometry: Geometry,
    case: ModelCase,
    model: nn.Module,
    batch: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> Work:
    """Return the work of a provider on a model in the case's dtype; the weights are shared."""
    if name == "gemm_floor":
        floor = GemmFloor(model, geometry, case.batch, case.length)
        return Work(floor, lambda: [floor()])
    own = share(model)
    if name.startswith("ours"):
        import xlnet_fast

        own = xlnet_fast.accelerate(own, backend=backend_of(name))
    called: Any = torch.compile(own, dynamic=False) if name.endswith("_compile") else own
    if case.pass_name == FORWARD:

        def forward() -> Tensors:
            with torch.no_grad():
                return [last_hidden(called, batch)]

        return Work(forward, forward)

    def step() -> None:
        own.train()
        loss = last_hidden(called, batch).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Work(step, lambda: result_of(called, batch, case))


def result_of(
    model: Any, batch: dict[str, Tensor], case: ModelCase, rows: int | None = None
) -> Tensors:
    """Return what the check compares: the output, and for a training step some gradients.

    rows: batch elements per pass. Elements do not meet in the model, so outputs of parts stand side
    by side and gradients add up, in float64 and rounded once.
    """
    trunk = getattr(model, "_orig_mod", model)
    trunk.eval()
    trunk.zero_grad(set_to_none=True)  # shared; one that ran out of memory may have left some
    outputs = []
    compared = compared_parameters(trunk).values() if case.pass_name == TRAINING_STEP else ()
    gradients = [torch.zeros_like(p, dtype=torch.float64) for p in compared]
    # A loss of mean squares is almost constant after the last layer norm; a fixed random direction
    # is not. It is drawn for the whole batch, so that parts add up to it.
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, case.length, trunk.config.d_model)
    direction = torch.randn(shape, generator=generator)
    for start in range(0, case.batch, rows or case.batch):
        part = slice(start, start + (rows or case.batch))
        inputs = {name: x[part] for name, x in batch.items()}
        with torch.set_grad_enabled(case.pass_name == TRAINING_STEP):
            hidden = last_hidden(model, inputs)
            if case.pass_name == TRAINING_STEP:
                (hidden * direction[part].to(hidden.device, hidden.dtype)).sum().backward()
                for total, parameter in zip(gradients, compared, strict=True):
                    if parameter.grad is not None:
                        total += parameter.grad
                trunk.zero_grad(set_to_none=True)
        outputs.append(hidden.detach())
    rounded = [total.to(p.dtype) for total, p in zip(gradients, compared, strict=True)]
    return [torch.cat(outputs), *rounded]
