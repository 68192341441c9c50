"""``xlnet-fast predict``."""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial

import typer

from xlnet_fast.cli.generate import print_measures, show_warning
from xlnet_fast.cli.options import command_of
from xlnet_fast.errors import ArgumentError
from xlnet_fast.predict.options import GROUPS, STREAM, PredictOptions


def run_predict(options: PredictOptions) -> None:
    """Answers to standard output or a file, all else to standard error; 128 + signal if stopped."""
    options.check()
    from xlnet_fast.predict.run import predict

    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            result = predict(options, partial(print, flush=True), partial(print, file=sys.stderr))
        except BrokenPipeError:  # whoever read the answers has enough of them
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        except OSError as error:
            why = error.strerror or error
            raise ArgumentError(f"the answers could not be written: {why}") from error
    if result.stopped_by is not None:
        file = options.output is not None and str(options.output) != STREAM
        way = "; go on with --resume and the same options" if file else ""
        print(
            f"stopped by a signal, {result.answered:,} of {result.of:,} records are answered{way}",
            file=sys.stderr,
        )
        raise typer.Exit(128 + result.stopped_by)
    print_measures("Prediction", result.metrics)
    if bad := int(result.metrics.get("bad_records", 0)):
        print(f"warning: {bad:,} of the answers are errors of bad records", file=sys.stderr)
    if options.output is not None and str(options.output) != STREAM:
        print(f"answers: {options.output}")


predict_command = command_of(
    PredictOptions,
    run_predict,
    "Answer the records of a file with a trained XLNet: labels, entities, answers, embeddings.",
    GROUPS,
)
