"""The Triton kernel `rel_attention_forward`: interpreted here, on a GPU where there is one."""

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

from _interpreter_rel_attention import CASES, GROUPS, check_case

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.triton import INTERPRETED, rel_attention, triton, why_unavailable
from xlnet_fast.kernels.triton.rel_attention import Config, block_d, choose_config

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("_interpreter_rel_attention.py")
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}


def child_environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **changes}


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


@pytest.mark.skipif(
    version(triton.__version__) <= (3, 6) and version(numpy.__version__) >= (2, 4),
    reason="the interpreter of Triton 3.6 cannot loop to a run-time bound with numpy 2.4",
)
@pytest.mark.parametrize(("group", "expected"), GROUPS.items())
def test_interpreter(group, expected):
    """Triton reads TRITON_INTERPRET when it is imported, hence a process for each group."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(CHILD), "-q", "-k", f"{group}-", "--tb=short",
         "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"],
        env=child_environment(TRITON_INTERPRET="1"), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert re.search(rf"\b{expected} passed", done.stdout), done.stdout[-1000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_gpu(name, dtype, monkeypatch):
    if CASES[name].bd_bytes is not None:
        monkeypatch.setattr(rel_attention, "BD_BYTES_LIMIT", CASES[name].bd_bytes)
    check_case(name, getattr(torch, dtype), "cuda")


@pytest.mark.parametrize("arch", SHARED_LIMIT)
@pytest.mark.parametrize("dtype", rel_attention.DTYPES)
@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("head_dim", [1, 16, 32, 48, 64, 96, 128])
def test_choose_config_fits_the_chip(dtype, head_dim, arch, heavy):
    config = choose_config(dtype, head_dim, arch, heavy)
    assert isinstance(config, Config)
    assert rel_attention.ROW_CHUNK % config.block_m == 0
    assert config.block_n % 8 == 0  # bytes of mask bits and groups of random words per tile
    # A lower bound from the tiles alone; the compiled figure is held by the kernels report.
    tiles = 2 * config.block_n * block_d(head_dim) * dtype.itemsize * (config.num_stages - 1)
    assert tiles <= SHARED_LIMIT[arch] * 1024


def test_every_configuration_can_be_chosen():
    chosen = {
        choose_config(dtype, head_dim, arch, heavy)
        for dtype in rel_attention.DTYPES
        for head_dim in (32, 64, 128)
        for arch in SHARED_LIMIT
        for heavy in (False, True)
    }
    assert chosen == set(rel_attention.CONFIGS.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.float64, 64, 90), "float64"),
        ((torch.float32, 129, 90), "129"),
        ((torch.float32, 0, 90), "0 is not in 1..128"),
        ((torch.float16, 64, 75), "sm_75"),
    ],
)
def test_choose_config_refuses(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        choose_config(*arguments)


@pytest.mark.skipif(INTERPRETED, reason="CPU tensors are refused only without the interpreter")
def test_cpu_tensors_are_refused_with_the_reason():
    assert "'cpu'" in why_unavailable("cpu")
    x = torch.zeros(1, 2, 1, 16)
    with pytest.raises(BackendUnavailable, match="CUDA device"):
        rel_attention.rel_attention_forward(
            x, x, x, torch.zeros(1, 4, 1, 16), x[0, 0], x[0, 0], None, None, None, None, None,
            None, None, None, 0.0, None, torch.empty_like(x),
        )  # fmt: skip


def test_importing_without_triton_names_the_reason():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from xlnet_fast.kernels.triton import rel_attention, why_unavailable\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "print(why_unavailable('cuda'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Triton cannot be imported" in done.stdout
    assert "pip install triton" in done.stdout


def test_importing_starts_no_cuda_context():
    code = (
        "import xlnet_fast.kernels.triton.rel_attention as m, torch\n"
        "m.why_unavailable('cuda')\n"
        "assert not torch.cuda.is_initialized()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
