"""``xlnet-fast train``: training jobs on SageMaker, started, waited for and stopped."""

from __future__ import annotations

import typing
from typing import Annotated

import typer

from xlnet_fast.cli.options import GroupedCommand, command_of
from xlnet_fast.cli.sagemaker_contract import CHANNELS, INSTEAD, OPTIONS
from xlnet_fast.deploy.aws_clients import Aws
from xlnet_fast.deploy.training_job import stop, train
from xlnet_fast.deploy.training_options import GROUPS, TrainingOptions
from xlnet_fast.errors import ArgumentError

train_app = typer.Typer()


@train_app.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def run_training(options: TrainingOptions) -> None:
    """Start a job, and print where its model is."""
    options.check()
    check_against_contract(options)
    model = train(options)
    if model is not None:
        print(model)


def check_against_contract(options: TrainingOptions) -> None:
    """What the job itself would refuse, once a machine that costs money has started.

    Raises:
        ArgumentError: a hyperparameter is no option of the command, or there is no data.
    """
    known = typing.get_type_hints(OPTIONS[options.command])
    given = options.hyperparameters.keys() - {"command"}
    for name in sorted(given - known.keys()):
        raise ArgumentError(
            f"{options.command} has no option {name}: see xlnet-fast {options.command} --help"
        )
    channels = {name.upper() for name in options.channels}
    wanted = CHANNELS[options.command]
    # A file system may be there for the run's own folder.
    shared = {
        name.upper()
        for name, place in options.channels.items()
        if place.startswith(("fsx://", "efs://"))
    }
    unused = channels - shared - {name for names in wanted.values() for name in names}
    for name in sorted(unused):
        names = ", ".join(sorted({one.lower() for names in wanted.values() for one in names}))
        raise ArgumentError(
            f"{options.command} reads no channel {name.lower()}, expected some of {names}"
        )
    if options.command == "finetune" and "train" not in given:
        asked = {"train", *INSTEAD.get("train", ())} & given
        if not asked and not channels & set(wanted["train"]):
            raise ArgumentError(
                "finetune has no training data: give --channel train=PLACE, or the hyperparameter "
                "train"
            )


train_app.command("sagemaker", cls=GroupedCommand)(
    command_of(
        TrainingOptions,
        run_training,
        "Run pretrain or finetune as a training job of SageMaker, and wait for its model.",
        GROUPS,
    )
)


@train_app.command("stop")
def stop_job(
    name: Annotated[str, typer.Argument(metavar="JOB", help="The job's full name.")],
    region: Annotated[
        str | None, typer.Option(help="Of AWS; by default the profile's.", show_default=False)
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Of ~/.aws/config.", show_default=False)
    ] = None,
) -> None:
    """Stop a training job; it saves a checkpoint first."""
    stop(Aws(region, profile), name)
    print(f"{name} is being stopped")
