"""Atomic writes: a file or folder gets its name only when it is complete.

Until then it has a temporary name in the same folder, which begins with `UNFINISHED`, and is locked by the process that
writes it. What a killed process leaves behind is not locked, and the next run removes it.
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
# Where locks do not work, a temporary file of this age counts as abandoned.
ABANDONED_SECONDS = 3600


@contextlib.contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Yields a temporary file that replaces `path` if the block succeeds and is removed if it fails.

    The file is synced to disk first, so after a power failure `path` is the whole old file or the whole new one.

    Raises:
        OSError: `path`, which the message names, cannot be written.
    """
    with path_in_write_errors(path):
        make_folder(path.parent)
        with _locked_temporary(path, Path.touch) as temporary:
            yield temporary
            sync_file(temporary)
            temporary.replace(path)
        sync_folder(path.parent)


@contextlib.contextmanager
def complete_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path` if the block succeeds and is removed if it fails.

    Its files are synced to disk first. Temporary files that dead processes left beside `path` are removed.

    Raises:
        OSError: `path`, which the message names, cannot be written, or exists and is not empty.
    """
    with path_in_write_errors(path):
        make_folder(path.parent)
        _remove_abandoned(path.parent.glob(f"{UNFINISHED}*"))
        with _locked_temporary(path, Path.mkdir) as temporary:
            yield temporary
            for member in (*temporary.rglob("*"), temporary):
                (sync_folder if member.is_dir() else sync_file)(member)
            if path.is_dir():
                path.rmdir()
            temporary.rename(path)
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file."""
    with complete_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def path_in_write_errors(path: Path) -> Iterator[None]:
    """Makes an OSError raised by the block say that `path` cannot be written, and why."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error


def make_folder(folder: Path) -> list[Path]:
    """Makes a folder and its missing parents; returns the folders that it made, the innermost first.

    Raises:
        OSError: it cannot be made; those of its parents that were made are removed.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        for path in missing:
            with contextlib.suppress(OSError):  # mkdir failed before it made this one
                path.rmdir()
        raise
    for path in missing:
        sync_folder(path.parent)
    return missing


def open_file_or_folder(path: Path, flags: int) -> int:
    """Opens a regular file or a folder without following links or blocking; returns its file descriptor.

    Raises:
        OSError: it is a link, a pipe or a device, or cannot be opened.
    """
    try:
        handle = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link; a pipe without a reader
            raise
    else:
        mode = os.fstat(handle).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return handle
        os.close(handle)
    raise OSError(f"{path}: is a link, a pipe or a device, not a file; remove it")


def lock_handle(handle: int) -> bool | None:
    """Locks an open file or folder; False: another process holds the lock, None: there are no such locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system may not support locks
        return None
    return True


def sync_file(path: Path) -> None:
    """Waits until a file's contents are on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system supports that."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by the file system
            raise
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Removes temporary files and folders that dead processes left anywhere below a folder."""
    _remove_abandoned(folder.rglob(f"{UNFINISHED}*"))


def _remove_abandoned(paths: Iterable[Path]) -> None:
    for path in list(paths):
        with contextlib.suppress(OSError):  # in use, already removed with its folder, or not ours
            handle = _lock(path)
            try:
                if handle is not None or time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    _remove(path)
            finally:
                if handle is not None:
                    os.close(handle)


@contextlib.contextmanager
def _locked_temporary(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """Yields a new temporary file or folder beside `path`, locked during the block and removed after it.

    It shares only the extension with `path`, so that programs that search by name do not find it.
    """
    temporary = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}{path.suffix}")
    make(temporary)
    handle = None
    try:
        handle = _lock(temporary)
        yield temporary
    finally:
        _remove(temporary)
        if handle is not None:
            os.close(handle)


def _lock(path: Path) -> int | None:
    """Locks a file or folder; returns the descriptor that holds the lock, or None where locks do not work.

    Raises:
        OSError: another process holds the lock, or the file cannot be opened.
    """
    if fcntl is None:
        return None
    handle = open_file_or_folder(path, os.O_RDONLY)
    locked = lock_handle(handle)
    if locked:
        return handle
    os.close(handle)
    if locked is False:
        raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
    return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
