"""Atomic writes: files and folders appear complete or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nerf_tf.storage import atomic


def names(folder: Path) -> list[str]:
    """All names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with atomic.complete_file(path) as temporary:
        temporary.write_text("text")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
    assert path.read_text() == "text"
    assert names(path.parent) == ["file.txt"]


def test_a_failing_block_leaves_nothing(tmp_path):
    path = tmp_path / "file.txt"
    with pytest.raises(RuntimeError, match="midway"), atomic.complete_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError("midway")
    assert names(tmp_path) == []


def test_a_failing_block_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic.complete_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_complete_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old, and longer")
    atomic.write_text(path, "new: ä")
    assert path.read_text(encoding="utf-8") == "new: ä"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_files_have_the_usual_mode(tmp_path):
    old = os.umask(0o022)
    try:
        atomic.write_text(tmp_path / "file.txt", "")
        assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o644
        os.umask(0o077)
        atomic.write_text(tmp_path / "private.txt", "")
        assert (tmp_path / "private.txt").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(old)


# Complete folders


def test_a_folder_appears_when_it_is_complete_and_on_the_disk(tmp_path, monkeypatch):
    done = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(handle: int) -> None:
        done.append(os.fstat(handle).st_ino)
        fsync(handle)

    def noted_rename(*arguments: object, **keywords: object) -> None:
        done.append("rename")
        rename(*arguments, **keywords)

    path = tmp_path / "new" / "images_8"
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    with atomic.complete_folder(path) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "a.png").write_bytes(b"a")
        (temporary / "b.png").write_bytes(b"b")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert names(path.parent) == ["images_8"]
    assert (path / "deep" / "a.png").read_bytes() == b"a"
    inside = {found.stat().st_ino for found in (path, *path.rglob("*"))}
    assert len(inside) == 4
    assert inside <= set(done[: done.index("rename")])
    assert done[-1] == path.parent.stat().st_ino


def test_a_failing_block_leaves_no_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic.complete_folder(tmp_path / "folder") as temporary:  # noqa: PT012
        (temporary / "half").touch()
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_an_empty_folder_gives_way_and_another_does_not(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    with atomic.complete_folder(path) as temporary:
        (temporary / "mine").touch()
    assert names(path) == ["mine"]
    with pytest.raises(OSError, match="folder: cannot be written"), atomic.complete_folder(path) as temporary:
        (temporary / "another").touch()
    assert names(path) == ["mine"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_folders_have_the_usual_mode(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic.complete_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


# What is left behind


# Writes a file and a folder until it is killed.
WRITER = """
import sys
from pathlib import Path
from nerf_tf.storage import atomic
run = Path(sys.argv[1]) / "run"
with atomic.complete_file(run / "events.out.tfevents.1"), atomic.complete_folder(run / "made") as made:
    (made / "half").touch()
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(atomic.fcntl is None, reason="without locks only the age says who is dead")
def test_what_a_process_writes_stays_until_it_is_dead(tmp_path):
    words = [sys.executable, "-c", WRITER, str(tmp_path)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)
    assert process.stdout.readline() == b"writing\n"
    found = names(tmp_path / "run")
    assert len(found) == 2
    assert all(name.startswith(atomic.UNFINISHED) and "tfevents" not in name for name in found)
    atomic.remove_unfinished(tmp_path)
    assert names(tmp_path / "run") == found
    process.kill()
    process.wait()
    (tmp_path / "run" / "000.png").touch()
    atomic.remove_unfinished(tmp_path)
    assert names(tmp_path / "run") == ["000.png"]


@pytest.mark.skipif(atomic.fcntl is None, reason="without locks only the age says who is dead")
def test_making_a_folder_removes_what_is_left_of_earlier_attempts(tmp_path):
    left = tmp_path / f"{atomic.UNFINISHED}0"
    left.mkdir()
    (left / "000.png").touch()
    with atomic.complete_folder(tmp_path / "images_8"), atomic.complete_folder(tmp_path / "images_4"):
        assert not left.exists()
    assert names(tmp_path) == ["images_4", "images_8"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_what_only_has_such_a_name_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / f"{atomic.UNFINISHED}0")
    (tmp_path / "diary").touch()
    (tmp_path / f"{atomic.UNFINISHED}1").symlink_to(tmp_path / "diary")
    atomic.remove_unfinished(tmp_path)
    assert len(names(tmp_path)) == 3


def no_locks(handle: int, operation: int) -> None:
    raise OSError(38, "Function not implemented")


@pytest.mark.parametrize("way", ["a system without", "a file system without"])
def test_without_locks_what_is_old_counts_as_left(tmp_path, monkeypatch, way):
    if way == "a system without":
        monkeypatch.setattr(atomic, "fcntl", None)
    else:
        monkeypatch.setattr(atomic.fcntl, "flock", no_locks)
    for name, age in [(".unfinished-0.png", 7200), (".unfinished-1.png", 60), ("000.png", 7200)]:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, times=(0, time.time() - age))
    atomic.remove_unfinished(tmp_path)
    assert names(tmp_path) == [".unfinished-1.png", "000.png"]
    atomic.write_text(tmp_path / "new.txt", "")
    assert names(tmp_path) == [".unfinished-1.png", "000.png", "new.txt"]
