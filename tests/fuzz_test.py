"""Random damage to scenes, weights and config files: they are read, or refused with the file's name."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import shutil
import signal
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from nerf_tf import build
from nerf_tf.camera_paths import scene_paths
from nerf_tf.camera_paths.keyframes import Keyframes, keyframes_json
from nerf_tf.data import blender, deepvoxels, llff
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import paths
from nerf_tf.settings import parsing
from nerf_tf.settings.options import OPTIONS
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import camera_matrices, image_reader, readers, tf1_weights
from nerf_tf.train.step import falling_rate

SCENES = Path(__file__).parent / "data" / "portable" / "scenes"
MOST_SECONDS = 30

# Ten tests: 300 cases always, 3,000 more with `-m long`.
AMOUNTS = [pytest.param(30, id="few"), pytest.param(300, id="many", marks=pytest.mark.long)]

LOADERS: dict[str, tuple[str, Callable[[Path], Scene]]] = {
    "blender": ("blender", lambda folder: blender.load(folder, testskip=1, white_bkgd=True)),
    "llff": ("llff", lambda folder: llff.load(folder, factor=2)),
    "llff around": ("llff", lambda folder: llff.load(folder, factor=2, spherify=True, no_ndc=True)),
    "deepvoxels": ("deepvoxels", lambda folder: deepvoxels.load(folder, "greek", testskip=1)),
}

NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 1e-320, 1e-9, 1e9, 1e30, 1e308, float("inf"), float("-inf"), float("nan"), 10**400]
)
WORDS = st.sampled_from(["", "x", "nan", "1e999", "\0", "\x1b[2J", "é", "\ud800", "../..", "/", "a" * 3000, "1" * 5000])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "file_path"]), inner, max_size=2),
    max_leaves=8,
)


def try_out(cases: int, check: Callable[[st.DataObject], None]) -> None:
    """Runs a check on random cases, the same ones every time; one that hangs fails."""

    def stop(*_: object) -> None:
        raise AssertionError(f"no answer after {MOST_SECONDS} s")

    @hypothesis.settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def attempt(data: st.DataObject) -> None:
        before = signal.signal(signal.SIGALRM, stop)
        signal.alarm(MOST_SECONDS)
        try:
            check(data)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    attempt()


@contextlib.contextmanager
def refused_by_name(name: Path) -> Iterator[None]:
    """Allows the block to end in a ValueError or a FileNotFoundError that names a file, and in nothing else."""
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    if error is not None:
        if type(error) not in (ValueError, FileNotFoundError):
            raise error
        assert str(name) in str(error)
        assert len(str(error)) < 1000 + 3 * len(str(name))


# Damage to any file


def damage_bytes(data: st.DataObject, content: bytes) -> bytes:
    """Bytes changed, cut off, put in, repeated or left out."""
    at = data.draw(st.integers(0, len(content)))
    length = data.draw(st.integers(0, 20))
    kind = data.draw(st.sampled_from(["change", "cut", "insert", "repeat", "remove", "replace"]))
    new = data.draw(st.binary(max_size=20))
    return {
        "change": content[:at] + new + content[at + len(new) :],
        "cut": content[:at],
        "insert": content[:at] + new + content[at:],
        "repeat": content[:at] + content[at : at + length] * 50 + content[at:],
        "remove": content[:at] + content[at + length :],
        "replace": new,
    }[kind]


def swap(data: st.DataObject, path: Path) -> None:
    """A file that is missing, a folder, a link to itself or to nowhere, or another file of the scene."""
    others = sorted(other for other in path.parent.rglob("*") if other.is_file() and other != path)
    kind = data.draw(st.sampled_from(["missing", "folder", "loop", "nowhere", "other"]))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind in ("loop", "nowhere"):
        path.symlink_to(path if kind == "loop" else path.with_name("nowhere"))
    elif kind == "other" and others:
        shutil.copyfile(data.draw(st.sampled_from(others)), path)


# Damage that knows what the file is


def damage_json(data: st.DataObject, path: Path) -> None:
    """Values replaced, removed or added anywhere in the tree."""
    root = json.loads(path.read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        node = root
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = data.draw(st.sampled_from(keys)) if keys else None
            deeper = key is not None and isinstance(node[key], dict | list) and data.draw(st.booleans())
            if not deeper:
                break
            node = node[key]
        kind = data.draw(st.sampled_from(["set", "remove", "add"]))
        if kind == "set" and key is not None:
            node[key] = data.draw(VALUES)
        elif kind == "remove" and key is not None:
            del node[key]
        elif isinstance(node, dict):
            node[data.draw(st.sampled_from(["frames", "file_path", "camera_angle_x", "w"]))] = data.draw(VALUES)
        else:
            node.append(data.draw(VALUES))
    path.write_text(json.dumps(root))


def damage_npy(data: st.DataObject, path: Path) -> None:
    """Entries, shape, type or header changed."""
    array = np.load(path)
    kind = data.draw(st.sampled_from(["entry", "rows", "columns", "axes", "type", "scale", "header"]))
    if kind == "entry":
        row, column = data.draw(st.integers(0, len(array) - 1)), data.draw(st.integers(0, array.shape[1] - 1))
        array[row, column] = float(min(data.draw(NUMBERS), 1e308))
    elif kind == "rows":
        array = array[data.draw(st.lists(st.integers(0, len(array) - 1), max_size=12))]
    elif kind == "columns":
        array = array[:, data.draw(st.lists(st.integers(0, 16), max_size=20))]
    elif kind == "axes":
        array = data.draw(st.sampled_from([array.T, array[0], array[None], array[0, 0], np.asfortranarray(array)]))
    elif kind == "type":
        with np.errstate(all="ignore"):
            array = array.real.astype(
                data.draw(st.sampled_from(["f2", ">f4", "f8", "f16", "i1", "u8", "c8", "S4", "U9", "?"]))
            )
    elif kind == "scale":
        columns = data.draw(st.sampled_from([slice(None), slice(15), slice(15, 17), slice(3, 15, 5), slice(4, 15, 5)]))
        with np.errstate(all="ignore"):
            array[:, columns] *= data.draw(st.sampled_from([-1, 0, 1e-30, 1e-6, 1e6, 1e30, 1e300]))
    with path.open("wb") as file:
        np.save(file, array)
    if kind == "header":
        content = path.read_bytes()
        old = data.draw(st.sampled_from([b"9, 17", b"<f8", b"False", b"shape", b"}", b"(", b"\x93", b"\x01\x00v\x00"]))
        new = data.draw(
            st.sampled_from([b"", b"-1", b"|O8", b"10000000000, 17", b"True", b"((((", b"\xff", b"\x03\x00"])
        )
        path.write_bytes(content.replace(old, new, 1))


def damage_text(data: st.DataObject, path: Path) -> None:
    """Numbers replaced by others or by words, left out or repeated."""
    words = re.split(r"(\s+)", path.read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(words) - 1))
        words[at] = data.draw(
            st.sampled_from(["", " ", "\n", words[at] * 2, str(data.draw(NUMBERS)), data.draw(WORDS)])
        )
    path.write_bytes("".join(words).encode("utf-8", "surrogatepass"))


def damage_image(data: st.DataObject, path: Path) -> None:
    """Another size, kind or format; or chunks of a PNG changed, with checksums that hold."""
    if data.draw(st.booleans()):
        image = Image.open(path)
        mode = data.draw(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"]))
        size = data.draw(st.sampled_from([image.size, image.size, (1, 1), (20, 1), (33, 32)]))
        changed = image.convert("RGB").resize(size).convert("I" if mode == "I;16" else mode).convert(mode)
        file_format = "TIFF" if mode == "CMYK" else data.draw(st.sampled_from(["PNG", "PNG", "WEBP", "TIFF"]))
        changed.save(path, format="PNG" if mode in ("I;16", "LA", "1", "P") else file_format)
        return
    content, chunks, at = path.read_bytes(), [], 8
    while at < len(content):
        length = struct.unpack(">I", content[at : at + 4])[0]
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    index = data.draw(st.integers(0, len(chunks) - 1))
    name, body = chunks[index]
    body = damage_bytes(data, body)
    name = data.draw(
        st.sampled_from([name, name, b"zTXt", b"iCCP", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"eXIf", b"gAMA"])
    )
    chunks.insert(index + data.draw(st.integers(0, 1)), (name, body))
    if data.draw(st.booleans()):
        chunks.pop(index)
    parts = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks]
    path.write_bytes(content[:8] + b"".join(parts))


DAMAGE = {".json": damage_json, ".npy": damage_npy, ".txt": damage_text, ".png": damage_image}


def damage_file(data: st.DataObject, path: Path) -> None:
    kind = data.draw(st.sampled_from(["known", "known", "known", "bytes", "swap"]))
    if kind == "known":
        DAMAGE[path.suffix](data, path)
    elif kind == "bytes":
        path.write_bytes(damage_bytes(data, path.read_bytes()))
    else:
        swap(data, path)


def restore(path: Path, valid: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    shutil.copyfile(valid, path)


def assert_sane(scene: Scene) -> None:
    count = len(scene.images)
    assert count == len(scene.poses) == len(scene.cameras) == len(scene.i_train) + len({*scene.i_val, *scene.i_test})
    assert scene.images.min() >= 0
    assert scene.images.max() <= 1
    assert np.isfinite(scene.poses).all()
    assert np.isfinite(scene.render_poses).all()
    assert np.isfinite([scene.near, scene.far]).all()
    assert scene.near < scene.far
    assert all(0 < camera.fx < np.inf for camera in scene.cameras)


@pytest.mark.parametrize("cases", AMOUNTS)
@pytest.mark.parametrize("kind", LOADERS)
def test_scenes(kind, cases, tmp_path):
    name, load = LOADERS[kind]
    valid = Path(shutil.copytree(SCENES / name, tmp_path / "valid"))
    for path in valid.glob("*/greek/rgb/*.png"):
        Image.open(path).resize((16, 16)).save(path)
    folder = Path(shutil.copytree(valid, tmp_path / "scene"))
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix != ".png"]

    def check(data: st.DataObject) -> None:
        chosen = data.draw(
            st.lists(st.sampled_from(texts) | st.sampled_from(files), min_size=1, max_size=2, unique=True)
        )
        try:
            for path in chosen:
                damage_file(data, folder / path)
            with refused_by_name(folder):
                assert_sane(load(folder))
        finally:
            for path in chosen:
                restore(folder / path, valid / path)

    assert_sane(load(folder))
    try_out(cases, check)
    assert_sane(load(folder))


# Config files

KEYS = st.sampled_from(
    [*OPTIONS, "N_sampels", "", "--lrate", "config", "include", "[x]", "#", "\ufeff", "é", "x" * 999]
)
LINES = st.one_of(
    st.builds("{}{}{}".format, KEYS, st.sampled_from([" = ", ": ", " ", "=", ""]), WORDS | VALUES.map(str)),
    st.builds(
        "{} = {}".format, KEYS, st.integers(-(10**40), 10**40) | st.sampled_from(["auto", "True", "None", "[1", "[[]]"])
    ),
    st.text(max_size=40),
    st.sampled_from(["config = HERE", "--config=HERE", "a" + " " * 5000 + "b", "[" * 1000 + "]", "expname = 'a'  # b"]),
)


@pytest.mark.parametrize("cases", AMOUNTS)
def test_config_files(cases, tmp_path):
    path, again = tmp_path / "run.txt", tmp_path / "args.txt"

    def parse(file: Path) -> Settings | None:
        """The settings that a file sets, None where it is refused by one line."""
        text, code = io.StringIO(), 0
        try:
            with contextlib.redirect_stderr(text):
                settings = parsing.parse_settings([f"--config={file}"])
        except SystemExit as stop:
            code = stop.code
        if code == 0:
            return settings
        assert code == 2
        assert re.fullmatch(r"nerf_tf: .*(run\.txt|--\w+).*\n", text.getvalue())
        assert text.getvalue()[:-1].isprintable()
        return None

    def check(data: st.DataObject) -> None:
        text = "expname = a\n" + "\n".join(data.draw(st.lists(LINES, max_size=4))).replace("HERE", str(path))
        content = text.encode("utf-8", "surrogatepass")
        path.write_bytes(damage_bytes(data, content) if data.draw(st.integers(0, 4)) == 0 else content)
        values = parse(path)
        if values is None:
            return
        build.batch_settings(values)
        falling_rate(values.lrate, values.lrate_decay)
        build.render_settings(values, ndc=False)
        for fine in (False, True):
            build.field_settings(values, fine)
        again.write_text(parsing.args_text(values), encoding="utf-8")
        found = parse(again)
        for name in set(OPTIONS) - {"config"}:
            assert getattr(found, name) == getattr(values, name)

    try_out(cases, check)


# Images, weights and arrays


@pytest.mark.parametrize("cases", AMOUNTS)
def test_images(cases, tmp_path):
    path = tmp_path / "image.png"
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8))
    valid = {"RGB": "PNG", "P": "PNG", "RGBA": "PNG", "L": "JPEG"}

    def check(data: st.DataObject) -> None:
        mode = data.draw(st.sampled_from(list(valid)))
        photo.convert(mode).save(path, format=valid[mode])
        if valid[mode] == "PNG" and data.draw(st.booleans()):
            damage_image(data, path)
        else:
            path.write_bytes(damage_bytes(data, path.read_bytes()))
        with refused_by_name(path):
            image = image_reader.read_image(path)
            assert image.shape[2] in (3, 4)
            assert image.min() >= 0
            assert image.max() <= 1

    try_out(cases, check)


OPCODES = st.sampled_from(
    [
        *(
            b"(",
            b".",
            b"0",
            b"1",
            b"2",
            b"N",
            b"]",
            b")",
            b"}",
            b"a",
            b"e",
            b"s",
            b"u",
            b"b",
            b"t",
            b"\x85",
            b"\x86",
            b"\x87",
        ),
        *(
            b"R",
            b"\x81",
            b"h\0",
            b"h\1",
            b"q\0",
            b"q\1",
            b"K\1",
            b"K\3",
            b"M\xff\xff",
            b"J\xff\xff\xff\xff",
            b"\x88",
            b"\x89",
        ),
        *(b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n"),
        *(
            b"cos\nsystem\n",
            b"c__builtin__\neval\n",
            b"U\1b",
            b"U\2f4",
            b"U\2O8",
            b"C\4\0\0\0\0",
            b"X\1\0\0\0<",
            b"\x80\4",
        ),
        *(
            b"\x8c\2os\x8c\6system\x93",
            b"\x94",
            b"\x8f",
            b"\x90",
            b"\x91",
            b"\x92",
            b"P1\n",
            b"Q",
            b"i1\n2\n",
            b"\x82\1",
        ),
    ]
)


@pytest.mark.parametrize("cases", AMOUNTS)
def test_weights(cases, tmp_path):
    path = tmp_path / "model_000001.npy"
    tf1_weights.save(path, [np.ones((3, 2), np.float32), np.zeros(2, np.float32)])
    valid = path.read_bytes()
    start = valid.index(b"\n") + 1

    def check(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            content = valid
            for _ in range(data.draw(st.integers(1, 4))):
                content = damage_bytes(data, content)
        else:
            payload = b"".join(data.draw(st.lists(OPCODES, max_size=30)))
            at = data.draw(st.integers(start, len(valid)))
            content = valid[:at] + payload + (valid[at:] if data.draw(st.booleans()) else b"")
        path.write_bytes(content)
        with refused_by_name(path):
            assert all(np.isfinite(array).all() for array in tf1_weights.load(path))

    try_out(cases, check)


@pytest.mark.parametrize("cases", AMOUNTS)
def test_arrays(cases, tmp_path):
    path = tmp_path / "poses.npy"
    pickled = pickle.dumps({"a": 1})

    def check(data: st.DataObject) -> None:
        np.save(path, np.arange(153.0).reshape(9, 17))
        if data.draw(st.booleans()):
            damage_npy(data, path)
        content = path.read_bytes() + data.draw(st.sampled_from([b"", pickled, b"\0"]))
        path.write_bytes(damage_bytes(data, content) if data.draw(st.booleans()) else content)
        with refused_by_name(path):
            assert readers.read_npy(path).dtype.kind in "fiu"

    try_out(cases, check)


@pytest.mark.parametrize("cases", AMOUNTS)
def test_archives(cases, tmp_path):
    path, member = tmp_path / "maps.npz", tmp_path / "member.npy"

    def check(data: st.DataObject) -> None:
        save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
        save(path, key=np.array("0123"), maps=np.arange(153.0).reshape(9, 17))
        if data.draw(st.booleans()):
            np.save(member, np.arange(153.0).reshape(9, 17))
            damage_npy(data, member)
            with zipfile.ZipFile(path, "a") as archive:
                archive.write(member, data.draw(st.sampled_from(["more.npy", "", "a/../b", "n" * 60000])))
        if data.draw(st.booleans()):
            path.write_bytes(damage_bytes(data, path.read_bytes()))
        with refused_by_name(path):
            arrays = readers.read_npz(path, data.draw(st.sampled_from([(), ("key", "maps"), ("none",)])))
            assert {array.dtype.kind for array in arrays.values()} <= set("biufU")
            assert all(str(array) for array in arrays.values() if array.dtype.kind == "U")

    try_out(cases, check)


# Paths of a camera

SECONDS = NUMBERS | st.sampled_from([-1.5, 0.5, 1 + 1e-9, 1000.0, 4000.0])


@pytest.mark.parametrize("cases", AMOUNTS)
def test_keyframes(cases, tmp_path):
    path = tmp_path / "keys.json"

    def check(data: st.DataObject) -> None:
        text = keyframes_json(Keyframes(np.arange(4.0), paths.orbit_path(4)))
        path.write_text(text)
        if data.draw(st.booleans()):
            document = json.loads(text)
            frame = data.draw(st.sampled_from(document["keyframes"]))
            frame["time"] = data.draw(SECONDS)
            frame["c2w"][data.draw(st.integers(0, 2))][data.draw(st.integers(0, 3))] = data.draw(NUMBERS | st.floats())
            path.write_text(json.dumps(document))
        elif data.draw(st.booleans()):
            damage_json(data, path)
        else:
            path.write_bytes(damage_bytes(data, text.encode()))
        with refused_by_name(path), warnings.catch_warnings():
            warnings.simplefilter("error")
            found = scene_paths.read_path(path, 30)
            assert np.isfinite(found).all()
            camera_matrices.require_rigid(found, [""] * len(found))

    try_out(cases, check)
