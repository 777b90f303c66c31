"""Files that are there whole or not at all, and what tells them apart."""

import os

import pytest

from fairseq_speedup.files import version, written_whole


def test_a_file_is_there_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with written_whole(str(path)) as part:
        open(part, "w").close()
        assert os.path.dirname(part) == str(tmp_path)
        assert not path.exists()
    path.write_text("first")
    with pytest.raises(KeyboardInterrupt), written_whole(str(path)) as part:
        with open(part, "w") as file:
            file.write("sec")
        raise KeyboardInterrupt
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_do_not_write_into_each_others(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    with written_whole(str(path)) as part, open(part, "w") as file:
        file.write("one")
        file.flush()
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with written_whole(str(path)) as others, open(others, "w") as other:
            other.write("the other")
        assert path.read_text() == "the other"
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_version_is_of_a_place_a_size_and_a_time(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    assert version(str(path)) == f"{path}, which does not exist"
    path.write_text("one")
    os.utime(path, (1e9, 1e9))
    found = version(str(path))
    assert found == f"{path}, 3 bytes, written 2001-09-09T01:46:40+00:00"
    monkeypatch.chdir(tmp_path)
    assert version("a.pt") == found
    os.utime(path, (1e9, 1e9 + 1))
    assert version("a.pt") != found
    newer = tmp_path / "b.txt"
    newer.write_text("")
    assert version(str(tmp_path)) == version("b.txt")
    assert version(".") == version(str(tmp_path))
