"""``xlnet-fast convert``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlnet_fast.cli.options import command_of
from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.options import COMMON, check_ranges, option

SOURCES = ("hf", "kimiyoung", "nvidia")
NOT_TOLD = "What the checkpoint does not tell, or shall be otherwise"
GROUPS = (COMMON, NOT_TOLD)
"""The panels of the command's ``--help``, in order."""

_GIVEN = ("mem_len", "clamp_len", "same_length", "pre_lnorm", "dropout", "dropatt")
_RANGES: dict[str, tuple[float, float | None]] = {
    "mem_len": (0, None), "dropout": (0, 1), "dropatt": (0, 1),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """One conversion; each field's help is in its metadata (``xlnet-fast convert --help``).

    Raises:
        ArgumentError: from :meth:`check`, for the first value that cannot be used.
    """

    source: Path | None = option(
        COMMON, "Folder of hf, file of the others", None, metavar="IN", argument=True
    )
    output: Path | None = option(COMMON, "A new folder", None, metavar="OUT", argument=True)
    from_: str | None = option(COMMON, f"{', '.join(SOURCES)}", None, "required", metavar="WHOSE")
    vocab: Path | None = option(COMMON, "Its words", None, "the checkpoint's", metavar="FILE")
    overwrite: bool = option(COMMON, "Replace an earlier checkpoint in OUT", False)

    args: Path | None = option(NOT_TOLD, "JSON of the training's arguments", None, metavar="FILE")
    mem_len: int | None = option(NOT_TOLD, "Rows of the memory", None)
    clamp_len: int | None = option(NOT_TOLD, "Farthest distance; -1: none", None)
    same_length: bool | None = option(NOT_TOLD, "All tokens see as far", None)
    pre_lnorm: bool | None = option(NOT_TOLD, "Norms before layers, not behind", None)
    cutoffs: str | None = option(NOT_TOLD, "First words of clusters", None, metavar="N,N,...")
    dropout: float | None = option(NOT_TOLD, "In training", None)
    dropatt: float | None = option(NOT_TOLD, "Of attention, in training", None)

    def check(self) -> None:
        """Raise ``ArgumentError`` for the first value that cannot be used."""
        if self.source is None or self.output is None:
            missing = "IN" if self.source is None else "OUT"
            raise ArgumentError(
                f"{missing} was not given, expected two names: xlnet-fast convert --from hf IN OUT"
            )
        if self.from_ not in SOURCES:
            got = "none was given" if self.from_ is None else f"got {self.from_!r}"
            raise ArgumentError(f"from must be one of {', '.join(SOURCES)}, {got}")
        check_ranges(self, _RANGES)
        self.given_cutoffs()

    def given_cutoffs(self) -> list[int] | None:
        """The numbers of ``cutoffs``.

        Raises:
            ArgumentError: they are no numbers.
        """
        if self.cutoffs is None:
            return None
        try:
            return [int(word) for word in self.cutoffs.split(",")]
        except ValueError:
            raise ArgumentError(
                f"cutoffs are {self.cutoffs!r}, expected whole numbers such as 20000,40000,200000"
            ) from None

    def given(self) -> dict[str, Any]:
        """The settings that were given one by one."""
        settings = {name: getattr(self, name) for name in _GIVEN}
        settings["cutoffs"] = self.given_cutoffs()
        return {name: value for name, value in settings.items() if value is not None}


def run_convert(options: ConvertOptions) -> None:
    """Convert, and print a table of what was found and what was changed."""
    options.check()
    from xlnet_fast.models.transfo_xl.convert import convert
    from xlnet_fast.models.transfo_xl.convert.reading import read_json

    assert options.source is not None
    assert options.output is not None
    assert options.from_ is not None
    told = {} if options.args is None else read_json(options.args)
    found = convert(
        options.source,
        options.output,
        options.from_,
        given={**told, **options.given()},
        vocabulary=options.vocab,
        overwrite=options.overwrite,
    )
    _print_rows(found.rows)
    for note in found.notes:
        print(f"note: {note}")
    print(f"written: {found.output}")


def _print_rows(rows: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "value", title="Conversion")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


convert_command = command_of(
    ConvertOptions,
    run_convert,
    "Convert a Transformer-XL of Hugging Face, of the original code or of NVIDIA's.",
    GROUPS,
)
