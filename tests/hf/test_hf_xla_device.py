"""The drop-in on a device of XLA: no value is read, nothing is gathered, sdpa refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import XLNetConfig, XLNetModel
from xla_device import XlaDevice, on_xla

import xlnet_fast
from xlnet_fast.errors import BackendUnavailable

aten = torch.ops.aten
BATCH, LENGTH, MEMORY = 2, 12, 5


def xlnet() -> XLNetModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}
    return XLNetModel(XLNetConfig(**sizes, dropout=0.0, initializer_range=0.3)).eval()


def example(*names: str) -> dict[str, Any]:
    """Token ids and the arguments of these names."""
    made = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 50, (BATCH, LENGTH), generator=made)
    positions = torch.tensor([[3, 9, 7], [0, 11, -1]])
    real = torch.ones(BATCH, LENGTH)
    real[0, :4] = 0
    values: dict[str, Any] = {
        "attention_mask": real,
        "token_type_ids": ids % 2,
        "mems": [torch.randn(MEMORY, BATCH, 16, generator=made) for _ in range(2)],
        "perm_mask": (torch.rand(BATCH, LENGTH, LENGTH, generator=made) > 0.5).float(),
        "target_mapping": (positions[..., None] == torch.arange(LENGTH)).float(),
        "target_positions": positions,
    }
    return {"input_ids": ids, **{name: values[name] for name in names}}


def on_device(model: XLNetModel, given: dict[str, Any]) -> tuple[Any, XlaDevice]:
    """The first output on device "xla", as a tensor of the CPU, and what ran there."""
    weights = {name: on_xla(x.detach()) for name, x in model.named_parameters()}
    weights |= {name: on_xla(x) for name, x in model.named_buffers()}
    given = torch.utils._pytree.tree_map(on_xla, given)
    with XlaDevice() as device, torch.no_grad():
        output = torch.func.functional_call(copy.copy(model), weights, kwargs=given)[0]
    return output.inner, device


CALLS = [
    ("attention_mask",),
    ("attention_mask", "token_type_ids"),
    ("attention_mask", "mems", "token_type_ids"),
    ("perm_mask", "target_mapping"),
    ("perm_mask", "target_mapping", "mems"),
]


@pytest.mark.parametrize("names", CALLS, ids="+".join)
def test_no_value_is_read_and_nothing_gathered(names):
    model, given = xlnet(), example(*names)
    with torch.no_grad():
        expected = model(**given)[0]
    got, device = on_device(xlnet_fast.accelerate(model), given)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert aten.bmm in device.called
    assert not device.called & {aten.gather, aten.index_select, aten.index, aten.scatter}


def test_predicted_positions_are_as_their_mapping():
    model, mapped = xlnet(), example("perm_mask", "target_mapping")
    with torch.no_grad():
        expected = model(**mapped)[0]
    given = example("perm_mask", "target_positions")
    got, device = on_device(xlnet_fast.accelerate(model), given)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert aten.gather not in device.called


def test_sdpa_refuses_the_device():
    model = xlnet_fast.accelerate(xlnet(), backend="sdpa")
    with pytest.raises(BackendUnavailable, match="it runs on cpu and cuda, not on xla"):
        on_device(model, example("attention_mask"))


def test_segments_are_compared_without_assertions():
    """Also for a layer that runs Hugging Face's code: torchax cannot lower one_hot's."""

    def exported(model: XLNetModel) -> str:
        given = example("attention_mask", "token_type_ids")
        return str(torch.export.export(model, (), given, strict=False).graph)

    theirs = xlnet()
    assert "one_hot" in exported(theirs)
    ours = xlnet_fast.accelerate(copy.deepcopy(theirs))
    assert "one_hot" not in exported(ours)
    ours.layer[1] = theirs.layer[1]
    assert "one_hot" not in exported(ours)
    given = example("attention_mask", "token_type_ids")
    torch.testing.assert_close(ours(**given)[0], theirs(**given)[0], rtol=1e-5, atol=1e-5)
