"""`pretrain --help` and `finetune --help`: every option whole, in its group, common ones first."""

from __future__ import annotations

import dataclasses
import re

import pytest
from typer.testing import CliRunner

from xlnet_fast import cli
from xlnet_fast.train.finetune import FinetuneOptions
from xlnet_fast.train.pretraining import PretrainOptions
from xlnet_fast.train.shared.options import COMMON, GROUPS

COMMANDS = {"pretrain": PretrainOptions, "finetune": FinetuneOptions}
STYLES = re.compile(r"\x1b\[[\d;]*m")
of_each = pytest.mark.parametrize("command", COMMANDS)


def help_of(command: str, columns: int = 100) -> list[str]:
    """The lines that a terminal of that width shows."""
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    return STYLES.sub("", result.stdout).splitlines()


def name_of(field: dataclasses.Field[object]) -> str:
    """As the command line calls it; a switch that is on by the name that turns it off.

    One that is neither by both.
    """
    if field.type == "bool | None":
        return f"--[no-]{field.name}".replace("_", "-")
    return f"--{'no-' if field.default is True else ''}{field.name}".replace("_", "-")


@of_each
@pytest.mark.parametrize("columns", [80, 100])
def test_every_name_is_whole_and_on_a_line_of_its_own(command, columns):
    lines = help_of(command, columns)
    assert max(map(len, lines)) == columns
    assert not [line for line in lines if "…" in line]
    names = [match[1] for line in lines if (match := re.match(r"│ (--[][\w-]+) ", line))]
    fields = dataclasses.fields(COMMANDS[command])
    assert sorted(names) == sorted([*map(name_of, fields), "--config"])


@of_each
def test_most_options_take_one_line(command):
    rows = [line for line in help_of(command, 80) if line.startswith("│")]
    assert len(rows) < 1.2 * len(dataclasses.fields(COMMANDS[command]))


@of_each
def test_groups_stand_in_order_with_the_common_options_first(command):
    lines = help_of(command)
    titles = [match[1] for line in lines if (match := re.match("╭─ (.+?) ─", line))]
    assert titles[0] == COMMON
    assert titles == [group for group in GROUPS if group in titles]


@of_each
def test_every_field_has_a_group_and_a_phrase(command):
    fields = dataclasses.fields(COMMANDS[command])
    assert all(field.metadata["group"] in GROUPS and field.metadata["help"] for field in fields)


def test_what_to_train_on_comes_first():
    assert "--text" in next(line for line in help_of("pretrain") if line.startswith("│"))
    assert "--task" in next(line for line in help_of("finetune") if line.startswith("│"))


@of_each
def test_defaults_are_told(command):
    told = " ".join(line.strip("│ ") for line in help_of(command))
    for field in dataclasses.fields(COMMANDS[command]):
        if isinstance(field.default, (str, int, float)) and not isinstance(field.default, bool):
            phrase = re.escape(field.metadata["help"]).replace(r"\ ", r"\s+")
            assert re.search(rf"{phrase}\s+\({re.escape(str(field.default))}\)", told), field.name
    assert told.count("(required)") == {"pretrain": 1, "finetune": 4}[command]


def test_both_names_of_a_switch_are_understood_after_the_help_was_printed(monkeypatch):
    from xlnet_fast.train.pretraining import run

    given = []
    done = type("Result", (), {"stopped_by": None, "metrics": {}, "model": "here"})()
    monkeypatch.setattr(run, "pretrain", lambda options: given.append(options) or done)
    help_of("pretrain")
    flags = ["--output", "o", "--accelerate", "--no-fsdp", "--no-bi-data", "--no-split-sentences"]
    assert CliRunner().invoke(cli.app, ["pretrain", *flags]).exit_code == 0
    (options,) = given
    assert (options.accelerate, options.fsdp, options.bi_data) == (True, False, False)
    assert not options.split_sentences
    assert options.same_length is None


@pytest.mark.parametrize(("flag", "value"), [("--same-length", True), ("--no-same-length", False)])
def test_a_switch_may_be_left_to_the_model(monkeypatch, flag, value):
    """Not given it is neither on nor off."""
    from xlnet_fast.train.pretraining import run

    given = []
    done = type("Result", (), {"stopped_by": None, "metrics": {}, "model": "here"})()
    monkeypatch.setattr(run, "pretrain", lambda options: given.append(options) or done)
    words = ["pretrain", "--output", "o", "--arch", "transfo-xl", flag]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    assert given[0].same_length is value
