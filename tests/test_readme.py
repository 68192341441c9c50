"""The README's example runs, its table is the generator's, and its commands and files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import XLNetConfig, XLNetForSequenceClassification, XLNetTokenizer

import xlnet_fast
from benchmarks.pages import readme_table
from xlnet_fast.cli import app
from xlnet_fast.ops._dispatch import BACKENDS, CAPABILITIES
from xlnet_fast.ops.qualification import files
from xlnet_fast.text import builtin_text, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)
WITHOUT_RESULTS = "No results are recorded yet: `make bench` makes those of your machine."


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    """On a tiny checkpoint with a real tokenizer, under the name that the example loads."""
    assert EXAMPLE is not None
    code = EXAMPLE.group(1)
    assert len(code.splitlines()) <= 12
    folder = tmp_path / re.search(r'name = "([^"]+)"', code).group(1)
    train_tokenizer(builtin_text()[:40_000], 300, folder)
    config = XLNetConfig(vocab_size=400, d_model=16, n_layer=2, n_head=2, d_inner=32)
    XLNetForSequenceClassification(config).save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("tensor([[")
    assert "two_stream_attention" in printed
    assert "sdpa" in printed
    assert type(names["model"]) is XLNetForSequenceClassification
    assert not xlnet_fast.is_accelerated(names["model"])


def test_the_training_example_runs(tmp_path):
    (source,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), flags=re.DOTALL
    )
    folder = train_tokenizer(builtin_text()[:40_000], 300, tmp_path)
    names = {"tokenizer": XLNetTokenizer.from_pretrained(folder)}
    exec(source, names)
    assert names["compact"]["target_positions"].shape == (8, 21)
    assert names["dense"]["perm_mask"].shape == (8, 128, 128)
    assert names["batch"]["input_ids"].shape == (1, 5)


def test_the_benchmark_table_is_the_generators():
    files = sorted(readme_table.RESULTS.glob("*.csv"))
    expected = readme_table.markdown(files) if files else WITHOUT_RESULTS
    assert readme_table.replace_between_markers(README, expected) == README


def test_every_command_is_in_the_readme_and_no_other():
    told = set(re.findall(r"^    xlnet-fast ([a-z-]+)", README, flags=re.MULTILINE))
    there = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert told == there


def test_the_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z-]+)", README.replace("make and", "")):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"no target {target}"


@pytest.mark.parametrize("page", ["README.md", "docs/design.md", "docs/maths.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_the_support_table_agrees_with_the_dispatcher():
    rows = {
        cells[0].strip("* "): cells[1:]
        for cells in (
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in README.splitlines()
            if line.startswith("|")
        )
    }
    assert rows["feature"] == [f"`{name}`" for name in BACKENDS]
    for capability, column in zip(CAPABILITIES, range(len(BACKENDS)), strict=True):
        gradients = capability.ops["rel_attention"]
        assert rows["gradients"][column].split(",")[0] == ("yes" if gradients else "not yet")
        has_memory = "concat_memory" in capability.ops
        assert rows["`concat_memory`"][column] == ("yes" if has_memory else "no")
        if capability.gpu_kernel:
            never = rows["run on a GPU"][column].startswith("never")
            proved = [row.backend for record in files.shipped() for row in record.rows]
            assert never == (capability.name not in proved)
            (low, high), step = capability.head_dims, capability.head_dim_step
            sizes = f"{low} to {high}" if step == 1 else f"multiples of {step} up to {high}"
            assert rows["head dims"][column].split(",")[0] == sizes
            assert ("16 bytes" in rows["head dims"][column]) == capability.aligned
