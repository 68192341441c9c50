"""The CSV and the record of the environment."""

import csv
import getpass
import json
import platform
from pathlib import Path

import pytest

from benchmarks.harness.record import (
    COLUMNS,
    ResultsWriter,
    Row,
    cases,
    environment,
    merged_environment,
    read_environment,
    read_results,
    write_environment,
)


def make_row(**changes):
    values = {
        "kernel": "model", "provider": "ours", "pass_name": "forward", "dtype": "fp32", "batch": 1,
        "length": 128, "memory_length": 0, "heads": 12, "head_dim": 64, "layers": 12,
        "features": "padding+segments", "status": "ok", "rounds": 3, "p20_us": 1.5, "p50_us": 2.0,
        "p80_us": 2.5,
    }  # fmt: skip
    return Row(**(values | changes))


@pytest.fixture(scope="module")
def info():
    return environment("cpu", {"preset": "quick"})


def test_schema_is_the_house_long_format():
    assert COLUMNS[:3] == ("kernel", "provider", "pass")
    wanted = {
        "p20_us",
        "p50_us",
        "p80_us",
        "peak_memory_mib",
        "device",
        "torch",
        "triton",
        "commit",
    }
    assert wanted <= set(COLUMNS)
    assert len(COLUMNS) == len(set(COLUMNS))


def test_each_row_is_on_disk_before_the_next(tmp_path, info):
    path = tmp_path / "results.csv"
    with ResultsWriter(path, info, "quick") as writer:
        assert read_results(path) == []
        writer.add(make_row(reason='has, comma and "quotes"', peak_memory_mib=3.25))
        (first,) = read_results(path)
        writer.add(make_row(provider="flex", status="unavailable", p50_us=None))
        assert len(read_results(path)) == 2
    assert first.reason == 'has, comma and "quotes"'
    assert first.p50_us == 2.0
    assert first.peak_memory_mib == 3.25
    assert first.error is None
    assert first.device == info["device"]
    assert first.torch == info["versions"]["torch"]
    assert first.preset == "quick"
    with path.open(newline="") as file:
        assert all(None not in line.values() for line in csv.DictReader(file))


def test_a_new_run_replaces_and_append_continues(tmp_path, info):
    path = tmp_path / "results.csv"
    for append, expected in ((False, 1), (True, 2), (False, 1)):
        with ResultsWriter(path, info, "quick", append=append) as writer:
            writer.add(make_row())
        assert len(read_results(path)) == expected


def test_foreign_and_cut_files_are_refused(tmp_path, info):
    path = tmp_path / "results.csv"
    path.write_text("kernel,speed\nmodel,fast\n")
    with pytest.raises(ValueError, match="not a results file of this version"):
        read_results(path)
    with pytest.raises(ValueError, match="not a results file"):
        ResultsWriter(path, info, "quick", append=True)
    with ResultsWriter(path, info, "quick") as writer:
        writer.add(make_row())
    path.write_text(path.read_text().rsplit(",", 5)[0])
    with pytest.raises(ValueError, match=f"line 2 has {len(COLUMNS) - 5} of {len(COLUMNS)} cells"):
        read_results(path)


def test_a_row_that_is_not_ok_carries_no_speed_up():
    with pytest.raises(ValueError, match="status red cannot carry a speed-up"):
        make_row(status="red", speedup_over_hf_eager=3.0)
    with pytest.raises(ValueError, match="status failed cannot carry a speed-up"):
        make_row(status="failed", time_over_floor=1.5)
    with pytest.raises(ValueError, match="status must be one of"):
        make_row(status="fine")


def test_cases_groups_what_was_measured_together():
    rows = [make_row(), make_row(batch=8), make_row(provider="hf_eager")]
    assert [[r.provider for r in case] for case in cases(rows)] == [["ours", "hf_eager"], ["ours"]]


def test_environment_says_what_matters_and_names_nobody(tmp_path, info):
    assert info["versions"]["torch"]
    assert info["versions"]["transformers"]
    assert info["versions"]["xlnet_fast"]
    assert info["threads"] >= 1
    assert info["cores"] >= 1
    assert {"device", "cpu", "isa", "commit", "dirty", "python", "cpu_capability"} <= set(info)
    text = write_environment(tmp_path, info).read_text()
    assert json.loads(text) == info
    assert platform.node() not in text or len(platform.node()) < 4
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    assert "/" not in info["commit"]
    assert getpass.getuser() not in json.dumps(info["versions"])


def test_records_of_two_parts_of_a_run_are_merged(tmp_path):
    earlier = {"device": "A", "model": "mine", "text": "none", "preset": "quick", "threads": 1}
    now = {"device": "A", "model": "none", "text": "none", "preset": "full", "threads": 2}
    merged = merged_environment(earlier, now)
    assert merged == now | {"model": "mine", "preset": "quick, full"}
    assert merged_environment(merged, now | {"model": "yours"})["model"] == "yours"
    assert merged_environment(merged, now)["preset"] == "quick, full"
    assert merged_environment(earlier, now | {"device": "B"}) == now | {"device": "B"}
    assert merged_environment({}, now) == now
    assert read_environment(tmp_path) == {}
    (tmp_path / "environment.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no record"):
        read_environment(tmp_path)
