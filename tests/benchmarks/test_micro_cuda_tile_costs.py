"""What CUDA attention kernels issue a tile: edits that fit the sources, the loop, the counts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from cuda_tools import needs_nvcc

from benchmarks.micro import cuda_tile_costs
from xlnet_fast.builder import nvcc, recipe
from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.report import cuda, sass

EDITS = {edit: None for edits in cuda_tile_costs.VARIANTS.values() for edit in edits}
FEATURES = {"rank_q", "causal", "bits", "see_self", "segmented", "padded", "Limits"}


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    """A copy of the headers of csrc/cuda, where `edit` looks for them."""
    folder = tmp_path / "csrc" / "cuda"
    folder.mkdir(parents=True)
    for header in (recipe.csrc() / "cuda").glob("*.cuh"):
        shutil.copy(header, folder)
    return folder


def lines_of(folder: Path) -> dict[tuple[str, int], str]:
    """Every line of the headers of a folder, by name and number."""
    return {
        (header.name, number): line
        for header in folder.glob("*.cuh")
        for number, line in enumerate(header.read_text(encoding="utf-8").splitlines(), 1)
    }


def asked_for(header: Path) -> set[str]:
    """The features that conditions of a header ask for."""
    code = re.sub(r"//.*", "", header.read_text(encoding="utf-8"))
    conditions = re.findall(r"^\s*(?:if \(|const bool ).*$", code, re.MULTILINE)
    return FEATURES & set(re.findall(r"\w+", " ".join(conditions)))


# --- edits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text", "instead"), EDITS)
def test_an_edit_fits_the_sources(name, text, instead, headers):
    before = lines_of(headers)
    cuda_tile_costs.edit(headers.parent, [(name, text, instead)])
    after = lines_of(headers)
    assert before.keys() == after.keys()
    changed = {place: line for place, line in after.items() if line != before[place]}
    assert changed == {
        place: line.replace(text, instead)
        for place, line in before.items()
        if place[0] == name and text in line
    }
    # Scores of rows in order and of the window of r have a function each, which ask for the same.
    assert len(changed) == (2 if name == "mask.cuh" and instead.startswith("if (false)") else 1)


@pytest.mark.parametrize(("name", "text", "instead"), EDITS)
def test_an_edit_whose_text_has_moved_is_told(name, text, instead, headers):
    header = headers / name
    header.write_text(header.read_text(encoding="utf-8").replace(text, "moved "), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{name} has no {text!r} any more")):
        cuda_tile_costs.edit(headers.parent, [(name, text, instead)])


@pytest.mark.parametrize(
    ("variant", "features", "changed"),
    [
        ("all", FEATURES, 0),
        ("padding", {"segmented", "see_self", "padded"}, 9),
        ("plain", set(), 15),
    ],
)
def test_a_variant_has_the_branches_of_its_features_only(variant, features, changed, headers):
    before = lines_of(headers)
    cuda_tile_costs.edit(headers.parent, cuda_tile_costs.VARIANTS[variant])
    after = lines_of(headers)
    assert asked_for(headers / "mask.cuh") == features
    assert sum(after[place] != line for place, line in before.items()) == changed
    shared = (headers / "attention.cuh").read_text(encoding="utf-8")
    (dropout,) = re.findall(r"^\S.*\bdropout_keep_mask\(.*?^}", shared, re.MULTILINE | re.DOTALL)
    assert ("all.dropout" in dropout) == (variant == "all")
    (state,) = re.findall(r"\bint state\(int j\) const {.*?\? kPadded", shared, re.DOTALL)
    assert ("padded()" in state) == (variant != "plain")


def test_every_kernel_and_head_dim_has_a_source():
    sources = {source.name for source in recipe.cuda_sources()}
    for kernel in cuda_tile_costs.KERNELS:
        for head_dim in (32, 64, 128):
            assert f"rel_attention_{kernel}_bfloat16_{head_dim}.cu" in sources


# --- the loop over tiles --------------------------------------------------------------------------


def assembly_of(program: str) -> str:
    """What nvdisasm prints of "0: FADD ?HMMA >0 EXIT": a label, a branch to it, ? a predicate."""
    lines = []
    for place, word in enumerate(program.split()):
        text = f"BRA `(.L_x_{word[1:]})" if word.startswith(">") else f"{word}.F32 R4, R8"
        text = text.replace("?", "@!P0 ")
        is_label = word.endswith(":")
        lines.append(f".L_x_{word}" if is_label else f"        /*{16 * place:04x}*/  {text} ;")
    return "\n".join(lines)


def loop_of(program: str) -> str:
    """The operations of the loop that the tool finds."""
    code = sass.functions(assembly_of(program))[""]
    return " ".join(map(sass.opcode, cuda_tile_costs.tile_loop(code)))


@pytest.mark.parametrize(
    ("program", "loop"),
    [
        ("MOV 0: FADD HMMA >0 MOV EXIT", "FADD HMMA BRA"),
        # Of two, that with more products, whichever is first and whichever is longer.
        ("0: FADD HMMA >0 1: HMMA HMMA >1 EXIT", "HMMA HMMA BRA"),
        ("0: HMMA ?HMMA >0 1: FADD FADD HMMA >1 EXIT", "HMMA HMMA BRA"),
        # Loops without products are part of it, or nothing at all.
        ("0: VOTE HMMA 1: SHFL >1 >0 2: FADD >2 EXIT", "VOTE HMMA SHFL BRA BRA"),
        # Batch elements around both kinds of rows; chunks within rows at positions of their own.
        ("0: LDC 1: HMMA HMMA 2: LDSM HMMA >2 >1 3: HMMA HMMA >3 >0 EXIT", "HMMA HMMA BRA"),
        # `continue` goes back too, and what follows it is still of the loop.
        ("0: HMMA >0 FADD >0 EXIT", "HMMA BRA FADD BRA"),
        # Forward is no loop.
        ("0: HMMA >1 FADD 1: MUFU >0 EXIT", "HMMA BRA FADD MUFU BRA"),
        # Behind the last EXIT is what returns to where it was called from; threads may leave early.
        ("?EXIT 0: SHFL 1: HMMA >0 EXIT 2: HMMA HMMA >1 3: >3", "SHFL HMMA BRA"),
        ("0: FADD HMMA >0 EXIT 1: HMMA HMMA >1", "FADD HMMA BRA"),
    ],
)
def test_the_loop_over_tiles(program, loop):
    assert loop_of(program) == loop


@pytest.mark.parametrize(
    "program",
    [
        "HMMA EXIT",
        "HMMA >0 HMMA 0: EXIT",  # forward
        "HMMA 0: FADD >0 HMMA EXIT",  # a loop, but no products in it
        "HMMA EXIT 0: HMMA >0",  # behind the last EXIT
        "HMMA EXIT 0: >0",  # the trap that functions end with
    ],
)
def test_without_a_loop_over_tiles_that_is_told(program):
    with pytest.raises(ValueError, match="no loop has an HMMA"):
        loop_of(program)


# --- counting -------------------------------------------------------------------------------------

KERNEL = assembly_of("MOV HMMA 0: LDSM HMMA NOP ?HMMA NOP FADD >0 NOP HMMA EXIT")
OTHER = assembly_of("0: HMMA HMMA HMMA >0 EXIT")
DISASSEMBLED = (
    f".text._Z38rel_attention_forward_positions_kernelv:\n{OTHER}\n"
    f".text._Z28rel_attention_forward_kernelv:\n{KERNEL}\n"
)


def test_one_kernel_is_compiled_from_a_changed_copy_and_counted(monkeypatch):
    """Of the loop LDSM HMMA NOP HMMA NOP FADD BRA, two are products and two do nothing."""
    ran: list[list[str]] = []
    seen: list[str] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        ran.append(command)
        if "-cubin" in command:
            source = Path(command[command.index("-cubin") + 1])
            assert source.is_file()
            seen.append((source.parents[1] / "mask.cuh").read_text(encoding="utf-8"))
        return SimpleNamespace(stdout=DISASSEMBLED, stderr="", returncode=0)

    compiler = nvcc.Nvcc(("the-nvcc", "--quiet"), "13.0", ("80",), Path())
    before = lines_of(recipe.csrc() / "cuda")
    monkeypatch.setattr(cuda_tile_costs, "find_nvcc", lambda: compiler)
    monkeypatch.setattr(sass, "nvdisasm", lambda: "the-disassembler")
    for module in (cuda, sass):
        monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run))
    assert cuda_tile_costs.count("forward", "padding", "90a", 64) == {"HMMA": 2, "all": 5}

    (compiled, disassembled) = ran
    assert compiled[:2] == ["the-nvcc", "--quiet"]
    assert set(nvcc.FLAGS) < set(compiled)
    assert "-gencode=arch=compute_90a,code=sm_90a" in compiled
    source, cubin = Path(compiled[-3]), compiled[-1]
    assert source.name == "rel_attention_forward_bfloat16_64.cu"
    assert disassembled == ["the-disassembler", cubin]
    assert "if (stream.causal)" not in seen[0]
    assert "if (head.segmented())" in seen[0]
    assert not source.exists(), "the copy is gone"
    assert lines_of(recipe.csrc() / "cuda") == before


@pytest.fixture
def pretend_tools(monkeypatch):
    """A machine with nvcc for two chips and a disassembler."""
    monkeypatch.setattr(cuda_tile_costs, "known_archs", lambda: (80, 90))
    monkeypatch.setattr(sass, "nvdisasm", lambda: "the-disassembler")


@pytest.mark.parametrize(("arch", "compiled_for"), [("80", "80"), ("90", "90a")])
def test_the_table_has_a_row_for_each_kernel(
    arch, compiled_for, pretend_tools, monkeypatch, capsys
):
    figures = {"forward": 1000, "backward_r": 2000, "plain": 1, "padding": 20, "all": 300}

    def count(kernel: str, variant: str, arch: str, head_dim: int) -> dict[str, int]:
        assert (arch, head_dim) == (compiled_for, 32)
        total = figures[kernel] + figures[variant]
        return {"HMMA": 7 * total, "all": total}

    monkeypatch.setattr(cuda_tile_costs, "count", count)
    arguments = ["--arch", arch, "--head-dim", "32", "--kernel", "backward_r", "forward"]
    assert cuda_tile_costs.main(arguments) == 0
    said = capsys.readouterr().out
    assert f"sm_{compiled_for}, D = 32" in said
    assert re.findall(r"\w+", said.splitlines()[2]) == ["kernel", "HMMA", "plain", "padding", "all"]
    assert [re.findall(r"\w+", line) for line in said.splitlines() if "│" in line] == [
        ["backward_r", "14007", "2001", "2020", "2300"],
        ["forward", "7007", "1001", "1020", "1300"],
    ]


def raising(error: Exception) -> Callable[..., None]:
    def call(*_: object) -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "70"], "--arch 70 is not one of 80, 90"),
        (["--head-dim", "48"], "invalid choice: 48"),
        (["--kernel", "backward"], "invalid choice: 'backward'"),
    ],
)
def test_arguments_are_refused(arguments, message, pretend_tools, monkeypatch, capsys):
    monkeypatch.setattr(cuda_tile_costs, "count", raising(AssertionError("it compiles")))
    with pytest.raises(SystemExit) as left:
        cuda_tile_costs.main(arguments)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (cuda_tile_costs, "known_archs", BackendUnavailable("there is no nvcc on the path")),
        (cuda_tile_costs, "known_archs", ArgumentError("XLNET_FAST_CUDA_ARCHS has '?'")),
        (sass, "nvdisasm", BackendUnavailable("nvdisasm is neither on the path nor in Triton")),
    ],
)
def test_a_missing_tool_is_told_before_anything_is_compiled(
    module, name, error, pretend_tools, monkeypatch, capsys
):
    monkeypatch.setattr(cuda_tile_costs, "count", raising(AssertionError("it compiles")))
    monkeypatch.setattr(module, name, raising(error))
    with pytest.raises(SystemExit) as left:
        cuda_tile_costs.main([])
    assert left.value.code == 2
    assert str(error) in capsys.readouterr().err


# --- for real -------------------------------------------------------------------------------------


@needs_nvcc
def test_a_real_kernel_has_the_products_of_one_tile(monkeypatch):
    """One product is 16 x 8 x 16, so of 16 rows, 64 keys and D = 32 there are, by hand,

    8 * 2 with the keys, 10 * 2 with the window of 16 + 64 rows of r, and 4 * 4 with the values.
    """
    for name in ("XLNET_FAST_NO_CUDA", "XLNET_FAST_CUDA_ARCHS", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    loops: list[list[str]] = []

    def recorded(code: sass.Function) -> list[str]:
        loops.append(find(code))
        return loops[-1]

    find = cuda_tile_costs.tile_loop
    monkeypatch.setattr(cuda_tile_costs, "tile_loop", recorded)
    counts = cuda_tile_costs.count("forward", "plain", "80", 32)
    assert counts["HMMA"] == 8 * 2 + 10 * 2 + 4 * 4
    (loop,) = loops
    found = [sass.opcode(text) for text in loop]
    assert counts["all"] == len(found) - found.count("NOP") > counts["HMMA"]
    assert found.count("BAR") == 1, "one barrier a tile"
    # Ballots tell which keys are missing and whose segment differs; neither is left.
    assert "VOTE" not in found
