"""Whether CUDA code can be compiled and read here, which needs no GPU."""

from __future__ import annotations

import shutil

import pytest

from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels.report import sass


def has_tools() -> bool:
    try:
        sass.nvdisasm()
    except BackendUnavailable:
        return False
    return shutil.which("nvcc") is not None


needs_nvcc = pytest.mark.skipif(
    not has_tools(), reason="needs nvcc on the path, and nvdisasm there or in Triton"
)
