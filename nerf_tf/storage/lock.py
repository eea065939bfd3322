"""The lock that lets only one process train in a run's folder."""

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

from nerf_tf.storage import atomic

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in a run's folder during a block.

    `run.lock` names the process that trains. The kernel's lock on that file decides; it ends with its process, so the
    file of a dead process is taken over. Where the file system has no locks, the process number and start time in the
    file are looked up in /proc. A process on another machine cannot be looked up and counts as running.

    Args:
        folder: the run's folder; it is made if missing, and removed after the block if still empty.

    Raises:
        OSError: another process trains there, or may do so; or the file cannot be written.
    """
    made = atomic.make_folder(folder)
    path = folder / LOCK_FILE
    try:
        handle = _acquire(path)
        try:
            yield
        finally:
            if atomic.fcntl is None:  # Windows cannot delete an open file
                os.close(handle)
                path.unlink(missing_ok=True)
            else:  # deleted before unlocking, so that no other process locks a file about to be deleted
                path.unlink(missing_ok=True)
                os.close(handle)
    finally:
        for new in made:
            with contextlib.suppress(OSError):
                new.rmdir()


def _acquire(path: Path) -> int:
    """Locks the file, writes this process into it, and returns its file descriptor."""
    while True:
        handle = atomic.open_file_or_folder(path, os.O_RDWR | os.O_CREAT)
        try:
            locked = atomic.lock_handle(handle)
            if not _is_same_file(handle, path):  # its holder deleted it between the two lines above
                os.close(handle)
                continue
            holder = _read_holder(handle)
            _raise_if_running(path, holder, locked)
            if holder:
                logger.warning("%s: pid %s on %s is dead; taken over", path, holder.get("pid"), holder.get("host"))
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, json.dumps(_this_process()).encode())
            return handle
        except OSError as error:
            os.close(handle)
            if error.filename is None and error.errno is not None:  # raised while writing
                path.unlink(missing_ok=True)
                raise OSError(f"{path}: cannot be written ({error.strerror})") from error
            raise


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _read_holder(handle: int) -> dict[str, Any]:
    """The process that the file names; empty if the file is new or its writer died before writing."""
    try:
        holder = json.loads(os.read(handle, 4096))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _raise_if_running(path: Path, holder: dict[str, Any], locked: bool | None) -> None:
    """Raises OSError if the holder runs or may run."""
    who = f"pid {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"
    trains = f"{path}: {who} has been training here since {holder.get('since', 'an unknown time')}"
    running = locked is False or (bool(holder) and _is_running(holder, locked))
    if running is None:
        raise OSError(f"{trains}; this machine cannot tell whether it still runs; if it does not, delete this file")
    if running:
        raise OSError(f"{trains}; stop it, or use another --expname")


def _is_running(holder: dict[str, Any], locked: bool | None) -> bool | None:
    """Whether the holder of a lock that was free (or None: not supported) still runs; None if unknown."""
    this = _this_process()
    if holder.get("boot") == this["boot"] and this["boot"]:
        if locked:
            return False
        # A container has its own host name and process numbers.
        same_numbers = holder.get("host") == this["host"]
        return _start_time(holder.get("pid")) == holder.get("started") if same_numbers else None
    if holder.get("host") == this["host"]:
        # This machine has been restarted since; without boot ids, only the lock itself can tell.
        return False if locked or this["boot"] else None
    return None


def _this_process() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.timezone.utc).astimezone()
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": now.isoformat(" ", "seconds"),
        "started": _start_time(os.getpid()),
        "boot": _kernel_text("/proc/sys/kernel/random/boot_id"),
    }


def _start_time(pid: Any) -> str:
    """A process's start in ticks since boot, which tells it from a later process with the same number."""
    # Field 22; field 2, the program's name in brackets, may itself hold spaces and brackets.
    fields = _kernel_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _kernel_text(path: str) -> str:
    """The text of a file in /proc; empty if there is none."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
