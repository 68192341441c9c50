"""The Pallas kernels compiled for TPUs that are not here: do they compile, and what do they take?

The compiler's figures are printed (``pytest -s``); nothing is run. Most of it is marked slow.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("jax", reason="the TPU kernels need JAX: pip install xlnet-fast[tpu]")
pytest.importorskip("libtpu", reason="its compiler is in libtpu: pip install xlnet-fast[tpu]")

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from xlnet_fast.kernels.pallas import rel_attention
from xlnet_fast.kernels.pallas.chips import CHIPS

TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
BATCH, HEADS, LENGTH, MEMORY = 1, 2, 4096, 512
SCORES_BYTES = 4 * BATCH * HEADS * LENGTH * (LENGTH + MEMORY)  # which no kernel may write

QUICK = ("v4", "bfloat16", 64)
CASES = [
    pytest.param(chip, dtype, dim, marks=[] if (chip, dtype, dim) == QUICK else pytest.mark.slow)
    for chip in CHIPS
    for dtype in ("bfloat16", "float32")
    for dim in (64, 128)
]


def arguments(dtype: str, dim: int, device: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes of all operands, and of what has no gradient."""
    sharding = jax.sharding.SingleDeviceSharding(device)

    def of(*shape: int, dtype: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)

    keys = LENGTH + MEMORY
    operands = {
        "q": of(BATCH, LENGTH, HEADS, dim),
        "k": of(BATCH, LENGTH, HEADS, dim),
        "v": of(BATCH, LENGTH, HEADS, dim),
        "k_memory": of(BATCH, MEMORY, HEADS, dim),
        "v_memory": of(BATCH, MEMORY, HEADS, dim),
        "r": of(1, LENGTH + keys, HEADS, dim),
        "r_w_bias": of(HEADS, dim),
        "r_r_bias": of(HEADS, dim),
        "r_s_bias": of(HEADS, dim),
        "seg_embed": of(2, HEADS, dim),
    }
    others = {
        "segments_q": of(BATCH, LENGTH, dtype="int32"),
        "segments_k": of(BATCH, keys, dtype="int32"),
        "key_padding": of(BATCH, keys, dtype="bool"),
        "rank_q": of(BATCH, LENGTH, dtype="int32"),
        "rank_k": of(BATCH, keys, dtype="int32"),
        "seed": of(2, dtype="uint32"),
    }
    return operands, others


def compiled(function: Any, *shapes: Any) -> Any:
    return jax.jit(function).lower(*shapes).compile()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("chip", "dtype", "dim"), CASES)
def test_it_compiles_without_memory_for_scores(chip, dtype, dim, backward):
    device = topologies.get_topology_desc(TOPOLOGIES[chip], "tpu").devices[0]
    operands, others = arguments(dtype, dim, device)

    def attend(operands, others):
        return rel_attention(**operands, **others, see_self=True, dropout_p=0.1, chip=chip)

    def gradients(operands, others):
        return jax.grad(lambda x: attend(x, others).astype(jnp.float32).sum())(operands)

    program = compiled(gradients if backward else attend, operands, others)
    memory, costs = program.memory_analysis(), program.cost_analysis()
    print(
        f"{chip} {dtype} D={dim} {'backward' if backward else 'forward'}: "
        f"temporary {memory.temp_size_in_bytes / 2**20:.1f} MiB, "
        f"accessed {costs['bytes accessed'] / 1e6:.0f} MB, {costs['flops'] / 1e9:.1f} GFLOP"
    )
    kernels = program.as_text().count("tpu_custom_call")
    assert kernels >= (3 if backward else 1)
    assert memory.temp_size_in_bytes < SCORES_BYTES / 2
    assert costs["bytes accessed"] > sum(x.size * x.dtype.itemsize for x in operands.values())


@pytest.mark.parametrize("options", [{"causal": True}, {"window": (100, 3), "chunk": 8}])
def test_masks_by_arithmetic_compile(options):
    device = topologies.get_topology_desc(TOPOLOGIES["v5e"], "tpu").devices[0]
    operands, _ = arguments("bfloat16", 64, device)
    names = ("r_s_bias", "seg_embed")
    operands = {name: x for name, x in operands.items() if name not in names}
    program = compiled(lambda x: rel_attention(**x, **options, tile=128, chip="v5e"), operands)
    assert program.as_text().count("tpu_custom_call") >= 1
