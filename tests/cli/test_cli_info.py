"""`xlnet-fast info`: what is here, what it would do, and what is missing."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch
from command_line import run
from fake_gpu import gpu, triton_is_there
from records import a_record, a_row
from rich.console import Console

import xlnet_fast
from xlnet_fast import _extension, info
from xlnet_fast.info import facts, page
from xlnet_fast.kernels.report import triton as triton_report
from xlnet_fast.ops import _dispatch
from xlnet_fast.ops.qualification import files
from xlnet_fast.ops.qualification.record import STATUSES

__all__ = ["gpu", "triton_is_there"]  # fixtures


def test_info_json_has_the_schema():
    result = run("info", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert list(facts) == [
        "schema", "verdict", "versions", "devices", "extension", "kernels", "qualification",
        "missing", "backends",
    ]  # fmt: skip
    assert facts["schema"] == 1
    assert facts["versions"]["xlnet_fast"] == xlnet_fast.__version__
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"].keys() >= {"python", "triton", "transformers"}
    assert facts["devices"][0].keys() == {
        "device", "name", "cores", "threads", "features", "verdict",
    }  # fmt: skip
    assert facts["devices"][0]["threads"] == torch.get_num_threads()
    for row in facts["missing"]:
        assert row.keys() == {"what", "effect", "remedy"}
        assert all(row.values())
    for row in facts["backends"]:
        assert row.keys() == {
            "op", "device", "dtype", "mode", "backend", "reason", "brief", "speed",
        }  # fmt: skip
    ops = {(row["op"], row["mode"]) for row in facts["backends"]}
    assert ops == {(op, m) for op in _dispatch.OPS for m in ("inference", "training")} - {
        ("concat_memory", "training")
    }


def test_info_tells_what_the_dispatcher_would_do():
    for row in info.gather()["backends"]:
        if row["device"] != "cpu":
            continue
        dtype = getattr(torch, row["dtype"])
        training = row["mode"] == "training"
        features = _dispatch.usual_features(row["op"], training)
        request = _dispatch.request_on(
            row["op"], torch.device("cpu"), dtype, needs_grad=training, features=features
        )
        choice = _dispatch.choose(request)
        assert (row["backend"], row["reason"]) == (choice.backend, choice.reason)


def test_info_never_claims_a_gpu_run_that_is_not_recorded(monkeypatch):
    def row_of(kernel):
        (row,) = (row for row in info.gather()["kernels"] if row["kernel"] == kernel)
        return row

    row = row_of("triton rel_attention")
    assert row["architectures"] == [f"sm_{arch}" for arch in triton_report.ARCHS]
    never = {
        "triton": "compiled, interpreted, executed as PTX for sm_80 and sm_90",
        "cuda": "emulated on the CPU, executed as PTX for sm_80 and sm_90",
    }
    for backend, instead in never.items():
        kernel = f"{backend} rel_attention"
        for status in STATUSES:
            found = [a_record(name="A GPU", rows=(a_row(backend=backend, status=status),))]
            monkeypatch.setattr(files, "shipped", lambda found=found: found)
            proved = "run and proved on A GPU"
            expected = proved if status == "passed" else f"{instead}, never run on a GPU"
            assert row_of(kernel)["status"] == expected


@pytest.mark.parametrize("jax", ["there", None])
def test_info_never_claims_that_a_tpu_ran(jax, monkeypatch):
    monkeypatch.setattr(facts.importlib.util, "find_spec", lambda name: jax)
    (row,) = (row for row in info.gather()["kernels"] if row["kernel"] == "pallas rel_attention")
    text = page._kernel_text(row)
    assert text.startswith(
        "compiled, run in JAX's interpret mode, never run on a TPU; compiles for"
    )
    assert text.partition("compiles for ")[2].startswith("v4, v5e, v5p, v6e, tpu7x")
    assert text.endswith("Not here: no JAX: pip install 'xlnet-fast[tpu]'") == (jax is None)


def test_info_tells_what_the_cuda_kernels_were_compiled_for(monkeypatch):
    facts = {name: [] for name in _extension.BuildInfo.__annotations__}
    facts |= {"cuda_archs": ["80", "90a"], "cuda_compiler": "12.4.131"}
    monkeypatch.setattr(_extension, "build_info", lambda: facts)
    (row,) = (row for row in info.gather()["kernels"] if row["kernel"] == "cuda rel_attention")
    assert row["architectures"] == ["sm_80", "sm_90a"]
    assert row["measured_on"] == []
    text = page._kernel_text(row)
    assert text.startswith(
        "emulated on the CPU, executed as PTX for sm_80 and sm_90, never run on a GPU; "
        "compiles for sm_80, sm_90a"
    )
    text = page._extension_text(info.gather()["extension"])["CUDA archs"]
    assert text == "sm_80, sm_90a, by nvcc 12.4.131"
    facts["cuda_archs"] = []
    (row,) = (row for row in info.gather()["kernels"] if row["kernel"] == "cuda rel_attention")
    assert "never run on a GPU; not compiled here" in page._kernel_text(row)
    text = page._extension_text(info.gather()["extension"])["CUDA archs"]
    assert text.startswith("none; with nvcc on the path, `XLNET_FAST_CUDA=1 xlnet-fast build")


def test_info_says_how_to_get_a_missing_extension(monkeypatch):
    monkeypatch.setattr(_extension, "build_info", lambda: None)
    monkeypatch.setattr(_extension, "why_missing", lambda: "it was not built; run `make ext`")
    result = run("info")
    assert "run `make ext`" in result.stdout
    facts = info.gather()
    assert facts["extension"] == {"built": False, "reason": "it was not built; run `make ext`"}
    assert "C++ extension" in [row["what"] for row in facts["missing"]]


def test_info_says_where_the_extension_is_from(monkeypatch):
    info_of_build = {name: [] for name in _extension.BuildInfo.__annotations__}
    monkeypatch.setattr(_extension, "build_info", lambda: info_of_build)
    monkeypatch.setattr(_extension, "path", lambda: "/cache/_C.so")
    facts = info.gather()["extension"]
    assert facts["path"] == "/cache/_C.so"
    assert page._extension_text(facts)["loaded from"] == "/cache/_C.so"


def shown(verbose=False) -> str:
    console = Console(file=io.StringIO(), width=110)
    info.render(info.gather(), verbose, console)
    return console.file.getvalue()


def test_info_in_short():
    result = run("info")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) <= 25
    assert lines[0] == info.gather()["verdict"]
    assert lines[0].startswith(("ready: fused CPU kernels; no GPU", "slower than it could be: "))
    for word in ("versions", "extension", torch.__version__, *_dispatch.OPS, "--verbose"):
        assert word in result.stdout
    assert "it runs on" not in result.stdout


def test_info_in_full():
    result = run("info", "--verbose")
    assert result.exit_code == 0
    parts = (
        "Versions",
        "Devices",
        "C++ extension",
        "GPU and TPU kernels",
        "Qualification",
        "Missing",
    )
    for word in (*parts, "sdpa", "cuda: it runs on", torch.__version__):
        assert word in result.stdout


@pytest.mark.usefixtures("triton_is_there")
def test_info_on_a_gpu(gpu, monkeypatch):
    facts = info.gather()
    assert facts["verdict"] == "GPU without a record: plain PyTorch; run `xlnet-fast qualify`"
    assert facts["verdict"] == facts["devices"][1]["verdict"]
    row = {"op": "rel_attention", "head_dim": "64"}
    passed = [
        a_row(speed, operands=name, direction=direction, **row)
        for speed, name, direction in [(3.0, "padded", "forward"), (2.0, "dropout", "backward")]
    ]
    failed = a_row(operands="dense", status="failed", **row)
    two = [replace(each, op="two_stream_attention", operands="permuted") for each in passed]
    gpu(a_record([*passed, *two]))
    assert info.gather()["verdict"] == "ready: Triton kernels proved on this GPU"
    text = " ".join(shown().split())
    assert "bfloat16 triton Triton kernels, 2.0 to 3.0 times plain PyTorch's speed" in text
    gpu(a_record([*passed, *two, failed]))  # of a class that no usual call is in
    verdict = info.gather()["verdict"]
    assert verdict.startswith("cuda:0: fault: 1 class of calls did not pass; `xlnet-fast qualify")
    gpu(a_record([replace(passed[0], status="failed", reason="out is wrong"), *passed[1:]]))
    assert info.gather()["verdict"].startswith("cuda:0: fault in triton: failed its qualification")
    text = " ".join(shown().split())
    assert "bfloat16 inference sdpa triton: failed its qualification here: out is wrong" in text


def test_info_says_how_to_get_the_cuda_kernels(gpu, monkeypatch):
    facts = {name: [] for name in _extension.BuildInfo.__annotations__}
    monkeypatch.setattr(_extension, "build_info", lambda: facts)
    command = "`XLNET_FAST_CUDA=1 xlnet-fast build --force`"
    missing = {row["what"]: row["remedy"] for row in info.gather()["missing"]}
    assert command in missing["CUDA kernels"]
    assert command in " ".join(shown().split())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA kernels" not in [row["what"] for row in info.gather()["missing"]]
    assert command in " ".join(shown().split())


def test_alike_rows_become_one_line_and_others_do_not():
    def row(dtype, mode, backend):
        return {
            "op": "x", "device": "cpu", "dtype": dtype, "mode": mode, "backend": backend,
            "reason": "r",
        }  # fmt: skip

    rows = [row("a", "inference", "p"), row("a", "training", "q"), row("b", "training", "q")]
    table = page._backend_table([*rows, row("b", "inference", "q")])
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    assert table.row_count == 2
    assert "a training, b " in console.file.getvalue()


def test_recorded_steps_of_generation_are_told_of():
    (row,) = (row for row in info.gather()["kernels"] if "graph" in row["kernel"])
    text = page._kernel_text(row)
    assert text.startswith("replayed on the CPU, never run on a GPU")
    assert "compile" not in text
    assert ("sees no GPU" in text) != torch.cuda.is_available()
