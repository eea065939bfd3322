"""Poses of photos: of scenes whose cameras are known, of COLMAP's models, of videos, and of what goes wrong."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from images_test import save_png
from PIL import Image, ImageFilter

from nerf_tf.captures import transforms
from nerf_tf.data import llff
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.storage import llff_files

# After Pillow: see tools/support/sparse_models.py.
pycolmap = pytest.importorskip("pycolmap", reason="pip install -e '.[colmap]'")

COUNT, WIDTH, HEIGHT, FOCAL, DISTORTION = 8, 240, 180, 225.0, -0.08
STRAY = "photo_03b.png"
OWN_DATA = Path(__file__).parent.parent / "docs" / "own_data.md"
# Half the sides of a room whose walls have noise of several sizes on them; y is up.
ROOM = np.array([3.0, 2.0, 3.0])


def names_of(count: int) -> list[str]:
    return [f"photo_{i:02d}.png" for i in range(count)]


def room_poses() -> np.ndarray:
    """Poses [COUNT, 3, 4] on an arc, a step up and a step down, all facing a corner of the room."""
    angle = np.radians(np.linspace(-25, 25, COUNT))
    centres = np.stack([2.2 * np.sin(angle), 0.3 * (-1.0) ** np.arange(COUNT), 1.5 * np.cos(angle)], axis=-1)
    return np.stack([pose_maths.look_at(centre - [0.3, -0.2, -3.0], [0.0, 1.0, 0.0], centre) for centre in centres])


@pytest.fixture(scope="module")
def walls() -> np.ndarray:
    """Colours [6, 256, 256, 3] of the walls at -x, +x, -y, +y, -z and +z."""
    rng = np.random.default_rng(0)
    sums = np.zeros((6, 256, 256, 3))
    for wall in sums:
        for side in (16, 64, 128):
            noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
            wall += np.asarray(noise.resize((256, 256), Image.Resampling.BICUBIC))
    return 255 * (sums - sums.min()) / np.ptp(sums)


def photograph(walls: np.ndarray, camera: pycolmap.Camera, c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a camera sees in the room: bytes [H, W, 3], and depths [H, W]."""
    rows, cols = np.indices((camera.height, camera.width)).reshape(2, -1)
    seen = camera.cam_from_img(np.stack([cols + 0.5, rows + 0.5], axis=-1))
    directions = np.stack([seen[:, 0], -seen[:, 1], -np.ones(len(seen))], axis=-1) @ c2w[:, :3].T
    crossings = (np.sign(directions) * ROOM - c2w[:, 3]) / directions
    depths, axis = crossings.min(axis=-1), crossings.argmin(axis=-1)
    points = c2w[:, 3] + depths[:, None] * directions
    wall = 2 * axis + (np.take_along_axis(directions, axis[:, None], axis=-1)[:, 0] > 0)
    on_wall = np.array([[1, 2], [0, 2], [0, 1]])[axis]
    place = (np.take_along_axis(points, on_wall, axis=-1) / 6 + 0.5) * 255
    first = np.clip(place.astype(int), 0, 254)
    part = place - first
    colours = 0.0
    for i, j in np.ndindex(2, 2):  # bilinear
        weight = np.abs(1 - i - part[:, :1]) * np.abs(1 - j - part[:, 1:])
        colours = colours + weight * walls[wall, first[:, 0] + i, first[:, 1] + j]
    size = (camera.height, camera.width)
    return np.round(colours).astype(np.uint8).reshape(*size, 3), depths.reshape(size)


def distorted_camera() -> pycolmap.Camera:
    params = [FOCAL, WIDTH / 2, HEIGHT / 2, DISTORTION]
    return pycolmap.Camera(model="SIMPLE_RADIAL", width=WIDTH, height=HEIGHT, params=params)


@pytest.fixture
def photos(walls, tmp_path) -> Path:
    """A folder of photos of the room."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, c2w in zip(names_of(COUNT), room_poses(), strict=True):
        Image.fromarray(photograph(walls, distorted_camera(), c2w)[0]).save(folder / name)
    return folder


def synthesize(cameras_per_rig: int = 1) -> pycolmap.Reconstruction:
    """A model of COLMAP's own making, whose photos may show anything."""
    pycolmap.set_random_seed(1)
    model = pycolmap.synthesize_dataset(
        pycolmap.SyntheticDatasetOptions(
            num_rigs=1,
            num_cameras_per_rig=cameras_per_rig,
            num_frames_per_rig=COUNT // cameras_per_rig,
            camera_width=WIDTH,
            camera_height=HEIGHT,
            camera_params=[FOCAL, WIDTH / 2, HEIGHT / 2, DISTORTION],
        )
    )
    for name, image in zip(names_of(COUNT), sorted(model.images.values(), key=lambda image: image.name), strict=True):
        image.name = name
    return model


def black_photos(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in names_of(COUNT):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name)
    return folder


def opengl_poses(model: pycolmap.Reconstruction) -> np.ndarray:
    """Poses [N, 3, 4], in the order of the photos' names."""
    images = sorted(model.images.values(), key=lambda image: image.name)
    w2c = np.stack([image.cam_from_world().matrix() for image in images])
    return pose_maths.opencv_to_opengl(pose_maths.invert(w2c))


def pose_errors(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Compares poses [N, 3, 4] after the similarity that fits the centres best (Umeyama 1991).

    Returns:
        Angles [N] in degrees, distances [N] of centres over the largest between true ones, and the similarity's scale.
    """
    a, b = found[:, :, 3], true[:, :, 3]
    a_mean, b_mean = a.mean(axis=0), b.mean(axis=0)
    u, s, vt = np.linalg.svd((b - b_mean).T @ (a - a_mean))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(signs) @ vt
    scale = float((s * signs).sum() / np.square(a - a_mean).sum())
    offsets = scale * (a - a_mean) @ rotation.T + b_mean - b
    between = rotation @ found[:, :, :3] @ np.swapaxes(true[:, :, :3], 1, 2)
    angles = np.degrees(np.arccos(np.clip((np.trace(between, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    extent = np.linalg.norm(b[:, None] - b, axis=-1).max()
    return angles, np.linalg.norm(offsets, axis=-1) / extent, scale


@pytest.fixture
def imgs2poses(tool, capsys):
    """Runs the program, which must end well; returns its report."""

    def run(*arguments: object) -> str:
        assert tool("imgs2poses").main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.fixture
def fail(tool, capsys):
    """Runs the program, which must end with exit code 1; returns the last line of what it says."""

    def run(*arguments: object) -> str:
        assert tool("imgs2poses").main([str(argument) for argument in arguments]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    return run


def is_documented(line: str, **folders: Path) -> bool:
    """Whether docs/own_data.md has a row for what the program says of folders, by the names they have there."""
    for name, folder in folders.items():
        line = line.replace(str(folder), name.replace("__", "/"))
    return f"| `{line}` |" in OWN_DATA.read_text(encoding="utf-8")


@pytest.fixture
def noise(tmp_path):
    """A folder of photos that have nothing in common."""
    folder = tmp_path / "noise"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in names_of(3):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(folder / name)
    return folder


def test_poses_of_known_cameras(imgs2poses, photos, walls, tmp_path):
    """One photo is turned, with a note in EXIF, and one of something else, whose name is in the midst of the others."""
    scene = tmp_path / "scene"
    upright = Image.open(photos / "photo_05.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(photos / "photo_05.jpg", quality=97, subsampling=0, exif=exif)
    (photos / "photo_05.png").unlink()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(photos / STRAY)

    report = imgs2poses(photos, scene)
    assert f"8 of 9 in {photos} have a pose" in report
    assert f"no pose for {STRAY}" in report
    assert report.partition("\n")[2] == (scene / "imgs2poses.txt").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    names = [*names_of(COUNT)[:5], "photo_05.jpg", *names_of(COUNT)[6:]]
    assert sorted(path.name for path in (scene / "images").iterdir()) == names
    assert (scene / "view_imgs.txt").read_text().split() == names

    # Poses, focal length and bounds are the true ones, but for a similarity.
    poses, hwf, bounds = llff_files.read_poses_bounds(scene / "poses_bounds.npy")
    poses, true = pose_maths.llff_to_opengl(poses), room_poses()
    angles, offsets, scale = pose_errors(poses, true)
    assert angles.max() < 0.2
    assert offsets.max() < 0.005
    np.testing.assert_allclose(hwf[:, 2], FOCAL, rtol=0.01)
    depths = [photograph(walls, distorted_camera(), c2w)[1] for c2w in true]
    np.testing.assert_allclose(bounds * scale, [[depth.min(), depth.max()] for depth in depths], rtol=0.05)

    # The other files say the same, and the photos are those of the cameras that they describe.
    data = json.loads((scene / "transforms.json").read_text())
    assert [frame["file_path"] for frame in data["frames"]] == [f"images/{name}" for name in names]
    np.testing.assert_allclose([np.array(frame["transform_matrix"])[:3] for frame in data["frames"]], poses, atol=1e-9)
    assert [data["h"], data["w"], data["fl_x"]] == hwf[0].tolist()
    model = pycolmap.Reconstruction(scene / "sparse" / "0")
    np.testing.assert_allclose(opengl_poses(model), poses, atol=1e-9)
    assert model.compute_mean_reprojection_error() < 1
    for name in names:
        with Image.open(scene / "images" / name) as image:
            assert (image.height, image.width) == tuple(hwf[0, :2])
            assert not image.getexif()
    loaded = llff.load(scene, factor=1)
    assert loaded.images.shape == (COUNT, *hwf[0, :2], 3)

    # They are what a camera without distortion would have taken.
    height, width, focal = hwf[0]
    pinhole = pycolmap.Camera(
        model="PINHOLE", width=int(width), height=int(height), params=[focal, focal, width / 2, height / 2]
    )
    for name, c2w in zip(names, true, strict=True):
        expected = Image.fromarray(photograph(walls, pinhole, c2w)[0])
        # Compared without what is finer than resampling keeps.
        pair = [np.asarray(image.reduce(3), float) for image in (expected, Image.open(scene / "images" / name))]
        assert np.abs(pair[0] - pair[1]).mean() < 2.5


def test_too_few_photos_are_placed_and_the_next_run_goes_on(fail, imgs2poses, tool, photos, tmp_path, monkeypatch):
    scene, work = tmp_path / "scene", tmp_path / ".scene.imgs2poses"
    assert fail(photos, scene, "--min_registered", 9) == (
        f"imgs2poses: {photos}: 8 of 8 photos have a pose, fewer than 9; take 20 to 60 sharp photos that overlap by "
        "two thirds, a step apart, of textured things that do not move, or lower --min_registered"
    )
    assert not scene.exists()
    sparse_models = tool("support.sparse_models")
    before = []

    def find_features(database: Path, *others: object) -> None:
        with pycolmap.Database.open(database) as opened:
            before.append((opened.num_images(), opened.num_matched_image_pairs()))
        find(database, *others)

    find = sparse_models.find_features
    monkeypatch.setattr(sparse_models, "find_features", find_features)
    find_models = sparse_models.find_models
    monkeypatch.setattr(sparse_models, "find_models", lambda *arguments: find_models(*arguments) * 2)
    said = imgs2poses(photos, scene)
    assert "8 of 8" in said
    assert "other model" not in said  # its photos are all in the one that is taken
    assert before == [(8, 28)]
    assert not work.exists()


def test_photos_of_a_run_that_was_stopped_have_the_same_camera(tool, photos, tmp_path):
    sparse_models, names, database = tool("support.sparse_models"), names_of(COUNT), tmp_path / "database.db"
    sparse_models.set_up(0)
    sparse_models.find_features(database, photos, names[:3], "SIMPLE_RADIAL")
    sparse_models.find_features(database, photos, names, "SIMPLE_RADIAL")
    sparse_models.match_features(database, COUNT, is_sequence=False, seed=0)
    (model,) = sparse_models.find_models(database, photos, tmp_path / "models", COUNT, seed=0)
    assert sparse_models.names_with_pose(model) == names
    assert len({image.camera_id for image in model.images.values()}) == 1
    with pycolmap.Database.open(database) as opened:
        assert (opened.num_cameras(), opened.num_rigs()) == (1, 1)


def test_quick_takes_the_largest_features_of_smaller_photos(tool, imgs2poses, photos, tmp_path, monkeypatch):
    sparse_models, counts = tool("support.sparse_models"), []
    monkeypatch.setattr(sparse_models, "QUICK_FEATURES", 150)
    for quick in (False, True):
        database = tmp_path / f"{quick}.db"
        sparse_models.find_features(database, photos, names_of(COUNT)[:2], "SIMPLE_RADIAL", quick)
        with pycolmap.Database.open(database) as opened:
            counts.append(opened.num_keypoints_for_image(1))
    assert 100 < counts[1] < 0.3 * counts[0]  # whole scales are kept, so some more than 150
    assert "8 of 8" in imgs2poses(photos, tmp_path / "scene", "--quick")
    poses, _, _ = llff_files.read_poses_bounds(tmp_path / "scene" / "poses_bounds.npy")
    angles, offsets, _ = pose_errors(pose_maths.llff_to_opengl(poses), room_poses())
    assert angles.max() < 1
    assert offsets.max() < 0.02


def test_photos_with_nothing_in_common(fail, noise, tmp_path):
    line = fail(noise, tmp_path / "scene")
    assert f"{noise}: 0 of 3 photos have a pose, fewer than 3; without: photo_00.png, photo_01.png and " in line
    assert is_documented(line, photos=noise)


def test_other_photos_begin_anew(fail, noise, tmp_path):
    fail(noise, tmp_path / "scene")
    shutil.copy(noise / "photo_00.png", noise / "photo_03.png")
    assert "of 4 photos" in fail(noise, tmp_path / "scene")


@pytest.mark.parametrize("rigs", [False, True], ids=["three files", "rigs and frames"])
@pytest.mark.parametrize("kind", ["text", "binary"])
def test_models_of_colmap(imgs2poses, tmp_path, kind, rigs):
    """The camera was a rig of two, the photos lie in a folder; one is missing, and one has no pose."""
    truth = synthesize(cameras_per_rig=2)
    for camera in truth.cameras.values():
        camera.params = [FOCAL, WIDTH / 2, HEIGHT / 2, DISTORTION]
    for image in truth.images.values():
        image.name = f"left/{image.name}"
    sparse = tmp_path / "sparse"
    sparse.mkdir()
    getattr(truth, f"write_{kind}")(sparse)
    for path in [*sparse.glob("rigs.*"), *sparse.glob("frames.*")]:
        if not rigs:
            path.unlink()
    photos = tmp_path / "photos"
    black_photos(photos / "left")
    (photos / "left" / "photo_02.png").rename(photos / "left" / "photo_99.png")

    report = imgs2poses(photos, tmp_path / "scene", "--sparse", sparse)
    assert "1 poses left out: left/photo_02.png" in report
    assert "no pose for photo_99.png" in report
    names = [f"left_{name}" for name in names_of(COUNT) if name != "photo_02.png"]
    assert (tmp_path / "scene" / "view_imgs.txt").read_text().split() == names
    poses, hwf, _ = llff_files.read_poses_bounds(tmp_path / "scene" / "poses_bounds.npy")
    np.testing.assert_allclose(pose_maths.llff_to_opengl(poses), np.delete(opengl_poses(truth), 2, axis=0), atol=1e-9)
    np.testing.assert_allclose(hwf[:, 2], FOCAL)
    model = pycolmap.Reconstruction(tmp_path / "scene" / "sparse" / "0")
    assert sorted(image.name for image in model.images.values()) == names


def test_portraits_among_landscapes(imgs2poses, walls, tmp_path):
    """They have a camera of their own, and a scene of transforms.json in which they are trained on."""
    turned, folder, scene = {1, 4, 6}, tmp_path / "photos", tmp_path / "scene"
    folder.mkdir()
    across = distorted_camera()
    params = [FOCAL, HEIGHT / 2, WIDTH / 2, DISTORTION]
    upright = pycolmap.Camera(model="SIMPLE_RADIAL", width=HEIGHT, height=WIDTH, params=params)
    for i, (name, c2w) in enumerate(zip(names_of(COUNT), room_poses(), strict=True)):
        Image.fromarray(photograph(walls, upright if i in turned else across, c2w)[0]).save(folder / name)
    said = imgs2poses(folder, scene)
    assert "8 of 8" in said
    assert "no poses_bounds.npy: the photos have several sizes; use transforms.json" in said
    assert not (scene / "poses_bounds.npy").exists()
    loaded = transforms.load(scene, factor=1)
    angles, offsets, _ = pose_errors(loaded.poses, room_poses())
    assert angles.max() < 1
    assert offsets.max() < 0.02
    assert set(np.flatnonzero(~loaded.masks.all(axis=(1, 2)))) == turned
    assert not turned & set(loaded.i_test)
    # What a portrait shows is what the room shows its camera there, as far as the smaller size can tell.
    camera = loaded.cameras[4]
    pinhole = pycolmap.Camera(
        model="PINHOLE",
        width=camera.width,
        height=camera.height,
        params=[camera.fx, camera.fy, camera.cx, camera.cy],
    )
    expected = np.where(loaded.masks[4, ..., None], photograph(walls, pinhole, room_poses()[4])[0] / 255.0, 0.0)
    assert np.abs(loaded.images[4] - expected).mean() < 0.02


def test_models_that_llff_cannot_hold_get_transforms_alone(imgs2poses, tmp_path):
    truth = synthesize()
    for camera in truth.cameras.values():
        camera.model = pycolmap.CameraModelId.PINHOLE
        camera.params = [FOCAL, FOCAL, WIDTH / 2 + 20, HEIGHT / 2]
    (tmp_path / "sparse").mkdir()
    truth.write(tmp_path / "sparse")
    report = imgs2poses(black_photos(tmp_path / "photos"), tmp_path / "scene", "--sparse", tmp_path / "sparse")
    assert "no poses_bounds.npy: llff has one focal length and a centred camera" in report
    assert not (tmp_path / "scene" / "poses_bounds.npy").exists()
    assert json.loads((tmp_path / "scene" / "transforms.json").read_text())["cx"] == WIDTH / 2 + 20


def write_video(path: Path, frames: list[np.ndarray]) -> Path:
    height, width, _ = frames[0].shape
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=10, quality=9, macro_block_size=1)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return path


def test_frames_of_a_video(imgs2poses, photos, tmp_path):
    """Of every three frames one is sharp, at another place each time."""
    sharp = [3 * i + i % 3 for i in range(COUNT)]
    frames = []
    for name in names_of(COUNT):
        photo = Image.open(photos / name)
        frames += [photo if len(frames) + k in sharp else photo.filter(ImageFilter.GaussianBlur(3)) for k in range(3)]
    video = write_video(tmp_path / "walk.mp4", [np.asarray(frame) for frame in frames])
    report = imgs2poses(video, tmp_path / "scene", "--frames", COUNT)
    assert f"8 of 8 in {video} have a pose" in report
    names = [f"frame_{number:05d}.jpg" for number in sharp]
    assert (tmp_path / "scene" / "view_imgs.txt").read_text().split() == names
    poses, _, _ = llff_files.read_poses_bounds(tmp_path / "scene" / "poses_bounds.npy")
    angles, offsets, _ = pose_errors(pose_maths.llff_to_opengl(poses), room_poses())
    assert angles.max() < 1
    assert offsets.max() < 0.02


def test_photos_of_other_kinds(tool, tmp_path):
    """Colours of 16 bits keep their upper 8, transparency is laid on white, pixels are turned and the note dropped."""
    photo_folders = tool("support.photo_folders")
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 4), np.uint8)
    pixels[..., 3] = np.where(np.arange(8) < 4, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = np.asarray(photo_folders.read_upright(tmp_path / "a.png"))
    assert (read[:, :4] == 255).all()
    np.testing.assert_array_equal(read[:, 4:], pixels[:, 4:, :3])
    deep = pixels[..., :3].astype(np.uint16) * 256 + 77
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    save_png(tmp_path / "deep.png", struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0), rows)
    np.testing.assert_array_equal(np.asarray(photo_folders.read_upright(tmp_path / "deep.png")), pixels[..., :3])
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(pixels[..., :3]).save(tmp_path / "b.png", exif=exif)
    image = photo_folders.read_upright(tmp_path / "b.png")
    np.testing.assert_array_equal(np.asarray(image), np.rot90(pixels[..., :3]))
    assert 0x0112 not in image.getexif()
    # A model from a program that did not turn photos has cameras of the stored size.
    np.testing.assert_array_equal(np.asarray(photo_folders.read_upright(tmp_path / "b.png", (8, 6))), pixels[..., :3])
    with pytest.raises(ValueError, match=r"b.png: 6x8, but its camera is of 80x60; give the photos from which"):
        photo_folders.read_upright(tmp_path / "b.png", (80, 60))


def test_photos_with_damaged_exif_are_taken_as_they_are(tool, tmp_path):
    photo_folders = tool("support.photo_folders")
    paths = [tmp_path / f"{i}.jpg" for i in range(3)]
    for path in paths:
        Image.new("RGB", (8, 6)).save(path, exif=b"Exif\0\0garbage")
    (tmp_path / "copies").mkdir()
    photo_folders.copy_upright(paths, tmp_path / "copies")
    for path in paths:
        assert (tmp_path / "copies" / path.name).read_bytes() == path.read_bytes()


def heic(folder: Path) -> None:
    (folder / "IMG_1.HEIC").write_bytes(b"")


def two_sizes(folder: Path) -> None:
    Image.new("RGB", (48, 64)).save(folder / "turned.png")


def two_endings(folder: Path) -> None:
    Image.new("RGB", (64, 48)).save(folder / "photo_00.jpg")


def sixteen_bit_grey(folder: Path) -> None:
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(folder / "photo_01.png")


def only_two(folder: Path) -> None:
    (folder / "photo_00.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (heic, "IMG_1.HEIC: not PNG or JPEG; save as JPEG, or move out"),
        (two_sizes, "3 photos are 64x48, but turned.png not (48x64); each size has a camera of its own, which takes 3"),
        (two_endings, "two photos named photo_00 differ in their ending only"),
        (sixteen_bit_grey, "photo_01.png: its pixels are of kind I;16; save it as 8-bit grey, RGB or RGBA"),
        (only_two, "holds 2 photos; poses need 3"),
    ],
)
def test_photos_that_are_refused(fail, noise, tmp_path, spoil, said):
    spoil(noise)
    line = fail(noise, tmp_path / "scene")
    assert line.startswith(f"imgs2poses: {noise}")
    assert said in line
    assert is_documented(line, photos=noise)
    assert not (tmp_path / "scene").exists()


def test_what_is_no_source(fail, noise, tmp_path):
    assert fail(tmp_path / "none", tmp_path / "scene").endswith("none: no such file")
    (tmp_path / "walk.mp4").write_bytes(b"no video")
    line = fail(tmp_path / "walk.mp4", tmp_path / "scene")
    assert "walk.mp4: not a video that ffmpeg reads" in line
    assert is_documented(line.replace(f"{tmp_path}/", ""))
    assert "not a COLMAP model" in fail(noise, tmp_path / "scene", "--sparse", noise)
    assert "no such folder; give that of" in fail(noise, tmp_path / "scene", "--sparse", tmp_path / "none")
    line = fail(noise, noise)
    assert line.endswith("exists and is not an empty folder; name a new one, or move it away")
    assert is_documented(line, data__room=noise)


def test_without_pycolmap(fail, noise, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    assert fail(noise, tmp_path / "scene") == "imgs2poses: needs pycolmap: pip install -e '.[colmap]'"


def test_fern(imgs2poses, real_data, tmp_path):
    """Poses and bounds of two thirds of the authors' photos, at an eighth of their size, against the authors'."""
    fern, photos = real_data / "data" / "nerf_llff_data" / "fern", tmp_path / "photos"
    photos.mkdir()
    chosen = [i for i in range(20) if i % 3]
    for path in np.array(sorted((fern / "images_8").glob("*.png")))[chosen]:
        (photos / path.name).symlink_to(path)
    assert "13 of 13" in imgs2poses(photos, tmp_path / "scene")
    found, _, bounds = llff_files.read_poses_bounds(tmp_path / "scene" / "poses_bounds.npy")
    true, _, true_bounds = (values[chosen] for values in llff_files.read_poses_bounds(fern / "poses_bounds.npy"))
    angles, offsets, scale = pose_errors(pose_maths.llff_to_opengl(found), pose_maths.llff_to_opengl(true))
    assert angles.mean() < 0.5
    assert offsets.mean() < 0.005
    ratios = bounds * scale / true_bounds
    assert np.abs(ratios - 1).mean(axis=0).max() < 0.05
    outermost = [true_bounds.min(), true_bounds.max()]
    np.testing.assert_allclose([bounds.min() * scale, bounds.max() * scale], outermost, rtol=0.05)
