"""Checkpoints of nerf-pytorch: read, converted both ways, and refused if they hold anything but a network."""

from __future__ import annotations

import functools
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nerf_tf.field.mlp import FieldSettings, build_mlp
from nerf_tf.storage import tf1_weights, torch_weights

RECORDED = Path(__file__).parent / "data" / "nerf_pytorch"
# What PyTorch recorded: networks of 6 layers of 16 units that see 15 numbers of a point and 9 of a view direction.
SETTINGS = {"depth": 6, "width": 16, "multires": 2, "multires_views": 1}
COARSE, FINE = "network_fn_state_dict", "network_fine_state_dict"


def state_of(depth: int, width: int, points: int, viewdirs: int, seed: int = 0, outputs: int = 4) -> dict:
    """A network of nerf-pytorch with random weights [out, in]; without view directions where `viewdirs` is 0."""
    rng = np.random.default_rng(seed)
    shapes = {f"pts_linears.{i}": (width, width + (points if i == 5 else 0)) for i in range(depth)}
    shapes["pts_linears.0"] = (width, points)
    shapes["views_linears.0"] = (width // 2, width + viewdirs)
    if viewdirs:
        shapes |= {"feature_linear": (width, width), "alpha_linear": (1, width), "rgb_linear": (3, width // 2)}
    else:
        shapes["output_linear"] = (outputs, width)
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = (rng.normal(size=shape) * np.sqrt(2 / shape[1])).astype(np.float32)
        state[f"{name}.bias"] = rng.normal(size=shape[0]).astype(np.float32) / 10
    return state


def forward(state: dict, points: np.ndarray, viewdirs: np.ndarray) -> np.ndarray:
    """What nerf-pytorch computes of encoded points [B, C] and view directions [B, D]: raw [B, 4]."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ state[f"{name}.weight"].T.astype(np.float64) + state[f"{name}.bias"]

    h = points
    for i in range(sum(name.startswith("pts_linears") for name in state) // 2):
        h = np.maximum(linear(f"pts_linears.{i}", h), 0)
        if i == 4:
            h = np.concatenate([points, h], axis=-1)
    if "output_linear.weight" in state:
        return linear("output_linear", h)[:, :4]
    views = np.maximum(linear("views_linears.0", np.concatenate([linear("feature_linear", h), viewdirs], axis=-1)), 0)
    return np.concatenate([linear("rgb_linear", views), linear("alpha_linear", h)], axis=-1)


def network_of(path: Path, **settings):
    """The network of the package with the weights in a file."""
    mlp = build_mlp(FieldSettings(**settings), 0)
    tf1_weights.assign(mlp, tf1_weights.load(path), path)
    return mlp


def outputs(mlp, points: np.ndarray, viewdirs: np.ndarray) -> np.ndarray:
    inputs = [points, viewdirs][: len(mlp.inputs)]
    return np.asarray(mlp([x.astype(np.float32) for x in inputs]))


@pytest.fixture
def convert(tool, capsys):
    """Runs the program; returns its exit code, and what it says."""

    def run(*arguments: object) -> tuple[int, str]:
        code = tool("convert_weights").main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, (printed.err or printed.out).strip()

    return run


@pytest.mark.parametrize("name", ["views", "views_before_1_6", "plain"])
def test_what_pytorch_computed_is_what_the_network_here_computes(convert, tmp_path, name):
    code, printed = convert(RECORDED / f"{name}.tar", "--out", tmp_path)
    assert (code, printed) == (0, f"{tmp_path / 'model_000003.npy'}\n{tmp_path / 'model_fine_000003.npy'}")
    recorded = np.load(RECORDED / f"{name.partition('_')[0]}.npz")
    for file, raw in (("model_000003.npy", "coarse"), ("model_fine_000003.npy", "fine")):
        mlp = network_of(tmp_path / file, use_viewdirs="views" in name, **SETTINGS)
        np.testing.assert_allclose(
            outputs(mlp, recorded["points"], recorded["viewdirs"]), recorded[raw], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("width", "viewdirs"), [(256, 27), (64, 27), (320, 27), (256, 0)], ids=["paper", "narrow", "wide", "no views"]
)
def test_a_checkpoint_is_the_same_network_here_and_back(convert, tool, tmp_path, width, viewdirs):
    states = [state_of(8, width, 63, viewdirs, seed, 4 if viewdirs else 5) for seed in (1, 2)]
    torch_weights.save(tmp_path / "200000.tar", {"global_step": 199999, COARSE: states[0], FINE: states[1]})
    assert convert(tmp_path / "200000.tar", "--out", tmp_path)[0] == 0
    assert convert(tmp_path / "model_200000.npy", "--out", tmp_path / "back") == (
        0,
        str(tmp_path / "back" / "200000.tar"),
    )
    back = torch_weights.load(tmp_path / "back" / "200000.tar", (COARSE, FINE, "global_step"))
    assert back["global_step"] == 200000

    rng = np.random.default_rng(3)
    points, views = rng.uniform(-1, 1, (50, 63)), rng.uniform(-1, 1, (50, viewdirs))
    for state, file, key in zip(states, ("model_200000.npy", "model_fine_200000.npy"), (COARSE, FINE), strict=True):
        expected = forward(state, points, views)
        mlp = network_of(tmp_path / file, width=width, use_viewdirs=viewdirs > 0)
        np.testing.assert_allclose(outputs(mlp, points, views), expected, rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(forward(back[key], points, views), expected, rtol=1e-5, atol=2e-5)
        assert {name: array.shape for name, array in back[key].items()} == {n: a.shape for n, a in state.items()}
        if width == 256 and viewdirs:
            for name, array in state.items():
                np.testing.assert_array_equal(back[key][name], array)


def test_weights_of_the_original_are_the_same_network_in_pytorchs_layout(convert, tmp_path):
    mlp = build_mlp(FieldSettings(use_viewdirs=True), 5)
    tf1_weights.save(tmp_path / "model_000010.npy", mlp.get_weights())
    assert convert(tmp_path / "model_000010.npy", "--out", tmp_path)[0] == 0
    content = torch_weights.load(tmp_path / "000010.tar", (COARSE, FINE))
    assert list(content) == [COARSE]
    rng = np.random.default_rng(3)
    points, views = rng.uniform(-1, 1, (50, 63)), rng.uniform(-1, 1, (50, 27))
    np.testing.assert_allclose(forward(content[COARSE], points, views), outputs(mlp, points, views), atol=1e-5)


def test_the_step_is_that_of_the_name_or_else_of_the_checkpoint(convert, tmp_path):
    content = {"global_step": 7, COARSE: state_of(2, 16, 15, 9)}
    for name, file in (("000012.tar", "model_000012.npy"), ("best.tar", "model_000007.npy")):
        torch_weights.save(tmp_path / name, content)
        assert convert(tmp_path / name, "--out", tmp_path) == (0, str(tmp_path / file))
    del content["global_step"]
    torch_weights.save(tmp_path / "best.tar", content)
    assert convert(tmp_path / "best.tar", "--out", tmp_path) == (
        1,
        f"convert_weights: {tmp_path}/best.tar: neither its name nor its global_step is a training step; name it as in "
        "200000.tar",
    )


def test_parallel_networks_and_other_precisions(tool):
    state = state_of(3, 16, 15, 9)
    weights = tool("convert_weights").to_original(state)
    wrapped = {f"module.{name}": array.astype(np.float64) for name, array in state.items()}
    for one, other in zip(tool("convert_weights").to_original(wrapped), weights, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-6)


def changed(**arrays: np.ndarray | None) -> dict:
    """A network of 8 layers, some of its arrays replaced or, where None, left out; `_` stands for a dot."""
    state = state_of(8, 16, 15, 9)
    for name, array in arrays.items():
        name = name.replace("__", ".")
        state = {key: value for key, value in state.items() if key != name}
        if array is not None:
            state[name] = array
    return state


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({}, "'output_linear' is missing or not known"),
        ({"encoder.weight": np.zeros((2, 2), np.float32)}, "it has no network of nerf-pytorch: '"),
        (changed(alpha_linear__weight=None, alpha_linear__bias=None), "'alpha_linear' is missing or not known"),
        (changed(alpha_linear__bias=None), "alpha_linear has no proper weight and bias"),
        (changed(views_linears__1__weight=np.zeros((8, 8), np.float32)), "'views_linears.1' is missing or not known"),
        (changed(pts_linears__2__weight=np.zeros((16, 31), np.float32)), "pts_linears.2 takes 31 numbers to 16; ex"),
        (changed(pts_linears__5__weight=np.zeros((16, 16), np.float32)), "expected 31 to 16, as the original has 16"),
        (changed(rgb_linear__weight=np.zeros((4, 8), np.float32)), "rgb_linear has no proper weight and bias"),
        (changed(views_linears__0__weight=np.zeros((8, 16), np.float32)), "takes 0 numbers of a view direction"),
        (state_of(8, 520, 15, 9), "a view layer of 260 units does not fit a bottleneck of 256"),
    ],
)
def test_other_networks_are_refused_by_name(convert, tmp_path, state, reason):
    torch_weights.save(tmp_path / "000001.tar", {COARSE: state})
    code, message = convert(tmp_path / "000001.tar", "--out", tmp_path / "out")
    assert code == 1
    assert message.startswith(f"convert_weights: {tmp_path}/000001.tar: ")
    assert reason in message
    assert not (tmp_path / "out").exists()


def test_weight_files_that_are_no_network(convert, tmp_path):
    for weights in ([np.ones((3, 4), np.float32)], [np.ones(s, np.float32) for s in ((3, 4), (4,), (9, 4), (4,))]):
        tf1_weights.save(tmp_path / "model_000001.npy", weights)
        code, message = convert(tmp_path / "model_000001.npy", "--out", tmp_path / "out")
        assert code == 1
        assert message.startswith(f"convert_weights: {tmp_path}/model_000001.npy: ")


# Files that are not what they should be


def archive_of(payload: bytes, storages: dict[str, bytes] | None = None, **kinds: int) -> bytes:
    """A zip archive as PyTorch writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **kinds) as archive:
        archive.writestr("000001/data.pkl", payload)
        for name, content in (storages or {}).items():
            archive.writestr(f"000001/data/{name}", content)
    return file.getvalue()


def tensor(key: str = "0", count: int = 4, offset: int = 0, shape: tuple = (2, 2), strides: tuple = (2, 1)) -> bytes:
    """The pickle of {network: {w: tensor}}."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    def side(values: tuple) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    return (
        b"\x80\x02}X" + struct.pack("<I", len(COARSE)) + COARSE.encode() + b"}X\x01\x00\x00\x00w"
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX"
        + (struct.pack("<I", len(key)) + key.encode() + b"X\x03\x00\x00\x00cpu" + number(count) + b"tQ")
        + (number(offset) + side(shape) + side(strides) + b"\x89ccollections\nOrderedDict\n)RtRss.")
    )


FOUR = np.arange(4, dtype="<f4").tobytes()


def test_the_tensor_that_the_hostile_ones_are_made_of_is_read(tmp_path):
    path = tmp_path / "000001.tar"
    path.write_bytes(archive_of(tensor(), {"0": FOUR}))
    np.testing.assert_array_equal(torch_weights.load(path, [COARSE])[COARSE]["w"], [[0, 1], [2, 3]])
    path.write_bytes(archive_of(tensor(strides=(1, 2)), {"0": FOUR}))
    np.testing.assert_array_equal(torch_weights.load(path, [COARSE])[COARSE]["w"], [[0, 2], [1, 3]])


class _Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def old_file(*pickles: bytes, rest: bytes = b"") -> bytes:
    """A file of before PyTorch 1.6: number, version and system, then these."""
    number = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    system = pickle.dumps({"little_endian": True}, protocol=2)
    return number + pickle.dumps(1001, protocol=2) + system + b"".join(pickles) + rest


def hostile_files(sentinel: Path) -> dict[str, tuple[bytes, str]]:
    """Files that run code when an unpickler obeys them, and what is said of them."""
    command, code = f"touch {sentinel}", f"open({str(sentinel)!r}, 'w')"
    system = pickle.dumps({COARSE: _Calls(os.system, command)}, protocol=2)
    evaluated = pickle.dumps({COARSE: {"w": _Calls(eval, code)}}, protocol=2)
    named = b"\x80\x02ctorch\nload\n(X\x01\x00\x00\x00atR."
    dotted = b"\x80\x04\x8c\x05torch\x8c\x10serialization.os\x93."
    return {
        "os.system": (archive_of(system), "system, so it carries code; nothing of it was run"),
        "eval in a state dict": (archive_of(evaluated), "builtin__.eval, so it carries code"),
        "torch.load": (archive_of(named), "torch.load, so it carries code"),
        "dotted": (archive_of(dotted), "torch.serialization.os, so it carries code"),
        "persistent id": (archive_of(b"\x80\x02X\x01\x00\x00\x00aQ."), "something that is no tensor's storage"),
        "os.system in an old file": (old_file(system), "system, so it carries code"),
        "eval for the keys of an old file": (old_file(pickle.dumps({}), evaluated), "eval, so it carries code"),
        "eval for the version": (hostile_version(evaluated), "eval, so it carries code"),
        "build on a dict": (archive_of(b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb."), ""),
    }


def hostile_version(payload: bytes) -> bytes:
    return pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + payload


@pytest.mark.parametrize("name", hostile_files(Path()))
def test_hostile_files_are_refused_and_run_nothing(convert, tmp_path, name):
    sentinel = tmp_path / "sentinel"
    content, reason = hostile_files(sentinel)[name]
    (tmp_path / "000001.tar").write_bytes(content)
    code, message = convert(tmp_path / "000001.tar", "--out", tmp_path / "out")
    assert code == 1
    assert message.startswith(f"convert_weights: {tmp_path}/000001.tar: not a checkpoint of PyTorch that can be read: ")
    assert reason in message
    assert "\n" not in message
    assert not sentinel.exists()
    assert not (tmp_path / "out").exists()


def test_the_hostile_files_are_hostile(tmp_path):
    sentinel = tmp_path / "sentinel"
    content, _ = hostile_files(sentinel)["os.system"]
    pickle.loads(zipfile.ZipFile(io.BytesIO(content)).read("000001/data.pkl"))
    assert sentinel.exists()


@functools.cache
def unfit_files() -> dict[str, tuple[bytes, str]]:
    good = archive_of(tensor(), {"0": FOUR})
    many = pickle.dumps({COARSE: dict.fromkeys(map(str, range(2000)), 1)}, protocol=2)
    bomb = archive_of(tensor(count=10**6, shape=(10**6,), strides=(1,)), {"0": bytes(4 * 10**6)}, compression=8)
    text = b"X" + struct.pack("<I", len(COARSE)) + COARSE.encode()
    whole = tensor(count=4096, shape=(4096,), strides=(1,))
    entry = whole[whole.index(b"}X\x01") + 1 : -3]  # 'w': tensor
    again = entry.replace(b"X\x01\x00\x00\x00w", b"X\x01\x00\x00\x00%c", 1)
    shared = b"\x80\x02}" + text + b"}(" + b"".join(again.replace(b"%c", bytes([65 + i])) for i in range(50)) + b"us."
    stored = pickle.dumps({}), pickle.dumps(["0"])
    return {
        "empty": (b"", "it begins as no file of PyTorch does"),
        "text": (b"hello, this is no checkpoint", "it begins as no file of PyTorch does"),
        "a real tar": (b"a" + bytes(256) + b"ustar" + bytes(700), "it begins as no file of PyTorch does"),
        "cut archive": (good[:-30], "not a zip file"),
        "archive without a pickle": (archive_of(b"").replace(b"data.pkl", b"data.txt"), "without data.pkl"),
        "cut pickle": (archive_of(tensor()[:60], {"0": FOUR}), ""),
        "no dict": (archive_of(pickle.dumps([1], protocol=2)), "it holds no dict"),
        "no storage": (archive_of(tensor()), "it lacks 000001/data/0"),
        "a path for a storage": (archive_of(tensor(key="../../../etc/passwd")), "it lacks 000001/data/../../.."),
        "short storage": (archive_of(tensor(), {"0": FOUR[:8]}), "w has 8 bytes; expected 16"),
        "long storage": (archive_of(tensor(), {"0": FOUR * 9}), "000001/data/0 has 144 bytes; expected 16 at most"),
        "other bytes": (good.replace(FOUR, FOUR[::-1]), "Bad CRC-32"),
        "beyond its storage": (archive_of(tensor(offset=1), {"0": FOUR}), "does not lie within its storage of 4"),
        "negative offset": (archive_of(tensor(offset=-1), {"0": FOUR}), "no proper shape"),
        "negative strides": (archive_of(tensor(strides=(-2, 1)), {"0": FOUR}), "no proper shape"),
        "huge by stride 0": (archive_of(tensor(shape=(2**40, 2), strides=(0, 0)), {"0": FOUR}), "does not lie within"),
        "empty side": (archive_of(tensor(shape=(0, 2)), {"0": FOUR}), "does not lie within"),
        "sides and strides": (archive_of(tensor(shape=(4,)), {"0": FOUR}), "no proper shape"),
        "NaN": (archive_of(tensor(), {"0": FOUR[:12] + b"\xff\xff\xff\xff"}), "holds NaN or infinity"),
        "zip bomb": (bomb, "000001/data.pkl is compressed, as PyTorch never does"),
        "one storage for many": (
            archive_of(shared, {"0": np.zeros(4096, "<f4").tobytes()}),
            "bytes, but tensors for more",
        ),
        "too many tensors": (archive_of(many), "has 2000 entries; expected 1000 at most"),
        "numbers for tensors": (archive_of(pickle.dumps({COARSE: {"w": 1}}, protocol=2)), "w is not a tensor"),
        "another storage": (archive_of(tensor().replace(b"Float", b"Long"), {"0": FOUR}), "not a tensor of floats"),
        "old, cut": (old_file(tensor(), pickle.dumps(["0"]), rest=struct.pack("<q", 4) + FOUR[:8]), "is cut short"),
        "old, huge": (old_file(tensor(), pickle.dumps(["0"]), rest=struct.pack("<q", 2**60) + FOUR), "is cut short"),
        "old, negative": (old_file(tensor(), pickle.dumps(["0"]), rest=struct.pack("<q", -1) + FOUR), "is cut short"),
        "old, unknown storage": (old_file(*stored, rest=struct.pack("<q", 4) + FOUR), "storage that no tensor uses"),
        "old, no list": (old_file(tensor(), pickle.dumps(1)), "no list of storages"),
        "old, other version": (hostile_version(pickle.dumps(1002) + 3 * pickle.dumps({})), "of version 1002"),
    }


@pytest.mark.parametrize("name", unfit_files())
def test_unfit_files_are_refused(tmp_path, name):
    content, reason = unfit_files()[name]
    path = tmp_path / "000001.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"000001\.tar: not a checkpoint of PyTorch that can be read: ") as raised:
        torch_weights.load(path, [COARSE])
    assert reason in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("name", ["views", "views_before_1_6"])
def test_damage_anywhere_is_a_value_error_or_other_numbers(tmp_path, name):
    good = (RECORDED / f"{name}.tar").read_bytes()
    path = tmp_path / "000001.tar"
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        bad = bytearray(good)
        for position in rng.integers(4096 if rng.random() < 0.5 else len(bad), size=3):
            bad[position] = rng.integers(256)
        path.write_bytes(bad if rng.random() < 0.8 else bad[: rng.integers(len(bad))])
        try:
            torch_weights.load(path, [COARSE, FINE])
        except ValueError:
            refused += 1
    assert refused > 100


def test_files_that_are_not_there(convert, tmp_path):
    assert convert(tmp_path / "a.tar", "--out", tmp_path)[1] == f"convert_weights: {tmp_path}/a.tar: no such file"
    (tmp_path / "b.tar").mkdir()
    assert "is a folder, not a file" in convert(tmp_path / "b.tar", "--out", tmp_path)[1]


def test_what_a_file_is_called(tmp_path):
    """By its first bytes, whatever its name is."""
    files = {
        "old.tar": (RECORDED / "views_before_1_6.tar").read_bytes(),
        "model_000007.npy": (RECORDED / "views.tar").read_bytes(),
        "zip.npy": archive_of(b"").replace(b"data.pkl", b"data.txt"),
        "text.tar": b"hello",
        "empty": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    told = {name: torch_weights.describe_torch_file(tmp_path / name) for name in [*files, "nowhere", "."]}
    for name in ("old.tar", "model_000007.npy"):
        assert told[name] == (
            "a checkpoint of PyTorch, as nerf-pytorch writes it, not weights of the original; convert it with python "
            f"tools/convert_weights.py {tmp_path / name} --out DIR"
        )
    assert told["zip.npy"].startswith("a zip archive, not weights of the original")
    assert [told[name] for name in ("text.tar", "empty", "nowhere", ".")] == [None] * 4


def test_weights_by_another_name_are_named(tmp_path):
    """Where a coarse file is asked for by its step, and where it is read."""
    path = tmp_path / "best.tar"
    path.write_bytes((RECORDED / "views.tar").read_bytes())
    with pytest.raises(ValueError, match=r"best\.tar: a checkpoint of PyTorch, as nerf-pytorch writes it, .*convert_"):
        tf1_weights.step_of(path)
    with pytest.raises(ValueError, match=r"model_000007\.npy: a checkpoint of PyTorch"):
        tf1_weights.load(path.rename(tmp_path / "model_000007.npy"))


def test_the_shared_case_is_named(real_data):
    path = real_data / "cases" / "pytorch_tar" / "000200.tar"
    with pytest.raises(ValueError, match=r"000200\.tar: a checkpoint of PyTorch, as nerf-pytorch writes it"):
        tf1_weights.step_of(path)
    assert torch_weights.load(path, [COARSE, "global_step"]) == {"global_step": 200}


def record(torch, folder: Path) -> None:
    """Writes checkpoints as nerf-pytorch does after some steps of Adam, and what its networks compute.

    `tests/data/nerf_pytorch` was made by this, with PyTorch 2.13.0.
    """
    for name, viewdirs in (("views", 9), ("plain", 0)):
        networks = []
        for seed in (1, 2):
            state = state_of(6, 16, 15, viewdirs, seed, 4 if viewdirs else 5)
            networks.append({key: torch.nn.Parameter(torch.tensor(array)) for key, array in state.items()})
        rng = np.random.default_rng(3)
        points, views = (rng.uniform(-1, 1, (20, n)).astype(np.float32) for n in (15, viewdirs))
        optimizer = torch.optim.Adam([p for network in networks for p in network.values()], lr=5e-4)
        for _ in range(3):
            optimizer.zero_grad()
            sum(torch_forward(torch, network, points, views).square().mean() for network in networks).backward()
            optimizer.step()
        states = [{key: parameter.detach() for key, parameter in network.items()} for network in networks]
        content = {"global_step": 3, COARSE: states[0], FINE: states[1], "optimizer_state_dict": optimizer.state_dict()}
        torch.save(content, folder / f"{name}.tar")
        if viewdirs:
            torch.save(content, folder / f"{name}_before_1_6.tar", _use_new_zipfile_serialization=False)
        raw = [torch_forward(torch, network, points, views).detach().numpy() for network in networks]
        np.savez(folder / f"{name}.npz", points=points, viewdirs=views, coarse=raw[0], fine=raw[1])


def torch_forward(torch, state: dict, points: np.ndarray, viewdirs: np.ndarray):
    """As `forward`, by PyTorch."""

    def linear(name: str, x):
        return torch.nn.functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    h = points = torch.tensor(points)
    for i in range(6):
        h = torch.relu(linear(f"pts_linears.{i}", h))
        if i == 4:
            h = torch.cat([points, h], -1)
    if "output_linear.weight" in state:
        return linear("output_linear", h)[:, :4]
    views = torch.relu(linear("views_linears.0", torch.cat([linear("feature_linear", h), torch.tensor(viewdirs)], -1)))
    return torch.cat([linear("rgb_linear", views), linear("alpha_linear", h)], -1)


def test_pytorch_itself_reads_what_is_written_and_writes_what_is_read(convert, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; recorded files stand for it")
    record(torch, tmp_path)
    for name in ("views", "views_before_1_6", "plain"):
        assert convert(tmp_path / f"{name}.tar", "--out", tmp_path / name)[0] == 0
        assert convert(tmp_path / name / "model_000003.npy", "--out", tmp_path / name)[0] == 0
        recorded = np.load(tmp_path / f"{name.partition('_')[0]}.npz")
        for weights_only in (True, False):
            content = torch.load(tmp_path / name / "000003.tar", weights_only=weights_only)
            for key, raw in ((COARSE, "coarse"), (FINE, "fine")):
                found = torch_forward(torch, content[key], recorded["points"], recorded["viewdirs"])
                np.testing.assert_allclose(found.numpy(), recorded[raw], rtol=1e-5, atol=1e-5)
        parameters = [torch.nn.Parameter(t) for key in (COARSE, FINE) for t in content[key].values()]
        optimizer = torch.optim.Adam(parameters, lr=1.0)
        optimizer.load_state_dict(content["optimizer_state_dict"])
        sum(parameter.sum() for parameter in parameters).backward()
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == 5e-4
