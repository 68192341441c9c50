"""Which record counts here, what it says of a call, and what takes over from a kernel."""

from __future__ import annotations

import json
import warnings
from dataclasses import MISSING, fields, replace

import pytest
import torch
from records import a_record, a_row, an_identity, on_gpu, put

from xlnet_fast.errors import ArgumentError, PerformanceWarning
from xlnet_fast.masks import AttentionMask
from xlnet_fast.operands import Keys, Queries
from xlnet_fast.ops._contracts import _registry
from xlnet_fast.ops._dispatch import choose, request_on
from xlnet_fast.ops.qualification import files, identity, proof

GPU = torch.device("cuda", 0)
BF16 = torch.bfloat16
pytestmark = pytest.mark.usefixtures("cache")


def test_a_record_decides(gpu):
    put(a_record([a_row(2.0), a_row(5.0, operands="padded"), a_row(0.5, direction="backward")]))
    assert on_gpu().backend == "triton"
    assert "2.00 times the plain path's speed on 'plain' operands" in on_gpu().reason
    assert "5.00 times" in on_gpu(features=("segments", "padding")).reason
    assert on_gpu(needs_grad=True).backend == "sdpa"
    assert on_gpu(dtype=torch.float16).backend == "sdpa"
    assert on_gpu(head_dim=48).backend == "sdpa"
    assert on_gpu(features=("dropout",)).backend == "sdpa"
    assert on_gpu(op="masked_softmax").backend == "sdpa"


def test_a_gpu_without_a_record_warns_once_and_names_the_command(gpu):
    with pytest.warns(
        PerformanceWarning, match=r"no record of NVIDIA Test 9000\. `xlnet-fast qual"
    ):
        assert on_gpu().backend == "sdpa"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert on_gpu(features=("padding",)).backend == "sdpa"
        proof.forget()
        assert on_gpu().backend == "sdpa"


def test_the_warning_can_be_silenced(gpu, monkeypatch):
    monkeypatch.setenv("XLNET_FAST_NO_WARN", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_gpu()


def test_a_named_backend_asks_for_no_record(gpu, monkeypatch):
    monkeypatch.setattr(proof, "why_none", None)  # calling it would raise
    assert (
        choose(request_on("rel_attention", GPU, BF16, proved=False), "triton").backend == "triton"
    )


@pytest.mark.parametrize(
    "change",
    [{"torch": "2.12.0"}, {"triton": "3.9.0"}, {"kernels": "f" * 16}, {"extension": ""},
     {"driver": "600"}, {"cuda": "12.8"}, {"capability": "9.1"}, {"multiprocessors": 114}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_any_change_makes_a_record_stale(gpu, change):
    path = put(a_record())
    gpu["is"] = an_identity(**change)
    proof.forget()
    with pytest.warns(PerformanceWarning, match="is stale"):
        assert on_gpu().backend == "sdpa"
    (name,) = change
    assert f"the record {path} is stale: {name} was" in proof.why_none("cuda", 0)


def test_another_gpus_record_is_none_of_ours(gpu):
    put(a_record(name="NVIDIA Other"))
    with pytest.warns(PerformanceWarning, match="no record of NVIDIA Test 9000"):
        assert on_gpu().backend == "sdpa"


def test_each_set_of_libraries_has_its_record(gpu):
    put(a_record([a_row(2.0)]))
    put(a_record([a_row(3.0)], torch="2.12.0"))
    assert "2.00 times" in on_gpu().reason
    gpu["is"] = an_identity(torch="2.12.0")
    proof.forget()
    assert "3.00 times" in on_gpu().reason


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}', "\x00"])
def test_a_damaged_record_counts_as_none_and_is_told(gpu, text):
    path = put(a_record())
    path.write_text(text)
    proof.forget()
    with pytest.warns(PerformanceWarning, match="`xlnet-fast qualify` renews it"):
        assert on_gpu().backend == "sdpa"


def test_a_named_file_comes_before_the_cache(gpu, monkeypatch, tmp_path):
    put(a_record([a_row(2.0)]))
    named = put(a_record([a_row(4.0)]), tmp_path / "baked.json")
    monkeypatch.setenv(files.FILE_VARIABLE, str(named))
    proof.forget()
    assert "4.00 times" in on_gpu().reason
    named.unlink()
    proof.forget()
    with pytest.warns(PerformanceWarning, match=r"XLNET_FAST_QUALIFICATION: .*cannot be read"):
        assert on_gpu().backend == "sdpa"
    monkeypatch.setenv(files.FILE_VARIABLE, "none")
    proof.forget()
    assert on_gpu().backend == "sdpa"
    assert "XLNET_FAST_QUALIFICATION=none switches records off" in on_gpu().reason


def test_a_record_that_ships_speaks_for_triton_on_that_gpu(gpu, monkeypatch, tmp_path):
    shipped = tmp_path / "shipped.json"
    rows = [a_row(2.0), a_row(9.0, backend="cuda")]
    monkeypatch.setattr(files, "_shipped_files", lambda: iter([shipped]))
    put(a_record(rows, extension="another", torch="2.9.0", driver="1"), shipped)
    assert [row.backend for row in files.look(gpu["is"]).record.rows] == ["triton"]
    assert on_gpu().backend == "triton"
    for change in ({"triton": "9"}, {"name": "X"}, {"kernels": "x"}, {"multiprocessors": 1}):
        gpu["is"] = an_identity(**change)
        proof.forget()
        with warnings.catch_warnings(record=True):
            assert on_gpu().backend == "sdpa"


def test_the_files_that_ship_can_be_read():
    for record in files.shipped():
        assert record.rows


def test_no_home_is_no_record(gpu, monkeypatch):
    monkeypatch.setattr(files.recipe, "cache_root", lambda: None)
    with pytest.raises(ArgumentError, match="XLNET_FAST_CACHE"):
        files.cache_file(an_identity())
    with pytest.warns(PerformanceWarning, match="no record of"):
        assert on_gpu().backend == "sdpa"


def test_a_cpu_has_records_too(monkeypatch):
    cpu = identity.identity_of(torch.device("cpu"))
    wrong = a_row(backend="cpu", dtype="float32", status="failed")
    put(a_record([wrong], cpu))
    request = request_on("rel_attention", torch.device("cpu"), torch.float32)
    assert choose(request).backend == "sdpa"
    assert request.proved[0][:2] == ("cpu", False)


def test_a_cpu_without_any_record_is_not_examined(monkeypatch):
    def examine(device):
        raise AssertionError("this reads and hashes 30 MB")

    monkeypatch.setattr(proof, "identity_of", examine)
    assert proof.why_none("cpu", None) == "no record of this CPU"
    put(a_record())  # of a GPU
    assert proof.why_none("cpu", None) == "no record of this CPU"


TILES = {"forward/bfloat16/64/light": (64, 32, 4, 2, 255, 206, 24576)}


def test_tiles_are_those_of_the_record_that_counts(gpu, monkeypatch):
    assert proof.recorded_tiles(GPU) == {}
    put(replace(a_record(), tiles=TILES))
    assert proof.recorded_tiles(GPU) == TILES
    assert proof.recorded_tiles(torch.device("cpu")) == {}
    proof.give_tiles({})  # a qualification, which begins with the safe ones
    assert proof.recorded_tiles(GPU) == {}
    proof.give_tiles(None)
    gpu["is"] = an_identity(driver="590")
    assert proof.recorded_tiles(GPU) == TILES  # as long as the process lives
    proof.forget()
    assert proof.recorded_tiles(GPU) == {}


def test_a_kernel_takes_the_tile_of_the_record(gpu, monkeypatch):
    """Also where the backend is named, which asks for no record otherwise."""
    from xlnet_fast.kernels.triton import launch, tiles
    from xlnet_fast.ops._contracts.rel_attention import _kernels

    put(replace(a_record(), tiles=TILES))
    _kernels("triton")
    asked = []
    monkeypatch.setattr(launch, "why_unavailable", lambda device: None)
    monkeypatch.setattr(
        tiles, "recorded_on", lambda x: asked.append(x) or proof.recorded_tiles(GPU)
    )
    q = torch.zeros(1, 4, 1, 64, dtype=BF16)
    given = dict.fromkeys(field.name for field in fields(Keys) if field.default is MISSING)
    r, bias = torch.zeros(1, 8, 1, 64, dtype=BF16), q[0, 0]
    given |= {"k": q, "v": q, "r": r, "r_w_bias": bias, "r_r_bias": bias}
    keys = Keys(**given | {"memory_length": 0, "scale": 1.0})
    call = launch.Call(keys, (Queries(q, None, AttentionMask(), None, None),))
    assert call.config("forward") == tiles.Config(64, 32, 4, 2)
    assert asked == [q.device]
    assert call.config("backward_q") == tiles.safe_tiles("backward_q", BF16, 64, False, 90)[0]
    with tiles.using("forward", tiles.Config(16, 16, 4, 1)):
        assert call.config("forward").block_m == 16


@pytest.mark.parametrize("status", ["not_run", "unavailable"])
def test_what_was_not_tried_is_not_held_against_a_backend(status):
    cpu = identity.identity_of(torch.device("cpu"))
    untried = [a_row(backend=name, dtype="float32", status=status) for name in ("cpu", "sdpa")]
    put(a_record(untried, cpu))
    request = request_on("rel_attention", torch.device("cpu"), torch.float32)
    assert request.proved == ()
    assert choose(request).backend in ("cpu", "sdpa")


def test_without_a_gpu_nobody_is_asked(monkeypatch):
    """Fake tensors of a compiler are on a GPU that is not there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert on_gpu().backend == "sdpa"


# ---- revoked ----


def test_a_kernel_that_raises_at_its_launch_is_revoked_with_one_warning():
    ran = []

    def run(name):
        ran.append(name)
        if name == "triton":
            raise RuntimeError("out of resource: shared memory\nand more")
        return name

    with pytest.warns(PerformanceWarning, match="'triton' raised RuntimeError: out of resource"):
        assert _registry.launch("triton|sdpa", run) == "sdpa"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _registry.launch("triton|sdpa", run) == "sdpa"
    assert ran == ["triton", "sdpa", "sdpa"]
    with pytest.raises(RuntimeError, match="out of resource"):
        _registry.launch("triton", run)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), ArgumentError("bad")])
def test_what_is_not_the_kernels_fault_is_raised(error):
    def run(name):
        raise error

    with pytest.raises(type(error)):
        _registry.launch("triton|sdpa", run)
    assert proof.REVOKED == {}


# ---- identities ----


def test_the_identity_of_this_cpu():
    cpu = identity.identity_of(torch.device("cpu"))
    assert cpu.name
    assert cpu.torch == torch.__version__
    assert len(cpu.kernels) == 16
    assert json.loads(a_record(identity=cpu).to_json())["identity"]["device"] == "cpu"


def test_the_driver_is_told_by_its_branch(monkeypatch, tmp_path):
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed Aug 27 2025\n")
    monkeypatch.setattr(identity, "_DRIVER_FILE", file)
    assert identity.driver_branch.__wrapped__() == "580"
    monkeypatch.setattr(identity, "_DRIVER_FILE", tmp_path / "none")
    monkeypatch.setattr(identity, "_ask_nvidia_smi", lambda: "535.104\n535.104\n")
    assert identity.driver_branch.__wrapped__() == "535"
    monkeypatch.setattr(identity, "_ask_nvidia_smi", lambda: "")
    assert identity.driver_branch.__wrapped__() == ""


def test_the_digest_follows_the_sources(monkeypatch, tmp_path):
    def digest():
        monkeypatch.setattr(identity.recipe, "PACKAGE", tmp_path)
        return identity.kernels_digest.__wrapped__()

    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a.py").write_text("x = 1")
    (tmp_path / "masks.py").write_text("")
    first = digest()
    assert digest() == first
    (tmp_path / "kernels" / "a.py").write_text("x = 2")
    assert digest() != first
