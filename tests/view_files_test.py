"""Rendered views as files."""

from __future__ import annotations

import logging
import tracemalloc
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image as PILImage

from nerf_tf.output import pictures, view_files
from nerf_tf.render.renderer import Image


def names(folder: Path) -> list[str]:
    """All names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def make_image(seed: int, height: int = 4, width: int = 6, fine: bool = True) -> Image:
    rng = np.random.default_rng(seed)

    def plane(*channels: int) -> np.ndarray:
        return rng.random([height, width, *channels], np.float32)

    image = Image(plane(3), plane(), plane(), plane(), depth_ray=plane(), depth_z=plane())
    return image._replace(rgb0=plane(3), disp0=plane(), acc0=plane(), z_std=plane()) if fine else image


# 8 bits


def test_to_8bit_cuts_decimals_off():
    values = np.array([-1.0, 0.0, 0.9999 / 255, 1.0001 / 255, 127.9 / 255, 0.9999, 1.0, 7.0], np.float32)
    image = view_files.to_8bit(values)
    assert image.dtype == np.uint8
    assert image.tolist() == [0, 0, 0, 1, 127, 254, 255, 255]


def test_disparities_are_scaled_together():
    maps = view_files.normalised_disparity([np.array([[0.0, 1.0]], np.float32), np.array([[2.0, 4.0]], np.float32)])
    assert [disp.tolist() for disp in maps] == [[[0, 63]], [[127, 255]]]
    assert {disp.dtype.name for disp in maps} == {"uint8"}


def test_the_largest_disparity_is_white():
    for largest in np.random.default_rng(0).random(50, np.float32):
        (image,) = view_files.normalised_disparity([np.array([[0.0, largest]], np.float32)])
        assert image.tolist() == [[0, 255]], largest


def test_what_is_not_finite_becomes_black_and_does_not_count():
    disp = np.array([[np.nan, np.inf], [-np.inf, 2.0], [1.0, 0.0]], np.float32)
    (image,) = view_files.normalised_disparity([disp])
    assert image.tolist() == [[0, 0], [0, 255], [127, 0]]


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -1.0])
def test_disparities_without_a_maximum_are_black(value):
    maps = view_files.normalised_disparity([np.full([2, 3], value, np.float32)] * 2)
    assert len(maps) == 2
    assert not np.any(maps)


def test_no_disparities():
    assert view_files.normalised_disparity([]) == []


# Views


@pytest.mark.parametrize("save_arrays", [False, True])
def test_write_views(tmp_path, save_arrays):
    images = [make_image(i) for i in range(2)]
    frames = view_files.write_views(tmp_path / "views", iter(images), save_arrays)
    greys = view_files.normalised_disparity([image.disp for image in images])
    arrays = ["000.npz", "001.npz"] if save_arrays else []
    assert names(tmp_path / "views") == sorted(["000.png", "001.png", *arrays])
    for i, image in enumerate(images):
        png = np.asarray(PILImage.open(tmp_path / "views" / f"{i:03d}.png"))
        np.testing.assert_array_equal(png, np.floor(255 * image.rgb))
        np.testing.assert_array_equal(frames.rgb[i], png)
        np.testing.assert_array_equal(frames.grey_disp[i], greys[i])
        if save_arrays:
            with np.load(tmp_path / "views" / f"{i:03d}.npz", allow_pickle=False) as npz:
                assert sorted(npz.files) == ["acc", "depth", "depth_ray", "depth_z", "disp", "rgb"]
                for name in npz.files:
                    assert npz[name].dtype == np.float32
                    np.testing.assert_array_equal(npz[name], getattr(image, name))


def test_views_are_written_one_by_one(tmp_path):
    def images():
        yield make_image(0)
        assert names(tmp_path) == ["000.png"]
        raise RuntimeError("the second view fails")

    with pytest.raises(RuntimeError, match="second view"):
        view_files.write_views(tmp_path, images(), save_arrays=False)
    assert names(tmp_path) == ["000.png"]


def test_views_of_an_earlier_rendering_go_when_all_are_there(tmp_path):
    view_files.write_views(tmp_path, [make_image(i) for i in range(3)], save_arrays=True)
    for name in ("1000.png", "video.mp4", "12.png", "notes.png"):
        (tmp_path / name).touch()

    def images():
        yield make_image(7)
        assert {"001.png", "002.npz", "1000.png"} <= set(names(tmp_path))
        yield make_image(8)

    others = ["12.png", "notes.png", "video.mp4"]
    view_files.write_views(tmp_path, images(), save_arrays=True)
    assert names(tmp_path) == sorted(["000.npz", "000.png", "001.npz", "001.png", *others])
    view_files.write_views(tmp_path, [make_image(9)], save_arrays=False)
    assert names(tmp_path) == sorted(["000.png", *others])


# Film


def test_film_gives_back_each_view_however_often(tmp_path):
    images = [make_image(i, 3 + i, 5) for i in range(4)]  # sizes may differ
    film = view_files.VideoBuffer(tmp_path / "new")
    for image in images:
        np.testing.assert_array_equal(film.append(image), view_files.to_8bit(image.rgb))
    greys = view_files.normalised_disparity([image.disp for image in images])
    for _ in range(2):
        for i in (2, 0, 3, 1):
            np.testing.assert_array_equal(film.rgb[i], view_files.to_8bit(images[i].rgb))
            np.testing.assert_array_equal(film.grey_disp[i], greys[i])
            np.testing.assert_array_equal(
                film.acc[i], pictures.apply_colour_map(view_files.to_8bit(images[i].acc) / 255.0)
            )
    for frames in (film.depth, film.disp):
        assert [frame.shape for frame in frames] == [(3 + i, 5, 3) for i in range(4)]
    assert names(tmp_path / "new") == [], "a file that a crash could leave behind"


def test_film_colours_depth_and_disparity_over_the_whole_path(tmp_path):
    near, far = np.full([40, 50], 2.0, np.float32), np.full([40, 50], 6.0, np.float32)
    solid, thin = np.ones_like(near), np.full_like(near, 0.25)
    film = view_files.VideoBuffer(tmp_path)
    for depth, acc in ((near, solid), (far, solid), (far + 100, 0 * solid), (near, thin)):
        film.append(Image(np.zeros([40, 50, 3], np.float32), 1.0 / depth, acc, depth * acc))
    for number, colour in enumerate(([252, 253, 191], [0, 0, 4], [0, 0, 0], [63, 63, 48])):
        # The last is near as well, as the weights say little of what stopped a ray, but three quarters see through.
        for frame in (film.depth[number], film.disp[number]):
            np.testing.assert_allclose(frame.reshape(-1, 3), np.tile(colour, [2000, 1]), atol=1)


def test_film_takes_no_memory_for_its_views(tmp_path):
    image = make_image(0, 200, 300, fine=False)
    tracemalloc.start()
    film = view_files.VideoBuffer(tmp_path)
    for _ in range(30):
        film.append(image)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # A few disparities and depths of each view, for the range of the colours.
    assert kept < 30 * (2 * 4 * view_files.VideoBuffer.SAMPLES + 2000) < 0.15 * 30 * image.disp.nbytes
    assert len(film.rgb) == 30


def test_side_by_side(tmp_path):
    image, photo = make_image(0, 40, 60), make_image(1, 40, 60).rgb
    view_files.write_side_by_side(tmp_path / "latest.png", photo, image, "step 7")
    assert names(tmp_path) == ["latest.png"]
    row = np.asarray(PILImage.open(tmp_path / "latest.png"))
    assert row.shape == (2 * pictures.CAPTION + 40, 4 * 60 + 3 * pictures.GAP, 3)
    tiles = [row[pictures.CAPTION : -pictures.CAPTION, i * (60 + pictures.GAP) :][:, :60] for i in range(4)]
    np.testing.assert_array_equal(tiles[0], view_files.to_8bit(photo))
    np.testing.assert_array_equal(tiles[1], view_files.to_8bit(image.rgb))
    np.testing.assert_array_equal(tiles[3], pictures.apply_colour_map(image.acc))
    assert (row[: pictures.CAPTION] < 128).any(), "names"
    assert (row[-pictures.CAPTION :] < 128).any(), "the caption"


# Video


def gradient(height: int, width: int, count: int = 3) -> list[np.ndarray]:
    """Smooth frames, which a codec keeps nearly as they are; each brighter than the one before."""
    rows, cols = np.linspace(0, 100, height)[:, None], np.linspace(0, 100, width)[None]
    planes = [rows + 0 * cols, cols + 0 * rows, (rows + cols) / 2]
    return [(np.stack(planes, axis=-1) + 50 * i).astype(np.uint8) for i in range(count)]


@pytest.mark.parametrize("fps", [1, 24, 60, 120])
def test_videos_have_the_frames_per_second_and_frames_asked_for(tmp_path, fps):
    view_files.write_video(tmp_path / "video.mp4", gradient(16, 16, 7), fps)
    with imageio.get_reader(tmp_path / "video.mp4") as reader:
        assert reader.get_meta_data()["fps"] == fps
        assert sum(1 for _ in reader) == 7


@pytest.mark.parametrize(("height", "width"), [(32, 48), (34, 50), (33, 48), (32, 49), (31, 47)])
def test_video_frames_keep_their_size(tmp_path, height, width):
    frames = gradient(height, width)
    view_files.write_video(tmp_path / "video.mp4", frames, fps=10)
    assert names(tmp_path) == ["video.mp4"]
    with imageio.get_reader(tmp_path / "video.mp4") as reader:
        assert reader.get_meta_data()["fps"] == 10
    read = imageio.mimread(tmp_path / "video.mp4")
    assert len(read) == len(frames)
    for frame, expected in zip(read, frames, strict=True):
        assert frame.shape == (height + height % 2, width + width % 2, 3)
        difference = np.abs(frame[:height, :width].astype(float) - expected)
        assert difference.mean() < 6
        if height % 2:
            assert np.abs(frame[-1].astype(float) - frame[-2]).mean() < 6


def test_grey_frames(tmp_path):
    frames = [frame[..., 0] for frame in gradient(20, 31)]
    view_files.write_video(tmp_path / "grey.mp4", frames, fps=30)
    read = imageio.mimread(tmp_path / "grey.mp4")
    assert [frame.shape for frame in read] == [(20, 32, 3)] * 3
    for frame, expected in zip(read, frames, strict=True):
        assert np.abs(frame[:, :31].astype(float) - expected[..., None]).mean() < 6


class BrokenWriter:
    """A writer whose program dies after the first frame."""

    def __init__(self):
        self.frames = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def append_data(self, frame):
        self.frames += 1
        if self.frames > 1:
            raise OSError("Broken pipe\n\nFFMPEG LOG:\nno space left")


def no_ffmpeg(*args, **kwargs):
    raise RuntimeError("No ffmpeg exe could be found. Install ffmpeg on your system.")


@pytest.mark.parametrize("get_writer", [no_ffmpeg, lambda *args, **kwargs: BrokenWriter()])
def test_a_failing_video_keeps_its_frames_and_warns(tmp_path, monkeypatch, caplog, get_writer):
    monkeypatch.setattr(imageio, "get_writer", get_writer)
    frames = gradient(7, 5)
    with caplog.at_level(logging.WARNING):
        view_files.write_video(tmp_path / "run_spiral_rgb.mp4", frames, fps=30)
    assert names(tmp_path) == ["run_spiral_rgb"]
    assert names(tmp_path / "run_spiral_rgb") == ["000.png", "001.png", "002.png"]
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(np.asarray(PILImage.open(tmp_path / "run_spiral_rgb" / f"{i:03d}.png")), frame)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "run_spiral_rgb.mp4: no video" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_missing_ffmpeg_program_is_survived(tmp_path, monkeypatch, caplog):
    import imageio_ffmpeg

    monkeypatch.setattr(imageio_ffmpeg._utils, "get_ffmpeg_exe", no_ffmpeg)
    monkeypatch.setattr(imageio_ffmpeg._io, "get_ffmpeg_exe", no_ffmpeg)
    with caplog.at_level(logging.WARNING):
        view_files.write_video(tmp_path / "video.mp4", gradient(4, 4), fps=30)
    assert names(tmp_path) == ["video"]
    assert "ffmpeg" in caplog.text


def test_a_failing_video_keeps_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"old")
    monkeypatch.setattr(imageio, "get_writer", no_ffmpeg)
    view_files.write_video(path, gradient(4, 4), fps=30)
    assert path.read_bytes() == b"old"


def test_neither_video_nor_frames_end_a_run(tmp_path, monkeypatch, caplog):
    def full(path, image):
        raise OSError("No space left on device")

    monkeypatch.setattr(imageio, "get_writer", no_ffmpeg)
    monkeypatch.setattr(view_files, "write_png", full)
    with caplog.at_level(logging.WARNING):
        view_files.write_video(tmp_path / "video.mp4", gradient(4, 4), fps=30)
    assert "nor its frames (No space left on device)" in caplog.text
