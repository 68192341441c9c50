"""The Triton kernels of relative attention, interpreted. Cases: `attention_cases.py`.

Run by `test_triton_rel_attention.py` as a pytest file of its own in a process with
TRITON_INTERPRET=1.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from attention_cases import CASES, Case, make_inputs
from attention_runs import (
    LEFT_OUT,
    SENTINEL,
    check_left_out,
    check_output,
    check_passes,
    gradients,
    operands,
)
from quick_interpreter import speed_up
from shared_compilations import FULL, ONE_OF_EACH

from xlnet_fast.errors import ArgumentError
from xlnet_fast.kernels.triton import INTERPRETED, rel_attention, tiles
from xlnet_fast.kernels.triton import launch as launch_module

REFUSED = {
    # what is wrong with the call: (operand, its new value from the right one, the message)
    "errors-dtype": (
        "k",
        lambda x: x.double(),
        "k is torch.float64 on cpu, expected torch.float32",
    ),
    "errors-float64": ("q", lambda x: x.double(), "q has dtype torch.float64, expected"),
    "errors-head-dim": ("q", lambda x: x.new_zeros(2, 17, 2, 129), "head dim 129 is not in 1..128"),
    "errors-short-r": (
        "r",
        lambda x: x[:, :17],
        "r has 17 rows, expected at least J . 1 - r_start = 18",
    ),
    "errors-seed": ("seed", lambda _: None, "dropout_p 0.5 needs the seed of every stream"),
}
# Several heads where a read of a head, or a sum over heads, is what a case has and others lack.
SEVERAL_HEADS = (
    "shapes-d80", "shapes-d20", "shapes-d17-odd", "shapes-groups-2", "shapes-groups-batch",
    "shapes-one-row-long-memory", "shapes-strided", "shapes-positions-absent",
    "shapes-positions-none-present", "apart-aligned", "apart-short", "apart-empty", "apart-causal",
    "dropout-self", "hostile-nan-padding-self", "hostile-strided-positions",
    "window-chunks-strided", "start-groups", "start-one-head",
)  # fmt: skip
# As many rows and keys as it takes for two tiles or stretches of each kind that a case is about.
FEWER: dict[str, dict[str, int]] = {
    "masks-none": {"memory": 34},
    "masks-same-length": {"rows": 70},
    "shapes-d128": {"rows": 33},
    "shapes-chunks": {"rows": 70},
    "shapes-chunks-positions": {"rows": 70, "current": 80},
}
HERE = {
    name: replace(case, heads=case.heads if name in SEVERAL_HEADS else 1, **FEWER.get(name, {}))
    for name, case in CASES.items()
}
# The dtypes share all branches; DRESSED are of float16, too.
IN_HALF = (
    "masks-all-self", "masks-bits-hide-all", "shapes-d80", "shapes-positions-self",
    "hostile-nan-padding-all-self", "hostile-large-scores", "window-self", "window-chunks-strided",
)  # fmt: skip
RUNS = [(name, "float32") for name in CASES] + [(name, "float16") for name in IN_HALF]
# Sets of features that only the GPU's form of a case has; the interpreter has no bfloat16.
DRESSED = [
    run
    for run in ONE_OF_EACH
    if run.dtype == "bfloat16"
    and run.profile.features >= set(FULL.split())
    and run.profile.features & {"apart", "positions", "see_self"}
]


def _in_families(*families: str) -> int:
    return sum(name.startswith(families) for name, _ in RUNS)


GROUPS = {
    "errors- or strips or dressed or interpreted and masks-": (
        len(REFUSED) + 12 + len(DRESSED) + _in_families("masks-")
    ),
    "left_out or interpreted and not masks-": (
        len(LEFT_OUT) + sum(not name.startswith("masks-") for name, _ in RUNS)
    ),
}
"""Groups of tests, each an expression for `pytest -k`, and how many there are in each."""

if INTERPRETED:
    speed_up()

interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="needs TRITON_INTERPRET=1: run by the file beside"
)


@interpreted
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    case = Case(dropout_p=0.5)
    x = make_inputs(case, torch.float32, seed=0)
    operand, change, message = REFUSED[name]
    setattr(x, operand, change(getattr(x, operand)))
    keys, queries = operands(x, case)
    with pytest.raises(ArgumentError, match=message):
        rel_attention.rel_attention_forward(keys, [queries], [x.q], [x.q])


@pytest.fixture
def short_stretches(monkeypatch):
    """Several stretches of keys."""
    monkeypatch.setattr(launch_module, "STRIP_KEYS", 64)


@interpreted
@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_interpreted_output_and_gradients(name, dtype):
    # One row with one key: its gradients are exactly zero, and so is the bound of the rule.
    check = check_output if name == "shapes-one" else check_passes
    check(name, getattr(torch, dtype), rel_attention, "cpu", HERE[name])


@interpreted
@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize("run", DRESSED, ids=lambda run: run.profile.label)
def test_dressed(run):
    case = replace(run.case, heads=1)
    check_passes(run.name, torch.float16, rel_attention, "cpu", case, run.ordered)


@interpreted
@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize("name", LEFT_OUT)
def test_left_out(name):
    check_left_out(name, torch.float32, rel_attention, "cpu")


@interpreted
@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize("block", [(64, 32), (16, 64), (32, 32)])
@pytest.mark.parametrize("name", ["masks-none", "apart-plain", "shapes-positions", "shapes-130"])
def test_strips_are_not_left(name, block, monkeypatch):
    """Scratch lies between guards, with one program, whose last row would overshoot into one."""
    guards = []

    def scratch(call, programs, elements):
        assert programs == 1
        buffer = torch.full((elements + 2 * 1024,), SENTINEL, dtype=call.keys.r.dtype)
        guards.append((buffer, elements))
        inside = buffer[1024:-1024]
        inside.fill_(float("nan"))  # what is read must have been written
        return inside

    monkeypatch.setattr(launch_module.Call, "scratch", scratch)
    monkeypatch.setattr(launch_module.Call, "programs", lambda call, config: 1)
    config = tiles.Config(*block, 4, 1)
    with contextlib.ExitStack() as stack:
        for kernel in tiles.KERNELS:
            stack.enter_context(tiles.using(kernel, config))
        case = CASES[name]
        x = make_inputs(replace(case, batch=1, heads=1), torch.float32, 0)
        d_out = torch.ones_like(x.q)
        actual = gradients(x, replace(case, batch=1, heads=1), d_out, rel_attention, "cpu")
    assert len(guards) == len(tiles.KERNELS) + 1  # two strips of the kernel that owns rows
    for buffer, _ in guards:
        assert bool((buffer[:1024] == SENTINEL).all()), "written before the strip"
        assert bool((buffer[-1024:] == SENTINEL).all()), "written behind the strip"
    assert all(bool(grad.isfinite().all()) for grad in actual.values())
