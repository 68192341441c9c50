"""The tables of safe tiles: complete, checked, chosen by the release of Triton, found by search."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch
from report_rows import triton_row

from xlnet_fast.errors import ArgumentError, BackendUnavailable, PerformanceWarning
from xlnet_fast.info import facts
from xlnet_fast.kernels.chips import CHIPS, SHARED_LIMITS, blocks_per_multiprocessor
from xlnet_fast.kernels.report import command, ptx, tile_search
from xlnet_fast.kernels.report import triton as report
from xlnet_fast.kernels.report.rows import PAIRED_LOOP_SPILLS, check
from xlnet_fast.kernels.triton import INTERPRETED, launch, rel_attention_compilations, tiles, triton
from xlnet_fast.kernels.triton.tiles import Config, Table, chip_class

needs_compiler = pytest.mark.skipif(triton is None or INTERPRETED, reason="needs Triton's compiler")
RELEASES = ("3.6", "3.9")  # the oldest that is allowed, and the one that the tests install
ARGUMENTS = ("forward", torch.bfloat16, 64, False, 90)


@pytest.fixture(autouse=True)
def fresh():
    """No test leaves another's Triton or table in a cache."""
    caches = (tiles.installed_table, tiles.load_safe, tiles._warn_of_another_release)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def install(monkeypatch, version):
    monkeypatch.setattr(tiles, "triton", type("Triton", (), {"__version__": version}))
    tiles.installed_table.cache_clear()


# --- the tables that there are --------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_a_table_has_a_tile_for_whatever_may_be_asked(release, monkeypatch):
    install(monkeypatch, f"{release}.1")
    table, remark = tiles.installed_table()
    assert (table.release, remark) == (release, None)
    assert set(table.tiles) == {slot.key for slot in tile_search.slots()}
    assert {chip_class(arch) for arch in table.archs} == {"small", "large"}
    for kernel in tiles.KERNELS:
        for dtype in tiles.DTYPES:
            for heavy in (False, True):
                for head_dim in range(1, tiles.MAX_HEAD_DIM + 1):
                    for arch in (*CHIPS, 87, 103, 110, 121):
                        key = tiles.safe_key(chip_class(arch), kernel, dtype, head_dim, heavy)
                        config = tiles.choose_config(kernel, dtype, head_dim, heavy, arch)
                        assert config is table.tiles[key][0]


@pytest.mark.parametrize("release", RELEASES)
def test_the_tiles_of_a_table_can_be_launched(release):
    table = tiles.load_safe()[release]
    for key, entry in table.tiles.items():
        chip = key.partition("/")[0]
        assert len(set(entry)) == len(entry) > 0
        for config in entry:
            assert launch.STRIP_KEYS % config.block_m == launch.STRIP_KEYS % config.block_n == 0
            assert config.maxnreg <= tiles.MAX_REGISTERS
            # 0 of both is a tile that no search has compiled: the report has, as it does all.
            assert config.registers == 0 or 64 <= config.registers <= config.maxnreg
            assert (config.shared_bytes > 0) == (config.registers > 0)
            for arch, limit in SHARED_LIMITS.items():
                if chip_class(arch) == chip:
                    assert config.shared_bytes <= limit


@pytest.mark.parametrize("release", RELEASES)
def test_two_programs_of_a_pair_share_a_multiprocessor(release):
    """Each was compiled, is no larger than the safe tile, and is no safe tile itself."""
    table = tiles.load_safe()[release]
    found = {slot.key: slot for slot in tile_search.slots() if slot.key in table.paired}
    assert set(found) == set(table.paired)
    for key, entry in table.paired.items():
        assert 0 < len(entry) <= len(tile_search.PAIRS)
        assert not set(entry) & set(table.tiles[key])
        (safe, *_) = table.tiles[key]
        for config in entry:
            assert (config.num_warps, config.maxnreg) in tile_search.PAIRS
            assert 64 <= config.registers <= config.maxnreg
            assert config.block_m * config.block_n <= safe.block_m * safe.block_n
            assert tile_search.shares(found[key], config)


def test_a_pair_is_never_taken_unless_it_was_measured(monkeypatch, tmp_path):
    table, _ = tiles.installed_table()
    key = tiles.safe_key("large", *ARGUMENTS[:4])
    pair = Config(32, 32, 4, 2, registers=255, shared_bytes=2000)
    monkeypatch.setattr(
        tiles, "installed_table", lambda: (replace(table, paired={key: (pair,)}), None)
    )
    assert tiles.candidates(*ARGUMENTS) == (*table.tiles[key], pair)
    assert tiles.safe_tiles(*ARGUMENTS) == table.tiles[key]
    assert tiles.paired_tiles(*ARGUMENTS) == (pair,)
    assert tiles.paired_tiles(*ARGUMENTS[:4], 80) == ()
    assert tiles.choose_config(*ARGUMENTS) == table.tiles[key][0]
    listed = list(rel_attention_compilations.compilations(90))
    (compiled,) = [each for each in listed if each.is_paired]
    assert compiled.features == "light, to be timed"
    assert compiled.tile == (32, 32)
    tuned = {tiles.tuned_gpu("A GPU"): {tiles.tuned_key(*ARGUMENTS[:4], "long"): [32, 32, 4, 2]}}
    monkeypatch.setattr(tiles, "load_tuned", lambda: tuned)
    assert tiles.choose_config(*ARGUMENTS, "long", "A GPU") == pair


def test_the_file_is_as_the_search_writes_it():
    text = tiles.SAFE_FILE.read_text(encoding="utf-8")
    assert tile_search.render(tiles.load_safe()) == text


# --- which table is taken -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "release", "own"),
    [
        ("3.6.0", "3.6", True), ("3.6.1+git0ff", "3.6", True), ("3.9.0", "3.9", True),
        ("3.7.0", "3.6", False), ("3.8.2", "3.6", False), ("3.10.0", "3.9", False),
        ("4.0.0", "3.9", False), ("3.5.1", "3.6", False),
    ],
)  # fmt: skip
def test_another_release_takes_the_nearest_older_table_and_says_so(
    version, release, own, monkeypatch
):
    install(monkeypatch, version)
    table, remark = tiles.installed_table()
    assert table is tiles.load_safe()[release]
    assert (remark is None) == own
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            tiles.choose_config(*ARGUMENTS)
    if own:
        assert not caught
        return
    assert [each.category for each in caught] == [PerformanceWarning]  # once, not twice
    asked = tiles.release_of(version)
    said = str(caught[0].message)
    assert f"no tiles were checked with Triton {asked}: those for {release} are taken" in said
    assert "xlnet-fast kernels-report --backend triton" in said


def test_info_names_tiles_that_are_another_releases(monkeypatch):
    monkeypatch.setattr(facts.triton, "triton", type("Triton", (), {"__version__": "3.8.0"}))
    install(monkeypatch, "3.8.0")
    (row,) = [row for row in facts._missing() if row["what"] == "tiles for Triton 3.8"]
    assert "those for 3.6" in row["effect"]
    assert "kernels-report" in row["remedy"]


def test_a_forced_tile_warns_of_nothing(monkeypatch):
    install(monkeypatch, "3.8.0")
    with warnings.catch_warnings(), tiles.using("forward", Config(16, 16, 4, 1)):
        warnings.simplefilter("error")
        tiles.choose_config(*ARGUMENTS)


def test_without_triton_the_newest_table_is_looked_at(monkeypatch):
    monkeypatch.setattr(tiles, "triton", None)
    assert tiles.installed_table() == (list(tiles.load_safe().values())[-1], None)


@needs_compiler
def test_the_report_says_which_tiles_it_compiles(monkeypatch, capsys):
    monkeypatch.setattr(report, "compile_report", lambda archs, on_progress: [])
    assert command.run_report(None, (90,), ("triton",)) == 0
    said = " ".join(capsys.readouterr().out.split())
    release = tiles.release_of(triton.__version__)
    assert f"Triton {triton.__version__}: tiles for {release}, chosen on sm_80" in said
    install(monkeypatch, "3.8.0")
    assert command.run_report(None, (90,), ("triton",)) == 0
    assert "no tiles were checked with Triton 3.8" in " ".join(capsys.readouterr().out.split())


# --- programs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "arch", "programs"),
    [
        (Config(128, 64, 8, 2, registers=201, shared_bytes=65536), 90, 1),
        (Config(128, 64, 8, 2, registers=128, shared_bytes=65536), 90, 2),
        (Config(128, 64, 8, 2, registers=128, shared_bytes=65536), 86, 1),  # shared memory
        (Config(64, 32, 4, 2, registers=255, shared_bytes=16384), 80, 2),
        (Config(64, 32, 4, 2, maxnreg=128), 80, 4),  # never compiled: all that it may have
        (Config(64, 32, 4, 2), 80, 2),
        (Config(128, 64, 8, 3, registers=255, shared_bytes=200_000), 86, 1),  # fits nowhere: tried
        (Config(64, 32, 4, 2, registers=128, shared_bytes=90_000), 103, 2),  # as sm_100
        (Config(64, 32, 4, 2, registers=128, shared_bytes=90_000), 121, 1),  # as sm_120
    ],
)
def test_as_many_programs_as_fit_and_no_strip_more(config, arch, programs):
    assert launch.programs_per_processor(config, arch) == programs


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("arch", CHIPS)
def test_every_tile_of_a_table_fits_as_often_as_programs_are_launched(release, arch):
    for key, entry in tiles.load_safe()[release].tiles.items():
        if not key.startswith(chip_class(arch)):
            continue
        for config in entry:
            fits = blocks_per_multiprocessor(
                arch, config.registers or config.maxnreg, 32 * config.num_warps, config.shared_bytes
            )
            assert launch.programs_per_processor(config, arch) == fits >= 1


# --- the search -----------------------------------------------------------------------------------

SLOT = tile_search.Slot("large", "backward_q", "bf16", True, 64)


def measuring(monkeypatch, spills, shared=None):
    """Rows in place of compilations; `spills(tile, arch)` says how often one spills in a loop."""
    seen = []

    def measure(compilation, arch):
        tile = (*compilation.tile, compilation.options["num_stages"])
        seen.append((tile, arch, compilation.constants.get("ATOMIC")))
        return triton_row(
            kernel=compilation.kernel, arch=arch, block_m=tile[0], block_n=tile[1],
            registers=200 + arch // 10, loop_spills=int(spills(tile, arch)),
            shared_bytes=shared or 1000 * arch, is_paired=compilation.is_paired,
        )  # fmt: skip

    monkeypatch.setattr(report, "measure", measure)
    monkeypatch.setattr(report, "require_compiler", lambda: None)
    return seen


def test_the_search_takes_the_first_tile_that_suits_every_chip_of_the_class(monkeypatch):
    first = tile_search.tried(SLOT)[0]
    seen = measuring(
        monkeypatch, lambda tile, arch: tile[:2] == (first.block_m, first.block_n) and arch == 100
    )
    table = tile_search.search((80, 90, 100), only=[SLOT], workers=1)
    (found,) = table.tiles[SLOT.key]
    assert (found.block_m, found.block_n) != (first.block_m, first.block_n)
    assert (found.registers, found.shared_bytes) == (210, 100_000)
    assert table.archs == (80, 90, 100)
    assert {arch for _, arch, _ in seen} == {90, 100}  # sm_80 is of the other class
    assert {atomic for _, _, atomic in seen} == {True, False}
    others = {key: entry for key, entry in table.tiles.items() if key != SLOT.key}
    assert others == {k: v for k, v in tiles.installed_table()[0].tiles.items() if k != SLOT.key}


def test_a_chip_that_was_not_compiled_for_still_bounds_shared_memory():
    row = triton_row(arch=80)
    small = tile_search.Slot("small", "forward", "bf16", False, 64)
    limit = SHARED_LIMITS[86]
    assert tile_search.judge(small, [row | {"shared_bytes": limit}]) == []
    (problem,) = tile_search.judge(small, [row | {"shared_bytes": limit + 1}])
    assert "bytes of shared memory" in problem
    (problem,) = tile_search.judge(small, [row | {"shared_bytes": SHARED_LIMITS[80] + 1}])


def test_a_search_that_finds_nothing_or_has_no_chip_says_so(monkeypatch):
    measuring(monkeypatch, lambda tile, arch: 0, shared=10**6)
    with pytest.raises(ArgumentError, match=f"no tile suits {SLOT.key}: .* needs 1000000 bytes"):
        tile_search.search((90,), only=[SLOT], workers=1)
    with pytest.raises(ArgumentError, match="no chip of the class 'small' is among"):
        tile_search.search((90,), workers=1)


def test_where_every_candidate_spills_the_least_is_taken_and_named(monkeypatch):
    least = tile_search.tried(SLOT)[-2]
    tile = (least.block_m, least.block_n, least.num_stages)
    measuring(monkeypatch, lambda each, arch: 1 if each == tile else 9)
    table = tile_search.search((90,), only=[SLOT], workers=1)
    assert table.tiles[SLOT.key] == (least,)
    assert table.tiles[SLOT.key][0].registers == 209
    assert SLOT.key in table.spilling
    measuring(monkeypatch, lambda each, arch: 0)
    assert SLOT.key not in tile_search.search((90,), only=[SLOT], workers=1).spilling


@pytest.mark.parametrize("warps", [4, 8])
def test_the_search_finds_pairs_no_larger_than_the_safe_tile(monkeypatch, warps):
    """The largest that spills little enough and leaves room for two, of either kind."""
    allowed = PAIRED_LOOP_SPILLS
    (safe, *_) = tile_search.tried(SLOT)
    area = safe.block_m * safe.block_n
    areas = []

    def measure(compilation, arch):
        tile, options = compilation.tile, compilation.options
        is_pair = compilation.is_paired
        if is_pair:
            areas.append(tile[0] * tile[1])
        spills = 0
        if is_pair:
            spills = allowed if (options["num_warps"], areas[-1]) == (warps, area // 2) else 99
        return triton_row(
            kernel=compilation.kernel, arch=arch, registers=options["maxnreg"],
            loop_spills=spills, shared_bytes=shared, is_paired=is_pair,
        )  # fmt: skip

    monkeypatch.setattr(report, "measure", measure)
    monkeypatch.setattr(report, "require_compiler", lambda: None)
    shared = 100_000
    (pair,) = tile_search.search((90,), only=[SLOT], workers=1).paired[SLOT.key]
    assert (pair.num_warps, pair.maxnreg) in tile_search.PAIRS
    assert (pair.num_warps, pair.block_m * pair.block_n) == (warps, area // 2)
    assert (pair.registers, pair.shared_bytes) == (pair.maxnreg, 100_000)
    assert max(areas) == area
    shared = 120_000  # two are more than the 228 KiB of a multiprocessor
    assert SLOT.key not in tile_search.search((90,), only=[SLOT], workers=1).paired


def test_a_pair_that_does_not_compile_is_passed_over(monkeypatch):
    measuring(monkeypatch, lambda tile, arch: 0)
    genuine = report.measure

    def measure(compilation, arch):
        if compilation.is_paired:
            raise ArgumentError("does not compile")
        return genuine(compilation, arch)

    monkeypatch.setattr(report, "measure", measure)
    table = tile_search.search((90,), only=[SLOT], workers=1)
    assert SLOT.key in table.tiles
    assert table.paired == {
        key: entry for key, entry in tiles.installed_table()[0].paired.items() if key != SLOT.key
    }


def test_candidates_are_no_larger_than_what_is_known_and_never_twice():
    for slot in tile_search.slots():
        tried = tile_search.tried(slot)
        known = tiles.installed_table()[0].tiles[slot.key]
        assert tried[: len(known)] == known
        assert len(set(tried)) == len(tried)
        area = [config.block_m * config.block_n for config in tried]
        tables = [table.tiles[slot.key] for table in tiles.load_safe().values()]
        assert max(area) == max(c.block_m * c.block_n for entry in tables for c in entry)


def test_a_table_is_put_beside_those_of_other_releases(monkeypatch, tmp_path):
    path = tmp_path / "safe_tiles.json"
    monkeypatch.setattr(tiles, "SAFE_FILE", path)
    tile = [16, 16, 8, 2, 255, 9, 9]
    entry = {"archs": [80], "spilling": ["a"], "tiles": {"a": [tile]}, "paired": {"a": [tile]}}
    path.write_text(json.dumps({"3.6": entry}))
    pair = {"a": (Config(16, 16, 4, 2, 255, 200, 900),)}
    new = Table("3.10", (80, 90), {"a": (Config(32, 32, 8, 2, 128, 100, 2000),)}, paired=pair)
    tile_search.write(new)
    tile_search.write(new)
    tables = tiles.load_safe()
    assert list(tables) == ["3.6", "3.10"]
    assert tables["3.10"] == new
    assert tables["3.10"].tiles["a"][0].shared_bytes == 2000
    assert tables["3.6"].tiles["a"] == (Config(16, 16, 8, 2),)
    assert tables["3.6"].paired == tables["3.6"].tiles
    assert tables["3.10"].paired["a"][0].registers == 200
    assert tables["3.6"].spilling == ("a",)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_command_writes_what_the_search_finds(monkeypatch, tmp_path, capsys):
    written = []
    table = Table("3.6", (80, 90), {"a": (Config(32, 32, 8, 2),)})
    monkeypatch.setattr(tile_search, "search", lambda archs, on_progress: table)
    monkeypatch.setattr(tile_search, "write", written.append)
    assert command.write_tiles((80, 90)) == 0
    assert written == [table]
    assert "wrote 1 entries for Triton 3.6, compiled for sm_80, sm_90" in capsys.readouterr().out
    spilling = replace(table, spilling=("a",))
    monkeypatch.setattr(tile_search, "search", lambda archs, on_progress: spilling)
    assert command.write_tiles() == 1
    assert "a: every candidate spills" in capsys.readouterr().out

    def fail(*_, **__):
        raise BackendUnavailable("there is no compiler")

    monkeypatch.setattr(tile_search, "search", fail)
    assert command.write_tiles() == 2
    assert "kernels-report: there is no compiler" in capsys.readouterr().out
    assert len(written) == 2


@needs_compiler
def test_chosen_tiles_compile_as_the_table_says(monkeypatch):
    """A sample of what the whole report compiles, of both classes, with the installed Triton."""
    checked = []

    def disorder(text, parameter):
        checked.append((text, parameter))
        return ptx.disorder(text, parameter)

    monkeypatch.setattr(report, "ptx", type("Checking", (), {"disorder": disorder}))
    for arch, kernel in ((80, "forward"), (90, "backward_kv")):
        (config, *_) = tiles.candidates(kernel, torch.bfloat16, 64, False, arch)
        row = report.measure(
            rel_attention_compilations.compilation(kernel, "bf16", 64, False, config, None), arch
        )
        assert check([row]) == []
        if config.registers > 0:
            assert row["registers"] <= config.registers
            assert row["shared_bytes"] <= config.shared_bytes
        (text, parameter) = checked.pop()
        unguarded = ptx.disorder(text.replace("bar.sync", "// bar.sync"), parameter)
        assert any("loads what was stored" in problem for problem in unguarded)
        assert any("overwrites what was loaded" in problem for problem in unguarded)
