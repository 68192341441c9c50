"""What an export is told; the command line, a YAML file and Python give the same names.

Only light imports here: the command line reads this for ``--help``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.options import COMMON, MACHINE, option

PROGRAM = "Programs: torch, aoti, onnx, stablehlo"
STABLEHLO = "stablehlo"
INT8 = "int8"
GROUPS = (COMMON, PROGRAM, STABLEHLO, INT8, MACHINE)
"""The panels of the command's ``--help``, in order."""

SUFFIXES = {"torch": ".pt2", "aoti": ".pt2", "onnx": ".onnx", "stablehlo": None, "int8": None}
"""Of each format the ending of its file; None where there is no form of one file."""
FORMATS = tuple(SUFFIXES)
PLATFORMS = ("cpu", "tpu")
DTYPES = ("fp32", "bf16")
LEAST_MAX_LENGTH = 8
USUAL_MAX_BATCH, USUAL_MAX_LENGTH = 64, 512
USUAL_TPU_BATCH = 8
USUAL_CHIP = "v5e"
USUAL_MOST_ERROR = 0.1
_NOT_PORTABLE = {
    "onnx": "ONNX is portable anyway",
    "stablehlo": "stablehlo runs without xlnet_fast anyway",
    "int8": "int8 needs xlnet_fast",
}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """One export; each field's help is in its metadata (``xlnet-fast export --help``).

    Raises:
        ArgumentError: from :meth:`check`, for the first value that cannot be used.
    """

    model: str | None = option(
        COMMON, "Folder of a checkpoint or a run, or Hub id", None, metavar="MODEL", argument=True
    )
    format: str | None = option(COMMON, ", ".join(FORMATS), None, "required", metavar="FORMAT")
    output: Path | None = option(
        COMMON, "A new folder, or a file .pt2, .onnx", None, "required", metavar="PATH"
    )
    tokenizer: str | None = option(COMMON, "Folder or Hub id", None, "the model's")
    overwrite: bool = option(COMMON, "Replace an earlier export", False)

    max_batch: int | None = option(
        PROGRAM, "Most rows; for a TPU exactly so many", None,
        f"{USUAL_MAX_BATCH}, tpu {USUAL_TPU_BATCH}",
    )  # fmt: skip
    max_length: int | None = option(
        PROGRAM, "Most tokens of a row; for a TPU exactly so many", None, str(USUAL_MAX_LENGTH)
    )
    portable: bool = option(PROGRAM, "PyTorch's own ops alone: runs without xlnet_fast", False)

    platform: str | None = option(STABLEHLO, ", ".join(PLATFORMS), None, "required")
    dtype: str | None = option(STABLEHLO, ", ".join(DTYPES), None, "fp32")
    chip: str | None = option(
        STABLEHLO, "The TPU to compile for: v4, v5e, v5p, v6e, tpu7x", None, USUAL_CHIP
    )

    data: str | None = option(
        INT8, "csv or jsonl with text and label: accuracy on it", None, metavar="FILE"
    )
    most_error: float | None = option(
        INT8, "Of the logits, relative; beyond it nothing is written", None, str(USUAL_MOST_ERROR)
    )

    speed: bool = option(MACHINE, "Measure no speed", True)

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        if not self.model:
            raise ArgumentError(
                "no model was given, expected a folder or a Hub id: xlnet-fast export RUN "
                "--format torch --output FOLDER"
            )
        if self.format not in FORMATS:
            got = "none was given" if self.format is None else f"got {self.format!r}"
            raise ArgumentError(f"format must be one of {', '.join(FORMATS)}, {got}")
        if self.output is None:
            raise ArgumentError("no output was given, expected the name of a folder or a file")
        self._check_of_formats()
        if self.max_batch is not None and self.max_batch < 1:
            raise ArgumentError(f"max_batch is {self.max_batch}, expected at least 1")
        if self.max_length is not None and self.max_length < LEAST_MAX_LENGTH:
            raise ArgumentError(
                f"max_length is {self.max_length}, expected at least {LEAST_MAX_LENGTH}"
            )
        if self.most_error is not None and not self.most_error > 0:
            raise ArgumentError(f"most_error is {self.most_error}, expected more than 0")
        suffix = self.output.suffix.lower()
        if suffix in (".pt2", ".onnx", ".stablehlo") and suffix != SUFFIXES[self.format]:
            wanted = SUFFIXES[self.format]
            right = f"a folder or a file {wanted}" if wanted else "a folder"
            raise ArgumentError(
                f"the output {self.output} is no name for {self.format}: expected {right}"
            )

    def _check_of_formats(self) -> None:
        """What would be read by nothing."""
        is_int8 = self.format == "int8"
        for name in ("max_batch", "max_length") if is_int8 else ("data", "most_error"):
            if getattr(self, name) is not None:
                right = "for the other formats: int8 takes any" if is_int8 else "for int8 alone"
                raise ArgumentError(f"{name} is {right}, and format is {self.format}")
        if self.portable and self.format not in ("torch", "aoti"):
            assert self.format is not None
            raise ArgumentError(f"portable is for torch and aoti: {_NOT_PORTABLE[self.format]}")
        self._check_of_stablehlo()

    def _check_of_stablehlo(self) -> None:
        for name in ("platform", "dtype", "chip"):
            if getattr(self, name) is not None and self.format != "stablehlo":
                raise ArgumentError(f"{name} is for stablehlo alone, and format is {self.format}")
        if self.format != "stablehlo":
            return
        if self.platform not in PLATFORMS:
            got = "none was given" if self.platform is None else f"got {self.platform!r}"
            raise ArgumentError(
                f"platform must be one of {', '.join(PLATFORMS)}, {got}: a program with kernels "
                "for a TPU runs nowhere else, so there is one for each"
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ArgumentError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.chip is not None and self.platform != "tpu":
            raise ArgumentError(f"chip is for platform tpu alone, and platform is {self.platform}")

    @property
    def is_file(self) -> bool:
        """Whether the output is one file, told by its ending; else it is a folder."""
        assert self.output is not None
        return self.output.suffix.lower() in (".pt2", ".onnx")
