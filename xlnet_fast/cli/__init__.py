"""The command line: ``xlnet-fast COMMAND``; see ``xlnet-fast --help`` for the commands.

A wrong argument, a file or checkpoint that cannot be used, a missing network: one sentence on
stderr and exit code 2. A failed check, benchmark or build: exit code 1. Torch is imported by the
commands and not here, so that ``--help`` and ``--version`` answer at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from xlnet_fast._version import __version__
from xlnet_fast.cli.convert import convert_command
from xlnet_fast.cli.deploy import deploy_app
from xlnet_fast.cli.evaluate import evaluate_command
from xlnet_fast.cli.export import export_command
from xlnet_fast.cli.finetune import finetune_command
from xlnet_fast.cli.generate import generate_command
from xlnet_fast.cli.options import GroupedCommand
from xlnet_fast.cli.perplexity import perplexity_command
from xlnet_fast.cli.predict import predict_command
from xlnet_fast.cli.pretrain import pretrain_command
from xlnet_fast.cli.qualify import qualify_command
from xlnet_fast.cli.serve import serve_command
from xlnet_fast.cli.train_sagemaker import train_app
from xlnet_fast.errors import ArgumentError, BuildError, XLNetFastError

BAD_INPUT = 2
# Typer carries its own copy of click, or uses click itself, depending on its version.
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


class _Commands(TyperGroup):
    """The commands, with every foreseen error told in one sentence."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """As the base class; an error's exit code is returned outside the standalone mode."""
        names = (args, prog_name, complete_var)
        try:
            code = super().main(*names, False, windows_expand_args, **extra)
        except _ClickException as error:
            message = error.format_message().replace("Value error, ", "").strip().rstrip(".")
            code = _fail(f"{message[:1].lower()}{message[1:]}; see xlnet-fast --help")
        except XLNetFastError as error:
            code = _fail(str(error))
        except typer.Abort:
            code = 130
        if standalone_mode:
            sys.exit(code or 0)
        return code


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


class Preset(str, Enum):
    """How much ``bench`` measures."""

    quick = "quick"
    full = "full"


class Kernels(str, Enum):
    """Whose kernels ``kernels-report`` compiles."""

    triton = "triton"
    cuda = "cuda"
    pallas = "pallas"


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"xlnet-fast {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Fast XLNet: what runs on this machine, whether it is right, and how fast it is."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with everything.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also what was passed over, and how all was built.")
    ] = False,
) -> None:
    """Show whether all is ready, what is here, what is missing, and which backend runs each op."""
    from xlnet_fast import info as information

    facts = information.gather()
    if as_json:
        print(information.to_json(facts))
    else:
        information.render(facts, verbose)


@app.command()
def build(
    force: Annotated[bool, typer.Option("--force", help="Compile even if it is there.")] = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Stop the compilers after this time.")
    ] = 1800.0,
) -> None:
    """Compile the C++ extension for this Python, where the installation could not."""
    from xlnet_fast.builder.build import build_extension

    # The compilers are in groups of their own: a plain end of this process would leave them.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        built = build_extension(force, timeout, say=lambda line: print(line, flush=True))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    how = (
        f"built in {built.time_s:.0f} s"
        if built.compiled
        else "there already; --force builds it anew"
    )
    facts = built.build_info
    print(f"{built.path}: {how}")
    print(f"compiler: {facts['compiler']}, flags: {' '.join(facts['flags'])}")
    print(f"attention variants on this CPU: {', '.join(facts['attention_isa'])}")
    print(f"CUDA kernels: {', '.join(f'sm_{arch}' for arch in facts['cuda_archs']) or 'none'}")


@app.command()
def check(
    model: Annotated[
        str | None,
        typer.Argument(
            help="An XLNet class of transformers, a checkpoint folder or a Hub id of any family; "
            "by default a small random XLNetLMHeadModel.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare every backend that can run here with Hugging Face's code, on one model."""
    from xlnet_fast.check import run_check

    raise typer.Exit(run_check(model))


@app.command()
def bench(
    preset: Annotated[Preset, typer.Option(help="How much to measure.")] = Preset.quick,
    model: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint folder or Hub id; default: xlnet-base geometry, random weights.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text file; default: the built-in text.", show_default=False),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda or cuda:N; default: the GPU if any.", show_default=False),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16 alone.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for CSV, plots and page.")] = Path("bench_out"),
) -> None:
    """Time Hugging Face's XLNet and the accelerated one side by side, after checking they agree."""
    benchmarks = _benchmarks()
    if model is not None:
        from xlnet_fast.checkpoint import load_config

        load_config(model)  # a wrong name is told at once and in the words of `check`
    code = benchmarks.run_bench(
        preset.value, model, None if text is None else str(text), device, dtype, str(out)
    )
    raise typer.Exit(code)


@app.command("kernels-report")
def kernels_report(
    json_path: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the rows.", show_default=False),
    ] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            help="Compute capability without the dot, such as 90, or a TPU, such as v5e; may be "
            "given several times.",
            show_default=False,
        ),
    ] = None,
    backend: Annotated[
        Kernels | None,
        typer.Option(
            help="These kernels alone; default: all that can be compiled, of Pallas a few.",
            show_default=False,
        ),
    ] = None,
    write_tiles: Annotated[
        bool,
        typer.Option(
            "--write-tiles",
            help="In place of a report: find tiles for the installed Triton and write them into "
            "the package's table. Takes an hour.",
        ),
    ] = False,
) -> None:
    """Compile the kernels without a GPU or TPU; exit 1 on a spill or too much memory."""
    if write_tiles and (json_path is not None or backend not in (None, Kernels.triton)):
        raise ArgumentError("--write-tiles goes with --arch alone: it makes no report")
    if json_path is not None:
        _check_writable(json_path)
    from xlnet_fast.kernels.report import command

    if write_tiles:
        raise typer.Exit(command.write_tiles(command.find_archs(arch or (), ("triton",))))
    backends = () if backend is None else (backend.value,)
    archs = command.find_archs(arch or (), backends)
    raise typer.Exit(command.run_report(json_path, archs, backends))


app.command("qualify")(qualify_command)
app.command("pretrain", cls=GroupedCommand)(pretrain_command)
app.command("finetune", cls=GroupedCommand)(finetune_command)
app.add_typer(train_app, name="train", help="Run pretrain or finetune as a job of SageMaker.")
app.command("evaluate", cls=GroupedCommand)(evaluate_command)
app.command("perplexity", cls=GroupedCommand)(perplexity_command)
app.command("generate", cls=GroupedCommand)(generate_command)
app.command("predict", cls=GroupedCommand)(predict_command)
app.command("serve", cls=GroupedCommand)(serve_command)
app.add_typer(deploy_app, name="deploy", help="Put a model on SageMaker, ask it, delete it.")
app.command("export", cls=GroupedCommand)(export_command)
app.command("convert", cls=GroupedCommand)(convert_command)


def _check_writable(path: Path) -> None:
    """Before minutes of compiling: can this file be written?"""
    folder = path.parent
    if path.is_dir():
        raise ArgumentError(f"--json {path} is a folder; give the name of a file")
    if not folder.is_dir():
        raise ArgumentError(f"--json {path}: the folder {folder} does not exist")
    try:  # whatever the permissions say: no file is made in /proc
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArgumentError(f"--json {path} cannot be written to ({error})") from None


def _benchmarks() -> ModuleType:
    """The module with ``run_bench``: installed with the package, or beside it in a checkout."""
    if importlib.util.find_spec("xlnet_fast.benchmarks") is not None:
        return importlib.import_module("xlnet_fast.benchmarks.run")
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "benchmarks" / "run.py").is_file():
        raise XLNetFastError(
            "the benchmarks are not part of this installation: reinstall the package, or run "
            "this in a checkout of the repository"
        )
    # First, because other packages leave a top-level `benchmarks` behind.
    sys.path.insert(0, str(checkout))
    return importlib.import_module("benchmarks.run")


def main() -> None:
    """Run the command line and exit with its code.

    Large tensors on a CPU lie in pages of 2 MiB where the system has them: PyTorch reads the
    variable when it makes its first tensor. A benchmark measures what a program gets by itself.
    """
    if sys.argv[1:2] != ["bench"]:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    app(prog_name="xlnet-fast")


if __name__ == "__main__":
    main()
