"""What SageMaker tells a training job, as a command line of ``xlnet-fast``.

Hyperparameters become options, data channels become files, and a folder that outlives the machine
becomes that of the run.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune import FinetuneOptions
from xlnet_fast.train.finetune.options import CONLL_SUFFIXES
from xlnet_fast.train.pretraining import PretrainOptions
from xlnet_fast.train.shared.options import is_switch

BASE = Path("/opt/ml")  # where SageMaker mounts everything, unless a variable says otherwise
CHECKPOINTS = "XLNET_FAST_SM_CHECKPOINTS"  # names another folder than BASE / "checkpoints"
DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")

OPTIONS: dict[str, type] = {"pretrain": PretrainOptions, "finetune": FinetuneOptions}
CHANNELS = {
    "pretrain": {
        "text": ("TRAIN", "TRAINING", "TEXT"),
        "eval_text": ("EVAL", "VALIDATION", "TEST"),
        "model": ("MODEL",),
        "tokenizer": ("TOKENIZER",),
    },
    "finetune": {
        "train": ("TRAIN", "TRAINING"),
        "eval": ("EVAL", "VALIDATION"),
        "test": ("TEST",),
        "model": ("MODEL",),
        "tokenizer": ("TOKENIZER",),
    },
}
# Hyperparameters that take the place of another one, and so of its channel.
INSTEAD = {"text": ("dataset",)}


@dataclass(frozen=True)
class Job:
    """What to run.

    Attributes:
        arguments: command line of ``xlnet-fast``.
        output: folder of the run.
        model_folder: where the model is to go in the end.
        notes: sentences for the log.
    """

    arguments: list[str]
    output: Path
    model_folder: Path
    notes: list[str]


def job_of(environment: Mapping[str, str]) -> Job:
    """What the variables and files of SageMaker ask for.

    Raises:
        ArgumentError: something is missing, contradictory or no JSON.
    """
    given = _hyperparameters(environment)
    command = given.pop("command", "pretrain")
    if command not in OPTIONS:
        raise ArgumentError(
            f"the hyperparameter command is {command!r}, expected one of: {', '.join(OPTIONS)}"
        )
    values, notes = _with_channels(command, given, environment)
    values["output"] = _run_folder(given, environment)
    if not values.get("overwrite"):
        values.setdefault("resume", True)
    model_folder = Path(environment.get("SM_MODEL_DIR", BASE / "model"))
    if "SM_MODEL_DIR" not in environment and not model_folder.is_dir():
        raise ArgumentError(f"SM_MODEL_DIR is not set and {model_folder} does not exist")
    arguments = [command, *_arguments(OPTIONS[command], values)]
    return Job(arguments, Path(values["output"]), model_folder, notes)


def _hyperparameters(environment: Mapping[str, str]) -> dict[str, Any]:
    """By name, with underscores; without SageMaker's own, and without those that are null."""
    name, text = "SM_HPS", environment.get("SM_HPS")
    if text is None:
        file = Path(environment.get("SM_INPUT_CONFIG_DIR", BASE / "input" / "config"))
        name = str(file / "hyperparameters.json")
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise ArgumentError(
                f"there are no hyperparameters: SM_HPS is not set, and {name} cannot be read: "
                f"{error.strerror}"
            ) from error
    values = {
        key.replace("-", "_"): _decoded(value)
        for key, value in parsed(name, text, dict).items()
        if not key.startswith(("sagemaker_", "_tuning_objective_metric"))
    }
    return {key: value for key, value in values.items() if value is not None}


def parsed(name: str, text: str, wanted: type) -> Any:
    """The JSON value of a variable or file.

    Raises:
        ArgumentError: it is none, or of another type than ``wanted``.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ArgumentError(f"{name} is no valid JSON: {error}") from error
    if not isinstance(value, wanted):
        raise ArgumentError(f"{name} is {text!r}, expected a JSON {wanted.__name__}")
    return value


def _decoded(value: Any) -> Any:
    """SageMaker's SDK writes values as JSON, other clients as plain text or Python's words."""
    if not isinstance(value, str):
        return value
    try:
        decoded = json.loads(value)
    except ValueError:
        return {"True": True, "False": False}.get(value, value)
    number = isinstance(decoded, (int, float)) and not isinstance(decoded, bool)
    return value if number else decoded  # 1e5 as it was written


def _with_channels(
    command: str, given: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """The hyperparameters, files of the channels for what they leave open, and notes on both."""
    prefix = "SM_CHANNEL_"
    folders = {
        name.removeprefix(prefix): Path(folder)
        for name, folder in environment.items()
        if name.startswith(prefix)
    }
    values = dict(given)
    for option, names in CHANNELS[command].items():
        found = {name: folders.pop(name) for name in names if name in folders}
        asked = [name for name in (option, *INSTEAD.get(option, ())) if name in given]
        for name in asked:
            values[name] = _inside(given[name], list(found.values()))
        if not asked and found:
            of_words = given.get("task") == "token-classification"
            values[option] = _of_channels(OPTIONS[command], option, found, of_words)
    if command == "finetune" and "train" not in values:
        raise ArgumentError(
            "finetune has no training data: give a channel named train with one data file, or the "
            "hyperparameter train"
        )
    notes = [f"{command} does not use the channel {name}" for name in sorted(folders)]
    if command == "pretrain" and not {"text", "dataset"} & values.keys():
        notes.append("there is no channel named train or text: pretraining on the built-in text")
    return values, notes


def _inside(value: Any, folders: list[Path]) -> Any:
    """A name of something in a channel, as its path; any other value as it is."""
    if isinstance(value, list):
        return [_inside(one, folders) for one in value]
    found = (str(folder / str(value)) for folder in folders if (folder / str(value)).exists())
    return next(found, value)


def _of_channels(options: type, option: str, found: dict[str, Path], of_words: bool) -> Any:
    if _repeats(options, option):
        return [str(folder) for folder in found.values()]
    if len(found) > 1:
        raise ArgumentError(f"the channels {' and '.join(found)} mean the same; give one of them")
    (folder,) = found.values()
    return str(folder) if option in ("model", "tokenizer") else _data_file(folder, of_words)


def _data_file(folder: Path, of_words: bool) -> str:
    """The single data file of a channel, or the channel if it is a data set of ``datasets``.

    Args:
        of_words: it may be a CoNLL file, where there is no other.
    """
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return str(folder)
    files = sorted(folder.glob("[!.]*"))
    names = [path.name for path in files if path.suffix in DATA_SUFFIXES]
    if of_words and not names:
        names = [path.name for path in files if path.suffix in CONLL_SUFFIXES]
    if len(names) == 1:
        return str(folder / names[0])
    what = f"holds {', '.join(names)}" if names else f"holds no {', '.join(DATA_SUFFIXES)} file"
    raise ArgumentError(
        f"the channel {folder} {what}; expected one data file, or its name as a hyperparameter"
    )


def _repeats(options: type, name: str) -> bool:
    hint = typing.get_type_hints(options).get(name)
    return typing.get_origin(hint) is tuple


def _run_folder(given: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    if "output" in given:
        return str(given["output"])
    hosts = hosts_of(environment)
    if len(hosts) > 1:
        raise ArgumentError(
            f"a job on {len(hosts)} hosts needs the hyperparameter output: a folder on a disk that "
            "all of them mount, because each has to read the checkpoint that it resumes from"
        )
    checkpoints = BASE / "checkpoints"  # exists where the job has a checkpoint_s3_uri
    if CHECKPOINTS in environment:
        return environment[CHECKPOINTS]
    if checkpoints.is_dir():
        return str(checkpoints)
    if "SM_OUTPUT_DATA_DIR" in environment:
        return environment["SM_OUTPUT_DATA_DIR"]
    raise ArgumentError(
        f"there is no folder for the run: give the hyperparameter output, a checkpoint_s3_uri "
        f"(which makes {checkpoints}), or set SM_OUTPUT_DATA_DIR"
    )


def _arguments(options: type, values: Mapping[str, Any]) -> Iterator[str]:
    """The values as options; what is none is left to the command line to refuse."""
    hints = typing.get_type_hints(options)
    for name, value in values.items():
        dashed = name.replace("_", "-")
        if isinstance(value, (list, dict)) and name in hints and not _repeats(options, name):
            raise ArgumentError(f"the hyperparameter {name} is {value!r}, expected a single value")
        if isinstance(value, bool) and is_switch(hints.get(name)):
            yield f"--{dashed}" if value else f"--no-{dashed}"
        elif isinstance(value, dict):
            for key, one in value.items():
                names = ",".join(map(str, one)) if isinstance(one, list) else one
                yield f"--{dashed}={key}={names}"
        else:
            several = value if isinstance(value, list) else [value]
            yield from (f"--{dashed}={one}" for one in several)


def hosts_of(environment: Mapping[str, str]) -> list[str]:
    """Names of the job's machines; one nameless one where SageMaker tells of none.

    Raises:
        ArgumentError: ``SM_HOSTS`` is no list of names.
    """
    return parsed("SM_HOSTS", environment.get("SM_HOSTS", '[""]'), list) or [""]
