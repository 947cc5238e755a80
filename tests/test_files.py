"""Files that are replaced whole, or stay what they were."""

from pathlib import Path

import pytest

from scalejax.files import replacing, write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "a.json"
    write_atomically(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    write_atomically(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_halfway_leaves_the_file_as_it_was(tmp_path: Path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def fail():
        with replacing(path) as partial:
            partial.write_text("half of the n")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "absent" / "a.json", "new")
