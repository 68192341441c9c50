"""Chips whose blocks have little shared memory: what runs there, and what is refused beforehand."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attention_cases import CASES, Case, make_inputs
from attention_runs import check_output, check_passes, gradients, launch
from cuda_emulation import as_gpu, emulation, emulation_module
from cuda_tools import needs_nvcc
from hf_oracle import make_problem
from two_stream_cases import CASES as STREAMS
from two_stream_cases import check_streams

from xlnet_fast import ops
from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels.chips import CHIPS, KIB
from xlnet_fast.kernels.cuda import entries, rel_attention, room
from xlnet_fast.kernels.report import cuda as report
from xlnet_fast.kernels.report.rows import check, fits, shapes_of
from xlnet_fast.ops import _dispatch
from xlnet_fast.ops._dispatch import Request, choose

__all__ = ["as_gpu", "emulation", "emulation_module"]  # fixtures

BF16 = torch.bfloat16
LITTLE = 99 * KIB
FITS = {  # by compute capability: the largest head dim forward, and with the backward pass
    "8.0": (128, 128), "8.6": (128, 64), "8.7": (128, 128), "8.8": (128, 64), "8.9": (128, 64),
    "9.0": (128, 128), "10.0": (128, 128), "10.3": (128, 128), "11.0": (128, 128),
    "12.0": (128, 64), "12.1": (128, 64),
}  # fmt: skip


@pytest.fixture
def little(emulation: Any) -> Any:
    """An emulated GPU whose blocks may have 99 KiB."""
    emulation.set_device(shared_limit=LITTLE)
    return emulation


# --- the table is what the kernels are launched with ----------------------------------------------


@pytest.mark.parametrize("limit", [LITTLE, 227 * KIB])
@pytest.mark.parametrize("head_dim", [8, 32, 40, 64])
@pytest.mark.parametrize("positions", [None, "any"])
def test_launches_take_the_shared_memory_that_the_table_says(positions, head_dim, limit, emulation):
    emulation.set_device(shared_limit=limit)
    case = Case(batch=1, rows=17, heads=1, head_dim=head_dim, positions=positions)
    x = make_inputs(case, BF16, seed=0)
    gradients(x, case, torch.zeros_like(x.q), rel_attention, "cpu")
    tile = min(shape.head_dim for shape in room.shapes() if shape.head_dim >= head_dim)
    of_tile = {shape.kernel: shape for shape in room.shapes() if shape.head_dim == tile}
    backward = ("backward_q", "backward_kv", "backward_r")
    assert list(of_tile) == ["forward", "forward_positions", *backward]
    forward = "forward" if positions is None else "forward_positions"
    assert emulation.take_shared_bytes() == [
        of_tile[name].ample if of_tile[name].ample <= limit else of_tile[name].scarce
        for name in (forward, *backward)
    ]


def test_a_smaller_tile_is_there_where_the_preferred_one_does_not_fit(emulation):
    smaller = {
        (shape.kernel, shape.head_dim): (shape.ample, shape.scarce)
        for shape in room.shapes()
        if shape.scarce < shape.ample
    }
    assert smaller == {
        ("forward", 128): (109600, 88736),
        ("forward_positions", 128): (109600, 88736),
        ("backward_q", 64): (102688, 69152),
        ("backward_kv", 64): (109312, 84736),
    }
    assert all(shape.scarce <= shape.ample for shape in room.shapes())


@needs_nvcc
def test_compiled_kernels_tell_the_same_by_their_names(emulation, tmp_path, monkeypatch):
    """Of one kernel in both tiles, for a chip that has no room for the larger one."""
    monkeypatch.setenv("XLNET_FAST_CACHE", str(tmp_path))
    rows = report.compile_report((86,), sources="rel_attention_backward_kv_bfloat16_64*")
    assert [fits(row) for row in rows] == [False, True]
    of_table = [s for s in room.shapes() if (s.kernel, s.head_dim) == ("backward_kv", 64)]
    assert shapes_of(rows) == of_table
    assert check(rows) == []


# --- the smaller tiles compute the same -----------------------------------------------------------

SMALL = {
    "plain": Case(batch=1, rows=130, memory=70, heads=1, head_dim=64),
    "masks": replace(CASES["masks-all-self"], head_dim=64, pad=8, segments=True),
    "positions": replace(CASES["shapes-positions-absent"], head_dim=64, pad=8),
    "dropout": replace(CASES["dropout-masked"], head_dim=64, pad=8),
    "apart": replace(CASES["apart-causal"], head_dim=40, pad=8),
    "all padding": replace(CASES["masks-padding-all-of-one"], head_dim=64, pad=8),
}
FORWARD = {
    name: replace(case, head_dim=128 if case.head_dim == 64 else 72) for name, case in SMALL.items()
}


EACH = [(name, BF16) for name in SMALL] + [("masks", torch.float16)]


@pytest.mark.parametrize(("name", "dtype"), EACH)
def test_gradients_by_the_smaller_tiles(name, dtype, little):
    check_passes(name, dtype, rel_attention, "cpu", SMALL[name])
    taken = set(little.take_shared_bytes())
    assert {69152, 84736} <= taken
    assert max(taken) <= LITTLE


@pytest.mark.parametrize(("name", "dtype"), EACH)
def test_outputs_by_the_smaller_tiles(name, dtype, little):
    check_output(name, dtype, rel_attention, "cpu", FORWARD[name])
    assert little.take_shared_bytes() == [88736]


def test_two_streams_by_the_smaller_tiles(little):
    case = STREAMS["streams-pretraining"]
    case = replace(case, content=replace(case.content, head_dim=64, pad=8))
    check_streams("streams-pretraining", BF16, rel_attention, "cpu", case)
    assert max(little.take_shared_bytes()) <= LITTLE


def test_what_the_smaller_tiles_cost(little):
    """Products in units of those of rows with keys, forward at 128, then dq and dk, dv at 64."""
    units = []
    for head_dim, only in ((128, None), (64, None), (64, 0), (64, 1)):
        case = Case(batch=1, rows=128, heads=1, head_dim=head_dim)
        x = make_inputs(case, BF16, seed=0)
        little.take_counters()
        if only is None:
            launch(x, case, rel_attention, "cpu")
        else:
            gradients(x, case, torch.zeros_like(x.q), rel_attention, "cpu", only=only)
        units.append(little.take_counters()["products"] / (2 * 2 * 4 * 8 * head_dim / 16))
    wide, forward, with_q, with_kv = units
    assert [wide, with_q - forward, with_kv - with_q] == [4.0, 6.0, 5.25]  # docs/design.md, 5


@pytest.mark.parametrize("name", ["plain", "dropout"])
def test_the_smaller_tiles_do_not_depend_on_the_order_of_warps(name, little):
    case = SMALL[name]
    x = make_inputs(case, BF16, seed=0)
    d_out = torch.randn(x.q.shape).to(BF16)

    def results() -> dict[str, torch.Tensor]:
        wide = FORWARD[name]
        out = launch(make_inputs(wide, BF16, seed=0), wide, rel_attention, "cpu")
        return {"out": out, **gradients(x, case, d_out, rel_attention, "cpu")}

    upwards = results()
    little.set_downwards(True)
    for key, value in results().items():
        assert torch.equal(value, upwards[key]), key


# --- what is refused, and when --------------------------------------------------------------------


@pytest.mark.parametrize("gpu", FITS)
@pytest.mark.parametrize("backward", [False, True])
def test_what_fits_by_chip(gpu, backward, emulation):
    assert {f"{arch // 10}.{arch % 10}" for arch in CHIPS} == set(FITS)
    largest = FITS[gpu][backward]
    assert room.largest_head_dim(room.shapes(), room.shared_limit(gpu), backward) == largest
    assert room.why_too_small(gpu, largest, backward) is None
    if largest < 128:
        assert room.why_too_small(gpu, largest + 8, backward) == (
            f"a block on compute capability {gpu} may have 101376 bytes of shared memory: room for "
            f"head dims up to 128, with a gradient up to 64, and not for 72 with a gradient"
        )


def test_a_pass_needs_every_kernel_of_its_tile_and_of_all_smaller_ones():
    def largest(limit: int, backward: bool) -> int:
        return room.largest_head_dim(table, limit, backward)

    table = [
        room.Shape("forward", False, 32, 30, 20),
        room.Shape("backward", True, 32, 50, 40),
        room.Shape("forward", False, 64, 35, 25),
        room.Shape("backward", True, 64, 25, 15),
    ]
    assert [largest(limit, False) for limit in (19, 20, 24, 25)] == [0, 32, 32, 64]
    assert [largest(limit, True) for limit in (20, 39, 40)] == [0, 0, 64]


PROVED = (("cuda", True, float("inf"), "proved"),)
"""What the record says where backend cuda is what ``auto`` takes."""


@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("op", _dispatch.OPS)
def test_the_dispatcher_knows_it_per_op_and_pass(op):
    request = Request(op, "cpu", BF16, head_dim=128, needs_grad=True, gpu="8.6", proved=PROVED)
    attention = op in _dispatch.ATTENTION
    for other in (replace(request, needs_grad=False), replace(request, head_dim=64)):
        assert choose(other, "cuda").backend == choose(other).backend == "cuda"
    if not attention:
        assert choose(request, "cuda").backend == choose(request).backend == "cuda"
        return
    with pytest.raises(BackendUnavailable, match=f"'cuda' cannot run {op}: a block on compute"):
        choose(request, "cuda")
    choice = choose(request)
    assert choice.backend in ("cpu", "sdpa")
    assert "cuda: a block on compute capability 8.6 may have 101376 bytes" in choice.reason


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    call = entries.call

    def spy(name: str, *arguments: Any) -> None:
        names.append(name)
        call(name, *arguments)

    monkeypatch.setattr(entries, "call", spy)
    return names


@pytest.mark.usefixtures("as_gpu")
def test_a_gradient_that_has_no_room_is_refused_before_the_forward_pass(little, launched):
    problem = make_problem(batch=1, queries=5, memory=3, heads=1, dim=72).to(BF16)
    leaves = {name: x.detach().requires_grad_() for name, x in problem.operands.items()}
    message = "the emulated GPU may have 101376 bytes .* not for 72 with a gradient"
    with pytest.raises(BackendUnavailable, match=message):
        ops.rel_attention(**leaves, **problem.options, backend="cuda")
    assert launched == []
    with torch.no_grad():
        ops.rel_attention(**leaves, **problem.options, backend="cuda")
    assert launched == ["rel_attention_forward"]


def test_the_compiled_entry_says_it_to_whoever_did_not_ask(little):
    case = Case(batch=1, rows=3, heads=1, head_dim=72)
    x = make_inputs(case, BF16, seed=0)
    needed = next(s.scarce for s in room.shapes() if (s.kernel, s.head_dim) == ("backward_q", 128))
    message = re.escape(f"101376 bytes of shared memory, and the kernel needs {needed} for head")
    with pytest.raises(RuntimeError, match=message):
        gradients(x, case, torch.zeros_like(x.q), rel_attention, "cpu")


# --- chips that nobody has heard of ---------------------------------------------------------------


def test_a_chip_that_the_table_lacks_is_asked(monkeypatch):
    devices = [((8, 0), 166912), ((13, 0), 70000)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(devices))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: devices[index][0])
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(shared_memory_per_block_optin=devices[index][1]),
    )
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert room.shared_limit("13.0") is None, "asking would start CUDA"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert room.shared_limit("13.0") == 70000
    assert room.shared_limit("14.0") is None
    assert room.shared_limit("8.0") == 163 * KIB


def test_where_nobody_knows_nothing_is_refused(emulation):
    assert room.why_too_small("14.0", 128, True) is None


def test_without_a_gpu_and_an_extension_there_is_no_limit():
    assert room.shared_limit(None) is None
    assert room.why_too_small(None, 128, True) is None


# --- under torch.compile --------------------------------------------------------------------------


@pytest.mark.usefixtures("as_gpu")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_choice_is_traced_without_a_graph_break(head_dim):
    def backend_of(x: torch.Tensor) -> torch.Tensor:
        request = Request("rel_attention", "cpu", BF16, x.shape[-1], True, "8.6", proved=PROVED)
        return x + _dispatch.BACKENDS.index(choose(request).backend)

    torch.compiler.reset()
    compiled = torch.compile(backend_of, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.zeros(head_dim)), backend_of(torch.zeros(head_dim)))
    torch.compiler.reset()
