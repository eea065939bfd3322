"""Finds image files: those of a folder, and those that a data set names by paths of any operating system."""

from __future__ import annotations

import collections
import functools
import itertools
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

# In small letters or capitals. Images with OTHER_ENDINGS are not read, but may have been converted to one that is.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
OTHER_ENDINGS = (".bmp", ".exr", ".heic", ".tga", ".tif", ".tiff", ".webp")
VIDEO_ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")

# Names that a message lists before it only counts them.
MOST_NAMED = 4

# Files that Windows writes into folders of images; others begin with a dot.
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def _stem(name: str) -> str:
    """The name in small letters, without the endings of images; macOS writes accents as letters of their own."""
    name = unicodedata.normalize("NFC", name).lower()
    stem, _, ending = name.rpartition(".")
    return _stem(stem) if f".{ending}" in IMAGE_ENDINGS + OTHER_ENDINGS else name


def listed(names: Sequence[str]) -> str:
    """Joins names for a message: `a`, `a, b and c`, or the first `MOST_NAMED` and how many more."""
    parts = list(names[:MOST_NAMED])
    if len(names) > MOST_NAMED:
        parts.append(f"{len(names) - MOST_NAMED} more")
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises an error if the name is too long


def list_entries(folder: Path) -> list[str]:
    """Lists the names in a folder, sorted, without hidden ones; empty if there is no such folder."""
    paths = folder.iterdir() if _is_folder(folder) else ()
    return sorted(path.name for path in paths if not path.name.startswith("."))


def list_files(folder: Path) -> list[str]:
    """Lists the files of a folder as `list_entries` does, without those that Windows puts there."""
    names = list_entries(folder)
    return [name for name in names if name.lower() not in _SYSTEM_FILES and not _is_folder(folder / name)]


def name_other_files(folder: Path) -> str:
    """Returns the end of a message that names a folder's files other than images; "" if there are none."""
    others = [name for name in list_files(folder) if not _is_image(name)]
    return f"; not read: {listed(others)} (save photos as PNG or JPEG)" if others else ""


def list_images(folder: Path) -> list[Path]:
    """Lists the images of `folder`, sorted by name.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    names = list_files(folder)
    paths = [folder / name for name in names if _is_image(name)]
    if not paths:
        video = next((name for name in names if name.lower().endswith(VIDEO_ENDINGS)), None)
        hint = f"; save frames of {video} as images first, and find their poses" if video else name_other_files(folder)
        inner = next((name for name in list_entries(folder) if any(map(_is_image, list_files(folder / name)))), None)
        hint = hint if inner is None else f"; there are some in {folder / inner}: name that folder, or move them here"
        raise FileNotFoundError(
            f"{folder}: holds no image (looked for names that end in {', '.join(IMAGE_ENDINGS)}){hint}"
        )
    return paths


def find_images(folder: Path, names: Sequence[str]) -> list[Path]:
    """Finds images by the paths that a file in `folder` gives, as programs on any system write them.

    A path without an ending means a PNG. If there is no such file, backslashes count as slashes; if there still is
    none, the image is taken whose path differs only in its ending or in capitals, where there is exactly one.

    Returns:
        A path for each name; no file is there if none or several were found (see `require_images`).
    """
    entries_by_stem = functools.cache(_entries_by_stem)
    return [_find_image(folder, name if _is_image(name) else f"{name}.png", entries_by_stem) for name in names]


def match_images(folder: Path, names: Sequence[str], not_meant: Sequence[Path] = ()) -> list[list[Path]]:
    """Finds images below a folder by the ends of paths that were written on another machine.

    An image matches a path if the file names and the most folders before them agree, but for endings and capitals. It
    must agree in as many folders as the best match of any path, or in all of its own: else masks/1.png could stand in
    for a missing photo 1.png. Images in `not_meant` are left out. Returns the images that match each path: one if all
    is well.
    """
    by_stem, not_meant = collections.defaultdict(list), set(not_meant)
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if _is_image(name) and not name.startswith(".") and path not in not_meant:
                by_stem[_stem(name)].append(([part.lower() for part in path.relative_to(folder).parts[-2::-1]], path))
    ranked = []
    for name in names:
        *parents, last = PurePath(name.lower().replace("\\", "/")).parts or ("",)
        found = []
        for own, path in by_stem[_stem(last)]:
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(own, parents[::-1], strict=False))
            shared = len(list(same))
            found.append((shared, shared == len(own), path))
        most = max((shared for shared, _, _ in found), default=-1)
        ranked.append([match for match in found if match[0] == most])
    top = max((shared for found in ranked for shared, _, _ in found), default=0)
    return [[path for shared, whole, path in found if shared == top or whole] for found in ranked]


def _find_image(folder: Path, name: str, entries_by_stem: Callable[[Path], dict[str, list[str]]]) -> Path:
    written = name.replace("\\", "/")
    for path in (folder / name, folder / written):
        if os.path.lexists(path) and not _is_folder(path):
            return path
    *parents, last = PurePath(written).parts
    for parent in parents:
        alike = [] if _is_folder(folder / parent) else entries_by_stem(folder)[_stem(parent)]
        alike = [entry for entry in alike if _is_folder(folder / entry)]
        folder = folder / (alike[0] if len(alike) == 1 else parent)
    alike = entries_by_stem(folder)[_stem(last)]
    alike = [entry for entry in alike if _is_image(entry) and not _is_folder(folder / entry)]
    likeness = [(entry.lower() == last.lower(), entry.startswith(last[: len(_stem(last))])) for entry in alike]
    best = [entry for entry, rank in zip(alike, likeness, strict=True) if rank == max(likeness)]
    return folder / best[0] if len(best) == 1 else path


def _entries_by_stem(folder: Path) -> dict[str, list[str]]:
    entries = collections.defaultdict(list)
    for name in list_entries(folder):
        entries[_stem(name)].append(name)
    return entries


def require_images(paths: Sequence[Path], remedy: str = "") -> None:
    """Checks that there is something at every path.

    Raises:
        FileNotFoundError: how many are missing, and what lies in the folder of the first; the message ends in `remedy`
            where that is nothing of a similar name.
    """
    missing = [path for path in paths if not os.path.lexists(path)]
    if not missing:
        return
    folder = missing[0].parent
    if not _is_folder(folder):
        hint = f"there is no folder {folder}"
    elif alike := _entries_by_stem(folder)[_stem(missing[0].name)]:
        hint = f"{folder} holds {listed(alike)}: give the path of one PNG or JPEG"
    else:
        hint = f"{folder} holds {listed(list_files(folder)) or 'no files'}{remedy}"
    raise FileNotFoundError(f"{missing[0]}: no such image ({len(missing)} of {len(paths)} are missing); {hint}")
