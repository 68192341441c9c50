"""The choice of tiles by measurement, with times that the test makes up."""

from __future__ import annotations

import pytest
import torch

from xlnet_fast.kernels.triton import launch
from xlnet_fast.kernels.triton import tiles as kernel_tiles
from xlnet_fast.kernels.triton.tiles import Config
from xlnet_fast.qualifier import tiles
from xlnet_fast.qualifier.cases import timed_problems
from xlnet_fast.qualifier.checks import Verdict
from xlnet_fast.qualifier.tasks import Task
from xlnet_fast.qualifier.tiles import Entry

CPU = torch.device("cpu")
LIGHT, HEAVY = (Task("rel_attention", name, "bfloat16", 64) for name in ("padded", "dropout"))
TASKS = (Task("rel_attention", "plain", "bfloat16", 64), LIGHT, HEAVY, Task("linear", "all", "x"))
SAFE, PAIR, THIRD = (Config(m, 32, 4, 2, registers=m) for m in (64, 32, 16))


@pytest.fixture
def bench(monkeypatch):
    """Times by tile, a list with one for each shape, or None where it raises; what is wrong."""
    times, wrong, taken = {SAFE: [2.0, 2.0], PAIR: [1.0, 1.0]}, set(), []
    monkeypatch.setattr(kernel_tiles, "candidates", lambda *_: tuple(times))
    cases = [("1x2", lambda: 0), ("3x4", lambda: 1)]
    monkeypatch.setattr(tiles, "timed_problems", lambda *_, full: iter(cases))
    monkeypatch.setattr(tiles, "hostile_problems", lambda *_, full: ["hostile"])

    def forced() -> Config:
        return kernel_tiles._forced["forward"]

    def check(problems, backend, direction, device):
        assert (problems, backend, direction) == (["hostile"], "triton", "forward")
        assert forced() is not SAFE
        return Verdict("failed" if forced() in wrong else "passed")

    def interleaved(functions, device, budget_s):
        found = {}
        for name, function in functions.items():
            tile, shape = function()
            found[name] = times[tile][shape]
            taken.append((tile, shape))
        if found["0"] is None:
            raise RuntimeError("the first raised")
        return found

    monkeypatch.setattr(tiles, "check", check)
    monkeypatch.setattr(tiles, "interleaved", interleaved)
    monkeypatch.setattr(tiles, "function_of", lambda shape, *_: lambda: (forced(), shape))
    return times, wrong, taken


ENTRY = Entry("forward", False, LIGHT)


def test_the_fastest_over_all_shapes_is_chosen(bench):
    times, _, taken = bench
    assert tiles.fastest(ENTRY, CPU) is PAIR
    assert taken == [(SAFE, 0), (PAIR, 0), (SAFE, 1), (PAIR, 1)]
    times[PAIR] = [1.0, 5.0]  # the geometric mean is more
    assert tiles.fastest(ENTRY, CPU) is None
    times[PAIR] = [1.99, 1.99]
    assert tiles.fastest(ENTRY, CPU) is None  # not worth it
    times[THIRD] = [1.9, 2.0]
    assert tiles.fastest(ENTRY, CPU) is THIRD


def test_what_is_wrong_or_raises_is_not_chosen_however_fast(bench):
    times, wrong, taken = bench
    wrong.add(PAIR)
    assert tiles.fastest(ENTRY, CPU) is None
    assert taken == []  # one tile alone is no choice
    wrong.clear()
    times[PAIR], times[THIRD] = [1e-9, None], [1.5, 1.5]
    assert tiles.fastest(ENTRY, CPU) is THIRD
    times[SAFE] = [None, None]
    assert tiles.fastest(ENTRY, CPU) is None


def test_choices_are_told_and_end_with_the_time(bench, monkeypatch):
    begun = []
    monkeypatch.setattr(kernel_tiles, "KERNELS", ("forward",))
    monkeypatch.setattr(tiles, "is_right", lambda *_: True)
    found = tiles.choose(TASKS, CPU, float("inf"), begun.append)
    keys = ["forward/bfloat16/64/light", "forward/bfloat16/64/heavy"]
    assert found == {key: [32, 32, 4, 2, 255, 32, 0] for key in keys}
    assert begun == [f"tile of {key}" for key in keys]
    assert tiles.choose(TASKS, CPU, 0.0, begun.append) == {}


def test_what_was_tuned_on_this_gpu_is_no_choice(monkeypatch):
    assert len(list(tiles.entries(TASKS, CPU))) == 2 * len(kernel_tiles.KERNELS)
    monkeypatch.setattr(launch, "gpu_name", lambda device: "A GPU")
    tuned = {kernel_tiles.tuned_gpu("A GPU"): {f"{ENTRY.key}/long": [1]}}
    monkeypatch.setattr(kernel_tiles, "load_tuned", lambda: tuned)
    left = list(tiles.entries(TASKS, CPU))
    assert len(left) == 2 * len(kernel_tiles.KERNELS) - 1
    assert ENTRY not in left


def test_every_candidate_but_the_safe_one_is_compiled(bench, monkeypatch):
    seen = []
    monkeypatch.setattr(kernel_tiles, "KERNELS", ("forward",))
    monkeypatch.setattr(
        tiles,
        "rehearse",
        lambda problem, *_: seen.append((kernel_tiles._forced["forward"], problem)),
    )
    tiles.compile_candidates((LIGHT,), CPU, lambda: False)
    assert seen == [(PAIR, "hostile"), (PAIR, 0), (PAIR, 1)]
    tiles.compile_candidates((LIGHT,), CPU, lambda: True)
    assert len(seen) == 3


@pytest.mark.parametrize(("task", "heavy"), [(LIGHT, False), (HEAVY, True)])
def test_calls_that_are_timed_are_of_the_load_that_the_tile_is_for(task, heavy, monkeypatch):
    """Or the forced tile would be measured on kernels that never take it."""
    asked = []
    monkeypatch.setattr(launch, "why_unavailable", lambda device: None)
    monkeypatch.setattr(launch, "choose_config", lambda *arguments: asked.append(arguments[:4]))
    _, make = list(timed_problems(task, CPU, full=False))[-1]
    problem = make()
    launch.Call(problem.keys(), problem.streams()).config("forward")
    assert asked == [("forward", torch.bfloat16, 64, heavy)]
    entries = [entry for entry in tiles.entries(TASKS, CPU) if entry.task == task]
    assert {entry.heavy for entry in entries} == {heavy}


def test_a_tile_in_use_is_the_one_that_kernels_take(monkeypatch):
    monkeypatch.setattr(kernel_tiles, "recorded_on", kernel_tiles.recorded_on)
    tiles.use({ENTRY.key: [32, 32, 4, 2, 255, 32, 0]})
    recorded = kernel_tiles.recorded_on(torch.device("cuda", 0))
    chosen = kernel_tiles.choose_config("forward", torch.bfloat16, 64, False, 90, recorded=recorded)
    assert chosen == PAIR
    heavy = kernel_tiles.choose_config("forward", torch.bfloat16, 64, True, 90, recorded=recorded)
    assert heavy != PAIR
