"""The code of docs/tpu.md, in a process of its own: it registers, and moves models to JAX."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchax", reason="models come to JAX by torchax: pip install xlnet-fast[tpu]")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tpu.md"


BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
PRINTED = (r"^torch\.Size\(\[2, 24, 32\]\) jax:0$(.*\n)+rel_attention +pallas", r"^\d\.\d+ 23$")


@pytest.mark.parametrize(("code", "printed"), list(zip(BLOCKS, PRINTED, strict=True)))
def test_code_runs_and_takes_the_kernels(code, printed):
    on_cpu = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=on_cpu
    )
    assert done.returncode == 0, done.stderr
    assert re.search(printed, done.stdout, re.M)
