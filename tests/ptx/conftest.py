"""The kernels' cases and checks, which tests/kernels has, are there for the tests of PTX too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "kernels"))
