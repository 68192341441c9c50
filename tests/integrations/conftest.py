"""The models of these tests are those of tests/hf and tests/predict."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "hf"), str(TESTS / "predict")]
