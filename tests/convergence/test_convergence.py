"""A tiny XLNet learns real text on our kernels as on Hugging Face's code: the same loss curve.

The yardstick is how far HF's own curve moves when every initial weight moves by one rounding: two
correct implementations differ by no more than roundings, and training decides what becomes of them.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy
import pytest
import torch
from cpu_kernels import needs_kernels
from tiny_training import Task, loss_curve, read_tokens
from torch import Tensor

from xlnet_fast.kernels.sdpa import rel_attention as sdpa

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("_interpreter_training.py")

MULTIPLE = 4.0
"""How far our curve may lie from HF's, in the largest distance of HF's moved runs from it."""
MOVED_RUNS = 4

GPU = pytest.mark.gpu
CASES = [
    pytest.param("reference", "cpu", None, id="reference-fp32"),
    pytest.param("cpu", "cpu", None, id="cpu-fp32", marks=needs_kernels),
    pytest.param("cpu", "cpu", torch.bfloat16, id="cpu-bf16", marks=needs_kernels),
    pytest.param("sdpa", "cpu", None, id="sdpa-fp32"),
    pytest.param("sdpa", "cpu", torch.bfloat16, id="sdpa-bf16"),
    pytest.param("sdpa", "cuda", None, id="sdpa-gpu-fp32", marks=GPU),
    pytest.param("triton", "cuda", None, id="triton-gpu-fp32", marks=GPU),
    pytest.param("triton", "cuda", torch.bfloat16, id="triton-gpu-bf16", marks=GPU),
]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return read_tokens(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def yardstick(tokens: Tensor) -> Callable[..., tuple[Tensor, float]]:
    @functools.cache
    def measure(task: Task, device: str, autocast: torch.dtype | None) -> tuple[Tensor, float]:
        """HF's loss curve, and the largest distance of its moved runs from it."""
        where = {"device": device, "autocast": autocast}
        curve = loss_curve(tokens, task, **where)
        moved = (loss_curve(tokens, task, **where, moved=seed) for seed in range(MOVED_RUNS))
        noise = max(float((other - curve).abs().max()) for other in moved)
        # The losses themselves are read from fp32.
        return curve, max(noise, torch.finfo(torch.float32).eps * float(curve.max()))

    return measure


@pytest.mark.parametrize(("backend", "device", "autocast"), CASES)
def test_same_loss_curve_as_hugging_face(backend, device, autocast, tokens, yardstick):
    task = Task()
    theirs, noise = yardstick(task, device, autocast)
    ours = loss_curve(tokens, task, backend=backend, device=device, autocast=autocast)
    assert len(ours) == task.steps
    distance = float((ours - theirs).abs().max())
    assert distance <= MULTIPLE * noise, f"{distance:.2e}, where roundings alone give {noise:.2e}"
    for curve in (ours, theirs):
        assert curve[-10:].mean() < curve[0] - 1.0, "it must have learned"


@pytest.mark.parametrize("vector", ["r_w_bias", "r_r_bias", "r_s_bias", "seg_embed"])
def test_the_yardstick_tells_a_wrong_gradient(vector, tokens, yardstick, monkeypatch):
    """The smallest gradients there are, of the wrong sign: the curve leaves its band."""
    theirs, noise = yardstick(Task(), "cpu", None)
    few = Task(steps=20)  # a wrong sign shows at once
    write = sdpa._write_shared
    row = ("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed").index(vector)

    def wrong(keys, totals, grads):
        totals.vectors[row].neg_()
        write(keys, totals, grads)

    monkeypatch.setattr(sdpa, "_write_shared", wrong)
    ours = loss_curve(tokens, few, backend="sdpa")
    assert float((ours - theirs[: few.steps]).abs().max()) > 10 * MULTIPLE * noise


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def test_triton_under_the_interpreter(tokens, yardstick, tmp_path):
    """A few steps of few tokens, because the interpreter is slow.

    Triton reads TRITON_INTERPRET when it is imported, hence a process of its own.
    """
    triton = pytest.importorskip("triton")
    if _version(triton.__version__) <= (3, 6) and _version(numpy.__version__) >= (2, 4):
        pytest.skip("the interpreter of Triton 3.6 cannot loop to a run-time bound with numpy 2.4")
    task = Task(steps=3, batch=2, length=8, predicted=3, memory=8)
    theirs, noise = yardstick(task, "cpu", None)
    torch.save(tokens, tmp_path / "tokens.pt")
    folders = (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH"))
    path = os.pathsep.join(filter(None, folders))
    done = subprocess.run(
        [sys.executable, str(CHILD), str(tmp_path / "tokens.pt"), json.dumps(asdict(task))],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    result = json.loads(done.stdout.splitlines()[-1])
    layers = 2
    assert result["calls"] == {"forward": layers * task.steps, "backward": layers * task.steps}
    ours = torch.tensor(result["losses"], dtype=torch.float64)
    distance = float((ours - theirs).abs().max())
    assert distance <= MULTIPLE * noise, f"{distance:.2e}, where roundings alone give {noise:.2e}"
    untrained = loss_curve(tokens, replace(task, learning_rate=0.0))
    assert float((untrained - theirs).abs().max()) > 1e4 * noise, "so few steps must show"
