"""Files and folders that get their name when all of them is on the disk: under a name there is never half of one.

Whatever is not complete has a name of its own beside it, which begins with `UNFINISHED`, and is locked by the process
that writes it. What a killed process leaves is therefore free, and goes when somebody looks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

UNFINISHED = ".unfinished-"
# Where there are no locks, the unfinished counts as left behind at this age.
LEFT_SECONDS = 3600


@contextlib.contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Gives an empty file beside `path`, which becomes `path` if the block ends well and vanishes if not.

    It becomes `path` only once it is on the disk, so a machine that dies leaves the old file or the new one, whole.

    Raises:
        OSError: naming `path`, where it cannot be written.
    """
    with writing(path):
        make_folder(path.parent)
        with _unfinished(path, Path.touch) as temporary:
            yield temporary
            sync_file(temporary)
            temporary.replace(path)
        sync_folder(path.parent)


@contextlib.contextmanager
def complete_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path`, which becomes `path` if the block ends well and vanishes if not.

    It becomes `path` only once all that is in it is on the disk. What dead processes left beside `path` goes.

    Raises:
        OSError: naming `path`, where it cannot be written, or is there by then and not empty.
    """
    with writing(path):
        make_folder(path.parent)
        _remove_left(path.parent.glob(f"{UNFINISHED}*"))
        with _unfinished(path, Path.mkdir) as temporary:
            yield temporary
            for found in (*temporary.rglob("*"), temporary):
                (sync_folder if found.is_dir() else sync_file)(found)
            if path.is_dir():
                path.rmdir()
            temporary.rename(path)
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    with complete_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Has an OSError of the block say that `path` cannot be written, and why."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error


def make_folder(folder: Path) -> list[Path]:
    """Makes a folder, and those above it, unless they are there; returns what it made, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        for path in missing:
            with contextlib.suppress(OSError):  # it was not made
                path.rmdir()
        raise
    for path in missing:
        sync_folder(path.parent)
    return missing


def open_plain(path: Path, flags: int) -> int:
    """Opens a file or folder, which waits for nobody and goes nowhere else, and returns its handle.

    Raises:
        OSError: it is a link, a pipe or a device; or it cannot be opened.
    """
    try:
        handle = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link; a pipe to write to that nobody reads
            raise
    else:
        mode = os.fstat(handle).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return handle
        os.close(handle)
    raise OSError(f"{path}: is a link, a pipe or a device, not a file; remove it")


def sync_file(path: Path) -> None:
    """Waits until a file's contents are on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system knows how to."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # said by file systems that know no such thing
            raise
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Removes what dead processes left unfinished below a folder."""
    _remove_left(folder.rglob(f"{UNFINISHED}*"))


def _remove_left(paths: Iterable[Path]) -> None:
    for path in list(paths):
        with contextlib.suppress(OSError):  # its process lives, it went with the folder it is in, or it is not ours
            handle = _lock(path)
            try:
                if handle is not None or time.time() - path.stat().st_mtime > LEFT_SECONDS:
                    _remove(path)
            finally:
                _unlock(handle)


@contextlib.contextmanager
def _unfinished(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """A new file or folder beside `path`, locked during the block and gone after it.

    Of `path`'s name it has the ending only: programs that look for files by their names shall not find it.
    """
    temporary = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}{path.suffix}")
    make(temporary)
    handle = None
    try:
        handle = _lock(temporary)
        yield temporary
    finally:
        _remove(temporary)
        _unlock(handle)


def _lock(path: Path) -> int | None:
    """Locks a file or folder, and returns the handle that keeps it so; None where there are no locks.

    Raises:
        OSError: another process has it locked, or it cannot be opened.
    """
    if fcntl is None:
        return None
    handle = open_plain(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # a network file system may have none
        os.close(handle)
        return None
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
