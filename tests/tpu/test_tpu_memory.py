"""The Pallas kernels in TPU interpret mode: two cores, races looked for, memory that begins as NaN.

There a block is what the TPU would have copied into VMEM, grid dimensions that are called parallel
run in any order, and what nobody wrote is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("jax", reason="the TPU kernels need JAX: pip install xlnet-fast[tpu]")

import functools

import jax
import jax.numpy as jnp
import torch
from hf_oracle import assert_same, make_problem, run
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from tpu_interpreted import ON_TPU, rel_attention
from two_sources import apart, joined

from xlnet_fast import reference

pytestmark = pytest.mark.skipif(ON_TPU, reason="this is the interpreter's, which needs no TPU")
HOSTILE = pltpu.InterpretParams(
    detect_races=True, uninitialized_memory="nan", num_cores_or_threads=2, random_seed=1
)


@pytest.fixture(autouse=True)
def fresh_interpreter() -> Iterator[None]:
    pltpu.reset_tpu_interpret_mode_state()
    yield
    pltpu.reset_tpu_interpret_mode_state()


@pytest.mark.parametrize(
    ("mask", "groups", "one_table"),
    [
        ("query", 2, False),
        pytest.param("left", 1, False, marks=pytest.mark.slow),
        pytest.param("uni", 1, True, marks=pytest.mark.slow),
    ],
)
def test_there_are_no_races_and_nothing_is_read_that_was_not_written(mask, groups, one_table):
    problem = make_problem(
        batch=2, queries=20, memory=16, mask=mask, segments=2, groups=groups, one_table=one_table
    ).to(torch.float32)
    dropout = {"dropout_p": 0.3, "seed": torch.tensor(5)}
    actual = joined(
        run(functools.partial(rel_attention, interpret=HOSTILE), apart(problem), **dropout)
    )
    assert not interpreter.races.races_found
    assert_same(actual, run(reference.rel_attention, problem, **dropout), 1e-4)


def sum_of_rows(x: jax.Array, semantics: str) -> jax.Array:
    """All programs add to one block, right where they go one after another."""

    def kernel(x, out):
        @pl.when(pl.program_id(0) == 0)
        def _begin():
            out[...] = jnp.zeros_like(out)

        out[...] += x[...]

    return pl.pallas_call(
        kernel,
        grid=(2,),
        in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=(semantics,)),
        interpret=HOSTILE,
    )(x)


@pytest.mark.parametrize(("semantics", "races"), [("parallel", True), ("arbitrary", False)])
def test_a_race_would_be_found(semantics, races):
    jax.block_until_ready(sum_of_rows(jnp.ones((16, 128)), semantics))
    assert interpreter.races.races_found == races


def test_memory_that_nobody_wrote_would_show():
    def kernel(x, out, scratch):
        out[...] = x[...] + scratch[...]

    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
        scratch_shapes=[pltpu.VMEM((8, 128), jnp.float32)],
        interpret=HOSTILE,
    )(jnp.ones((8, 128)))
    assert jnp.isnan(out).all()
