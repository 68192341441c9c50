"""The Triton kernels of masked_softmax and concat_memory: interpreted, and on a GPU where one is.

The cases are in `small_ops.py`; `_interpreter_small_ops.py` runs them interpreted.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

pytest.importorskip("triton")

from _interpreter_small_ops import (
    IN_EVERY_DTYPE,
    PHILOX_MASKS,
    SWEEPS,
    TESTS,
    check_philox,
    use_tile,
)
from small_ops import CASES, MEMORY, MEMORY_WIDTHS, check_case, check_keep, check_memory

from xlnet_fast import ops
from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels.triton import INTERPRETED, concat_memory, masked_softmax, triton
from xlnet_fast.kernels.triton import masked_softmax_launch as softmax_launch
from xlnet_fast.masks import AttentionMask
from xlnet_fast.operands import SoftmaxInputs

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("_interpreter_small_ops.py")
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="needs a CUDA device"),
]


GPU_RUNS = [
    *((name, "bfloat16") for name in CASES),
    *((name, dtype) for name in IN_EVERY_DTYPE for dtype in ("float32", "float16")),
]


def child_environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **changes}


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


@pytest.mark.skipif(
    version(triton.__version__) <= (3, 6) and version(numpy.__version__) >= (2, 4),
    reason="the interpreter of Triton 3.6 cannot loop to a run-time bound with numpy 2.4",
)
def test_interpreter():
    """Triton reads TRITON_INTERPRET when it is imported, hence a process."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(CHILD), "-q", "--tb=short",
         "-p", "no:cacheprovider", "-p", "pytest_timeout"],
        env=child_environment(TRITON_INTERPRET="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert re.search(rf"\b{TESTS} passed", done.stdout), done.stdout[-1000:]


# --- on a GPU -------------------------------------------------------------------------------------


class TestGpu:
    """The same cases, the dtype that the interpreter cannot do, and what only a GPU has."""

    pytestmark = gpu

    @pytest.mark.parametrize(("name", "dtype"), GPU_RUNS)
    def test_softmax(self, name, dtype, monkeypatch):
        use_tile(CASES[name], monkeypatch)
        check_case(name, getattr(torch, dtype), masked_softmax, "cuda")

    @pytest.mark.parametrize("name", PHILOX_MASKS)
    def test_philox(self, name):
        check_philox(name, "cuda")

    @pytest.mark.parametrize("widths", MEMORY_WIDTHS)
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    @pytest.mark.parametrize("name", MEMORY)
    def test_memory(self, name, dtype, widths):
        kind = getattr(torch, dtype)
        check_memory(name, widths, kind, kind, concat_memory, "cuda")

    @pytest.mark.parametrize("to", ["float32", "float16", "bfloat16"])
    def test_memory_converted(self, to):
        kinds = (getattr(torch, to), torch.float32)
        check_memory("memory-last", "aligned", *kinds, concat_memory, "cuda")

    @pytest.mark.parametrize("tile", [softmax_launch.TILES[0], softmax_launch.Tile(*SWEEPS)])
    def test_keep_bits(self, tile, monkeypatch):
        monkeypatch.setattr(softmax_launch, "choose_tile", lambda keys: tile)
        check_keep(masked_softmax, "cuda")

    @pytest.mark.parametrize("keys", [1, 96, 130, 512, 1024, 1040, 3000])
    def test_every_tile_at_its_own_size(self, keys):
        """One key, multiples of 16 and not: Triton compiles a form for each."""
        scores = torch.randn(2, 2, 5, keys, device="cuda", dtype=torch.float16)
        mask = AttentionMask()
        for backend in ("triton", "sdpa"):
            x = scores.detach().requires_grad_()
            positions = torch.zeros(2, 5, dtype=torch.int64, device="cuda")
            out = ops.masked_softmax(
                x, mask=mask, positions=positions, memory_length=keys - 1, backend=backend
            )
            out.backward(torch.ones_like(out).cumsum(-1) / keys)
            if backend == "triton":
                mine = out, x.grad
            else:
                torch.testing.assert_close(mine[0], out, atol=2e-3, rtol=2e-3)
                torch.testing.assert_close(mine[1], x.grad, atol=2e-3, rtol=2e-3)

    def test_the_public_ops_reach_the_kernels_and_a_graph_captures_them(self):
        hidden = [torch.randn(6, 2, 8, device="cuda") for _ in range(3)]
        memory = [torch.randn(4, 2, 8, device="cuda") for _ in range(3)]
        scores = torch.randn(2, 2, 6, 10, device="cuda")
        seed = torch.tensor([3], device="cuda")

        def step():
            p = ops.masked_softmax(scores, dropout_p=0.3, seed=seed, backend="triton")
            return [p, *ops.concat_memories(hidden, memory, 5, backend="triton")]

        expected = [x.clone() for x in step()]
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        graph.replay()
        for actual, right in zip(captured, expected, strict=True):
            assert torch.equal(actual, right)

    def test_more_than_2_to_the_31_elements(self, much_memory):
        """A table of 2**31 scores and more in fp16 needs 64-bit offsets."""
        batch, heads, rows, keys = 2, 16, 4112, 16400
        scores = torch.zeros(batch, heads, rows, keys, dtype=torch.float16, device="cuda")
        assert scores.numel() > 2**31
        scores[-1, -1, -1, -1] = 4.0
        p = ops.masked_softmax(scores, backend="triton")
        expected = scores[-1, -1, -1:].float().softmax(-1).half()
        torch.testing.assert_close(p[-1, -1, -1:], expected)
        assert torch.equal(p[0, 0, 0], torch.full_like(p[0, 0, 0], 1 / keys))


# --- without one ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [1, 16, 128, 129, 512, 513, 1024, 1025, 9000])
def test_a_tile_that_says_it_holds_a_row_does(keys):
    tile = softmax_launch.choose_tile(keys)
    assert tile in softmax_launch.TILES
    assert tile.whole == (keys <= 1024)
    if tile.whole:
        assert keys <= tile.block_n
    assert tile.block_n % 8 == 0  # bytes of mask bits and groups of random words per tile


@pytest.mark.skipif(INTERPRETED, reason="CPU tensors are refused only without the interpreter")
def test_cpu_tensors_are_refused_with_the_reason():
    x = torch.zeros(1, 1, 2, 2)
    inputs = SoftmaxInputs(x, None, None, None, None, AttentionMask(), None, 0, 1.0)
    with pytest.raises(BackendUnavailable, match="CUDA device"):
        masked_softmax.masked_softmax_forward(inputs, x.clone())
    with pytest.raises(BackendUnavailable, match="CUDA device"):
        concat_memory.concat_memory_forward([x[0]], None, 0, 1, x.clone())
