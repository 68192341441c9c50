"""Launches that compile tell of it on stderr, others do not."""

from __future__ import annotations

import itertools

import pytest

from xlnet_fast.kernels.triton import compiling


class Kernel:
    """A jit function that compiles for 6 seconds where its argument is new."""

    __name__ = "_forward_kernel"

    def __init__(self, clock):
        self.device_caches, self.clock = {0: ({}, {})}, clock

    def __getitem__(self, grid):
        def launch(key):
            if key not in self.device_caches[0][0]:
                self.device_caches[0][0][key] = grid
                self.clock[0] += 6.0

        return launch


@pytest.fixture
def kernel(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(compiling.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(compiling, "_told", compiling.Told())
    monkeypatch.delenv("XLNET_FAST_NO_WARN", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return Kernel(clock)


def test_long_compiling_is_told_now_and_then(kernel, capsys):
    said = []
    for key in itertools.chain(range(7), range(7)):
        compiling.run_kernel(kernel, (1,), key)
        said.append(capsys.readouterr().err)
    due = {number for number, line in enumerate(said) if line}
    assert due == {1, 5}
    assert said[1].startswith("xlnet_fast: Triton has compiled 2 kernels in 12 s, forward_kernel ")
    assert "`xlnet-fast qualify` compiles the usual ones beforehand" in said[1]
    assert said[5] == "xlnet_fast: Triton has compiled 6 kernels in 36 s, forward_kernel last\n"


@pytest.mark.parametrize("variable", ["XLNET_FAST_NO_WARN", "LOCAL_RANK"])
def test_it_can_be_silenced_and_one_process_of_a_job_tells(kernel, variable, monkeypatch, capsys):
    monkeypatch.setenv(variable, "1")
    for key in range(5):
        compiling.run_kernel(kernel, (1,), key)
    assert capsys.readouterr().err == ""


def test_a_kernel_that_is_not_compiled_at_all(capsys):
    launched = []
    compiling.run_kernel({(2,): lambda *a, **o: launched.append((a, o))}, (2,), 1, x=2)
    assert launched == [((1,), {"x": 2})]
    assert capsys.readouterr().err == ""
