"""The compiled extension and how its absence is told; needs a build, which an install makes."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path

import pytest
import torch

from xlnet_fast import _extension, philox
from xlnet_fast._version import __version__
from xlnet_fast.builder import compiler, recipe
from xlnet_fast.errors import BackendUnavailable, BuildError, PerformanceWarning

built = pytest.mark.skipif(_extension.load() is None, reason=str(_extension.why_missing()))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """`_extension` with its finding forgotten before and after, and an empty cache folder."""
    monkeypatch.setenv("XLNET_FAST_CACHE", str(tmp_path))
    _extension._find.cache_clear()
    yield _extension
    _extension._find.cache_clear()


def fill(seed=-5, heads=3, batch=(1, 3), rows=(2, 7), keys=37, threads=1, isa="auto", p=0.3):
    """(mask as uint8 between guard bytes, the guard bytes)."""
    shape = (batch[1] - batch[0], heads, rows[1] - rows[0], keys)
    size = torch.Size(shape).numel()
    room = torch.full((size + 128,), 0xAB, dtype=torch.uint8)
    _extension.philox_keep_mask(
        room.data_ptr() + 64,
        seed=seed,
        threshold=philox.keep_threshold(p),
        heads=heads,
        batch=batch,
        rows=rows,
        keys=keys,
        threads=threads,
        isa=isa,
    )
    return room[64 : 64 + size].view(shape), torch.cat([room[:64], room[64 + size :]])


def expected(seed=-5, heads=3, batch=(1, 3), rows=(2, 7), keys=37, p=0.3):
    threshold = philox.keep_threshold(p)
    return philox.keep_mask_aten(
        seed, threshold, heads, rows, keys, batch, torch.device("cpu")
    ).byte()


def test_an_extension_that_can_be_built_is_built_and_loads():
    """Else the tests of its kernels would be skipped, hundreds of them, and nothing would fail."""
    try:
        compiler.find_compiler()
        compiler.include_folders()
    except BuildError as problem:
        pytest.skip(str(problem))
    assert _extension.load() is not None, _extension.why_missing()


@built
def test_build_info():
    info = _extension.build_info()
    assert info is not None
    assert set(info) == set(_extension.BuildInfo.__annotations__)
    assert info["version"] == __version__
    assert info["isa_compiled"][0] == "baseline"
    assert info["isa_used"] in info["isa_compiled"]
    assert info["isa_used"] == _extension.require().isa_available()[-1]
    assert info["attention_isa"][0] == "baseline"
    assert info["thread_runtime"] == "openmp"  # torch's, in a process that has imported torch
    assert info["flags"][: len(recipe.UNIX_FLAGS)] == list(recipe.UNIX_FLAGS) or os.name == "nt"
    assert any("std" in flag and "17" in flag for flag in info["flags"])
    assert info["compiler"].split()[0] in ("gcc", "clang", "msvc")
    assert bool(info["cuda_archs"]) == bool(info["cuda_compiler"])
    assert all(re.fullmatch(r"\d+[af]?", arch) for arch in info["cuda_archs"])
    assert hasattr(_extension.require(), "cuda_rel_attention_forward") == bool(info["cuda_archs"])
    assert int(info["pybind11"].split(".")[0]) >= 2


@built
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, words):
    assert tuple(_extension.require().philox4x32(counter, key)) == words


# Lengths around the 32 and 64 keys that one step of a vector variant covers, and their tails.
@built
@pytest.mark.parametrize("keys", [1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 127, 130, 257])
@pytest.mark.parametrize("isa", _extension.load().isa_available() if _extension.load() else [])
def test_every_variant_gives_the_same_bits_and_stays_inside(isa, keys):
    for p in (0.0, 0.3, 0.9999999):
        mask, guard = fill(keys=keys, isa=isa, p=p)
        assert torch.equal(mask, expected(keys=keys, p=p))
        assert (guard == 0xAB).all()


@built
@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_threads_give_the_same_bits(threads):
    sizes = {"heads": 5, "batch": (3, 10), "rows": (1, 30), "keys": 1031}
    mask, guard = fill(threads=threads, **sizes)
    assert torch.equal(mask, expected(**sizes))
    assert (guard == 0xAB).all()


@built
def test_large_counters():
    sizes = {"heads": 2, "batch": (2**31 - 3, 2**31 - 1), "rows": (2**32 - 4, 2**32 - 1)}
    assert torch.equal(fill(keys=70, **sizes)[0], expected(keys=70, **sizes))


@built
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": (2, 1)}, "begin <= end"),
        ({"rows": (-1, 2)}, "begin <= end"),
        ({"rows": (2**32 - 1, 2**32)}, "2\\*\\*32"),
        ({"heads": -1}, "must not be negative"),
        ({"keys": -1}, "must not be negative"),
        ({"heads": 2**31, "batch": (0, 4)}, "batch times heads"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"isa": "sse9"}, "isa must be auto or one of .*baseline.*got sse9"),
        ({"keep_ptr": 0}, "null pointer"),
    ],
)
def test_bad_arguments(change, words):
    room = torch.zeros(1, dtype=torch.uint8)
    arguments = {
        "keep_ptr": room.data_ptr(),
        "seed": 0,
        "threshold": 0,
        "heads": 1,
        "batch": (0, 1),
        "rows": (0, 1),
        "keys": 1,
    }
    with pytest.raises(ValueError, match=words):
        _extension.philox_keep_mask(**(arguments | change))
    assert room.item() == 0
    _extension.philox_keep_mask(**arguments)
    assert room.item() == 1


@built
def test_releases_the_gil():
    """Another Python thread runs while a mask is filled."""
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.wait(0.001):
            ticks.append(None)

    mask = torch.empty(32, 16, 512, 512, dtype=torch.bool)
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        before = len(ticks)
        _extension.philox_keep_mask(
            mask.data_ptr(), seed=1, threshold=1, heads=16, batch=(0, 32), rows=(0, 512), keys=512
        )
        during = len(ticks) - before
    finally:
        stop.set()
        thread.join()
    assert during >= 3


@built
def test_keep_mask_takes_the_extension(monkeypatch):
    calls = []
    fill_mask = _extension.philox_keep_mask
    monkeypatch.setattr(
        _extension, "philox_keep_mask", lambda *a, **k: (calls.append(k), fill_mask(*a, **k))
    )
    philox.keep_mask(1, 0.5, 2, 2, (0, 4), 8)
    assert len(calls) == 1
    assert calls[0]["threads"] == torch.get_num_threads()


@built
def test_path():
    path = Path(_extension.path())
    assert path.is_file()
    assert path == Path(_extension.require().__file__)


@pytest.fixture
def missing(fresh, monkeypatch):
    """`_extension` where none was built."""
    monkeypatch.setitem(sys.modules, "xlnet_fast._C", None)
    monkeypatch.setattr(_extension, "_told", False)
    monkeypatch.delenv("XLNET_FAST_NO_WARN", raising=False)
    return fresh


def test_missing_extension_is_told(missing):
    fresh = missing
    assert fresh.load() is None
    assert fresh.build_info() is None
    assert fresh.path() is None
    reason = fresh.why_missing()
    assert "not built" in reason
    assert "make ext" in reason
    assert "`xlnet-fast build`" in reason
    with pytest.raises(BackendUnavailable, match="make ext"):
        fresh.require()
    with pytest.raises(BackendUnavailable, match="make ext"):
        fresh.philox_keep_mask(0, seed=0, threshold=0, heads=0, batch=(0, 0), rows=(0, 0), keys=0)
    mask = philox.keep_mask(-5, 0.3, 3, 3, (2, 7), 37, batch_range=(1, 3))
    assert torch.equal(mask.byte(), expected())


def test_unloadable_extension_is_told(fresh, monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: _ZN3foo")

    # There is a file, also where this package has none.
    monkeypatch.setitem(sys.modules, "xlnet_fast._C", types.ModuleType("xlnet_fast._C"))
    monkeypatch.setattr(importlib, "import_module", broken)
    assert fresh.load() is None
    assert "undefined symbol: _ZN3foo" in fresh.why_missing()


def test_extension_of_another_version_is_refused(fresh, monkeypatch):
    stale = types.ModuleType("xlnet_fast._C")
    stale.build_info = lambda: {"version": "0.0.1"}
    monkeypatch.setitem(sys.modules, "xlnet_fast._C", stale)
    assert fresh.load() is None
    assert "0.0.1" in fresh.why_missing()
    assert __version__ in fresh.why_missing()


def test_extension_of_older_sources_is_refused(fresh, monkeypatch):
    """Of this very version, as in a checkout that was updated and not built again."""
    entries = [name for name in vars(_extension.CompiledModule) if not name.startswith("_")]
    assert {"build_info", "dropout", "rel_attention_forward"} <= {*entries}
    module = types.ModuleType("xlnet_fast._C")
    for name in entries:
        setattr(module, name, lambda: {"version": __version__})
    assert fresh._checked(module) == (module, None)
    del module.dropout
    monkeypatch.setitem(sys.modules, "xlnet_fast._C", module)
    assert fresh.load() is None
    assert "older sources and lacks dropout; to renew it, run" in fresh.why_missing()


def test_a_missing_extension_is_looked_for_anew_and_a_loaded_one_is_not(missing):
    assert missing.load() is None
    missing._find.cache_clear()
    missing.forget()
    assert missing._find.cache_info().currsize == 0
    good = (types.ModuleType("good"), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(missing, "_from_package", lambda: good)
        assert missing.load() is good[0]
        missing.forget()
        assert missing._find.cache_info().currsize == 1


def test_an_unreadable_cache_is_as_good_as_none(missing, monkeypatch):
    def fail():
        raise PermissionError("no")

    monkeypatch.setattr(recipe, "cached_extension", fail)
    assert missing.load() is None
    assert "not built" in missing.why_missing()


# --- the user is told once -----------------------------------------------------------------------


def warned(count=2):
    """The warnings of so many calls, none of them hidden because it was shown before."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(count):
            _extension.tell_once()
    return seen


def test_the_user_is_told_once(missing, monkeypatch):
    (warning,) = warned()
    assert warning.category is PerformanceWarning
    assert issubclass(PerformanceWarning, UserWarning)
    assert warning.filename == __file__
    for word in ("sdpa", "not built", "`xlnet-fast build`", "XLNET_FAST_NO_WARN=1"):
        assert word in str(warning.message)
    assert warned() == []


@pytest.mark.parametrize(("value", "count"), [("1", 0), ("yes", 0), ("0", 1), ("", 1)])
def test_the_telling_can_be_switched_off(missing, monkeypatch, value, count):
    monkeypatch.setenv("XLNET_FAST_NO_WARN", value)
    assert len(warned()) == count


def test_a_filter_can_raise_or_hide_it(missing):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PerformanceWarning)
        with pytest.raises(PerformanceWarning, match="sdpa"):
            _extension.tell_once()
        _extension.tell_once()


@built
def test_nothing_is_told_where_the_extension_is(monkeypatch):
    monkeypatch.setattr(_extension, "_told", False)
    assert warned() == []


def test_nothing_is_told_while_a_graph_is_traced(monkeypatch):
    monkeypatch.setattr(_extension, "_find", lambda: (None, "it was not built"))
    monkeypatch.setattr(_extension, "_told", False)
    monkeypatch.delenv("XLNET_FAST_NO_WARN", raising=False)

    def double(x):
        _extension.tell_once()
        return x * 2

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = torch.compile(double, fullgraph=True, backend="eager")(torch.ones(2))
    assert y.tolist() == [2, 2]
    assert len(warned()) == 1


def test_an_import_neither_warns_nor_compiles(tmp_path):
    """In a process where no extension is, and any attempt to run a program fails."""
    code = (
        "import importlib, subprocess, sys\n"
        "subprocess.Popen = None\n"
        "sys.modules['xlnet_fast._C'] = None\n"
        "import xlnet_fast, xlnet_fast.ops, xlnet_fast.hf\n"
        "from xlnet_fast import _extension\n"
        "assert _extension.load() is None\n"
        "assert 'xlnet_fast.builder.build' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[1],
        env=os.environ | {"XLNET_FAST_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "PerformanceWarning" not in done.stderr
