"""What is compared of an XLNet: two segments with memory, two streams, a training step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import XLNetModel

from xlnet_fast.check.subject import TRAINING, Computation, Results, random

BATCH, LENGTH, TARGETS = 2, 40, 7
TWO_STREAMS = "two streams"


class XLNetSubject:
    """See :class:`.subject.Subject`."""

    def __init__(self, model: nn.Module) -> None:
        self.head_dim: int = trunk_of(model).config.d_head
        self._heads: int = trunk_of(model).config.n_head
        self.computations = COMPUTATIONS

    @property
    def training_batches(self) -> int:
        """How many batches make a fair yardstick.

        The gradient of r_s_bias is one number per head, times a vector: with few of them, the
        largest error of two equally good codes differs by more than the rule's factor now and then.
        """
        return max(3, -(-64 // self._heads))

    def op_of(self, computation: str) -> str:
        """The op that decides which backends can run it."""
        return "two_stream_attention" if computation == TWO_STREAMS else "rel_attention"

    def mended(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Hugging Face's model with its position table in ``dtype``.

        Its two streams multiply the fp32 table with weights of another dtype, and raise; with the
        table cast, as its single stream does, its own code gives the result it means to give.
        """
        encode = trunk_of(model).relative_positional_encoding
        trunk_of(model).relative_positional_encoding = lambda *a, **k: encode(*a, **k).to(dtype)
        return model


def trunk_of(model: nn.Module) -> Any:
    """The ``XLNetModel`` inside a model, or the model itself."""
    return next(module for module in model.modules() if isinstance(module, XLNetModel))


def _inputs(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """ids, attention_mask and token_type_ids, (B, L): row 0 padded on the left, in two segments."""
    trunk = trunk_of(model)
    ids = torch.randint(0, trunk.config.vocab_size, (BATCH, LENGTH), generator=random(seed))
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    segments = (torch.arange(LENGTH) >= LENGTH // 2).long().repeat(BATCH, 1)
    segments[:, -1] = 2
    given = {"input_ids": ids, "token_type_ids": segments}
    if trunk.attn_type == "bi":  # with "uni", Hugging Face takes no mask for more than one text
        mask[0, :9], segments[0, :9] = 0, 3
        given["attention_mask"] = mask
    return {name: x.to(trunk.device) for name, x in given.items()}


@torch.no_grad()
def _inference(model: nn.Module, batch: int) -> Results:
    """Two segments of text, the second with the memory of the first."""
    trunk = trunk_of(model.eval())
    first = trunk(**_inputs(model, 2 * batch), use_mems=True)
    second = trunk(**_inputs(model, 2 * batch + 1), use_mems=True, mems=list(first.mems))
    results = {"last_hidden_state": second.last_hidden_state}
    return results | {f"mems[{i}]": memory for i, memory in enumerate(second.mems)}


@torch.no_grad()
def _two_streams(model: nn.Module, batch: int) -> Results:
    """A random factorisation order; predicted: its first token, which sees none, and its last."""
    trunk = trunk_of(model.eval())
    given = _inputs(model, batch)
    generator = random(100 + batch)
    ranks = torch.stack([torch.randperm(LENGTH, generator=generator) for _ in range(BATCH)])
    order = ranks.argsort(1)
    targets = torch.cat([order[:, :1], order[:, 1 - TARGETS :]], 1)
    mapping = nn.functional.one_hot(targets, LENGTH).to(trunk.device, trunk.dtype)
    if trunk.attn_type == "bi":
        hidden = ranks[:, :, None] <= ranks[:, None, :]
        given["perm_mask"] = hidden.to(trunk.device, torch.float32)
    output = trunk(**given, target_mapping=mapping, output_hidden_states=True)
    streams = {f"hidden_states[{i}]": state for i, state in enumerate(output.hidden_states)}
    return {"last_hidden_state": output.last_hidden_state, **streams}


def _training(model: nn.Module, batch: int) -> Results:
    """Hidden states and the gradient of every parameter of the ``XLNetModel``.

    The head's own gradients are left out: Hugging Face's code computes them from the last hidden
    state, and some are exactly zero (the bias of a softmax), where a relative rule decides nothing.
    """
    model.train()
    given = _inputs(model, batch)
    trunk = trunk_of(model)
    if type(model).__name__ == "XLNetForMultipleChoice":
        given = {key: torch.stack([x, x.roll(1, 0)], 1) for key, x in given.items()}
    with torch.enable_grad():
        if trunk is model:
            output = model(**given, output_hidden_states=True)
            state = output.last_hidden_state
            direction = torch.randn(state.shape, generator=random(200 + batch))
            (state * direction.to(state)).mean().backward()
        else:
            labels = _labels(model, given["input_ids"])
            output = model(**given, **labels, output_hidden_states=True)
            output.loss.backward()
    results = {f"hidden_states[{i}]": x.detach() for i, x in enumerate(output.hidden_states)}
    for name, parameter in trunk.named_parameters():
        if parameter.grad is not None:
            results[f"d {name}"] = parameter.grad
    model.zero_grad(set_to_none=True)
    return results


def _labels(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """What the head of a model is trained on."""
    name, count = type(model).__name__, model.config.num_labels
    row = torch.arange(BATCH, device=ids.device)
    if name == "XLNetLMHeadModel":
        return {"labels": ids}
    if name == "XLNetForSequenceClassification":
        if model.config.problem_type == "multi_label_classification":
            return {"labels": nn.functional.one_hot(row % count, count).to(model.dtype)}
        regression = count == 1 or model.config.problem_type == "regression"
        shape = (BATCH,) if count == 1 else (BATCH, count)
        return {
            "labels": torch.ones(shape).to(ids.device, model.dtype) if regression else row % count
        }
    if name == "XLNetForTokenClassification":
        return {"labels": ids % count}
    if name == "XLNetForMultipleChoice":
        return {"labels": row % 2}
    spans = {"start_positions": row + 12, "end_positions": row + 17}
    if name == "XLNetForQuestionAnswering":
        spans |= {"cls_index": row * 0 + LENGTH - 1, "is_impossible": (row % 2).to(model.dtype)}
    return spans


COMPUTATIONS: dict[str, Computation] = {
    "memory and padding": _inference,
    TWO_STREAMS: _two_streams,
    TRAINING: _training,
}
