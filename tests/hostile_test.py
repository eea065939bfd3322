"""Malicious files: no code in them runs, and none takes more memory or time than its size explains."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from app_test import BLENDER, SCENES, assert_one_line, run
from images_test import save_png
from PIL import Image
from tf1_weights_test import hostile_payloads, npy_bytes

from nerf_tf.camera_paths import keyframes
from nerf_tf.data import blender
from nerf_tf.data import images as image_files
from nerf_tf.evaluation import lpips
from nerf_tf.storage import (
    deepvoxels_files,
    image_reader,
    llff_files,
    pickled_arrays,
    readers,
    tf1_weights,
    transforms_files,
)

# More than any of these files needs: they are some kilobytes.
MOST_MEMORY, MOST_SECONDS = 64 * 2**20, 20


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    """Fails a test that hangs, or that takes memory (of Python and numpy) which a file only claims to need."""

    def stop(*_: object) -> None:
        raise AssertionError(f"no answer after {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def scene_dir(tmp_path) -> Path:
    return Path(shutil.copytree(SCENES / "blender", tmp_path / "scene"))


def npy(header: str, content: bytes = b"") -> bytes:
    """An npy file of any header."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def header_of(descr: str, shape: str) -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


# Pickles


@pytest.mark.parametrize("name", hostile_payloads(Path()))
@pytest.mark.parametrize("disguise", ["objects", "floats", "bare"])
def test_a_pickle_in_place_of_an_array_does_not_run(tmp_path, name, disguise):
    """As objects, under a header that claims floats, and without a header, which NumPy takes for a pickle."""
    sentinel, path = tmp_path / "sentinel", tmp_path / "poses_bounds.npy"
    payload = hostile_payloads(sentinel)[name]
    floats = npy(header_of("'<f8'", f"({len(payload) // 8 + 1}, 17)"), payload)
    path.write_bytes({"objects": npy_bytes(payload), "floats": floats, "bare": payload}[disguise])
    for read in (readers.read_npy, llff_files.read_poses_bounds):
        with pytest.raises(ValueError, match=r"poses_bounds\.npy: not an npy file of plain numbers"):
            read(path)
    assert not sentinel.exists()


def test_a_pickle_does_not_run_wherever_the_program_takes_a_file(tmp_path):
    """An `.npy` for `--ft_path` or `--render_path_file`, and one in place of each other file of a scene."""
    sentinel = tmp_path / "sentinel"
    bomb = npy_bytes(hostile_payloads(sentinel)["os.system"])
    (tmp_path / "model_000001.npy").write_bytes(bomb)
    common = [*BLENDER, f"--basedir={tmp_path / 'logs'}", "--expname=x"]
    for flag in ("--ft_path", "--render_path_file", "--config"):
        result = run(*common, f"{flag}={tmp_path / 'model_000001.npy'}")
        assert_one_line(result, 2 if flag == "--config" else 1, r"model_000001\.npy: not a")
    for name in ("transforms_val.json", "train/r_1.png"):
        folder = Path(shutil.copytree(SCENES / "blender", tmp_path / Path(name).stem))
        (folder / name).write_bytes(bomb)
        assert_one_line(run(*common, f"--datadir={folder}"), 1, rf"{Path(name).name}: not a")
    assert not sentinel.exists()
    assert not (tmp_path / "logs").exists()


def weights_that_repeat(times: int) -> bytes:
    """A weight file that names one array of 2^16 floats many times, in two bytes each time."""
    items = np.empty(2, object)
    items[:] = [np.zeros(2**16, np.float32)] * 2
    payload = pickle.dumps(items, protocol=2)
    at = payload.rindex(b"h")  # the second mention of the array, out of the memo
    assert payload[at + 2 : at + 4] == b"et"
    shape = payload.index(b"K\x02\x85")
    payload = payload[:shape] + b"M" + struct.pack("<H", times) + payload[shape + 2 :]
    at += 1
    mention, rest = payload[at : at + 2], payload[at + 2 :]
    return npy_bytes(payload[:at] + mention * (times - 1) + rest, times)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (weights_that_repeat(60000), "but arrays for"),
        (npy_bytes(b"\x80\x02" + b"N0" * (pickled_arrays.MAX_OPCODES // 2) + b"N."), "pickle instructions"),
        (npy_bytes(b"\x80\x02" + b"]q\x00" + b"h\x00a" * 5000 + b"."), "not an array"),
        (npy_bytes(b"\x80\x02" + b"(" * 30000 + b"t" * 29999 + b"."), "not an array"),
    ],
    ids=["one array many times", "endless instructions", "a list within itself", "deep tuples"],
)
def test_weights_that_unpack_to_more_than_they_are(tmp_path, content, message):
    (tmp_path / "model_000001.npy").write_bytes(content)
    with pytest.raises(ValueError, match=f"model_000001.npy: not a weight file: .*{message}"):
        tf1_weights.load(tmp_path / "model_000001.npy")


# Headers that promise what the file does not hold


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (header_of("'<f8'", "(1000000000000, 17)"), r"announces shape \(1000000000000, 17\) of float64, but 16 bytes"),
        (header_of("'<f8'", "(-1, 17)"), "announces shape"),
        (header_of("'<f8'", "(0, -1)"), "announces shape"),
        (header_of("'<U0'", "(1000000000000, 17)"), "not numbers"),
        (header_of("'|V1000000000'", "(9, 17)"), "not numbers"),
        (header_of("[('a', '<f8')]", "(9, 17)"), "not numbers"),
        (header_of("'<c16'", "(1,)"), "not numbers"),
        (header_of("'<f8'", "(" + "9" * 80 + ", 17)"), "announces"),
        (header_of("'<f8'", "(" * 99), "."),
        (header_of("__import__('os').system('false')", "(1,)"), "."),
        ("{" * 100, "."),
        ("", "."),
        ("\x00" * 100, "."),
    ],
)
def test_npy_headers(tmp_path, header, message):
    path = tmp_path / "poses.npy"
    path.write_bytes(npy(header, bytes(16)))
    with pytest.raises(ValueError, match=rf"poses\.npy: not an npy file of plain numbers \(.*{message}"):
        readers.read_npy(path)


def test_an_npy_file_of_holes(tmp_path):
    path = tmp_path / "poses.npy"
    path.write_bytes(npy(header_of("'<f8'", "(68719476736, 17)"), b""))
    os.truncate(path, 2**36 * 17 * 8 + 1000)
    with pytest.raises(ValueError, match=r"poses\.npy: not an npy file of plain numbers \(it is larger than"):
        readers.read_npy(path)


def test_an_npy_header_longer_than_the_file(tmp_path):
    path = tmp_path / "poses.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + b"\xff\xff\xff\x7f" + b"{")
    with pytest.raises(ValueError, match=r"poses\.npy: not an npy file"):
        readers.read_npy(path)


# Archives of arrays


def archive_of(path: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def small_claim(content: bytes) -> bytes:
    """The archive of one member, as if that unpacked to 1000 bytes."""
    at = content.index(b"PK\x01\x02")
    return content[: at + 24] + struct.pack("<I", 1000) + content[at + 28 :]


def many_names(content: bytes) -> bytes:
    """The archive of one member, with a thousand entries that are all that member."""
    at, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entries = content[at:end] * 1000
    return content[:at] + entries + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1000, 1000, len(entries), at, 0)


def test_archives_that_unpack_to_a_hundred_megabytes(tmp_path):
    zeros = npy(header_of("'|u1'", f"({100 * 2**20},)")) + bytes(100 * 2**20)
    path = archive_of(tmp_path / "a.npz", {"a.npy": zeros})
    whole = path.read_bytes()
    del zeros
    tracemalloc.reset_peak()  # making it took as much
    for change, message in (
        (bytes, "it announces more than 16777216 bytes of arrays"),
        (small_claim, "CRC"),
        (many_names, "it announces more than 16777216 bytes of arrays"),
    ):
        path.write_bytes(change(whole))
        with pytest.raises(ValueError, match=rf"a\.npz: cannot be read as an npz file of plain arrays \(.*{message}"):
            readers.read_npz(path, largest=2**24)


def test_an_archive_whose_unpacking_nothing_bounds(tmp_path):
    content = npy(header_of("'|u1'", "(1,)"), b"a")
    path = archive_of(tmp_path / "a.npz", {"a.npy": content}, zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match=r"a\.npz: .*its compression is not one that np.savez uses"):
        readers.read_npz(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(header_of("'<f8'", "(1000000000000, 17)"), bytes(16)), "announces shape"),
        (npy(header_of("'<f8'", "(-1, 17)"), bytes(16)), "announces shape"),
        (npy(header_of("'<U0'", "(1000000000000, 17)")), "."),
        (npy(header_of("'<U1'", "()"), b"\xff\xff\xff\xff"), "invalid Unicode characters"),
        (npy(header_of("'<c16'", "()"), bytes(16)), "complex128, not numbers"),
        (npy(header_of("[('a', '<f8')]", "()"), bytes(16)), "not numbers"),
        (npy_bytes(hostile_payloads(Path("sentinel"))["os.system"]), "pickled objects"),
        (pickle.dumps([1]), "magic string"),
        (b"", "."),
    ],
)
def test_what_is_no_array_in_an_archive(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = archive_of(tmp_path / "a.npz", {"a.npy": content})
    with pytest.raises(ValueError, match=rf"a\.npz: cannot be read as an npz file of plain arrays \(.*{message}"):
        readers.read_npz(path)
    assert not Path("sentinel").exists()


def test_any_bit_of_an_archive_may_be_wrong(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"key": np.array("0123456789"), "grid": np.arange(40, dtype=np.uint8), "x": np.linspace(0, 1, 5)}
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 11):  # that reaches every bit of a byte, and every part of the file
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found = readers.read_npz(path, list(arrays))
        except ValueError as error:
            assert str(error).startswith(f"{path}: cannot be read")  # noqa: PT017 - either answer is right
        else:
            assert all(np.array_equal(found[name], arrays[name]) for name in arrays), bit


# Images that unpack to more than they are


def png_of(path: Path, width: int, height: int, rows: bytes, *extra: tuple[bytes, bytes]) -> Path:
    return save_png(path, struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), rows, extra)


@pytest.mark.parametrize("size", [(40000, 25000), (10**9, 1), (1, 10**9), (2**31 - 1, 2**31 - 1), (17001, 10000)])
def test_images_that_claim_too_many_pixels(tmp_path, size):
    path = png_of(tmp_path / "a.png", *size, bytes(100))
    for read in (image_reader.image_size, image_reader.read_image):
        with pytest.raises(ValueError, match=r"a\.png: its header announces more than the 170000000 pixels"):
            read(path)


def test_images_without_pixels(tmp_path):
    for size in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match=r"a\.png: not a readable image"):
            image_reader.read_image(png_of(tmp_path / "a.png", *size, b""))


def test_a_palette_image_without_a_palette(tmp_path):
    path = save_png(tmp_path / "a.png", struct.pack(">IIBBBBB", 2, 2, 8, 3, 0, 0, 0), bytes(6))
    with pytest.raises(ValueError, match=r"a\.png: not a readable image"):
        image_reader.read_image(path)


def test_sizes_are_compared_before_pixels_are_unpacked(tmp_path):
    """A large image among small ones, in time and memory that its pixels would not fit."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    large = png_of(tmp_path / "b.png", 12000, 12000, bytes(100))
    with pytest.raises(ValueError, match=r"b\.png: 12000x12000, but a\.png is 4x4"):
        image_reader.read_images([tmp_path / "a.png", large])


def test_a_scene_larger_than_memory(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(image_files.np, "empty", full)
    with pytest.raises(ValueError, match=r"3 images of 4x4 with 3 channels take 5\.8e\+02 bytes of memory, more"):
        image_reader.read_images([tmp_path / "a.png"] * 3)


def test_an_image_larger_than_memory_is_not_called_damaged(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "convert", mock.Mock(side_effect=MemoryError))
    with pytest.raises(ValueError, match=r"a\.png: there is not enough memory to unpack it"):
        image_reader.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("chunk", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_chunks_that_unpack_to_a_hundred_megabytes(tmp_path, chunk):
    before = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[chunk]
    bomb = before + zlib.compress(bytes(100 * 2**20), 9)
    path = png_of(tmp_path / "a.png", 2, 2, bytes(14), (chunk, bomb))
    tracemalloc.reset_peak()  # making it took as much
    try:
        assert image_reader.read_image(path).shape == (2, 2, 3)
    except ValueError as error:
        assert "a.png: not a readable image" in str(error)  # noqa: PT017 - either answer is right


def test_pixel_data_longer_than_the_image(tmp_path):
    path = png_of(tmp_path / "a.png", 2, 2, bytes(100 * 2**20))
    tracemalloc.reset_peak()  # making it took as much
    np.testing.assert_array_equal(image_reader.read_image(path), np.zeros((2, 2, 3)))


def test_only_the_decoders_of_photos_see_a_file(tmp_path):
    """PostScript, for one, would be handed to another program."""
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\n(harm) print\nshowpage\n")
    with pytest.raises(ValueError, match=r"a\.png: not a readable image"):
        image_reader.read_image(path)
    Image.new("RGB", (2, 2)).save(path, format="TIFF")
    with pytest.raises(ValueError, match=r"a\.png: not a readable image"):
        image_reader.read_image(path)


# Text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**5 + "]" * 10**5, "not valid JSON"),
        ('{"frames": ' + '{"a": ' * 10**5, "not valid JSON"),
        ('{"camera_angle_x": 1' + "0" * 5000 + "}", "not valid JSON"),
        ('{"camera_angle_x": 1' + "0" * 400 + "}", "not a number"),
        ('{"camera_angle_x": "' + "x" * 10**6 + '"}', "not a number"),
        ('{"camera_angle_x": 5e-324}', "between 0 and pi"),
        ('{"camera_angle_x": Infinity}', "between 0 and pi"),
        ("null", "lacks 'camera_angle_x'"),
        ("\0", "not valid JSON"),
        (" " * (transforms_files.LARGEST_TEXT + 1), "longer than 16777216 characters"),
    ],
)
def test_transforms_files(scene_dir, text, message):
    (scene_dir / "transforms_val.json").write_text(text)
    with pytest.raises(ValueError, match=rf"transforms_val\.json.*{message}") as raised:
        blender.load(scene_dir)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("file_path", "x" * 1001, "file_path is"),
        ("file_path", "x" * 999, "cannot be opened|no such"),
        ("file_path", "train/r_0\0", "no such|cannot be opened"),
        ("file_path", "\ud800", "no such|cannot be opened"),
        ("file_path", "../../../../../../../dev/zero", "no such|cannot be opened"),
        ("file_path", None, "file_path is None"),
        ("transform_matrix", [[10**400] * 4] * 4, "not a matrix of numbers"),
        ("transform_matrix", [[1e308] * 4] * 3, "too large to compute with"),
        ("transform_matrix", [[[[[[1]]]]]], "shape"),
        ("transform_matrix", None, "shape"),
    ],
)
def test_frames(scene_dir, key, value, message):
    meta = json.loads((scene_dir / "transforms_val.json").read_text())
    meta["frames"][0][key] = value
    (scene_dir / "transforms_val.json").write_text(json.dumps(meta))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        blender.load(scene_dir)
    assert str(scene_dir) in str(raised.value)
    assert not isinstance(raised.value, UnicodeError)


def test_text_files_of_deepvoxels(tmp_path):
    path = tmp_path / "000.txt"
    for read in (deepvoxels_files.read_pose, deepvoxels_files.read_intrinsics):
        for content in (b"\xff\xfe", b"1 " * deepvoxels_files.LARGEST_TEXT, b"1e999 " * 16, b"0x1 " * 16, b"\0" * 20):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"000\.txt"):
                read(path)


# Things that are no files


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_hole(path: Path) -> None:
    """A file that is a terabyte to read and nothing on disk."""
    with path.open("wb") as file:
        file.truncate(2**40)


READERS = {
    "array.npy": readers.read_npy,
    "occupancy.npz": readers.read_npz,
    "keys.json": keyframes.load_keyframes,
    "vgg16.ckpt": lpips.read_weights,
    "poses_bounds.npy": llff_files.read_poses_bounds,
    "model_000001.npy": tf1_weights.load,
    "a.png": image_reader.read_image,
    "transforms_val.json": transforms_files.read_split,
    "intrinsics.txt": deepvoxels_files.read_intrinsics,
    "pose.txt": deepvoxels_files.read_pose,
}


@pytest.mark.parametrize("make", [make_pipe, make_loop, make_device, Path.mkdir, make_hole])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_not_waited_for(tmp_path, name, make: Callable[[Path], None]):
    path = tmp_path / name
    make(path)
    with pytest.raises(ValueError, match=rf"{path}: "):
        READERS[name](path)


def test_a_folder_that_contains_itself(tmp_path, scene_dir):
    (scene_dir / "loop").symlink_to(scene_dir)
    assert len(blender.load(scene_dir / "loop" / "loop").images) == 5
    shutil.rmtree(scene_dir / "train")
    (scene_dir / "train").symlink_to(scene_dir / "train")
    with pytest.raises((ValueError, FileNotFoundError), match=r"r_0\.png"):
        blender.load(scene_dir)


# What is printed


def test_a_name_cannot_steer_the_terminal(scene_dir, tmp_path):
    meta = json.loads((scene_dir / "transforms_train.json").read_text())
    meta["frames"][0]["file_path"] = "\x1b[2J\x1b]0;owned\x07\u202e\nnerf_tf: all is well"
    (scene_dir / "transforms_train.json").write_text(json.dumps(meta))
    result = run(*BLENDER, f"--datadir={scene_dir}", f"--basedir={tmp_path / 'logs'}", "--expname=x")
    assert_one_line(result, 1, r"\\x1b\[2J.*\\x07\\u202e nerf_tf: all is well")
    assert result.stderr.replace("\n", "").isprintable()
