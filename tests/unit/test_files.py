"""Files and folders are there whole or not at all."""

from pathlib import Path

import pytest

from rass_core.lake.files import Staging, folder_beside, replace_folder, whole_file, whole_folder, write_whole
from rass_core.lake.holding import Locks


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_whole(path, "é\n")
    write_whole(path, "zwei")
    assert path.read_bytes() == b"zwei"
    assert names(path.parent) == ["a.txt"]


def test_what_is_raised_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_old_file_is_there_until_the_end(tmp_path: Path) -> None:
    path, aside = tmp_path / "a.txt", tmp_path / "aside"
    path.write_text("old")
    aside.mkdir()
    with whole_file(path, aside) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert names(aside) == [temporary.name]
    assert path.read_text() == "new"
    assert names(aside) == []


def test_a_file_that_was_not_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "to"
    with pytest.raises(RuntimeError), whole_folder(path) as made:
        (made / "half").touch()
        raise RuntimeError
    assert names(tmp_path) == []
    path.mkdir()
    with whole_folder(path) as made:
        (made / "whole").touch()
        assert names(path) == []
    assert names(path) == ["whole"]
    with pytest.raises(OSError, match="not empty"), whole_folder(path) as made:
        (made / "other").touch()
    assert names(path) == ["whole"]


def test_what_a_killed_writer_left_beside_is_not_taken_in(tmp_path: Path) -> None:
    with folder_beside(tmp_path / "to") as made:
        left = made
    left.mkdir()
    (left / "old").touch()
    with whole_folder(tmp_path / "to") as made:
        assert made == left
        (made / "new").touch()
    assert names(tmp_path / "to") == ["new"]


def test_a_folder_is_replaced(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "staging", Locks(tmp_path / "locks"))
    for name in ("old", "new"):
        with staging.folder() as folder:
            (folder / "made").mkdir()
            (folder / "made" / name).touch()
            replace_folder(folder / "made", tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == ["new"]
    assert names(staging.path) == []
