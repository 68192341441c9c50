"""The Triton kernels of relative attention: interpreted here, on a GPU where there is one."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

pytest.importorskip("triton")

import attention_on_gpu
import two_stream_cases as two_streams
from _interpreter_rel_attention import GROUPS
from _interpreter_two_streams import RUNS as INTERPRETED_STREAMS
from attention_cases import Case, make_inputs
from attention_runs import check_output, check_passes, operands
from shared_compilations import RUNS, STREAM_RUNS, TILE_RUNS, TILE_STRETCH

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.triton import INTERPRETED, launch, rel_attention, tiles, triton
from xlnet_fast.kernels.triton import rel_attention_backward as backward_module
from xlnet_fast.kernels.triton import rel_attention_forward as forward_module
from xlnet_fast.kernels.triton import why_unavailable as why_triton_is_unavailable
from xlnet_fast.kernels.triton.tiles import Config, block_d, candidates, choose_config

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).parent
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
STREAM_GROUPS = {"streams": len(INTERPRETED_STREAMS) + 1}
GROUPS_OF_FILE = [
    *(("_interpreter_rel_attention.py", *group) for group in GROUPS.items()),
    *(("_interpreter_two_streams.py", *group) for group in STREAM_GROUPS.items()),
]


def child_environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **changes}


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


@pytest.mark.skipif(
    version(triton.__version__) <= (3, 6) and version(numpy.__version__) >= (2, 4),
    reason="the interpreter of Triton 3.6 cannot loop to a run-time bound with numpy 2.4",
)
@pytest.mark.parametrize(("file", "group", "expected"), GROUPS_OF_FILE)
def test_interpreter(file, group, expected):
    """Triton reads TRITON_INTERPRET when it is imported, hence a process for each group."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(FOLDER / file), "-q", "-k", group, "--tb=short",
         "-p", "no:cacheprovider", "-p", "pytest_timeout"],
        env=child_environment(TRITON_INTERPRET="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert re.search(rf"\b{expected} passed", done.stdout), done.stdout[-1000:]


on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or INTERPRETED, reason="needs a CUDA device"
)


def in_groups(runs):
    """Each with the name of its compilations."""
    return [
        pytest.param(
            run,
            id=f"{run.name}-{run.dtype}",
            marks=pytest.mark.compiles(f"{type(run).__name__} {run.dtype} {run.profile.label}"),
        )
        for run in runs
    ]


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("run", in_groups(RUNS))
def test_gpu(run):
    dtype = getattr(torch, run.dtype)
    if run.name == "shapes-one":  # its gradients are exactly zero, and so is their bound
        check_output(run.name, dtype, rel_attention, "cuda", run.case)
    else:
        check_passes(run.name, dtype, rel_attention, "cuda", run.case, run.ordered)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("run", in_groups(STREAM_RUNS))
def test_gpu_streams(run):
    dtype = getattr(torch, run.dtype)
    two_streams.check_streams(run.name, dtype, rel_attention, "cuda", run.case, run.ordered)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize(
    "heavy", [pytest.param(x, marks=pytest.mark.compiles(f"tiles {x}")) for x in TILE_RUNS]
)
def test_gpu_every_candidate_tile(heavy, monkeypatch):
    """Whatever may be chosen on this chip launches, and is right with many stretches of keys."""
    monkeypatch.setattr(launch, "STRIP_KEYS", TILE_STRETCH)
    arch, run = launch.arch(torch.device("cuda", 0)), TILE_RUNS[heavy]
    for kernel in tiles.KERNELS:
        for config in candidates(kernel, torch.bfloat16, run.case.head_dim, heavy, arch):
            with tiles.using(kernel, config):
                check_passes(run.name, torch.bfloat16, rel_attention, "cuda", run.case, run.ordered)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("check", attention_on_gpu.CHECKS)
def test_gpu_public_op(check, request):
    attention_on_gpu.run(check, "triton", request)


class Recorder:
    """Stands for a kernel: keeps the arguments of a launch, by name."""

    def __init__(self, kernel):
        self.names, self.arguments, self.grid = kernel.arg_names, {}, ()

    def __getitem__(self, grid):
        self.grid = grid

        def launch_with(*values, **constants):
            self.arguments = dict(zip(self.names, values, strict=False)) | constants

        return launch_with


def fits(value, kind) -> bool:
    """Whether an argument is of the type that the report compiles for it."""
    if isinstance(kind, tuple):
        return type(value) is type(kind) and len(value) == len(kind) and all(map(fits, value, kind))
    if kind is None or value is None:
        return kind is None and value is None
    if isinstance(value, torch.Tensor):
        names = {"torch.bfloat16": "bf16", "torch.float32": "fp32", "torch.uint8": "u8"}
        names |= {"torch.int32": "i32", "torch.int64": "i64"}
        return kind == f"*{names[str(value.dtype)]}"
    return kind == {int: "i32", float: "fp32"}[type(value)]


LIGHT = Case(rows=33, memory=5, apart=True, segments=True, mask=("padding", "causal", "see_self"))
HEAVY = two_streams.Streams(
    Case(
        rows=33, memory=5, apart=True, segments=True, dropout_p=0.5,
        mask=("padding", "causal", "same_length", "ranks", "bits"), window=(9, 3), chunk=4,
        r_start=1,
    )
)  # fmt: skip


def record_launches(monkeypatch) -> dict[str, Recorder]:
    """What stands for each kernel from now on, by the kernel's name."""
    monkeypatch.setattr(launch, "why_unavailable", lambda device: None)
    recorders = {
        "rel_attention_forward": Recorder(forward_module._forward_kernel),
        "rel_attention_backward_q": Recorder(backward_module._backward_q_kernel),
        "rel_attention_backward_kv": Recorder(backward_module._backward_kv_kernel),
    }
    for name, recorder in recorders.items():
        module = forward_module if name.endswith("forward") else backward_module
        monkeypatch.setattr(module, name.replace("rel_attention", "") + "_kernel", recorder)
    return recorders


def run_both_passes(keys, streams) -> None:
    """Forward and backward into the operands themselves: nothing is computed."""
    qs = [stream.q for stream in streams]
    stats = [torch.zeros(q.shape[0], q.shape[2], q.shape[1]) for q in qs]
    rel_attention.rel_attention_forward(keys, streams, qs, stats)
    grads = [keys.k, keys.v, keys.k_memory, keys.v_memory, keys.r]
    grads += [keys.r_w_bias, keys.r_r_bias, keys.r_s_bias, keys.seg_embed]
    rel_attention.rel_attention_backward(keys, streams, qs, stats, qs, [*qs, *grads], False)


@pytest.mark.skipif(INTERPRETED, reason="needs compiled kernels")
@pytest.mark.parametrize(("processors", "splits"), [(3, 1), (9, 2), (100, 8)])
def test_programs_are_as_many_as_fit_and_each_has_its_strip(processors, splits, monkeypatch):
    """Also fewer than there are heads and groups of r: here 4 in all, 8 tiles of rows each."""
    recorders = record_launches(monkeypatch)
    monkeypatch.setattr(launch, "processors", lambda device: processors)
    case = Case(batch=2, heads=2, groups=2, rows=8 * 64)
    keys, content = operands(make_inputs(case, torch.bfloat16, 0), case)
    with contextlib.ExitStack() as stack:
        for kernel in tiles.KERNELS:
            stack.enter_context(tiles.using(kernel, Config(64, 32, 8, 2, registers=200)))
        run_both_passes(keys, [content])
    tasks = {"forward": 2 * 2 * 8, "backward_q": 4 * splits, "backward_kv": 2 * 2 * 16}
    for kernel, count in tasks.items():
        recorder = recorders[f"rel_attention_{kernel}"]
        (programs,) = recorder.grid
        assert programs == min(count, processors)
        passed = recorder.arguments
        strip = {
            "forward": 64 * (512 + 64 + 32 + 1),
            "backward_q": 64 * (512 + 64 + 32 + 1),
            "backward_kv": 512 * (32 + 2 * 64) + 64,
        }[kernel]
        assert passed["strips"].numel() == programs * strip
    passed = recorders["rel_attention_backward_q"].arguments
    assert (passed["STRIP"], passed["D_STRIP"]) == (64 * (512 + 64 + 32 + 1), 64 * 512)
    assert passed["d_strips"].numel() == recorders["rel_attention_backward_q"].grid[0] * 64 * 512
    assert (passed["groups"], passed["splits"]) == (2, splits)
    assert passed["sums"].shape[:2] == (2, 2 * splits)  # a unit's own, not a program's


@pytest.mark.skipif(INTERPRETED, reason="needs compiled kernels")
@pytest.mark.parametrize("heavy", [False, True])
def test_the_report_compiles_what_the_launcher_launches(heavy, monkeypatch):
    recorders = record_launches(monkeypatch)
    if heavy:
        x = two_streams.make_streams(HEAVY, torch.bfloat16, 0)
        keys, content = operands(x, HEAVY.content)
        mask = replace(
            x.mask, rank_q=x.mask.rank_q.int(), rank_k=x.mask.rank_k.int(), see_self=True
        )
        content = replace(content, mask=mask)
        queries = replace(
            content, q=x.q_g, positions=x.positions_g.int(), by_position=True,
            mask=replace(mask, see_self=False),
        )  # fmt: skip
        streams = [content, queries]
    else:
        keys, content = operands(make_inputs(LIGHT, torch.bfloat16, 0), LIGHT)
        streams = [content]
    run_both_passes(keys, streams)
    for compiled in rel_attention.compilations(90):
        features = compiled.features.split(", ")
        if compiled.dtype != "bf16" or compiled.head_dim != 32 or "ordered" in features:
            continue
        if ("heavy" in features) != heavy or "one stream" in features:
            continue
        passed = recorders[compiled.kernel].arguments
        for name, kind in compiled.types.items():
            assert fits(passed[name], kind), (compiled.kernel, name, kind)
        assert set(passed) == {*compiled.types, *compiled.constants, *compiled.options}
        if compiled.tile == (passed["BM"], passed["BN"]):
            varying = ("SELF", "BY_POSITION") if not heavy else ()
            for name, value in compiled.constants.items():
                same = name in (*varying, "SAME_LENGTH", "BM_G") or passed[name] == value
                assert same, (compiled.kernel, name)


CALLS = [*itertools.product(tiles.DTYPES, [1, 16, 32, 48, 64, 96, 128], [False, True])]


@pytest.mark.parametrize("arch", SHARED_LIMIT)
@pytest.mark.parametrize("kernel", tiles.KERNELS)
def test_tiles_fit_the_chip(kernel, arch):
    for call in CALLS:
        check_tiles(kernel, *call, arch)


def check_tiles(kernel: str, dtype: torch.dtype, head_dim: int, heavy: bool, arch: int) -> None:
    tried = candidates(kernel, dtype, head_dim, heavy, arch)
    assert choose_config(kernel, dtype, head_dim, heavy, arch) == tried[0]
    assert len(set(tried)) == len(tried)
    for config in tried:
        assert launch.STRIP_KEYS % config.block_m == 0
        assert launch.STRIP_KEYS % config.block_n == 0
        assert config.block_n % 8 == 0  # bytes of mask bits and groups of random words per tile
        # A lower bound from the tiles alone; the compiled figure is held by the kernels report.
        loaded = 2 * config.block_n * block_d(head_dim) * dtype.itemsize * (config.num_stages - 1)
        assert loaded <= SHARED_LIMIT[arch] * 1024


def test_measured_tile_comes_first(monkeypatch, tmp_path):
    key = tiles.tuned_key("forward", torch.bfloat16, 64, False, "short")
    file = tmp_path / "tuned.json"
    name = tiles.tuned_gpu("A GPU")
    assert name == f"A GPU, Triton {tiles.release_of(triton.__version__)}"
    tuned = {
        name: {key: [32, 64, 4, 3, 128, 120, 4096]},
        "B GPU, Triton 1.0": {key: [16, 16, 4, 1]},
    }
    file.write_text(json.dumps(tuned))
    monkeypatch.setattr(tiles, "TUNED_FILE", file)
    tiles.load_tuned.cache_clear()
    try:
        arguments = ("forward", torch.bfloat16, 64, False, 90)
        safe = candidates(*arguments)[0]
        chosen = choose_config(*arguments, "short", "A GPU")
        assert chosen == Config(32, 64, 4, 3, 128)
        assert chosen.options["maxnreg"] == 128
        assert (chosen.registers, chosen.shared_bytes) == (120, 4096)
        assert choose_config(*arguments, "short", "B GPU") == safe  # measured with another Triton
        assert choose_config(*arguments, "long", "A GPU") == safe
        assert choose_config(*arguments, "short", "another") == safe
        assert choose_config(*arguments, "short", None) == safe
    finally:
        tiles.load_tuned.cache_clear()


def test_a_forced_tile_goes_before_all_and_ends_with_its_block():
    forced = Config(16, 16, 4, 1)
    arguments = ("backward_q", torch.float16, 32, True, 80)
    before = choose_config(*arguments)
    with tiles.using("backward_q", forced):
        assert choose_config(*arguments) == forced
        assert choose_config("forward", *arguments[1:]) != forced
        with tiles.using("backward_q", before):
            assert choose_config(*arguments) == before
        assert choose_config(*arguments) == forced
    assert choose_config(*arguments) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sideways", torch.float32, 64, False, 90), "kernel 'sideways' is not one of forward"),
        (("forward", torch.float64, 64, False, 90), "float64"),
        (("forward", torch.float32, 129, False, 90), "129"),
        (("forward", torch.float32, 0, False, 90), "0 is not in 1..128"),
        (("forward", torch.float16, 64, False, 75), "sm_75"),
    ],
)
def test_choose_config_refuses(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        choose_config(*arguments)


def test_shape_classes():
    assert tiles.shape_class(1024, 1024) == "short"
    assert tiles.shape_class(1, 1025) == "long"
    assert tiles.shape_class(1025, 1025) == "long"


@pytest.mark.skipif(INTERPRETED, reason="CPU tensors are refused only without the interpreter")
def test_cpu_tensors_are_refused_with_the_reason():
    assert "'cpu'" in why_triton_is_unavailable("cpu")
    x = make_inputs(Case(), torch.float32, 0)
    keys, queries = operands(x, Case())
    with pytest.raises(BackendUnavailable, match="CUDA device"):
        rel_attention.rel_attention_forward(keys, [queries], [x.q], [x.q])


def test_importing_without_triton_names_the_reason():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from xlnet_fast.kernels.triton import concat_memory, masked_softmax, rel_attention\n"
        "from xlnet_fast.kernels.triton import why_unavailable\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "print(why_unavailable('cuda'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Triton cannot be imported" in done.stdout
    assert "pip install triton" in done.stdout


def test_importing_starts_no_cuda_context():
    code = (
        "import xlnet_fast.kernels.triton.rel_attention as m, torch\n"
        "from xlnet_fast.kernels.triton import why_unavailable\n"
        "why_unavailable('cuda')\n"
        "assert not torch.cuda.is_initialized()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
