"""A driver too old for the runtime that is linked in, and chips that nothing was compiled for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cuda_emulation import as_gpu, emulation, emulation_module

from xlnet_fast import _extension
from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels import cuda
from xlnet_fast.kernels.cuda import driver, entries
from xlnet_fast.ops._dispatch import Request, choose

__all__ = ["as_gpu", "emulation", "emulation_module"]  # fixtures

REQUEST = Request("masked_softmax", "cpu", torch.bfloat16)


@pytest.mark.parametrize(
    ("installed", "linked"),
    [(0, 13000), (13000, 13000), (13000, 13020), (13020, 13000), (14000, 13000), (12020, 12080)],
)
def test_drivers_that_do(installed, linked):
    assert driver.why_too_old(installed, linked) is None


@pytest.mark.parametrize(("installed", "linked"), [(12080, 13000), (11080, 12020)])
def test_drivers_that_are_too_old(installed, linked):
    reason = driver.why_too_old(installed, linked)
    old, new = f"{installed // 1000}.8", f"{linked // 1000}.{linked % 1000 // 10}"
    assert reason == (
        f"the NVIDIA driver runs CUDA up to {old}, and the extension was built with CUDA {new}; "
        f"install a driver for CUDA {linked // 1000}.0 or newer, or run `xlnet-fast build --force` "
        f"with an nvcc of CUDA {installed // 1000}"
    )


@pytest.mark.usefixtures("as_gpu")
def test_the_dispatcher_says_it_before_any_launch(emulation):
    assert choose(REQUEST, "cuda").backend == "cuda"
    emulation.set_device(driver=12080, runtime=13000)
    with pytest.raises(BackendUnavailable, match=r"cannot run masked_softmax: the NVIDIA driver"):
        choose(REQUEST, "cuda")
    choice = choose(REQUEST)
    assert choice.backend != "cuda"
    assert "cuda: the NVIDIA driver runs CUDA up to 12.8" in choice.reason


def test_the_compiled_extension_answers_without_a_driver_and_makes_no_context():
    built = _extension.build_info()
    if built is None or not built["cuda_archs"]:
        assert cuda.why_missing() is not None
        return
    before = torch.cuda.is_initialized()
    installed, linked = entries.ask("versions")
    assert linked // 1000 == int(built["cuda_compiler"].split(".")[0])
    assert installed >= 0
    assert cuda.why_missing() == driver.why_too_old(installed, linked)
    assert torch.cuda.is_initialized() == before


# --- machine code and PTX -------------------------------------------------------------------------

DEFAULT = ("80", "90a")  # with PTX of 80
CODE = [
    (DEFAULT, "8.0", None), (DEFAULT, "8.6", None), (DEFAULT, "8.9", None), (DEFAULT, "9.0", None),
    (DEFAULT, "10.0", None), (DEFAULT, "12.0", None),
    (("90a",), "9.0", None), (("90a",), "8.0", "none of which runs on 8.0"),
    (("90a",), "10.0", "none of which runs on 10.0"),
    (("86",), "8.0", "none of which runs on 8.0"), (("86",), "8.9", None),
    (("100a",), "10.3", "none of which runs on 10.3"), (("100f",), "10.3", None),
    (("100f",), "12.0", "none of which runs on 12.0"), (("80",), "12.1", None),
]  # fmt: skip


@pytest.mark.parametrize(("archs", "gpu", "words"), CODE)
def test_what_runs_on_a_chip(archs, gpu, words):
    reason = driver.why_no_code(archs, gpu, 13000, 13000)
    if words is None:
        assert reason is None
        return
    assert words in reason
    assert f"built for {', '.join(f'sm_{arch}' for arch in archs)}, " in reason
    chip = gpu.replace(".", "")
    assert f'; `XLNET_FAST_CUDA_ARCHS="{chip}" xlnet-fast build --force` builds it' in reason


def test_ptx_needs_a_driver_as_new_as_the_compiler():
    old = (13000, 13020)
    assert driver.why_no_code(DEFAULT, "8.9", *old) is None
    assert driver.why_no_code(DEFAULT, "12.0", 0, 13020) is None
    reason = driver.why_no_code(DEFAULT, "12.0", *old)
    assert reason.startswith("on 12.0 the driver would have to translate the extension's PTX of ")
    assert "CUDA 13.2, and it knows CUDA up to 13.0; `XLNET_FAST_CUDA_ARCHS" in reason


def test_a_chip_without_code_is_refused_by_the_dispatcher(monkeypatch):
    monkeypatch.setattr(cuda, "_built_for", lambda: ["90a"])
    monkeypatch.setattr(entries, "ask", lambda name: {"versions": (13000, 13000)}[name])
    monkeypatch.setattr(_extension, "why_missing", lambda: None)
    request = replace(REQUEST, device="cuda")
    assert choose(replace(request, gpu="9.0"), "cuda").backend == "cuda"
    assert choose(request, "cuda").backend == "cuda", "of a GPU that nobody asked"
    with pytest.raises(BackendUnavailable, match=r"built for sm_90a, none of which runs on 8\.0"):
        choose(replace(request, gpu="8.0"), "cuda")
