"""Users' mistakes: each ends in one line that docs/errors.md lists, and changes nothing on disk."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from app_test import BLENDER, DEEPVOXELS, LLFF, SCENES, assert_one_line, run
from images_test import save_png
from PIL import Image

from nerf_tf import build, config
from nerf_tf.train import tf1_weights
from nerf_tf.train.checkpoint import CheckpointStore
from nerf_tf.train.trainer import Trainer

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"
FLAGS_OF = {"blender": BLENDER, "llff": LLFF, "deepvoxels": DEEPVOXELS}
TRAIN, VAL, TEST = (f"transforms_{name}.json" for name in ("train", "val", "test"))
VIEW, PHOTO, GREEK = "train/r_1.png", "images_2/im03.png", "train/greek"

Spoil = Callable[[Path], object]


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One row of the table.

    Attributes:
        name: what it is called in docs/errors.md.
        kind: the valid scene that it is made with.
        spoil: does it to the folder that holds `scene`, `run.txt` and `weights`, and will hold `logs`.
        flags: those of the run, beside the valid ones; HERE stands for that folder.
        code: how the program must end.
        message: what it must say.
    """

    name: str
    kind: str
    spoil: Spoil
    flags: str
    code: int
    message: str


def nothing(here: Path) -> None:
    """The mistake is in the flags."""


def flag(name: str, flags_of_run: str, message: str, kind: str = "blender") -> Mistake:
    """A mistake on the command line, found before TensorFlow loads."""
    return Mistake(name, kind, nothing, flags_of_run, 2, message)


def line(name: str, text: str | bytes, message: str) -> Mistake:
    """A mistake in a config file."""

    def write(here: Path) -> None:
        (here / "run.txt").write_bytes(text if isinstance(text, bytes) else text.encode())

    return Mistake(name, "blender", write, "--config=HERE/run.txt", 2, rf"run\.txt: {message}")


def data(kind: str, name: str, spoil: Spoil, message: str, flags_of_run: str = "") -> Mistake:
    """A mistake in a scene's folder, or in flags that do not go with it."""
    return Mistake(name, kind, lambda here: spoil(here / "scene"), flags_of_run, 1, message)


blender, llff, deepvoxels = (functools.partial(data, kind) for kind in FLAGS_OF)


def other(name: str, spoil: Spoil, flags_of_run: str, message: str) -> Mistake:
    """A mistake in weights, camera paths or the run's own folder."""
    return Mistake(name, "blender", spoil, flags_of_run, 1, message)


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


def meta(change: Callable[[dict], object], name: str = TRAIN) -> Spoil:
    """Edits a transforms file."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return spoil


def frame(key: str, value: object) -> Spoil:
    """Gives frame 1 another value."""
    return meta(lambda content: content["frames"][1].update({key: value}))


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


def npy(name: str, array: np.ndarray) -> Spoil:
    return lambda here: np.save(here / name, array)


def pickled(folder: Path) -> None:
    array = np.array([{"a": 1}], object)
    np.save(folder / "poses_bounds.npy", array, allow_pickle=True)


def trainer_of(flags_of_network: str) -> Trainer:
    values = flags.FlagValues()
    config.parse_flags(["nerf_tf", *BLENDER, "--expname=x", "--random_seed=1", *flags_of_network.split()], values)
    return build.make_trainer(values, ndc=False)


def checkpoint(here: Path) -> None:
    CheckpointStore(trainer_of("--netwidth=12"), here / "logs" / "x" / "checkpoints").save()


NAN, POSES = float("nan"), np.tile(np.eye(4), [2, 1, 1])
COARSE, FINE = "model_000007.npy", "model_fine_000007.npy"
OWN_WEIGHTS, OWN_PATH = f"--ft_path=HERE/weights/{COARSE}", "--render_path_file=HERE/path.npy"

TABLE = [
    # Flags
    flag("no expname", "--expname=None", "--expname is missing: name the run"),
    flag("expname with a slash", "--expname=a/b", "--expname=a/b: expected one folder name.*--basedir"),
    flag("expname that leaves basedir", "--expname=..", r"--expname=\.\.: expected one folder name"),
    flag("misspelt flag", "--N_imprtance=4", "unknown flag --N_imprtance; did you mean --N_importance"),
    flag("switch with a space", "--use_viewdirs True", "stray word 'True' after --use_viewdirs.*--use_viewdirs=True"),
    flag("word without a flag", "lrate=1", "stray word 'lrate=1': every argument is --flag"),
    flag("flag without a value", "--datadir=", r"--datadir has no value.*--datadir=VALUE"),
    flag("words for a number", "--N_rand=many", "--N_rand=many: expected a whole number >= 1"),
    flag("number too large", "--N_rand=3000000000", "--N_rand=3000000000: expected at most 2147483647"),
    flag("unprintable value", "--datadir=a\0b", r"--datadir=a\\x00b: holds characters that cannot be printed"),
    flag("misspelt dataset_type", "--dataset_type=blendr", "blendr: expected one of llff, blender, deepvoxels"),
    flag("unknown shape", "--shape=round", "--shape=round: expected one of armchair, cube, greek, vase", "deepvoxels"),
    flag("near beyond far", "--near=2 --far=1", r"--near=2.0 is not below --far=1.0"),
    flag("precrop_frac 0", "--precrop_frac=0", "--precrop_frac=0: expected a number > 0 and <= 1"),
    flag("N_samples 1", "--N_samples=1", "--N_samples=1: expected a whole number >= 2"),
    flag("N_samples 2 with N_importance", "--N_samples=2", "--N_samples=2: --N_importance needs at least 3"),
    flag("N_importance negative", "--N_importance=-1", "--N_importance=-1: expected a whole number >= 0"),
    flag("chunk 0", "--chunk=0", "--chunk=0: expected a whole number >= 1 or auto"),
    flag("netchunk 0", "--netchunk=0", "--netchunk=0: expected a whole number >= 1 or auto"),
    flag("netdepth 0", "--netdepth=0", "--netdepth=0: expected a whole number >= 1"),
    flag("netwidth huge", "--netwidth=1000000", "--netwidth=1000000: expected .* <= 65536"),
    flag("multires negative", "--multires=-1", "--multires=-1: expected a whole number >= 0"),
    flag("lrate 0", "--lrate=0", "--lrate=0: expected a number > 0"),
    flag("lrate nan", "--lrate=nan", "--lrate=nan: expected a number > 0"),
    flag("i_weights negative", "--i_weights=-1", "--i_weights=-1: expected a whole number >= 0"),
    flag("fps 0", "--fps=0", "--fps=0: expected a whole number >= 1"),
    flag("factor negative", "--factor=-2", "--factor=-2: expected a whole number >= 0", "llff"),
    flag("testskip negative", "--testskip=-1", "--testskip=-1: expected a whole number >= 0"),
    flag("random_seed negative", "--random_seed=-1", "--random_seed=-1: expected a whole number >= 0"),
    flag("unknown precision", "--mixed_precision=half", "--mixed_precision=half: expected one of float32, bfloat16"),
    flag("unknown jit_compile", "--jit_compile=yes", "--jit_compile=yes: expected one of auto, true, false"),
    # Config files
    flag("no config file", "--config=HERE/nowhere.txt", r"nowhere\.txt: no such file; --config takes"),
    flag("config is a folder", "--config=HERE/scene", "scene: is a folder, not a file"),
    line("misspelt key", "N_sampels = 64\n", "unknown key 'N_sampels'; did you mean N_samples"),
    line("unknown key", "qqqqqq = 64\n", "unknown key 'qqqqqq'; --help lists all flags"),
    line("wrong value in a file", "N_rand = 1e3\n", "N_rand = 1e3: expected a whole number >= 1"),
    line("list in a file", "N_rand = [1, 2]\n", "N_rand is a list; expected a whole number"),
    line("line that is none", "= 3\n", "not a config file of `key = value` lines"),
    line("endless line", "datadir = " + "x" * 5000, "not a config file.*a line is longer than 1024"),
    line("config is not text", b"\xff\xfe\0a", "not a text file in UTF-8"),
    line("config too large", "# comment\n" * 10000, "longer than 65536 characters"),
    # Any scene
    blender("no datadir", shutil.rmtree, "scene: no such folder; --datadir names the folder"),
    blender("datadir is a file", nothing, r"run\.txt: no such folder; --datadir names", "--datadir=HERE/run.txt"),
    blender("another kind of scene", nothing, r"poses_bounds\.npy: no such file", "--dataset_type=llff"),
    blender("near beyond the scene's far", nothing, "near 6.5 is not below far 6: check", "--near=6.5"),
    llff("near under NDC", nothing, "--near and --far are distances.*add --no_ndc", "--near=1"),
    llff("lindisp from 0", nothing, "--lindisp.*needs near > 0.*give --near", "--no_ndc --lindisp --near=0"),
    blender("N_rand above an image", nothing, "N_rand 101 is more than the 100 pixels of an image", "--N_rand=101"),
    blender("N_rand above all images", nothing, "N_rand 301 .* 300 rays of all", "--N_rand=301 --no_batching=False"),
    blender(
        "N_rand above the crop",
        nothing,
        "N_rand 32 .* 4 pixels of the centre crop.*raise precrop_frac",
        "--precrop_iters=9 --precrop_frac=.2",
    ),
    blender(
        "memory_budget_mb too small",
        nothing,
        "memory_budget_mb 1 .*takes .* MB.*auto",
        "--memory_budget_mb=1 --netwidth=512",
    ),
    # Blender
    blender("split missing", remove(VAL), r"transforms_val\.json: no such file; a Blender scene has"),
    blender("transforms file is a folder", as_folder(TEST), r"transforms_test\.json: is a folder, not a file"),
    blender("transforms file is a loop of links", loop(TEST), r"transforms_test\.json: is a .*broken link"),
    blender("JSON syntax", cut(TEST, 90), r"transforms_test\.json: not valid JSON"),
    blender("JSON too deep", write(TEST, b"[" * 10**5), r"transforms_test\.json: not valid JSON"),
    blender("JSON is not text", write(TEST, b"\xff\xd8\xff\xe0"), r"transforms_test\.json: not a text file in UTF-8"),
    blender("no camera_angle_x", meta(lambda m: m.pop("camera_angle_x")), "lacks 'camera_angle_x'"),
    blender("camera_angle_x 0", meta(lambda m: m.update(camera_angle_x=0)), "between 0 and pi"),
    blender("camera_angle_x in degrees", meta(lambda m: m.update(camera_angle_x=50)), "between 0 and pi"),
    blender("camera_angle_x tiny", meta(lambda m: m.update(camera_angle_x=1e-9)), "json: focal length .* does not go"),
    blender("camera_angle_x is text", meta(lambda m: m.update(camera_angle_x="wide")), "'wide', which is not a number"),
    blender("no frames", meta(lambda m: m.update(frames=[])), "frames must be a list of at least one view"),
    blender("frame without file_path", meta(lambda m: m["frames"][1].pop("file_path")), "frame 1 lacks 'file_path'"),
    blender("file_path is no text", frame("file_path", [1]), r"frame 1: file_path is \[1\]"),
    blender("frame without pose", meta(lambda m: m["frames"][1].pop("transform_matrix")), "frame 1 lacks 'transform_m"),
    blender("pose of another shape", frame("transform_matrix", [[1, 2], [3, 4]]), r"frame 1: .*shape \(2, 2\)"),
    blender("words in a pose", frame("transform_matrix", [["a"] * 4] * 4), "frame 1: .*not a matrix of numbers"),
    blender("NaN in a pose", matrix(lambda pose: pose.__setitem__((0, 0), NAN)), "frame 1: .*NaN or infinity"),
    blender("scaled camera", matrix(lambda pose: pose.__imul__(2)), "frame 1: .*axes have lengths 2, 2, 2 .*apply"),
    blender("skewed camera", matrix(lambda pose: pose.__setitem__((slice(3), 0), pose[:3, 1])), "not at right angles"),
    blender("mirrored camera", matrix(lambda pose: pose[:3, 2].__imul__(-1)), "axes are left-handed, a mirror image"),
    blender(
        "camera out of reach", matrix(lambda pose: pose.__setitem__((0, 3), 1e12)), "holds 1e.12; coordinates beyond"
    ),
    blender("image missing", remove(VIEW), r"train/r_1\.png: no such image \(1 of 5"),
    blender("image is a folder", as_folder(VIEW), r"train/r_1\.png: is a folder, not a file"),
    blender("image is a loop of links", loop(VIEW), r"train/r_1\.png: is a .*broken link"),
    blender("image of another size", image(VIEW, lambda i: i.resize((7, 9))), r"r_1\.png: 7x9, but r_0\.png is 20x20"),
    blender(
        "image without transparency", image(VIEW, lambda i: i.convert("RGB")), "with 3 channels, but .* 4 channels"
    ),
    blender("16-bit grey image", image(VIEW, lambda i: i.convert("I;16")), "pixels are of kind I;16; save it as 8-bit"),
    blender(
        "CMYK image", image(VIEW, lambda i: i.convert("CMYK"), "JPEG"), "pixels are of kind CMYK; save it as 8-bit"
    ),
    blender("image cut short", cut(VIEW, 300), r"r_1\.png: not a readable image"),
    blender(
        "image of another format",
        image(VIEW, lambda i: i, "WEBP"),
        "not a readable image .*replace it by a PNG or JPEG",
    ),
    blender("image of 10^9 pixels", billion_pixels, r"r_1\.png: its header announces more than the 170000000 pixels"),
    blender("half_res of nothing", every_image(lambda i: i.crop((0, 0, 20, 1))), "half_res leaves no pixels of a 20x1"),
    # LLFF
    llff("no poses_bounds.npy", remove("poses_bounds.npy"), r"poses_bounds\.npy: no such file; run COLMAP"),
    llff("poses_bounds.npy is text", write("poses_bounds.npy", b"1 2 3"), r"poses_bounds\.npy: not an npy file"),
    llff(
        "poses_bounds.npy cut short", cut("poses_bounds.npy", 500), r"announces shape \(9, 17\).* but 372 bytes follow"
    ),
    llff("pickle in poses_bounds.npy", pickled, "pickled objects, not numbers"),
    llff(
        "npz for npy",
        lambda s: np.savez((s / "poses_bounds.npy").open("wb"), np.eye(3)),
        "an npz archive of several arrays",
    ),
    llff("poses_bounds.npy of another width", rows(lambda a: a[:, :15]), r"an array \[N, 17\], found \(9, 15\)"),
    llff("words in poses_bounds.npy", rows(lambda a: a.astype(str)), "not an npy file of plain numbers.*not numbers"),
    llff("NaN in poses_bounds.npy", row((3, 2), NAN), "row 3 holds NaN or infinity"),
    llff("bounds out of order", row((3, 15), 1e6), "row 3 has focal .*0 < near < far"),
    llff("pose that is no rotation", row((2, slice(0, 15, 5)), 3), "row 2: the camera's axes have lengths"),
    llff(
        "huge focal length",
        row((0, 14), 1e9),
        r"poses_bounds\.npy: focal length 5e\+08 does not go with images of 16x12",
    ),
    llff("images unlike poses", remove(PHOTO), r"images_2: holds 8 images, but poses_bounds\.npy has 9 poses"),
    llff(
        "no folder of images",
        lambda s: shutil.rmtree(s / "images"),
        "images_8: no such folder, and no images/",
        "--factor=8",
    ),
    llff(
        "empty folder of images",
        lambda s: [p.unlink() for p in (s / "images").iterdir()],
        "images: holds no image",
        "--factor=1",
    ),
    llff("video instead of images", video_instead, "holds no image.*save frames of walk.mp4"),
    llff("photo of another size", image(PHOTO, lambda i: i.resize((7, 9))), r"im03\.png: 7x9, but im00\.png is 16x12"),
    llff("factor above the photos", nothing, "factor 50 leaves no pixels of photos of 32x24", "--factor=50"),
    llff("all views held out", nothing, "no training images: nothing is left after the test views", "--llffhold=1"),
    llff(
        "spherify of parallel cameras",
        rows(lambda a: a.__setitem__((slice(None), slice(0, 15)), a[0, :15])),
        r"poses_bounds\.npy: spherify needs cameras that look at",
        "--spherify --no_ndc",
    ),
    # DeepVoxels
    deepvoxels(
        "shape that is not there", nothing, "train/vase: no such folder; shapes found beside it: greek", "--shape=vase"
    ),
    deepvoxels("no intrinsics", remove(f"{GREEK}/intrinsics.txt"), r"intrinsics\.txt: no such file"),
    deepvoxels(
        "broken intrinsics",
        write(f"{GREEK}/intrinsics.txt", b"525 3 2\n"),
        r"intrinsics\.txt: expected numbers, 'focal",
    ),
    deepvoxels(
        "focal length 0", write(f"{GREEK}/intrinsics.txt", b"0\n0\n0\n0\n480 640\n"), "focal 0.0 and height 480.0 must"
    ),
    deepvoxels("poses unlike images", remove(f"{GREEK}/pose/000001.txt"), "3 PNGs in rgb/, but 2 poses in pose/"),
    deepvoxels(
        "words in a pose file", write(f"{GREEK}/pose/000001.txt", b"a b"), r"000001\.txt: holds something other than"
    ),
    deepvoxels(
        "too few numbers in a pose file", write(f"{GREEK}/pose/000001.txt", b"1 2"), "16 finite numbers.*found 2"
    ),
    deepvoxels(
        "pose file that is no rotation", write(f"{GREEK}/pose/000001.txt", b"1 " * 16), "000001.txt: the camera's axes"
    ),
    deepvoxels(
        "images that are not square",
        every_image(lambda i: i.resize((16, 12))),
        "16x12; DeepVoxels images must be square",
    ),
    # Weights and camera paths
    other("nothing to render", nothing, "--render_only", "no weights to render; train first, or give --ft_path"),
    other(
        "ft_path missing", nothing, "--ft_path=model_000001.npy", r"model_000001\.npy: no such file; expected weights"
    ),
    other(
        "ft_path without a step",
        nothing,
        "--ft_path=best.npy",
        r"best\.npy: a weight file's name must end in its training step",
    ),
    other("fine weights missing", remove(f"weights/{FINE}"), OWN_WEIGHTS, r"model_fine_000007\.npy: no such file"),
    other(
        "weights of another width",
        nothing,
        f"{OWN_WEIGHTS} --netwidth=12",
        r"model_000007\.npy: expected layer 'trunk_0'.*--netwidth",
    ),
    other(
        "weights of another depth",
        nothing,
        f"{OWN_WEIGHTS} --netdepth=3",
        r"model_000007\.npy: expected layer .*--netdepth",
    ),
    other(
        "fine weights of another width",
        nothing,
        f"{OWN_WEIGHTS} --netwidth_fine=12",
        "model_fine_000007.npy: .*'trunk_0'",
    ),
    other(
        "weights that are none",
        npy(f"weights/{COARSE}", np.eye(3)),
        OWN_WEIGHTS,
        "not a weight file: it holds one array of float64",
    ),
    other(
        "weights with NaN",
        lambda here: tf1_weights.save(here / "weights" / COARSE, [np.full((63, 16), np.nan)]),
        OWN_WEIGHTS,
        "array 0 of 1 holds NaN or infinity",
    ),
    other("checkpoint of another network", checkpoint, "", "ckpt-1: does not fit the networks .*--no_reload"),
    other("render_path_file missing", nothing, OWN_PATH, r"path\.npy: no such file; --render_path_file takes"),
    other(
        "render_path_file of another shape",
        npy("path.npy", np.eye(4)),
        OWN_PATH,
        r"path\.npy: holds \[4, 4\]; .*\[M, 3, 4\]",
    ),
    other(
        "NaN in render_path_file", npy("path.npy", POSES * NAN), OWN_PATH, r"path\.npy: poses must be finite numbers"
    ),
    other(
        "render_path_file that is no rotation",
        npy("path.npy", 2 * POSES),
        OWN_PATH,
        r"path\.npy: pose 0: the camera's axes",
    ),
    other(
        "render_factor above the image",
        nothing,
        f"{OWN_WEIGHTS} --render_only --render_factor=11",
        "render_factor 11 leaves no pixels",
    ),
    # The run's own folder
    other("basedir is a file", as_file("logs"), "", "logs: is no folder"),
    other("a bracket in expname", nothing, "--expname=a[1]", r"logs/a\[1\]: TensorFlow finds no checkpoint"),
    other("expname is a file", as_file("logs/x"), "", "logs/x: is no folder"),
    other("checkpoints is a file", as_file("logs/x/checkpoints"), "", "checkpoints: is no folder"),
    other("summaries is a file", as_file("logs/summaries"), "", "summaries: is no folder"),
]


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> Path:
    """A valid scene of each kind, and weights that go with the flags."""
    folder = tmp_path_factory.mktemp("valid")
    for kind in FLAGS_OF:
        shutil.copytree(SCENES / kind, folder / kind)
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


@pytest.mark.parametrize("mistake", TABLE, ids=lambda mistake: mistake.name)
def test_a_mistake_is_one_line_and_changes_nothing(mistake, valid, tmp_path):
    arguments = prepare(mistake, valid, tmp_path)
    before = everything_in(tmp_path)
    assert_one_line(run(*arguments), mistake.code, mistake.message)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("kind", FLAGS_OF)
def test_without_a_mistake_the_program_starts(kind, valid, tmp_path):
    """Else the table would prove little. Weights of a later step spare the training."""
    arguments = prepare(Mistake("", kind, nothing, OWN_WEIGHTS, 0, ""), valid, tmp_path)
    before = everything_in(tmp_path)
    result = run(*arguments)
    assert result.code == 0, result.stderr
    assert "x is at step 8 already" in result.stderr
    assert everything_in(tmp_path) == before


def test_shrinking_photos_is_all_that_a_failed_start_may_leave(valid, tmp_path):
    mistake = Mistake("", "llff", nothing, "--factor=4 --N_rand=100000", 1, "")
    arguments = prepare(mistake, valid, tmp_path)
    before = everything_in(tmp_path)
    assert_one_line(run(*arguments), 1, "N_rand 100000")
    new = everything_in(tmp_path).keys() - before.keys()
    assert new == {"scene/images_4", *(f"scene/images_4/im{i:02d}.png" for i in range(9))}


def test_testskip_beyond_the_set_keeps_its_first_view(valid, tmp_path):
    """As in the original: no mistake, and so not in the table."""
    arguments = prepare(Mistake("", "blender", nothing, f"{OWN_WEIGHTS} --testskip=1000", 0, ""), valid, tmp_path)
    assert "5 images of 10x10 (3 train, 1 val, 1 test)" in run(*arguments).stderr


def test_the_page_lists_every_mistake():
    cells = [
        line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "
    ]
    listed = {name: (message, remedy) for name, message, remedy in cells if name not in ("mistake", "---")}
    assert list(listed) == [mistake.name for mistake in TABLE]
    assert len(listed) == len(TABLE) >= 40
    for mistake in TABLE:
        message, remedy = listed[mistake.name]
        assert re.search(mistake.message, message.strip("`")), mistake.name
        assert len(remedy) > 5, mistake.name
