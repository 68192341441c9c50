"""A training step under torchax: gradients as Hugging Face's, on one device and on eight."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jax", reason="the TPU kernels need JAX: pip install xlnet-fast[tpu]")
pytest.importorskip("torchax", reason="needs torchax 0.0.14.dev: pip install --pre torchax")

import jax
import jax.numpy as jnp
import torch
import torchax
from hf_oracle import make_problem
from torch import nn
from torch._functorch.aot_autograd import aot_export_joint_simple
from torchax import interop
from torchax.export import JaxInterpreter
from tpu_interpreted import QUICK, to_jax, to_torch
from tpu_models import arrays, batch, config, kernels_in, state_of
from transformers import XLNetForSequenceClassification, XLNetLMHeadModel

import xlnet_fast
from xlnet_fast import tpu
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.nn import linear, projection, rel_attention
from xlnet_fast.ops import rel_attention as rel_attention_of

RATE = 0.1
SEED = 2**31 - 3


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    tpu.register(interpret=True)
    with jax.default_matmul_precision("highest"):
        yield


def model_of(cls: type[nn.Module], **settings: Any) -> Any:
    torch.manual_seed(0)
    return cls(config(**settings)).train()


def inputs_of(cls: type[nn.Module]) -> dict[str, Any]:
    inputs = batch(16)
    is_classifier = cls is XLNetForSequenceClassification
    return inputs | {"labels": torch.tensor([1, 0]) if is_classifier else inputs["input_ids"]}


def step_on_cpu(model: Any, inputs: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and the parameters after a step of gradient descent."""
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    after = {
        name: x.detach() - (0 if x.grad is None else RATE * x.grad)
        for name, x in model.named_parameters()
    }
    return float(loss.detach()), after


def step_on_jax(model: Any, inputs: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """The same by ``jax.value_and_grad``, with all the kernels: one forward and two backward."""

    def loss_of(parameters: Any, given: Any) -> Any:
        return torch.func.functional_call(model, parameters, (), given).loss

    def step(parameters: Any, given: Any) -> Any:
        loss, gradients = interop.jax_value_and_grad(loss_of)(
            *interop.torch_view((parameters, given))
        )
        moved = jax.tree.map(lambda x, g: x - RATE * g, parameters, interop.jax_view(gradients))
        return interop.jax_view(loss), moved

    arguments = state_of(model), arrays(inputs)
    traced = jax.jit(step).trace(*arguments)
    assert kernels_in(traced) == 3
    loss, after = traced.lower().compile(compiler_options=QUICK)(*arguments)
    return float(loss), torchax.default_env().j2t_copy(after)


def compare(ours: Any, theirs: Any) -> None:
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    for name, expected in theirs[1].items():
        torch.testing.assert_close(
            ours[1][name], expected, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("cls", [XLNetLMHeadModel, XLNetForSequenceClassification])
def test_a_step_is_that_of_hugging_face(cls):
    """Parameters move by a tenth of their gradients: 1e-6 of them is 1e-5 of those."""
    model, inputs = model_of(cls), inputs_of(cls)
    theirs = step_on_cpu(model, inputs)
    assert max(float(abs(theirs[1][name] - x).max()) for name, x in model.named_parameters()) > 1e-3
    xlnet_fast.accelerate(model)
    compare(step_on_jax(model, inputs), theirs)


def test_a_step_with_dropout_drops_what_the_cpu_drops(monkeypatch):
    """Of probabilities, whose masks are ours; the seed that a layer draws is the same in both.

    Masks of hidden states, which are torchax's there, are left out.
    """
    cls = XLNetLMHeadModel
    model, inputs = model_of(cls, dropout=0.4), inputs_of(cls)
    xlnet_fast.accelerate(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and not name.endswith("rel_attn.dropout"):
            module.p = 0.0

    for module in (projection, linear):
        monkeypatch.setattr(module, "drop", lambda dropout, x: x)

    def drawn(device: torch.device) -> torch.Tensor:
        return torch.tensor([SEED], device=device)

    without = step_on_cpu(model.eval(), inputs)
    monkeypatch.setattr(rel_attention, "draw_seed", drawn)
    theirs = step_on_cpu(model.train(), inputs)
    assert abs(theirs[0] - without[0]) > 1e-3
    compare(step_on_jax(model, inputs), theirs)


def test_a_joint_graph_of_a_cpu_has_its_gradients_from_the_kernels():
    """PyTorch traced forward and backward on the CPU: the graph has both ops."""
    problem = make_problem(batch=2, mask="uni").to(torch.float32)
    names = list(problem.operands)

    def attend(*operands: torch.Tensor) -> tuple[torch.Tensor]:
        given = dict(zip(names, operands, strict=True))
        return (rel_attention_of(**given, **problem.options),)

    leaves = [x.clone().requires_grad_() for x in problem.operands.values()]
    graph = aot_export_joint_simple(attend, tuple(leaves), trace_joint=True)
    targets = [str(node.target) for node in graph.graph.nodes]
    assert "xlnet_fast.rel_attention_backward.default" in targets
    (out,) = attend(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(4))
    out.backward(grad)

    def interpreted(*values: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(JaxInterpreter(graph).run(*values, enable_io_processing=False))

    run = jax.jit(interpreted, compiler_options=QUICK)
    actual = map(to_torch, run(*map(to_jax, (*leaves, grad))))
    for ours, theirs in zip(actual, [out.detach(), *(x.grad for x in leaves)], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"parameters": {"x": torch.ones(2)}}, ArgumentError, "t2j_copy"),
        ({"batch": {"x": torch.ones(2)}}, ArgumentError, "t2j_copy"),
        ({"batch": {"x": jnp.ones((0, 3))}}, ShapeError, r"array of shape \(0, 3\), expected a"),
        ({"batch": {"x": jnp.ones(())}}, ShapeError, r"array of shape \(\), expected a"),
        ({"key": 0}, ArgumentError, r"key is 0, expected one of jax.random.key\(0\)"),
    ],
)
def test_what_cannot_be_shared_out_is_told(changed, error, said):
    gradients_of = tpu.data_parallel(lambda parameters, batch: (parameters["x"] * batch["x"]).sum())
    given = {"parameters": {"x": jnp.ones(2)}, "batch": {"x": jnp.ones((4, 2))}}
    given["key"] = jax.random.key(0)
    loss, gradients = gradients_of(**given)
    assert float(loss) == 8
    assert gradients["x"].tolist() == [4, 4]
    with pytest.raises(error, match=said):
        gradients_of(**given | changed)


@pytest.mark.parametrize("devices", [[], 1, ()])
def test_there_must_be_devices(devices):
    with pytest.raises(ArgumentError, match=r"expected some of jax\.devices"):
        tpu.data_parallel(lambda parameters, batch: batch, devices)


@pytest.mark.slow
def test_eight_devices_give_what_one_gives_and_a_step_compiles_for_eight_chips():
    """In a process of its own: the number of devices is set before JAX starts."""
    script = Path(__file__).with_name("tpu_eight_devices.py")
    subprocess.run([sys.executable, str(script)], check=True, timeout=300)
