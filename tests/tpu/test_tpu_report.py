"""The report on the Pallas kernels, and whole models, compiled for a TPU that is not here."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("jax", reason="the TPU kernels need JAX: pip install xlnet-fast[tpu]")
pytest.importorskip("libtpu", reason="its compiler is in libtpu: pip install xlnet-fast[tpu]")

import jax
import jax.numpy as jnp
import torch

from xlnet_fast.errors import ArgumentError
from xlnet_fast.kernels.report import command, pallas, tpu
from xlnet_fast.kernels.report.rows import PRAISE, check

JOB = pallas.Job("v5e", "bf16", 64, backward=False)


def test_a_row_has_what_the_compiler_says():
    (row,) = pallas._compile(JOB, length=512)
    assert check([row]) == []
    assert (row["kernel"], row["arch"], row["tile"]) == ("rel_attention_forward", "v5e", 512)
    block = 512 * 128 * 2  # of q, k, v, both sources, and twice r: each is there twice
    assert 8 * 2 * block < row["vmem_bytes"] < row["vmem_estimate_bytes"]
    pairs = pallas.HEADS * 2
    assert 4 * pairs * block < row["accessed_bytes"] < 7 * pairs * block
    assert row["accessed_bytes"] < row["program_accessed_bytes"]
    assert row["flops"] == 2 * 4 * pairs * 512 * 512 * 64


def test_what_does_not_compile_is_told(monkeypatch):
    def lower(job, length):
        raise jax.errors.JaxRuntimeError("Mosaic failed to compile TPU kernel")

    monkeypatch.setattr(pallas, "_lower", lower)
    with pytest.raises(ArgumentError, match="in bf16 with head_dim 64 does not compile for"):
        pallas._compile(JOB)


def test_a_program_without_its_kernel_is_told(monkeypatch):
    lowered = jax.jit(jnp.sin).lower(jax.ShapeDtypeStruct((8, 128), jnp.float32))
    monkeypatch.setattr(pallas, "_lower", lambda job, length: lowered)
    with pytest.raises(ArgumentError, match="for v5e has no kernel rel_attention_forward"):
        pallas._compile(JOB)


def test_names_that_are_unknown_are_told():
    for names in ({"archs": ["v9"]}, {"dtypes": ["fp16"]}, {"head_dims": [32]}):
        with pytest.raises(ArgumentError, match="is not one of"):
            pallas.compile_report(**names)
    with pytest.raises(ArgumentError, match="chip 'v9' is not one of v4, v5e, v5p, v6e, tpu7x"):
        tpu.sharding("v9")


def test_every_chip_of_the_kernels_can_be_compiled_for():
    from xlnet_fast.kernels.pallas import chips

    assert set(tpu.TOPOLOGIES) == set(chips.CHIPS)
    assert pallas.known_archs() == tuple(tpu.TOPOLOGIES)


def test_the_command_compiles_writes_and_praises(monkeypatch, tmp_path, capsys):
    jobs = []

    def run_jobs(function, given, workers, on_progress):
        jobs.extend(given)
        return [function(given[0], length=128)]

    monkeypatch.setattr(pallas, "run_jobs", run_jobs)
    file = tmp_path / "rows.json"
    assert command.run_report(file, ("v5e",)) == 0
    assert [job.chip for job in jobs] == ["v5e"] * 8
    (row,) = json.loads(file.read_text())
    assert row["arch"] == "v5e"
    assert PRAISE["pallas"] in " ".join(capsys.readouterr().out.split())


# --- whole models --------------------------------------------------------------------------------


def test_a_model_of_each_provider_is_compiled(monkeypatch):
    pytest.importorskip("torchax", reason="models are lowered by torchax")
    from benchmarks.cases.shapes import TINY
    from benchmarks.micro import tpu_compile

    monkeypatch.setattr(tpu_compile, "BASE", TINY)
    case = tpu_compile.Case(1, "bf16", 1, 128, training=False)
    hf = tpu_compile.compile_case("hf", "v5e", case)
    ours = tpu_compile.compile_case("pallas", "v5e", case)
    assert (hf["kernels"], ours["kernels"]) == (0, 1)
    assert (hf["gathers"], ours["gathers"]) == (2, 1)  # the embedding's, and that of the shift
    assert ours["accessed_bytes"] < hf["accessed_bytes"]


def test_assertions_alone_are_taken_out_of_the_graph():
    pytest.importorskip("torchax", reason="models are lowered by torchax")
    from benchmarks.micro import tpu_compile

    class OneHot(torch.nn.Module):
        def forward(self, ids):
            return (torch.nn.functional.one_hot(ids, 2).float() * 3.0,)

    exported = tpu_compile.export(OneHot(), {"ids": torch.tensor([1, 0])})
    (out,) = exported.function(exported.state, (jnp.array([1, 0]),))
    assert out.tolist() == [[0.0, 3.0], [3.0, 0.0]]
