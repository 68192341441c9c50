"""The arithmetic of the backward plan: units and clocks by hand, a row for every way."""

from __future__ import annotations

import pytest

from benchmarks.micro import backward_plan as plan


def test_units_are_those_counted_by_hand():
    assert plan.units(plan.WAYS["today"], 512) == pytest.approx(5.5 + 5.25 + 5.55)
    # The owner of keys, dS k, and two products with rows of 512 + 128.
    assert plan.units(plan.WAYS["keys"], 512) == pytest.approx(5.25 + 1 + 2 * 1.25)
    assert plan.units(plan.WAYS["rows"], 512) == pytest.approx(5.5 + 2 + 1.25)
    # Two of ten windows of rows of r lie beyond 512 keys, two of 34 beyond 2048.
    assert plan.units(plan.WAYS["today"], 2048) == pytest.approx(
        10.75 + 5.55 * (34 / 32) / (10 / 8)
    )


def test_clocks_are_those_counted_by_hand():
    # 1 byte a clock: 8192 bytes written take 8192 clocks, as does each of the products that read.
    slow = plan.Chip(1, 1.0, 0.001, 10**9)
    way = plan.Way(("backward_q",), 1, 0, 2, 0)
    assert plan.clocks(way, slow, 512) == pytest.approx(3 * 8192)
    # Free memory: the kernel's accesses and half of the peak.
    fast = plan.Chip(1, 1.0, 1e9, 1024)
    assert plan.clocks(way, fast, 512) == pytest.approx(2388 + 2 * 512)
    assert plan.clocks(plan.WAYS["today"], fast, 512) == pytest.approx(2388 + 2430 + 3018)


def test_memory_is_that_of_the_tensors_of_scores():
    assert plan.chunk_mib(plan.WAYS["today"], 32, 512) == 0
    assert plan.chunk_mib(plan.WAYS["keys"], 32, 512) == pytest.approx(16 * (1 + 1.25))


def test_the_table_has_a_row_for_every_way(capsys):
    plan.main(["--batch", "2", "--heads", "3", "--length", "128"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows[-3:]] == list(plan.WAYS)
    chip = plan.CHIPS["H100"]
    time_ms = plan.clocks(plan.WAYS["keys"], chip, 128) * 2 * 3 * 4 / 132 / 1.7e6
    assert rows[-2].split("│")[5].split(",")[1].strip() == f"{time_ms:.2f}"


@pytest.mark.parametrize("arguments", [["--length", "65"], ["--batch", "0"], ["--heads", "0"]])
def test_refuses(arguments, capsys):
    with pytest.raises(SystemExit):
        plan.main(arguments)
    assert "a multiple of 64" in capsys.readouterr().err
