"""The original's weight files: read, written, and refused if they hold anything but weights."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy_format

from nerf_tf.storage import tf1_weights


def some_weights() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in ((3, 4), (4,), (4, 2), (2,))]


def object_array(items: list) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def npy_bytes(payload: bytes, count: int = 4) -> bytes:
    """An .npy file of `count` objects whose pickle is `payload`."""
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": (count,)}
    npy_format.write_array_header_1_0(file, header)
    return file.getvalue() + payload


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert [array.dtype for array in found] == [array.dtype for array in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_round_trip_under_exactly_the_given_name(tmp_path):
    tf1_weights.save(tmp_path / "model_000001.npy", some_weights())
    tf1_weights.save(tmp_path / "model_000001.npy", some_weights())
    assert [file.name for file in tmp_path.iterdir()] == ["model_000001.npy"]
    assert_equal(tf1_weights.load(tmp_path / "model_000001.npy"), some_weights())
    tf1_weights.save(str(tmp_path / "odd"), some_weights())
    assert_equal(tf1_weights.load(str(tmp_path / "odd")), some_weights())


def test_arrays_that_numpy_would_stack_stay_a_list(tmp_path):
    alike = [np.full((2, 2), i, np.float32) for i in range(3)]
    tf1_weights.save(tmp_path / "alike.npy", alike)
    assert_equal(tf1_weights.load(tmp_path / "alike.npy"), alike)


def test_the_original_can_read_what_is_saved(tmp_path):
    path = tmp_path / "model_000001.npy"
    tf1_weights.save(path, some_weights())
    assert_equal(list(np.load(path, allow_pickle=True)), some_weights())
    content = path.read_bytes()
    assert b"numpy.core.multiarray" in content
    assert b"numpy._core" not in content  # NumPy 1 has no module of that name.


def test_a_failed_save_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "model_000001.npy"
    tf1_weights.save(path, some_weights())

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(tf1_weights.npy_format, "write_array_header_1_0", full_disk)
    with pytest.raises(OSError, match="no space left"):
        tf1_weights.save(path, some_weights()[:2])
    assert [file.name for file in tmp_path.iterdir()] == ["model_000001.npy"]
    assert_equal(tf1_weights.load(path), some_weights())


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("numpy_version", [1, 2])
def test_every_protocol_and_both_spellings(tmp_path, protocol, numpy_version):
    payload = pickle.dumps(object_array(some_weights()), protocol=protocol)
    if numpy_version == 1:
        if protocol == 4:  # Names have their length before them, and the frame too.
            payload = payload.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
            payload = payload[:2] + payload[11:] if payload[2:3] == b"\x95" else payload
        else:
            payload = payload.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        assert b"numpy._core" not in payload
    path = tmp_path / "model_000001.npy"
    path.write_bytes(npy_bytes(payload))
    assert_equal(tf1_weights.load(path), some_weights())


def python_2_pickle(dtype: bytes, order: bytes, length: int, content: bytes) -> bytes:
    """An array of one dimension as Python 2 pickled it: all text and bytes are short strings (opcode U)."""
    flags = b"K\x3f" if dtype == b"O8" else b"K\x00"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        + (b"(K\x01K" + bytes([length]) + b"\x85cnumpy\ndtype\nU\x02" + dtype + b"K\x00K\x01\x87R")
        + (b"(K\x03U\x01" + order + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff" + flags + b"tb\x89" + content + b"tb")
    )


def test_python_2_text_as_bytes(tmp_path):
    expected = np.array([1.5, -2.7], np.float32)
    content = expected.astype("<f4").tobytes()
    assert max(content) > 127
    item = python_2_pickle(b"f4", b"<", 2, b"U" + bytes([len(content)]) + content)
    path = tmp_path / "model_000001.npy"
    path.write_bytes(npy_bytes(b"\x80\x02" + python_2_pickle(b"O8", b"|", 1, b"]" + item + b"a") + b".", 1))
    assert_equal(tf1_weights.load(path), [expected])
    assert_equal(list(np.load(path, allow_pickle=True, encoding="latin1")), [expected])


def test_byte_order_memory_order_and_precision(tmp_path):
    matrix = np.arange(6.0).reshape(2, 3)
    stored = [matrix.astype(">f4"), np.asfortranarray(matrix, np.float32), matrix, matrix.astype(np.float16)]
    path = tmp_path / "model_000001.npy"
    np.save(path, object_array(stored))
    found = tf1_weights.load(path)
    assert_equal(found, [matrix.astype(np.float32), matrix.astype(np.float32), matrix, matrix.astype(np.float16)])
    assert all(array.flags.writeable and array.flags.c_contiguous for array in found)


class _Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _named(module: str, name: str, *arguments: str, protocol: int = 4) -> bytes:
    """A pickle that calls something by name, whether or not it exists here."""
    if protocol < 4:
        body = b"c" + module.encode() + b"\n" + name.encode() + b"\n"
    else:
        body = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name)) + b"\x93"
    body += b"(" + b"".join(b"X" + len(word).to_bytes(4, "little") + word.encode() for word in arguments) + b"tR."
    return b"\x80" + bytes([protocol]) + body


def hostile_payloads(sentinel: Path) -> dict[str, bytes]:
    command, code = f"touch {sentinel}", f"open({str(sentinel)!r}, 'w')"
    nested = object_array([*some_weights()[:3], _Calls(os.system, command)])
    array = pickle.dumps(np.zeros(2, np.float32), protocol=2)[:-1]
    return {
        "os.system": pickle.dumps(_Calls(os.system, command)),
        "eval": pickle.dumps(_Calls(eval, code), protocol=2),
        "nested": pickle.dumps(nested, protocol=3),
        "in an item": pickle.dumps(object_array([*some_weights()[:3], object_array([_Calls(eval, code)] * 2)])),
        "runstring": _named("numpy.testing._private.utils", "runstring", code, "{}"),
        "numpy.load": _named("numpy", "load", str(sentinel)),
        "numpy.f2py": _named("numpy.f2py", "compile", "", protocol=2),
        "dotted": _named("numpy", "testing._private.utils.runstring", code, "{}"),
        "dotted core": _named("numpy.core", "multiarray.__builtins__", code),
        "dotted ndarray": _named("numpy", "ndarray.__class__", code),
        "codecs": _named("_codecs", "lookup", "latin1", protocol=2),
        "old builtins": _named("__builtin__", "eval", code, protocol=0),
        "inst": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "extension": b"\x82\x01.",
        "persistent id": b"Pthat\n.",
        "build on a global": b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.",
        "new object": b"\x80\x02cnumpy\nndarray\n(K\x02t\x81.",
        "build on an array": array + b"(NX\x05\x00\x00\x00shape}tb.",
    }


@pytest.mark.parametrize("name", hostile_payloads(Path()))
def test_hostile_files_are_refused_and_run_nothing(tmp_path, name):
    sentinel = tmp_path / "sentinel"
    path = tmp_path / "model_000001.npy"
    path.write_bytes(npy_bytes(hostile_payloads(sentinel)[name]))
    with pytest.raises(ValueError, match=r"model_000001\.npy: not a weight file: "):
        tf1_weights.load(path)
    assert not sentinel.exists()


def test_the_hostile_files_are_hostile(tmp_path):
    """Else the test above would prove nothing."""
    sentinel = tmp_path / "sentinel"
    for name in ("os.system", "eval", "nested", "in an item"):
        pickle.loads(hostile_payloads(sentinel)[name])
        assert sentinel.exists(), name
        sentinel.unlink()


def test_the_message_says_what_the_code_is(tmp_path):
    path = tmp_path / "model_000001.npy"
    path.write_bytes(npy_bytes(hostile_payloads(tmp_path / "sentinel")["runstring"]))
    with pytest.raises(ValueError, match=r"refers to numpy\.testing\._private\.utils\.runstring, so it carries code"):
        tf1_weights.load(path)


def unfit_contents() -> dict[str, bytes]:
    def dumped(*items):
        return npy_bytes(pickle.dumps(object_array(list(items))), len(items))

    good = npy_bytes(pickle.dumps(object_array(some_weights())))
    plain = io.BytesIO()
    np.save(plain, np.zeros((2, 2), np.float32))
    structured = io.BytesIO()
    np.save(structured, np.zeros(2, np.dtype([("a", "f4")])))
    recursive = np.empty(1, object)
    recursive[0] = recursive
    return {
        "empty": b"",
        "text": b"expname = a\n",
        "cut header": good[:40],
        "no payload": good[:128],
        "cut payload": good[:-60],
        "broken header": good.replace(b"{'descr", b"{(descr", 1),
        "deep header": good[:10] + b"(" * 118 + good[128:],
        "future version": good[:6] + b"\x09" + good[7:],
        "plain array": plain.getvalue(),
        "structured": structured.getvalue(),
        "integers": dumped(np.zeros(3, np.int64)),
        "beyond float32": dumped(np.full(3, 1e300)),
        "strings": dumped(np.array(["a"])),
        "complex": dumped(np.zeros(3, np.complex64)),
        "numbers": dumped(1.0, 2.0),
        "nested objects": dumped(object_array([1.0, None])),
        "recursive": npy_bytes(pickle.dumps(recursive), 1),
        "empty side": dumped(np.zeros((0, 3), np.float32)),
        "other count": npy_bytes(pickle.dumps(object_array(some_weights())), 5),
        "a list": npy_bytes(pickle.dumps(some_weights())),
        "a dict": npy_bytes(pickle.dumps({"a": 1})),
        "huge memo": npy_bytes(b"\x80\x02Nr" + (2**32 - 1).to_bytes(4, "little") + b"."),
        "huge string": npy_bytes(b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x."),
    }


@pytest.mark.parametrize("name", unfit_contents())
def test_files_that_hold_no_weights(tmp_path, name):
    path = tmp_path / "model_000001.npy"
    path.write_bytes(unfit_contents()[name])
    with pytest.raises(ValueError, match=r"model_000001\.npy: not a weight file: .") as raised:
        tf1_weights.load(path)
    assert len(str(raised.value)) < 1000


def test_damage_anywhere_is_a_value_error_or_other_numbers(tmp_path):
    path = tmp_path / "model_000001.npy"
    tf1_weights.save(path, some_weights())
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(2000):
        bad = bytearray(good)
        for position in rng.integers(len(bad), size=2):
            bad[position] = rng.integers(256)
        path.write_bytes(bad)
        try:
            tf1_weights.load(path)
        except ValueError:
            refused += 1
    assert refused > 500


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model_000001\.npy: no such file; expected weights"):
        tf1_weights.load(tmp_path / "model_000001.npy")


def test_names(tmp_path):
    assert tf1_weights.fine_path("runs/a/model_200000.npy") == Path("runs/a/model_fine_200000.npy")
    assert tf1_weights.fine_path(Path("model_1200000.npy")) == Path("model_fine_1200000.npy")
    assert tf1_weights.step_of("runs/b_7/model_000012.npy") == 12
    for function in (tf1_weights.step_of, tf1_weights.fine_path):
        with pytest.raises(ValueError, match=r"weights\.npy: a weight file's name must end in its training step"):
            function(tmp_path / "weights.npy")


def test_a_step_beyond_all_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model_9+\.npy: the step in its name has more than 18 digits"):
        tf1_weights.step_of(tmp_path / f"model_{'9' * 20}.npy")


def test_newest_goes_by_number_and_leaves_fine_ones_out(tmp_path):
    assert tf1_weights.newest(tmp_path) is None
    assert tf1_weights.newest(tmp_path / "nowhere") is None
    others = ("model_fine_9000000.npy", ".model_8000000.npy.1.tmp", "model_best.npy", "model_old_5000000.npy")
    for name in (*others, f"model_{'9' * 20}.npy"):
        (tmp_path / name).touch()
    assert tf1_weights.newest(tmp_path) is None
    for step in (0, 950000, 1000000, 20000):
        (tmp_path / f"model_{step:06d}.npy").touch()
    assert tf1_weights.newest(tmp_path) == tmp_path / "model_1000000.npy"


def tiny_model():
    import keras

    points, directions = keras.Input((3,), name="points"), keras.Input((2,), name="directions")
    hidden = keras.layers.Dense(4, name="trunk_0")(points)
    hidden = keras.layers.Concatenate()([hidden, directions])
    return keras.Model([points, directions], keras.layers.Dense(2, name="rgb")(hidden))


def test_assign_sets_what_was_loaded(tmp_path):
    model, other = tiny_model(), tiny_model()
    tf1_weights.save(tmp_path / "model_000001.npy", other.get_weights())
    tf1_weights.assign(model, tf1_weights.load(tmp_path / "model_000001.npy"), tmp_path / "model_000001.npy")
    assert_equal(model.get_weights(), other.get_weights())


@pytest.mark.parametrize(
    ("shapes", "parts"),
    [
        ([(3, 4), (4,), (9, 2), (2,)], ["'rgb'", "[6, 2]", "[9, 2]", "array 2"]),
        ([(3, 4), (4,)], ["'rgb'", "[6, 2]", "found nothing", "network: 4 arrays, file: 2"]),
        ([(3, 4), (4,), (6, 2), (2,), (2, 2)], ["no more layers", "[2, 2]", "network: 4 arrays, file: 5"]),
    ],
)
def test_assign_names_what_does_not_fit(shapes, parts):
    model = tiny_model()
    before = model.get_weights()
    with pytest.raises(ValueError, match="model_000001") as raised:
        tf1_weights.assign(model, [np.ones(shape, np.float32) for shape in shapes], "model_000001.npy")
    for part in [*parts, "--netdepth", "--netwidth", "--multires", "--use_viewdirs"]:
        assert part in str(raised.value)
    assert_equal(model.get_weights(), before)


@pytest.mark.parametrize("scene", ["fern", "lego"])
@pytest.mark.parametrize("name", ["model_200000.npy", "model_fine_200000.npy"])
def test_the_authors_files(scene, name):
    if "NERF_TF_REAL_DATA" not in os.environ:
        pytest.skip("NERF_TF_REAL_DATA, the folder of the authors' data, is not set")
    path = Path(os.environ["NERF_TF_REAL_DATA"]) / "weights" / f"{scene}_example" / name
    weights = tf1_weights.load(path)
    trunk = [(63, 256)] + [(256, 256)] * 4 + [(319, 256)] + [(256, 256)] * 2
    heads = [(256, 256), (283, 128), (128, 3), (256, 1)]
    assert [array.shape for array in weights[::2]] == trunk + heads
    assert [array.shape for array in weights[1::2]] == [(shape[1],) for shape in trunk + heads]
    assert_equal(weights, list(np.load(path, allow_pickle=True)))
