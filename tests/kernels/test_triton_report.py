"""The report on Triton's kernels: it compiles for a chip that is not there, and does say no."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from report_rows import text_of, triton_row

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.chips import SHARED_LIMITS
from xlnet_fast.kernels.report import triton as report
from xlnet_fast.kernels.report.rows import (
    PAIRED_LOOP_SPILLS,
    PAIRED_SPILL_LIMIT,
    SPILL_LIMIT,
    check,
)
from xlnet_fast.kernels.report.tables import render
from xlnet_fast.kernels.triton import INTERPRETED, concat_memory, masked_softmax, philox, triton
from xlnet_fast.kernels.triton import masked_softmax_launch as softmax_launch
from xlnet_fast.masks import AttentionMask
from xlnet_fast.operands import SoftmaxInputs

needs_compiler = pytest.mark.skipif(triton is None or INTERPRETED, reason="needs Triton's compiler")

SMALL = ("masked_softmax", "concat_memory")


def test_check_accepts_a_clean_row():
    assert check([triton_row()]) == []


def test_check_catches_a_spill():
    limit = SPILL_LIMIT
    assert check([triton_row(spill_bytes=limit)]) == []
    (problem,) = check([triton_row(), triton_row(spill_bytes=limit + 1, arch=90)])
    assert f"spills {limit + 1} bytes" in problem
    assert "sm_90" in problem


def test_check_catches_a_spill_in_a_loop():
    (problem,) = check([triton_row(spill_bytes=8, loop_spills=2)])
    assert "spills registers in 2 places of a loop" in problem


def test_check_lets_a_tile_that_is_to_be_timed_spill_a_little():
    most = {"spill_bytes": PAIRED_SPILL_LIMIT, "loop_spills": PAIRED_LOOP_SPILLS}
    assert check([triton_row(is_paired=True, **most)]) == []
    assert len(check([triton_row(is_paired=False, **most)])) == 2
    for name in most:
        (problem,) = check([triton_row(is_paired=True, **most | {name: most[name] + 1})])
        assert str(most[name] + 1) in problem
    (problem,) = check([triton_row(is_paired=True, shared_bytes=2**20)])
    assert "shared memory" in problem


def test_check_catches_scratch_memory_read_too_early():
    said = "strips: line 7: ld.global.b32: loads what was stored with no barrier between"
    (problem,) = check([triton_row(), triton_row(disorder=[said])])
    assert problem.endswith(f"on sm_80, PTX, {said}")


@pytest.mark.parametrize(("arch", "limit"), SHARED_LIMITS.items())
def test_check_holds_each_chip_to_its_shared_memory(arch, limit):
    assert check([triton_row(arch=arch, shared_bytes=limit)]) == []
    (problem,) = check([triton_row(arch=arch, shared_bytes=limit + 1)])
    assert str(limit) in problem


def test_render_shows_every_row():
    text = text_of(render([triton_row(registers=123), triton_row(spill_bytes=456)]))
    assert "123" in text
    assert "456" in text


def test_render_says_what_a_tile_costs_in_products():
    softmax = triton_row(
        kernel="masked_softmax_forward", variant="-", gemm_units=None, head_dim=None
    )
    text = " ".join(text_of(render([triton_row(gemm_units=2.5), softmax])).split())
    assert "variant precomputed: 2.5 matrix products per tile" in text
    assert "masked_softmax_forward chip" in text
    assert "None" not in text


@needs_compiler
def test_compiles_for_a_chip_that_is_not_there():
    seen = []
    rows = report.compile_report(
        (90,), kernels=("masked_softmax_forward", "concat_memory"), dtypes=("bf16",),
        features=("all", "memory"), modules=SMALL, workers=1,
        on_progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    kernels = [made["kernel"] for made in rows]
    tiles = len(masked_softmax.TILES)
    assert kernels == ["masked_softmax_forward"] * tiles + ["concat_memory"]
    for made in rows:
        assert {*made, "block_n"} == set(triton_row())
        assert (made["arch"], made["dtype"], made["head_dim"]) == (90, "bf16", None)
        assert 16 <= made["registers"] <= 255
        assert made["gemm_units"] is None
    assert [made["block_n"] for made in rows[:tiles]] == [t.block_n for t in masked_softmax.TILES]
    assert (rows[-1]["block_m"], "block_n" in rows[-1]) == (concat_memory.BLOCK, False)
    assert check(rows) == []
    assert seen == [(done, tiles + 1) for done in range(1, tiles + 2)]


@needs_compiler
def test_two_processes_report_what_one_does():
    reports = []
    for workers in (1, 2):
        seen = []
        rows = report.compile_report(
            (90,), kernels=("concat_memory",), dtypes=("bf16", "fp32"), features=("memory",),
            modules=SMALL, workers=workers, on_progress=lambda *counts, to=seen: to.append(counts),
        )  # fmt: skip
        reports.append(rows)
        assert seen == [(1, 2), (2, 2)]
    assert reports[0] == reports[1]
    assert [made["dtype"] for made in reports[1]] == ["bf16", "fp32"]


@needs_compiler
def test_a_tile_too_large_for_the_registers_shows_as_a_spill(monkeypatch):
    large = softmax_launch.Tile(32, 256, True)
    monkeypatch.setattr(masked_softmax, "TILES", (large,))
    report._compilations.cache_clear()
    try:
        rows = report.compile_report(
            (80,), kernels=("masked_softmax_backward",), dtypes=("bf16",), features=("all",),
            modules=SMALL, workers=1,
        )  # fmt: skip
    finally:
        report._compilations.cache_clear()
    assert rows[0]["spill_bytes"] > SPILL_LIMIT
    problem = check(rows)[-1]
    assert "masked_softmax_backward (row in registers, all) bf16 tile 32x256 on sm_80" in problem


@needs_compiler
@pytest.mark.parametrize("module", report.MODULES)
def test_every_module_lists_what_can_be_told_apart(module):
    """Two compilations of the same name would be one row's word against another's."""
    for arch in report.ARCHS:
        listed = report._compilations(module, arch)
        names = {
            (
                c.kernel,
                c.variant,
                c.features,
                c.dtype,
                c.head_dim,
                c.tile,
                c.options["num_stages"],
                c.options.get("maxnreg"),
            )
            for c in listed
        }
        assert len(names) == len(listed) > 0
        for compilation in listed:
            arguments = set(compilation.function.arg_names)
            assert arguments <= set(compilation.types) | set(compilation.constants)
            assert set(compilation.constants) <= arguments
            assert {"num_warps", "num_stages"} <= set(compilation.options)


@needs_compiler
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"archs": (70,)}, "arch 70 is not one of 80"),
        ({"archs": (90,), "dtypes": ("fp64",)}, "dtype 'fp64' is not one of bf16, fp16, fp32"),
        ({"archs": (90,), "features": ("none",)}, "features 'none' is not one of all"),
        ({"archs": (90,), "head_dims": (256,)}, "head_dim 256 is not one of"),
        ({"archs": (90,), "kernels": ("softmax",)}, "is not one of concat_memory, masked_softmax_"),
        ({"archs": (90,), "modules": ("softmax",)}, "module 'softmax' is not one of rel_attention"),
    ],
)
def test_unknown_names_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        report.compile_report(**{"modules": SMALL, **options}, workers=1)


class Driver:
    """Stands in for a GPU's driver as far as Triton asks it before it compiles."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def softmax_inputs(keys):
    """The inputs of both launchers with every optional one, and the dtype bf16."""
    b, n, i, half = 2, 2, 32, {"dtype": torch.bfloat16}
    scores, position = torch.zeros(b, n, i, keys, **half), torch.zeros(b, n, i, keys + 64, **half)
    segments = (
        torch.zeros(b, n, 16, i, **half).mT[..., 0],
        *(torch.zeros(b, size).long() for size in (i, keys)),
    )
    mask = AttentionMask(
        key_padding=torch.zeros(b, keys).bool(), rank_q=torch.zeros(b, i).long(),
        rank_k=torch.zeros(b, keys).long(), bits=torch.zeros(b, i, -(-keys // 8)).byte(),
        causal=True, same_length=True, see_self=True, window=(9, 3), chunk=2,
    )  # fmt: skip
    return SoftmaxInputs(
        scores, position, *segments, mask, torch.zeros(b, i).long(), keys - 64, 0.5, 0.1,
        torch.tensor([1]),
    )  # fmt: skip


def call_softmax_forward(keys):
    inputs = softmax_inputs(keys)
    masked_softmax.masked_softmax_forward(inputs, torch.empty_like(inputs.scores))


def call_softmax_backward(keys):
    inputs = softmax_inputs(keys)
    grads = [x.new_empty(x.shape) for x in inputs.terms]
    masked_softmax.masked_softmax_backward(inputs, inputs.scores, inputs.scores, grads)


def call_copy(rows):
    hidden, memory = ([torch.zeros(rows, 2, 8).bfloat16() for _ in range(32)] for _ in range(2))
    out = torch.empty(32, 2 * rows - 8, 2, 8).bfloat16()
    concat_memory.concat_memory_forward(hidden, memory, 8, rows, out)


def call_keep(keys):
    philox.keep_mask(torch.zeros(1, dtype=torch.long), 0, 2, (0, 16), keys, (0, 1))


LAUNCHES = {
    # what calls the launcher, with which size; the kernel, its features and its tile
    "forward": (call_softmax_forward, 96, masked_softmax, "_forward_kernel", "all", 0),
    "forward-ragged": (call_softmax_forward, 521, masked_softmax, "_forward_kernel", "ragged", 2),
    "forward-sweeps": (call_softmax_forward, 4096, masked_softmax, "_forward_kernel", "all", 3),
    "backward": (call_softmax_backward, 512, masked_softmax, "_backward_kernel", "all", 1),
    "backward-ragged": (call_softmax_backward, 97, masked_softmax, "_backward_kernel", "ragged", 0),
    "copy": (call_copy, 16, concat_memory, "_copy_kernel", "memory", 0),
    "keep": (call_keep, 64, philox, "_keep_kernel", "-", 0),
}


def launched(name, monkeypatch):
    """What the launcher makes Triton compile, up to the point where it would need a GPU."""
    from triton.runtime import driver

    call, size, module, attribute, *_ = LAUNCHES[name]
    kernel = getattr(module, attribute)
    calls, compiled = [], {}

    class Launcher:
        def __getitem__(self, grid):
            return lambda *arguments, **options: calls.append((arguments, options))

    with monkeypatch.context() as patch:
        patch.setattr(module, attribute, Launcher())
        for checked in (softmax_launch, concat_memory, philox):
            patch.setattr(checked, "why_unavailable", lambda device: None)
        call(size)
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
@pytest.mark.parametrize("name", LAUNCHES)
def test_the_report_compiles_what_the_launcher_launches(name, monkeypatch):
    _, _, module, attribute, features, tile = LAUNCHES[name]
    actual = launched(name, monkeypatch)
    matching = [
        compilation
        for compilation in module.compilations(90)
        if compilation.function is getattr(module, attribute)
        and compilation.dtype == ("fp32" if name == "keep" else "bf16")
        and features in (compilation.features, compilation.features[-6:])
    ]
    compilation = matching[tile]
    source = report._source(compilation)
    assert source.signature == actual["signature"]
    assert source.constants == actual["constants"]
    ragged = features == "ragged"
    aligned = set(source.attrs)
    # Strides of whole tables, batch and head, may be multiples of 16 even where a row's is not.
    assert aligned <= actual["aligned"] if ragged else aligned == actual["aligned"]
    for option, value in compilation.options.items():
        assert getattr(actual["options"], option) == value


def test_missing_triton_is_said(monkeypatch):
    monkeypatch.setattr(report, "triton", None)
    with pytest.raises(BackendUnavailable, match="pip install triton"):
        report.compile_report((90,))


def test_the_interpreter_compiles_nothing(monkeypatch):
    monkeypatch.setattr(report, "triton", object())
    monkeypatch.setattr(report, "INTERPRETED", True)
    with pytest.raises(BackendUnavailable, match="TRITON_INTERPRET"):
        report.compile_report((90,))
