"""The drop-in on a device of XLA, without kernels: as Hugging Face's, and at no higher cost.

The costs are the TPU compiler's figures for a chip that is not here; nothing runs on one.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

pytest.importorskip("torchax", reason="pip install xlnet-fast[tpu]")
pytest.importorskip("libtpu", reason="its compiler is in libtpu: pip install xlnet-fast[tpu]")

import jax
import torch
import torchax
from torchax.interop import jax_view
from transformers import (
    XLMConfig,
    XLMModel,
    XLNetConfig,
    XLNetForSequenceClassification,
    XLNetLMHeadModel,
    XLNetModel,
)

import xlnet_fast
from benchmarks.micro import tpu_compile
from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.models.transfo_xl import TransfoXLConfig, TransfoXLLMHeadModel

BATCH, LENGTH, MEMORY, PREDICTED = 2, 16, 6, 3


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def xlnet(cls: type = XLNetModel, **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}
    config = XLNetConfig(**{**sizes, "dropout": 0.0, "initializer_range": 0.3, **changes})
    return cls(config).eval()


def example(*names: str) -> dict[str, Any]:
    """Token ids and the arguments of these names."""
    made = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 100, (BATCH, LENGTH), generator=made)
    padding = torch.ones(BATCH, LENGTH)
    padding[0, :5] = 0
    positions = torch.tensor([[3, 9, 7], [0, 15, -1]])
    values: dict[str, Any] = {
        "attention_mask": padding,
        "token_type_ids": (ids % 2),
        "mems": [torch.randn(MEMORY, BATCH, 32, generator=made) for _ in range(2)],
        "perm_mask": (torch.rand(BATCH, LENGTH, LENGTH, generator=made) > 0.5).float(),
        "target_mapping": (positions[..., None] == torch.arange(LENGTH)).float(),
        "target_positions": positions,
        "labels": ids,
    }
    return {"input_ids": ids, **{name: values[name] for name in names}}


def map_tensors(function: Any, x: Any) -> Any:
    """The same of tensors in lists and dictionaries; what is None goes."""
    if isinstance(x, dict):
        return {k: map_tensors(function, v) for k, v in x.items() if v is not None}
    if isinstance(x, (list, tuple)):
        return [map_tensors(function, v) for v in x]
    return function(x) if isinstance(x, torch.Tensor) else x


def as_function(model: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A function of JAX of (weights, arguments), and the weights."""
    model = model.to("jax")
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def run(weights: Any, given: Any) -> Any:
        return dict(torch.func.functional_call(model, weights, kwargs={**given, **options}))

    return jax_view(run), map_tensors(lambda x: x.jax(), weights)


def on_jax(model: Any, given: dict[str, Any], jitted: bool, **options: Any) -> Any:
    """The outputs on device "jax", as tensors of the CPU."""
    model = copy.deepcopy(model)
    with torchax.default_env():
        given = map_tensors(lambda x: x.to("jax"), given)
        if not jitted:
            with torch.no_grad():
                outputs = dict(model.to("jax")(**given, **options))
            return map_tensors(lambda x: torchax.ops.mappings.j2t(x.jax()), outputs)
        run, weights = as_function(model, options)
        outputs = jax.jit(run)(weights, map_tensors(lambda x: x.jax(), given))
        return jax.tree.map(torchax.ops.mappings.j2t, outputs)


def lowered(model: Any, given: dict[str, Any]) -> str:
    """The program of a model on device "jax"."""
    with torchax.default_env():
        run, weights = as_function(model, {"use_mems": False})
        arrays = map_tensors(lambda x: x.to("jax").jax(), given)
        return jax.jit(run).lower(weights, arrays).as_text()


def assert_alike(got: Any, expected: Any) -> None:
    got = {k: v for k, v in got.items() if v is not None}
    assert got.keys() == {k for k, v in expected.items() if v is not None}
    for name, value in got.items():
        torch.testing.assert_close(
            jax.tree.leaves(value), jax.tree.leaves(map_tensors(lambda x: x, expected[name])),
            rtol=1e-5, atol=1e-5,
        )  # fmt: skip


CALLS = {
    "padding": (XLNetModel, ("attention_mask",)),
    "segments": (XLNetModel, ("attention_mask", "token_type_ids")),
    "memory": (XLNetModel, ("attention_mask", "mems", "token_type_ids")),
    "two streams": (XLNetModel, ("perm_mask", "target_mapping")),
    "language model": (XLNetLMHeadModel, ("attention_mask", "mems", "labels")),
    "classifier": (XLNetForSequenceClassification, ("attention_mask", "token_type_ids")),
}


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(("cls", "names"), CALLS.values(), ids=CALLS)
def test_the_drop_in_is_as_hugging_face(cls, names, jitted):
    model, given = xlnet(cls), example(*names)
    with torch.no_grad():
        expected = dict(model(**given))
    assert_alike(on_jax(xlnet_fast.accelerate(model), given, jitted), expected)


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_predicted_positions_are_as_their_mapping(jitted):
    model, mapped = xlnet(), example("perm_mask", "target_mapping")
    with torch.no_grad():
        expected = dict(model(**mapped))
    given = example("perm_mask", "target_positions")
    assert_alike(on_jax(xlnet_fast.accelerate(model), given, jitted), expected)


def test_probabilities_are_as_hugging_face():
    model, given = xlnet(), example("attention_mask", "token_type_ids")
    with torch.no_grad():
        expected = dict(model(**given, output_attentions=True))
    got = on_jax(xlnet_fast.accelerate(model), given, True, output_attentions=True)
    assert_alike(got, expected)


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_transformer_xl_is_as_on_the_cpu(jitted):
    torch.manual_seed(0)
    config = TransfoXLConfig(
        vocab_size=100, cutoffs=[20, 50], d_model=32, d_embed=32, n_head=2, d_head=16, d_inner=64,
        div_val=2, n_layer=2, mem_len=8, dropout=0.0, dropatt=0.0,
    )  # fmt: skip
    model = TransfoXLLMHeadModel(config).eval()
    given = example("labels")
    with torch.no_grad():
        expected = dict(model(**given))
    assert_alike(on_jax(model, given, jitted), expected)


def test_xlm_is_as_hugging_face():
    torch.manual_seed(0)
    config = XLMConfig(
        vocab_size=100, emb_dim=32, n_layers=2, n_heads=2, dropout=0.0, attention_dropout=0.0
    )
    model, given = XLMModel(config).eval(), example("attention_mask")
    with torch.no_grad():
        expected = dict(model(**given))
    assert_alike(on_jax(xlnet_fast.accelerate(model), given, False), expected)


def test_sdpa_refuses_the_device():
    model = xlnet_fast.accelerate(xlnet(), backend="sdpa")
    with pytest.raises(BackendUnavailable, match="it runs on cpu and cuda, not on jax"):
        on_jax(model, example("attention_mask"), False)


@pytest.mark.parametrize(
    "names",
    [
        ("attention_mask",),
        ("attention_mask", "token_type_ids"),
        ("attention_mask", "mems"),
        ("perm_mask", "target_mapping"),
        ("perm_mask", "target_positions"),
    ],
)
def test_only_the_embedding_gathers(names):
    text = lowered(xlnet_fast.accelerate(xlnet()), example(*names))
    assert len(re.findall(r'"stablehlo\.(?:dynamic_)?gather"\(', text)) == 1


COSTLY = {"d_model": 256, "n_head": 4, "d_inner": 512, "n_layer": 1, "vocab_size": 1000}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("length", "training"),
    [
        pytest.param(512, False, id="forward"),
        pytest.param(512, True, id="training", marks=pytest.mark.slow),
        pytest.param(2048, False, id="long", marks=pytest.mark.slow),
    ],
)
def test_it_costs_no_more_than_hugging_face(length, training):
    """As compiled for a TPU v5e: memory that is accessed, and temporary memory."""
    model = xlnet(**COSTLY).bfloat16()
    inputs = tpu_compile.Case(1, "bf16", 2, length, training).inputs()
    options = {"training": training, "use_mems": False}
    theirs = tpu_compile.compile_model(model, inputs, "v5e", **options).figures
    xlnet_fast.accelerate(model, backend="reference")
    compiled = tpu_compile.compile_model(model, inputs, "v5e", **options)
    ours = compiled.figures
    print(f"accessed {ours.accessed_bytes / 1e6:.0f} of {theirs.accessed_bytes / 1e6:.0f} MB")
    print(f"temporary {ours.temporary_bytes / 1e6:.0f} of {theirs.temporary_bytes / 1e6:.0f} MB")
    assert ours.accessed_bytes <= theirs.accessed_bytes
    assert ours.temporary_bytes <= theirs.temporary_bytes
    assert compiled.gathers == 1
