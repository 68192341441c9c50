"""Tables, plots, the HTML page, the tables and the picture of the docs, from made-up results."""

import re
from html.parser import HTMLParser

import pytest

from benchmarks.harness.record import ResultsWriter, Row, environment
from benchmarks.pages import plot, readme_picture, readme_table, report
from benchmarks.pages.console import make_console, print_table
from benchmarks.pages.table import (
    provider_label,
    provider_order,
    shape_label,
    speedup_text,
    tables,
    time_text,
)

TIMES = {"hf_eager": 8000.0, "hf_compile": 6000.0, "ours": 4000.0, "ours_compile": 2000.0}


def make_rows(kernel="model", lengths=(128, 512), times=TIMES, pass_name="forward"):
    rows = []
    for length in lengths:
        for dtype in ("fp32", "bf16"):
            for provider, time_us in times.items():
                rows.append(
                    Row(
                        kernel, provider, pass_name, dtype, 2, length, 0, 12, 64, 12, "padding",
                        "ok", "", 3, time_us * 0.9, time_us, time_us * 1.1,
                        times["hf_eager"] / time_us, times.get("hf_compile", 0) / time_us or None,
                        None, 0.5, None, time_us / 100, 1e-6, 2e-6, device="Some <CPU>",
                        torch="2.0", transformers="5.0", commit="abc123", dirty="true",
                    )
                )  # fmt: skip
    return rows


@pytest.fixture
def results(tmp_path):
    info = environment("cpu")
    path = tmp_path / "cpu.csv"
    with ResultsWriter(path, info, "full") as writer:
        for row in make_rows():
            writer.add(row)
    return path


def test_numbers_as_a_reader_sees_them():
    assert time_text(12.34) == "0.0123"
    assert time_text(1_234_567.0) == "1,235"
    assert time_text(None) == ""
    assert speedup_text(2.345) == "2.35x"
    assert speedup_text(0.5) == "0.50x slower"
    assert provider_label("ours_triton") == "ours (triton)"
    order = provider_order(["sdpa_flash", "ours_sdpa", "ours", "hf_eager", "ours_compile"])
    assert order == ["hf_eager", "ours", "ours_sdpa", "ours_compile", "sdpa_flash"]
    memory = Row("rel_attention", "ours", "forward", "fp32", 1, 8, 4, 1, 1, 1, "", "ok")
    assert shape_label(memory) == "1x8+4"


def test_the_table_takes_the_better_of_ours_against_compiled():
    (table,) = tables(make_rows())
    line = dict(zip(table.header, table.rows[0], strict=True))
    assert table.title == "Whole model, inference"
    assert line["speed-up\nover\nHF eager"] == "2.00x"
    assert line["speed-up\nover HF\ncompiled"] == "3.00x"
    assert line["memory\nours,\nMiB"] == "40"
    assert len(table.rows) == 4


def test_the_page_begins_with_the_gain_and_a_narrow_window_cuts_off_no_gain():
    rows = make_rows(lengths=(128,))
    (table,) = tables(rows)
    assert [name.split()[0] for name in table.header[2:6]] == ["speed-up"] * 2 + ["memory"] * 2
    for row in rows[:4]:
        row.features = "22 targets+permutation+segments+bi_data"
    page = report.render(rows, {"model": "the user's: 12 layers"}, [], ["Busy"])
    assert re.search(r"<body>\s*<h1>Your model: 2\.0x at 2x128 fp32 over Hugging Face", page)
    places = [page.index(text) for text in ("accelerate(model)", "Busy", "<table>", "medians")]
    assert places == sorted(places)
    assert "<td class='long'>22 targets+\N{ZERO WIDTH SPACE}perm" in page


def test_features_floors_and_ceilings_have_their_columns():
    rows = make_rows("rel_attention", (128,), {"hf_eager": 8.0, "ours": 4.0, "ours_triton": 2.0})
    for row in rows:
        row.bandwidth_gb_s = 3000.0
        row.time_over_floor = 3.2 if row.provider == "ours" else 1.6
    plain = make_rows("rel_attention", (128,), {"hf_eager": 8.0, "ours": 4.0})
    for row in plain:
        row.features = "segments+dropout 0.1"
    copy = Row("ceiling", "torch", "copy", "fp32", 1, 1024, 0, 1, 1, 1, "plain", "ok",
               bandwidth_gb_s=3200.0)  # fmt: skip
    ceilings, table = tables([copy, *rows, *plain])
    assert ceilings.rows == [["copy", "fp32", "1,024", "3.2e+03", ""]]
    lines = [dict(zip(table.header, line, strict=True)) for line in table.rows]
    assert [line["with"] for line in lines] == ["pad", "pad", "seg+drop 0.1", "seg+drop 0.1"]
    assert lines[0]["ours /\nfloor"] == "1.60 (triton)"
    assert lines[0]["TFLOP/s\nours"] == "0.5"
    assert lines[2]["ours /\nfloor"] == ""
    (plainer,) = tables(make_rows("rel_attention", (128,)))
    assert not {"with", "ours /\nfloor", "GB/s\nours"} & set(plainer.header)


def test_pretraining_steps_have_tokens_per_second_and_layers():
    rows = make_rows("pretraining", (512,), pass_name="training_step")
    large = make_rows("pretraining", (512,), {"hf_eager": 8000.0}, "training_step")
    for row in large:
        row.layers, row.p50_us, row.status = 24, None, "failed"
        row.speedup_over_hf_eager = row.speedup_over_hf_compile = None
    (table,) = tables(rows + large)
    lines = [dict(zip(table.header, line, strict=True)) for line in table.rows]
    assert table.title == "Whole model with two streams and memory, training step"
    assert [line["layers"] for line in lines] == ["12", "12", "24", "24"]
    assert lines[0]["tokens/s\nours"] == "512,000"  # 2 x 512 in the compiled one's 2 ms
    assert lines[0]["tokens/s\nHF"] == "128,000"
    assert lines[2]["tokens/s\nours"] == ""
    (other,) = tables(make_rows(pass_name="training_step"))
    assert not {"tokens/s\nours", "layers"} & set(other.header)


def test_a_plot_shows_one_set_of_features():
    rows = make_rows("rel_attention", (128, 512)) + make_rows("rel_attention", (128,))
    for row in rows[16:]:
        row.features = "plain"
    assert {row.features for row in plot._of_one_kind(rows)} == {"padding"}


def test_losses_are_shown_as_losses():
    (table,) = tables(make_rows(times={"hf_eager": 1000.0, "ours": 2000.0}))
    assert table.rows[0].count("0.50x slower") == 1
    page = report.render(make_rows(times={"hf_eager": 1000.0, "ours": 2000.0}), {}, [], [])
    assert "<td class='loss'>0.50x slower</td>" in page


def test_reasons_stand_under_the_table():
    rows = make_rows(lengths=(128,))
    for row in rows:
        if row.provider == "hf_compile":
            row.status, row.reason, row.p50_us = "not_run", "no time", None
            row.speedup_over_hf_eager = None
    (table,) = tables(rows)
    assert table.notes == ["HF compiled, not run (every case): no time"]


def test_the_terminal_table_fits_and_names_backends_only_when_asked(capsys):
    rows = make_rows("rel_attention", times=TIMES | {"ours_sdpa": 4000.0})
    (short,), (long,) = tables(rows, named_backends=False), tables(rows)
    assert len(long.header) == len(short.header) + 1
    print_table(make_console(), short)
    out = capsys.readouterr().out
    assert "2.00x" in out
    assert "…" not in out


def test_plots_are_png_and_the_page_holds_them_and_nothing_from_outside(tmp_path):
    rows = make_rows() + make_rows("rel_attention", pass_name="forward_backward")
    plots = plot.draw_all(rows, tmp_path)
    assert [p.name for p in plots] == [
        "model_speedup.png", "model_time.png", "model_memory.png",
        "rel_attention_forward_backward_speedup.png", "rel_attention_forward_backward_time.png",
        "rel_attention_forward_backward_memory.png",
    ]  # fmt: skip
    assert {p.name for p in plots} <= plot.FILE_NAMES
    for path in plots:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG\r\n")
        assert int.from_bytes(data[16:20], "big") > 600  # width in pixels
    again = tmp_path / "again"
    again.mkdir()
    one_plot = make_rows(times={"hf_eager": 8000.0})
    first, second = (plot.draw_all(one_plot, again)[0].read_bytes() for _ in range(2))
    assert first == second

    info = environment("cpu")
    page = report.write_report(tmp_path, rows, info, plots, ["Red <check>"]).read_text()
    sources = re.findall(r"(?:src|href)=['\"]([^'\"]*)", page)
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "Red &lt;check&gt;" in page
    assert info["versions"]["torch"] in page
    _assert_balanced(page)


def _assert_balanced(page):
    stack = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img", "br"):
                stack.append(tag)

        def handle_endtag(self, tag):
            assert stack.pop() == tag

    Parser().feed(page)
    assert stack == []


def test_no_data_no_plot(tmp_path):
    assert plot.draw_all([], tmp_path) == []
    only = plot.draw_all(make_rows(lengths=(128,), times={"hf_eager": 5.0}), tmp_path)
    assert [p.name for p in only] == ["model_memory.png"]


def test_the_command_lines_of_plot_and_report(tmp_path, results, capsys):
    assert plot.main([str(results), "--out", str(tmp_path / "plots")]) == 0
    assert (tmp_path / "plots" / "model_speedup.png").exists()
    assert "model_speedup.png" in capsys.readouterr().out


def test_the_tables_of_the_docs_come_from_the_csv(tmp_path, results, capsys):
    page = tmp_path / "benchmarks.md"
    page.write_text(f"# Title\n\n{readme_table.START}\nold\n{readme_table.END}\n\nEnd\n")
    arguments = ["--page", str(page), str(results)]
    assert readme_table.main([*arguments, "--check"]) == 1
    assert "old" in page.read_text()
    assert readme_table.main(arguments) == 0
    text = page.read_text()
    assert text.startswith("# Title\n\n<!-- benchmark:start -->\n")
    assert text.endswith("<!-- benchmark:end -->\n\nEnd\n")
    assert "old" not in text
    line = "| 2x128 | fp32 | inference | 8 | 6 | 4 | 2 | 2.00x | 3.00x | 1.0e-06 (1.0e-06) |"
    assert line in text
    assert readme_table.main([*arguments, "--check"]) == 0
    results.write_text(results.read_text().replace(",4000,", ",4400,"))
    assert readme_table.main([*arguments, "--check"]) == 1


def test_the_docs_have_a_table_of_pretraining_steps_where_there_are_any(results):
    assert "pretraining" not in readme_table.markdown([results])
    rows = make_rows("pretraining", (512,), TIMES, "training_step")
    with ResultsWriter(results, environment("cpu"), "full", append=True) as writer:
        for row in rows:
            row.memory_length = 384
            if row.provider == "hf_eager":
                row.peak_memory_mib = None
            writer.add(row)
    text = readme_table.markdown([results])
    line = "| 2x512+384 | 12 | fp32 | 8 | 6 | 4 | 2 | 2.00x | 3.00x | 512,000 (128,000) | 40 (-) |"
    assert line in text
    header, rule = text.splitlines()[-4:-2]
    assert header.count("|") == rule.count("|") == line.count("|")
    assert "| 2x128 | fp32 | inference |" in text


@pytest.mark.parametrize(
    "content", ["no markers", "<!-- benchmark:end --><!-- benchmark:start -->"]
)
def test_a_page_without_markers_is_refused(tmp_path, results, content, capsys):
    page = tmp_path / "benchmarks.md"
    page.write_text(content)
    assert readme_table.main(["--page", str(page), str(results)]) == 2
    assert "each once" in capsys.readouterr().err
    assert page.read_text() == content


def test_a_csv_without_model_rows_is_refused(tmp_path):
    path = tmp_path / "results.csv"
    with ResultsWriter(path, environment("cpu"), "full"):
        pass
    with pytest.raises(ValueError, match="no timed rows of the model"):
        readme_table.markdown([path])
    with pytest.raises(ValueError, match="no results CSV"):
        readme_table.markdown([])


def test_the_picture_holds_the_numbers_that_it_shows(tmp_path, results, capsys):
    with ResultsWriter(results, environment("cpu"), "full", append=True) as writer:
        for row in make_rows("rel_attention"):
            row.batch = 1
            writer.add(row)
    arguments = ["--out", str(tmp_path / "speed.png"), str(results)]
    assert readme_picture.main(arguments) == 0
    numbers = readme_picture.numbers_in(tmp_path / "speed.png")
    assert numbers["speed"]["fp32"]["ours"] == {"2x128": 2.0, "2x512": 2.0}
    assert numbers["memory"]["bf16"]["hf_eager"] == {"128": 80.0, "512": 80.0}
    assert readme_picture.main([*arguments, "--check"]) == 0
    results.write_text(results.read_text().replace(",80,", ",88,"))
    assert readme_picture.main([*arguments, "--check"]) == 1
    capsys.readouterr()


def test_a_picture_from_elsewhere_is_refused(tmp_path, results, capsys):
    (tmp_path / "other.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(12))
    with pytest.raises(ValueError, match="does not hold the numbers"):
        readme_picture.numbers_in(tmp_path / "other.png")
    assert readme_picture.main(["--check", str(results)]) == 2
    assert "attention alone" in capsys.readouterr().err
