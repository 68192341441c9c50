"""StableHLO: a program of XLA that JAX runs, without PyTorch and without us, ``model.stablehlo``.

For a CPU it is PyTorch's own code of the model and takes every batch and length of a range. For a
TPU our attention is a Pallas kernel, which is for one shape: so there is one program for each. The
weights are arguments of the program, by name, and lie beside it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from xlnet_fast.checkpoint import first_line
from xlnet_fast.errors import XLNetFastError
from xlnet_fast.export import packages
from xlnet_fast.export.check import Ranges, Run
from xlnet_fast.export.options import USUAL_CHIP
from xlnet_fast.export.program import traced
from xlnet_fast.export.source import INPUTS, Source
from xlnet_fast.kernels.report import tpu
from xlnet_fast.kernels.report.jobs import expect_known
from xlnet_fast.tpu.torchax import INSTALL

WEIGHTS = "weights.safetensors"
PRECISIONS = {"fp32": "highest", "bf16": "default"}
"""Of products outside our kernels: by default a TPU multiplies fp32 in one pass of bf16."""
_NEEDED = ("jax", "torchax", "flatbuffers")
_GOOGLE = "0x1ae0"  # its number among vendors of PCI devices


@contextlib.contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Undo what JAX's and torchax's imports, and ours, do to the process, as far as it can be.

    The device that torchax names "jax" keeps its name. Where no TPU is plugged in, libtpu is kept
    from looking for one, which takes seconds and prints a page: JAX is then on the CPU.
    """
    environment, fast = dict(os.environ), torch.backends.mha.get_fastpath_enabled()
    if "jax" not in sys.modules and not _has_tpu():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        torch.backends.mha.set_fastpath_enabled(fast)


def _has_tpu() -> bool:
    """Whether a device of Google's is plugged in: a TPU, or a network card of its cloud."""
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(path.read_text().strip() == _GOOGLE for path in vendors)


class StableHLO:
    """The format for one platform; what other formats' modules have as functions are its methods.

    Args:
        platform: "cpu" or "tpu". dtype: "fp32" or "bf16".
        chip: the TPU whose kernels are taken, and that it is compiled for where none is here.
    """

    FILE = "model.stablehlo"

    def __init__(self, platform: str, dtype: str = "fp32", chip: str | None = None) -> None:
        self.platform, self.dtype = platform, dtype
        self.chip = chip
        self.precision = PRECISIONS[dtype]
        self._lowered: Any = None
        self._ranges: Ranges | None = None

    @_process_as_it_was()
    def require(self) -> None:
        """Before minutes of work: are JAX and torchax here, and is there such a chip?

        Raises:
            XLNetFastError: says what to install. ArgumentError: an unknown chip.
        """
        if self.chip is not None:
            expect_known("chip", [self.chip], list(tpu.TOPOLOGIES))
        packages.require("StableHLO is written by JAX and torchax", _NEEDED, INSTALL)
        try:
            xla: Any = importlib.import_module("xlnet_fast.export.xla")
        except ImportError as error:
            raise XLNetFastError(
                f"JAX and torchax cannot be imported ({first_line(error)}): {INSTALL}"
            ) from error
        if self.chip is None and xla.attached_tpu() is None:
            self.chip = USUAL_CHIP  # else the kernels are for the TPU that is here

    @_process_as_it_was()
    def write(self, source: Source, ranges: Ranges, path: Path) -> None:
        """Write the program, and the weights beside it.

        Raises:
            XLNetFastError: it cannot be traced or lowered, or not all attention is our kernel.
        """
        from xlnet_fast.export import xla

        self._ranges, self._lowered = ranges, xla.lower(traced(source, ranges))
        try:
            exported = self._exported(self.platform)
        except Exception as error:  # of torchax's lowerings, JAX and our kernels
            raise XLNetFastError(
                f"{source.name} cannot be lowered for a {self.platform}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        kernels = tpu.occurrences(exported.mlir_module(), "@tpu_custom_call")
        if self.platform == "tpu" and not kernels == self._lowered.attentions > 0:
            raise XLNetFastError(
                f"the program has {kernels} kernels for {self._lowered.attentions} calls of our "
                "attention; nothing was written"
            )
        path.write_bytes(exported.serialize())
        save_file(self._lowered.weights, path.with_name(WEIGHTS))
        shutil.copymode(path, path.with_name(WEIGHTS))  # safetensors lets only its owner read it

    @_process_as_it_was()
    def load(self, path: Path) -> Run:
        """The program of a file, as a function; one for a TPU that is not here is interpreted.

        Then it is the same program with the same weights, lowered for the CPU. On a TPU the file
        itself is run, which was never tried.
        """
        from xlnet_fast.export import xla

        device = xla.cpu() if self.platform == "cpu" else xla.attached_tpu()
        weights = path.with_name(WEIGHTS)
        if device is not None:
            return xla.runner(xla.read(path), weights, device)
        interpreted = xla.reread(self._exported("cpu"))
        return xla.runner(interpreted, weights, xla.cpu(), interpreted=True)

    def _exported(self, platform: str) -> Any:
        """The program for a platform; kernels of one for a CPU are interpreted."""
        from xlnet_fast.export import xla

        assert self._ranges is not None
        return xla.export(
            self._lowered, self._ranges, platform, self.precision, self.chip, platform == "cpu"
        )

    @_process_as_it_was()
    def facts(
        self, path: Path, versions: dict[str, str], say: Callable[[str], None]
    ) -> dict[str, Any]:
        """What is to be recorded of the file, the compiler's figures of one for a TPU among it.

        Args:
            versions: of packages, to which those of this format are added. say: told the figures.
        """
        from xlnet_fast.export import xla

        assert self._ranges is not None
        exported = xla.read(path)
        ranges = self._ranges
        size = f"{ranges.max_batch}, {ranges.max_length}" if ranges.fixed else "batch, length"
        found: dict[str, Any] = {
            "platform": self.platform,
            "dtype": self.dtype,
            "matmul_precision": self.precision,
            "inputs": dict.fromkeys(INPUTS, f"int32 ({size})"),
            "arguments": [*sorted(self._lowered.weights), *INPUTS],
            "calling_convention_version": exported.calling_convention_version,
            "versions": versions | self._versions(),
        }
        if self.platform == "tpu":
            found["kernels"] = self._lowered.attentions
            if (device := xla.attached_tpu()) is not None:
                found |= {"chip": self.chip or device.device_kind, "ran_on": device.device_kind}
            else:
                found |= {"chip": self.chip, "ran_on": "CPU, kernels interpreted"}
                found["compiled"] = self._compiled(exported, say)
        return found

    def _compiled(self, exported: Any, say: Callable[[str], None]) -> dict[str, Any] | None:
        """What the compiler says of the program for a chip that is not here; None without one."""
        from xlnet_fast.export import xla

        assert self._ranges is not None
        assert self.chip is not None
        if importlib.util.find_spec("libtpu") is None:
            say(f"libtpu is not here: the program was not compiled for {self.chip}")
            return None
        try:
            found = xla.compiled(exported, self._lowered, self._ranges, self.chip)
        except Exception as error:  # of the compiler
            raise XLNetFastError(
                f"the program cannot be compiled for {self.chip}: {first_line(error)}; nothing was "
                "written"
            ) from error
        note = "the compiler's figures, not a measurement"
        say(
            f"compiled for {self.chip}: {found.temporary_bytes / 2**20:.1f} MiB temporary, "
            f"{found.accessed_bytes / 1e9:.3g} GB accessed ({note})"
        )
        figures = found._asdict()
        del figures["kernels"]
        return {"note": note, **figures}

    def runs_here(self) -> bool:
        """Whether the program itself was run, so that its speed means something."""
        from xlnet_fast.export import xla

        return self.platform == "cpu" or xla.attached_tpu() is not None

    def _versions(self) -> dict[str, str]:
        """Of the packages that wrote the program."""
        names = ["jax", "jaxlib", "torchax"]
        if self.platform == "tpu" and importlib.util.find_spec("libtpu") is not None:
            names.append("libtpu")
        return {name: importlib.metadata.version(name) for name in names}

    def example(self, file: str, portable: bool) -> list[str]:
        """Lines of Python that load a file and define ``run``; neither torch nor ours is needed."""
        platform = ['jax.config.update("jax_platforms", "cpu")'] if self.platform == "cpu" else []
        return [
            "import json, jax, jax.export, numpy as np",
            "from safetensors.flax import load_file",
            *platform,
            f'program = jax.export.deserialize(bytearray(open("{file}", "rb").read()))',
            f'call, weights = jax.jit(program.call), load_file("{WEIGHTS}")',
            'ranges = json.load(open("export.json"))["ranges"]',
            "def run(*given):",
            "    for size, (name, (least, most)) in zip(given[0].shape, ranges.items()):",
            "        if not least <= size <= most:",
            '            raise ValueError(f"{name} is {size}, expected {least} to {most}")',
            '    return call(weights, *(np.asarray(x, "int32") for x in given))',
        ]
