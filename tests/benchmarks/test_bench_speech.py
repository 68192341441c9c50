"""The benchmark of speech encoders: the same outputs or no time, tables and picture."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

import xlnet_fast
from benchmarks import __main__ as names
from benchmarks import bench_speech, run
from benchmarks.cases import speech
from benchmarks.cases.shapes import SpeechShape
from benchmarks.cases.speech import (
    MODELS,
    SpeechCase,
    as_loaded,
    make_encoder,
    mask_of,
    needed_bytes,
    real_frames,
)
from benchmarks.harness import presets
from benchmarks.harness.memory import free_bytes
from benchmarks.harness.record import ResultsWriter, Row, environment, read_results
from benchmarks.harness.timing import Plan
from benchmarks.pages import plot, readme_table, speech_plot, speech_table
from benchmarks.pages.headline import case_line, headline
from benchmarks.pages.table import tables
from benchmarks.providers.speech import attention_of, exact_result, make_work
from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf.families import ENTRIES

CPU = torch.device("cpu")
_SIZES = {
    "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48,
    "speech_encoder_attention_heads": 2, "speech_encoder_intermediate_size": 48,
    "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "max_position_embeddings": 64,
    "hidden_dim": 32, "num_heads": 2, "dim_head": 16, "context_size": 8, "max_pos_emb": 16,
    "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
    "vocab_size": 40, "t2u_vocab_size": 40,
}  # fmt: skip


def small(name):
    """The same encoder, a few frames a second and few channels wide."""
    model = MODELS[name]
    module = __import__(
        f"transformers.models.{model.module}.modeling_{model.module}", fromlist=["x"]
    )
    config = getattr(module, model.architecture).config_class()
    sizes = {key: value for key, value in _SIZES.items() if hasattr(config, key)}
    width = model.width if model.width == 160 else 32
    return replace(
        model, options={**model.options, **sizes}, width=width, heads=2, head_dim=16,
        frames_per_s=4.5, block=min(model.block, 8),
    )  # fmt: skip


TINY = replace(
    presets.preset("full", "cpu"),
    name="tiny",
    speech_plan=Plan(min_rounds=3, max_rounds=3, min_sample_us=1.0),
    dtypes=("fp32", "bf16"),
    speech_shapes=(
        SpeechShape("Parakeet", 4, 2, memory=True),
        SpeechShape("Parakeet", 2, attention=True, memory=True),
    ),
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(MODELS, "Parakeet", small("Parakeet"))
    monkeypatch.setattr(run.MemoryWorker, "peak_mib", lambda *_: 3.0)


def bench(folder, preset=TINY, **options):
    return run.run_bench(preset, device="cpu", out=folder, only=("speech",), **options)


def test_a_run_leaves_times_of_encoders_and_of_attention(tmp_path, tiny, capsys):
    assert bench(tmp_path) == 0
    rows = read_results(tmp_path / "results.csv")
    timed = [(r.kernel, r.dtype, r.provider) for r in rows if r.status == "ok"]
    assert timed == [
        (kernel, dtype, provider)
        for kernel in ("speech", "speech_attention")
        for dtype in ("fp32", "bf16")
        for provider in ("hf_eager", "ours")
    ]
    first = rows[0]
    assert (first.batch, first.length, first.heads, first.head_dim, first.layers) == (
        2,
        18,
        2,
        16,
        2,
    )
    assert first.features == "Parakeet, 4 s"
    assert rows[-1].layers == 1
    assert first.peak_memory_mib == 3.0
    assert {r.reason for r in rows if r.provider.endswith("compile")} == {
        "the tiny preset compiles 1 x 60 s alone"
    }
    assert (tmp_path / "speech.png").exists()
    printed = capsys.readouterr().out
    assert "Speech encoder, inference" in printed
    assert "speech 2x18 fp32 inference (Parakeet, 4 s)" in printed
    assert "2 layers, random weights" in (tmp_path / "environment.json").read_text()


def test_what_is_computed_otherwise_is_red_and_not_timed(tmp_path, tiny, monkeypatch):
    genuine = xlnet_fast.accelerate

    def wrong(model):
        model = genuine(model)
        attention_of(model).register_forward_hook(lambda _, __, out: (out[0].roll(1, 1), None))
        return model

    monkeypatch.setattr(xlnet_fast, "accelerate", wrong, raising=False)
    assert bench(tmp_path, dtype="fp32", pages=False) == 1
    rows = [row for row in read_results(tmp_path / "results.csv") if row.provider == "ours"]
    assert [row.kernel for row in rows] == ["speech", "speech_attention"]
    assert {(row.status, row.p50_us) for row in rows} == {("red", None)}


def test_compiling_is_left_out_by_an_option(tmp_path, tiny):
    compiled = replace(TINY, speech_shapes=(SpeechShape("Parakeet", 2, compiled=True),))
    assert bench(tmp_path, compiled, dtype="fp32", compiled=False, pages=False) == 0
    rows = read_results(tmp_path / "results.csv")
    assert [row.status for row in rows] == ["ok", "ok", "not_run", "not_run"]
    assert "at most 0 s on torch.compile" in rows[-1].reason


def test_what_does_not_fit_is_told_and_not_begun(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(bench_speech, "free_bytes", lambda device: 1000.0)
    monkeypatch.setattr(bench_speech, "make_encoder", lambda *_: pytest.fail("it was made"))
    assert bench(tmp_path, pages=False) == 1
    rows = read_results(tmp_path / "results.csv")
    assert {row.status for row in rows} == {"not_run"}
    assert "in float64 takes about 0 GiB, and 0 are free" in rows[0].reason
    assert free_bytes(CPU) > 1000


def test_it_runs_where_it_is_asked_for_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "main", lambda arguments, only: (arguments, only))
    assert names.main(["speech", "--quick"]) == (["--quick"], ("speech",))
    full = presets.preset("full", "cpu")
    assert "speech" not in run._chosen(full, run.KERNELS)
    assert run._chosen(full, ["speech"]) == ("speech",)
    assert {shape.model for shape in full.speech_shapes} == set(MODELS)
    assert {shape.model for shape in presets.preset("quick", "cpu").speech_shapes} == set(MODELS)
    for given in ({"model": "a folder"}, {"text": "a file"}):
        with pytest.raises(ArgumentError, match="random weights"):
            run.run_bench("quick", only=("speech",), out=tmp_path, **given)


def test_a_child_makes_the_same_work():
    for attention in (False, True):
        case = SpeechCase(2, 1, "bf16", attention)
        request = {"provider": "ours", "model": asdict(small("Parakeet")), "case": asdict(case)}
        assert bench_speech.memory_request(request)().shape == (1, 9, 32)


@pytest.mark.parametrize("name", MODELS)
def test_every_encoder_is_taken_and_right(name):
    model = small(name)
    assert f"transformers.models.{model.module}.modeling_{model.module}" in {
        entry.module for entry in ENTRIES
    }
    encoder = make_encoder(model)
    for attention in (False, True):
        case = SpeechCase(4, 3, "fp32", attention)
        ours, theirs = (
            make_work(p, model, case, encoder).result()[0] for p in ("ours", "hf_eager")
        )
        (exact,) = exact_result(model, case, as_loaded(encoder, torch.float64, CPU))
        assert ours.shape == exact.shape == (3, 18, 32)
        real = real_frames(model, case)
        assert bool(real.all()) != model.padded
        assert torch.equal(ours.any(-1), real)  # what is padding is left out
        torch.testing.assert_close(theirs.double(), exact, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_heads_are_those_of_the_checkpoint(name, monkeypatch):
    """Without making the weights: they are of a billion numbers."""
    model = MODELS[name]
    monkeypatch.setattr(speech, "round_weights", lambda encoder: encoder)
    with torch.device("meta"):
        attention = attention_of(make_encoder(model, 1))
    sizes = {"head_dim", "head_size", "dim_head"} & set(vars(attention))
    assert [getattr(attention, key) for key in sizes] == [model.head_dim]
    widest = max(
        layer.weight.shape[0] for layer in attention.children() if hasattr(layer, "weight")
    )
    assert model.heads * model.head_dim in (
        widest,
        widest // 2,
    )  # Granite's keys and values are one


def test_numbers_of_a_case():
    parakeet, granite = MODELS["Parakeet"], MODELS["Granite speech"]
    case = SpeechCase(240, 4, "fp32")
    assert case.frames(parakeet) == 3000
    assert needed_bytes(parakeet, case) == 8 * 5 * 8 * 3000**2
    assert needed_bytes(granite, case) == 8 * 5 * 8 * 12000 * 200
    real = real_frames(parakeet, case)
    assert real.sum(1).tolist() == [3000, 2550, 2100, 1650]
    assert mask_of(parakeet, real).sum(1).tolist() == [24000, 20400, 16800, 13200]
    assert mask_of(parakeet, real[:1]) is None
    with pytest.raises(ValueError, match="dtype must be one of"):
        SpeechCase(1, 1, "fp8")
    with pytest.raises(ValueError, match="seconds > 0"):
        SpeechCase(0, 1, "fp32")


def test_what_no_file_holds_stays_in_fp32():
    encoder = make_encoder(small("Parakeet"), 1)
    half = as_loaded(encoder, torch.bfloat16, CPU)
    assert half.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    assert torch.equal(half.encode_positions.inv_freq, encoder.encode_positions.inv_freq)
    assert half.encode_positions.inv_freq.dtype == torch.float32


def row(kernel, provider, seconds, dtype, time_us, **other):
    return Row(
        kernel, provider, "forward", dtype, 1, 125 * seconds // 10, 0, 8, 128, 2,
        f"Parakeet, {seconds} s", "ok", p50_us=time_us, device="Some CPU", torch="2.0", **other,
    )  # fmt: skip


def made_up():
    rows = []
    for seconds in (10, 240):
        for dtype, factor in (("fp32", 2.0), ("bf16", 0.5)):
            rows += [
                row("speech", "hf_eager", seconds, dtype, 8000.0, error=2e-6),
                row("speech", "ours", seconds, dtype, 8000.0 / factor, error=1e-6,
                    speedup_over_hf_eager=factor),
            ]  # fmt: skip
    rows += [
        row("speech_attention", "hf_eager", 240, "fp32", 9000.0, peak_memory_mib=700.0),
        row("speech_attention", "ours", 240, "fp32", 3000.0, peak_memory_mib=30.0,
            speedup_over_hf_eager=3.0),
    ]  # fmt: skip
    return rows


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "speech-cpu.csv"
    with ResultsWriter(path, environment("cpu"), "full") as writer:
        for each in made_up():
            writer.add(each)
    return path


def test_the_page_of_the_docs_has_tables_of_encoders_and_of_attention(results):
    lines = readme_table.markdown([results]).splitlines()
    assert "`benchmarks/results/speech-cpu.csv`" in lines[0]
    begin = "| Parakeet | 240 s | 1x3000 | fp32 | 8 | - | 4 | - | 2.00x |"
    assert f"{begin} - | - (-) | 1.0e-06 (2.0e-06) |" in lines
    assert lines[-1] == "| Parakeet | 240 s | 1x3000 | fp32 | 9 | 3 | 3.00x | 30 (700) |"


def test_the_readme_has_a_line_for_each_encoder(results, tmp_path):
    lines = speech_table.short_table([results]).splitlines()
    assert "`python -m benchmarks speech`" in lines[0]
    assert lines[-1] == (
        "| Parakeet | 2.00x / 0.50x slower | - | 2.00x / 0.50x slower | 30 MiB for 700 |"
    )
    assert [line.count("|") for line in lines[2:]] == [6, 6, 6]
    empty = tmp_path / "empty.csv"
    with ResultsWriter(empty, environment("cpu"), "full"):
        pass
    with pytest.raises(ValueError, match="holds timed rows of speech"):
        speech_table.short_table([empty])


def test_both_pages_are_written(results, monkeypatch, tmp_path, capsys):
    empty = f"# Title\n\n{readme_table.START}\n{readme_table.END}\n"
    for name in ("benchmarks.md", "README.md"):
        (tmp_path / name).write_text(empty)
    monkeypatch.setattr(readme_table, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setattr(readme_table, "ROOT", tmp_path)
    assert readme_table.main(["--check", str(results)]) == 1
    assert readme_table.main([str(results)]) == 0
    assert "| Parakeet | 240 s | 1x3000" in (tmp_path / "benchmarks.md").read_text()
    assert "30 MiB for 700" in (tmp_path / "README.md").read_text()
    assert readme_table.main(["--check", str(results)]) == 0
    assert "match the results" in capsys.readouterr().out


def test_the_picture_and_the_headline(tmp_path):
    rows = made_up()
    assert speech_plot.speedups(rows) == {
        ("Parakeet", "fp32"): [(10.0, 2.0), (240.0, 2.0)],
        ("Parakeet", "bf16"): [(10.0, 0.5), (240.0, 0.5)],
    }
    assert speech_plot.memory(rows) == {"Parakeet, 240 s": {"hf_eager": 700.0, "ours": 30.0}}
    assert [path.name for path in plot.draw_all(rows, tmp_path)] == ["speech.png"]
    assert "speech.png" in plot.FILE_NAMES
    assert headline(rows, {}).startswith("Speech encoder: 2.0x at 1x")
    assert case_line(rows[:2]).startswith("speech 1x125 fp32 inference (Parakeet, 10 s): HF")
    titles = [table.title for table in tables(rows)]
    assert titles == [
        "Speech encoder, inference",
        "Attention of a speech encoder, one layer, inference",
    ]
