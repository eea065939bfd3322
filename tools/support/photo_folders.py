"""Photos as poses are found from them: those of a folder, upright, or the sharpest frames of a video."""

from __future__ import annotations

import collections
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from nerf_tf.safety.photo_checks import sharpness
from nerf_tf.storage import image_folders, image_reader, readers
from nerf_tf.storage.image_folders import listed

# Fewest photos: two have a single distance between them, and nothing to compare it with.
FEWEST = 3
# How JPEGs are written again: at this quality what is lost cannot be seen.
JPEG = {"quality": 97, "subsampling": 0}
_ORIENTATION = 0x0112  # the tag of EXIF


def list_photos(folder: Path) -> list[Path]:
    """Photos of a folder, sorted by name.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: there are too few; a photo has a format that is not read, such as HEIC; or two differ in their
            ending only.
    """
    paths = image_folders.list_images(folder)
    stems = collections.Counter(path.stem for path in paths)
    unread = [
        name
        for name in image_folders.list_files(folder)
        if name.lower().endswith(image_folders.OTHER_ENDINGS) and Path(name).stem not in stems
    ]
    if unread:
        raise ValueError(
            f"{folder}: {listed(unread)}: not PNG or JPEG; save as JPEG, or move out (an iPhone takes JPEGs with "
            "Settings > Camera > Formats > Most Compatible)"
        )
    twice = [stem for stem, count in stems.items() if count > 1]
    if twice:
        raise ValueError(f"{folder}: two photos named {twice[0]} differ in their ending only; rename or remove one")
    if len(paths) < FEWEST:
        raise ValueError(f"{folder}: holds {len(paths)} photos; poses need {FEWEST}, and 20 to 60 are usual")
    return paths


def read_upright(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Reads a photo as RGB, turned as the camera noted in EXIF; transparency is laid on white.

    Args:
        path: a PNG or JPEG.
        size: width and height that it has to have, upright or else as it is stored.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, or has another size.
    """
    stored = image_reader.decode(path)
    image = ImageOps.exif_transpose(stored) if _is_turned(stored) else stored
    if size is not None and image.size != size:
        if stored.size != size:
            raise ValueError(
                f"{path}: {image.width}x{image.height}, but its camera is of {size[0]}x{size[1]}; give the photos from "
                "which the poses were found"
            )
        image = stored
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        exif = image.info.get("exif")
        image = Image.alpha_composite(white, image).convert("RGB")
        if exif:
            image.info["exif"] = exif
    return image


def _is_turned(image: Image.Image) -> bool:
    """Whether EXIF says that a photo has to be turned; damaged EXIF says nothing."""
    try:
        return image.getexif().get(_ORIENTATION, 1) != 1
    except (*readers.PARSER_ERRORS, struct.error):
        return False


def write_photo(image: Image.Image, path: Path) -> None:
    """Writes a photo without tags, as JPEG or PNG by its name."""
    options = JPEG if path.suffix.lower() in (".jpg", ".jpeg") else {"compress_level": 1}
    Image.fromarray(np.asarray(image)).save(path, **options)


def copy_upright(paths: Sequence[Path], folder: Path) -> None:
    """Copies photos, all upright; JPEGs that are upright already byte by byte.

    Their EXIF stays, as the focal length that it notes is what a reconstruction begins with.

    Raises:
        ValueError: a photo cannot be read, or fewer than `FEWEST` photos have its size, too few to find its camera.
    """
    sizes: dict[Path, tuple[int, int]] = {}

    def copy(index: int) -> None:
        path = paths[index]
        target = folder / path.name
        image = read_upright(path)
        sizes[path] = image.size
        with Image.open(path) as file:
            is_jpeg, is_turned = file.format == "JPEG", _is_turned(file)
        if not is_jpeg:
            image.save(target, "PNG", compress_level=1)
        elif is_turned:
            image.save(target, "JPEG", exif=image.info.get("exif", b""), **JPEG)
        else:
            shutil.copyfile(path, target)

    image_reader.run_parallel(copy, len(paths), "Copying photos")
    counts = collections.Counter(sizes.values())
    (usual, count), *_ = counts.most_common()
    odd = [path for path in paths if sizes[path] != usual and counts[sizes[path]] < FEWEST]
    if odd:
        width, height = sizes[odd[0]]
        raise ValueError(
            f"{paths[0].parent}: {count} photos are {usual[0]}x{usual[1]}, but {listed([path.name for path in odd])} "
            f"not ({width}x{height}); each size has a camera of its own, which takes {FEWEST} photos to find: move "
            "the others out"
        )


def write_sharpest_frames(video: Path, folder: Path, count: int) -> None:
    """Writes the sharpest frame of each of `count` equal parts of a video as frame_NNNNN.jpg, from 0.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no video with `FEWEST` frames.
        OSError: ffmpeg cannot be run.
    """
    import imageio_ffmpeg

    readers.require_file(video)
    source = str(video.resolve())
    try:
        total, _ = imageio_ffmpeg.count_frames_and_secs(source)
        frames = imageio_ffmpeg.read_frames(source)
        width, height = next(frames)["size"]
    except (RuntimeError, LookupError, StopIteration) as error:
        raise ValueError(f"{video}: not a video that ffmpeg reads; give a video file, or a folder of photos") from error
    written = 0
    best = (-1.0, 0, b"")  # sharpness, number and bytes of the sharpest frame since the last one that was written

    def write() -> None:
        pixels = np.frombuffer(best[2], np.uint8).reshape(height, width, 3)
        write_photo(Image.fromarray(pixels), folder / f"frame_{best[1]:05d}.jpg")

    for number, frame in enumerate(tqdm(frames, desc="Choosing frames", total=total, unit="frame", delay=0.5)):
        # The number of frames that the file announces may be less than there are.
        if best[2] and min(number * count // total, count - 1) > written:
            write()
            written, best = min(number * count // total, count - 1), (-1.0, 0, b"")
        sharp = sharpness(np.frombuffer(frame, np.uint8).reshape(height, width, 3))
        if sharp > best[0]:
            best = (sharp, number, frame)
    if best[2]:
        write()
    found = len(list(folder.iterdir()))
    if found < FEWEST:
        raise ValueError(f"{video}: gave {found} frames; poses need {FEWEST} photos, and 20 to 60 are usual")
