"""Launches and peak memory of backend ``sdpa`` on a GPU, beside HF's, counted without one.

    python -m benchmarks.micro.sdpa_launches [--dtype bf16] [--plain]

A layer's launches are those between its input and its output, forward in inference, forward and
backward in training with dropout. Peak memory is that of the attention alone, and in brackets that
of a model of one layer, with its linear layers and all gradients: bytes of live tensors made on the
way, without parameters and inputs. How it is counted: benchmarks/harness/launches.py.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import XLNetConfig, XLNetModel
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

import xlnet_fast
from xlnet_fast.masks import AttentionMask
from xlnet_fast.ops import rel_attention

from ..harness.launches import Ledger, fake_gpu

DROPOUT = 0.1
HEAD_DIM = 64
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
KINDS = ("hf", "sdpa")


@dataclass(frozen=True)
class Case:
    """Sizes of an input; with ``extras`` padding and segments."""

    batch: int
    length: int
    heads: int
    extras: bool = True
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        """As the tables have it."""
        return f"{self.batch}x{self.length}, {self.heads} heads"


CASES = (Case(1, 128, 12), Case(8, 512, 12), Case(32, 512, 16), Case(4, 4096, 16))


@dataclass(frozen=True)
class Count:
    """Launches forward and in all, peak bytes, and operators that would wait for the GPU."""

    forward: int
    total: int
    peak_bytes: int
    synchronisations: tuple[str, ...]


def count_layer(kind: str, case: Case, train: bool) -> Count:
    """Launches of a layer; peak and synchronisations of a model that has only this one.

    Args:
        kind: "hf", or "sdpa" for an accelerated model.
        train: forward and backward with dropout; else forward without gradients.
    """
    width = case.heads * HEAD_DIM
    config = XLNetConfig(
        vocab_size=8, d_model=width, n_layer=1, n_head=case.heads, d_inner=4 * width,
        dropout=DROPOUT,
    )  # fmt: skip
    # PyTorch's backward pass wants a real GPU; the attention is on a fake one nonetheless (Ledger).
    device = torch.device("cpu") if train else torch.device("cuda", 0)
    with fake_gpu(), Ledger() as ledger:
        model = _model(config, case.dtype, device).train(train)
        ledger.forget()
        if kind != "hf":
            model = xlnet_fast.accelerate(model, backend=kind)
        marks: list[int] = []
        (layer,) = model.layer
        layer.register_forward_pre_hook(lambda *_: marks.append(ledger.total))
        if train:
            layer.register_forward_hook(lambda _, given, made: _mark_backward(given, made, mark))
        layer.register_forward_hook(lambda *_: marks.append(ledger.total))

        def mark(grad: Any) -> None:
            marks.append(ledger.total)

        hidden = torch.empty(case.batch, case.length, width, dtype=case.dtype, device=device)
        hidden.requires_grad_(train)
        with torch.set_grad_enabled(train):
            out = model(
                inputs_embeds=hidden, use_mems=False, **_extras(case, device)
            ).last_hidden_state
        if train:
            out.backward(torch.empty_like(out))
    forward = marks[1] - marks[0]
    backward = marks[3] - marks[2] if train else 0
    return Count(forward, forward + backward, ledger.peak_bytes, tuple(ledger.synchronisations))


def _model(config: XLNetConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of fake parameters; ``Module.to`` cannot move them."""
    with mock.patch.object(XLNetModel, "init_weights", return_value=None):
        model = XLNetModel(config)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            moved = torch.empty(parameter.shape, dtype=dtype, device=device)
            setattr(module, name, nn.Parameter(moved))
    return model


def _mark_backward(given: Any, made: Any, mark: Any) -> None:
    """Note when the backward pass enters a layer, and when it has left it."""
    made[0].register_hook(mark)
    given[0].register_hook(mark)


def _extras(case: Case, device: torch.device) -> dict[str, torch.Tensor]:
    if not case.extras:
        return {}
    shape = (case.batch, case.length)
    return {
        "attention_mask": torch.ones(shape, device=device),
        "token_type_ids": torch.zeros(shape, dtype=torch.long, device=device),
    }


def count_attention(kind: str, case: Case, train: bool) -> Count:
    """The attention alone: all but the projections of an attention layer; arguments as above."""
    batch, length, heads = case.batch, case.length, case.heads
    device = torch.device("cpu") if train else torch.device("cuda", 0)
    with fake_gpu(), Ledger() as ledger:

        def operand(*shape: int) -> torch.Tensor:
            x = torch.empty(*shape, heads, HEAD_DIM, dtype=case.dtype, device=device)
            return x.requires_grad_(train)

        q, k, v = (operand(length, batch) for _ in range(3))
        r, seg_embed = operand(2 * length, 1), operand(2)
        biases = {name: operand() for name in ("r_w_bias", "r_r_bias", "r_s_bias")}
        attend = _attend_hf if kind == "hf" else _attend_ours
        run = attend(case, q, k, v, r, seg_embed, biases, DROPOUT if train else 0.0, kind)
        ledger.forget()
        with torch.set_grad_enabled(train):
            out = run()
        forward = ledger.total
        if train:
            out.backward(torch.empty_like(out))
    return Count(forward, ledger.total, ledger.peak_bytes, tuple(ledger.synchronisations))


def _attend_hf(
    case: Case, q: Any, k: Any, v: Any, r: Any, seg_embed: Any, biases: Any, dropout: float,
    kind: str,
) -> Any:  # fmt: skip
    """HF's core, unchanged, on tensors in the place of a module's parameters."""
    batch, length = case.batch, case.length
    module = SimpleNamespace(
        **biases, seg_embed=seg_embed, scale=HEAD_DIM**-0.5, dropout=nn.Dropout(dropout),
        rel_shift_bnij=XLNetRelativeAttention.rel_shift_bnij,
    )  # fmt: skip
    mask = segments = None
    if case.extras:
        mask = q.new_empty(length, length, batch, 1)
        segments = q.new_empty(length, length, batch, 2)
    table = r.expand(-1, batch, -1, -1)
    core: Any = XLNetRelativeAttention.rel_attn_core
    return lambda: core(module, q, k, v, table, seg_mat=segments, attn_mask=mask)


def _attend_ours(
    case: Case, q: Any, k: Any, v: Any, r: Any, seg_embed: Any, biases: Any, dropout: float,
    kind: str,
) -> Any:  # fmt: skip
    options: dict[str, Any] = {}
    if case.extras:
        ids = q.new_empty(case.batch, case.length, dtype=torch.long)
        padding = ids < 0
        options = {
            "r_s_bias": biases["r_s_bias"], "seg_embed": seg_embed, "segments_q": ids,
            "segments_k": ids, "mask": AttentionMask(key_padding=padding, see_self=True),
        }  # fmt: skip
    if dropout:
        options |= {"dropout_p": dropout, "seed": q.new_empty(1, dtype=torch.long)}
    operands = [x.transpose(0, 1) for x in (q, k, v, r)]
    vectors = (biases["r_w_bias"], biases["r_r_bias"])
    return lambda: rel_attention(*operands, *vectors, **options, backend=kind)


def table_of(cases: tuple[Case, ...]) -> Table:
    """A row for each case and pass: launches of a layer and of its attention, and peaks."""
    table = Table(box=None, pad_edge=False)
    for heading in ("case", "pass"):
        table.add_column(heading, no_wrap=True)
    for heading in ("layer HF", "ours", "attention HF", "ours", "peak MiB HF", "ours"):
        table.add_column(heading, justify="right", no_wrap=True)
    for case in cases:
        for train in (False, True):
            layer = [count_layer(kind, case, train) for kind in KINDS]
            alone = [count_attention(kind, case, train) for kind in KINDS]
            peaks = [
                f"{inner.peak_bytes / 2**20:,.1f} ({outer.peak_bytes / 2**20:,.1f})"
                for inner, outer in zip(alone, layer, strict=True)
            ]
            counts = [str(count.total) for count in (*layer, *alone)]
            table.add_row(case.name, "training" if train else "inference", *counts, *peaks)
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="sdpa_launches", description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--plain", action="store_true", help="without padding and segments")
    options = parser.parse_args()
    cases = tuple(
        Case(case.batch, case.length, case.heads, not options.plain, DTYPES[options.dtype])
        for case in CASES
    )
    Console(width=120).print(table_of(cases))


if __name__ == "__main__":
    main()
