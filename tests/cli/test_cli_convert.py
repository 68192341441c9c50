"""`xlnet-fast convert`: options, what it prints, and what it refuses in one sentence."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from command_line import refused, run
from original_transfo_xl import Original, weights_of
from typer.testing import CliRunner

from xlnet_fast import cli
from xlnet_fast.cli import convert as module
from xlnet_fast.cli.convert import GROUPS, ConvertOptions
from xlnet_fast.models.transfo_xl import convert as package

STYLES = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture
def given(monkeypatch):
    """The arguments that a command line came to, without a conversion."""
    found: list[tuple] = []

    def convert(*places, **options):
        found.append((*map(str, places), options))
        return package.Converted(places[1], [("model", "m")], ["a note"])

    monkeypatch.setattr(package, "convert", convert)
    return found


def test_the_sources_are_those_of_the_package():
    assert package.SOURCES == module.SOURCES


def test_flags_a_yaml_file_and_json(given, tmp_path):
    config, told = tmp_path / "run.yaml", tmp_path / "args.json"
    config.write_text("from: nvidia\nsource: a\noutput: b\nsame_length: false\nmem_len: 7")
    told.write_text(json.dumps({"mem_len": 3, "pre_lnorm": True, "lr": 0.1}))
    result = run(
        "convert", "--config", config, "--args", told, "--mem-len", "9", "--cutoffs", "4,8",
        "--overwrite", "--vocab", "words.txt",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    settings = {
        "mem_len": 9, "pre_lnorm": True, "lr": 0.1, "same_length": False, "cutoffs": [4, 8],
    }  # fmt: skip
    options = {"given": settings, "vocabulary": module.Path("words.txt"), "overwrite": True}
    assert given == [("a", "b", "nvidia", options)]
    assert "note: a note" in result.stdout
    assert result.stdout.rstrip().endswith("written: b")
    for flag, value in (("--pre-lnorm", True), ("--no-pre-lnorm", False)):
        assert run("convert", "--from", "hf", "a", "b", flag).exit_code == 0
        assert given[-1][3]["given"] == {"pre_lnorm": value}


def test_a_conversion_and_its_table(tmp_path):
    original = Original(div_val=2, clamp_len=4)
    weights = weights_of(original, torch.float32)
    torch.save({"state_dict": weights, "args": original.args()}, tmp_path / "export.pt")
    result = run("convert", "--from", "kimiyoung", tmp_path / "export.pt", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for words in ("cluster_weight, cluster_bias", "starts empty", "cutoffs 5, 11", "clamp_len 4"):
        assert words in result.stdout, words
    assert (tmp_path / "out" / "model.safetensors").is_file()
    again = run("convert", "--from", "kimiyoung", tmp_path / "export.pt", tmp_path / "out")
    assert "add --overwrite to replace it" in refused(again)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "in was not given, expected two names"),
        (["a"], "out was not given"),
        (["a", "b"], "from must be one of hf, kimiyoung, nvidia, none was given"),
        (["a", "b", "--from", "fairseq"], "got 'fairseq'"),
        (["a", "b", "--from", "hf", "--mem-len", "-1"], "mem_len is -1"),
        (["a", "b", "--from", "hf", "--cutoffs", "a,b"], "expected whole numbers such as"),
        (["a", "b", "--from", "hf", "--args", "none.json"], "none.json cannot be read"),
        (["a", "b", "--from", "hf"], "a does not exist, expected a folder"),
        (["a", "b", "c"], "unexpected extra argument"),
    ],
    ids=str,
)
def test_wrong_input_is_told_in_a_sentence(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(run("convert", *arguments)).lower()
    assert list(tmp_path.iterdir()) == []


def test_the_help_has_every_option_whole_and_in_order():
    result = CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, ["convert", "--help"])
    lines = STYLES.sub("", result.stdout).splitlines()
    assert not [line for line in lines if "…" in line]
    names = [match[1] for line in lines if (match := re.match(r"│ (--[][\w-]+) ", line))]
    places = ("source", "output")
    fields = [one for one in dataclasses.fields(ConvertOptions) if one.name not in places]
    either = ("same_length", "pre_lnorm")  # neither is the default
    told = [f"--{'[no-]' if f.name in either else ''}{f.name.rstrip('_')}" for f in fields]
    told = [name.replace("_", "-") for name in told]
    assert sorted(names) == sorted([*told, "--config"])
    titles = [match[1] for line in lines if (match := re.match("╭─ (.+?) ─", line))]
    assert titles == ["Arguments", *GROUPS]
