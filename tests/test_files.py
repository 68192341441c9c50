"""Writing a file or a folder whole or not at all."""

import os
import threading
from pathlib import Path

import pytest

from xlnet_fast import files
from xlnet_fast.files import folder_written_whole, write_whole, written_whole


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "made" / "file"
    write_whole(path, "old: \u00e9")
    for content, error in (("\ud800", UnicodeEncodeError), (7, TypeError)):
        with pytest.raises(error):
            write_whole(path, content)
    with pytest.raises(KeyboardInterrupt), written_whole(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half of")
        assert path.read_bytes() == b"old: \xc3\xa9"
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old: \xc3\xa9"
    assert list(path.parent.iterdir()) == [path]
    write_whole(path, b"\x00new")
    assert path.read_bytes() == b"\x00new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    real, link, pipe = (tmp_path / name for name in ("real", "link", "pipe"))
    real.write_text("old")
    link.symlink_to(real)
    write_whole(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_whole(pipe, "through")
    reader.join(30)
    assert read == ["through"]
    assert pipe.is_fifo()
    write_whole(Path(os.devnull), "gone")
    assert not Path(os.devnull).is_file()


def test_a_folder_is_the_old_one_until_it_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "made" / "folder"
    with folder_written_whole(path) as folder:
        (folder / "old").write_text("a")
        assert not path.exists()
    for error in (KeyboardInterrupt, OSError):
        with pytest.raises(error), folder_written_whole(path) as folder:  # noqa: PT012
            (folder / "half").write_text("b")
            raise error
    real = os.replace

    def fails_at_the_new_one(source, target):
        if Path(target) == path and not str(source).endswith(".old"):
            raise OSError("no")
        real(source, target)

    monkeypatch.setattr(files.os, "replace", fails_at_the_new_one)
    with pytest.raises(OSError, match="no"), folder_written_whole(path) as folder:
        (folder / "half").write_text("b")
    monkeypatch.undo()
    assert [file.name for file in path.iterdir()] == ["old"]
    with folder_written_whole(path) as folder:
        (folder / "new").write_text("c")
    assert [file.name for file in path.iterdir()] == ["new"]
    assert [file.name for file in path.parent.iterdir()] == ["folder"]


def test_two_threads_write_two_temporary_files(tmp_path):
    names = []

    def write() -> None:
        with written_whole(tmp_path / "file") as temporary:
            temporary.write_text("x")
            names.append(temporary)
            barrier.wait(30)

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
