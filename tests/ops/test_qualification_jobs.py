"""Which record counts for a process that makes it at first use, and for the processes of a job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings

import forked
import pytest
import torch
from records import a_record, a_row, on_gpu, put

from xlnet_fast.errors import PerformanceWarning
from xlnet_fast.ops.qualification import files, identity, proof
from xlnet_fast.ops.qualification.record import write

pytestmark = pytest.mark.usefixtures("cache")

# ---- at first use ----


def fake_run(monkeypatch, act, code=0):
    calls = []

    def run(command, env, **options):
        calls.append((command, env))
        act()
        return subprocess.CompletedProcess(command, code, "", "error: no room\n")

    monkeypatch.setattr(proof.subprocess, "run", run)
    return calls


def test_a_gpu_qualifies_at_first_use_only_if_asked(gpu, monkeypatch):
    calls = fake_run(monkeypatch, lambda: put_without_forgetting(a_record()))
    with pytest.warns(PerformanceWarning):
        assert on_gpu().backend == "sdpa"
    assert calls == []
    monkeypatch.setenv(proof.AUTO_VARIABLE, "auto")
    proof.forget()
    with pytest.warns(PerformanceWarning, match="about two minutes"):
        assert on_gpu().backend == "triton"
    ((command, env),) = calls
    assert command[1] == "-c"
    assert command[3:] == ["qualify", "--device", "cuda:0"]
    assert proof.AUTO_VARIABLE not in env
    assert on_gpu(features=("padding",)).backend == "sdpa"
    assert len(calls) == 1


def put_without_forgetting(record):
    write(record, files.cache_file(record.identity))


def test_a_qualification_that_leaves_no_record_is_told(gpu, monkeypatch):
    monkeypatch.setenv(proof.AUTO_VARIABLE, "auto")
    fake_run(monkeypatch, lambda: None, code=2)
    with pytest.warns(PerformanceWarning, match=r"left no record \(exit code 2\): error: no room"):
        assert on_gpu().backend == "sdpa"


def test_a_job_never_qualifies(gpu, monkeypatch):
    monkeypatch.setenv(proof.AUTO_VARIABLE, "auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    calls = fake_run(monkeypatch, lambda: put_without_forgetting(a_record()))
    with pytest.warns(PerformanceWarning, match="no record of"):
        assert on_gpu().backend == "sdpa"
    assert calls == []


def test_the_command_that_qualifies_is_this_packages(tmp_path):
    """Whatever lies in the folder that the process happens to be in."""
    for name in ("random", "xlnet_fast", "typing", "typer"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    command = [sys.executable, "-c", proof._QUALIFY, "qualify", "--device", "cuda:99"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "cuda:99" in done.stderr


# ---- jobs ----


def test_the_processes_of_a_job_share_what_the_first_found(gpu, monkeypatch, cache):
    monkeypatch.setenv("WORLD_SIZE", "2")
    put(a_record([a_row(2.0)]))
    assert "2.00 times" in on_gpu().reason
    put(a_record([a_row(7.0)]))  # renewed while the job runs; another process asks
    assert "2.00 times" in on_gpu().reason
    monkeypatch.setenv("MASTER_PORT", "another job")
    proof.forget()
    assert "7.00 times" in on_gpu().reason
    assert len(list((cache / "jobs").glob("*.json"))) == 2


def test_a_job_without_a_record_stays_without(gpu, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(PerformanceWarning):
        assert on_gpu().backend == "sdpa"
    put(a_record())
    assert on_gpu().backend == "sdpa"


def test_a_job_that_cannot_agree_has_no_record(gpu, monkeypatch, tmp_path):
    named = put(a_record(), tmp_path / "baked.json")
    monkeypatch.setenv(files.FILE_VARIABLE, str(named))
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XLNET_FAST_CACHE", str(tmp_path / "file"))
    proof.forget()
    with pytest.warns(PerformanceWarning, match="cannot agree on a record"):
        assert on_gpu().backend == "sdpa"


def test_a_job_on_a_cpu_without_a_record_is_quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XLNET_FAST_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert proof.why_none("cpu", None) != ""


def test_old_pins_are_removed(gpu, monkeypatch, cache):
    monkeypatch.setenv("WORLD_SIZE", "2")
    put(a_record())
    on_gpu()
    (pin,) = (cache / "jobs").glob("*.json")
    unfinished, lock = pin.with_name("unfinished.json"), pin.with_name("lock")
    unfinished.write_text("{")
    for file in (pin, unfinished, lock):
        os.utime(file, (time.time() - 30 * 86400,) * 2)
    monkeypatch.setenv("MASTER_PORT", "another job")
    proof.forget()
    on_gpu()
    assert not unfinished.exists()
    assert pin.exists(), "its process lives"
    assert lock.exists(), "somebody may hold it"


def test_the_next_job_of_a_launcher_looks_for_itself(gpu, monkeypatch, cache):
    monkeypatch.setenv("WORLD_SIZE", "2")
    put(a_record([a_row(2.0)]))
    on_gpu()
    (pin,) = (cache / "jobs").glob("*.json")
    first = json.loads(pin.read_text())
    # A later process of the same number, or, where starts are not known, of another one.
    other = {"start": "1"} if first["start"] else {"process": first["process"] + 1}
    pin.write_text(json.dumps(first | other))
    put(a_record([a_row(7.0)]))
    assert "7.00 times" in on_gpu().reason
    pin.write_text("{")
    put(a_record([a_row(8.0)]))
    assert "8.00 times" in on_gpu().reason


def test_what_a_process_is_told_comes_before_the_pin(gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    put(a_record([a_row(2.0)]))
    assert "2.00 times" in on_gpu().reason
    monkeypatch.setenv(files.FILE_VARIABLE, "none")
    proof.forget()
    assert on_gpu().backend == "sdpa"
    named = put(a_record([a_row(4.0)]), tmp_path / "baked.json")
    monkeypatch.setenv(files.FILE_VARIABLE, str(named))
    proof.forget()
    assert "4.00 times" in on_gpu().reason


def look(environment, told, end):
    """What a process of a job does: it writes to `told` which record it found, and waits."""
    os.environ.update(environment)
    proof.forget()
    unfinished = told.with_name(f"{told.name}-unfinished")
    unfinished.write_text(proof.found_for("cpu", None).source)
    unfinished.rename(told)
    wait_for(end)


def wait_for(file):
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_processes_of_one_launcher_share_a_pin(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    path = put(a_record([a_row(backend="cpu")], identity.identity_of(torch.device("cpu"))))
    names = ("WORLD_SIZE", "XLNET_FAST_CACHE")
    environment = {files.FILE_VARIABLE: ""} | {name: os.environ[name] for name in names}
    end, told = tmp_path / "end", [tmp_path / "first", tmp_path / "second"]
    processes = [forked.process(look, environment, file, end) for file in told]
    processes[0].start()
    wait_for(told[0])
    assert told[0].read_text() == str(path)
    path.unlink()  # while the first one lives
    processes[1].start()
    wait_for(told[1])
    assert told[1].read_text().startswith(f"{path} (pinned for this job in ")
    end.touch()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
