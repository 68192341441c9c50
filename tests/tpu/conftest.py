"""JAX on the CPU, unless JAX_PLATFORMS says otherwise: "tpu,cpu" where there is a TPU.

The cases and checks of tests/kernels are there, too, and what tests/export exports.
"""

import os
import sys
from pathlib import Path

if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
    os.environ.setdefault(
        "TPU_SKIP_MDS_QUERY", "1"
    )  # the compiler would ask a cloud for its machine
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # it locks a TPU, and there is none
for folder in ("kernels", "export"):
    sys.path.append(str(Path(__file__).resolve().parents[1] / folder))
