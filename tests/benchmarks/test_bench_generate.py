"""The benchmark of `generate`: the same tokens or no time, rows of texts and of single steps."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

import xlnet_fast
from benchmarks import __main__ as names
from benchmarks import bench_generate, run
from benchmarks.cases.generate import GenerationCase, noise, prompts
from benchmarks.cases.model import in_dtype, share
from benchmarks.cases.shapes import GenerationShape
from benchmarks.harness import presets
from benchmarks.harness.record import ResultsWriter, Row, environment, read_results
from benchmarks.harness.session import Session
from benchmarks.harness.timing import Plan
from benchmarks.pages import generate_plot, plot, readme_table
from benchmarks.pages.table import tables
from benchmarks.providers.generate import Writer, difference

GEOMETRY = presets.Geometry("tiny", 2, 32, 2, 48, 600)
TINY = replace(
    presets.preset("full", "cpu"),
    name="tiny",
    generation_plan=Plan(min_rounds=2, max_rounds=2, min_sample_us=1.0),
    dtypes=("fp32", "bf16"),
    geometry=GEOMETRY,
    generation_shapes=(
        GenerationShape(GEOMETRY, 2, 7, 25, without_memory=True, memory=True),
        GenerationShape(GEOMETRY, 1, 30, 12),
    ),
)

pytestmark = pytest.mark.usefixtures("one_cache")


@pytest.fixture
def no_child(monkeypatch):
    monkeypatch.setattr(run.MemoryWorker, "peak_mib", lambda *_: 3.0)


def bench(folder, preset=TINY, **options):
    return run.run_bench(preset, device="cpu", out=folder, only=("generate",), **options)


def test_a_run_leaves_times_of_texts_and_of_steps(tmp_path, no_child, capsys):
    assert bench(tmp_path) == 0
    rows = read_results(tmp_path / "results.csv")
    texts = [row for row in rows if (row.pass_name, row.dtype) == ("text", "fp32")]
    assert [(row.batch, row.length, row.provider) for row in texts] == [
        (2, 7, "hf_eager"), (2, 7, "ours"), (2, 7, "hf_no_memory"), (2, 7, "ours_no_memory"),
        (1, 30, "hf_eager"), (1, 30, "ours"),
    ]  # fmt: skip
    assert all(row.status == "ok" and row.rounds == 2 for row in texts)
    assert [row.peak_memory_mib for row in texts] == [3.0] * 4 + [None] * 2
    assert texts[0].speedup_over_hf_eager == 1.0
    assert texts[1].features == "2 layers of 32, 25 tokens"
    assert texts[1].tokens_per_s == pytest.approx(2e6 / texts[1].p50_us)

    steps = [row for row in rows if row.pass_name == "step" and row.provider == "ours"]
    # 24 steps after the first token of the first text, 11 after that of the second.
    assert [(row.features[-9:], row.length) for row in steps] == [
        ("s after 7", 12), ("s after 7", 22), ("s after 7", 29), (" after 30", 35),
        (" after 30", 41),
    ]  # fmt: skip
    # The mean of a text has the reading of its prompt in it, and is of the same calls.
    slowest = max(row.p80_us for row in steps if row.batch == 2)
    assert texts[1].p20_us < 30 * slowest

    half = {row.provider: row for row in rows if row.dtype == "bf16"}
    assert half["hf_eager"].status == "failed"
    assert half["ours"].status == "not_run"
    assert "whose tokens are the check, did not run" in half["ours"].reason
    assert (tmp_path / "generate_2x32_batch1.png").exists()
    printed = capsys.readouterr().out
    assert "Generation after a prompt, time per token of a text" in printed
    assert "one step" not in printed


def test_what_is_written_otherwise_is_red_and_not_timed(tmp_path, no_child, monkeypatch):
    genuine = xlnet_fast.accelerate

    def wrong(model):
        genuine(model).lm_loss.register_forward_hook(lambda _, __, logits: logits.roll(1, -1))
        return model

    monkeypatch.setattr(xlnet_fast, "accelerate", wrong, raising=False)
    assert bench(tmp_path, replace(TINY, dtypes=("fp32",)), pages=False) == 1
    rows = read_results(tmp_path / "results.csv")
    for row in rows:
        assert (row.status == "red") == row.provider.startswith("ours")
        assert row.status == "ok" or (row.p50_us is None and row.pass_name == "text")
    assert "where Hugging Face wrote" in rows[1].reason
    assert {row.provider for row in rows if row.pass_name == "step"} == {"hf_eager", "hf_no_memory"}


def test_what_raises_is_told(tmp_path, no_child, monkeypatch):
    monkeypatch.setattr(xlnet_fast, "accelerate", lambda model: 1 / 0, raising=False)
    assert bench(tmp_path, replace(TINY, dtypes=("fp32",)), pages=False) == 1
    row = read_results(tmp_path / "results.csv")[1]
    assert (row.provider, row.status) == ("ours", "failed")
    assert "ZeroDivisionError" in row.reason


def test_nothing_begins_after_the_time(tmp_path, no_child):
    assert bench(tmp_path, minutes=1e-9, pages=False) == 1
    rows = read_results(tmp_path / "results.csv")
    assert {row.status for row in rows} == {"not_run"}


def written(name, ids, case, source, added=None):
    added = noise(case.new, 600) if added is None else added
    model = in_dtype(source.model, torch.float32, torch.device("cpu"))
    return Writer(name, share(model), ids, case, added)


def test_the_texts_vary_and_depend_on_the_prompt():
    source, case = bench_generate.load(GEOMETRY), GenerationCase(3, 9, 30, "fp32")
    ids = prompts(source.corpus, 3, 9)
    assert ids.shape == (3, 9)
    assert ids.flatten().tolist() == source.corpus.ids[:27].tolist()
    writer = written("hf_eager", ids, case, source)
    tokens = writer()
    assert tokens.shape == (3, 30)
    assert all(len(set(row.tolist())) > 10 for row in tokens)
    assert torch.equal(tokens, writer())
    assert [len(call) for call in writer.step_us] == [29, 29]
    assert min(map(min, writer.step_us)) > 0
    writer.forget()
    assert writer.step_us == []
    # One step's noise in all rows: what differs is the prompts' doing.
    same = written("hf_eager", ids, case, source, noise(1, 600).expand(30, -1))()
    assert len(torch.unique(same[:, :10], dim=0)) == 3
    # Memory shows in it, and so do projections of the positions that are wrong by some per cent.
    assert difference(written("hf_no_memory", ids, case, source)(), tokens)
    right = source.model.transformer.layer[1].rel_attn.r.data.clone()
    source.model.transformer.layer[1].rel_attn.r.data.mul_(1.05)
    assert difference(written("hf_eager", ids, case, source)(), tokens)
    source.model.transformer.layer[1].rel_attn.r.data.copy_(right)
    # Without noise a text is what the model alone says.
    silent = written("hf_eager", ids, case, source, torch.zeros(30, 600))
    source.model.generation_config.eos_token_id = None
    greedy = source.model.generate(ids, max_new_tokens=30, do_sample=False)
    assert torch.equal(silent(), greedy[:, 9:])


def test_the_first_difference_is_told():
    expected = torch.arange(12).view(2, 6)
    tokens = expected.clone()
    assert difference(tokens, expected) == ""
    tokens[0, 5], tokens[1, 2] = 70, 80
    assert difference(tokens, expected) == ("token 3 of text 2 is 80 where Hugging Face wrote 8")
    assert difference(tokens[:, :4], expected) == "4 tokens where Hugging Face wrote 6"


def test_half_precision_comes_once_for_a_model_and_a_users_model_stands_for_all():
    session = Session(None, TINY, None, None)
    shapes = [(shape.batch, dtype) for shape, dtype in bench_generate.cases(session, None)]
    assert shapes == [(2, "fp32"), (1, "fp32"), (2, "bf16")]
    other = replace(TINY.generation_shapes[0], geometry=presets.BASE)
    both = replace(TINY, generation_shapes=(*TINY.generation_shapes, other))
    session = Session(None, both, None, None)
    assert bench_generate.steps(session, None) == 5
    assert bench_generate.steps(session, "a folder") == 3


def test_a_child_makes_the_same_work():
    shape = TINY.generation_shapes[1]
    case = GenerationCase(shape.batch, shape.prompt, shape.new, "fp32")
    request = {"provider": "ours", "case": asdict(case), "geometry": asdict(GEOMETRY)}
    assert bench_generate.memory_request(request)().shape == (1, 12)


def test_it_runs_by_its_name_and_in_the_full_preset_alone(monkeypatch):
    monkeypatch.setattr(run, "main", lambda arguments, only: (arguments, only))
    assert names.main(["generate", "--quick"]) == (["--quick"], ("generate",))
    quick, full = (presets.preset(name, "cpu") for name in ("quick", "full"))
    assert "generate" not in run._chosen(quick, run.KERNELS)
    assert run._chosen(quick, ["generate"]) == ("generate",)
    assert "generate" in run._chosen(full, run.KERNELS)
    assert {(s.batch, s.prompt, s.new) for s in full.generation_shapes} == {
        (batch, prompt, new) for batch in (1, 8) for prompt in (20, 300) for new in (50, 300)
    }  # fmt: skip
    with pytest.raises(ValueError, match="new >= 2"):
        GenerationCase(1, 1, 1, "fp32")
    with pytest.raises(ValueError, match="dtype must be one of"):
        GenerationCase(1, 1, 2, "fp8")


def test_quick_is_the_presets_name(monkeypatch):
    seen = []
    monkeypatch.setattr(run, "run_bench", lambda preset, *a, **k: seen.append(preset) or 0)
    assert run.main(["--preset", "full"]) == run.main(["--preset", "full", "--quick"]) == 0
    assert seen == ["full", "quick"]


def row(provider, pass_name, length, time_us, features, **other):
    made = Row(
        "generate", provider, pass_name, "fp32", 2, length, 0, 12, 64, 4, features, "ok",
        p50_us=time_us, **other,
    )  # fmt: skip
    return made


def made_up():
    texts = [
        row("hf_eager", "text", 20, 8000.0, "4 layers of 768, 50 tokens", peak_memory_mib=9.0),
        row("ours", "text", 20, 2000.0, "4 layers of 768, 50 tokens", speedup_over_hf_eager=4.0),
    ]
    steps = [
        row(provider, "step", context, 100.0 * context, f"prompt {prompt}")
        for provider in ("hf_eager", "ours")
        for prompt, context in ((300, 305), (20, 35), (20, 25))
    ]
    return texts + steps


def test_the_table_has_tokens_per_second_and_no_single_steps():
    (table,) = tables(made_up(), named_backends=False)
    line = dict(zip(table.header, table.rows[0], strict=True))
    assert table.title == "Generation after a prompt, time per token of a text"
    assert (line["ours,\nms"], line["tokens/s\nours"], line["tokens/s\nHF"]) == (
        "2",
        "1,000",
        "250",
    )
    assert len(table.rows) == 1


def test_the_picture_has_a_line_for_each_text(tmp_path):
    ((stem, group),) = generate_plot.groups(made_up()).items()
    assert stem == "generate_4x768_batch2"
    assert generate_plot.lines(group)["ours"] == {
        "prompt 300": [(305, 30.5)],
        "prompt 20": [(25, 2.5), (35, 3.5)],
    }
    assert [path.name for path in plot.draw_all(made_up(), tmp_path)] == [f"{stem}.png"]
    assert "generate_4x256_batch8.png" in plot.FILE_NAMES


def test_the_page_of_the_docs_has_a_table_of_texts(tmp_path):
    path = tmp_path / "generate-cpu.csv"
    with ResultsWriter(path, environment("cpu"), "full") as writer:
        for each in made_up():
            writer.add(each)
    text = readme_table.markdown([path])
    assert "token for token the same" in text
    assert text.splitlines()[-1] == (
        "| 2x20 | 4 layers of 768, 50 tokens | fp32 | 8 | 2 | - | - | 4.00x | 1,000 (250) | - (9) |"
    )
