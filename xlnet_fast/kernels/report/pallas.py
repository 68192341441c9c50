"""Which Pallas kernels the report compiles, and how: for five generations of TPU, without one.

Each kernel with everything that a call can ask of it: a memory as second source, padding, ranks,
segments, rows that see themselves, dropout. The forward kernel is that of a program of a forward
pass, those of the backward pass are of a gradient's. A program has the copies, too, that bring
heads outside and back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.kernels.report import tpu
from xlnet_fast.kernels.report.jobs import expect_known, run_jobs
from xlnet_fast.kernels.report.rows import TpuRow

ARCHS = tuple(tpu.TOPOLOGIES)
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
HEAD_DIMS = (64, 128)
QUICK: Mapping[str, Any] = {"archs": ("v5e",), "dtypes": ("bf16",), "head_dims": (64,)}
"""Arguments of `compile_report` for what takes a minute or two; all of it takes hours."""
NOT_IN_QUICK = (
    "the Pallas kernels are compiled for v5e, bf16 and a head dim of 64 alone: --backend pallas is "
    "all chips, dtypes and head dims, up to minutes each; --arch v6e, say, those of a chip"
)
BATCH, HEADS, LENGTH, MEMORY = 1, 12, 4096, 512
_PREFIX = "xlnet_"
_KERNELS = {False: ("forward",), True: ("backward_q", "backward_kv")}


@dataclass(frozen=True)
class Job:
    """A program to compile."""

    chip: str
    dtype: str  # of DTYPES
    head_dim: int
    backward: bool


def known_archs() -> tuple[str, ...]:
    """The TPUs that can be compiled for.

    Raises:
        BackendUnavailable: JAX or libtpu is missing.
    """
    tpu.require_compiler()
    return ARCHS


def compile_report(
    archs: Sequence[str] = ARCHS,
    *,
    dtypes: Sequence[str] = tuple(DTYPES),
    head_dims: Sequence[int] = HEAD_DIMS,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[TpuRow]:
    """Compile the kernels for every chip.

    Args:
        archs: chips, "v5e".
        dtypes: of "bf16" and "fp32". head_dims: of 64 and 128.
        workers: processes; 1 compiles in this one.
        on_progress: called with (done, total) after each program.

    Returns:
        A row per kernel, dtype, head dim and chip.

    Raises:
        BackendUnavailable: JAX or libtpu is missing; a process was killed.
        ArgumentError: a name or number that is not known; a kernel that does not compile.
    """
    expect_known("arch", archs, known_archs())
    expect_known("dtype", dtypes, tuple(DTYPES))
    expect_known("head_dim", head_dims, HEAD_DIMS)
    jobs = [
        Job(chip, dtype, head_dim, backward)
        for chip in archs
        for dtype in dtypes
        for head_dim in head_dims
        for backward in _KERNELS
    ]
    return [row for rows in run_jobs(_compile, jobs, workers, on_progress) for row in rows]


def _compile(job: Job, length: int = LENGTH) -> list[TpuRow]:
    """Rows of the kernels of one program, for so many current keys."""
    passes = "the gradient" if job.backward else "the forward pass"
    try:
        figures = tpu.compile_lowered(_lower(job, length))
    except RuntimeError as error:  # XLA's and Mosaic's are of that kind
        raise ArgumentError(
            f"{passes} in {job.dtype} with head_dim {job.head_dim} does not compile for "
            f"{job.chip}: {type(error).__name__}: {error}"
        ) from error
    from xlnet_fast.kernels.pallas import chips

    chip, itemsize = chips.CHIPS[job.chip], {"bf16": 2, "fp32": 4}[job.dtype]
    keys = length + MEMORY
    tile = chips.find_tile(chip, length, keys, job.head_dim, itemsize)
    found = {kernel.name.removeprefix(_PREFIX): kernel for kernel in figures.kernels}
    rows: list[TpuRow] = []
    for name in (f"rel_attention_{part}" for part in _KERNELS[job.backward]):
        if name not in found:
            raise ArgumentError(f"{passes} for {job.chip} has no kernel {name}: {', '.join(found)}")
        kernel = found[name]
        rows.append({
            "backend": "pallas",
            "kernel": name,
            "arch": job.chip,
            "dtype": job.dtype,
            "head_dim": job.head_dim,
            "tile": tile,
            "vmem_bytes": kernel.vmem_bytes,
            "vmem_estimate_bytes": chips.vmem_bytes(tile, length, keys, job.head_dim, itemsize),
            "vmem_limit_bytes": chips.room(chip),
            "accessed_bytes": kernel.accessed_bytes,
            "flops": kernel.flops,
            "program_temporary_bytes": figures.temporary_bytes,
            "program_accessed_bytes": figures.accessed_bytes,
            "scores_bytes": itemsize * BATCH * HEADS * length * keys,
            "compile_seconds": figures.compile_seconds,
        })  # fmt: skip
    return rows


def _lower(job: Job, length: int) -> Any:
    """The program of a job, lowered for its chip."""
    where = tpu.sharding(job.chip)
    import jax
    import jax.numpy as jnp

    from xlnet_fast.kernels.pallas import rel_attention

    def of(*shape: int, dtype: str = DTYPES[job.dtype]) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=where)

    keys, dim = length + MEMORY, job.head_dim
    current, memory = of(BATCH, length, HEADS, dim), of(BATCH, MEMORY, HEADS, dim)
    bias, of_rows, of_keys = of(HEADS, dim), (BATCH, length), (BATCH, keys)
    operands = {
        "q": current, "k": current, "v": current, "k_memory": memory, "v_memory": memory,
        "r": of(1, length + keys, HEADS, dim), "r_w_bias": bias, "r_r_bias": bias,
        "r_s_bias": bias, "seg_embed": of(2, HEADS, dim),
    }  # fmt: skip
    others = {
        "segments_q": of(*of_rows, dtype="int32"), "segments_k": of(*of_keys, dtype="int32"),
        "rank_q": of(*of_rows, dtype="int32"), "rank_k": of(*of_keys, dtype="int32"),
        "key_padding": of(*of_keys, dtype="bool"), "seed": of(2, dtype="uint32"),
    }  # fmt: skip

    def attend(operands: Any, others: Any) -> Any:
        return rel_attention(**operands, **others, see_self=True, dropout_p=0.1, chip=job.chip)

    def gradients(operands: Any, others: Any) -> Any:
        return jax.grad(lambda x: attend(x, others).astype(jnp.float32).sum())(operands)

    return jax.jit(gradients if job.backward else attend).lower(operands, others)
