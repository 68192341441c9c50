"""Our Transformer-XL with the weights of the recorded runs, and what was recorded.

``../golden/txl_recipe.py`` has options, weights and runs, and is what recorded them.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "golden"))
import txl_recipe as recipe

from xlnet_fast.models.transfo_xl import TransfoXLConfig, TransfoXLLMHeadModel
from xlnet_fast.tolerance import FACTOR

GOLDEN = Path(recipe.__file__).parent
F64 = torch.float64
TIGHT = 1e-11
"""float64: largest difference, relative to the largest element of the tensor (or 1)."""


@cache
def recorded() -> dict[str, Tensor]:
    return load_file(GOLDEN / "txl_values.safetensors")


@cache
def facts() -> dict[str, Any]:
    return json.loads((GOLDEN / "txl_values.json").read_text(encoding="utf-8"))


def under(prefix: str) -> dict[str, Tensor]:
    """What was recorded below a name, by the rest of its name."""
    found = {
        key.removeprefix(f"{prefix}/"): x
        for key, x in recorded().items()
        if key.startswith(f"{prefix}/")
    }
    assert found, f"nothing was recorded of {prefix}"
    return found


def model_of(
    name: str = "default",
    dtype: torch.dtype = F64,
    rounded_to: torch.dtype = torch.float32,
    cls: type[Any] = TransfoXLLMHeadModel,
    kinks: bool = True,
    **more: Any,
) -> Any:
    """Our model of a set in eval mode: arguments of ``recipe.fill``; ``more`` are other options."""
    config = TransfoXLConfig(**{**recipe.config_of(name), **more})
    return recipe.fill(cls(config), dtype, rounded_to, kinks)


def assert_tight(actual: dict[str, Tensor], expected: dict[str, Tensor], note: str = "") -> None:
    """Equal up to rounding in float64, and nothing is missing."""
    assert actual.keys() == expected.keys(), note
    for name, x in actual.items():
        close(x, expected[name], f"{note} {name}")


def close(actual: Tensor, expected: Tensor, note: str = "") -> None:
    assert actual.shape == expected.shape, f"{note}: {actual.shape} {expected.shape}"
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.isfinite().all(), note
    if actual.numel():
        bound = TIGHT * max(1.0, float(expected.abs().max()))
        error = float((actual - expected).abs().max())
        assert error <= bound, f"{note}: {error:.2e} > {bound:.2e}"


def assert_within_recorded(
    actual: list[dict[str, Tensor]], exact: list[dict[str, Tensor]], name: str
) -> None:
    """The tolerance rule, with Hugging Face's recorded errors as the yardstick.

    Args:
        actual: of ``recipe.texts``, in a working dtype. exact: the same in float64.
        name: of the set.
    """
    dtype = actual[0]["scores"].dtype
    ours, sizes = recipe.errors(actual, exact), recipe.largest(exact)
    theirs = recorded()[f"{name}/errors {str(dtype).removeprefix('torch.')}"].tolist()
    outside = []
    for kind, error in zip(sorted(ours), theirs, strict=True):
        bound = FACTOR * (error + torch.finfo(dtype).eps * sizes[kind])
        if not ours[kind] <= bound:
            outside.append(f"{kind}: {ours[kind]:.2e} > {bound:.2e}")
    assert not outside, f"{name}: " + "; ".join(outside)


def ids(seed: str, batch: int, length: int) -> Tensor:
    return recipe.ids(seed, batch, length)
