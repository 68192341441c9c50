"""``xlnet-fast deploy``: endpoints on SageMaker, made, asked, listed and deleted."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from xlnet_fast.cli.options import GroupedCommand, command_of
from xlnet_fast.deploy import found, invocation
from xlnet_fast.deploy.aws_clients import Aws
from xlnet_fast.deploy.deployment import GROUPS, LONGEST_NAME, DeployOptions, check_name
from xlnet_fast.deploy.endpoint import deploy
from xlnet_fast.deploy.invocation import EVENTS, JSON, Question
from xlnet_fast.deploy.removal import items_of, remove
from xlnet_fast.deploy.s3_objects import Place
from xlnet_fast.errors import ArgumentError
from xlnet_fast.files import write_whole

_Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the deployment.")]
_Region = Annotated[
    str | None, typer.Option(help="Of AWS; by default the profile's.", show_default=False)
]
_Profile = Annotated[str | None, typer.Option(help="Of ~/.aws/config.", show_default=False)]

deploy_app = typer.Typer()


@deploy_app.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def run_deploy(options: DeployOptions) -> None:
    """Deploy, and print the endpoint's first answer."""
    # What was made is taken back then too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    answer = deploy(options)
    if answer is not None:
        print(answer)


deploy_app.command("sagemaker", cls=GroupedCommand)(
    command_of(
        DeployOptions,
        run_deploy,
        "Put a model on a SageMaker endpoint, or another one on it; a failure is taken back.",
        GROUPS,
    )
)


@deploy_app.command()
def invoke(
    name: _Name,
    input: Annotated[
        Path,
        typer.Option(
            help="JSON, JSON lines, CSV or text; -: standard input, JSON.",
            metavar="FILE",
            allow_dash=True,
        ),
    ],
    content_type: Annotated[
        str | None, typer.Option(help="Of the input; by default its suffix'.", show_default=False)
    ] = None,
    accept: Annotated[
        str | None,
        typer.Option(help="Type of the answer; JSON, or events to stream.", show_default=False),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the answer as it is written.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Write the answer to a file.", metavar="FILE", show_default=False),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Longest wait for an asynchronous answer.")] = 15.0,
    region: _Region = None,
    profile: _Profile = None,
) -> None:
    """Ask an endpoint, at once, as a stream, or by way of S3 where it is asynchronous."""
    question = _question(input, content_type, accept or (EVENTS if stream else JSON))
    if stream and output is not None:
        raise ArgumentError("--stream prints the answer, and --output writes it: give one of them")
    aws = Aws(region, profile)
    later = invocation.async_output_of(aws, name)
    if stream and later is not None:
        raise ArgumentError(f"the endpoint {name} is asynchronous and cannot stream")
    if stream:
        for part in invocation.ask_in_parts(aws, name, question):
            sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
        return
    if later is not None:
        answer = invocation.ask_later(aws, name, question, Place.of(later), minutes)
    else:
        answer = invocation.ask(aws, name, question, None)
    if output is None:
        sys.stdout.buffer.write(answer if answer.endswith(b"\n") else answer + b"\n")
        return
    try:
        write_whole(output, answer)
    except OSError as error:
        raise ArgumentError(f"{output} cannot be written: {error.strerror}") from error


def _question(input: Path, content_type: str | None, accept: str) -> Question:
    if str(input) != "-":
        return Question.of(input, content_type, accept)
    body = sys.stdin.buffer.read()
    if not body.strip():
        raise ArgumentError("the standard input is empty")
    return Question(body, content_type or JSON, accept)


@deploy_app.command("list")
def list_deployments(region: _Region = None, profile: _Profile = None) -> None:
    """List the endpoints that xlnet-fast has made: they cost money as long as they are there."""
    aws = Aws(region, profile)
    count = 0
    for name, _ in found.all_of(aws, "endpoint"):
        print(f"{name}\t{found.status(aws, name)}")
        count += 1
    print(f"{count} endpoints of xlnet-fast in {aws.region}", file=sys.stderr)


@deploy_app.command()
def delete(
    name: _Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Leave the archives in S3.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be deleted.")
    ] = False,
    region: _Region = None,
    profile: _Profile = None,
) -> None:
    """Delete a deployment: scaling, endpoint, configs, models and archives that bear its tags."""
    check_name(name, LONGEST_NAME)
    aws = Aws(region, profile)
    items = items_of(aws, name, keep_archives)
    print("\n".join([f"Of the deployment {name} in {aws.region}:", *(one.what for one in items)]))
    if dry_run:
        print("Nothing was deleted: --dry-run.")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise ArgumentError("nobody can be asked here whether to delete these: give --yes")
        typer.confirm("Delete all of these?", abort=True)
    remove(items)
