"""The CUDA kernels in setup.py's build_ext, on tiny sources: the same policy as the command's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from extension_tree import BOTH, ROOT, has_compiler, posix

pytestmark = [
    posix,
    has_compiler,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="CUDA kernels are for Linux"),
]
LEFT_OUT = "xlnet_fast: the CUDA kernels are left out of the C++ extension "


@pytest.fixture
def tree(checkout):
    checkout.add_kernel()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout.root / name)
    return checkout


def build_ext(tree, *options: str, **environment) -> tuple[int, str]:
    """(exit code, what it said) of `setup.py build_ext --inplace`."""
    return run_setup(tree, "build_ext", "--inplace", *options, **environment)


def run_setup(tree, *arguments: str, **environment) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=tree.root,
        env=tree.environment(**environment),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def facts(tree) -> tuple[list[str], str, int]:
    path, reason, info = tree.look()
    assert path is not None, reason
    assert path.parent == tree.package
    return info["cuda_archs"], info["cuda_compiler"], info["launch"]


WITHOUT = ([], "", -1)
WITH = (["80", "90a"], "12.4.131", 7)


def test_with_nvcc_and_without(tree, fake_nvcc, no_nvcc):
    code, said = build_ext(tree, PATH=no_nvcc, XLNET_FAST_REQUIRE_EXT="1")
    assert code == 0, "nvcc is never required"
    assert said.count(LEFT_OUT + "(there is no nvcc on the path") == 1
    assert facts(tree) == WITHOUT

    # Nothing has changed but that there is an nvcc now.
    code, said = build_ext(tree, CUDACXX=fake_nvcc.path)
    assert code == 0
    assert LEFT_OUT not in said
    kernel = "csrc/cuda/instantiations/kernel.cu"
    assert re.search(rf"^xlnet_fast: \d of \d: {kernel} \(\d+ s\)$", said, re.MULTILINE), said
    assert facts(tree) == WITH
    (ran,) = fake_nvcc.ran()
    assert "-gencode=arch=compute_90a,code=sm_90a" in ran
    assert build_ext(tree, CUDACXX=fake_nvcc.path)[0] == 0
    assert fake_nvcc.ran() == [], "it is up to date"
    build_ext(tree, PATH=no_nvcc)
    assert facts(tree) == WITH

    code, said = build_ext(tree, CUDACXX=fake_nvcc.path, XLNET_FAST_NO_CUDA="1")
    assert LEFT_OUT + "(XLNET_FAST_NO_CUDA is set)" in said
    assert (facts(tree), fake_nvcc.ran()) == (WITHOUT, [])


def test_an_editable_install_compiles_what_is_new(tree, fake_nvcc, counting):
    """It begins in an empty folder each time; what lies beside the package counts all the same."""
    cxx, compiled = counting
    compilers = {"CC": cxx, "CXX": cxx, "CUDACXX": fake_nvcc.path}

    def install(**more) -> tuple[list[str], int]:
        """(C++ sources, number of CUDA ones) that it compiles."""
        code, said = run_setup(tree, "editable_wheel", "--dist-dir", "out", **compilers, **more)
        assert code == 0, said
        return compiled(), len(fake_nvcc.ran())

    assert install() == (BOTH, 1)
    assert install() == ([], 0)
    assert facts(tree) == WITH
    assert install(XLNET_FAST_NO_CUDA="1") == (BOTH, 0)
    assert facts(tree) == WITHOUT
    assert install(XLNET_FAST_NO_CUDA="1", XLNET_FAST_CXXFLAGS="-O1") == (BOTH, 0)
    extension = tree.package / tree.look()[0].name
    extension.write_bytes(b"not a library")
    assert install(XLNET_FAST_NO_CUDA="1") == (BOTH, 0)
    source = tree.csrc / "cpu" / "part.cpp"
    later = extension.stat().st_mtime + 1
    os.utime(source, (later, later))
    assert install(XLNET_FAST_NO_CUDA="1") == (BOTH, 0)


def test_a_failing_nvcc(tree, fake_nvcc):
    fake_nvcc.write('echo "kernel.cu(3): error: no such thing"; exit 2')
    code, said = build_ext(tree, CUDACXX=fake_nvcc.path)
    assert code == 0
    where = "csrc/cuda/instantiations/kernel.cu with exit code 2\n    kernel.cu(3): error: no such"
    assert f"{LEFT_OUT}(nvcc fails on {where}" in said
    assert facts(tree) == WITHOUT

    settings = {"CUDACXX": fake_nvcc.path, "XLNET_FAST_REQUIRE_EXT": "1"}
    code, said = build_ext(tree, "--force", **settings)
    assert code == 1
    assert "XLNET_FAST_REQUIRE_EXT is set, but the CUDA kernels cannot be built: nvcc fails" in said


def test_an_nvcc_without_its_runtime(tree, fake_nvcc):
    (fake_nvcc.library / "libcudart_static.a").unlink()
    code, said = build_ext(tree, CUDACXX=fake_nvcc.path)
    assert code == 0
    assert f"{LEFT_OUT}(libcudart_static.a, which comes with the CUDA toolkit" in said
    assert facts(tree) == WITHOUT


def test_a_wrong_architecture_is_an_error_before_anything_is_compiled(tree, fake_nvcc, counting):
    cxx, compiled = counting
    settings = {"CC": cxx, "CXX": cxx, "CUDACXX": fake_nvcc.path}
    code, said = build_ext(tree, **settings, XLNET_FAST_CUDA_ARCHS="80 volta")
    assert code == 1
    assert "error: XLNET_FAST_CUDA_ARCHS has 'volta', which is no architecture" in said
    assert compiled() == fake_nvcc.ran() == []


def test_a_failing_cpp_compiler_leaves_all_out(tree, fake_nvcc):
    code, said = build_ext(tree, CUDACXX=fake_nvcc.path, CC="false", CXX="false")
    assert code == 0
    assert "xlnet_fast: the C++ extension is left out (CompileError" in said
    assert tree.look()[0] is None
