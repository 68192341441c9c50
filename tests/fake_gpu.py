"""A GPU that PyTorch sees and that is not there, with whatever record a test gives it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from records import an_identity

from xlnet_fast.ops import _dispatch
from xlnet_fast.ops.qualification import files, proof
from xlnet_fast.ops.qualification.files import Found


@pytest.fixture
def gpu(monkeypatch):
    """A function that gives the GPU a record, or a reason why it has none."""
    properties = SimpleNamespace(name="NVIDIA Test 9000", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(proof, "identity_of", lambda device: an_identity())
    monkeypatch.setattr(proof, "REVOKED", {})
    monkeypatch.setenv("XLNET_FAST_NO_WARN", "1")
    monkeypatch.setattr(files, "_shipped_files", lambda: iter(()))

    def give(record=None, reason="no record of NVIDIA Test 9000"):
        found = Found(record, "/a/record.json") if record else Found(None, reason=reason)
        none = Found(None, reason="no record of this CPU")
        monkeypatch.setattr(
            proof, "found_for", lambda device, i: found if device == "cuda" else none
        )
        proof._cached_verdicts.cache_clear()

    give()
    yield give
    proof._cached_verdicts.cache_clear()


@pytest.fixture
def triton_is_there(monkeypatch):
    """Wherever this runs: Triton is on Linux only."""
    monkeypatch.setattr(_dispatch, "_importable", lambda module: True)
