"""What the CUDA kernels of relative attention refuse, before anything is launched."""

from __future__ import annotations

import re
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from attention_cases import Case, make_inputs
from attention_runs import operands
from cuda_emulation import emulation, emulation_module
from torch import Tensor

from xlnet_fast.errors import ArgumentError, BackendUnavailable, ShapeError
from xlnet_fast.kernels.cuda import entries, rel_attention
from xlnet_fast.operands import Keys, Queries

__all__ = ["emulation", "emulation_module"]  # fixtures

BF16 = torch.bfloat16
CASE = Case(batch=2, rows=16, memory=8, segments=True, dropout_p=0.1, apart=True)


def call(dtype: torch.dtype = BF16, **sizes: Any) -> tuple[Keys, Queries]:
    case = replace(CASE, **sizes)
    return operands(make_inputs(case, dtype, seed=0), case)


@pytest.fixture
def nothing_launched(emulation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *arguments: Any) -> None:
        raise AssertionError(f"{name} was launched")

    monkeypatch.setattr(entries, "call", refuse)


def run(keys: Keys, *streams: Queries) -> None:
    """Forward and backward; whatever is refused, both refuse."""
    outs = [torch.empty(stream.q.shape, dtype=BF16) for stream in streams]
    stats = [torch.empty(s.q.shape[0], s.q.shape[2], s.q.shape[1]) for s in streams]
    grads = [None] * (len(streams) + 9)
    with pytest.raises((ArgumentError, BackendUnavailable)) as raised:
        rel_attention.rel_attention_backward(keys, streams, outs, stats, outs, grads, False)
    with pytest.raises(raised.type, match=f"^{re.escape(str(raised.value))}$"):
        rel_attention.rel_attention_forward(keys, streams, outs, stats)
    raise raised.value


def odd_rows(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, 1))[..., :-1]


def every_second(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


MISALIGNED = {
    odd_rows: r"its rows do not begin at multiples of 16 bytes \(strides \(.*33, 1\)",
    every_second: "its last dimension has stride 2, expected 1",
}


@pytest.mark.usefixtures("nothing_launched")
@pytest.mark.parametrize("name", ["q", "k", "v", "k_memory", "v_memory", "r"])
@pytest.mark.parametrize("layout", MISALIGNED)
def test_a_layout_that_cannot_be_read_in_pieces(layout, name):
    keys, queries = call()
    if name == "q":
        queries = replace(queries, q=layout(queries.q.contiguous()))
    else:
        keys = replace(keys, **{name: layout(getattr(keys, name).contiguous())})
    name = "q of stream 0" if name == "q" else name
    message = rf"cannot read {name}: {MISALIGNED[layout]}.*; \.contiguous\(\) mends it"
    with pytest.raises(ArgumentError, match=message):
        run(keys, queries)


@pytest.mark.usefixtures("nothing_launched")
def test_a_layout_of_the_second_stream():
    keys, queries = call()
    second = replace(queries, q=odd_rows(queries.q.contiguous()))
    with pytest.raises(ArgumentError, match=r"cannot read q of stream 1: its rows do not begin"):
        run(keys, queries, second)


@pytest.mark.usefixtures("nothing_launched")
@pytest.mark.parametrize("dim", [1, 4, 12, 20, 132, 136])
def test_head_dims(dim):
    with pytest.raises(ShapeError, match=rf"multiples of 8 up to 128, not {dim}$"):
        run(*call(head_dim=dim))


@pytest.mark.usefixtures("nothing_launched")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype):
    with pytest.raises(ArgumentError, match=f"takes float16 and bfloat16, not {dtype}"):
        run(*call(dtype))


@pytest.mark.usefixtures("nothing_launched")
@pytest.mark.parametrize("name", ["k", "v", "k_memory", "v_memory", "r"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_dtypes_that_differ(name, dtype):
    keys, queries = call()
    keys = replace(keys, **{name: getattr(keys, name).to(dtype)})
    message = f"^{name} is {dtype} on cpu, expected torch.bfloat16 on cpu"
    with pytest.raises(ArgumentError, match=message):
        run(keys, queries)


@pytest.mark.usefixtures("nothing_launched")
def test_devices_that_differ():
    keys, queries = call()
    with pytest.raises(ArgumentError, match=r"^r is torch.bfloat16 on meta, expected .* on cpu"):
        run(replace(keys, r=keys.r.to("meta")), queries)


@pytest.mark.usefixtures("nothing_launched")
def test_a_device_that_the_kernels_do_not_run_on():
    keys, queries = call()
    with pytest.raises(BackendUnavailable, match="the emulated kernels run on CPU tensors"):
        run(keys, replace(queries, q=queries.q.to("meta")))


def test_tensors_of_a_cpu_are_refused_with_the_reason():
    with pytest.raises(BackendUnavailable, match="run on CUDA devices, not on 'cpu'"):
        run(*call())


@pytest.mark.usefixtures("nothing_launched")
@pytest.mark.parametrize("empty", ["rows", "batch", "heads", "keys"])
def test_nothing_to_attend_to(empty):
    keys, queries = call()
    if empty == "keys":
        none = {name: getattr(keys, name)[:, :0] for name in ("k", "v", "k_memory", "v_memory")}
        keys = replace(keys, **none)
    else:
        cut = {
            "rows": (slice(None), slice(0)),
            "batch": (slice(0),),
            "heads": (..., slice(0), slice(None)),
        }
        queries = replace(queries, q=queries.q[cut[empty]])
    with pytest.raises(ShapeError, match="at least one batch element, head, query row and key"):
        run(keys, queries)


@pytest.mark.usefixtures("nothing_launched")
def test_an_empty_second_stream():
    keys, queries = call()
    with pytest.raises(ShapeError, match="at least one batch element, head, query row and key"):
        run(keys, queries, replace(queries, q=queries.q[:, :0]))


@pytest.mark.usefixtures("nothing_launched")
@pytest.mark.parametrize("number", [0, 1])
def test_dropout_without_a_seed(number):
    keys, queries = call()
    streams = [queries, queries]
    streams[number] = replace(queries, seed=None)
    with pytest.raises(ArgumentError, match=r"dropout_p 0\.1 needs the seed of every stream"):
        run(keys, *streams)


@pytest.mark.usefixtures("nothing_launched")
def test_a_grid_that_is_too_large(monkeypatch):
    monkeypatch.setattr(rel_attention, "MAX_BLOCKS", 15)
    with pytest.raises(ShapeError, match="needs 16 thread blocks, and a grid has 15"):
        run(*call())


ENTRIES = {
    # by field of the keys: its value, the message
    "dtype": (0, "take bfloat16 and float16"),
    "head_dim": (136, "multiple of 8 from 8 to 128"),
    "batch": (0, "batch, heads, keys and rows of r must be positive"),
    "heads": (0, "batch, heads, keys and rows of r must be positive"),
    "keys": (0, "batch, heads, keys and rows of r must be positive"),
    "table": (0, "batch, heads, keys and rows of r must be positive"),
    "groups": (3, "groups must divide the batch"),
    "apart": (2, "0 <= apart <= memory <= keys"),
    "memory": (9, "0 <= apart <= memory <= keys"),
    "dropout": (True, "dropout needs a seed"),
    "spelling": (1, "a field has no such name"),
}


@pytest.mark.parametrize("field", ENTRIES)
def test_refused_by_the_compiled_entry(field, emulation):
    value, message = ENTRIES[field]
    sizes = {"dtype": 1, "batch": 2, "heads": 1, "head_dim": 8, "keys": 8, "memory": 1, "apart": 1}
    stream = {"rows": 1, "stats": 64}
    arguments = {**sizes, "groups": 1, "table": 16, field: value}
    with pytest.raises(ValueError, match=message):
        emulation.cuda_rel_attention_forward(arguments, [stream], 0)


@pytest.mark.parametrize("stream", [{"rows": 0, "stats": 64}, {"rows": 1}])
def test_a_wrong_stream_is_refused_by_the_compiled_entry(stream, emulation):
    sizes = {"dtype": 1, "batch": 1, "heads": 1, "head_dim": 8, "keys": 8, "groups": 1, "table": 16}
    with pytest.raises(ValueError, match="a stream must have rows and statistics"):
        emulation.cuda_rel_attention_forward(sizes, [stream], 0)


@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize("name", ["q", "k", "v", "k_memory", "v_memory", "r", "r_w_bias"])
def test_an_address_that_is_no_multiple_is_copied(name):
    """Strides are refused; an address by the public op alone: torch.compile cannot see it."""
    keys, queries = call()

    def forward(keys: Keys, queries: Queries) -> Tensor:
        out, stats = torch.empty_like(queries.q), torch.empty(2, 2, queries.q.shape[1])
        rel_attention.rel_attention_forward(keys, [queries], [out], [stats])
        return out

    expected = forward(keys, queries)
    holder = queries if name == "q" else keys
    x = getattr(holder, name).contiguous()
    moved = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    assert moved.data_ptr() % 16 != 0
    changed = replace(holder, **{name: moved})
    keys, queries = (keys, changed) if name == "q" else (changed, queries)
    assert torch.equal(forward(keys, queries), expected)


@pytest.mark.usefixtures("nothing_launched")
@pytest.mark.parametrize("name", ["r_w_bias", "r_r_bias", "r_s_bias", "seg_embed"])
def test_biases_of_another_dtype(name):
    keys, queries = call()
    keys = replace(keys, **{name: getattr(keys, name).float()})
    with pytest.raises(ArgumentError, match=f"^{name} is torch.float32 on cpu, expected"):
        run(keys, queries)


@pytest.mark.usefixtures("nothing_launched")
def test_statistics_and_outputs_that_do_not_fit():
    keys, queries = call()
    out, stats = torch.empty_like(queries.q), torch.empty(2, 2, 16)
    for wrong in (stats[..., :-1], stats.double(), stats.transpose(0, 1)):
        with pytest.raises((ArgumentError, ShapeError), match="stats of stream 0"):
            rel_attention.rel_attention_forward(keys, [queries], [out], [wrong])
    for wrong in (out[:, 1:], out.float()):
        with pytest.raises((ArgumentError, ShapeError), match="the output of stream 0"):
            rel_attention.rel_attention_forward(keys, [queries], [wrong], [stats])
