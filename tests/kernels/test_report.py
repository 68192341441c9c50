"""The kernels report: it compiles for a chip that is not there, and it does say no."""

from __future__ import annotations

import io
import json
from collections import defaultdict

import pytest
import torch
from rich.console import Console

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels import report
from xlnet_fast.kernels.triton import INTERPRETED, triton
from xlnet_fast.masks import AttentionMask

needs_compiler = pytest.mark.skipif(triton is None or INTERPRETED, reason="needs Triton's compiler")

KEYS = {
    "kernel", "variant", "arch", "dtype", "head_dim", "registers", "spill_bytes", "shared_bytes",
    "gemm_units",
}  # fmt: skip


def row(**changes):
    return {
        "kernel": "rel_attention_forward", "variant": "precomputed", "arch": 80, "dtype": "bf16",
        "head_dim": 64, "registers": 200, "spill_bytes": 0, "shared_bytes": 65536, "gemm_units": 2,
    } | changes  # fmt: skip


def text_of(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def test_check_accepts_a_clean_row():
    assert report.check([row()]) == []


def test_check_catches_a_spill():
    (problem,) = report.check([row(), row(spill_bytes=24, arch=90)])
    assert "spills 24 bytes" in problem
    assert "sm_90" in problem


@pytest.mark.parametrize(("arch", "limit"), report.SHARED_LIMITS.items())
def test_check_holds_each_chip_to_its_shared_memory(arch, limit):
    assert report.check([row(arch=arch, shared_bytes=limit)]) == []
    (problem,) = report.check([row(arch=arch, shared_bytes=limit + 1)])
    assert str(limit) in problem


def test_render_shows_every_row():
    text = text_of(report.render([row(registers=123), row(spill_bytes=456)]))
    assert "123" in text
    assert "456" in text


@needs_compiler
def test_compiles_for_a_chip_that_is_not_there():
    seen = []
    (made,) = report.compile_report(
        (90,), dtypes=("bf16",), head_dims=(64,), features=("content",), workers=1,
        on_progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert set(made) >= KEYS
    assert (made["arch"], made["dtype"], made["head_dim"]) == (90, "bf16", 64)
    assert 32 <= made["registers"] <= 255
    # K and V tiles are staged in shared memory
    assert made["shared_bytes"] >= 2 * made["block_n"] * 64 * 2
    assert report.check([made]) == []
    assert seen == [(1, 1)]


@needs_compiler
def test_a_tile_too_large_for_the_registers_shows_as_a_spill(monkeypatch):
    large = report.rel_attention.Config(128, 128, 4, 1)
    monkeypatch.setattr(report.rel_attention, "choose_config", lambda *_, **__: large)
    rows = report.compile_report(
        (80,), dtypes=("bf16",), head_dims=(64,), features=("content",), workers=1
    )
    assert rows[0]["spill_bytes"] > 0
    assert len(report.check(rows)) == 1


@needs_compiler
def test_run_report_writes_json_and_returns_the_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "compile_report", lambda archs, **_: [row(arch=archs[0])])
    target = tmp_path / "report.json"
    assert report.run_report(target, (89,)) == 0
    assert json.loads(target.read_text()) == [row(arch=89)]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]

    monkeypatch.setattr(report, "compile_report", lambda archs, **_: [row(spill_bytes=8)])
    assert report.run_report(None, (80,)) == 1
    assert "spills 8 bytes" in " ".join(capsys.readouterr().out.split())


@needs_compiler
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"archs": (70,)}, "arch 70 is not one of 80"),
        ({"archs": (90,), "dtypes": ("fp64",)}, "fp64"),
        ({"archs": (90,), "features": ("none",)}, "none"),
        ({"archs": (90,), "head_dims": (256,)}, "256"),
    ],
)
def test_unknown_names_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        report.compile_report(**options, workers=1)


def test_bad_requests_end_in_a_sentence_and_code_2(tmp_path, capsys):
    assert report.run_report(tmp_path / "no" / "report.json", (90,)) == 2
    assert "no folder" in capsys.readouterr().out


class Driver:
    """Stands in for a GPU's driver as far as Triton asks it before it compiles."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def launched(features: report.Features, monkeypatch) -> dict:
    """What Triton would compile for a real call: types, constants, alignment, options."""
    from triton.runtime.driver import driver

    rel_attention = report.rel_attention
    kernel = rel_attention._forward_kernel
    calls, compiled = [], {}

    class Launcher:
        def __getitem__(self, grid):
            return lambda *arguments, **options: calls.append((arguments, options))

    b, i, j, n, d = 2, 64, 80, 2, 64
    every, half = features.everything, {"dtype": torch.bfloat16}
    q, k = torch.zeros(b, i, n, d, **half), torch.zeros(b, j, n, d, **half)
    bias, embed = torch.zeros(n, d, **half), torch.zeros(2, n, d, **half)
    segments = (bias, embed, torch.zeros(b, i).long(), torch.zeros(b, j).long())
    mask = AttentionMask(
        key_padding=torch.zeros(b, j).bool(),
        rank_q=torch.zeros(b, i).int() if every else None,
        rank_k=torch.zeros(b, j).int() if every else None,
        bits=torch.zeros(b, i, j // 8).byte() if every else None,
        causal=True, same_length=True, see_self=features.see_self,
    )  # fmt: skip
    positions = torch.zeros(b, i).int() if every else None
    r = torch.zeros(1, j + 1 if every else j + i, n, d, **half)
    with monkeypatch.context() as patch:
        patch.setattr(rel_attention, "_forward_kernel", Launcher())
        patch.setattr(rel_attention, "why_unavailable", lambda device: None)
        patch.setattr(rel_attention, "_arch", lambda device: 90)
        rel_attention.rel_attention_forward(
            q, k, k, r, bias, bias, *segments, mask, positions, j - i, None,
            0.1 if every else 0.0, torch.tensor(1), torch.empty_like(q),
        )  # fmt: skip
        ((arguments, options),) = calls

        def record(key, signature, device, constexprs, options, attrs, warmup):
            compiled.update(signature=signature, constants=constexprs, options=options)
            compiled["aligned"] = {path for path, attributes in attrs.items() if attributes}
            raise InterruptedError

        patch.setattr(kernel, "_do_compile", record, raising=False)
        patch.setattr(kernel, "device_caches", defaultdict(kernel.create_binder))
        patch.setattr(driver, "_active", Driver())
        with pytest.raises(InterruptedError):
            kernel.run(*arguments, grid=(1,), warmup=True, **options)
    return compiled


@needs_compiler
@pytest.mark.parametrize("features", report.FEATURES)
def test_the_report_compiles_what_the_launcher_launches(features, monkeypatch):
    actual = launched(report.FEATURES[features], monkeypatch)
    heavy = report.FEATURES[features].heavy
    config = report.rel_attention.choose_config(torch.bfloat16, 64, 90, heavy)
    job = report.Job(arch=90, dtype="bf16", head_dim=64, features=features)
    source = report._source(job, config, report.FEATURES[features])
    assert source.signature == actual["signature"]
    assert source.constants == actual["constants"]
    assert set(source.attrs) == actual["aligned"]
    for name, value in config.options.items():
        assert getattr(actual["options"], name) == value


def test_missing_triton_is_said(monkeypatch):
    monkeypatch.setattr(report, "triton", None)
    with pytest.raises(BackendUnavailable, match="pip install triton"):
        report.compile_report((90,))


def test_the_interpreter_compiles_nothing(monkeypatch):
    monkeypatch.setattr(report, "triton", object())
    monkeypatch.setattr(report, "INTERPRETED", True)
    with pytest.raises(BackendUnavailable, match="TRITON_INTERPRET"):
        report.compile_report((90,))
