"""What is kept and shown of models compiled for TPUs; that they compile stands in tests/tpu."""

from __future__ import annotations

import importlib.metadata
import json

import pytest
from rich.console import Console

from benchmarks.micro import tpu_compile
from benchmarks.pages import readme_table, tpu_table
from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.report import tpu

CASE = tpu_compile.Case(12, "bf16", 8, 2048, training=False)


def row(provider, chip="v5e", temporary_mib=1000, accessed_gb=100, **changes):
    return {
        "provider": provider, "chip": chip, "layers": 12, "dtype": "bf16", "batch": 8,
        "length": 2048, "training": False, "temporary_bytes": temporary_mib * 2**20,
        "accessed_bytes": int(accessed_gb * 1e9), "flops": 6 * 10**12, "gathers": 1, "kernels": 12,
        "vmem_bytes": 5 * 2**20, "compile_seconds": 70.0, **changes,
    }  # fmt: skip


@pytest.fixture
def versions(monkeypatch):
    found = dict.fromkeys(("jax", "libtpu", "torchax", "torch", "transformers"), "1.0")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found.get(name, "0.1"))
    return found


def test_rows_are_kept_as_they_come_each_in_its_place(versions, tmp_path):
    path = tmp_path / "tpu.json"
    record = tpu_compile.Record(path)
    record.add(row("pallas"))
    record.add(row("hf", "v4"))
    record.add(row("hf", accessed_gb=300))
    record.add(row("hf", length=512))
    again = tpu_compile.Record(path)
    again.add(row("pallas", accessed_gb=50))
    found = json.loads(path.read_text())
    assert found["note"] == "the TPU compiler's figures; nothing ran on a TPU"
    assert found["versions"] == versions
    names = ("length", "chip", "provider", "accessed_bytes")
    assert [tuple(kept[name] for name in names) for kept in found["rows"]] == [
        (512, "v5e", "hf", 100e9), (2048, "v4", "hf", 100e9), (2048, "v5e", "hf", 300e9),
        (2048, "v5e", "pallas", 50e9),
    ]  # fmt: skip
    assert all({"date", "commit", "dirty"} <= set(r) for r in found["rows"])


def test_rows_of_other_versions_are_not_mixed(versions, tmp_path):
    path = tmp_path / "tpu.json"
    tpu_compile.Record(path).add(row("hf"))
    versions["libtpu"] = "2.0"
    with pytest.raises(ArgumentError, match=r"has rows of .*'libtpu': '1\.0'.*: name anoth"):
        tpu_compile.Record(path)
    with pytest.raises(ArgumentError, match="no folder"):
        tpu_compile.Record(tmp_path / "no" / "tpu.json")


def test_each_provider_is_compiled_for_each_shape_and_chip(versions, monkeypatch, tmp_path, capsys):
    asked = []

    def compile_case(provider, chip, case):
        asked.append((provider, case.length, chip))
        assert case == tpu_compile.Case(2, "fp32", 4, case.length, training=True)
        return row(provider, chip, layers=2, batch=4, length=case.length, training=True)

    monkeypatch.setattr(tpu, "require_compiler", lambda *others: None)
    monkeypatch.setattr(tpu_compile, "compile_case", compile_case)
    arguments = "--provider pallas hf --shape 4x64 4x32 --chip v6e v4 --layers 2 --dtype fp32"
    out = ["--out", str(tmp_path / "tpu.json")]
    assert tpu_compile.main([*arguments.split(), "--training", *out]) == 0
    chips = [(length, chip) for length in (64, 32) for chip in ("v6e", "v4")]
    assert asked == [(provider, *which) for provider in ("hf", "pallas") for which in chips]
    assert len(json.loads((tmp_path / "tpu.json").read_text())["rows"]) == 8
    said = " ".join(capsys.readouterr().out.split())
    assert "4x64 bf16, 2 layers, training v6e hf 1,000 100.0 6.00 1 12 70" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shape", "8"], "'8' is not BATCHxLENGTH, such as 8x512"),
        (["--shape", "0x512"], "'0x512' is not BATCHxLENGTH"),
        (["--layers", "0"], "'0' is not a number from 1 on"),
        (["--chip", "v9"], "invalid choice: 'v9'"),
        ([], "jax cannot be imported"),
    ],
)
def test_what_cannot_be_is_refused(arguments, words, monkeypatch, capsys):
    def no_jax(*others):
        raise BackendUnavailable("jax cannot be imported")

    monkeypatch.setattr(tpu, "require_compiler", no_jax)
    with pytest.raises(SystemExit) as ended:
        tpu_compile.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_kernels_are_where_they_should_be_alone(monkeypatch):
    figures = tpu.Figures(1, 2, 3, 4.0, None)
    made = {"hf": tpu_compile.Compiled(figures, 2, 1)}
    monkeypatch.setattr(tpu_compile, "export_case", lambda provider, case: provider)
    monkeypatch.setattr(tpu_compile, "compile_exported", lambda name, chip, training: made[name])
    with pytest.raises(ArgumentError, match="hf: 1 Pallas kernels in its program"):
        tpu_compile.compile_case("hf", "v5e", CASE)
    made["hf"] = tpu_compile.Compiled(figures, 2, 0)
    found = tpu_compile.compile_case("hf", "v5e", CASE)
    assert found["vmem_bytes"] is None
    assert (found["temporary_bytes"], found["accessed_bytes"], found["gathers"]) == (1, 2, 2)


def test_inputs_have_padding_and_segments():
    inputs = tpu_compile.Case(1, "fp32", 2, 8, training=False).inputs()
    assert inputs["attention_mask"].sum(1).tolist() == [8, 6]
    assert inputs["token_type_ids"][0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_what_is_called_twice_counts_twice():
    text = """module @jit_f {
  func.func public @main(%arg0: tensor<2xf32>) -> tensor<2xf32> {
    %0 = "stablehlo.gather"(%arg0) <{dimension_numbers = #stablehlo.gather<offset_dims = [1]>}>
    %1 = call @take_3(%0) : (tensor<2xf32>) -> tensor<2xf32>
    %2 = func.call @take_3(%1) : (tensor<2xf32>) -> tensor<2xf32>
    %3 = call @take(%2) : (tensor<2xf32>) -> tensor<2xf32>
  }
  func.func private @take_3(%arg0: tensor<2xf32>) -> tensor<2xf32> {
    %0 = "stablehlo.gather"(%arg0) <{}>
    %1 = call @take(%0) : (tensor<2xf32>) -> tensor<2xf32>
  }
  func.func private @take(%arg0: tensor<2xf32>) -> tensor<2xf32> {
    %0 = stablehlo.custom_call @tpu_custom_call(%arg0)
  }
  func.func private @nobody(%arg0: tensor<2xf32>) -> tensor<2xf32> {
    %0 = stablehlo.custom_call @tpu_custom_call(%arg0)
  }
}"""
    assert tpu.occurrences(text, r'"stablehlo\.gather"\(') == 3
    assert tpu.occurrences(text, "@tpu_custom_call") == 3


def test_a_program_s_kernels_are_read():
    config = {
        "scoped_memory_configs": [{"memory_space": "1", "offset": "0", "size": "117440512"}],
        "custom_call_config": {
            "body": "ab=",
            "cost_estimate": {"flops": "12", "transcendentals": "1", "bytes_accessed": "34"},
        },
        "used_scoped_memory_configs": [{"memory_space": "1", "offset": "0", "size": "56"}],
    }
    path = "jit(f)/transpose(jvp(xlnet_rel_attention_backward_q))/pallas_call"
    line = (
        '%a.1 = bf16[1] custom-call(%b), custom_call_target="tpu_custom_call", '
        f'metadata={{op_name="{path}" stack_frame_id=6}}, backend_config={json.dumps(config)}'
    )
    other = '%c = f32[1] custom-call(%b), custom_call_target="Sharding", backend_config={"a":1}'
    kernel = tpu.Kernel("xlnet_rel_attention_backward_q", 56, 34, 12)
    assert list(tpu.parse_kernels(f"{other}\n{line}\n{line}, more=1\n")) == [kernel, kernel]


# --- pages ---------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
    rows = [
        row("hf", layers=2), row("pallas", layers=2),
        row("hf", "v4", 8000, 400), row("reference", "v4", 6000, 300), row("pallas", "v4", 400, 50),
        row("hf", "v5e", 8000, 400), row("pallas", "v5e", 200, 80),
        row("hf", length=512), row("pallas", accessed_gb=1, length=512),
        row("hf", length=4096, training=True), row("pallas", length=4096, training=True),
    ]  # fmt: skip
    path = tmp_path / tpu_table.NAME
    versions = {"jax": "1.0", "libtpu": "2.0"}
    path.write_text(json.dumps({"note": tpu_compile.NOTE, "versions": versions, "rows": rows}))
    return path


def test_the_table_of_the_docs(results):
    lines = tpu_table.long_table(results).splitlines()
    assert "nothing ran on a TPU" in lines[0]
    assert "jax 1.0, libtpu 2.0" in lines[0]
    case = "8x2048, 12 layers, bf16, forward"
    assert lines[5] == f"| {case} | v4 | 8,000 | 6,000 | 400 | 400.0 | 300.0 | 50.0 | 8.0x |"
    assert lines[6] == f"| {case} | v5e | 8,000 | - | 200 | 400.0 | - | 80.0 | 5.0x |"
    assert lines[8].endswith("gradients | v5e | 1,000 | - | 1,000 | 100.0 | - | 100.0 | 1.0x |")
    assert {line.count("|") for line in lines[2:]} == {10}


def test_the_line_of_the_readme_is_of_the_largest_forward_pass(results, tmp_path):
    line = tpu_table.short_line(results)
    assert line.startswith("compiled for v4, v5e, 12 layers of xlnet-base at 8x2048 in bf16 move ")
    assert "move 5.0 to 8.0 times less than Hugging Face's, in 2.5 to 5.0% of the temporary" in line
    assert line.endswith("(the TPU compiler's figures; nothing ran on a TPU)")
    results.write_text(json.dumps({"note": "", "versions": {}, "rows": [row("hf")]}))
    with pytest.raises(ValueError, match="no forward pass of both"):
        tpu_table.short_line(results)
    with pytest.raises(ValueError, match=r"none\.json cannot be read"):
        tpu_table.short_line(tmp_path / "none.json")


def test_both_pages_have_them_where_their_markers_are(results, tmp_path, monkeypatch, capsys):
    marks = f"{readme_table.START}\n{readme_table.END}\n"
    for name in ("benchmarks.md", "README.md"):
        text = f"{marks}| TPU | {tpu_table.START}old{tpu_table.END} |\n"
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(readme_table, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setattr(readme_table, "ROOT", tmp_path)
    monkeypatch.setattr(readme_table, "RESULTS", tmp_path)
    monkeypatch.setattr(readme_table, "markdown", lambda files: "tables")
    monkeypatch.setattr(readme_table.speech_table, "short_table", lambda files: "encoders")
    assert readme_table.main([]) == 0
    readme = (tmp_path / "README.md").read_text()
    assert f"| TPU | {tpu_table.START}{tpu_table.short_line(results)}{tpu_table.END} |" in readme
    page = (tmp_path / "benchmarks.md").read_text()
    assert f"{tpu_table.START}\n{tpu_table.long_table(results)}\n{tpu_table.END}" in page
    assert readme_table.main(["--check"]) == 0


def test_the_printed_table_has_a_line_for_each_row(capsys):
    Console(width=150).print(tpu_compile.table_of([row("hf"), row("pallas", "v4", training=True)]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "8x2048 bf16, 12 layers, training  v4" in lines[3]
