"""The report on the CUDA C++ kernels: what ptxas and nvdisasm say is read, judged and kept."""

from __future__ import annotations

import json
import shutil

import pytest
from cuda_tools import needs_nvcc
from report_rows import cuda_row, text_of

from xlnet_fast.builder import recipe
from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.chips import KIB, SHARED_LIMITS
from xlnet_fast.kernels.report import cuda as report
from xlnet_fast.kernels.report import sass, usage
from xlnet_fast.kernels.report.rows import check, shapes_of
from xlnet_fast.kernels.report.tables import render

# Of nvcc 13.0; the second kernel with a function that was not inlined.
SAID = """
ptxas info    : 0 bytes gmem, 24 bytes cmem[4]
ptxas info    : Compiling entry function '_Z5firstIfEvPT_' for 'sm_90a'
ptxas info    : Function properties for _Z5firstIfEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 70 registers, used 1 barriers, 256 bytes smem
ptxas info    : Compile time = 31.757 ms
ptxas info    : Compiling entry function '_Z6secondv' for 'sm_90a'
ptxas info    : Function properties for _Z6secondv
    40 bytes stack frame, 36 bytes spill stores, 44 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 40 bytes cumulative stack size
ptxas info    : Compile time = 11.123 ms
ptxas info    : Function properties for _Z5otherv
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
"""


# --- reading -------------------------------------------------------------------------------------


def test_registers_spills_and_shared_memory_are_read():
    assert usage.parse_ptxas(SAID) == {
        "_Z5firstIfEvPT_": {
            "registers": 70, "stack_bytes": 0, "spill_bytes": 0, "shared_bytes": 256,
        },
        "_Z6secondv": {
            "registers": 255, "stack_bytes": 48, "spill_bytes": 88, "shared_bytes": 0,
        },
    }  # fmt: skip
    assert usage.parse_ptxas("ptxas info    : 0 bytes gmem\n") == {}
    with pytest.raises(ArgumentError, match="ptxas says nothing of the registers of _Z6secondv"):
        usage.parse_ptxas(SAID.replace("Used 255", "Uses some"))


def test_what_cuobjdump_says_is_read():
    said = " Function _k:\n  REG:255 STACK:40 SHARED:1024 LOCAL:8 CONSTANT[0]:560 TEXTURE:0"
    assert usage.parse_cuobjdump(said) == (255, 48)
    with pytest.raises(ArgumentError, match="cuobjdump says nothing of registers: not found"):
        usage.parse_cuobjdump("not found")


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (
            "void xlnet_fast::cuda::rel_attention_kernel<xlnet_fast::cuda::BFloat16, "
            "xlnet_fast::cuda::Tile<64, (xlnet_fast::Dtype)1>, (bool)1>(xlnet_fast::Params)",
            "rel_attention_kernel<BFloat16, Tile<64, (Dtype)1>, 1>",
        ),
        ("void (anonymous namespace)::copy<128u, (int)4>(void (*)(int), long)", "copy<128, 4>"),
        ("concat(float*)", "concat"),
        ("_Z6secondv", "_Z6secondv"),
    ],
)
def test_names_are_short(name, short):
    assert usage.short_name(name) == short


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs binutils")
def test_names_are_demangled(monkeypatch):
    assert usage.demangle(["_Z5firstIfEvPT_", "_Z6secondv"]) == {
        "_Z5firstIfEvPT_": "void first<float>(float*)",
        "_Z6secondv": "second()",
    }
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert usage.demangle(["_Z6secondv"]) == {"_Z6secondv": "_Z6secondv"}


# --- judging -------------------------------------------------------------------------------------


def test_check_accepts_a_clean_row():
    assert check([cuda_row(), cuda_row(spill_bytes=400, product_loop_spills=2)]) == []
    assert check([cuda_row(dynamic_bytes=None, max_threads=None)]) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loop_spills": 3}, "on sm_80 spills registers in 3 places of a loop"),
        ({"instructions": {"HMMA": 0}}, "does not use the tensor cores: it has no HMMA"),
    ],
)
def test_check_catches(changes, words):
    (problem,) = check([cuda_row(), cuda_row(**changes)])
    assert problem.startswith("rel_attention_forward_kernel<Half, 64> on sm_80 ")
    assert words in problem


def test_only_attention_needs_tensor_cores():
    assert check([cuda_row(kernel="masked_softmax_kernel", instructions={"HMMA": 0})]) == []


@pytest.mark.parametrize(("arch", "limit"), SHARED_LIMITS.items())
def test_check_holds_each_chip_to_its_shared_memory(arch, limit):
    assert check([cuda_row(arch=arch, dynamic_bytes=limit - 1024)]) == []
    (problem,) = check([cuda_row(arch=arch, dynamic_bytes=limit - 1023)])
    assert f"needs {limit + 1} bytes of shared memory, the chip has {limit}" in problem


def attention(arch: int, **needed: int):
    """Rows of all five kernels with a tile for head dims up to 64, 9 KiB each unless said."""
    names = ("forward_positions", "backward_q", "backward_kv", "backward_r")
    kernels = {f"{name}_kernel": 9 * KIB for name in names}
    return [
        cuda_row(arch=arch, kernel=f"rel_attention_{kernel}<Shape<Half, 64>>", dynamic_bytes=size)
        for kernel, size in ({"forward_kernel": 9 * KIB} | kernels | needed).items()
    ]


@pytest.mark.parametrize("arch", SHARED_LIMITS)
def test_what_a_chip_has_no_room_for_is_wrong_only_where_all_should_run(arch):
    rows = attention(arch, backward_r_kernel=100 * KIB)
    assert check(attention(arch)) == []
    if SHARED_LIMITS[arch] == 99 * KIB:
        assert check(rows) == []
        return
    assert check(rows) == []
    (problem,) = check(attention(arch, backward_r_kernel=228 * KIB))
    assert f"needs {229 * KIB} bytes of shared memory" in problem


def test_render_says_what_runs_on_every_chip():
    def lines_of(**needed: int) -> dict[str, str]:
        text = text_of(render(attention(86, **needed))).partition("by chip and head dim")[2]
        return {
            words[0]: " ".join(words[1:]) for line in text.splitlines() if (words := line.split())
        }

    for needed, said in (
        ({}, "forward, backward"),
        ({"backward_kv_kernel": 99 * KIB}, "does not fit: forward only"),
        ({"forward_kernel": 99 * KIB}, "does not fit"),
        ({"forward_positions_kernel": 99 * KIB}, "does not fit"),
    ):
        lines = lines_of(**needed)
        assert lines["chip"] == "KiB a block up to 64"
        assert lines["sm_86"] == lines["sm_89"] == lines["sm_120"] == f"99 {said}"
        assert lines["sm_80"] == "163 forward, backward"
        assert lines["sm_90"] == "227 forward, backward"
    assert {name for name in lines if name[0] == "s"} == {f"sm_{arch}" for arch in SHARED_LIMITS}


def test_a_row_that_does_not_fit_says_so():
    text = text_of(render(attention(86, backward_q_kernel=99 * KIB)))
    (line,) = (line.split() for line in text.splitlines() if " 100.0 " in line)
    assert line[line.index("100.0") + 1 :][:3] == ["does", "not", "fit"]
    assert "by chip" not in text_of(render(attention(86)[:4])), "of all kernels, or none"


def test_the_smaller_of_two_tiles_counts():
    smaller = cuda_row(arch=86, kernel="rel_attention_forward_kernel<Shape<Half, 64, 16>>")
    rows = [*attention(86, forward_kernel=99 * KIB), smaller | {"dynamic_bytes": KIB}]
    assert "does not fit:" not in text_of(render(rows))
    assert shapes_of(rows)[0] == ("forward", False, 64, 100 * KIB, 2 * KIB)
    assert shapes_of([smaller | {"dynamic_bytes": None}]) == [], "half of what it needs is unknown"


def test_a_kernel_tells_its_dynamic_shared_memory():
    used = {"registers": 128, "stack_bytes": 0, "spill_bytes": 0, "shared_bytes": 1024}

    def told(name: str, max_threads: int | None = 128) -> tuple[str, int | None, int | None]:
        code = sass.Function(max_threads=max_threads)
        row = report._row("csrc/cuda/a.cu", name, 80, used, code)
        return row["kernel"], row["dynamic_bytes"], row["blocks"]

    name = "f_kernel<Shape<Half, 64>, 81920>"
    assert told(name) == ("f_kernel<Shape<Half, 64>>", 80 * 1024, 2)
    for unknown in ("f_kernel<Half, true>", "f_kernel<Shape<Half, 64> >", "f_kernel"):
        assert told(unknown) == (unknown, None, 4)
    assert told(name, max_threads=None)[2] is None


def test_render_shows_every_row():
    text = text_of(
        render([cuda_row(), cuda_row(dynamic_bytes=None), cuda_row(kernel="copy", blocks=None)])
    )
    lines = [line.split() for line in text.splitlines()]
    assert ["rel_attention_forward_kernel"] in lines
    assert ["copy"] in lines
    (first,) = (line for line in lines if "65.0" in line and "Half," in line)
    assert first == [
        "Half,", "64", "sm_80", "128", "168", "0", "0/0", "65.0", "2", "32/64", "0/0", "0/0", "0/0",
        "0/0", "900/900",
    ]  # fmt: skip
    (bound,) = (line for line in lines if "≥1.0" in line)
    assert "≤2" in bound
    assert "None" not in text


# --- compiling -----------------------------------------------------------------------------------

SOURCE = """
#include "kernels.cuh"
namespace example {
template __global__ void rel_attention_kernel<float, true>(Parameters);
template __global__ void rel_attention_kernel<float, false>(Parameters);
}
"""
HEADER = """
#pragma once
namespace example {
struct Parameters { int count; const unsigned* a; float* out; };
// One product a step, of two, or of one where they are not wanted; the sum is passed around.
template <class Element, bool Products>
__global__ void __launch_bounds__(96) rel_attention_kernel(const Parameters p) {
  __shared__ Element part[96];
  float c[4] = {0, 0, 0, 0};
#pragma unroll 1
  for (int i = 0; i < p.count; ++i) {
    const unsigned a = p.a[i * 32 + threadIdx.x];
    if constexpr (Products) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
          "{%0, %1, %2, %3}, {%4, %4, %4, %4}, {%5, %5}, {%0, %1, %2, %3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a), "r"(a ^ 1));
    } else {
      c[0] += a;
    }
  }
  part[threadIdx.x] = exp2f(c[0] + c[1] + c[2] + c[3]);
  __syncthreads();
  p.out[threadIdx.x] = part[95 - threadIdx.x];
}
}
"""


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder of CUDA sources in the place of the package's, and an empty cache."""
    folder = tmp_path / "csrc" / "cuda"
    folder.mkdir(parents=True)
    (folder / "kernels.cuh").write_text(HEADER)
    (folder / "attention.cu").write_text(SOURCE)
    (folder / "entry.cu").write_text("int no_kernel() { return 1; }\n")
    monkeypatch.setattr(recipe, "csrc", lambda: tmp_path / "csrc")
    monkeypatch.setenv("XLNET_FAST_CACHE", str(tmp_path / "cache"))
    for name in ("XLNET_FAST_NO_CUDA", "XLNET_FAST_CUDA_ARCHS", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    return folder


@needs_nvcc
def test_a_real_kernel(sources):
    seen = []
    rows = report.compile_report((80, 90), on_progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(found["kernel"], found["arch"]) for found in rows] == [
        (f"rel_attention_kernel<float, {products}>", arch)
        for arch in (80, 90)
        for products in ("false", "true")
    ]
    for without, with_products in (rows[:2], rows[2:]):
        assert without["source"] == "csrc/cuda/attention.cu"
        assert 8 <= with_products["registers"] < 96
        assert with_products["shared_bytes"] == 384
        assert with_products["max_threads"] == 96
        assert with_products["spill_bytes"] == with_products["loop_spills"] == 0
        assert with_products["instructions"]["HMMA"] == 1
        assert with_products["loop_instructions"]["HMMA"] == 1
        assert with_products["instructions"]["BAR"] == with_products["instructions"]["MUFU"] == 1
        assert with_products["loop_instructions"]["MUFU"] == 0
        assert with_products["loop_instructions"]["all"] < with_products["instructions"]["all"]
        assert without["instructions"]["HMMA"] == 0
    problems = check(rows)
    assert len(problems) == 2
    assert all("rel_attention_kernel<float, false>" in problem for problem in problems)


@needs_nvcc
def test_a_spill_in_a_loop_is_found(sources):
    """An array that no register can hold, since its index is known at run time only."""
    (sources / "attention.cu").write_text(
        "__global__ void kernel(int* x, int n) {\n"
        "  int part[64];\n"
        "  for (int i = 0; i < n; ++i) part[x[i] & 63] += part[i & 63];\n"
        "  x[0] = part[x[1] & 63];\n}\n"
    )
    (found,) = report.compile_report((80,))
    assert found["stack_bytes"] == 256
    assert found["loop_spills"] > 0
    assert "spills registers" in check([found])[0]


@needs_nvcc
def test_what_was_compiled_is_kept_until_something_changes(sources, tmp_path, monkeypatch):
    compiled = []
    run = report.run_nvcc

    def counting(compiler, source, cubin):
        compiled.append(source.name)
        return run(compiler, source, cubin)

    monkeypatch.setattr(report, "run_nvcc", counting)
    first = report.compile_report((80,))
    assert sorted(compiled) == ["attention.cu", "entry.cu"]
    assert report.compile_report((80,)) == json.loads(json.dumps(first)) == first
    assert len(compiled) == 2
    with open(sources / "kernels.cuh", "a") as file:
        file.write("// a comment\n")
    report.compile_report((80,))
    assert compiled[2:] == ["attention.cu"], "the other source does not include the header"
    report.compile_report((90,), sources="entry*")
    assert compiled[3:] == ["entry.cu"]
    kept = list((tmp_path / "cache" / "kernels-report").iterdir())
    assert len(kept) == 4
    assert {path.suffix for path in kept} == {".json"}


def test_one_half_precision_stands_for_both(sources):
    for name in ("a_float16.cu", "a_bfloat16.cu", "b_float16_64.cu"):
        (sources / name).write_text("")
    names = {source.name for source in report._matching(None)}
    assert {"a_bfloat16.cu", "b_float16_64.cu", "entry.cu"} <= names
    assert "a_float16.cu" not in names
    assert [source.name for source in report._matching("a_float*")] == ["a_float16.cu"]


@needs_nvcc
def test_a_source_that_does_not_compile_is_told(sources):
    (sources / "entry.cu").write_text("nonsense;\n")
    with pytest.raises(ArgumentError, match=r"entry\.cu does not compile for sm_90a, .*code \d"):
        report.compile_report((90,))


@needs_nvcc
def test_unknown_names_are_refused(sources):
    with pytest.raises(ArgumentError, match="arch 70 is not one of 80, 86"):
        report.compile_report((70,))
    with pytest.raises(ArgumentError, match=r"no CUDA source matches 'softmax\*'"):
        report.compile_report((80,), sources="softmax*")


def test_without_nvcc_or_sources_the_reason_is_told(sources, monkeypatch):
    monkeypatch.setenv("XLNET_FAST_NO_CUDA", "1")
    with pytest.raises(BackendUnavailable, match="XLNET_FAST_NO_CUDA is set"):
        report.compile_report((80,))
    monkeypatch.delenv("XLNET_FAST_NO_CUDA")
    monkeypatch.setenv("XLNET_FAST_CUDA_ARCHS", "ampere")
    with pytest.raises(ArgumentError, match="XLNET_FAST_CUDA_ARCHS has 'ampere'"):
        report.known_archs()
    for file in sources.glob("*.cu"):
        file.unlink()
    with pytest.raises(BackendUnavailable, match="there is no CUDA source below"):
        report.known_archs()


def test_the_closure_follows_our_own_headers_only(sources):
    (sources / "kernels.cuh").write_text('#include "deep/one.h"\n#include <cuda_runtime.h>\n')
    (sources / "deep").mkdir()
    (sources / "deep" / "one.h").write_text('#include "../kernels.cuh"\n#include "no_such.h"\n')
    found = report._closure(sources / "attention.cu")
    assert [path.name for path in found] == ["attention.cu", "kernels.cuh", "one.h"]
