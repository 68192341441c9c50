"""``xlnet-fast export``."""

from __future__ import annotations

from functools import partial

from xlnet_fast.cli.options import command_of
from xlnet_fast.export import ExportOptions
from xlnet_fast.export.options import GROUPS


def run_export(options: ExportOptions) -> None:
    """Say each step, and at the end where the export lies and how to run it."""
    options.check()
    from xlnet_fast.export import export

    result = export(options, partial(print, flush=True))
    where = "" if options.is_file else f"cd {result.output} && "
    if options.is_file and result.output.parent.name:
        where = f"cd {result.output.parent} && "
    print(f"written: {result.output}; to run it:\n{where}{result.record['run']}")


export_command = command_of(
    ExportOptions,
    run_export,
    "Export a model as a program, to ONNX or in int8; it is checked against the model first.",
    GROUPS,
)
