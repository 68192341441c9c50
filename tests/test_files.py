"""Writing a file whole or not at all."""

import threading

import pytest

from xlnet_fast.files import write_whole, written_whole


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
