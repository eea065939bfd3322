"""The lock of a run's folder: one run holds it at a time, and a dead run's lock is taken over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nerf_tf.storage import atomic, lock

LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
# Holds the lock until its stdin ends.
HOLDER = """
import sys
from pathlib import Path
from nerf_tf.storage import atomic, lock
with lock.lock_run(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(folder: Path) -> subprocess.Popen:
    words = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)
    assert process.stdout.readline() == b"held\n"
    return process


def write_holder(folder: Path, **changes: object) -> None:
    (folder / lock.LOCK_FILE).write_text(json.dumps(lock._this_process() | changes))


def test_the_second_run_is_told_who_the_first_is_and_a_dead_one_is_in_nobodys_way(tmp_path, caplog):
    process = start_holder(tmp_path)
    with pytest.raises(
        OSError, match=rf"run.lock: pid {process.pid} on {socket.gethostname()} has been training here since .*--exp"
    ):
        lock.lock_run(tmp_path).__enter__()
    process.kill()
    process.wait()
    assert json.loads((tmp_path / lock.LOCK_FILE).read_text())["pid"] == process.pid
    with lock.lock_run(tmp_path):
        assert f"pid {process.pid} on {socket.gethostname()} is dead; taken over" in caplog.text
        assert json.loads((tmp_path / lock.LOCK_FILE).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_files_goes_again(tmp_path):
    with pytest.raises(ValueError, match="mistake"), lock.lock_run(tmp_path / "logs" / "run"):
        raise ValueError("a mistake")
    assert list(tmp_path.iterdir()) == []
    with lock.lock_run(tmp_path / "logs" / "run"):
        (tmp_path / "logs" / "run" / "args.txt").touch()
    assert [path.name for path in (tmp_path / "logs" / "run").iterdir()] == ["args.txt"]


def test_the_folders_are_on_the_disk_before_anything_is_in_them(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), fsync(handle)))
    with lock.lock_run(tmp_path / "logs" / "run"):
        assert {path.stat().st_ino for path in (tmp_path, tmp_path / "logs")} <= set(synced)


@LINUX
def test_a_holder_on_another_machine_counts_as_alive(tmp_path):
    write_holder(tmp_path, pid=7, host="elsewhere", boot="another")
    with pytest.raises(OSError, match=r"pid 7 on elsewhere .*; this machine cannot tell whether .* delete this file"):
        lock.lock_run(tmp_path).__enter__()
    assert "elsewhere" in (tmp_path / lock.LOCK_FILE).read_text()


@LINUX
@pytest.mark.parametrize(
    "dead",
    [
        {"boot": "before"},  # this machine, before it was started again
        {"host": "container"},  # another name on this machine, whose kernel says that the lock is free
        {"pid": 2**22 + 1},
    ],
)
def test_the_dead_are_known(tmp_path, dead):
    write_holder(tmp_path, **dead)
    with lock.lock_run(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", "\0\0"])
def test_a_file_that_says_nothing_is_no_hindrance(tmp_path, content):
    (tmp_path / lock.LOCK_FILE).write_text(content)
    with lock.lock_run(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize("kind", ["link", "broken link", "pipe"])
def test_what_is_no_file_is_neither_followed_nor_waited_for(tmp_path, kind):
    diary = tmp_path / "diary"
    if kind != "broken link":
        diary.write_text("dear diary")
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / lock.LOCK_FILE
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(diary)
    with pytest.raises(OSError, match=r"run\.lock: is a link, a pipe or a device, not a file; remove it"):
        lock.lock_run(tmp_path / "run").__enter__()
    assert os.path.lexists(path)
    assert diary.exists() == (kind != "broken link")
    assert kind == "broken link" or diary.read_text() == "dear diary"


def test_a_folder_that_cannot_be_made_leaves_none_above_it(tmp_path):
    with pytest.raises(OSError, match="name too long"):
        lock.lock_run(tmp_path / "logs" / "2026" / ("x" * 300)).__enter__()
    assert list(tmp_path.iterdir()) == []


def no_locks(handle: int, operation: int) -> None:
    raise OSError(38, "Function not implemented")


@LINUX
def test_without_locks_of_the_kernel_the_processes_number_and_start_decide(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.fcntl, "flock", no_locks)
    write_holder(tmp_path)
    with pytest.raises(OSError, match=f"pid {os.getpid()} .* has been training here"):
        lock.lock_run(tmp_path).__enter__()
    write_holder(tmp_path, host="container")  # whose numbers mean nothing here
    with pytest.raises(OSError, match="cannot tell whether"):
        lock.lock_run(tmp_path).__enter__()
    for dead in ({"pid": 2**22 + 1}, {"started": "1"}, {"boot": "before"}):  # the second: a number used again
        write_holder(tmp_path, **dead)
        with lock.lock_run(tmp_path):
            pass


def test_a_system_without_any_of_this(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "fcntl", None)
    monkeypatch.setattr(lock, "_kernel_text", lambda path: "")
    with lock.lock_run(tmp_path), pytest.raises(OSError, match="delete this file"):
        lock.lock_run(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
