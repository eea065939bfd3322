"""One training run in a folder at a time."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nerf_tf.storage.atomic import make_folder, open_plain

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

NAME = "run.lock"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in a run's folder while a block runs.

    `run.lock` says who does. The kernel's lock on that file decides: it ends with its process, however that ends, so
    what a dead process left is taken over. A file system without such locks leaves what the file says: process and
    start time, looked up where there is /proc. A holder on another machine cannot be seen from here, and counts as
    alive. Folders that this makes go again if nothing comes into them.

    Args:
        folder: the run's folder, which need not be there.

    Raises:
        OSError: another process trains there, or may do; or the file cannot be written.
    """
    made = make_folder(folder)
    path = folder / NAME
    try:
        handle = _take(path)
        try:
            yield
        finally:
            if fcntl is None:  # Windows deletes no open file
                os.close(handle)
                path.unlink(missing_ok=True)
            else:  # and here whoever waits for the lock must not get that of a file which is about to go
                path.unlink(missing_ok=True)
                os.close(handle)
    finally:
        for new in made:
            with contextlib.suppress(OSError):
                new.rmdir()


def _take(path: Path) -> int:
    """Locks the file, writes there who holds it, and returns its handle."""
    while True:
        handle = open_plain(path, os.O_RDWR | os.O_CREAT)
        try:
            locked = _lock(handle)
            if not _is_at(handle, path):  # its holder deleted it between the two lines above
                os.close(handle)
                continue
            holder = _read(handle)
            _refuse_if_alive(path, holder, locked)
            if holder:
                logger.warning("%s: pid %s on %s is dead; taken over", path, holder.get("pid"), holder.get("host"))
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, json.dumps(_this_process()).encode())
            return handle
        except OSError as error:
            os.close(handle)
            if error.filename is None and error.errno is not None:  # of what was written
                path.unlink(missing_ok=True)
                raise OSError(f"{path}: cannot be written ({error.strerror})") from error
            raise


def _lock(handle: int) -> bool | None:
    """Whether the kernel gave this process the lock; None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system may have none
        return None
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _read(handle: int) -> dict[str, Any]:
    """Who holds the lock; nothing where the file is new, or its writer died before a word."""
    try:
        holder = json.loads(os.read(handle, 4096))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _refuse_if_alive(path: Path, holder: dict[str, Any], locked: bool | None) -> None:
    """Raises OSError if the holder lives, or if nobody here can tell."""
    who = f"pid {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"
    since = f"since {holder.get('since', 'an unknown time')}"
    if locked is False:
        raise OSError(f"{path}: {who} trains here {since}; stop it, or use another --expname")
    if holder and _alive(holder, locked) is None:
        raise OSError(
            f"{path}: {who} trains here {since}, or did: whether it is alive cannot be seen from this machine; if it "
            "is dead, delete this file"
        )
    if holder and _alive(holder, locked):
        raise OSError(f"{path}: {who} trains here {since}; stop it, or use another --expname")


def _alive(holder: dict[str, Any], locked: bool | None) -> bool | None:
    """Whether a process lives whose lock was free, or could not be tried (`locked` is None); None: unknown."""
    this = _this_process()
    if holder.get("boot") == this["boot"] and this["boot"]:
        if locked:
            return False
        # A container has a name and process numbers of its own.
        same_numbers = holder.get("host") == this["host"]
        return _start_time(holder.get("pid")) == holder.get("started") if same_numbers else None
    if holder.get("host") == this["host"]:
        # Another start of this machine; where there are none to tell apart, the lock is all there is to go by.
        return False if locked or this["boot"] else None
    return None


def _this_process() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.timezone.utc).astimezone()
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": now.isoformat(" ", "seconds"),
        "started": _start_time(os.getpid()),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
    }


def _start_time(pid: Any) -> str:
    """When a process started, in ticks since the machine did, so that a number used again is not taken for it."""
    # The second field, the program's name, may hold spaces and brackets itself; the start is the 22nd.
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _text(path: str) -> str:
    """What a file of the kernel says; nothing where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
