"""The CUDA kernels in `xlnet-fast build`: when they are compiled, for what, and what is said."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from extension_tree import PART, all_gone, fails, has_compiler, is_alive, pids_in, posix, proc

from xlnet_fast.builder import compiler, nvcc, recipe

pytestmark = [
    posix,
    has_compiler,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="CUDA kernels are for Linux"),
]
LEFT_OUT = "the CUDA kernels are left out "


@pytest.fixture(params=["checkout", "installed"])
def tree(request):
    tree = request.getfixturevalue(request.param)
    tree.add_kernel()
    return tree


def facts(tree) -> tuple[list[str], str, int]:
    """(architectures, version of nvcc, what the kernel's entry returns) of the extension there."""
    path, reason, info = tree.look()
    assert path is not None, reason
    return info["cuda_archs"], info["cuda_compiler"], info["launch"]


WITHOUT = ([], "", -1)
WITH = (["80", "90a"], "12.4.131", 7)


def test_with_nvcc_the_extension_has_the_kernels(checkout, fake_nvcc):
    checkout.add_kernel()
    code, out, err = checkout.build(CUDACXX=fake_nvcc.path)
    assert (code, err) == (0, "")
    assert f"and {fake_nvcc.path} for 80, 90a, " in out
    assert "CUDA kernels: sm_80, sm_90a" in out
    assert LEFT_OUT not in out
    assert facts(checkout) == WITH
    (ran,) = fake_nvcc.ran()
    assert "-gencode=arch=compute_80,code=[sm_80,compute_80]" in ran
    assert "-gencode=arch=compute_90a,code=sm_90a" in ran
    assert "-std=c++17 -O3" in ran
    assert "-fPIC,-fvisibility=hidden" in ran
    assert checkout.leftovers() == []
    assert "there already" in checkout.build(CUDACXX=fake_nvcc.path)[1]
    assert fake_nvcc.ran() == []


def test_what_is_there_is_compared_with_what_nvcc_would_make(installed, fake_nvcc, no_nvcc):
    installed.add_kernel()
    code, out, _ = installed.build(PATH=no_nvcc)
    assert code == 0
    assert out.count(LEFT_OUT + "(there is no nvcc on the path, nor in CUDA_HOME") == 1
    assert "CUDA kernels: none" in out
    assert facts(installed) == WITHOUT
    assert "there already" in installed.build(PATH=no_nvcc)[1]
    assert "there already" in installed.build(CUDACXX=fake_nvcc.path, XLNET_FAST_NO_CUDA="1")[1]

    assert "built in" in installed.build(CUDACXX=fake_nvcc.path)[1]
    assert facts(installed) == WITH
    code, out, _ = installed.build(PATH=no_nvcc)
    assert "there already" in out, "a machine without nvcc keeps the kernels it was given"
    assert LEFT_OUT not in out
    assert facts(installed) == WITH
    assert "built in" in installed.build(CUDACXX=fake_nvcc.path, XLNET_FAST_CUDA_ARCHS="86")[1]
    assert facts(installed)[0] == ["86"]
    _, out, _ = installed.build(CUDACXX=fake_nvcc.path, XLNET_FAST_NO_CUDA="1")
    assert LEFT_OUT + "(XLNET_FAST_NO_CUDA is set)" in out
    assert facts(installed) == WITHOUT


def test_a_changed_kernel_is_compiled_anew(tree, fake_nvcc):
    assert tree.build(CUDACXX=fake_nvcc.path)[0] == 0
    (tree.csrc / "cuda" / "kernel.cuh").write_text("#define ANSWER 9\n")
    assert tree.build(CUDACXX=fake_nvcc.path)[0] == 0
    assert facts(tree)[2] == 9
    (tree.csrc / "cuda" / "emulation" / "block.h").write_text("// for tests\n")
    assert "there already" in tree.build(CUDACXX=fake_nvcc.path)[1]


def test_a_failing_nvcc_leaves_the_kernels_out_and_says_what_it_said(checkout, fake_nvcc):
    checkout.add_kernel()
    fake_nvcc.write('echo "kernel.cu(3): error: no such thing"; exit 2')
    code, out, err = checkout.build(CUDACXX=fake_nvcc.path)
    assert (code, err) == (0, "")
    assert (
        f"{LEFT_OUT}(the compiler failed on csrc/cuda/instantiations/kernel.cu (exit code 2)" in out
    )
    assert re.search(r"^    kernel\.cu\(3\): error: no such thing$", out, flags=re.MULTILINE)
    assert facts(checkout) == WITHOUT
    assert checkout.leftovers() == []

    err = fails(checkout, "--force", CUDACXX=fake_nvcc.path, XLNET_FAST_REQUIRE_EXT="1")
    assert "failed on csrc/cuda/instantiations/kernel.cu (exit code 2)" in err
    assert "no such thing" in err


@proc
def test_when_one_kernel_fails_no_nvcc_goes_on(checkout, fake_nvcc, tmp_path):
    checkout.add_kernel()
    (checkout.csrc / "cuda" / "slow.cu").write_text("")
    pids = tmp_path / "pids"
    wait = f"while [ ! -e {pids} ]; do sleep 0.05; done; exit 1"
    fake_nvcc.write(
        f'case "$source" in *slow.cu) sleep 100 & echo $$ $! >> {pids}; wait;; *) {wait};; esac'
    )
    began = time.monotonic()
    code, out, _ = checkout.build(CUDACXX=fake_nvcc.path)
    assert code == 0
    assert time.monotonic() - began < 50
    assert LEFT_OUT in out
    assert all_gone(pids_in(pids, 2)), [is_alive(pid) for pid in pids_in(pids, 2)]
    assert facts(checkout) == WITHOUT


def test_a_failing_cpp_compiler_is_still_an_error(checkout, fake_nvcc):
    checkout.add_kernel()
    (checkout.csrc / "cpu" / "part.cpp").write_text(PART + "nonsense\n")
    assert "failed on csrc/cpu/part.cpp" in fails(checkout, CUDACXX=fake_nvcc.path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("80 sm_90", "has 'sm_90', which is no architecture; give compute capabilities without"),
        ("8.0", "has '8.0', which is no architecture"),
        ("80;75", "has '75', but the CUDA kernels need compute capability 8.0 or newer"),
        ("80 120a", "has '120a', which nvcc 12.4.131 does not know; it knows 80, 86, 90"),
    ],
)
def test_a_wrong_architecture_is_told_before_anything_is_compiled(
    checkout, fake_nvcc, counting, value, words
):
    checkout.add_kernel()
    cxx, compiled = counting
    environment = {"CUDACXX": fake_nvcc.path, "CXX": cxx, "XLNET_FAST_CUDA_ARCHS": value}
    code, out, err = checkout.build(**environment)
    assert (code, out) == (2, "")
    assert f"XLNET_FAST_CUDA_ARCHS {words}" in err
    assert err.count("\n") == 1
    assert compiled() == fake_nvcc.ran() == []


def test_an_nvcc_that_cannot_be_used(checkout, fake_nvcc, script, monkeypatch):
    monkeypatch.delenv("XLNET_FAST_NO_CUDA", raising=False)
    mute = script("mute", "exit 0")
    sick = script("sick", "echo no licence; exit 3")
    for path, words in (
        ("no-such-nvcc", "CUDACXX names 'no-such-nvcc', which is not there"),
        (mute, f"`{mute} --version` does not tell a version"),
        (sick, f"`{sick} --version` fails with exit code 3\n    no licence"),
    ):
        monkeypatch.setenv("CUDACXX", str(path))
        with pytest.raises(nvcc.Broken, match=re.escape(words)):
            nvcc.find()

    checkout.add_kernel()
    (fake_nvcc.library / "libcudart_static.a").unlink()
    code, out, _ = checkout.build(CUDACXX=fake_nvcc.path)
    assert code == 0
    words = f"comes with the CUDA toolkit of {fake_nvcc.path}, is not in {fake_nvcc.library}/stubs"
    assert re.search(rf"{LEFT_OUT}\(.*{re.escape(words)}.*\)$", out, flags=re.MULTILINE)
    assert facts(checkout) == WITHOUT
    err = fails(checkout, "--force", CUDACXX=fake_nvcc.path, XLNET_FAST_REQUIRE_EXT="1")
    assert "XLNET_FAST_REQUIRE_EXT is set, but the CUDA kernels cannot be built" in err


def test_without_cuda_sources_nvcc_is_not_asked(checkout, script):
    code, out, _ = checkout.build(CUDACXX=script("sick", "exit 3"))
    assert code == 0
    assert LEFT_OUT not in out


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_a_real_nvcc(checkout):
    """A trivial kernel, compiled, linked to the static runtime, loaded, and launched in vain."""
    checkout.add_kernel()
    code, out, err = checkout.build(XLNET_FAST_CUDA_ARCHS="80", XLNET_FAST_REQUIRE_EXT="1")
    assert (code, err) == (0, ""), out
    archs, version, launched = facts(checkout)
    assert archs == ["80"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    # Of a machine without a GPU: 35, no driver, or 100, no device. The fake one would say 7.
    assert launched in (0, 35, 100)
    library = checkout.look()[0].read_bytes()
    assert b"sm_80" in library or b"compute_80" in library


# --- the parts -----------------------------------------------------------------------------------


def test_gencode_adds_ptx_of_the_newest_without_a_suffix():
    assert nvcc.gencode(["80", "90a"]) == [
        "-gencode=arch=compute_80,code=[sm_80,compute_80]",
        "-gencode=arch=compute_90a,code=sm_90a",
    ]
    assert nvcc.gencode(["80", "100"])[1].endswith("code=[sm_100,compute_100]")
    assert nvcc.gencode(["90a"]) == ["-gencode=arch=compute_90a,code=sm_90a"]


def test_the_list_of_architectures():
    for text in ("80 90a", "80;90a", " 80, 90a ;80"):
        assert nvcc.parse_archs(text) == ("80", "90a")
    assert nvcc.parse_archs(" ") == ()


def test_an_old_nvcc_makes_what_it_knows(fake_nvcc, monkeypatch):
    monkeypatch.setenv("CUDACXX", str(fake_nvcc.path))
    monkeypatch.delenv("XLNET_FAST_NO_CUDA", raising=False)
    monkeypatch.delenv("XLNET_FAST_CUDA_ARCHS", raising=False)
    fake_nvcc.path.write_text(fake_nvcc.path.read_text().replace("compute_90", "compute_87"))
    assert nvcc.find().archs == ("80",)
    fake_nvcc.path.write_text(fake_nvcc.path.read_text().replace("compute_8", "compute_7"))
    with pytest.raises(nvcc.Broken, match=r"knows none of the architectures 80, 90a"):
        nvcc.find()


def test_where_nvcc_is_looked_for(fake_nvcc, monkeypatch, tmp_path, no_nvcc):
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "XLNET_FAST_NO_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", no_nvcc)
    with pytest.raises(nvcc.Missing, match="there is no nvcc"):
        nvcc.find()
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    shutil.copy(fake_nvcc.path, home / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_PATH", str(home))
    assert nvcc.find().command == (str(home / "bin" / "nvcc"),)
    monkeypatch.setenv("PATH", os.pathsep.join([str(fake_nvcc.path.parent), no_nvcc]))
    found = nvcc.find()
    assert found.command == (str(fake_nvcc.path),)
    assert found.runtime == fake_nvcc.library / "libcudart_static.a"
    monkeypatch.setenv("CUDACXX", f"{home}/bin/nvcc -ccbin g++")
    assert nvcc.find().command == (f"{home}/bin/nvcc", "-ccbin", "g++")


def test_the_kernels_are_made_where_a_gpu_is_seen_or_when_asked(fake_nvcc, monkeypatch):
    for name in ("XLNET_FAST_CUDA", "XLNET_FAST_NO_CUDA", "XLNET_FAST_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDACXX", str(fake_nvcc.path))
    monkeypatch.setattr(nvcc, "sees_gpu", lambda: True)
    assert nvcc.find_wanted().archs == ("80", "90a")
    monkeypatch.setattr(nvcc, "sees_gpu", lambda: False)
    with pytest.raises(nvcc.NoGpu, match=r"no GPU is seen; XLNET_FAST_CUDA=1 compiles them"):
        nvcc.find_wanted()
    monkeypatch.setenv("XLNET_FAST_CUDA_ARCHS", "86")
    assert nvcc.find_wanted().archs == ("86",)
    monkeypatch.delenv("XLNET_FAST_CUDA_ARCHS")
    monkeypatch.setenv("XLNET_FAST_CUDA", "1")
    assert nvcc.find_wanted().archs == ("80", "90a")
    monkeypatch.setenv("XLNET_FAST_NO_CUDA", "1")
    with pytest.raises(ValueError, match="are both set: unset one"):
        nvcc.find_wanted()
    monkeypatch.setenv("XLNET_FAST_CUDA", "0")
    with pytest.raises(nvcc.Unwanted):
        nvcc.find_wanted()


def test_a_build_without_a_gpu_runs_no_nvcc(checkout, fake_nvcc):
    checkout.add_kernel()
    code, out, _ = checkout.build(CUDACXX=fake_nvcc.path, XLNET_FAST_CUDA="")
    assert code == 0
    assert f"{LEFT_OUT}(no GPU is seen; XLNET_FAST_CUDA=1 compiles them all the same)" in out
    assert (facts(checkout), fake_nvcc.ran()) == (WITHOUT, [])
    assert "built in" in checkout.build(CUDACXX=fake_nvcc.path, XLNET_FAST_CUDA="1")[1]
    assert "there already" in checkout.build(CUDACXX=fake_nvcc.path, XLNET_FAST_CUDA="")[1]
    assert facts(checkout) == WITH, "kernels that somebody asked for stay"


@pytest.mark.parametrize(
    ("status", "count", "version", "expected"),
    [
        (0, 1, "cuda: Optional[str] = '13.0'", True),
        (0, 1, "cuda = '12.8'", True),
        (0, 1, "", True),  # no PyTorch to ask
        (0, 1, "cuda: Optional[str] = None\nhip = '6.2'", False),
        (0, 0, "cuda = '12.8'", False),
        (100, 1, "cuda = '12.8'", False),  # CUDA_ERROR_NO_DEVICE
    ],
)
def test_what_counts_as_a_gpu(monkeypatch, tmp_path, status, count, version, expected):
    driver = tmp_path / "libcuda.so.1"
    code = (
        f'extern "C" int cuInit(unsigned) {{ return {status}; }}\n'
        f'extern "C" int cuDeviceGetCount(int* n) {{ *n = {count}; return 0; }}\n'
    )
    (tmp_path / "driver.cpp").write_text(code)
    command = [*compiler.find_compiler(), "-shared", "-fPIC", "-o", driver, tmp_path / "driver.cpp"]
    subprocess.run(list(map(str, command)), check=True)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    if version:
        (tmp_path / "torch" / "version.py").write_text(f"__version__ = '2.13'\n{version}\n")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(nvcc, "DRIVER", str(tmp_path / "no-driver"))
    assert nvcc.sees_gpu() is False
    monkeypatch.setattr(nvcc, "DRIVER", str(driver))
    assert nvcc.sees_gpu() is expected


def test_the_runtime_is_linked_and_its_names_stay_inside(
    checkout, fake_nvcc, monkeypatch, tmp_path
):
    checkout.add_kernel()
    monkeypatch.setattr(recipe, "PACKAGE", checkout.package)
    found = nvcc.Nvcc(("nvcc",), "12.4.131", ("80",), Path("/cuda/libcudart_static.a"))
    link = compiler.link_step(["c++"], tmp_path, tmp_path / "_C.so", found).command
    kernel = str(tmp_path / "cuda_instantiations_kernel.o")
    order = [kernel, "/cuda/libcudart_static.a", "-Wl,--exclude-libs,libcudart_static.a", "-lrt"]
    assert [word for word in link if word in order] == order
    plain = compiler.link_step(["c++"], tmp_path, tmp_path / "_C.so").command
    assert not {*order} & {*plain}


def test_the_digest_follows_the_kernels_but_not_the_emulation(installed, monkeypatch):
    installed.add_kernel()
    monkeypatch.setattr(recipe, "PACKAGE", installed.package)
    seen = [recipe.digest()]
    for name in ("instantiations/kernel.cu", "kernel.cuh", "emulation/block.h"):
        with open(installed.csrc / "cuda" / name, "a") as file:
            file.write("\n")
        seen.append(recipe.digest())
    assert len(set(seen)) == 3
    assert seen[2] == seen[3]


def test_finding_nvcc_needs_only_the_standard_library():
    """setup.py runs it where nothing else is installed."""
    nodes = list(ast.walk(ast.parse(Path(nvcc.__file__).read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)
