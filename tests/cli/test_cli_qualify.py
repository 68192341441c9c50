"""``xlnet-fast qualify``: its table, its exit codes, what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from command_line import refused, run
from records import a_record, a_row

from xlnet_fast.ops.qualification import files
from xlnet_fast.ops.qualification.identity import identity_of
from xlnet_fast.ops.qualification.record import write
from xlnet_fast.qualifier import run as runs

FAKE = str(Path(__file__).resolve().parents[1] / "qualifier" / "_fake_child.py")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A cache and locks of the test's own, and a child that does nothing."""
    monkeypatch.setenv("XLNET_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runs.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    def child(*arguments: str) -> None:
        monkeypatch.setattr(runs, "CHILD", (sys.executable, FAKE, *arguments))

    child("nothing", "", "")
    return child


def test_a_table_and_one_sentence(tmp_path):
    done = run("qualify")
    assert done.exit_code == 0, done.output
    (record,) = files.cache_folder().glob("*.json")
    assert "Qualification of a CPU" in done.stdout
    assert "two_stream_attention permuted" in done.stdout
    assert "2.00" in done.stdout  # over the plain path
    assert "4.00" in done.stdout  # over Hugging Face
    assert "…" not in done.stdout
    assert "Nothing is wrong on a CPU: 94 passed" in done.stdout
    assert f"record: {record}" in done.stdout
    groups = done.stderr.splitlines()
    assert len(groups) <= 40
    assert groups[0].startswith("cpu: rel_attention")


def test_json_is_the_record():
    done = run("qualify", "--json", "--backend", "sdpa")
    assert done.exit_code == 0, done.output
    (record,) = files.cache_folder().glob("*.json")
    assert json.loads(done.stdout) == json.loads(record.read_text())


def test_a_record_is_shown_and_whether_it_counts_here(tmp_path):
    path = tmp_path / "here.json"
    own = identity_of(torch.device("cpu", 0))
    write(a_record([a_row(backend="cpu")], own), path)
    done = run("qualify", "--show", path)
    assert done.exit_code == 0, done.output
    assert f"Qualification of {own.name}" in done.stdout
    assert "it counts here" in done.stdout
    write(a_record([a_row(backend="cpu")], own, torch="1.0"), path)
    assert "stale here: torch was '1.0' and is" in run("qualify", "--show", path).stdout
    write(a_record(), path)
    assert "stale here: PyTorch sees no GPU" in run("qualify", "--show", path).stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (a_record().to_json()[:-30], "is no JSON"),
        (a_record().to_json().replace("300.0", "900.0"), "was edited: its checksum does not fit"),
        ('{"schema": 99}', "has schema 99, and this version reads 1"),
        (None, "cannot be read"),
    ],
)
def test_a_record_that_cannot_be_shown(tmp_path, text, message):
    path = tmp_path / "record.json"
    if text is not None:
        path.write_text(text)
    assert message in refused(run("qualify", "--show", path))
    assert text is None or path.read_text() == text


def test_a_failure_ends_with_1_and_is_in_the_record(tmp_path, places):
    places("wrong", "cpu", "memory")
    out = tmp_path / "record.json"
    done = run("qualify", "--device", "cpu", "--out", out)
    assert done.exit_code == 1, done.output
    assert "Not everything is right on a CPU" in done.stdout
    assert "failed: cpu, rel_attention memory float32 64, forward: out is off by 1" in done.stdout
    assert "not taken by backend='auto'" in done.stdout
    failed = [row for row in json.loads(out.read_text())["rows"] if row["status"] == "failed"]
    assert {row["operands"] for row in failed} == {"memory"}
    assert not list(tmp_path.glob("cache/**/*.json"))


def test_many_faults_are_not_all_printed(places):
    places("wrong", "*", "*")
    done = run("qualify")
    assert done.exit_code == 1
    assert done.stdout.count("failed: ") == 12
    assert "more; the record has them all" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "cuda:7"), "'cuda:7' is not there: PyTorch sees no GPU"),
        (("--device", "cuda"), "'cuda' is not there: PyTorch sees no GPU"),
        (("--device", "tpu"), "'tpu', expected cpu, cuda or cuda:N"),
        (("--minutes", "0"), "minutes is 0, expected a number above 0"),
        (("--minutes", "soon"), "invalid value for '--minutes'"),
        (("--backend", "triton"), "unknown backend 'triton' on cpu"),
    ],
)
def test_bad_input_is_one_sentence_and_the_record_stays(arguments, words):
    run("qualify")
    (record,) = files.cache_folder().glob("*.json")
    text = record.read_text()
    assert words in refused(run("qualify", *arguments))
    assert record.read_text() == text


def test_a_cache_that_is_a_file_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XLNET_FAST_CACHE", str(tmp_path / "file"))
    assert "cannot be written to" in refused(run("qualify"))


def test_a_device_on_which_nothing_starts_is_one_sentence(monkeypatch):
    monkeypatch.setattr(runs, "CHILD", (sys.executable, "-c", "raise SystemExit('no driver')"))
    assert "no process could start on cpu: ended with exit code 1: no driver" in refused(
        run("qualify")
    )
