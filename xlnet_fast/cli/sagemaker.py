"""``python -m xlnet_fast.cli.sagemaker``: ``pretrain`` or ``finetune`` as a SageMaker training job.

The job's hyperparameters and channels become a command of ``xlnet-fast``, started once for each
GPU; its model goes to SageMaker's folder: docs/train.md. Arguments of this command line are
ignored, because SageMaker's toolkit repeats every hyperparameter there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from xlnet_fast.cli import BAD_INPUT, app
from xlnet_fast.cli.sagemaker_contract import BASE, Job, hosts_of, job_of
from xlnet_fast.cli.sagemaker_files import completed
from xlnet_fast.errors import ArgumentError, XLNetFastError

FAILURE_CHARACTERS = 1024  # of the file; SageMaker shows no more
# After SIGTERM torchrun waits 30 s unless told, and SageMaker 120 s: a checkpoint may need more.
SHUTDOWN_TIMEOUT_S = 100
MASTER_PORT = "29500"
_ERROR = "error: "
_RESULTS = ("metrics.json", "predictions_*.jsonl", "*.png")


def main() -> None:
    """Run the job that the environment describes, and exit with the command's code."""
    sys.exit(run(os.environ))


def run(environment: Mapping[str, str]) -> int:
    """Run the job, here or by ``torchrun``, which then takes this process' place.

    Returns the exit code: that of the command, 2 where the job cannot be run at all. A failure's
    sentence is on stderr and in SageMaker's file of failures.
    """
    launched = "RANK" in environment
    if not launched:
        _failure_file(environment).unlink(missing_ok=True)
    try:
        environment = completed(environment, BASE)
        job = job_of(environment)
        launcher = None if launched else launcher_of(environment)
        if launcher is not None:
            _become(launcher, environment)
        main_process = environment.get("RANK", "0") == "0"
        if main_process:
            print("\n".join([*job.notes, f"xlnet-fast {' '.join(job.arguments)}"]), flush=True)
        code, sentence = _command(job.arguments)
        if code == 0 and main_process:
            deliver(job, environment)
    except XLNetFastError as error:
        code, sentence = BAD_INPUT, str(error)
        print(f"{_ERROR}{sentence}", file=sys.stderr)
    except Exception as error:
        _report(f"{type(error).__name__}: {error}", environment)
        raise
    if sentence:
        _report(sentence, environment)
    return code


def launcher_of(environment: Mapping[str, str]) -> list[str] | None:
    """The command line that starts this module once for each GPU, None if one process is all.

    Raises:
        ArgumentError: SageMaker's variables contradict each other.
    """
    hosts, gpus = hosts_of(environment), environment.get("SM_NUM_GPUS", "0")
    if not gpus.isdecimal():
        raise ArgumentError(f"SM_NUM_GPUS is {gpus!r}, expected a number")
    here = environment.get("SM_CURRENT_HOST", hosts[0])
    if here not in hosts:
        raise ArgumentError(f"SM_CURRENT_HOST is {here!r}, which is not in SM_HOSTS: {hosts}")
    processes = max(1, int(gpus))  # of a host; without a GPU its cores work for one process
    if len(hosts) * processes == 1:
        return None
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        f"--nnodes={len(hosts)}",
        f"--node-rank={hosts.index(here)}",
        f"--nproc-per-node={processes}",
        f"--master-addr={hosts[0] if len(hosts) > 1 else '127.0.0.1'}",
        f"--master-port={environment.get('MASTER_PORT', MASTER_PORT)}",
        *("-m", "xlnet_fast.cli.sagemaker"),
    ]


def _become(launcher: list[str], environment: Mapping[str, str]) -> None:
    """Go on as torchrun under the same process id, so that SageMaker's SIGTERM reaches it."""
    timeout = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_TIMEOUT_S)}
    print(" ".join(launcher), flush=True)
    os.execve(launcher[0], launcher, {**timeout, **environment})


def _command(arguments: list[str]) -> tuple[int, str]:
    """Exit code of ``xlnet-fast``, and the sentence of its error if there was one."""
    overheard = _Overheard(sys.stderr)
    with contextlib.redirect_stderr(overheard):
        code = app(arguments, prog_name="xlnet-fast", standalone_mode=False)
    return code or 0, overheard.sentence


class _Overheard:
    """Standard error, of which the command's sentence is remembered."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.sentence = ""

    def write(self, text: str) -> int:
        """As the stream's."""
        if text.startswith(_ERROR):
            self.sentence = text.removeprefix(_ERROR).strip()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's, such as whether it is a terminal."""
        return getattr(self._stream, name)


def deliver(job: Job, environment: Mapping[str, str]) -> None:
    """Copy model, metrics, predictions and plots of a finished run to SageMaker's folders.

    The model's files arrive under another name and are moved when all are there, so that a kill
    leaves no half of one.

    Raises:
        XLNetFastError: the run left no model, or a file cannot be written.
    """
    model, results = job.output / "model", environment.get("SM_OUTPUT_DATA_DIR")
    incoming = job.model_folder / ".incoming"
    if not model.is_dir():
        raise XLNetFastError(f"the run has ended and left no model in {model}")
    try:
        shutil.rmtree(incoming, ignore_errors=True)
        shutil.copytree(model, incoming)
        for path in sorted(incoming.iterdir()):
            os.replace(path, job.model_folder / path.name)
        incoming.rmdir()
        if results is not None and Path(results).resolve() != job.output.resolve():
            Path(results).mkdir(parents=True, exist_ok=True)
            for pattern in _RESULTS:
                for path in job.output.glob(pattern):
                    shutil.copy2(path, results)
    except OSError as error:
        shutil.rmtree(incoming, ignore_errors=True)
        raise XLNetFastError(
            f"the model is in {model}, but could not be copied to {job.model_folder}: {error}"
        ) from error
    print(f"model: {job.model_folder}", flush=True)


def _failure_file(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("SM_OUTPUT_DIR", BASE / "output")) / "failure"


def _report(sentence: str, environment: Mapping[str, str]) -> None:
    """Write why the job failed; of several processes the first one knows the cause."""
    file = _failure_file(environment)
    if not file.parent.is_dir():
        return
    try:
        with open(file, "x", encoding="utf-8") as failure:
            failure.write(sentence[:FAILURE_CHARACTERS])
    except FileExistsError:
        return
    except OSError as error:
        print(f"{file} cannot be written: {error.strerror}", file=sys.stderr)


if __name__ == "__main__":
    main()
