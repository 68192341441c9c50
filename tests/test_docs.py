"""What README and docs say is so: code runs, commands and options exist, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import typer
from transformers import XLNetConfig, XLNetForSequenceClassification, XLNetTokenizer

import xlnet_fast
import xlnet_fast.ops
from benchmarks.__main__ import commands
from benchmarks.harness.record import read_results
from benchmarks.pages import readme_picture, readme_table
from xlnet_fast.cli import app
from xlnet_fast.hf.families import ENTRIES
from xlnet_fast.ops._dispatch import BACKENDS, CAPABILITIES
from xlnet_fast.ops.qualification import files
from xlnet_fast.text import builtin_text, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in sorted(NAMES)}
README, USE = PAGES["README.md"], PAGES["docs/use.md"]
COMMANDS = typer.main.get_command(app).commands
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def python_blocks(page: str) -> list[str]:
    return [code for language, code in FENCE.findall(PAGES[page]) if language == "python"]


BLOCKS = [(page, code) for page in PAGES for code in python_blocks(page)]
WITH_CODE = [pytest.param(*block, id=f"{block[0]}-{i}") for i, block in enumerate(BLOCKS)]


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory):
    """A folder in which the name that the pages load is a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("docs")
    checkpoint = folder / "xlnet" / "xlnet-base-cased"
    train_tokenizer(builtin_text()[:40_000], 300, checkpoint)
    config = XLNetConfig(vocab_size=400, d_model=16, n_layer=2, n_head=2, d_inner=32)
    XLNetForSequenceClassification(config).save_pretrained(checkpoint)
    return folder


def run_block(code: str, page: str, folder: Path, monkeypatch) -> dict[str, object]:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    if "tokenizer = " not in code:
        names["tokenizer"] = XLNetTokenizer.from_pretrained("xlnet/xlnet-base-cased")
    exec(compile(code, page, "exec"), names)
    return names


@pytest.mark.parametrize(("page", "code"), WITH_CODE)
def test_code_runs(page, code, checkpoint_folder, monkeypatch):
    if page == "docs/tpu.md":
        pytest.importorskip("torchax", reason="`make tpu` runs it, where torchax is installed")
    run_block(code, page, checkpoint_folder, monkeypatch)


def test_the_example_accelerates(checkpoint_folder, monkeypatch, capsys):
    (code,) = python_blocks("README.md")
    assert code.count("\n") <= 8
    names = run_block(code, "README.md", checkpoint_folder, monkeypatch)
    assert capsys.readouterr().out.startswith("tensor([[")
    assert xlnet_fast.is_accelerated(names["model"])


def test_the_longer_example_explains_and_restores(checkpoint_folder, monkeypatch, capsys):
    names = run_block(python_blocks("docs/use.md")[0], "use.md", checkpoint_folder, monkeypatch)
    printed = capsys.readouterr().out
    assert "two_stream_attention" in printed
    assert "sdpa" in printed
    assert type(names["model"]) is XLNetForSequenceClassification


def test_the_training_example_makes_both_forms(checkpoint_folder, monkeypatch):
    (code,) = python_blocks("docs/train.md")
    names = run_block(code, "train.md", checkpoint_folder, monkeypatch)
    assert names["compact"]["target_positions"].shape == (8, 21)
    assert names["dense"]["perm_mask"].shape == (8, 128, 128)
    assert names["batch"]["input_ids"].shape == (1, 5)


def test_the_speech_examples_transcribe_and_stream(checkpoint_folder, monkeypatch, capsys):
    transcript, stream = python_blocks("docs/speech.md")
    assert transcript.count("\n") <= 14
    names = run_block(transcript, "speech.md", checkpoint_folder, monkeypatch)
    assert capsys.readouterr().out.startswith("tensor([")
    assert names["ids"].dim() == 1
    assert xlnet_fast.is_accelerated(names["model"])
    names = run_block(stream, "speech.md", checkpoint_folder, monkeypatch)
    assert xlnet_fast.is_accelerated(names["model"])
    assert capsys.readouterr().out == "torch.Size([1, 14, 64])\n" * 3


def test_every_speech_family_is_told():
    for entry in ENTRIES:
        if entry.name not in ("xlnet", "xlm", "flaubert"):
            assert entry.takes.split(" (")[0] in PAGES["docs/speech.md"], entry.name


def test_the_readme_is_for_ten_minutes():
    assert README.count("\n") < 150
    first = README.split("\n## ")[0]
    assert re.search(r"!\[[^]]+\]\(docs/speed\.png\)", first)


def test_the_tables_and_the_picture_are_the_generators():
    results = sorted(readme_table.RESULTS.glob("*.csv"))
    wanted = {str(p.relative_to(ROOT)): text for p, text in readme_table.pages(results).items()}
    assert wanted == {name: PAGES[name] for name in ("README.md", "docs/benchmarks.md")}
    shown = readme_picture.shown(read_results(results[0]))
    assert readme_picture.numbers_in(ROOT / "docs" / "speed.png") == shown


def test_every_command_is_told_and_no_other():
    for page in (README, USE):
        told = set(re.findall(r"^    xlnet-fast ([a-z-]+)", page, flags=re.MULTILINE))
        assert told == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page):
    """In running text and in code: `xlnet-fast NAME --option`, comments and all."""
    text = PAGES[page].replace("\\\n", " ")
    for name, rest in re.findall(r"(?:xlnet-fast|-m xlnet_fast) ([a-z][a-z-]+)([^`\n]*)", text):
        assert name in COMMANDS, f"{page} names a command {name}"
        command = COMMANDS[name]
        if hasattr(command, "commands") and not rest.startswith((" --", " -h")) and rest.strip():
            part = rest.split()[0]
            assert part in command.commands, f"{page} names a command {name} {part}"
            name, command = f"{name} {part}", command.commands[part]
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        told = set(re.findall(r"(?<!\S)(--[a-z][a-z-]+)", rest))
        assert told <= known, f"{page}: xlnet-fast {name} has no {', '.join(sorted(told - known))}"


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_make_targets_exist(page):
    for module in re.findall(r"python3? -m ((?:benchmarks|xlnet_fast)\.[\w.]*\w)", PAGES[page]):
        assert importlib.util.find_spec(module), f"{page} names {module}"
    for name in re.findall(r"python3? -m benchmarks (\w[\w.]*)", PAGES[page]):
        assert {name, f"bench_{name}"} & commands().keys(), f"{page} names a benchmark {name}"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^    )make ([a-z-]+)", PAGES[page], flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"{page}: no make {target}"


@pytest.mark.parametrize("page", PAGES)
def test_environment_variables_are_read_somewhere(page):
    folders = ("xlnet_fast/**/*.py", "csrc/**/*.cuh", "*.py", "Makefile")
    sources = [path for folder in folders for path in ROOT.glob(folder)]
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    for name in set(re.findall(r"XLNET_FAST_[A-Z_]+", PAGES[page])):
        assert name in code, f"{page} names {name}"


def anchor(heading: str) -> str:
    """A heading's anchor, as GitHub and mkdocs make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", PAGES[page])
    for target, place in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if place:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert place in map(anchor, headings), f"{page} links to {target}#{place}"


@pytest.mark.parametrize("module", [xlnet_fast, xlnet_fast.ops], ids=lambda m: m.__name__)
def test_every_public_name_is_in_the_api_without_sphinx_roles(module):
    for name in set(module.__all__) - {"__version__"}:
        assert re.search(rf"^::: xlnet_fast[\w.]*\.{name}$", PAGES["docs/api.md"], re.MULTILINE), (
            name
        )
        assert ":`" not in (getattr(module, name).__doc__ or "").replace("::`", ""), name


def test_the_support_table_agrees_with_the_dispatcher():
    rows = {
        cells[0].strip("* "): cells[1:]
        for cells in (
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in USE.splitlines()
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
