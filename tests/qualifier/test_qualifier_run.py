"""The parent: whatever a child does, the others' verdicts and the former record are safe."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import xlnet_fast
from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.ops.qualification import files
from xlnet_fast.ops.qualification.record import Record, read
from xlnet_fast.qualifier import run as runs
from xlnet_fast.qualifier.run import run, with_former

FAKE = str(Path(__file__).with_name("_fake_child.py"))
CLASSES = ("plain", "padded")


def few(task) -> bool:
    """Two classes of one op in one dtype."""
    return task.op == "rel_attention" and task.operands in CLASSES and task.dtype == "float32"


def command(*arguments: object) -> list[str]:
    return [sys.executable, FAKE, *map(str, arguments)]


def qualify(*arguments: object, **options):
    """All backends of the CPU, by fake children."""
    return run("cpu", command=command(*arguments), wanted=few, **options)


def statuses(rows) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.backend, set()).add(row.status)
    return found


def test_a_record_of_what_passed_lies_in_the_cache():
    steps = []
    outcome = qualify("nothing", "", "", progress=steps.append)
    assert statuses(outcome.rows) == {"cpu": {"passed"}, "sdpa": {"passed"}}
    assert len(outcome.rows) == 2 * len(CLASSES) * 2
    assert all(row.speedup("baseline") == 2.0 for row in outcome.rows)
    assert outcome.path.parent == files.cache_folder()
    assert read(outcome.path) == outcome.record
    assert not outcome.bad
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].total == 2 * len(outcome.rows)


@pytest.mark.parametrize(
    ("what", "status", "reason"),
    [
        ("abort", "crashed", "died of SIGABRT, in rel_attention padded forward"),
        ("exit", "crashed", "ended with exit code 3: no such symbol, in rel_attention padded"),
        ("garbage", "crashed", "sent what is no message: 'Segmentation fault"),
        ("broken", "crashed", "broke its device: an illegal memory access"),
        ("infinite", "crashed", "sent what is no message"),
        ("unasked", "crashed", "sent a verdict that nobody asked for"),
        ("hang", "hung", "said nothing for 1 seconds, in rel_attention padded forward"),
    ],
)
def test_a_child_that_fails_disqualifies_its_backend_and_nothing_else(what, status, reason):
    outcome = qualify(what, "cpu", "padded", silence_s=1.0)
    assert statuses(outcome.rows) == {"cpu": {status}, "sdpa": {"passed"}}
    for row in outcome.bad:
        assert row.reason.startswith(reason)
        assert row.timings == ()
    assert read(outcome.path) == outcome.record


def test_wrong_numbers_in_one_class_are_that_class_s_fault_alone():
    outcome = qualify("wrong", "cpu", "padded")
    assert {(row.backend, row.operands) for row in outcome.bad} == {("cpu", "padded")}
    assert {row.reason for row in outcome.bad} == {"out is off by 1"}


def test_a_crash_leaves_what_was_found_wrong_before():
    outcome = qualify("wrong-then-abort", "cpu", "plain", backends=["cpu"])
    assert [row.status for row in outcome.rows] == ["failed", "crashed", "crashed", "crashed"]


def test_what_the_time_did_not_reach_is_not_run():
    began_s = time.monotonic()
    outcome = qualify("slow", "*", "*", minutes=0.5 / 60, backends=["cpu"])
    assert time.monotonic() - began_s < 10
    found = [row.status for row in outcome.rows]
    assert set(found) <= {"passed", "not_run"}
    late = [row for row in outcome.rows if row.status == "not_run"]
    assert {row.reason for row in late} <= {"the time was over before"}


def test_a_class_in_which_the_time_ends_is_not_run(monkeypatch):
    monkeypatch.setattr(runs, "GRACE_S", 0.0)
    outcome = qualify("hang", "*", "padded", minutes=1.5 / 60, backends=["cpu"])
    by_class = {row.operands: row.status for row in outcome.rows}
    assert by_class == {"plain": "passed", "padded": "not_run"}


def test_no_child_that_starts_is_an_error_and_no_record(tmp_path):
    with pytest.raises(
        XLNetFastError, match=r"no process could start on cpu: ended with exit code 7"
    ):
        run("cpu", command=[sys.executable, "-c", "raise SystemExit(7)"], wanted=few)
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_children_compile_side_by_side_before_the_checks(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_COMPILED", ("sdpa",))
    monkeypatch.setattr(runs.os, "cpu_count", lambda: 2)
    notes = tmp_path / "notes"
    outcome = run("cpu", command=command("slow", "*", "*", notes), wanted=few, backends=["sdpa"])
    assert statuses(outcome.rows) == {"sdpa": {"passed"}}
    lines = [line.split() for line in notes.read_text().splitlines()]
    assert [line[0] for line in lines] == ["begin", "begin", "end", "end", "begin", "end"]


# --- the former record ----------------------------------------------------------------------------


@pytest.fixture
def former() -> tuple[Path, str]:
    """A record and its text."""
    outcome = qualify("nothing", "", "")
    return outcome.path, outcome.path.read_text()


@pytest.fixture
def heeds_interrupts():
    """A shell starts what runs in its background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
def test_ctrl_c_ends_the_child_and_leaves_the_former_record(former, tmp_path):
    path, text = former
    notes = tmp_path / "notes"

    def interrupt() -> None:
        while not notes.exists() or not notes.read_text().endswith("\n"):  # the child has begun
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    user = threading.Thread(target=interrupt, daemon=True)
    user.start()
    with pytest.raises(KeyboardInterrupt):
        qualify("hang", "*", "*", notes)
    user.join()
    pid = int(notes.read_text().split()[1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert path.read_text() == text
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:7"}, "device 'cuda:7' is not there: PyTorch sees no GPU"),
        ({"device": "cuda"}, "device 'cuda' is not there: PyTorch sees no GPU"),
        ({"device": "tpu"}, "device is 'tpu', expected cpu, cuda or cuda:N"),
        ({"device": "meta"}, "device is 'meta', expected cpu, cuda or cuda:N"),
        ({"minutes": 0}, "minutes is 0, expected a number above 0"),
        ({"minutes": -1}, "minutes is -1, expected a number above 0"),
        ({"minutes": float("nan")}, "minutes is nan, expected a number above 0"),
        ({"backends": ["triton"]}, "unknown backend 'triton' on cpu, expected one of: cpu, sdpa"),
        ({"backends": []}, "no backend is given, expected some of: cpu, sdpa"),
    ],
)
def test_bad_input_is_told_and_the_former_record_still_there(former, options, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    path, text = former
    with pytest.raises(ArgumentError) as error:
        xlnet_fast.qualify(**{"device": "cpu", **options})
    assert str(error.value) == message
    assert path.read_text() == text


@pytest.mark.parametrize("out", ["folder", "file/record.json"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(former, tmp_path, out):
    path, text = former
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"is a folder|cannot be written to"):
        qualify("nothing", "", "", out=tmp_path / out, progress=pytest.fail)
    assert path.read_text() == text


def test_a_cache_that_is_a_file_is_told_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setenv("XLNET_FAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        ArgumentError, match=r"cannot be written to .*; --out FILE writes elsewhere"
    ):
        qualify("nothing", "", "", progress=pytest.fail)
    assert (tmp_path / "file").read_text() == "kept"
    out = tmp_path / "image" / "record.json"  # whose folder may be made
    assert read(qualify("nothing", "", "", out=out).path).rows


def test_verdicts_that_a_run_does_not_reach_stay(former):
    path, _ = former
    before = read(path)
    outcome = qualify("wrong", "sdpa", "plain", backends=["sdpa"])
    assert {row.backend for row in outcome.rows} == {"sdpa"}
    after = {(*row.key, row.backend): row for row in read(path).rows}
    assert {row.backend for row in after.values()} == {"cpu", "sdpa"}
    assert [row for row in after.values() if row.backend == "cpu"] == [
        row for row in before.rows if row.backend == "cpu"
    ]
    assert {row.operands for row in after.values() if row.status == "failed"} == {"plain"}


def test_verdicts_of_other_software_or_of_a_damaged_record_do_not_stay(former):
    path, text = former
    record = read(path)
    late = replace(record, rows=tuple(replace(r, status="not_run") for r in record.rows))
    assert statuses(with_former(late, path, True).rows)["cpu"] == {"passed"}
    other = replace(late, identity=replace(record.identity, torch="3.0"))
    assert with_former(other, path, True) == other
    path.write_text(text[:100])
    assert with_former(late, path, True) == late


# --- tiles ----------------------------------------------------------------------------------------

TILE = "forward/bfloat16/64/light"


def backends_of(path: Path) -> set[str]:
    return {row.backend for row in read(path).rows}


def test_a_record_has_the_tiles_that_its_verdicts_are_about(monkeypatch):
    monkeypatch.setattr(runs, "_TILED", ("cpu",))  # in the place of triton, which wants a GPU
    path = qualify("tiles-64", "cpu", "", backends=["cpu"]).path
    assert read(path).tiles == {TILE: (64, 32, 4, 2, 255, 206, 24576)}
    qualify("nothing", "", "", backends=["sdpa"])  # without a word on tiles
    assert read(path).tiles[TILE][0] == 64
    assert backends_of(path) == {"cpu", "sdpa"}
    record = read(path)
    late = replace(record, rows=tuple(replace(r, status="not_run") for r in record.rows))
    assert statuses(with_former(late, path, True).rows)["cpu"] == {"passed"}
    other = replace(late, tiles={TILE: (32, 32, 4, 2, 255, 206, 24576)})
    kept = statuses(with_former(other, path, True).rows)
    assert (kept["cpu"], kept["sdpa"]) == ({"not_run"}, {"passed"})
    assert with_former(other, path, False).tiles == record.tiles


def test_after_a_crash_no_tile_is_taken_again(monkeypatch):
    monkeypatch.setattr(runs, "_TILED", ("cpu",))
    path = qualify("tiles-64", "cpu", "", backends=["cpu"]).path
    qualify("abort-tiles-64", "cpu", "*", backends=["cpu"])
    assert read(path).tiles == {}
    assert statuses(read(path).rows)["cpu"] == {"crashed"}


# --- two at once ----------------------------------------------------------------------------------


def test_the_second_of_two_waits_and_says_so(tmp_path):
    notes, steps = tmp_path / "notes", []
    outcomes: list[Record] = []

    def one() -> None:
        outcome = qualify("slow", "cpu", "plain", notes, progress=steps.append)
        outcomes.append(outcome.record)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [statuses(record.rows) for record in outcomes] == [
        {"cpu": {"passed"}, "sdpa": {"passed"}}
    ] * 2
    order = [line.split()[0] for line in notes.read_text().splitlines()]
    assert order == ["begin", "end"] * 4  # two backends each, never two at a time
    waiting = [step.text for step in steps if "waiting" in step.text]
    assert waiting == ["another process qualifies this device; waiting for it"]
