"""``xlnet-fast qualify``: its table, its exit codes, what it refuses."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import refused, run
from records import a_record, a_row

import xlnet_fast
from xlnet_fast.errors import ArgumentError
from xlnet_fast.ops.qualification import files
from xlnet_fast.ops.qualification.identity import identity_of
from xlnet_fast.ops.qualification.record import write
from xlnet_fast.qualifier import run as runs
from xlnet_fast.qualifier import table

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
    assert "Nothing is wrong on a CPU: 102 passed" in done.stdout
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
    (fault,) = (line for line in done.stdout.splitlines() if line.startswith("failed: "))
    where = "cpu, rel_attention memory float32 64, forward and 3 more"
    assert fault == f"failed: {where}: out is off by 1"
    assert "not taken by backend='auto'" in done.stdout
    failed = [row for row in json.loads(out.read_text())["rows"] if row["status"] == "failed"]
    assert {row["operands"] for row in failed} == {"memory"}
    assert not list(tmp_path.glob("cache/**/*.json"))


def test_faults_of_one_cause_are_one_line(places):
    places("wrong", "*", "*")
    done = run("qualify")
    assert done.exit_code == 1
    faults = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert [line.partition(",")[0] for line in faults] == ["failed: cpu", "failed: sdpa"]
    assert all(line.endswith(" more: out is off by 1") for line in faults)


def test_many_causes_are_not_all_printed():
    rows = [replace(a_row(status="failed", backend=f"b{n}"), reason=f"{n}") for n in range(20)]
    lines = table._reasons(rows)
    assert len(lines) == 13
    assert lines[-1] == "and 8 more; the record has them all"


def test_a_file_that_is_no_record_is_not_replaced(tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(notes)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (notes, link, pipe, Path("/dev/null")):
        assert "exists and is no record" in refused(run("qualify", "--out", path))
    assert notes.read_text() == "precious"
    for text in ("", '{"schema": 1, "id'):  # empty, damaged
        notes.write_text(text)
        assert run("qualify", "--out", link, "--backend", "sdpa").exit_code == 0
        assert link.is_symlink()
        assert json.loads(notes.read_text())["rows"]


def test_a_short_second_run_keeps_the_times(tmp_path, places):
    out = tmp_path / "record.json"
    assert run("qualify", "--out", out).exit_code == 0
    places("untimed", "*", "*")
    assert run("qualify", "--out", out, "--backend", "cpu").exit_code == 0
    rows = json.loads(out.read_text())["rows"]
    assert all(row["timings"] for row in rows)


def test_what_python_passes_is_as_good():
    record = xlnet_fast.qualify("cpu", backends="sdpa", out=str(files.cache_folder() / "a.json"))
    assert {row.backend for row in record.rows} == {"sdpa"}
    for minutes in ("2", None, float("nan")):
        with pytest.raises(ArgumentError, match=r"minutes is .*, expected a number above 0"):
            xlnet_fast.qualify("cpu", minutes=minutes)


def test_a_name_that_is_too_long(tmp_path):
    assert "cannot be written to" in refused(run("qualify", "--out", tmp_path / ("x" * 300)))


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
