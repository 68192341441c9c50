"""Table and picture of Transformer-XL's benchmark, from made-up results."""

from __future__ import annotations

import pytest

from benchmarks.harness.record import ResultsWriter, Row, environment
from benchmarks.pages import plot, readme_table, transfo_xl_plot, transfo_xl_table
from benchmarks.pages.headline import case_line, headline
from benchmarks.pages.table import tables


def row(provider, pass_name, length, memory, features, time_us, **other):
    versions = {"hf_eager": "4.37.2", "ours": "5.24.0"}
    return Row(
        "transfo_xl", provider, pass_name, "fp32", 1, length, memory, 16, 64, 2, features, "ok",
        p50_us=time_us, device="Some CPU", torch="2.13", transformers=versions[provider], **other,
    )  # fmt: skip


def made_up():
    read = ("forward", 128, 1600, "memory carried")
    text = ("text", 64, 128, "200 tokens")
    return [
        row("hf_eager", *read, 8000.0, peak_memory_mib=300.0, error=2e-6),
        row("ours", *read, 4000.0, speedup_over_hf_eager=2.0, peak_memory_mib=100.0, error=1e-6),
        row("hf_eager", *text, 9000.0),
        row("ours", *text, 18000.0, speedup_over_hf_eager=0.5),
    ]


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "transfo-xl-cpu.csv"
    with ResultsWriter(path, environment("cpu"), "full") as writer:
        for each in made_up():
            writer.add(each)
    return path


def test_the_page_of_the_docs_has_the_table(results):
    lines = readme_table.markdown([results]).splitlines()
    assert "`benchmarks/results/transfo-xl-cpu.csv`" in lines[0]
    assert "HF is transformers 4.37.2 with torch 2.13, ours with transformers 5.24.0" in lines[0]
    assert lines[-2:] == [
        "| evaluation | 1x128+1600 | fp32 | 8 | 4 | 2.00x | 32,000 (16,000) | 100 (300) "
        "| 1.0e-06 (2.0e-06) |",
        "| text, 200 tokens | 1x64+128 | fp32 | 9 | 18 | 0.50x slower | 56 (111) | - (-) | - |",
    ]
    assert {line.count("|") for line in lines[2:]} == {10}


def test_the_readme_has_a_column_for_each_case(results, tmp_path, monkeypatch):
    lines = transfo_xl_table.short_table([results]).splitlines()
    assert "`python -m benchmarks transfo_xl`" in lines[0]
    assert lines[2:] == [
        "| evaluation, 128 + 1600 | text, 200 tokens, 64 + 128 |",
        "|--:|--:|",
        "| 2.00x | 0.50x slower |",
    ]
    empty = tmp_path / "empty.csv"
    with ResultsWriter(empty, environment("cpu"), "full"):
        pass
    assert transfo_xl_table.short_table([empty, results]).splitlines() == lines
    with pytest.raises(ValueError, match="holds timed rows of Transformer-XL"):
        transfo_xl_table.short_table([empty])
    # In the README where it has a place for it, beside that of speech encoders.
    monkeypatch.setattr(readme_table.speech_table, "short_table", lambda files: "speech")
    monkeypatch.setattr(readme_table, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setattr(readme_table, "ROOT", tmp_path)
    both = f"{readme_table.START}\n{readme_table.END}\n"
    (tmp_path / "benchmarks.md").write_text(both)
    place = f"{both}{transfo_xl_table.START}\n{transfo_xl_table.END}\n"
    for page, told in ((both, False), (place, True)):
        (tmp_path / "README.md").write_text(page)
        assert readme_table.main([str(results)]) == 0
        assert ("| 2.00x |" in (tmp_path / "README.md").read_text()) == told
        assert "speech" in (tmp_path / "README.md").read_text()
        assert readme_table.main(["--check", str(results)]) == 0


def test_the_picture_and_the_headline(tmp_path):
    rows = made_up()
    assert transfo_xl_plot.speedups(rows) == {
        "evaluation\n1x128+1600 fp32": 2.0, "text, 200 tokens\n1x64+128 fp32": 0.5,
    }  # fmt: skip
    assert transfo_xl_plot.memory(rows) == {
        "evaluation\n1x128+1600 fp32": {"hf_eager": 300.0, "ours": 100.0}
    }
    assert [path.name for path in plot.draw_all(rows, tmp_path)] == ["transfo_xl.png"]
    assert "transfo_xl.png" in plot.FILE_NAMES
    assert headline(rows, {}).startswith("Transformer-XL: 2.0x at 1x128+1600 fp32")
    assert case_line(rows[:2]) == (
        "transfo_xl 1x128+1600 fp32 inference (memory carried): HF eager 8 ms, ours 4 ms (2.00x)"
    )
    assert [table.title for table in tables(rows)] == [
        "Transformer-XL, inference", "Transformer-XL, time per token of a text",
    ]  # fmt: skip
    (line,) = tables(rows)[0].rows
    assert "32,000" in line
