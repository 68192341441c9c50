"""What the presets measure: shapes, dtypes, passes and how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from .harness import Plan
from .rel_attention_case import DTYPES, FORWARD, FORWARD_BACKWARD

TRAINING_STEP = "training_step"
PRESETS = ("quick", "full")


@dataclass(frozen=True)
class Geometry:
    """The sizes of an XLNet."""

    name: str
    n_layer: int
    d_model: int
    n_head: int
    d_inner: int
    vocab_size: int = 32000


BASE = Geometry("xlnet-base", 12, 768, 12, 3072)
LARGE = Geometry("xlnet-large", 24, 1024, 16, 4096)


@dataclass(frozen=True)
class ModelShape:
    """A batch of sequences, the passes to time on it, and the model's size (None: the preset's)."""

    batch: int
    length: int
    passes: tuple[str, ...] = (FORWARD,)
    geometry: Geometry | None = None


@dataclass(frozen=True)
class AttentionShape:
    """Batch, queries and memory of an attention case, and the passes to time on it."""

    batch: int
    queries: int
    memory: int = 0
    heads: int = 12
    passes: tuple[str, ...] = (FORWARD,)


@dataclass(frozen=True)
class Preset:
    """A list of cases and the effort spent on each.

    dtype_first: finish one dtype before the next; otherwise one shape before the next, which lets
        all dtypes share one float64 result.
    compile_budget_s: compiled providers are begun only while the run spent fewer seconds on them.
    compiled_memory: also measure the peak memory of compiled providers (each compiles once more).
    model_memory: measure the peak memory of the whole model.
    small_ops: also time concat_memory and masked_softmax.
    """

    name: str
    plan: Plan
    attention_plan: Plan
    dtypes: tuple[str, ...]
    model_shapes: tuple[ModelShape, ...]
    attention_shapes: tuple[AttentionShape, ...]
    geometry: Geometry = BASE
    dtype_first: bool = False
    compile_budget_s: float = float("inf")
    compiled_memory: bool = True
    model_memory: bool = True
    small_ops: bool = True


_Shape = TypeVar("_Shape", ModelShape, AttentionShape)
_BOTH = (FORWARD, FORWARD_BACKWARD)
_STEP = (FORWARD, TRAINING_STEP)

_CPU_QUICK = Preset(
    name="quick",
    plan=Plan(min_rounds=3, max_rounds=15, budget_s=4.0),
    attention_plan=Plan(min_rounds=3, max_rounds=15, budget_s=1.5),
    dtypes=("fp32", "bf16"),
    model_shapes=tuple(
        ModelShape(batch, length)
        for batch, length in ((1, 128), (8, 128), (1, 512), (4, 512), (1, 2048))
    ),
    attention_shapes=(AttentionShape(1, 512), AttentionShape(1, 2048)),
    # Compiling twelve layers takes half a minute and more: enough for the smallest shape.
    compile_budget_s=45.0,
    compiled_memory=False,
    model_memory=False,
    small_ops=False,
)
_CPU_FULL = Preset(
    name="full",
    plan=Plan(min_rounds=5, max_rounds=30, budget_s=30.0),
    attention_plan=Plan(min_rounds=5, max_rounds=30, budget_s=8.0),
    dtypes=("fp32", "bf16"),
    model_shapes=(
        ModelShape(1, 128, _STEP),
        ModelShape(8, 128, _STEP),
        ModelShape(1, 512, _STEP),
        ModelShape(4, 512, _STEP),
        ModelShape(1, 2048),
    ),
    attention_shapes=(
        AttentionShape(1, 128, passes=_BOTH),
        AttentionShape(8, 128, passes=_BOTH),
        AttentionShape(1, 512, passes=_BOTH),
        AttentionShape(4, 512, passes=_BOTH),
        AttentionShape(1, 512, 384, passes=_BOTH),
        AttentionShape(1, 2048, passes=_BOTH),
    ),
)
_CUDA_FULL = Preset(
    name="full",
    plan=Plan(min_rounds=10, max_rounds=50, budget_s=6.0, min_sample_us=20_000.0),
    attention_plan=Plan(min_rounds=10, max_rounds=50, budget_s=3.0, min_sample_us=5_000.0),
    dtypes=("bf16", "fp16", "fp32"),
    # Time may run out, and bf16 is what people run.
    dtype_first=True,
    model_shapes=(
        ModelShape(1, 128, _STEP),
        ModelShape(32, 512, _STEP, LARGE),
        ModelShape(32, 128, _STEP),
        ModelShape(8, 512, _STEP),
        ModelShape(4, 2048),
    ),
    # 16 heads of 64 as in xlnet-large, 16k tokens each: the limit is content-only flash attention.
    attention_shapes=(
        AttentionShape(32, 512, heads=16, passes=_BOTH),
        AttentionShape(32, 512, 384, heads=16, passes=_BOTH),
        AttentionShape(16, 1024, heads=16, passes=_BOTH),
        AttentionShape(8, 2048, heads=16, passes=_BOTH),
        AttentionShape(4, 4096, heads=16, passes=_BOTH),
        AttentionShape(1, 8192, heads=16, passes=_BOTH),
    ),
)
_CUDA_QUICK = replace(
    _CUDA_FULL,
    name="quick",
    plan=Plan(min_rounds=5, max_rounds=20, budget_s=2.0),
    attention_plan=Plan(min_rounds=5, max_rounds=20, budget_s=1.0, min_sample_us=5_000.0),
    dtypes=("bf16", "fp32"),
    model_shapes=(ModelShape(1, 128), ModelShape(32, 128), ModelShape(32, 512, geometry=LARGE)),
    attention_shapes=(
        AttentionShape(32, 512, heads=16),
        AttentionShape(8, 2048, heads=16),
    ),
    compile_budget_s=90.0,
    compiled_memory=False,
    small_ops=False,
)


def ordered(shapes: Sequence[_Shape], preset: Preset) -> list[tuple[_Shape, str, str]]:
    """Return every (shape, dtype, pass) of some shapes in the preset's order."""
    if preset.dtype_first:
        return [(s, d, p) for d in preset.dtypes for s in shapes for p in s.passes]
    return [(s, d, p) for s in shapes for p in s.passes for d in preset.dtypes]


def preset(name: str, device_type: str, dtype: str | None = None) -> Preset:
    """Return a preset for a device, narrowed to one dtype if given.

    Raises ValueError for an unknown preset or dtype.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be {' or '.join(PRESETS)}, got {name!r}")
    table = {
        ("quick", "cuda"): _CUDA_QUICK,
        ("full", "cuda"): _CUDA_FULL,
        ("quick", "cpu"): _CPU_QUICK,
        ("full", "cpu"): _CPU_FULL,
    }
    chosen = table[name, "cuda" if device_type == "cuda" else "cpu"]
    return narrowed(chosen, dtype)


def narrowed(chosen: Preset, dtype: str | None) -> Preset:
    """Return a preset with one dtype alone, or as it is for None; raises ValueError if unknown."""
    if dtype is None:
        return chosen
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return replace(chosen, dtypes=(dtype,))
