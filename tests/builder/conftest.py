"""Trees to build in, and compilers that are shell scripts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from extension_tree import Tree, copy_of_the_package


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    return copy_of_the_package(tmp_path_factory.mktemp("package") / "xlnet_fast")


@pytest.fixture
def checkout(tmp_path, package):
    return Tree(tmp_path / "checkout", installed=False, package=package)


@pytest.fixture
def installed(tmp_path, package):
    return Tree(tmp_path / "site", installed=True, package=package)


@pytest.fixture
def script(tmp_path):
    """Writes an executable shell script and gives its path."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def counting(script, tmp_path):
    """(a compiler that notes its sources, a function that gives and forgets the notes)."""
    notes = tmp_path / "notes"
    text = f'for word; do case $word in *.cpp) echo "${{word##*/}}" >> {notes};; esac; done\n'
    path = script("counting", text + 'exec c++ "$@"')

    def compiled() -> list[str]:
        lines = sorted(notes.read_text().split()) if notes.exists() else []
        notes.unlink(missing_ok=True)
        return lines

    return path, compiled


@pytest.fixture
def sleeper(script, tmp_path):
    """(a compiler that sleeps, as its child does; the file with the ids of both)."""
    file = tmp_path / "pids"
    return script("sleeper", f"sleep 100 & echo $$ $! >> {file}; echo asleep; wait"), file


class FakeNvcc:
    """An nvcc of shell script that hands its sources to the C++ compiler, and notes what it ran."""

    def __init__(self, folder: Path):
        self.path, self.notes, self.library = folder / "nvcc", folder / "ran", folder / "lib"
        self.library.mkdir(parents=True)
        (self.library / "libcudart_static.a").write_bytes(b"!<arch>\n")
        self.write()

    def write(self, compile: str = 'exec c++ -x c++ -fPIC -c "$source" -o "$target"') -> None:
        """Make it compile by the shell command `compile`."""
        self.path.write_text(
            "#!/bin/sh\n"
            'for word; do case "$word" in *.cu) source=$word;; *.o) target=$word;; esac; done\n'
            'case "$*" in\n'
            '*--version) echo "Cuda compilation tools, release 12.4, V12.4.131";;\n'
            "*--list-gpu-arch) printf 'compute_80\\ncompute_86\\ncompute_90\\n';;\n"
            "*--dryrun*)\n"
            "  echo '#$ TOP=/no/such/toolkit'\n"
            f'  echo \'#$ LIBRARIES=  "-L{self.library}/stubs" "-L{self.library}"\';;\n'
            f'*) echo "$*" >> {self.notes}; {compile};;\n'
            "esac\n"
        )
        self.path.chmod(0o755)

    def ran(self) -> list[str]:
        """The compilations since this was asked last."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        self.notes.unlink(missing_ok=True)
        return lines


@pytest.fixture
def fake_nvcc(tmp_path):
    return FakeNvcc(tmp_path / "toolkit")


@pytest.fixture
def no_nvcc(tmp_path):
    """A PATH with everything but nvcc."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    path = os.pathsep.join(folder for folder in folders if not Path(folder, "nvcc").exists())
    if shutil.which("c++", path=path) is None:
        pytest.skip("nvcc and the C++ compiler are in one folder")
    return path
