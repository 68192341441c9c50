"""Every class of accelerated model as ONNX, against itself, in onnxruntime: ``make onnx``."""

from __future__ import annotations

from typing import Any

import onnxruntime
import pytest
import torch
from hf_parity import (
    CLASSES,
    LAYERS,
    accelerated,
    flatten,
    one_hot_targets,
    padding,
    random_ids,
    random_mems,
    tiny_model,
)
from transformers import XLNetForMultipleChoice, XLNetForQuestionAnswering

SHAPES = [(2, 6, 3), (1, 4, 5), (3, 17, 2)]  # batch, length and memory; the first one is exported
BATCH, LENGTH, MEMORY = (
    torch.export.Dim(name, min=1, max=512) for name in ("batch", "length", "memory")
)
ONE_CHOICE = torch.export.Dim.STATIC


def example(cls: Any, batch: int, length: int, memory: int, what: str) -> dict[str, Any]:
    given = {"input_ids": random_ids(batch, length)}
    given["attention_mask"] = padding(batch, length, "left").long()
    given["token_type_ids"] = random_ids(batch, length, seed=1) % 2
    if cls is XLNetForMultipleChoice:
        given = {name: x[:, None] for name, x in given.items()}
    if what == "two streams":
        given["perm_mask"] = torch.ones(length, length).triu().repeat(batch, 1, 1)
        given["target_mapping"] = one_hot_targets([[length - 1, 0]] * batch, length)
    if what != "":
        given["mems"] = random_mems(batch, memory)
    return given


def dimensions(name: str, cls: Any) -> Any:
    if name == "mems":
        return [{0: MEMORY, 1: BATCH}] * LAYERS
    if name == "perm_mask":
        return {0: BATCH, 1: LENGTH, 2: LENGTH}
    if name == "target_mapping":
        return {0: BATCH, 2: LENGTH}
    if cls is XLNetForMultipleChoice:
        return {0: BATCH, 1: ONE_CHOICE, 2: LENGTH}
    return {0: BATCH, 1: LENGTH}


CASES = [*((cls, "") for cls in CLASSES)]
CASES += [(CLASSES[0], "memory"), (CLASSES[1], "two streams")]  # the transformer is one for all


@pytest.mark.parametrize(("cls", "what"), CASES)
def test_onnx(cls: Any, what: str, tmp_path: Any) -> None:
    model = accelerated(tiny_model(cls, use_mems_eval=bool(what)))
    given = example(cls, *SHAPES[0], what)
    program = torch.onnx.export(
        model, (), kwargs=given, dynamo=True, verbose=False,
        dynamic_shapes={name: dimensions(name, cls) for name in given},
    )  # fmt: skip
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    for shape in SHAPES:
        given = example(cls, *shape, what)
        names = [entry.name for entry in session.get_inputs()]
        tensors = [x.numpy() for x in flatten(given).values()]
        outputs = session.run(None, dict(zip(names, tensors, strict=True)))
        expected = list(flatten(dict(model(**given))).values())
        assert len(outputs) == len(expected)
        for ours, theirs in zip(outputs, expected, strict=True):
            theirs = theirs.detach()
            if cls is XLNetForQuestionAnswering and not theirs.is_floating_point():
                continue  # equal scores may be in another order
            torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=1e-5, rtol=1e-5)
