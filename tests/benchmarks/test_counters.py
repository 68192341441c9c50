"""The profiler's counters: read from `ncu`'s CSV, or a reason why there are none."""

import re
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import counters
from benchmarks.harness.stages import Evidence

PROFILE = """loading
==PROF== Connected to process 7
"ID","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread"
"","","us","register/thread"
"0","_forward_kernel","123.4","240"
"1","_backward_q_kernel","456.7","248"
"""


def profiler(tmp_path, monkeypatch, code):
    """A program that stands for `ncu`."""
    path = tmp_path / "ncu"
    path.write_text(f"#!{sys.executable}\nimport sys, time\n{code}\n")
    path.chmod(0o755)
    monkeypatch.setattr(counters, "profiler", lambda: str(path))
    return Evidence(tmp_path / "evidence.jsonl")


def run(evidence, *options):
    return counters.main(["--out", str(evidence.path), "--seconds", "20", *options])


def test_each_kernel_is_a_line(tmp_path, monkeypatch, capsys):
    code = f"print({PROFILE!r}) if 'triton' in sys.argv else sys.exit('no such backend')"
    evidence = profiler(tmp_path, monkeypatch, code)
    assert run(evidence, "--log", str(tmp_path / "log.txt")) == 0
    rows = evidence.read("counters")
    assert rows[0] == {
        "stage": "counters", "outcome": "passed", "backend": "triton",
        "kernel": "_forward_kernel", "time": "123.4 us", "registers": "240 register/thread",
    }  # fmt: skip
    assert [row["outcome"] for row in rows] == ["passed", "passed", "failed"]
    assert "no kernel was profiled, exit code 1: no such backend" in rows[2]["reason"]
    assert "triton: passed; cuda: no kernel" in capsys.readouterr().out
    assert "==PROF==" in (tmp_path / "log.txt").read_text()


def test_without_permission_it_says_so(tmp_path, monkeypatch):
    evidence = profiler(tmp_path, monkeypatch, "print('==ERROR== ERR_NVGPUCTRPERM ...')")
    assert run(evidence) == 0
    assert [row["outcome"] for row in evidence.read()] == ["skipped", "skipped"]
    assert "may not read the GPU's counters" in evidence.read()[0]["reason"]


def test_a_profiler_that_hangs_is_ended(tmp_path, monkeypatch):
    evidence = profiler(tmp_path, monkeypatch, "time.sleep(60)")
    assert counters.main(["--out", str(evidence.path), "--seconds", "2"]) == 1
    assert "not done after" in evidence.read()[0]["reason"]


def test_without_ncu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert counters.profiler() is None
    assert counters.main(["--out", str(tmp_path / "evidence.jsonl")]) == 2
    assert "ncu" in capsys.readouterr().err
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ncu").touch()
    assert Path(counters.profiler()) == tmp_path / "bin" / "ncu"


@pytest.mark.parametrize("backend", counters.BACKENDS)
def test_a_few_launches_of_our_kernels_are_profiled(backend):
    command = counters.command("ncu", backend)
    assert command[0] == "ncu"
    assert command[command.index("--launch-count") + 1] == str(counters._LAUNCHES)
    assert command[-2:] == ["--pass", backend]
    pattern = command[command.index("--kernel-name") + 1].removeprefix("regex:")
    names = ["_forward_kernel", "_backward_kv_kernel", "rel_attention_backward_r_kernel"]
    assert all(re.search(pattern, name) for name in names)
    assert not re.search(pattern, "vectorized_elementwise_kernel")
