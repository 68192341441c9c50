"""Transformer-XL of Hugging Face's last release that has it, and ours: each in its own process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..cases.transfo_xl import TransfoXLCase, TransfoXLGeometry, memories, segments

HF, OURS = "hf_eager", "ours"
MODULES = {HF: "transformers", OURS: "xlnet_fast.models.transfo_xl"}
INSTALL = 'pip install torch==2.13.0 transformers==4.37.2 "numpy<2" sacremoses'
FP64 = "fp64"
_WORKER = Path(__file__).with_name("transfo_xl_worker.py")


def command(old_python: str | None = None) -> list[str]:
    """Return what starts a worker: with an interpreter, or with ours and all that it can import."""
    if old_python is None:
        return [sys.executable, "-m", f"{__package__}.{_WORKER.stem}"]
    return [old_python, "-I", str(_WORKER)]  # it finds its own packages, and none of ours


class Asked(Protocol):
    """A worker, wherever it runs."""

    @property
    def process_id(self) -> int: ...

    def ask(self, **message: Any) -> dict[str, Any]: ...


class Side:
    """A library's model in a worker.

    versions: of torch and transformers there, once it is loaded.
    """

    def __init__(self, name: str, worker: Asked, geometry: TransfoXLGeometry, folder: Path) -> None:
        """`folder`: where both libraries' workers read and write files."""
        self.name, self._worker, self._geometry, self._folder = name, worker, geometry, folder
        self.versions: dict[str, str] = {}

    @property
    def process_id(self) -> int:
        """Of the worker."""
        return self._worker.process_id

    def load(self, threads: int, *, make: bool) -> None:
        """Make the model. make: write the weights that all others read."""
        self.versions = self._worker.ask(
            do="load", module=MODULES[self.name], config=self._geometry.config(),
            weights=str(self._folder / "weights.safetensors"), make=make, threads=threads,
        )  # fmt: skip

    def prepare(self, case: TransfoXLCase) -> None:
        """Hand over a case; the next run begins a text."""
        path = self._folder / f"{self.name}-mems.safetensors"
        mems = memories(case, self._geometry)
        save_file({str(i): rows for i, rows in enumerate(mems)}, path)
        ids = segments(case, self._geometry.vocab_size).tolist()
        self._worker.ask(
            do="case", pass_name=case.pass_name, dtype=case.dtype, ids=ids, mems=str(path),
            memory=case.memory, new=case.new,
        )  # fmt: skip

    def result(self, dtype: str, *, plain: bool = False) -> dict[str, Tensor]:
        """Return what is checked, in a dtype or "fp64", by name.

        plain: by the library's code that returns probabilities too.
        """
        path = self._folder / f"{self.name}.safetensors"
        self._worker.ask(do="result", dtype=dtype, path=str(path), plain=plain)
        # Copies: the file is written over by the next.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}

    def run(self) -> float:
        """Do the case once and return how many seconds that took."""
        return float(self._worker.ask(do="run")["seconds"])
