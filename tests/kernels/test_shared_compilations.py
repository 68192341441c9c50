"""What the GPU tests of the Triton kernels compile is little, and leaves nothing out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

import two_stream_cases
from attention_cases import CASES, dense_hidden, make_inputs
from attention_runs import check_output, check_passes
from count_compilations import compilations, softmax_compilations
from shared_compilations import (
    ADDED,
    ONE_OF_EACH,
    PROFILES,
    RUNS,
    STREAM_PROFILES,
    STREAM_RUNS,
    TILE_RUNS,
    dressed,
    fitting,
    profile,
    profile_of,
)

from benchmarks.gpu.compilations import CAPABILITY, recording
from xlnet_fast.kernels.sdpa import rel_attention as sdpa
from xlnet_fast.kernels.triton import INTERPRETED, rel_attention, tiles
from xlnet_fast.philox import keep_mask

MOST = 128
"""So that cases to come share compilations too; without that there were 483."""
FEATURES = (*ADDED, "causal", "see_self", "positions", "apart", "window", "start")
compiled = pytest.mark.skipif(INTERPRETED, reason="needs compiled kernels")


@compiled
def test_the_compilations_of_the_gpu_tests_are_few():
    found = [label.startswith("tile of") for label in compilations().values()]
    assert 3 * len(PROFILES["bfloat16"]) < found.count(False) <= MOST
    # Every tile that may be chosen at one head dim, and the first of the other kernels beside it.
    kernels = [(kernel, heavy) for kernel in tiles.KERNELS for heavy in TILE_RUNS]
    tried = [len(tiles.candidates(k, torch.bfloat16, 32, h, CAPABILITY)) for k, h in kernels]
    assert 0 < found.count(True) <= sum(tried)
    # Of masked_softmax, each of which compiles in a third of the time.
    assert 40 < len(softmax_compilations()) <= MOST


@compiled
def test_runs_of_one_profile_share_their_compilations():
    """Three kernels a profile, whatever the sizes of its cases."""
    from count_compilations import _both

    seen = {}
    for run in RUNS:
        if run.name == "shapes-one":
            continue
        with recording() as keys:
            _both(run.case, getattr(torch, run.dtype), run.ordered)
        assert len(set(keys)) == 3
        where = (run.dtype, run.profile)
        assert seen.setdefault(where, set(keys)) == set(keys), run.name


@compiled
@pytest.mark.parametrize("change", [
    {"dtype": torch.float16}, {"segments": False}, {"head_dim": 64}, {"mask": ("ranks",)},
    {"bits_batch": 1}, {"ordered": True}, {"dropout_p": 0.0},
])  # fmt: skip
def test_the_counter_tells_compilations_apart(change):
    from count_compilations import _both

    case = replace(CASES["masks-bits"], segments=True, dropout_p=0.1, head_dim=32, mask=("bits",))
    fields = {name: value for name, value in change.items() if name not in ("dtype", "ordered")}
    with recording() as keys:
        _both(case, torch.bfloat16, ordered=False)
        before = set(keys)
        _both(case, torch.bfloat16, ordered=False)
        assert set(keys) == before
        _both(
            replace(case, **fields),
            change.get("dtype", torch.bfloat16),
            change.get("ordered", False),
        )
    # The order of sums concerns one of the three kernels.
    assert len(set(keys) - before) == (1 if "ordered" in change else 3)


def test_every_case_runs_on_a_gpu():
    assert {run.name for run in RUNS if run.dtype == "bfloat16"} == set(CASES)
    assert {run.name for run in STREAM_RUNS if run.dtype == "bfloat16"} == set(
        two_stream_cases.CASES
    )
    for table, runs in ((PROFILES, RUNS), (STREAM_PROFILES, STREAM_RUNS)):
        assert set(table) == {"bfloat16", "float16", "float32"}
        for dtype, profiles in table.items():  # none is there for nothing
            assert {run.profile for run in runs if run.dtype == dtype} == set(profiles)


def test_every_feature_runs_with_and_without_every_other():
    """In any dtype; a content stream beside a query stream has rows in order and sees itself."""
    profiles = [p.features for table in PROFILES.values() for p in table]
    streams = [p.features for table in STREAM_PROFILES.values() for p in table]
    profiles += [features - {"positions"} | {"see_self"} for features in streams]
    for one, other in itertools.combinations(FEATURES, 2):
        for wanted in ({one, other}, {one}, {other}, set()):
            there = [f for f in profiles if f & {one, other} == wanted]
            assert there, f"{sorted(wanted)} of {one}, {other}"
    lengths = [f for f in profiles if "same_length" in f]
    assert {"causal"} <= frozenset.intersection(*lengths)
    for other in ("apart", "see_self", *ADDED[1:]):
        assert {other in f for f in lengths} == {False, True}, other
    for dtype in PROFILES:
        orders = {run.ordered for run in RUNS if run.dtype == dtype}
        assert orders == {False, True}
    dims = {run.profile.head_dim for run in RUNS if run.dtype == "float32"}
    assert dims == {32, 64, 128}  # one of each tile width
    assert dims | {80} == {run.profile.head_dim for run in RUNS if run.dtype == "bfloat16"}


@pytest.mark.parametrize("run", [r for r in RUNS if r.dtype == "bfloat16"], ids=lambda r: r.name)
def test_what_a_case_is_dressed_with_changes_nothing(run):
    """But for segments, which are another term of the scores."""
    case = replace(CASES[run.name], batch=run.case.batch, head_dim=run.case.head_dim)
    plain = make_inputs(replace(case, segments=run.case.segments), torch.float32, seed=0)
    x = make_inputs(run.case, torch.float32, seed=0)
    assert torch.equal(x.q, plain.q)
    assert torch.equal(torch.nan_to_num(x.v), torch.nan_to_num(plain.v))
    at = torch.arange(case.rows).expand(case.batch, -1)
    at = at if x.positions is None else x.positions.clamp(min=0).long()
    assert torch.equal(*(dense_hidden(y, at, case.memory) for y in (x, plain)))
    if run.case.dropout_p != case.dropout_p:
        keep = keep_mask(x.seed, run.case.dropout_p, 2, 2, (0, case.rows), case.length)
        assert bool(keep.all())
    assert profile_of(run.case) == run.profile


def test_dressing_adds_what_is_missing_and_takes_the_nearest_profile():
    case = CASES["masks-padding-right"]
    own = profile_of(case)
    full = profile("segments padding ranks bits dropout")
    tables = [full, profile("padding ranks"), profile("padding causal"), profile("padding", 64)]
    assert fitting(own, tables) == profile("padding ranks")  # never a flag, nor another head dim
    assert fitting(own, tables[2:]) is None
    assert profile_of(dressed(case, full)) == full
    assert dressed(case, own) == case


@pytest.mark.parametrize("run", ONE_OF_EACH, ids=lambda run: f"{run.name}-{run.dtype}")
def test_a_dressed_case_can_be_passed(run):
    """By plain PyTorch: so on a GPU a red one is the kernel's fault."""
    dtype = getattr(torch, run.dtype)
    if run.name == "shapes-one":
        check_output(run.name, dtype, sdpa, "cpu", run.case)
    else:
        check_passes(run.name, dtype, sdpa, "cpu", run.case, run.ordered)


@compiled
def test_recording_ends_with_its_block():
    from xlnet_fast.kernels.triton import rel_attention_forward as module

    before = module._forward_kernel

    def fail():
        with recording():
            assert module._forward_kernel is not before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert module._forward_kernel is before
    assert rel_attention.rel_attention_forward is module.rel_attention_forward
