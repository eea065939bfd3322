"""Users' mistakes: each ends in one line that docs/errors.md lists, and changes nothing on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from app_test import BLENDER, DEEPVOXELS, LLFF, SCENES, assert_one_line, run
from images_test import save_png
from PIL import Image

from nerf_tf import build
from nerf_tf.data import images
from nerf_tf.memory import prediction
from nerf_tf.safety import guards
from nerf_tf.settings import parsing
from nerf_tf.storage import lock, tf1_weights, torch_weights
from nerf_tf.storage.checkpoint import CheckpointStore
from nerf_tf.train.step import Trainer

pytestmark = pytest.mark.on_cpu  # plans and what is free are another thing on a GPU

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"
TRANSFORMS = [*BLENDER, "--dataset_type=transforms", "--factor=1"]
FLAGS_OF = {"blender": BLENDER, "llff": LLFF, "deepvoxels": DEEPVOXELS, "transforms": TRANSFORMS}
SINGLE = "transforms.json"
TRAIN, VAL, TEST = (f"transforms_{name}.json" for name in ("train", "val", "test"))
VIEW, PHOTO, GREEK = "train/r_1.png", "images_2/im03.png", "train/greek"

Spoil = Callable[[Path], object]
Meanwhile = Callable[[Path], contextlib.AbstractContextManager]


def no_trouble(here: Path) -> contextlib.AbstractContextManager:
    """The machine is as it should be."""
    return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One row of the tables in docs/errors.md, which say how the program answers.

    Attributes:
        name: what it is called there.
        kind: the valid scene that it is made with.
        spoil: does it to the folder that holds `scene`, `run.txt` and `weights`, and will hold `logs`.
        flags: those of the run, beside the valid ones; HERE stands for that folder.
        code: how the program must end.
        meanwhile: what is wrong with the machine while the program runs.
    """

    name: str
    kind: str
    spoil: Spoil
    flags: str
    code: int
    meanwhile: Meanwhile = no_trouble


def nothing(here: Path) -> None:
    """The mistake is in the flags."""


def flag(name: str, flags_of_run: str, kind: str = "blender") -> Mistake:
    """A mistake on the command line, found before TensorFlow loads."""
    return Mistake(name, kind, nothing, flags_of_run, 2)


def line(name: str, text: str | bytes) -> Mistake:
    """A mistake in a config file."""
    content = text if isinstance(text, bytes) else text.encode()
    return Mistake(name, "blender", write("run.txt", content), "--config=HERE/run.txt", 2)


def data(kind: str, name: str, spoil: Spoil, flags_of_run: str = "", meanwhile: Meanwhile = no_trouble) -> Mistake:
    """A mistake in a scene's folder, or in flags that do not go with it."""
    return Mistake(name, kind, lambda here: spoil(here / "scene"), flags_of_run, 1, meanwhile)


blender, llff, deepvoxels, transforms = (functools.partial(data, kind) for kind in FLAGS_OF)


def other(name: str, spoil: Spoil, flags_of_run: str, meanwhile: Meanwhile = no_trouble) -> Mistake:
    """A mistake in weights, camera paths or the run's own folder, or trouble with the machine."""
    return Mistake(name, "blender", spoil, flags_of_run, 1, meanwhile)


def write(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def as_folder(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir(parents=True)

    return spoil


def as_file(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")

    return spoil


def loop(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(folder / name)

    return spoil


def cut(name: str, keep: int) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def torch_checkpoint(name: str) -> Spoil:
    return lambda here: torch_weights.save(here / name, {"global_step": 7})


def meta(change: Callable[[dict], object], name: str = TRAIN) -> Spoil:
    """Edits a transforms file."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return spoil


def single(**values: object) -> Spoil:
    """Gives transforms.json other values."""
    return meta(lambda content: content.update(values), SINGLE)


def paths_of_another_machine(name: str) -> Spoil:
    def edit(content: dict) -> None:
        for i, view in enumerate(content["frames"]):
            view["file_path"] = f"/home/bob/{'' if name == 'r_0.png' else f'{i}/'}{name}"

    return meta(edit, SINGLE)


def photos_deeper(folder: Path) -> None:
    (folder / "images").rename(folder / "left")
    (folder / "images").mkdir()
    (folder / "left").rename(folder / "images/left")


def a_level_deeper(folder: Path) -> None:
    folder.rename(folder.with_name("lego"))
    folder.mkdir()
    folder.with_name("lego").rename(folder / "lego")


def colmap_alone(folder: Path) -> None:
    for path in folder.glob("*.json"):
        path.unlink()
    as_file("sparse/0/images.bin")(folder)


def mask_of_another_size(folder: Path) -> None:
    Image.new("L", (7, 9)).save(folder / "mask.png")
    meta(lambda content: content["frames"][1].update(mask_path="mask.png"), SINGLE)(folder)


def points_that_are_none(folder: Path) -> None:
    (folder / "sparse_pc.ply").write_bytes(b"")
    single(ply_file_path="sparse_pc.ply")(folder)


def frame(key: str, value: object) -> Spoil:
    """Gives frame 1 another value."""
    return meta(lambda content: content["frames"][1].update({key: value}))


def several_cameras(folder: Path) -> None:
    def edit(content: dict) -> None:
        content.pop("camera_angle_x")
        for view, focal in zip(content["frames"], (30, 30, 31), strict=True):
            view["fl_x"] = focal

    meta(edit)(folder)


def two_candidates(folder: Path) -> None:
    """Two images of another ending than the one that the file means."""
    shutil.copyfile(folder / VIEW, folder / "train/r_1.jpg")
    (folder / VIEW).rename(folder / "train/r_1.jpeg")


def matrix(change: Callable[[np.ndarray], object]) -> Spoil:
    """Edits the pose of frame 1."""

    def edit(content: dict) -> None:
        pose = np.array(content["frames"][1]["transform_matrix"])
        change(pose)
        content["frames"][1]["transform_matrix"] = pose.tolist()

    return meta(edit)


def rows(change: Callable[[np.ndarray], np.ndarray | None]) -> Spoil:
    """Edits poses_bounds.npy, in place or by what `change` returns."""

    def spoil(folder: Path) -> None:
        array = np.load(folder / "poses_bounds.npy")
        changed = change(array)
        np.save(folder / "poses_bounds.npy", array if changed is None else changed)

    return spoil


def row(index: object, value: object) -> Spoil:
    return rows(lambda array: array.__setitem__(index, value))


def opposite_cameras(array: np.ndarray) -> np.ndarray:
    """Half of the cameras look the other way."""
    array = array[:8]
    array[:, :15] = array[0, :15]
    poses = array[:, :15].reshape(8, 3, 5)  # a view: columns 1 and 2 are right and back
    poses[4:, :, 1:3] *= -1
    array[:, :15] = poses.reshape(8, 15)
    return array


def image(name: str, change: Callable[[Image.Image], Image.Image], file_format: str = "PNG") -> Spoil:
    """Saves another image under an image's name."""
    return lambda folder: change(Image.open(folder / name)).save(folder / name, format=file_format)


def every_image(change: Callable[[Image.Image], Image.Image]) -> Spoil:
    def spoil(folder: Path) -> None:
        for path in folder.rglob("*.png"):
            change(Image.open(path)).save(path)

    return spoil


def billion_pixels(folder: Path) -> None:
    save_png(folder / VIEW, struct.pack(">IIBBBBB", 40000, 25000, 8, 2, 0, 0, 0), b"")


def video_instead(folder: Path) -> None:
    shutil.rmtree(folder / "images_2")
    (folder / "images_2").mkdir()
    (folder / "images_2" / "walk.mp4").write_bytes(b"")


def photos_without_poses(folder: Path) -> None:
    rows(lambda array: array[:7])(folder)
    (folder / "view_imgs.txt").write_text("".join(f"im{i:02d}.png\n" for i in range(7)))


def photo_as_tiff(folder: Path) -> None:
    photo = folder / "images" / "im03.png"
    Image.open(photo).save(photo.with_suffix(".tif"))
    photo.unlink()


def npy(name: str, array: np.ndarray) -> Spoil:
    return lambda here: np.save(here / name, array)


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)


def trainer_of(flags_of_network: str) -> Trainer:
    values = parsing.parse_settings([*BLENDER, "--expname=x", "--random_seed=1", *flags_of_network.split()])
    return build.make_trainer(values, ndc=False)


def code_in_weights(here: Path) -> None:
    array = np.empty(1, object)
    array[0] = json.loads
    np.save(here / "weights" / COARSE, array, allow_pickle=True)


def checkpoint(flags_of_network: str) -> Spoil:
    """Saves a checkpoint of such networks."""
    return lambda here: CheckpointStore(trainer_of(flags_of_network).state, here / "logs/x/checkpoints").save()


def damaged_checkpoint(here: Path) -> None:
    checkpoint("")(here)
    cut("logs/x/checkpoints/ckpt-1/state.index", 50)(here)
    shutil.copytree(here / "weights", here / "logs/x", dirs_exist_ok=True)


def keyframes(change: Callable[[dict], object] = nothing) -> Spoil:
    """Writes keyframes, of which there are two good ones before the change."""

    def spoil(here: Path) -> None:
        matrix = np.eye(4)[:3].tolist()
        content = {"axes": "opengl", "keyframes": [{"time": time, "c2w": matrix} for time in (0, 1)]}
        change(content)
        (here / "path.json").write_text(json.dumps(content))

    return spoil


def keyframe(key: str, value: object) -> Spoil:
    """Gives keyframe 1 another value."""
    return keyframes(lambda content: content["keyframes"][1].update({key: value}))


def views(*sizes: tuple[int, int]) -> Spoil:
    """Writes rendered views of such widths and heights."""

    def spoil(here: Path) -> None:
        (here / "views").mkdir()
        for i, size in enumerate(sizes):
            Image.new("RGB", size).save(here / "views" / f"{i:03d}.png")

    return spoil


def unreadable_view(here: Path) -> None:
    views((10, 10))(here)
    (here / "views" / "000.png").write_text("not a picture")


def lock_of_another_machine(here: Path) -> None:
    (here / "logs" / "x").mkdir(parents=True)
    (here / "logs" / "x" / "run.lock").write_text('{"pid": 7, "host": "elsewhere", "boot": "another"}')


# Trouble with the machine


def nothing_can_be_written(here: Path) -> contextlib.AbstractContextManager:
    """As in a folder of somebody else; a superuser, as tests often are, could write there."""
    return mock.patch.object(os, "access", return_value=False)


def may_not_be_read(name: str) -> Meanwhile:
    """A file of that name is closed to the user."""
    opened = Path.open

    def open_(path: Path, *arguments: object, **keywords: object) -> object:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **keywords)

    return lambda here: mock.patch.object(Path, "open", open_)


def fails(owner: object, name: str, error: Exception) -> Meanwhile:
    """A function ends in an error."""
    return lambda here: mock.patch.object(owner, name, side_effect=error)


def no_memory_for_images(here: Path) -> contextlib.AbstractContextManager:
    return mock.patch.object(images.np, "empty", side_effect=MemoryError)


def no_memory_for_a_step(here: Path) -> contextlib.AbstractContextManager:
    def resize(trainer: Trainer, chunk: int, netchunk: int) -> None:
        trainer.train_step = mock.Mock(side_effect=NO_MEMORY)

    return mock.patch.object(Trainer, "resize", resize)


def impatient(here: Path) -> contextlib.AbstractContextManager:
    """A collapse of few steps counts, and none starts over."""
    return mock.patch.multiple(guards, COLLAPSE_STEPS=20, MAX_RESTARTS=0)


def nobody_can_tell(here: Path) -> contextlib.AbstractContextManager:
    return mock.patch.object(prediction, "MEMINFO", here / "nowhere")


def another_run(here: Path) -> contextlib.AbstractContextManager:
    return lock.lock_run(here / "logs" / "x")


NO_ROOM = OSError(28, "No space left on device")
NO_MEMORY = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[1200000,256]")


NAN, POSES = float("nan"), np.tile(np.eye(4), [2, 1, 1])
COARSE, FINE = "model_000007.npy", "model_fine_000007.npy"
OWN_WEIGHTS, OWN_PATH = f"--ft_path=HERE/weights/{COARSE}", "--render_path_file=HERE/path.npy"
OWN_KEYFRAMES, OWN_VIEWS = "--render_path_file=HERE/path.json", "--eval_only --eval_folder=HERE/views"
ONE_PASS = "--N_importance=0 --i_weights=0"  # half the time to trace a step
HOPELESS = f"--lrate=0.1 --random_seed=1 --N_iters=100 {ONE_PASS}"

TABLE = [
    # Flags
    flag("no expname", "--expname=None"),
    flag("expname with a slash", "--expname=a/b"),
    flag("expname that leaves basedir", "--expname=.."),
    flag("misspelt flag", "--N_imprtance=4"),
    flag("switch with a space", "--use_viewdirs True"),
    flag("word without a flag", "lrate=1"),
    flag("flag without a value", "--datadir="),
    flag("flag at the end without a value", "--N_rand"),
    flag("words for a switch", "--use_viewdirs=maybe"),
    flag("words for a number", "--N_rand=many"),
    flag("number too large", "--N_rand=3000000000"),
    flag("unprintable value", "--datadir=a\0b"),
    flag("misspelt dataset_type", "--dataset_type=blendr"),
    flag("unknown shape", "--shape=round", "deepvoxels"),
    flag("near beyond far", "--near=2 --far=1"),
    flag("precrop_frac 0", "--precrop_frac=0"),
    flag("N_samples 1", "--N_samples=1"),
    flag("N_samples 2 with N_importance", "--N_samples=2"),
    flag("N_importance negative", "--N_importance=-1"),
    flag("chunk 0", "--chunk=0"),
    flag("netchunk 0", "--netchunk=0"),
    flag("netdepth 0", "--netdepth=0"),
    flag("netwidth huge", "--netwidth=1000000"),
    flag("multires negative", "--multires=-1"),
    flag("lrate 0", "--lrate=0"),
    flag("lrate nan", "--lrate=nan"),
    flag("i_weights negative", "--i_weights=-1"),
    flag("fps 0", "--fps=0"),
    flag("render_frames beyond an hour", "--render_frames=200000"),
    flag("factor negative", "--factor=-2", "llff"),
    flag("testskip negative", "--testskip=-1"),
    flag("random_seed negative", "--random_seed=-1"),
    flag("unknown precision", "--mixed_precision=half"),
    flag("unknown jit_compile", "--jit_compile=yes"),
    flag("value that no file holds", "--datadir=[a]"),
    flag("eval_only with render_only", "--eval_only --render_only"),
    flag("eval_folder without eval_only", "--eval_folder=views"),
    flag("render_path_file with render_path", "--render_path_file=a.json --render_path=orbit"),
    flag("render_path_file with render_frames", "--render_path_file=a.json --render_frames=9"),
    flag("render_width with render_factor", "--render_width=640 --render_factor=4"),
    flag("render_width with eval_only", "--render_width=640 --eval_only"),
    flag("render_width 0", "--render_width=0"),
    flag("hash_grid with occupancy", "--field=hash_grid --occupancy"),
    flag("hash_grid in 16 bits", "--field=hash_grid --mixed_precision=bfloat16"),
    flag("unknown distribute", "--distribute=all"),
    Mistake("multi_worker without workers", "blender", nothing, "--distribute=multi_worker", 1),
    flag("grid_slots below grid_samples", "--field=hash_grid --grid_slots=1024 --grid_samples=1025"),
    flag("train_minutes without hash_grid", "--train_minutes=5"),
    # Config files
    flag("no config file", "--config=HERE/nowhere.txt"),
    flag("config is a folder", "--config=HERE/scene"),
    flag("config with a long name", f"--config={'a' * 300}"),
    line("misspelt key", "N_sampels = 64\n"),
    line("unknown key", "qqqqqq = 64\n"),
    line("wrong value in a file", "N_rand = 1e3\n"),
    line("list in a file", "N_rand = [1, 2]\n"),
    line("line that is none", "= 3\n"),
    line("endless line", "datadir = " + "x" * 5000),
    line("config is not text", b"\xff\xfe\0a"),
    line("config too large", "# comment\n" * 10000),
    # Any scene
    blender("no datadir", shutil.rmtree),
    blender("datadir is a file", nothing, "--datadir=HERE/run.txt"),
    blender("another kind of scene", nothing, "--dataset_type=llff"),
    blender("near beyond the scene's far", nothing, "--near=6.5"),
    llff("near under NDC", nothing, "--near=1"),
    llff("lindisp from 0", nothing, "--no_ndc --lindisp --near=0"),
    llff("hash_grid from 0", nothing, "--no_ndc --field=hash_grid --near=0"),
    blender("N_rand above an image", nothing, "--N_rand=101"),
    blender("N_rand above all images", nothing, "--N_rand=301 --no_batching=False"),
    blender("N_rand above the crop", nothing, "--precrop_iters=9 --precrop_frac=.2"),
    blender("memory_budget_mb too small", nothing, "--memory_budget_mb=1 --netwidth=512"),
    blender("memory that nobody can tell", nothing, "--chunk=auto", nobody_can_tell),
    blender("image larger than memory", nothing, "", fails(Image.Image, "load", MemoryError())),
    blender("images larger than memory", nothing, "", no_memory_for_images),
    blender("file of somebody else", nothing, "", may_not_be_read(TEST)),
    # Blender
    blender("split missing", remove(VAL)),
    blender("folder of several scenes", a_level_deeper),
    blender("COLMAP's model alone", colmap_alone),
    blender("transforms file is a folder", as_folder(TEST)),
    blender("transforms file is a loop of links", loop(TEST)),
    blender("JSON syntax", cut(TEST, 90)),
    blender("JSON too deep", write(TEST, b"[" * 10**5)),
    blender("JSON is not text", write(TEST, b"\xff\xd8\xff\xe0")),
    blender("no camera_angle_x", meta(lambda m: m.pop("camera_angle_x"))),
    blender("camera_angle_x 0", meta(lambda m: m.update(camera_angle_x=0))),
    blender("camera_angle_x in degrees", meta(lambda m: m.update(camera_angle_x=50))),
    blender("camera_angle_x tiny", meta(lambda m: m.update(camera_angle_x=1e-9))),
    blender("camera_angle_x is text", meta(lambda m: m.update(camera_angle_x="wide"))),
    blender("distorted camera", meta(lambda m: m.update(k1=0.01))),
    blender("camera with another focal length", meta(lambda m: m["frames"][1].update(fl_x=99))),
    blender("cameras of other proportions", meta(lambda m: m.update(w=40, h=30))),
    blender("frames of several cameras", several_cameras),
    blender("focal length of 0 pixels", meta(lambda m: m.update(fl_x=0))),
    blender("no frames", meta(lambda m: m.update(frames=[]))),
    blender("frame without file_path", meta(lambda m: m["frames"][1].pop("file_path"))),
    blender("file_path is no text", frame("file_path", [1])),
    blender("frame without pose", meta(lambda m: m["frames"][1].pop("transform_matrix"))),
    blender("pose of another shape", frame("transform_matrix", [[1, 2], [3, 4]])),
    blender("words in a pose", frame("transform_matrix", [["a"] * 4] * 4)),
    blender("NaN in a pose", matrix(lambda pose: pose.__setitem__((0, 0), NAN))),
    blender("scaled camera", matrix(lambda pose: pose.__imul__(2))),
    blender(
        "transposed camera",
        frame("transform_matrix", np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 4, 1.0]]).tolist()),
    ),
    blender("skewed camera", matrix(lambda pose: pose.__setitem__((slice(3), 0), pose[:3, 1]))),
    blender("mirrored camera", matrix(lambda pose: pose[:3, 2].__imul__(-1))),
    blender("camera out of reach", matrix(lambda pose: pose.__setitem__((0, 3), 1e12))),
    blender("image missing", remove(VIEW)),
    blender("image that may be either of two", two_candidates),
    blender("all images missing", lambda s: shutil.rmtree(s / "train")),
    blender("image is a folder", as_folder(VIEW)),
    blender("image is a loop of links", loop(VIEW)),
    blender("image of another size", image(VIEW, lambda i: i.resize((7, 9)))),
    blender("image without transparency", image(VIEW, lambda i: i.convert("RGB"))),
    blender("16-bit grey image", image(VIEW, lambda i: i.convert("I;16"))),
    blender("CMYK image", image(VIEW, lambda i: i.convert("CMYK"), "JPEG")),
    blender("image cut short", cut(VIEW, 300)),
    blender("image of another format", image(VIEW, lambda i: i, "WEBP")),
    blender("image of 10^9 pixels", billion_pixels),
    blender("half_res of nothing", every_image(lambda i: i.crop((0, 0, 20, 1)))),
    # LLFF
    llff("no poses_bounds.npy", remove("poses_bounds.npy")),
    llff("poses_bounds.npy is text", write("poses_bounds.npy", b"1 2 3")),
    llff("poses_bounds.npy cut short", cut("poses_bounds.npy", 500)),
    llff("pickle in poses_bounds.npy", lambda s: pickled(s / "poses_bounds.npy")),
    llff("npz for npy", lambda s: np.savez((s / "poses_bounds.npy").open("wb"), np.eye(3))),
    llff("poses_bounds.npy of another width", rows(lambda a: a[:, :15])),
    llff("words in poses_bounds.npy", rows(lambda a: a.astype(str))),
    llff("NaN in poses_bounds.npy", row((3, 2), NAN)),
    llff("bounds out of order", row((3, 15), 1e6)),
    llff("pose that is no rotation", row((2, slice(0, 15, 5)), 3)),
    llff("huge focal length", row((0, 14), 1e9)),
    llff("cameras that cancel out", rows(opposite_cameras)),
    llff("photos of one name", lambda s: (s / "images/im01.png").rename(s / "images/im00.jpg"), "--factor=4"),
    llff("incomplete smaller copies", remove(PHOTO)),
    llff("photos without poses", rows(lambda a: a[:7])),
    llff("photos without poses, by name", photos_without_poses),
    llff("photos missing", remove("images/im03.png"), "--factor=1"),
    llff("photos of another format", photo_as_tiff, "--factor=1"),
    llff("no folder of images", lambda s: shutil.rmtree(s / "images"), "--factor=8"),
    llff("empty folder of images", lambda s: [p.unlink() for p in (s / "images").iterdir()], "--factor=1"),
    llff("photos in a folder of their own", photos_deeper, "--factor=1"),
    llff("video instead of images", video_instead),
    llff("photo of another size", image(PHOTO, lambda i: i.resize((7, 9)))),
    llff("factor above the photos", nothing, "--factor=50"),
    llff("all views held out", nothing, "--llffhold=1"),
    llff(
        "spherify of parallel cameras",
        rows(lambda a: a.__setitem__((slice(None), slice(0, 15)), a[0, :15])),
        "--spherify --no_ndc",
    ),
    # transforms.json
    transforms("no transforms.json", remove(SINGLE)),
    transforms("images that are nowhere below", lambda s: [path.unlink() for path in s.glob("*/*.png")]),
    transforms("image of another machine that may be any of several", paths_of_another_machine("r_0.png")),
    transforms("frames that may mean one image", paths_of_another_machine("train/r_2.png")),
    transforms("fisheye", single(camera_model="OPENCV_FISHEYE")),
    transforms("distortion of a fisheye", single(k4=0.1)),
    transforms("distortion of a pinhole", single(camera_model="PINHOLE", k1=0.1)),
    transforms("distortion that nothing is left of", single(k1=-9)),
    transforms("focal lengths at odds", single(fl_x=50, camera_angle_x=0.69)),
    transforms("no focal length", meta(lambda m: m.pop("camera_angle_x"), SINGLE)),
    transforms("principal point outside", single(cx=480)),
    transforms("matrix of a camera that is none", single(K=np.eye(3)[::-1].tolist())),
    transforms("near beyond far in the file", single(near=9, far=2)),
    transforms("photo for training and test", single(train_filenames=["train/r_1"], test_filenames=["./train/r_1"])),
    transforms("no photo for tests", single(train_filenames=["train/r_1", "train/r_0"]), "--render_only --render_test"),
    transforms("mask of another size", mask_of_another_size),
    transforms("points that are none", points_that_are_none),
    # DeepVoxels
    deepvoxels("shape that is not there", nothing, "--shape=vase"),
    deepvoxels("no intrinsics", remove(f"{GREEK}/intrinsics.txt")),
    deepvoxels("broken intrinsics", write(f"{GREEK}/intrinsics.txt", b"525 3 2\n")),
    deepvoxels("focal length 0", write(f"{GREEK}/intrinsics.txt", b"0\n0\n0\n0\n480 640\n")),
    deepvoxels("poses unlike images", remove(f"{GREEK}/pose/000001.txt")),
    deepvoxels("words in a pose file", write(f"{GREEK}/pose/000001.txt", b"a b")),
    deepvoxels("too few numbers in a pose file", write(f"{GREEK}/pose/000001.txt", b"1 2")),
    deepvoxels("pose file that is no rotation", write(f"{GREEK}/pose/000001.txt", b"1 " * 16)),
    deepvoxels("images that are not square", every_image(lambda i: i.resize((16, 12)))),
    # Weights and camera paths
    other("nothing to render", nothing, "--render_only"),
    other("ft_path missing", nothing, "--ft_path=model_000001.npy"),
    other("ft_path missing in a run", nothing, "--ft_path=HERE/weights/model_000001.npy"),
    other("ft_path of another program", write("base.ingp", b"NGP"), "--ft_path=HERE/base.ingp"),
    other("ft_path without a step", nothing, "--ft_path=best.npy"),
    other("ft_path of the fine network", nothing, f"--ft_path=HERE/weights/{FINE}"),
    other("ft_path is a folder", nothing, "--ft_path=HERE/weights"),
    other("checkpoint of nerf-pytorch", torch_checkpoint("best.tar"), "--ft_path=HERE/best.tar"),
    other("checkpoint of nerf-pytorch under another name", torch_checkpoint(f"weights/{COARSE}"), OWN_WEIGHTS),
    other("zip archive for weights", lambda here: np.savez((here / "weights" / COARSE).open("wb"), POSES), OWN_WEIGHTS),
    other("fine weights missing", remove(f"weights/{FINE}"), OWN_WEIGHTS),
    other("weights of another width", nothing, f"{OWN_WEIGHTS} --netwidth=12"),
    other("weights of another depth", nothing, f"{OWN_WEIGHTS} --netdepth=3"),
    other("fine weights of another width", nothing, f"{OWN_WEIGHTS} --netwidth_fine=12"),
    other("weights that are none", npy(f"weights/{COARSE}", np.eye(3)), OWN_WEIGHTS),
    other("weights cut short", cut(f"weights/{COARSE}", 3000), OWN_WEIGHTS),
    other("weights that carry code", code_in_weights, OWN_WEIGHTS),
    other("weights with view directions", nothing, f"{OWN_WEIGHTS} --use_viewdirs=False"),
    other(
        "weights with NaN",
        lambda here: tf1_weights.save(here / "weights" / COARSE, [np.full((63, 16), np.nan)]),
        OWN_WEIGHTS,
    ),
    other("checkpoint of another network", checkpoint("--netwidth=12"), ""),
    other("checkpoint with a fine network", checkpoint(""), "--N_importance=0"),
    other("checkpoint of the other field", checkpoint(""), "--field=hash_grid --grid_log2_table=8"),
    other("checkpoint without a loss scale", checkpoint(""), "--mixed_precision=float16"),
    other("all checkpoints damaged", damaged_checkpoint, ""),
    other("render_path_file missing", nothing, OWN_PATH),
    other("render_path_file is text", write("path.npy", b"1 0 0 0"), OWN_PATH),
    other("pickle in render_path_file", lambda here: pickled(here / "path.npy"), OWN_PATH),
    other("npz for render_path_file", lambda here: np.savez((here / "path.npy").open("wb"), POSES), OWN_PATH),
    other("render_path_file of another shape", npy("path.npy", np.eye(4)), OWN_PATH),
    other("render_path_file without poses", npy("path.npy", POSES[:0]), OWN_PATH),
    other("NaN in render_path_file", npy("path.npy", POSES * NAN), OWN_PATH),
    other("render_path_file that is no rotation", npy("path.npy", 2 * POSES), OWN_PATH),
    other("keyframes missing", nothing, OWN_KEYFRAMES),
    other("keyframes that are no JSON", write("path.json", b"0 1"), OWN_KEYFRAMES),
    other("no keyframes", keyframes(lambda content: content["keyframes"].clear()), OWN_KEYFRAMES),
    other("keyframes of other axes", keyframes(lambda content: content.update(axes="opencv")), OWN_KEYFRAMES),
    other("keyframe that is none", keyframes(lambda content: content["keyframes"].append(2)), OWN_KEYFRAMES),
    other("time that is no number", keyframe("time", "1 s"), OWN_KEYFRAMES),
    other("keyframes out of order", keyframe("time", -1), OWN_KEYFRAMES),
    other("time out of reach", keyframe("time", 1e13), OWN_KEYFRAMES),
    other("keyframes too far apart", keyframe("time", 2e9), OWN_KEYFRAMES),
    other("keyframe of another shape", keyframe("c2w", [[1, 0], [0, 1]]), OWN_KEYFRAMES),
    other("words in a keyframe", keyframe("c2w", [["a"] * 4] * 3), OWN_KEYFRAMES),
    other("keyframe that is no rotation", keyframe("c2w", (2 * np.eye(4)[:3]).tolist()), OWN_KEYFRAMES),
    other("mirrored keyframe", keyframe("c2w", (-np.eye(4)[:3]).tolist()), OWN_KEYFRAMES),
    llff("orbit under NDC", nothing, "--render_path=orbit"),
    other("spiral of cameras around something", nothing, "--render_path=spiral"),
    other("render_factor above the image", nothing, f"{OWN_WEIGHTS} --render_only --render_factor=11"),
    # Comparing test views
    other("nothing to evaluate", nothing, "--eval_only"),
    other("eval_folder missing", nothing, OWN_VIEWS),
    other("view missing", views(), OWN_VIEWS),
    other("more views than photos", views((10, 10), (10, 10)), OWN_VIEWS),
    other("views of another size", views((5, 10)), OWN_VIEWS),
    other("view that is no image", unreadable_view, OWN_VIEWS),
    # The run's own folder
    other("basedir is a file", as_file("logs"), ""),
    other("expname too long", nothing, f"--expname={'x' * 300}"),
    other("a bracket in expname", nothing, "--expname=a[1]"),
    other("expname is a file", as_file("logs/x"), ""),
    other("checkpoints is a file", as_file("logs/x/checkpoints"), ""),
    other("summaries is a file", as_file("logs/summaries"), ""),
    other("folder of somebody else", as_folder("logs"), "", nothing_can_be_written),
    other("folder that another run trains in", nothing, "", another_run),
    other("lock of another machine", lock_of_another_machine, ""),
    other("no room for a lock", nothing, "", fails(lock, "_this_process", NO_ROOM)),
    other("no memory for the networks", nothing, "", fails(build, "make_trainer", NO_MEMORY)),
]
# What ends a run that has started, and so may leave files.
ENDS = [
    other("no room for a checkpoint", nothing, "", fails(tf.train.Checkpoint, "write", NO_ROOM)),
    other(
        "no room for the last weights", nothing, "", fails(tf1_weights.npy_format, "write_array_header_1_0", NO_ROOM)
    ),
    other("no memory for a step", nothing, "", no_memory_for_a_step),
    other("no finite gradient", nothing, f"--lrate=1e30 --max_bad_steps=4 --random_seed=1 --N_iters=9 {ONE_PASS}"),
    other("scene that collapses", nothing, f"{HOPELESS} --on_collapse=stop", impatient),
    other("scene that collapses each time", nothing, f"{HOPELESS} --on_collapse=restart", impatient),
]


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> Path:
    """A valid scene of each kind, and weights that go with the flags."""
    folder = tmp_path_factory.mktemp("valid")
    for kind in ("blender", "llff", "deepvoxels"):
        shutil.copytree(SCENES / kind, folder / kind)
    shutil.copytree(SCENES / "blender", folder / "transforms")
    for name in (VAL, TEST):
        (folder / "transforms" / name).unlink()
    (folder / "transforms" / TRAIN).rename(folder / "transforms" / SINGLE)
    for path in folder.glob("deepvoxels/*/greek/rgb/*.png"):
        Image.open(path).resize((16, 16)).save(path)
    trainer = trainer_of("")
    tf1_weights.save(folder / "weights" / COARSE, trainer.coarse.mlp.get_weights())
    tf1_weights.save(folder / "weights" / FINE, trainer.fine.mlp.get_weights())
    return folder


def everything_in(folder: Path) -> dict[str, object]:
    """What is on disk: folders, links, and the content and time of files. A folder's time changes with a lock in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        time = None if content is None else path.lstat().st_mtime_ns
        found[path.relative_to(folder).as_posix()] = (content, time)
    return found


def prepare(mistake: Mistake, valid: Path, here: Path) -> list[str]:
    """Makes the mistake in a folder, and returns the flags of the run."""
    shutil.copytree(valid / mistake.kind, here / "scene")
    shutil.copytree(valid / "weights", here / "weights")
    (here / "run.txt").write_text("")
    mistake.spoil(here)
    own = [f"--datadir={here / 'scene'}", f"--basedir={here / 'logs'}", "--expname=x", "--N_iters=1", "--i_img=0"]
    return [
        *FLAGS_OF[mistake.kind],
        *own,
        *mistake.flags.replace("HERE", str(here)).split(" " if mistake.flags else None),
    ]


def listed() -> dict[str, tuple[str, str]]:
    """Of every mistake on the page: what the program says, and what to do."""
    cells = [
        line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "
    ]
    return {
        name: (message, remedy) for name, message, remedy in cells if name not in ("mistake", "what happens", "---")
    }


def assert_as_listed(name: str, line: str, here: Path) -> None:
    """The page gives the program's line word for word, without the folder and with `…` for what may be anything."""
    pattern = re.escape(listed()[name][0].strip("`")).replace("…", ".*")
    assert re.fullmatch(pattern, line.removeprefix("nerf_tf: ").replace(f"{here}/", "")), line


@pytest.mark.parametrize("mistake", TABLE, ids=lambda mistake: mistake.name)
def test_a_mistake_is_one_line_and_changes_nothing(mistake, valid, tmp_path):
    arguments = prepare(mistake, valid, tmp_path)
    before = everything_in(tmp_path)
    with mistake.meanwhile(tmp_path):
        result = run(*arguments)
    assert everything_in(tmp_path) == before
    assert_one_line(result, mistake.code, "")
    assert_as_listed(mistake.name, result.stderr.splitlines()[-1], tmp_path)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.name)
def test_what_ends_a_run_is_one_line(end, valid, tmp_path):
    arguments = prepare(end, valid, tmp_path)
    with end.meanwhile(tmp_path):
        result = run(*arguments)
    assert_one_line(result, end.code, "")
    assert_as_listed(end.name, result.stderr.splitlines()[-1], tmp_path)
    assert not list((tmp_path / "logs").rglob(".*"))


@pytest.mark.parametrize("kind", FLAGS_OF)
def test_without_a_mistake_the_program_starts(kind, valid, tmp_path):
    """Else the table would prove little. Weights of a later step spare the training."""
    arguments = prepare(Mistake("", kind, nothing, OWN_WEIGHTS, 0), valid, tmp_path)
    before = everything_in(tmp_path)
    result = run(*arguments)
    assert result.code == 0, result.stderr
    assert "x is at step 8 already" in result.stderr
    assert everything_in(tmp_path) == before


def test_shrinking_photos_is_all_that_a_failed_start_may_leave(valid, tmp_path):
    mistake = Mistake("", "llff", nothing, "--factor=4 --N_rand=100000", 1)
    arguments = prepare(mistake, valid, tmp_path)
    before = everything_in(tmp_path)
    assert_one_line(run(*arguments), 1, "N_rand 100000")
    new = everything_in(tmp_path).keys() - before.keys()
    assert new == {"scene/images_4", *(f"scene/images_4/im{i:02d}.png" for i in range(9))}


def test_testskip_beyond_the_set_keeps_its_first_view(valid, tmp_path):
    """As in the original: no mistake, and so not in the table."""
    arguments = prepare(Mistake("", "blender", nothing, f"{OWN_WEIGHTS} --testskip=1000", 0), valid, tmp_path)
    assert "5 images of 10x10 (3 train, 1 val, 1 test)" in run(*arguments).stderr


def test_the_page_lists_every_mistake():
    assert list(listed()) == [mistake.name for mistake in (*TABLE, *ENDS)]
    assert all(len(remedy) > 5 for _, remedy in listed().values())
