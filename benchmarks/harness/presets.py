"""What the presets measure: shapes, dtypes, passes and how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..cases.rel_attention import DTYPES, FORWARD, FORWARD_BACKWARD, PASSES
from ..cases.shapes import (
    BASE,
    BASE_2,
    BASE_4,
    LARGE,
    TINY,
    TRAINING_STEP,
    AttentionShape,
    GenerationShape,
    Geometry,
    ModelShape,
    PretrainingShape,
    SpeechShape,
)
from ..cases.speech import MODELS
from ..cases.transfo_xl import FULL, QUICK, WT103_2, TransfoXLCase, TransfoXLGeometry
from .timing import Plan

# A round has hundreds of steps, each a sample of the time by context.
_GENERATION_PLAN = Plan(min_rounds=2, max_rounds=9, budget_s=6.0)
_SPEECH_PLAN = Plan(min_rounds=5, max_rounds=31, budget_s=8.0)

PRESETS = ("quick", "full", "headline", "targets")


@dataclass(frozen=True)
class Preset:
    """A list of cases and the effort spent on each.

    dtype_first: finish one dtype before the next; otherwise one shape before the next, which lets
        all dtypes share one float64 result.
    compile_budget_s: compiled providers are begun only while the run spent fewer seconds on them.
    compile_until_s: and begun only in so many seconds from the start.
    compile_shapes: the (batch, length) at which whole models are compiled; None for all.
    compiled_memory: also measure the peak memory of compiled providers (each compiles once more).
    model_memory: measure the peak memory of the whole model.
    model_alone: whole models stand for the rest, unless other benchmarks are asked for alone.
    left_out: providers of the whole model that are not run.
    limit_s: nothing is begun after so many seconds.
    small_ops: also time concat_memory, masked_softmax, the two-stream layer, latency, the
        pretraining step and the writing of text.
    large_ops: these at the sizes of a GPU.
    """

    name: str
    plan: Plan
    attention_plan: Plan
    dtypes: tuple[str, ...]
    model_shapes: tuple[ModelShape, ...]
    attention_shapes: tuple[AttentionShape, ...]
    pretraining_shapes: tuple[PretrainingShape, ...]
    geometry: Geometry = BASE
    dtype_first: bool = False
    compile_budget_s: float = float("inf")
    compile_until_s: float = float("inf")
    compile_shapes: tuple[tuple[int, int], ...] | None = None
    compiled_memory: bool = True
    model_memory: bool = True
    model_alone: bool = False
    left_out: tuple[str, ...] = ()
    limit_s: float = float("inf")
    small_ops: bool = True
    large_ops: bool = False
    generation_shapes: tuple[GenerationShape, ...] = ()
    generation_plan: Plan = _GENERATION_PLAN
    speech_shapes: tuple[SpeechShape, ...] = ()
    speech_plan: Plan = _SPEECH_PLAN
    transfo_xl_cases: tuple[TransfoXLCase, ...] = ()
    transfo_xl_geometry: TransfoXLGeometry = WT103_2


_Shape = TypeVar("_Shape", ModelShape, AttentionShape)
_BOTH = (FORWARD, FORWARD_BACKWARD)
_STEP = (FORWARD, TRAINING_STEP)

# A CPU takes minutes for twelve layers of this.
_CPU_PRETRAINING = (PretrainingShape(BASE_4, 4, 128, 64, 22, 96), PretrainingShape(BASE_4, 2))
# Texts take minutes on a CPU: those that tell the most come first, and twelve layers are left out.
_CPU_GENERATION = (
    GenerationShape(TINY, 1, 20, 50, without_memory=True),
    GenerationShape(TINY, 1, 300, 50, without_memory=True),
    GenerationShape(TINY, 8, 300, 50, memory=True),
    GenerationShape(BASE_4, 1, 300, 50, memory=True),
    GenerationShape(BASE_4, 1, 20, 50, without_memory=True),
    GenerationShape(BASE_4, 1, 300, 300),
    GenerationShape(TINY, 1, 300, 300),
    GenerationShape(TINY, 8, 300, 300),
    GenerationShape(BASE_4, 8, 20, 50),
    GenerationShape(BASE_4, 8, 300, 50, memory=True),
    GenerationShape(TINY, 1, 20, 300),
    GenerationShape(TINY, 8, 20, 50),
    GenerationShape(TINY, 8, 20, 300),
    GenerationShape(BASE_4, 1, 20, 300),
    GenerationShape(BASE_4, 8, 20, 300),
    GenerationShape(BASE_4, 8, 300, 300),
)
_CPU_QUICK_GENERATION = (
    GenerationShape(TINY, 1, 20, 50, without_memory=True),
    GenerationShape(TINY, 1, 300, 20, without_memory=True),
    GenerationShape(TINY, 8, 300, 20),
    GenerationShape(BASE_4, 1, 300, 20),
)
# Time may run out, and Hugging Face takes seconds for long audio: those that tell the most first.
_QUICK_SPEECH = (
    *(SpeechShape("Parakeet", seconds) for seconds in (10, 60, 240)),
    SpeechShape("Parakeet", 240, attention=True, memory=True),
    SpeechShape("Wav2Vec2-BERT", 60),
    *(SpeechShape(name, 10) for name in MODELS if name != "Parakeet"),
    *(SpeechShape(name, 60) for name in MODELS if name not in ("Parakeet", "Wav2Vec2-BERT")),
)
_ALONE = tuple(
    SpeechShape(name, seconds, compiled=seconds == 60, memory=True)
    for seconds in (10, 60, 240) for name in MODELS
)  # fmt: skip
_ATTENTION = tuple(
    SpeechShape(name, seconds, attention=True, memory=True)
    for seconds in (60, 240) for name in MODELS
)  # fmt: skip
# What takes longest, and by far, last.
_FULL_SPEECH = (
    *_ALONE,
    *_ATTENTION,
    *(
        SpeechShape(name, seconds, batch=4, memory=True)
        for seconds in (10, 60, 240) for name in MODELS
    ),
)  # fmt: skip
_CUDA_GENERATION = tuple(
    GenerationShape(BASE, batch, prompt, new, without_memory=new == 50, memory=new == 50)
    for new in (50, 300) for batch in (1, 8) for prompt in (20, 300)
)  # fmt: skip
# What does not fit for Hugging Face comes last.
_CUDA_PRETRAINING = tuple(PretrainingShape(g, batch) for batch in (8, 32) for g in (BASE, LARGE))

# The whole table in about two minutes on two cores, the first case within half a minute.
_CPU_QUICK = Preset(
    name="quick",
    plan=Plan(min_rounds=3, max_rounds=9, budget_s=3.0),
    attention_plan=Plan(min_rounds=3, max_rounds=15, budget_s=1.5),
    dtypes=("fp32", "bf16"),
    model_shapes=tuple(ModelShape(*shape) for shape in ((1, 128), (4, 512), (1, 2048))),
    attention_shapes=(AttentionShape(1, 512), AttentionShape(1, 2048)),
    pretraining_shapes=_CPU_PRETRAINING,
    geometry=BASE_2,
    # One compilation takes half a minute, so there is time for one.
    compile_budget_s=20.0,
    compile_until_s=70.0,
    compile_shapes=((4, 512),),
    compiled_memory=False,
    model_memory=False,
    model_alone=True,
    left_out=("gemm_floor", "ours_compile"),
    limit_s=135.0,
    small_ops=False,
    generation_shapes=_CPU_QUICK_GENERATION,
    speech_shapes=_QUICK_SPEECH,
    speech_plan=Plan(min_rounds=3, max_rounds=9, budget_s=2.0),
    transfo_xl_cases=QUICK,
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
        AttentionShape(4, 512, passes=PASSES),
        AttentionShape(4, 512, passes=_BOTH, padding=False, segments=False),
        AttentionShape(4, 512, passes=(FORWARD_BACKWARD,), dropout=0.1),
        AttentionShape(1, 512, 384, passes=_BOTH),
        AttentionShape(1, 2048, passes=_BOTH),
    ),
    pretraining_shapes=_CPU_PRETRAINING,
    generation_shapes=_CPU_GENERATION,
    speech_shapes=_FULL_SPEECH,
    transfo_xl_cases=FULL,
)


def _long(*lengths: int, passes: tuple[str, ...], **features: Any) -> tuple[AttentionShape, ...]:
    """16k tokens a batch and 16 heads of 64, as in xlnet-large."""
    return tuple(
        AttentionShape(max(1, 2**14 // length), length, heads=16, passes=passes, **features)
        for length in lengths
    )


_PLAIN = {"padding": False, "segments": False}
# The rows of docs/design.md's goals first, and nothing that waits for torch.compile: content-only
# flash attention, the limit, has neither padding nor segments.
_CUDA_HEADLINE = Preset(
    name="headline",
    plan=Plan(min_rounds=5, max_rounds=30, budget_s=4.0, min_sample_us=20_000.0),
    attention_plan=Plan(min_rounds=7, max_rounds=30, budget_s=1.5, min_sample_us=5_000.0),
    dtypes=("bf16",),
    model_shapes=(ModelShape(32, 512, _STEP, LARGE),),
    attention_shapes=(
        *_long(512, 2048, 8192, passes=_BOTH, **_PLAIN),
        *_long(1024, 4096, passes=_BOTH, **_PLAIN),
    ),
    pretraining_shapes=_CUDA_PRETRAINING,
    compile_budget_s=0.0,
    large_ops=True,
)
_CUDA_FULL = Preset(
    name="full",
    plan=Plan(min_rounds=10, max_rounds=50, budget_s=6.0, min_sample_us=20_000.0),
    attention_plan=Plan(min_rounds=10, max_rounds=50, budget_s=3.0, min_sample_us=5_000.0),
    dtypes=("bf16", "fp16", "fp32"),
    # Time may run out, and bf16 is what people run.
    dtype_first=True,
    model_shapes=(
        ModelShape(32, 512, _STEP, LARGE),
        ModelShape(1, 128, _STEP),
        ModelShape(32, 128, _STEP),
        ModelShape(8, 512, _STEP),
        ModelShape(4, 2048),
    ),
    # A backward alone keeps every provider's graph at once, for which long inputs leave no room.
    attention_shapes=(
        *_long(512, 2048, passes=PASSES),
        AttentionShape(32, 512, 384, heads=16, passes=_BOTH),
        *_long(512, passes=(FORWARD_BACKWARD,), dropout=0.1),
        *_long(128, 256, 1024, passes=PASSES),
        *_long(4096, 8192, passes=_BOTH),
        *_long(512, passes=_BOTH, padding=False),
        *_long(512, passes=_BOTH, segments=False),
        AttentionShape(32, 512, 384, heads=16, passes=_BOTH, dropout=0.1),
        *_long(512, 2048, passes=_BOTH, head_dim=128),
    ),
    pretraining_shapes=_CUDA_PRETRAINING,
    large_ops=True,
    generation_shapes=_CUDA_GENERATION,
    speech_shapes=_FULL_SPEECH,
)
_CUDA_QUICK = replace(
    _CUDA_FULL,
    name="quick",
    plan=Plan(min_rounds=5, max_rounds=20, budget_s=2.0),
    attention_plan=Plan(min_rounds=5, max_rounds=20, budget_s=1.0, min_sample_us=5_000.0),
    dtypes=("bf16", "fp32"),
    model_shapes=(ModelShape(1, 128), ModelShape(32, 128), ModelShape(32, 512, geometry=LARGE)),
    attention_shapes=_long(512, 2048, passes=(FORWARD,)),
    compile_budget_s=90.0,
    compiled_memory=False,
    small_ops=False,
)
# A CPU has no floor that flash attention sets: there the same command times models.
_CPU_HEADLINE = replace(
    _CPU_FULL,
    name="headline",
    plan=Plan(min_rounds=3, max_rounds=15, budget_s=4.0),
    attention_plan=Plan(min_rounds=3, max_rounds=15, budget_s=1.5),
    model_shapes=tuple(replace(shape, passes=(FORWARD,)) for shape in _CPU_FULL.model_shapes),
    attention_shapes=_CPU_QUICK.attention_shapes,
    compile_budget_s=0.0,
    compiled_memory=False,
    model_memory=False,
    small_ops=False,
)


# The CPU table of docs/design.md section 8, every form compiled too, and attention from 128 to 8192
# keys. Four layers, as there: compiling twelve at every shape takes half an hour.
_CPU_TARGETS = Preset(
    name="targets",
    plan=Plan(min_rounds=5, max_rounds=31, budget_s=6.0),
    attention_plan=Plan(min_rounds=5, max_rounds=31, budget_s=2.0),
    dtypes=("fp32", "bf16"),
    model_shapes=(
        ModelShape(1, 128),
        ModelShape(8, 128),
        ModelShape(4, 512, _STEP),
        ModelShape(1, 2048),
    ),
    attention_shapes=(
        AttentionShape(4, 512, passes=_BOTH),
        AttentionShape(1, 2048, passes=_BOTH),
        *(AttentionShape(1, length) for length in (128, 256, 512, 1024, 4096, 8192)),
    ),
    pretraining_shapes=_CPU_PRETRAINING,
    geometry=BASE_4,
    compiled_memory=False,
    model_memory=False,
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
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    table = {
        ("headline", "cuda"): _CUDA_HEADLINE,
        ("headline", "cpu"): _CPU_HEADLINE,
        ("quick", "cuda"): _CUDA_QUICK,
        ("full", "cuda"): _CUDA_FULL,
        ("quick", "cpu"): _CPU_QUICK,
        ("full", "cpu"): _CPU_FULL,
        ("targets", "cpu"): _CPU_TARGETS,
        ("targets", "cuda"): _CUDA_HEADLINE,
    }
    chosen = table[name, "cuda" if device_type == "cuda" else "cpu"]
    return narrowed(chosen, dtype)


def scaled(chosen: Preset, factor: float) -> Preset:
    """Return a preset whose limits are those for a model with `factor` times the work."""
    return replace(
        chosen,
        compile_budget_s=chosen.compile_budget_s * factor,
        compile_until_s=chosen.compile_until_s * factor,
        limit_s=chosen.limit_s * factor,
    )


def narrowed(chosen: Preset, dtype: str | None) -> Preset:
    """Return a preset with one dtype alone, or as it is for None; raises ValueError if unknown."""
    if dtype is None:
        return chosen
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return replace(chosen, dtypes=(dtype,))
