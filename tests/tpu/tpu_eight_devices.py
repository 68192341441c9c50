"""Data-parallel training over eight virtual devices of the CPU; run by test_tpu_training.py.

Loss and gradients are those of one device, dropout differs from device to device, and the step
compiles for eight chips, which sum the gradients.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
sys.path.insert(0, str(Path(__file__).parent))

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tpu_interpreted import QUICK
from tpu_models import arrays, config, state_of
from transformers import XLNetForSequenceClassification

import xlnet_fast
from xlnet_fast import tpu
from xlnet_fast.errors import ShapeError

DEVICES, BATCH = 8, 16


def batch(length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(length) < torch.arange(1, BATCH + 1)[:, None] * length // BATCH).float()
    return {
        "input_ids": torch.randint(5, 50, (BATCH, length), generator=generator),
        "attention_mask": mask,
        "labels": torch.randint(0, 2, (BATCH,), generator=generator),
    }


def model_of(**settings: Any) -> Any:
    torch.manual_seed(0)
    return XLNetForSequenceClassification(config(**settings)).train()


def gradients_on(devices: Any, model: Any) -> Any:
    """``data_parallel`` of the loss of a model, as it is to be jitted."""

    def loss_of(parameters: Any, given: Any) -> Any:
        return torch.func.functional_call(model, parameters, (), given).loss

    return tpu.data_parallel(loss_of, devices)


def check_on_the_cpu() -> None:
    """Against Hugging Face's own code on one device."""
    given, model = batch(16), model_of()
    expected = model(**given).loss
    expected.backward()
    gradients = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    assert max(float(x.abs().max()) for x in gradients.values()) > 1e-2
    xlnet_fast.accelerate(model)
    step = jax.jit(gradients_on(jax.devices(), model), compiler_options=QUICK)
    loss, found = step(state_of(model), arrays(given), jax.random.key(0))
    assert abs(float(loss) - expected.item()) < 1e-5, (loss, expected)
    for name, exact in gradients.items():
        np.testing.assert_allclose(found[name], exact, atol=1e-5, rtol=1e-5, err_msg=name)


def check_dropout() -> None:
    """Each device draws masks of its own: device d writes its in the digit of 4 ** d."""
    size = 64

    def loss_of(parameters: Any, given: Any) -> Any:
        kept = torch.nn.functional.dropout(parameters["x"], 0.5, training=True)
        return (kept * given["weight"]).sum()

    step = jax.jit(tpu.data_parallel(loss_of))
    arguments = {"x": jnp.ones(size)}, {"weight": 4.0 ** jnp.arange(DEVICES)}
    masks = []
    for seed in (0, 0, 1):
        _, gradients = step(*arguments, jax.random.key(seed))
        digits = np.asarray(gradients["x"] * (DEVICES / 2), np.int64)
        masks.append([tuple(digits >> 2 * d & 3) for d in range(DEVICES)])
        assert {digit for mask in masks[-1] for digit in mask} == {0, 1}
        assert len(set(masks[-1])) == DEVICES, "devices that drop the same"
    assert masks[0] == masks[1] != masks[2]
    with pytest.raises(ShapeError, match="a multiple of the 8 devices"):
        step(arguments[0], {"weight": jnp.ones(DEVICES + 1)}, jax.random.key(0))


def check_for_eight_chips() -> None:
    tpu.register(chip="v5e")
    devices = topologies.get_topology_desc("v5e:2x4", "tpu").devices
    mesh = Mesh(np.array(devices), ("data",))
    model = xlnet_fast.accelerate(model_of(dropout=0.1)).bfloat16()

    def shapes(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    arguments = (
        shapes(state_of(model), PartitionSpec()),
        shapes(arrays(batch(128)), PartitionSpec("data")),
        shapes(jax.random.key(0), PartitionSpec()),
    )
    compiled = jax.jit(gradients_on(devices, model)).lower(*arguments).compile()
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3, "one forward, two backward"
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert f"bf16[{BATCH // DEVICES},2,128,64]" in text, "two texts a device"


if __name__ == "__main__":
    assert len(jax.devices()) == DEVICES
    tpu.register(interpret=True)
    check_on_the_cpu()
    check_dropout()
    check_for_eight_chips()
