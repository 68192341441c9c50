"""The CUDA C++ kernels of relative attention: emulated, and on a GPU where there is one.

The cases are those of `attention_cases.py` and `two_stream_cases.py`, and some of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import attention_on_gpu
import pytest
import torch
import two_stream_cases as two_streams
from attention_cases import CASES, Case, make_inputs
from attention_runs import (
    LEFT_OUT,
    SENTINEL,
    check_left_out,
    check_output,
    check_passes,
    gradients,
    launch,
    moved,
    operands,
    places,
    run_backward,
    run_forward,
)
from cuda_emulation import device, emulation, emulation_module
from torch import Tensor
from two_stream_cases import Streams, check_streams, make_streams, run_streams

from xlnet_fast.kernels.cuda import entries, rel_attention, why_unavailable

__all__ = ["device", "emulation", "emulation_module"]  # fixtures

STEP = rel_attention.HEAD_DIM_STEP
HALVES = (torch.bfloat16, torch.float16)
each_half = pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])


def of_this_backend(case: Case) -> Case:
    """Rows of whole pieces of 16 bytes, however they are strided."""
    return replace(case, head_dim=-(-case.head_dim // STEP) * STEP, pad=STEP)


ALL = {name: of_this_backend(case) for name, case in CASES.items()}
LARGE = Case(batch=1, rows=200, memory=130, heads=1)  # several tiles of rows, many of keys
OWN = {
    **{
        f"head-dim-{dim}": Case(
            rows=33, memory=21, head_dim=dim, segments=True, mask=("padding", "see_self")
        )
        for dim in (8, 16, 40, 64, 80, 128)
    },
    **{
        f"sizes-{rows}-{memory}": Case(
            rows=rows, memory=memory, heads=1, head_dim=8, segments=True, mask=("bits",)
        )
        for rows, memory in [(1, 1), (1, 62), (7, 6), (15, 1), (16, 47), (63, 2), (67, 38)]
    },
    "large-in-order": replace(LARGE, mask=("padding", "causal"), segments=True),
    "large-positions": replace(
        LARGE, current=230, memory=100, positions="absent", mask=("bits",), segments=True
    ),
    "large-apart": replace(LARGE, apart=True, mask=("padding_left", "see_self")),
    "large-dropout": replace(LARGE, dropout_p=0.3, mask=("ranks",)),
    "large-d128": replace(LARGE, batch=1, head_dim=128, mask=("same_length", "causal"), uni=True),
    "strided-d128": Case(rows=17, head_dim=128, strided=True, pad=STEP, apart=True, memory=5),
    "strided-d40": Case(rows=17, head_dim=40, strided=True, pad=3 * STEP, positions="any"),
}
STREAMS = {
    name: replace(case, content=of_this_backend(case.content))
    for name, case in two_streams.CASES.items()
}
ONE_OF_EACH = ("masks-all-self", "shapes-positions-absent", "apart-causal", "dropout-masked")


# The dtypes share all branches: float16 runs a case of each width, of each group, and large scores.
IN_HALF = (
    *ONE_OF_EACH, "head-dim-8", "head-dim-64", "head-dim-128", "masks-padding-all-of-one",
    "hostile-nan-padding-hidden-rows", "hostile-large-scores", "strided-d40", "window-self",
    "window-chunks-strided",
)  # fmt: skip
RUNS = [(name, torch.bfloat16) for name in (*ALL, *OWN)]
RUNS += [(name, torch.float16) for name in IN_HALF]
STREAM_RUNS = [(name, torch.bfloat16) for name in STREAMS]
STREAM_RUNS += [(name, torch.float16) for name in ("streams-absent", "streams-every-position")]


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_passes(name, dtype, device):
    check = check_output if name == "shapes-one" else check_passes  # see the next test
    check(name, dtype, rel_attention, device, (ALL | OWN)[name])


@each_half
def test_one_row_and_one_key_have_no_gradient_through_their_score(dtype, device):
    """What is left are roundings of two fp32 sums; the bound of the tolerance rule is zero."""
    case = ALL["shapes-one"]
    x = make_inputs(case, dtype, seed=0)
    d_out = torch.randn(x.q.shape).to(dtype)
    grads = gradients(x, case, d_out, rel_attention, device)
    assert torch.equal(grads.pop("v"), d_out)
    assert all(float(grad.abs().max()) < 1e-5 for grad in grads.values())


@pytest.mark.parametrize(("name", "dtype"), STREAM_RUNS)
def test_two_streams(name, dtype, device):
    check_streams(name, dtype, rel_attention, device, STREAMS[name])


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_a_window_hides_is_left_out(name, device):
    check_left_out(name, torch.bfloat16, rel_attention, device)


# --- the same bits --------------------------------------------------------------------------------


def results(case: Case | Streams, device: str, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Outputs and gradients of a call that depends on nothing but its arguments here."""
    gen = torch.Generator().manual_seed(3)
    if isinstance(case, Streams):
        x = make_streams(case, dtype, seed=0)
        d_outs = [torch.randn(q.shape, generator=gen).to(dtype) for q in (x.q, x.q_g)]
        outs, grads = run_streams(x, case, d_outs, rel_attention, device)
        return [*outs, *grads.values()]
    x = make_inputs(case, dtype, seed=0)
    d_out = torch.randn(x.q.shape, generator=gen).to(dtype)
    forward = run_forward(x, case, rel_attention, device)
    grads = run_backward(forward, x, case, d_out, rel_attention)
    return [forward.out.cpu(), *grads.values()]


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(one, other), f"result {number} differs"


REPEATED = {
    **{name: ALL[name] for name in ONE_OF_EACH},
    **{name: OWN[name] for name in ("head-dim-64", "strided-d128", "large-positions")},
    **{name: STREAMS[name] for name in ("streams-pretraining", "streams-absent")},
}


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("name", REPEATED)
def test_twice_the_same_bits(name, device):
    assert_equal(results(REPEATED[name], device), results(REPEATED[name], device))


@pytest.mark.parametrize("name", REPEATED)
def test_the_same_bits_whatever_the_order_of_warps(name, emulation):
    upwards = results(REPEATED[name], "cpu")
    emulation.set_downwards(True)
    assert_equal(results(REPEATED[name], "cpu"), upwards)


@pytest.mark.parametrize("name", ["apart-causal", "shapes-positions"])
def test_a_gradient_asked_for_alone_has_the_bits_it_has_among_all(name, device):
    case = ALL[name]
    x = make_inputs(case, torch.bfloat16, seed=0)
    d_out = torch.randn(x.q.shape).to(torch.bfloat16)
    forward = run_forward(x, case, rel_attention, device)
    among = places(run_backward(forward, x, case, d_out, rel_attention), ["q"], case)
    for only in range(len(among)):
        alone = run_backward(forward, x, case, d_out, rel_attention, only=only)
        pairs = zip(places(alone, ["q"], case), among, strict=True)
        for number, (mine, theirs) in enumerate(pairs):
            if mine is not None and number == only:
                assert torch.equal(mine, theirs), number
            elif mine is not None:
                assert mine.isnan().all(), f"{number}, for which nobody asked, was written"


@pytest.mark.parametrize("name", ["shapes-positions-absent", "shapes-positions-self"])
def test_absent_rows_may_hold_anything(name, device):
    case = ALL[name]
    x = make_inputs(case, torch.bfloat16, seed=0)
    absent = x.positions < 0
    assert absent.any()
    d_out = torch.randn(x.q.shape).to(torch.bfloat16)

    def both_passes() -> tuple[Tensor, dict[str, Tensor]]:
        forward = run_forward(x, case, rel_attention, device)
        return forward.out.cpu(), run_backward(forward, x, case, d_out, rel_attention)

    expected, expected_grads = both_passes()
    x.q[absent] = d_out[absent] = float("nan")
    out, grads = both_passes()
    assert_equal([out, *grads.values()], [expected, *expected_grads.values()])
    assert (out[absent] == 0).all()
    assert (grads["q"][absent] == 0).all()


def test_absent_targets_may_hold_anything(device):
    case = replace(STREAMS["streams-absent"], content=replace(ALL["masks-all"], segments=True))
    x = make_streams(case, torch.bfloat16, seed=0)
    absent = x.positions_g < 0
    d_outs = [torch.randn(q.shape).to(torch.bfloat16) for q in (x.q, x.q_g)]
    outs, grads = run_streams(x, case, d_outs, rel_attention, device)
    x.q_g[absent] = d_outs[1][absent] = float("nan")
    dirty_outs, dirty = run_streams(x, case, d_outs, rel_attention, device)
    assert_equal([*dirty_outs, *dirty.values()], [*outs, *grads.values()])


@each_half
@pytest.mark.parametrize("key", [3, 70])  # in the first tile of keys, and in one behind it
def test_nan_in_a_visible_score_fills_its_row(key, dtype, device):
    """The running maximum passes over NaN; a finite row in its place would hide it."""
    case = Case(batch=1, rows=40, memory=60, heads=2, head_dim=16, mask=("causal",))
    x = make_inputs(case, dtype, seed=0)
    x.k[0, key, 1, 5] = float("nan")
    forward = run_forward(x, case, rel_attention, device)
    d_q = run_backward(forward, x, case, torch.ones_like(x.q), rel_attention)["q"]
    sees = torch.arange(case.rows) + case.memory >= key
    out = forward.out.cpu()
    assert out[0, sees, 1].isnan().all()
    assert d_q[0, sees, 1].isnan().all()
    out[0, sees, 1] = 0
    assert out.isfinite().all()
    assert d_q[:, :, 0].isfinite().all()


# --- layouts of what the kernels copy themselves --------------------------------------------------


def wider(x: Tensor) -> Tensor:
    """`x` between elements that are not its own."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=x.dtype)
    return wide[..., ::2].copy_(x)


LAYOUTS = {
    "heads first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "rows of odd length": lambda x: torch.nn.functional.pad(x, (0, 1))[..., :-1],
    "every second element": wider,
    "one element on": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gradient_of_the_output_of_any_layout(layout, device):
    case = ALL["masks-padding-self"]
    x = make_inputs(case, torch.bfloat16, seed=0)
    d_out = torch.randn(x.q.shape).to(torch.bfloat16)
    expected = gradients(x, case, d_out, rel_attention, device)
    given = LAYOUTS[layout](d_out)
    actual = gradients(x, case, given, rel_attention, device)
    assert_equal(list(actual.values()), list(expected.values()))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 17, 1, 32), (2, 1, 2, 32), (2, 17, 2, 1)])
def test_an_expanded_gradient_of_the_output(shape, device):
    case = ALL["shapes-groups-batch"]
    x = make_inputs(replace(case, batch=2, groups=2), torch.bfloat16, seed=0)
    given = torch.randn(shape).to(torch.bfloat16).expand(x.q.shape)
    expected = gradients(x, case, given.contiguous(), rel_attention, device)
    actual = gradients(x, case, given, rel_attention, device)
    assert_equal(list(actual.values()), list(expected.values()))


@pytest.mark.parametrize("pad", [1, 4])
def test_an_output_of_any_layout_is_filled_and_nothing_beside_it(pad, device):
    case = ALL["masks-padding-self"]
    x = make_inputs(case, torch.bfloat16, seed=0)
    keys, queries = operands(moved(x, device), case)
    shape = (*x.q.shape[:-1], case.head_dim + pad)
    buffer = torch.full(shape, SENTINEL, dtype=x.q.dtype, device=device)
    stats = torch.empty(case.batch, case.heads, case.rows, device=device)
    out = buffer[..., 1 : 1 + case.head_dim] if pad > 1 else buffer[..., :-1]
    rel_attention.rel_attention_forward(keys, [queries], [out], [stats])
    assert torch.equal(out.cpu(), launch(x, case, rel_attention, device))
    out.fill_(SENTINEL)
    assert (buffer == SENTINEL).all()


# --- how the work is cut --------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "splits"), [(1, 1), (1, 3), (2, 2), (2, 5)])
def test_gradients_of_r_from_parts_of_the_batch(groups, splits, device, monkeypatch):
    case = Case(batch=10, groups=groups, rows=17, memory=3, head_dim=16, segments=True)
    tiles = rel_attention.tiles_of_table(2 * case.rows + case.memory, case.rows, case.head_dim)
    blocks = splits * tiles * groups * case.heads
    monkeypatch.setattr(rel_attention, "BLOCKS_WANTED", blocks)
    launches, call = [], entries.call

    def spy(name: str, *arguments: Any) -> None:
        launches.append((name, arguments[-1]))
        call(name, *arguments)

    monkeypatch.setattr(entries, "call", spy)
    check_passes("parts", torch.bfloat16, rel_attention, device, case)
    given = [last["splits"] for name, last in launches if name == "rel_attention_backward"]
    assert given == [splits]


@each_half
@pytest.mark.parametrize("positions", [None, "any"])
@pytest.mark.parametrize("dim", [32, 64, 128])
def test_matrices_are_read_without_bank_conflicts(dim, positions, dtype, emulation):
    """A load of four matrices takes four wavefronts: none of its rows share a bank."""
    case = Case(batch=1, rows=40, memory=50, heads=1, head_dim=dim, positions=positions)
    x = make_inputs(case, dtype, seed=0)
    d_out = torch.randn(x.q.shape).to(dtype)
    loads = []
    for only in (0, 1, 5):  # gradients of q, k and r, each by a kernel more
        emulation.take_counters()
        gradients(x, case, d_out, rel_attention, "cpu", only=only)
        counted = emulation.take_counters()
        assert counted["matrix_wavefronts"] == 4 * counted["matrix_loads"]
        loads.append(counted["matrix_loads"])
    assert 0 < loads[0] < min(loads[1:])


@pytest.mark.parametrize(
    ("dim", "units"), [(64, [3.25, 5.5, 5.25, 5.55]), (128, [3.5, 6.0, 5.5, 6.17])]
)
def test_the_cost_of_a_tile(dim, units, emulation):
    """Matrix products of 64 x 64 scores, in units of the product of their rows with their keys."""
    products = []
    # Forward alone, then gradients of q, k and r, which alone has a cost of its edges.
    for only, tiles in ((None, 2), (0, 2), (1, 2), (5, 8)):
        case = Case(batch=1, rows=64 * tiles, heads=1, head_dim=dim)
        x = make_inputs(case, torch.bfloat16, seed=0)
        emulation.take_counters()
        if only is None:
            launch(x, case, rel_attention, "cpu")
        else:
            gradients(x, case, torch.zeros_like(x.q), rel_attention, "cpu", only=only)
        counted = emulation.take_counters()["products"]
        products.append(counted / (tiles * tiles * 4 * 8 * dim / 16))
    forward, with_q, with_k, with_r = products  # each with those of all kernels it needs
    parts = [forward, with_q - forward, with_k - with_q, with_r - with_q]
    assert [round(part, 2) for part in parts] == units  # docs/design.md, section 5


@pytest.mark.gpu
@pytest.mark.parametrize("check", attention_on_gpu.CHECKS)
def test_gpu_public_op(check, request):
    if (reason := why_unavailable(torch.device("cuda", 0))) is not None:
        pytest.skip(reason)
    attention_on_gpu.run(check, "cuda", request)
