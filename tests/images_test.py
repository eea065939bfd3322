"""Reading, compositing and shrinking images."""

from __future__ import annotations

import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from nerf_tf.data import images as image_files
from nerf_tf.storage import image_folders, image_reader, llff_files

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (10, 14, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (10, 14, 4), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def save_png(path: Path, header: bytes, rows: bytes, extra: tuple[tuple[bytes, bytes], ...] = ()) -> Path:
    """Writes a PNG from its parts, for kinds that Pillow does not write."""
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_read_image_is_bytes_over_255(tmp_path):
    every_value = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = image_reader.read_image(save(tmp_path / "a.png", np.stack([every_value] * 3, axis=-1)))
    assert image.dtype == np.float32
    expected = (every_value / 255.0).astype(np.float32)
    np.testing.assert_array_equal(image, np.stack([expected] * 3, axis=-1))


def test_read_image_keeps_alpha_and_expands_grey_and_palette(tmp_path):
    np.testing.assert_array_equal(image_reader.read_image(save(tmp_path / "rgba.png", RGBA)), np.float32(RGBA) / 255)
    grey = image_reader.read_image(save(tmp_path / "grey.png", RGB[..., 0]))
    np.testing.assert_array_equal(grey, np.float32(RGB[..., [0, 0, 0]]) / 255)
    Image.fromarray(RGB).quantize(200).save(tmp_path / "palette.png")
    assert image_reader.read_image(tmp_path / "palette.png").shape == (10, 14, 3)
    np.testing.assert_allclose(image_reader.read_image(tmp_path / "palette.png") * 255, RGB, atol=32)
    Image.fromarray(RGBA).quantize(20).save(tmp_path / "clear.png")
    assert image_reader.read_image(tmp_path / "clear.png").shape == (10, 14, 4)


def test_gamma_chunk_is_not_applied(tmp_path):
    rows = b"".join(b"\0" + row.tobytes() for row in RGB)
    gamma = ((b"gAMA", struct.pack(">I", 20000)),)
    path = save_png(tmp_path / "gamma.png", struct.pack(">IIBBBBB", 14, 10, 8, 2, 0, 0, 0), rows, gamma)
    np.testing.assert_array_equal(image_reader.read_image(path), np.float32(RGB) / 255)


def test_sixteen_bits_colour_is_read_and_grey_refused(tmp_path):
    rows = b"".join(b"\0" + (row.astype(">u2") * 256 + 5).astype(">u2").tobytes() for row in RGB)
    path = save_png(tmp_path / "deep.png", struct.pack(">IIBBBBB", 14, 10, 16, 2, 0, 0, 0), rows)
    np.testing.assert_allclose(image_reader.read_image(path) * 255, RGB, atol=1)
    path = save(tmp_path / "grey16.png", RGB[..., 0].astype(np.uint16) * 256)
    with pytest.raises(ValueError, match=r"grey16\.png.*8-bit"):
        image_reader.read_image(path)


@pytest.mark.parametrize("keep", [0, 10, 40, 60, 200])
def test_damaged_file_is_named(tmp_path, keep):
    path = save(tmp_path / "cut.png", RGB)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cut\.png: not a readable image"):
        image_reader.read_image(path)


def test_endings_of_images(tmp_path):
    names = ["a.jpg", "b.JPG", "c.jpeg", "d.JPEG", "e.png", "f.PNG", "g.Png"]
    for name in reversed(names):
        (tmp_path / name).touch()
    assert [path.name for path in image_folders.list_images(tmp_path)] == names


def test_what_is_no_photo(tmp_path):
    """What macOS, Windows and people leave in folders of photos."""
    save(tmp_path / "000.png", RGB)
    for name in ("._000.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.jpg", "notpng"):
        (tmp_path / name).write_bytes(b"no photo")
    (tmp_path / "x.png").mkdir()
    assert image_folders.list_images(tmp_path) == [tmp_path / "000.png"]
    assert image_folders.name_other_files(tmp_path) == "; not read: notpng (save photos as PNG or JPEG)"
    (tmp_path / "notpng").unlink()
    assert image_folders.name_other_files(tmp_path) == image_folders.name_other_files(tmp_path / "nowhere") == ""
    (tmp_path / "000.png").rename(tmp_path / "000.webp")
    with pytest.raises(FileNotFoundError, match=r"holds no image .*\.jpg, \.jpeg, \.png\); not read: 000\.webp"):
        image_folders.list_images(tmp_path)


def test_long_lists_of_names_are_cut():
    assert [image_folders.listed("abcdefg"[:n]) for n in (0, 1, 2, 4, 7)] == [
        "", "a", "a and b", "a, b, c and d", "a, b, c, d and 3 more",
    ]  # fmt: skip


def test_dropped_transparency_is_warned_of_once(tmp_path, caplog):
    opaque = RGBA.copy()
    opaque[..., 3] = 255
    paths = [save(tmp_path / f"{i}.png", pixels) for i, pixels in enumerate((RGB, opaque, RGBA, RGBA))]
    image_reader.read_images(paths[:2], channels=3)
    image_reader.read_images(paths[2:])
    assert not caplog.records
    image_reader.read_images(paths, channels=3)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{paths[2]}: 2 of 4 images have transparent pixels; alpha is dropped, and the colours stored there are used "
        "as they are; lay them on a background and save them without transparency"
    )


def test_photos_of_fern_have_no_transparency(real_data, caplog):
    folder = real_data / "data" / "nerf_llff_data" / "fern"
    image_reader.read_images(image_folders.list_images(folder / "images_8")[:2], channels=3)
    assert not caplog.records


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        image_reader.read_image(tmp_path / "gone.png")
    here = save(tmp_path / "here.png", RGB)
    with pytest.raises(FileNotFoundError, match=r"gone0\.png.*2 of 3"):
        image_reader.read_images([here, tmp_path / "gone0.png", tmp_path / "gone1.png"])
    with pytest.raises(FileNotFoundError, match=r"gone0\.png.*1 of 2 .*; .* holds here\.png$"):
        image_reader.read_images([tmp_path / "gone0.png", here])
    with pytest.raises(ValueError, match="no images"):
        image_reader.read_images([])


def test_image_size_reads_the_header(tmp_path):
    assert image_reader.image_size(save(tmp_path / "a.png", RGB)) == (10, 14)


def test_read_images_keeps_the_order(tmp_path):
    pixels = RNG.integers(0, 256, (20, 5, 4, 3), dtype=np.uint8)
    paths = [save(tmp_path / f"{i}.png", image) for i, image in enumerate(pixels)]
    images = image_reader.read_images(paths)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, np.float32(pixels) / 255)


def test_read_images_works_in_several_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(image_reader.os, "cpu_count", lambda: 2)
    barrier = threading.Barrier(2, timeout=20)

    def wait_for_the_other(image):
        if image[0, 0, 0] > 0:
            barrier.wait()
        return [image]

    first, others = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    paths = [save(tmp_path / f"{i}.png", first if i == 0 else others) for i in range(3)]
    assert image_reader.read_arrays(paths, wait_for_the_other)[0][1:].min() == 1.0


def test_read_images_shows_progress(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_reader, "tqdm", lambda items, **options: tqdm(items, **{**options, "delay": 0}))
    image_reader.read_images([save(tmp_path / f"{i}.png", RGB) for i in range(3)])
    assert "Reading images: 100%" in capsys.readouterr().err


def test_first_image_of_another_size_is_named(tmp_path):
    paths = [save(tmp_path / f"{i}.png", RGB if i < 3 else RGB[: 10 - i]) for i in range(6)]
    with pytest.raises(ValueError, match=r"3\.png: 14x7, but 0\.png is 14x10"):
        image_reader.read_images(paths)


def test_mixed_channels_are_refused_unless_alpha_is_dropped(tmp_path):
    paths = [save(tmp_path / "a.png", RGB), save(tmp_path / "b.png", RGBA)]
    with pytest.raises(ValueError, match=r"b\.png: 14x10 with 4 channels"):
        image_reader.read_images(paths)
    images = image_reader.read_images(paths, channels=3)
    np.testing.assert_array_equal(images, np.float32([RGB, RGBA[..., :3]]) / 255)


def test_split_sees_each_image(tmp_path):
    paths = [save(tmp_path / f"{i}.png", RGBA) for i in range(2)]
    images = image_reader.read_arrays(paths, lambda image: [image[::2, ::7, :3]])[0]
    np.testing.assert_array_equal(images, np.float32([RGBA[::2, ::7, :3]] * 2) / 255)


def test_composite_white_extremes():
    colour = np.full((2, 2, 3), 0.25, np.float32)
    for alpha, expected in ((0.0, 1.0), (1.0, 0.25), (0.5, 0.625)):
        image = np.concatenate([colour, np.full((2, 2, 1), alpha, np.float32)], axis=-1)
        np.testing.assert_array_equal(image_files.composite_white(image), np.full((2, 2, 3), np.float32(expected)))
    np.testing.assert_array_equal(image_files.composite_white(colour), colour)


def test_area_resize_by_two_is_the_mean_of_four():
    image = RNG.random((8, 6, 4), dtype=np.float32)
    mean = image.reshape(4, 2, 3, 2, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(image_files.area_resize(image, 4, 3), mean, atol=1e-6)
    np.testing.assert_array_equal(
        image_files.area_resize(np.stack([image] * 2), 4, 3)[1], image_files.area_resize(image, 4, 3)
    )


def test_area_resize_of_odd_sides_weighs_parts_of_pixels():
    row = np.array([1.0, 2.0, 4.0], np.float32)[None, :, None]
    resized = image_files.area_resize(np.repeat(row, 5, axis=0), 2, 1)
    np.testing.assert_allclose(resized, np.full((2, 1, 1), 7.0 / 3.0), rtol=1e-6)
    ramp = image_files.area_resize(np.arange(5, dtype=np.float32)[:, None, None], 2, 1)
    np.testing.assert_allclose(ramp[:, 0, 0], [(0 + 1 + 0.5 * 2) / 2.5, (0.5 * 2 + 3 + 4) / 2.5], rtol=1e-6)


def test_minify_rounds_sizes_and_keeps_names_and_modes(tmp_path):
    save(tmp_path / "images" / "a.JPG", RGB)
    save(tmp_path / "images" / "b.png", RGBA)
    folder = llff_files.minify(tmp_path, 4)
    assert folder == tmp_path / "images_4"
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png"]
    assert image_reader.read_image(folder / "a.png").shape == (3, 4, 3)  # 10 / 4 + .5 and 14 / 4 + .5, rounded down
    assert image_reader.read_image(folder / "b.png").shape == (3, 4, 4)
    assert image_reader.image_size(folder / "a.png") == (3, 4)


def test_minify_keeps_flat_colour_and_at_least_a_pixel(tmp_path):
    save(tmp_path / "images" / "a.png", np.full((16, 16, 3), (10, 100, 200), np.uint8))
    for factor in (2, 100):
        image = image_reader.read_image(llff_files.minify(tmp_path, factor) / "a.png")
        np.testing.assert_array_equal(image * 255, np.broadcast_to(np.float32([10, 100, 200]), image.shape))
    assert image.shape == (1, 1, 3)


def test_minify_reuses_what_is_there(tmp_path):
    save(tmp_path / "images" / "a.png", RGB)
    made = llff_files.minify(tmp_path, 2) / "a.png"
    made.write_bytes(b"mine")
    assert llff_files.minify(tmp_path, 2) / "a.png" == made
    assert made.read_bytes() == b"mine"


def test_interrupted_minify_leaves_nothing_behind(tmp_path):
    save(tmp_path / "images" / "a.png", RGB)
    bad = save(tmp_path / "images" / "b.png", RGB)
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"b\.png"):
        llff_files.minify(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_minify_gives_way_to_a_faster_process(tmp_path, monkeypatch):
    save(tmp_path / "images" / "a.png", RGB)
    decode = image_reader.decode

    def decode_while_another_finishes(path):
        save(tmp_path / "images_2" / "theirs.png", RGB)
        return decode(path)

    monkeypatch.setattr(image_reader, "decode", decode_while_another_finishes)
    folder = llff_files.minify(tmp_path, 2)
    assert [path.name for path in folder.iterdir()] == ["theirs.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "images_2"]


def test_minify_refuses_bad_requests(tmp_path):
    with pytest.raises(FileNotFoundError, match="images_2: no such folder"):
        llff_files.minify(tmp_path, 2)
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        llff_files.minify(tmp_path, 2)
    for factor in (0, -1):
        with pytest.raises(ValueError, match=f"factor {factor}: "):
            llff_files.minify(tmp_path, factor)
    save(tmp_path / "images" / "a.png", RGB)
    save(tmp_path / "images" / "a.jpg", RGB)
    with pytest.raises(ValueError, match="only in their ending"):
        llff_files.minify(tmp_path, 2)
