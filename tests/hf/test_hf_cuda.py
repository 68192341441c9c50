"""Accelerated models on backend ``cuda``, its kernels emulated: as if a CPU were the GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_emulation import as_gpu, emulation, emulation_module
from hf_parity import (
    accelerated,
    compare,
    one_hot_targets,
    padding,
    random_ids,
    random_mems,
    tiny_model,
)
from torch import Tensor
from transformers import XLNetForSequenceClassification, XLNetLMHeadModel, XLNetModel

import xlnet_fast
from xlnet_fast.kernels.cuda import entries

__all__ = ["as_gpu", "emulation", "emulation_module"]  # fixtures
pytestmark = pytest.mark.usefixtures("as_gpu")

BATCH, LENGTH, MEMORY = 2, 10, 6
SEEDS = range(4)


def inputs_of(kind: str, seed: int) -> dict[str, Any]:
    """Forward arguments with memory: of a classifier's batch, or of one of pretraining."""
    inputs: dict[str, Any] = {
        "input_ids": random_ids(BATCH, LENGTH, seed),
        "mems": random_mems(BATCH, MEMORY, seed),
        "use_mems": True,
        "token_type_ids": torch.arange(LENGTH).expand(BATCH, LENGTH) // 6,
    }
    if kind == "one stream":
        return inputs | {"attention_mask": padding(BATCH, LENGTH, "left")}
    hidden = torch.ones(LENGTH, LENGTH).triu().repeat(BATCH, 1, 1)
    targets = one_hot_targets([[9, 0, 4], [3, -1, 7]], LENGTH)
    return inputs | {"perm_mask": hidden, "target_mapping": targets}


@pytest.mark.parametrize("kind", ["one stream", "two streams"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_outputs_and_gradients_are_hugging_faces(dtype, kind, monkeypatch):
    cls = XLNetForSequenceClassification if kind == "one stream" else XLNetLMHeadModel
    model = tiny_model(cls, dtype, mem_len=MEMORY).train()
    launched, call = set(), entries.call

    def spy(name: str, *arguments: Any) -> None:
        launched.add(name)
        call(name, *arguments)

    monkeypatch.setattr(entries, "call", spy)
    compare(model, [inputs_of(kind, seed) for seed in SEEDS], dtype, backend="cuda")
    expected = {"rel_attention_forward", "rel_attention_backward", "concat_memory_forward"}
    assert launched == expected


def trained(model: Any, steps: int = 3) -> Tensor:
    """The loss of every step of training on one batch."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    inputs = inputs_of("one stream", 0) | {"labels": torch.tensor([0, 1])}
    inputs["mems"] = [memory.to(model.dtype) for memory in inputs["mems"]]
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def test_training_goes_as_with_hugging_face():
    model = tiny_model(XLNetForSequenceClassification, torch.bfloat16)
    mine = trained(accelerated(model, backend="cuda"))
    assert mine[-1] < mine[0]
    torch.testing.assert_close(mine, trained(model), atol=0.03, rtol=0.03)


def test_the_table_names_the_backend():
    model = accelerated(tiny_model(XLNetModel, torch.bfloat16), backend="cuda")
    rows = [row for row in xlnet_fast.explain(model).rows if row.op != "linear"]
    assert {(row.backend, row.reason) for row in rows} == {("cuda", "asked for by name")}


def test_a_model_of_a_head_dim_that_the_kernels_lack_says_so():
    model = accelerated(tiny_model(XLNetModel, torch.bfloat16, d_model=24), backend="cuda")
    rows = {row.op: row for row in xlnet_fast.explain(model).rows}
    assert rows["rel_attention"].backend == "none: raises"
    assert "head dims in steps of 8, not 12" in rows["rel_attention"].reason
    with pytest.raises(xlnet_fast.BackendUnavailable, match="in steps of 8, not 12"):
        model(random_ids(2, 5))
