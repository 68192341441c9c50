"""The code of docs/tpu.md, in a process of its own: it registers, and moves models to JAX."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchax", reason="models come to JAX by torchax: pip install xlnet-fast[tpu]")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tpu.md"


def test_the_code_runs_and_takes_the_kernels():
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([2, 24, 32]) jax:0" in done.stdout
    assert re.search(r"^rel_attention +pallas", done.stdout, re.M)
