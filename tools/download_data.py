"""Downloads the authors' scenes and weights by name, and unpacks them where the configs expect them.

    python tools/download_data.py example_data
    python tools/download_data.py fern_weights lego_weights
    python tools/download_data.py llff --mirror http://server/nerf --out /disk/data

{names}

The same command resumes an interrupted download. Archives stay beside the unpacked files and may be deleted. --mirror
names a web folder with files of the same names, which is tried first. The authors published no checksums: the program
prints the SHA-256 of each archive, and --sha256 compares it with one that you trust. Prints what it unpacked.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import os
import shutil
import stat
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from support import commandline

from nerf_tf.storage import atomic, readers


class Archive(NamedTuple):
    """An archive that can be downloaded by name.

    Attributes:
        file: its file name.
        holds: its content, in words.
        folder: the folder in which the original's commands unpack it.
        addresses: its URLs, tried in this order.
        sha256: its checksum, or None if none is published.
    """

    file: str
    holds: str
    folder: str
    addresses: tuple[str, ...]
    sha256: str | None = None


def _at_ucsd(file: str) -> tuple[str, ...]:
    place = "cseweb.ucsd.edu/~viscomp/projects/LF/papers/ECCV20/nerf"
    return f"https://{place}/{file}", f"http://{place}/{file}"


def _on_drive(key: str) -> str:
    # This address gives the file itself, without the page that asks to confirm a large download.
    return f"https://drive.usercontent.google.com/download?id={key}&export=download&confirm=t"


# Drive's keys are those of the authors' folder, https://drive.google.com/drive/folders/128yBriW1IG_3NJ5Rp7APSTZsJqdJdfc1,
# and of DeepVoxels' https://drive.google.com/drive/folders/1ScsRlnzy9Bd_n-xw83SP-0t548v63mPH.
ARCHIVES = {
    "example_data": Archive(
        "nerf_example_data.zip",
        "lego and fern",
        "data",
        (*_at_ucsd("nerf_example_data.zip"), _on_drive("1xzockqgkO-H3RCGfkZvIZNjOnk3l7AcT")),
    ),
    "fern_weights": Archive(
        "fern_example_weights.zip", "the authors' weights of fern", "logs", _at_ucsd("fern_example_weights.zip")
    ),
    "lego_weights": Archive(
        "lego_example_weights.zip", "the authors' weights of lego", "logs", _at_ucsd("lego_example_weights.zip")
    ),
    "blender": Archive(
        "nerf_synthetic.zip", "all 8 Blender scenes", "data", (_on_drive("18JxhpWD-4ZmuFKLzKlAw-w5PpzZxXOcG"),)
    ),
    "llff": Archive(
        "nerf_llff_data.zip", "all 8 forward-facing scenes", "data", (_on_drive("16VnMcF1KJYxN9QId6TClMsZRahHNMW5g"),)
    ),
    "real_360": Archive(
        "nerf_real_360.zip", "vasedeck and pinecone", "data", (_on_drive("1jzggQ7IPaJJTKx9yLASWHrX8dXHnG5eB"),)
    ),
    "deepvoxels": Archive(
        "synthetic_scenes.zip",
        "the 4 DeepVoxels scenes",
        "data/deepvoxels",
        (_on_drive("1lUvJWB6oFtT8EQ_NzBrXnmi25BufxRfl"),),
    ),
}

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # in a row without a byte, at one address
PAUSE = 2.0  # seconds before the second attempt; twice as long before each further one
BLOCK = 2**20
# Photos and weights hardly compress, text to a tenth. An archive that grows more than this is meant to fill a disk.
LARGEST_GROWTH = 50
MOST_MEMBERS = 200_000
# Files that macOS adds to archives.
_LEFT_OUT = ("__MACOSX", ".DS_Store")


class Progress:
    """Prints the progress of a download: on one line of a terminal, elsewhere a line every 10 %."""

    def __init__(self, name: str, total: int):
        self._name, self._total, self._start, self._said = name, total, time.monotonic(), 0
        self._terminal = sys.stderr.isatty()

    def __call__(self, done: int) -> None:
        percent = 100 * done // self._total
        if percent == self._said or not (self._terminal or percent >= self._said + 10):
            return
        self._said = percent
        text = f"{self._name}: {percent} % of {self._total / 1e6:.1f} MB, {time.monotonic() - self._start:.0f} s"
        print(f"\r{text}" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr, flush=True)
        if self._terminal and done == self._total:
            print(file=sys.stderr)


def download(addresses: Sequence[str], path: Path, sha256: str | None = None) -> str:
    """Downloads a file, or the rest of it, from the first address that gives it; returns its SHA-256.

    Raises:
        OSError: no address gives it, or the disk is full. What arrived is kept, and the next call resumes from it.
        ValueError: its checksum differs.
    """
    failures = []
    if not path.exists():
        for address in addresses:
            try:
                _download_patiently(address, path)
                break
            except (OSError, http.client.HTTPException, ValueError) as error:
                if isinstance(error, NoRoom):
                    raise
                reason = getattr(error, "reason", None) or error
                failures.append(f"{address.split('?')[0]} ({str(reason) or type(reason).__name__})")
        else:
            raise OSError(
                f"{path}: no address gave it: {', '.join(failures)}; try again, which resumes, or download it in a "
                "browser to this path and give the same command"
            )
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    found = digest.hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise ValueError(f"{path}: has SHA-256 {found}, not {sha256.lower()}; delete it and download it again")
    return found


class NoRoom(OSError):
    """The disk has no room for a file."""


def _require_room(folder: Path, size: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise NoRoom(
            f"{folder}: {what} takes {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free; make room or give another "
            "--out"
        )


def _download_patiently(address: str, path: Path) -> None:
    """Downloads from one address; retries while new bytes arrive, at most `ATTEMPTS` times without any."""
    failed = 0
    while True:
        before = _received(path)
        try:
            _download_once(address, path)
            return
        except (NoRoom, urllib.error.HTTPError, ValueError):
            raise
        except (OSError, http.client.HTTPException):
            failed = 1 if _received(path) > before else failed + 1
            if failed == ATTEMPTS:
                raise
        time.sleep(PAUSE * 2 ** (failed - 1))


def _received(path: Path) -> int:
    """Bytes of a file that have arrived, of all versions."""
    return sum(part.stat().st_size for part in _parts(path))


def _parts(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{path.name}.????????.part")) if path.parent.is_dir() else []


def _open(address: str, **headers: str) -> http.client.HTTPResponse:
    if not address.startswith(("http://", "https://")):
        raise ValueError("an address begins with http:// or https://")
    request = urllib.request.Request(address, headers={"Accept-Encoding": "identity", **headers})
    return urllib.request.urlopen(request, timeout=TIMEOUT)


def _download_once(address: str, path: Path) -> None:
    """Downloads the missing rest of a file.

    The name of an unfinished file depends on the server's version (ETag, date and size), so that pieces of different
    versions or servers are never joined.

    Raises:
        OSError, HTTPException: the connection broke; what arrived is kept.
        ValueError: the address gives no file.
    """
    atomic.make_folder(path.parent)
    with contextlib.ExitStack() as stack:
        response = stack.enter_context(_open(address))
        total = int(response.headers.get("Content-Length") or 0)
        if response.headers.get_content_type() == "text/html":
            raise ValueError("it answers with a web page, as Google Drive does after too many downloads of a file")
        if total <= 0:
            raise ValueError("it does not say how large the file is")
        version = [response.headers.get(name) or "" for name in ("ETag", "Last-Modified")]
        name = hashlib.sha256("\n".join([*version, str(total)]).encode()).hexdigest()[:8]
        part = path.with_name(f"{path.name}.{name}.part")
        have = part.stat().st_size if part.exists() else 0
        _require_room(path.parent, total - have, f"what is missing of {path.name}")
        if 0 < have < total:
            strong = [text for text in version if text and not text.startswith("W/")]  # If-Range takes no weak ETag
            validator = {"If-Range": strong[0]} if strong else {}
            response.close()
            response = stack.enter_context(_open(address, Range=f"bytes={have}-", **validator))
            if response.headers.get("Content-Range") != f"bytes {have}-{total - 1}/{total}":
                have = 0  # the server sends whole files only
        elif have > total:
            have = 0
        progress = Progress(path.name, total)
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            while have < total and (block := response.read(min(BLOCK, total - have))):
                file.write(block)
                have += len(block)
                progress(have)
    if have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")
    atomic.sync_file(part)
    part.replace(path)
    atomic.sync_folder(path.parent)
    for other in _parts(path):
        other.unlink()


def members(archive: zipfile.ZipFile) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Lists the files of an archive with their paths relative to the folder to unpack in.

    Raises:
        ValueError: a file would lie outside that folder or is no plain file, or there are too many.
    """
    found = []
    if len(archive.infolist()) > MOST_MEMBERS:
        raise ValueError(f"it holds more than {MOST_MEMBERS} files")
    for member in archive.infolist():
        name = member.orig_filename
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or any(c in "\\:" or not c.isprintable() for c in name):
            raise ValueError(f"{name!r} is no path within a folder; nothing of the archive was unpacked")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{name!r} is a link or a device; nothing of the archive was unpacked")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name!r} is encrypted, or compressed in an unusual way")
        if not (member.is_dir() or path.name.startswith("._") or any(part in _LEFT_OUT for part in path.parts)):
            found.append((member, path))
    return found


def unpack(path: Path, folder: Path) -> list[Path]:
    """Unpacks a zip archive; equal files that exist already are kept.

    Returns:
        The files and folders of the archive's top level, in `folder`.

    Raises:
        ValueError: it is damaged or unsafe. Nothing is written, unless the damage shows only while a file is unpacked:
            then the files before it are whole.
        OSError: the disk is full, or another file of the same name exists.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = members(archive)
            size = sum(member.file_size for member, _ in files)
            if size > LARGEST_GROWTH * path.stat().st_size:
                raise ValueError(f"it announces {size} bytes, more than {LARGEST_GROWTH} times its own size")
            atomic.make_folder(folder)
            missing = [(m, p) for m, p in files if not _is_there(folder / p, m)]
            _require_room(folder, sum(member.file_size for member, _ in missing), f"what {path.name} holds")
            for member, place in missing:
                with (
                    archive.open(member) as source,
                    atomic.complete_file(folder / place) as temporary,
                    temporary.open("wb") as file,
                ):
                    # Reading stops at the announced size, and a file cut short fails its checksum.
                    shutil.copyfileobj(source, file, BLOCK)
    except OSError:
        raise
    except readers.ZIP_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: {reason}; if it is damaged, delete it and download it again") from error
    return sorted({folder / place.parts[0] for _, place in files})


def _is_there(path: Path, member: zipfile.ZipInfo) -> bool:
    """Whether the file was unpacked before.

    Raises:
        FileExistsError: another file has its name.
    """
    if not os.path.lexists(path):
        return False
    checksum = 0
    if path.is_file() and path.stat().st_size == member.file_size:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                checksum = zlib.crc32(block, checksum)
        if checksum == member.CRC:
            return True
    raise FileExistsError(
        f"{path}: is there already and is not what the archive holds; move it away or give another --out"
    )


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    names = "\n".join(f"    {name:<14}{archive.holds}, into {archive.folder}/" for name, archive in ARCHIVES.items())
    parser = commandline.Parser("download_data", __doc__.replace("{names}", names))
    parser.add_argument("names", nargs="+", metavar="NAME", help="one of those above")
    parser.add_argument("--out", type=Path, help="folder to unpack in; data/ or logs/ if not given")
    parser.add_argument("--mirror", metavar="URL", help="web folder to try first")
    parser.add_argument("--sha256", metavar="HEX", help="the SHA-256 that the archive must have, with one NAME")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in ARCHIVES:
            parser.error(f"{name}: not known; give one of {', '.join(ARCHIVES)}")
    if args.sha256 is not None and (len(args.names) > 1 or len(args.sha256) != 64):
        parser.error(f"--sha256 {args.sha256}: give the 64 digits of one archive, and its NAME alone")
    if args.mirror is not None and not args.mirror.startswith(("http://", "https://")):
        parser.error(f"--mirror {args.mirror}: an address begins with http:// or https://")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    try:
        for name in args.names:
            archive = ARCHIVES[name]
            folder = args.out or Path(archive.folder)
            addresses = archive.addresses
            if args.mirror is not None:
                addresses = (f"{args.mirror.rstrip('/')}/{archive.file}", *addresses)
            path, known = folder / archive.file, args.sha256 or archive.sha256
            found = download(addresses, path, known)
            print(f"{path}: SHA-256 {found}{'' if known else ' (none known to compare it with)'}", file=sys.stderr)
            print(*unpack(path, folder), sep="\n")
    except (ValueError, OSError) as error:
        return commandline.fail("download_data", error)
    except KeyboardInterrupt:
        return commandline.fail("download_data", "stopped; the same command resumes", 130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
