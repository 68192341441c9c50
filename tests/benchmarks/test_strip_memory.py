"""Scratch memory is for programs that run at a time, in every kernel and for both streams."""

import sys

import pytest
import torch

from benchmarks.micro.strip_memory import GPUS, main, measure, paired_first
from xlnet_fast.kernels.triton import tiles


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_no_more_strips_than_programs_at_a_time_however_long_the_call(gpu, streams):
    sizes = [(1, 64), (8, 512), (2, 4096)]
    found = [measure(gpu, torch.bfloat16, *size, streams) for size in sizes]
    for small, usual, long in zip(*found, strict=True):
        assert small.kernel == usual.kernel == long.kernel
        assert usual.programs <= usual.resident
        assert long.programs <= long.resident
        assert long.nbytes <= usual.resident * usual.nbytes / usual.programs
        assert 0 < small.programs <= usual.programs
        assert small.nbytes * usual.programs == usual.nbytes * small.programs
    assert [made.kernel for made in found[1]] == list(tiles.KERNELS)
    assert found[0][0].programs < found[1][0].programs  # few rows have few strips


def test_two_programs_a_multiprocessor_have_two_strips():
    gpu = GPUS[-1]
    with paired_first():
        pairs = {made.kernel: made for made in measure(gpu, torch.bfloat16, 8, 512, 1)}
    alone = {made.kernel: made for made in measure(gpu, torch.bfloat16, 8, 512, 1)}
    assert alone["backward_kv"].resident == gpu.multiprocessors
    assert pairs["backward_kv"].resident == 2 * gpu.multiprocessors
    assert pairs["backward_kv"].programs == 2 * alone["backward_kv"].programs


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--length", "-1"]])
def test_refuses(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["strip_memory", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert "--batch and --length are at least 1" in capsys.readouterr().err
