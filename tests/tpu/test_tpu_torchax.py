"""Accelerated models under torchax against Hugging Face's own code on the CPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("jax", reason="the TPU kernels need JAX: pip install xlnet-fast[tpu]")
pytest.importorskip("torchax", reason="needs torchax 0.0.14.dev: pip install --pre torchax")

import jax
import torch
import torchax
from schema_arguments import small
from torchax import interop
from torchax.export import exported_program_to_jax
from torchax.ops import ops_registry
from tpu_interpreted import ON_TPU, QUICK
from tpu_models import Run, arrays, batch, config, flat, kernels_in
from transformers import XLNetLMHeadModel, XLNetModel

import xlnet_fast
from xlnet_fast import lowering, philox, tpu
from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.masks import AttentionMask
from xlnet_fast.ops import rel_attention

LENGTH, TARGETS = 20, [[19, 4], [3, 0]]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    tpu.register(interpret=True)
    with jax.default_matmul_precision("highest"):
        yield


def order() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(LENGTH, generator=generator) for _ in range(2)])


def of_targets() -> dict[str, torch.Tensor]:
    """Hugging Face's arguments for two predicted tokens in a random order."""
    mapping = torch.nn.functional.one_hot(torch.tensor(TARGETS), LENGTH).float()
    ranks = order()
    return {"perm_mask": (ranks[:, :, None] <= ranks[:, None]).float(), "target_mapping": mapping}


def left_padded() -> dict[str, Any]:
    inputs = batch(LENGTH)
    return inputs | {"attention_mask": inputs["attention_mask"].flip(1)}


def with_memory() -> dict[str, Any]:
    mems = [torch.randn(9, 2, 32, generator=torch.Generator().manual_seed(3))]
    return batch(LENGTH, mems=mems)


def causal() -> dict[str, Any]:
    inputs = batch(LENGTH)
    del inputs["attention_mask"]  # Hugging Face raises with both
    return inputs


def ranks_instead(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same order as integers, for which there is a kernel."""
    del inputs["perm_mask"]
    return inputs | {"permutation_ranks": (order(), order())}


@pytest.mark.parametrize(
    ("cls", "inputs", "options", "settings", "kernels"),
    [
        (XLNetModel, left_padded(), {}, {}, 1),
        (XLNetModel, with_memory(), {}, {"mem_len": 12}, 1),
        (XLNetModel, causal(), {}, {"attn_type": "uni"}, 1),
        (XLNetModel, batch(LENGTH), {"output_attentions": True}, {}, 0),
        (XLNetLMHeadModel, batch(LENGTH, **of_targets()), {}, {}, 0),
        (XLNetLMHeadModel, batch(LENGTH, **of_targets()), {"ranks": True}, {}, 2),
    ],
    ids=["left padding", "memory", "uni", "attentions", "perm_mask", "permutation_ranks"],
)
def test_a_model_on_jax_gives_what_hugging_face_gives(cls, inputs, options, settings, kernels):
    """``perm_mask`` may hide any pair, which only the reference can; ranks run on both streams."""
    torch.manual_seed(0)
    model = cls(config(**settings)).eval()
    options = dict(options)
    use_ranks = options.pop("ranks", False)
    with torch.no_grad():
        expected = flat(model(**inputs, **options))
    xlnet_fast.accelerate(model)
    run = Run(model, ranks_instead(inputs) if use_ranks else inputs, **options)
    assert run.kernels == kernels
    for ours, theirs in zip(run.values, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_model_that_is_moved_to_jax_runs_eagerly_and_says_what_runs(monkeypatch):
    torch.manual_seed(0)
    model = XLNetModel(config()).eval()
    inputs = batch(16)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
    xlnet_fast.accelerate(model, backend="pallas")
    environment = torchax.default_env()
    with environment, torch.no_grad():
        model.to("jax")
        told = str(xlnet_fast.explain(model))
        on_jax = {name: x.to("jax") for name, x in inputs.items()}
        actual = model(**on_jax).last_hidden_state
        monkeypatch.setattr(lowering, "_registered", set())
        with pytest.raises(BackendUnavailable, match=r"call xlnet_fast\.tpu\.register\(\)"):
            model(**on_jax)
    torch.testing.assert_close(actual.torch(), expected, atol=1e-5, rtol=1e-5)
    assert "backend 'pallas', asked for by name" in told


def test_explain_names_the_call_that_is_missing(monkeypatch):
    model = XLNetModel(config()).eval()
    xlnet_fast.accelerate(model)
    with torchax.default_env():
        model.to("jax")
        assert "ready: Pallas kernels" in str(xlnet_fast.explain(model))
        monkeypatch.setattr(lowering, "_registered", set())
        assert "call xlnet_fast.tpu.register()" in str(xlnet_fast.explain(model))


def test_a_program_that_was_exported_on_a_cpu_takes_the_kernels():
    torch.manual_seed(0)
    model = XLNetModel(config()).eval()
    inputs = batch(16)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
    xlnet_fast.accelerate(model)
    program = torch.export.export(model, (), inputs, strict=False)
    state, function = exported_program_to_jax(program)
    traced = jax.jit(function).trace(state, tuple(arrays(inputs).values()))
    assert kernels_in(traced) == 1
    compiled = traced.lower().compile(compiler_options=QUICK)
    actual = compiled(state, tuple(arrays(inputs).values()))[0]
    actual = torchax.default_env().j2t_copy(actual)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_registering_again_replaces_without_a_word(monkeypatch):
    monkeypatch.setattr(ops_registry.logging, "warning", pytest.fail)
    op = torch.ops.xlnet_fast.two_stream_attention_backward.default
    tpu.register(chip="v5e")
    first = ops_registry.all_aten_ops[op].func
    tpu.register(chip="v5e", interpret=True)
    second = ops_registry.all_aten_ops[op].func
    assert first.keywords == {"chip": "v5e", "interpret": False}
    assert second.keywords == {"chip": "v5e", "interpret": True}
    assert torchax.default_env()._ops[op].func.args[1] is second
    with pytest.raises(ArgumentError, match="chip is 'v3', expected None or one of v4"):
        tpu.register(chip="v3")
    assert ops_registry.all_aten_ops[op].func is second


def test_masks_on_jax_have_the_bits_of_the_definition(monkeypatch):
    """A drawn seed has 31 bits there, since JAX has no int64."""
    with torchax.default_env():
        seed = philox.draw_seed("jax")
        made = philox.keep_mask(seed, 0.3, 2, 3, (1, 8), 13).torch()
        monkeypatch.setattr(lowering, "_registered", set())
        with pytest.raises(ArgumentError, match=r"needs a seed there and xlnet_fast\.tpu\.regis"):
            philox.keep_mask(seed, 0.3, 2, 3, (1, 8), 13)
        other = philox.draw_seed("jax")
    assert 0 <= int(seed.torch()) < 2**31
    assert int(other.torch()) != int(seed.torch())
    assert torch.equal(made, philox.keep_mask(int(seed.torch()), 0.3, 2, 3, (1, 8), 13))


def test_a_seed_on_the_cpu_keeps_its_64_bits():
    seed, problem = torch.tensor([2**62 + 7]), small(mask="query").to(torch.float32)
    expected = rel_attention(**problem.operands, **problem.options, dropout_p=0.4, seed=seed)
    mask = problem.options.pop("mask")
    parts = {"rank_q": mask.rank_q, "rank_k": mask.rank_k}

    def attend(operands: Any, ranks: Any) -> Any:
        options = {**problem.options, "mask": AttentionMask(**ranks), "backend": "pallas"}
        return rel_attention(**operands, **options, dropout_p=0.4, seed=seed)

    compiled = jax.jit(interop.jax_view(attend), compiler_options=QUICK)
    actual = torchax.default_env().j2t_copy(compiled(arrays(problem.operands), arrays(parts)))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


WITHOUT = """
import sys
sys.modules["jax"] = None
import torch, xlnet_fast
try:
    xlnet_fast.tpu.register()
except xlnet_fast.BackendUnavailable as error:
    assert "pip install 'xlnet-fast[tpu]'" in str(error) and "0.0.14.dev" in str(error), error
else:
    raise AssertionError
"""


def test_without_jax_it_says_what_to_install():
    subprocess.run([sys.executable, "-c", WITHOUT], check=True, timeout=120)


@pytest.mark.skipif(ON_TPU, reason="there is a TPU")
def test_where_there_is_no_tpu_one_says_how_the_kernels_are_to_run():
    with pytest.raises(ArgumentError, match=r"JAX runs on cpu, .* register\(interpret=True\)"):
        xlnet_fast.tpu.register()
    xlnet_fast.tpu.register(chip="v5e")
    xlnet_fast.tpu.register(interpret=True)
