"""`python -m benchmarks NAME`: what there is, and where a name leads."""

import pytest
import torch

from benchmarks import __main__ as names
from benchmarks import bench_two_stream, run


def test_the_list_tells_what_each_is(capsys):
    assert names.main([]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    told = dict(line.split(maxsplit=1) for line in lines)
    assert {
        "run", "reproduce", "bench_model", "tune", "sanitize", "smoke", "counters", "report",
        "plot", "readme_table", "micro.cpu_linear", "micro.sdpa_launches",
    } <= set(told)  # fmt: skip
    assert not {"__main__", "memory", "check", "micro.test_ops"} & set(told)
    assert all(summary.endswith((".", ":")) for summary in told.values())


def test_an_unknown_name_is_told_in_one_sentence(capsys):
    assert names.main(["bench_modle"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'bench_modle'" in line
    assert "bench_model" in line


def test_an_op_is_run_alone(monkeypatch):
    monkeypatch.setattr(run, "main", lambda arguments, only: (arguments, only))
    assert names.main(["bench_two_stream", "--dtype", "bf16"]) == (
        ["--dtype", "bf16"],
        (bench_two_stream.KERNEL,),
    )


def test_a_name_runs_its_module_with_the_options(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["benchmarks", "tune", "--minutes", "1"])
    with pytest.raises(SystemExit) as ended:
        names.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: there is no GPU here, so there is nothing to tune\n"
