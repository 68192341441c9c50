"""Whether a driver and a chip run what the extension was built with: rules on version numbers.

CUDA counts versions as 1000 * major + 10 * minor: 13020 is 13.2.
"""

from __future__ import annotations

from collections.abc import Sequence


def why_too_old(driver: int, runtime: int) -> str | None:
    """Why a driver does not run a program that a CUDA runtime is linked into; None where it does.

    A runtime runs with every driver of its major version and of later ones ("CUDA Compatibility",
    minor version compatibility).

    Args:
        driver: the newest CUDA that the driver runs, 0 where there is none.
        runtime: the CUDA that is linked in.
    """
    if driver == 0 or driver // 1000 >= runtime // 1000:
        return None
    major = runtime // 1000
    return (
        f"the NVIDIA driver runs CUDA up to {_dotted(driver)}, and the extension was built with "
        f"CUDA {_dotted(runtime)}; install a driver for CUDA {major}.0 or newer, or run "
        f"`xlnet-fast build --force` with an nvcc of CUDA {driver // 1000}"
    )


def why_no_code(archs: Sequence[str], gpu: str, driver: int, runtime: int) -> str | None:
    """Why nothing that the extension was built for runs on a chip; None where something does.

    Machine code runs on chips of its own major version that are not older, with an "a" behind it on
    that one chip only. The newest of the others is there as PTX too (`builder.nvcc.gencode`), which
    a driver that is as new as the compiler translates for newer chips.

    Args:
        archs: as nvcc names them, "80" or "90a".
        gpu: compute capability, "8.6".
        driver, runtime: as :func:`why_too_old`.
    """
    chip = int(gpu.replace(".", ""))
    numbers = {arch: int(arch.rstrip("af")) for arch in archs}
    for arch, number in numbers.items():
        alike = number // 10 == chip // 10 and number <= chip and not arch.endswith("a")
        if alike or number == chip:
            return None
    built = ", ".join(f"sm_{arch}" for arch in archs)
    remedy = f'`XLNET_FAST_CUDA_ARCHS="{chip}" xlnet-fast build --force` builds it for this GPU'
    ptx = max((number for arch, number in numbers.items() if arch.isdigit()), default=None)
    if ptx is None or ptx > chip:
        return f"the extension was built for {built}, none of which runs on {gpu}; {remedy}"
    if driver != 0 and driver < runtime:
        return (
            f"on {gpu} the driver would have to translate the extension's PTX of CUDA "
            f"{_dotted(runtime)}, and it knows CUDA up to {_dotted(driver)}; {remedy}"
        )
    return None


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
