"""Fixtures for tests of what was proved on a machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from records import an_identity

from xlnet_fast.ops.qualification import files, proof, telling


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Iterator[Path]:
    """A cache of its own, no record that ships, and nothing read or told before."""
    monkeypatch.delenv(files.FILE_VARIABLE, raising=False)
    monkeypatch.delenv(proof.AUTO_VARIABLE, raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("XLNET_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_shipped_files", lambda: iter(()))
    monkeypatch.setattr(telling, "_told", set())
    monkeypatch.setattr(proof, "REVOKED", {})
    proof.forget()
    yield tmp_path / "cache" / "qualification"
    proof.forget()


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that PyTorch sees, with an identity that can be changed."""
    current = {"is": an_identity()}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(proof, "identity_of", lambda device: current["is"])
    return current
