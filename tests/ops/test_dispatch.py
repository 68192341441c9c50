"""The dispatcher is a pure function of a request: its table, its reasons, its refusals."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import pytest
import torch
from schema_arguments import schema_arguments, small

import xlnet_fast
from xlnet_fast import _extension, lowering
from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.ops import _dispatch, _verdict
from xlnet_fast.ops._dispatch import (
    ATTENTION,
    BACKENDS,
    CAPABILITIES,
    OPS,
    Request,
    choose,
    gpu_on,
    named_or_auto,
    spelled,
)
from xlnet_fast.ops.qualification.files import Found

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.fixture
def measured(monkeypatch):
    """A world where triton is installed."""
    monkeypatch.setattr(_dispatch, "_importable", lambda module: True)


def proved(op, dtype, *arguments, words="3.00 times", **speeds):
    """A request on a GPU whose record calls triton, or others, right and so many times as fast."""
    rows = tuple((name, True, speed, words) for name, speed in (speeds or {"triton": 3.0}).items())
    return replace(Request(op, "cuda", dtype, *arguments, gpu="9.0"), proved=rows)


@pytest.fixture
def extension(monkeypatch):
    """A world where the compiled extension is there, whatever this machine has."""
    capabilities = tuple(replace(capability, obstacle=None) for capability in CAPABILITIES)
    monkeypatch.setattr(_dispatch, "CAPABILITIES", capabilities)


@pytest.fixture
def no_extension(monkeypatch):
    monkeypatch.setattr(_extension, "why_missing", lambda: "no compiler was found")


KERNEL_OPS = ("rel_attention", "two_stream_attention", "masked_softmax")  # that cpu has


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.usefixtures("extension")
def test_auto_on_a_cpu(op, dtype, needs_grad):
    """Compiled kernels where there are any: not for float64, not for copies."""
    choice = choose(Request(op, "cpu", dtype, needs_grad=needs_grad))
    assert "triton: it runs on cuda, not on cpu" in choice.reason
    if op in KERNEL_OPS and dtype != F64:
        assert choice.backend == "cpu"
        return
    assert choice.backend == "sdpa"
    if op not in KERNEL_OPS:
        assert f"cpu: it has no {op}" in choice.reason
    else:
        assert "cpu: it takes float16, bfloat16, float32, not float64" in choice.reason


@pytest.mark.parametrize("op", KERNEL_OPS)
@pytest.mark.parametrize("dtype", [F16, BF16, F32])
@pytest.mark.parametrize("head_dim", [1, 64, 1000])
@pytest.mark.usefixtures("no_extension")
def test_without_the_extension_a_cpu_runs_sdpa_and_says_why(op, dtype, head_dim):
    request = Request(op, "cpu", dtype, head_dim)
    choice = choose(request)
    assert choice.backend == "sdpa"
    assert "cpu: no compiler was found" in choice.reason
    with pytest.raises(BackendUnavailable, match=f"'cpu' cannot run {op}: no compiler was found"):
        choose(request, "cpu")


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [("cuda", F32, "runs on cpu, not on cuda"), ("meta", F32, "cpu, not on meta"),
     ("cpu", F64, "not float64"), ("cpu", torch.int32, "not int32")],
)  # fmt: skip
@pytest.mark.usefixtures("extension")
def test_the_cpu_kernels_asked_for_by_name_where_they_cannot_run(device, dtype, reason):
    with pytest.raises(BackendUnavailable, match=reason):
        choose(Request("rel_attention", device, dtype), "cpu")


@pytest.mark.usefixtures("no_extension")
def test_nothing_but_the_extension_stands_in_the_way_of_what_cpu_would_run(monkeypatch):
    """What decides whether the missing extension is told: see ``_extension.tell_once``."""
    assert _dispatch.lacks_extension(Request("rel_attention", "cpu", BF16))
    assert not _dispatch.lacks_extension(Request("rel_attention", "cpu", F64))
    assert not _dispatch.lacks_extension(Request("rel_attention", "cuda", BF16))
    assert not _dispatch.lacks_extension(Request("concat_memory", "cpu", F32))
    monkeypatch.setattr(_dispatch.cpu_kernels, "why_unavailable", lambda: None)
    assert not _dispatch.lacks_extension(Request("rel_attention", "cpu", BF16))


def test_this_machines_extension_decides():
    choice = choose(Request("rel_attention", "cpu", F32))
    assert choice.backend == ("cpu" if _extension.why_missing() is None else "sdpa")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("device", ["meta", "xla"])
@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.usefixtures("extension")
def test_auto_on_any_other_device(op, dtype, device, needs_grad):
    choice = choose(Request(op, device, dtype, needs_grad=needs_grad))
    assert choice.backend == "reference"
    assert f"sdpa: it runs on cpu and cuda, not on {device}" in choice.reason
    if op in KERNEL_OPS:
        assert f"cpu: it runs on cpu, not on {device}" in choice.reason


@pytest.mark.parametrize("gpu", ["7.5", "8.0", "9.0", "10.0", "12.0", None])
@pytest.mark.parametrize("op", OPS)
def test_auto_never_takes_a_gpu_kernel_without_a_record(op, gpu):
    choice = choose(Request(op, "cuda", BF16, gpu=gpu))
    assert choice.backend == "sdpa"


@pytest.mark.usefixtures("measured")
def test_the_missing_record_is_the_reason():
    request = Request("rel_attention", "cuda", BF16, gpu="9.0", unproved="no record of this GPU")
    message = "triton: no record of this GPU; `xlnet-fast qualify` makes one"
    assert message in choose(request).reason
    covered = proved("rel_attention", BF16, sdpa=1.0)
    assert "triton: no such call in this machine's record" in choose(covered).reason
    request = replace(request, unproved="", features=("bits", "ranks"))
    assert "no class of the qualification has bits and ranks together" in choose(request).reason


@pytest.mark.parametrize(
    ("request_", "expected", "reason"),
    [
        (proved("rel_attention", BF16), "triton", "3.00 times; cuda: "),
        (proved("two_stream_attention", F16, 16), "triton", "3.00 times"),
        (proved("rel_attention", F32, 128), "triton", "cuda: it takes float"),
        (
            Request("rel_attention", "cuda", BF16, gpu="8.0"),
            "sdpa",
            "no such call in this machine's record",
        ),
        (proved("rel_attention", BF16, 64, True), "triton", "3.00 times"),
        (proved("rel_attention", BF16, 8), "sdpa", "head dims 16 to 128"),
        (proved("rel_attention", BF16, 256), "sdpa", "not 256"),
        (proved("rel_attention", F64), "sdpa", "not float64"),
        (proved("masked_softmax", BF16, 64, True), "triton", "3.00 times"),
        (proved("concat_memory", BF16), "triton", "3.00 times"),
        (proved("concat_memory", F64), "sdpa", "not float64"),
        (proved("rel_attention", BF16, triton=0.9), "sdpa", "triton: slower here (3.00 times)"),
        (proved("rel_attention", BF16, triton=2.0, cuda=1.9), "triton", "cuda: slower here"),
        (proved("rel_attention", BF16, triton=1.9, cuda=2.0), "cuda", "3.00 times"),
        (proved("rel_attention", BF16, triton=None, words="not timed"), "sdpa", "not timed"),
        (proved("rel_attention", BF16, sdpa=1.02), "sdpa", "3.00 times"),
        (Request("rel_attention", "cpu", BF16), "cpu", "runs on cuda, not on cpu"),
    ],
)
@pytest.mark.usefixtures("measured", "extension")
def test_auto_takes_the_fastest_that_was_proved(request_, expected, reason):
    choice = choose(request_)
    assert choice.backend == expected
    assert reason in choice.reason


@pytest.mark.parametrize("name", ["cuda", "triton", "sdpa"])
@pytest.mark.usefixtures("measured", "extension")
def test_auto_never_takes_what_failed(name):
    speeds = {"cuda": 4.0, "triton": 3.0, "sdpa": 1.0}
    rows = [(other, True, speed, "") for other, speed in speeds.items() if other != name]
    failed = (name, False, None, "failed its qualification here: dk is wrong")
    request = replace(Request("rel_attention", "cuda", BF16), proved=(*rows, failed))
    assert choose(request).backend != name
    if name == "cuda":
        assert f"{name}: failed its qualification here: dk is wrong" in choose(request).reason
    without = replace(request, proved=(failed, *((n, False, None, "no") for n in speeds)))
    assert choose(without).backend == "reference"


@pytest.mark.usefixtures("extension")
def test_a_cpus_record_overrules_the_order_of_the_table():
    request = Request("rel_attention", "cpu", F32)
    assert choose(request).backend == "cpu"
    slower = replace(request, proved=(("cpu", True, 0.8, "0.80 times"),))
    assert choose(slower).backend == "sdpa"
    assert "cpu: slower here (0.80 times)" in choose(slower).reason
    wrong = replace(request, proved=(("cpu", False, None, "failed: q is wrong"),))
    assert choose(wrong).backend == "sdpa"
    assert "cpu: failed: q is wrong" in choose(wrong).reason
    untimed = replace(request, proved=(("cpu", True, None, "not timed"),))
    assert choose(untimed).backend == "cpu"


@pytest.mark.usefixtures("measured", "extension")
def test_auto_passes_by_what_was_revoked(monkeypatch):
    monkeypatch.setitem(_dispatch.proof.REVOKED, "triton", "raised RuntimeError: no room")
    request = proved("rel_attention", BF16)
    assert choose(request).backend == "sdpa"
    assert "triton: it raised RuntimeError: no room" in choose(request).reason
    assert choose(request, "triton").backend == "triton"  # asked for by name


def test_an_op_is_told_what_takes_over():
    for name in BACKENDS:
        choice = _dispatch.Choice(name, "")
        assert spelled(choice, name) == name
        second = "|sdpa" if name in ("cuda", "triton") else ""
        assert spelled(choice, "auto") == name + second


def test_a_module_that_is_not_installed_is_an_obstacle(monkeypatch):
    monkeypatch.setattr(_dispatch, "_importable", lambda module: False)
    request = Request("rel_attention", "cuda", BF16, gpu="9.0")
    assert "'triton' is not installed" in choose(request).reason
    with pytest.raises(BackendUnavailable, match="'triton' is not installed"):
        choose(request, "triton")


@pytest.mark.usefixtures("measured")
def test_a_named_backend_needs_no_record():
    request = Request("rel_attention", "cuda", BF16, gpu="8.6")
    choice = choose(request, "triton")
    assert (choice.backend, choice.reason) == ("triton", "asked for by name")


@pytest.mark.parametrize(
    ("request_", "backend", "message"),
    [
        (Request("rel_attention", "cpu", F32), "triton", "runs on cuda, not on cpu"),
        (Request("rel_attention", "meta", F32), "sdpa", "runs on cpu and cuda, not on meta"),
        (Request("masked_softmax", "cuda", F64), "triton", "not float64"),
        (Request("concat_memories", "cuda", F32), "sdpa", "it has no concat_memories"),
        (Request("rel_attention", "cuda", F64), "triton", "not float64"),
        (Request("rel_attention", "cuda", F32, 8), "triton", "head dims 16 to 128, not 8"),
        (Request("rel_attention", "cpu", torch.int32), "sdpa", "not int32"),
        (Request("rel_attention", "cpu", torch.int32), "reference", "not int32"),
    ],
)
@pytest.mark.usefixtures("measured")
def test_a_named_backend_that_cannot_run_says_why(request_, backend, message):
    with pytest.raises(BackendUnavailable, match=message) as info:
        choose(request_, backend)
    assert f"{backend!r} cannot run {request_.op}" in str(info.value)


@pytest.fixture
def partial(monkeypatch):
    """A world with one more backend, which has one op and no backward pass of it."""
    (sdpa,) = (capability for capability in CAPABILITIES if capability.name == "sdpa")
    capability = replace(sdpa, name="partial", ops={"rel_attention": False})
    monkeypatch.setattr(_dispatch, "CAPABILITIES", (capability, *CAPABILITIES))


@pytest.mark.usefixtures("partial")
def test_a_backend_without_a_backward_pass_serves_inference():
    assert choose(Request("rel_attention", "cpu", F32)).backend == "partial"
    training = Request("rel_attention", "cpu", F32, needs_grad=True)
    choice = choose(training)
    assert choice.backend in ("cpu", "sdpa")
    assert "partial: it has no backward pass yet" in choice.reason
    with pytest.raises(BackendUnavailable, match="it has no backward pass yet"):
        choose(training, "partial")


@pytest.mark.usefixtures("partial")
def test_a_models_backend_names_its_attention():
    """An op that the named backend lacks runs on what "auto" takes; others on the one named."""
    assert named_or_auto("masked_softmax", "partial") == "auto"
    assert named_or_auto("rel_attention", "partial") == "partial"
    for op in OPS:
        for backend in ("auto", "triton", "sdpa", "reference", "nonsense"):
            assert named_or_auto(op, backend) == backend


def test_a_model_on_the_cpu_kernels_keeps_its_memory_by_what_auto_takes():
    assert named_or_auto("concat_memory", "cpu") == "auto"
    for op in KERNEL_OPS:
        assert named_or_auto(op, "cpu") == "cpu"


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_gpu_kernels_have_every_op_with_its_backward_pass(name):
    (kernels,) = (capability for capability in CAPABILITIES if capability.name == name)
    assert kernels.ops == dict.fromkeys(OPS, True)


def test_only_a_cuda_device_is_asked_for_its_capability(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert gpu_on(torch.device("cpu")) is None
    assert gpu_on(torch.device("cuda", 0)) == "8.6"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # fake tensors of a compiler
    assert gpu_on(torch.device("cuda", 0)) is None


@pytest.mark.parametrize("backend", ["", "cudnn", "SDPA", "Auto"])
def test_unknown_backends_are_told_the_known_ones(backend):
    with pytest.raises(ArgumentError, match=r"expected one of: auto, .*sdpa, reference"):
        choose(Request("rel_attention", "cpu", F32), backend)


def test_no_backend_at_all_gives_every_reason():
    with pytest.raises(BackendUnavailable) as info:
        choose(Request("rel_attention", "cpu", torch.int64))
    for backend in BACKENDS:
        assert f"{backend}: " in str(info.value)


@pytest.fixture
def lowered(monkeypatch):
    """A world in which JAX was told of our ops, and nobody told TorchTPU."""
    monkeypatch.setattr(lowering, "_registered", {"jax"})


ON_A_TPU = Request("rel_attention", "jax", BF16, 64, needs_grad=True)


@pytest.mark.parametrize(
    ("device", "module", "remedy"),
    [
        ("jax", "torchax", r"pip install 'xlnet-fast\[tpu\]'.*torchax .*0\.0\.14\.dev"),
        ("tpu", "torch_tpu", "install torch_tpu"),
    ],
)
def test_the_call_that_registers_says_what_is_not_installed(device, module, remedy, monkeypatch):
    """The call as the reason of the dispatcher spells it."""
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(lowering, "_registered", set())
    with pytest.raises(BackendUnavailable, match=remedy):
        eval(lowering.REMEDIES[device], {"xlnet_fast": xlnet_fast})
    assert lowering.why_missing(device) is not None


@pytest.mark.parametrize("device", lowering.REMEDIES)
@pytest.mark.parametrize("op", ATTENTION)
def test_the_tpu_kernels_wait_until_they_are_registered(op, device, monkeypatch):
    monkeypatch.setattr(lowering, "_registered", set())
    request = replace(ON_A_TPU, op=op, device=device)
    choice = choose(request)
    assert choice.backend == "reference"
    assert f"not registered; call {lowering.REMEDIES[device]}" in choice.reason
    with pytest.raises(BackendUnavailable, match=r"not registered; call xlnet_fast\.tpu\."):
        choose(request, "pallas")
    lowering.registered(device)
    assert choose(request).backend == choose(request, "pallas").backend == "pallas"


@pytest.mark.usefixtures("lowered")
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"features": ("bits", "padding")}, "takes no packed bits"),
        ({"dtype": F16}, "takes bfloat16, float32, not float16"),
        ({"head_dim": 129}, "head dims 1 to 128, not 129"),
        ({"device": "tpu"}, "not registered; call xlnet_fast.tpu.torchtpu.register()"),
        ({"op": "masked_softmax"}, "it has no masked_softmax"),
        ({"op": "concat_memory"}, "it has no concat_memory"),
    ],
)
def test_what_the_tpu_kernels_cannot_run_the_reference_does(changed, reason):
    request = replace(ON_A_TPU, **changed)
    choice = choose(request)
    assert choice.backend == "reference"
    assert reason in choice.reason.partition("pallas: ")[2].partition("; cpu: ")[0]
    with pytest.raises(BackendUnavailable, match=re.escape(reason)):
        choose(request, "pallas")


@pytest.mark.usefixtures("lowered", "extension")
def test_the_tpu_kernels_run_nowhere_else():
    for device in ("cpu", "cuda", "meta"):
        with pytest.raises(BackendUnavailable, match=f"runs on jax and tpu, not on {device}"):
            choose(replace(ON_A_TPU, device=device), "pallas")


def test_an_op_that_is_told_pallas_runs_only_where_jax_does():
    problem = small()
    args = schema_arguments(problem, backend="pallas")
    with pytest.raises(BackendUnavailable, match="'pallas' runs where JAX does"):
        torch.ops.xlnet_fast.rel_attention(problem.operands["q"], *args)


@pytest.mark.usefixtures("lowered")
def test_a_compiled_choice_is_made_anew_after_a_registration():
    def backend_of(x: torch.Tensor) -> torch.Tensor:
        return x + BACKENDS.index(choose(ON_A_TPU).backend)

    torch.compiler.reset()
    compiled = torch.compile(backend_of, backend="eager", fullgraph=True)
    for expected in ("pallas", "reference"):
        assert BACKENDS[int(compiled(torch.zeros(())))] == expected
        lowering._registered.clear()
    torch.compiler.reset()


@pytest.mark.parametrize("registered", [{"jax"}, set()])
def test_the_verdict_on_a_tpu_names_the_call_that_is_missing(registered, monkeypatch):
    monkeypatch.setattr(lowering, "_registered", registered)
    choice = choose(ON_A_TPU)
    line = _verdict.verdict("jax", [choice], [], Found(None, "", ""))
    if registered:
        assert line == "ready: Pallas kernels, lowered by the framework of device 'jax'"
    else:
        assert line.startswith("slower than it could be: pallas: ")
        assert line.endswith("call xlnet_fast.tpu.register()")


@pytest.mark.parametrize("op", OPS)
def test_the_reference_is_last_and_takes_everything(op):
    last = CAPABILITIES[-1]
    assert last.name == "reference"
    assert last.devices is None
    for dtype in (F16, BF16, F32, F64):
        assert choose(Request(op, "any device", dtype, 3, True), "reference").backend == "reference"
