"""After `import torch, xlnet_fast` programs made of our ops load; nothing heavy was imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import xlnet_fast.deferred
from xlnet_fast.ops import masked_softmax, rel_attention

LOADS = """
import sys
import torch
import xlnet_fast

heavy = {"torch._dynamo", "sympy", "triton", "transformers"} & set(sys.modules)
assert not heavy, heavy
folder = sys.argv[1]
inputs, expected = torch.load(folder + "/expected.pt")
programs = [torch.export.load(folder + "/exported.pt2").module(),
            torch.jit.load(folder + "/traced.pt")]
for program in programs:
    torch.testing.assert_close(program(*inputs), expected, rtol=0, atol=0)
assert "xlnet_fast.hf" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    programs[0](*inputs)
print("agrees, operations:", counter.get_total_flops())
"""


class Attention(nn.Module):
    """Two ops of ours, by a backend that every CPU has."""

    def forward(self, q, k, v, r, bias):
        out = rel_attention(q, k, v, r, bias, bias, backend="sdpa")
        return out, masked_softmax(out, backend="sdpa")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_new_process_loads_what_was_exported_and_traced(tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 2, 8)] * 3 + [(1, 10, 2, 8), (2, 8)]
    inputs = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    model = Attention().eval()
    with torch.no_grad():
        exported = torch.export.export(model, inputs)
        traced = torch.jit.trace(model, inputs)
        expected = model(*inputs)
    for program in (str(exported.graph), str(traced.inlined_graph)):
        assert "xlnet_fast" in program  # else any process could load it
    torch.export.save(exported, tmp_path / "exported.pt2")
    traced.save(str(tmp_path / "traced.pt"))
    torch.save((inputs, expected), tmp_path / "expected.pt")
    command = [sys.executable, "-c", LOADS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    # 2 batch elements, 2 heads, 5 queries, 5 keys, 3 products of 8.
    assert f"agrees, operations: {2 * 2 * 2 * 5 * 5 * 3 * 8}" in done.stdout, done.stderr


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that may be imported."""
    (tmp_path / "imported_later.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finders = list(sys.meta_path)
    yield "imported_later"
    sys.meta_path[:] = finders
    sys.modules.pop("imported_later", None)


def test_what_waits_runs_once_behind_the_import(module):
    seen = []
    xlnet_fast.deferred.when_imported(module, lambda: seen.append(sys.modules[module].value))
    assert not seen
    assert module not in sys.modules
    __import__(module)
    assert seen == [1]
    xlnet_fast.deferred.when_imported(module, lambda: seen.append(2))
    assert seen == [1, 2]
    del sys.modules[module]
    __import__(module)
    assert seen == [1, 2]


def test_a_module_that_is_missing_stays_awaited(module, tmp_path):
    seen = []
    xlnet_fast.deferred.when_imported("imported_much_later", lambda: seen.append(1))
    with pytest.raises(ModuleNotFoundError):
        __import__("imported_much_later")
    (tmp_path / "imported_much_later.py").write_text("")
    __import__("importlib").invalidate_caches()
    __import__("imported_much_later")
    del sys.modules["imported_much_later"]
    assert seen == [1]
