"""TensorFloat-32: off wherever the package computes, unless the run asks for it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import nerf_tf
from nerf_tf import build, build_hash_grid, tensor_float
from nerf_tf.evaluation import lpips, metrics
from nerf_tf.field.mlp import precision
from nerf_tf.settings import parsing
from nerf_tf.train.step import Trainer

SCENE = Path(__file__).parent / "data" / "portable" / "scenes" / "blender"
FLAGS = [f"--datadir={SCENE}", "--dataset_type=blender", "--expname=x", "--netdepth=1", "--netwidth=8", "--white_bkgd"]
TINY_GRID = ["--field=hash_grid", "--grid_slots=1024", "--grid_samples=32", "--grid_levels=2", "--grid_log2_table=10"]


def make_trainer(*words: str) -> Trainer:
    return build.make_trainer(parsing.parse_settings([*FLAGS, *words]), ndc=False, seed=0)


@pytest.fixture
def turned_on(monkeypatch):
    """TensorFlow as it is when nothing of the package has been imported."""
    monkeypatch.delitem(sys.modules, "nerf_tf.field")
    monkeypatch.setattr(nerf_tf, "field", nerf_tf.field)
    tensor_float.use(True)


def test_importing_a_network_turns_it_off(turned_on):
    importlib.import_module("nerf_tf.field")

    assert not tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.mark.parametrize("name", ["render_rays", "load_scene"])
def test_using_the_library_turns_it_off(turned_on, name):
    assert getattr(nerf_tf, name)
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


def test_the_last_trainer_decides():
    found = []
    for words in ([], ["--mixed_precision=tf32"], [], ["--mixed_precision=tf32"], ["--mixed_precision=bfloat16"]):
        make_trainer(*words)
        found.append(tf.config.experimental.tensor_float_32_execution_enabled())
    assert found == [False, True, False, True, False]


def test_a_hash_grid_has_it_off_and_refuses_it():
    settings = parsing.parse_settings([*FLAGS, *TINY_GRID])
    tensor_float.use(True)
    build_hash_grid.make_trainer(settings, build.load_scene(settings), seed=0)
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
    with pytest.raises(ValueError, match="--mixed_precision=tf32: a hash grid computes in float32; leave it out"):
        settings.replace(mixed_precision="tf32")


def test_its_networks_are_those_of_float32():
    plain, rounded = make_trainer(), make_trainer("--mixed_precision=tf32")
    assert precision(rounded.coarse.mlp) == "float32"
    assert {layer.dtype_policy.name for layer in rounded.coarse.mlp.layers} == {"float32"}
    for one, other in zip(plain.coarse.mlp.get_weights(), rounded.coarse.mlp.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert rounded.coarse.tolerance == plain.coarse.tolerance
    assert type(rounded.optimizer) is type(plain.optimizer)
    assert build.workload(rounded, True, 64) == build.workload(plain, True, 64)


def test_scores_are_computed_without_it(monkeypatch):
    seen = []

    def record(*_: object, **__: object) -> tf.Tensor:
        seen.append(tf.config.experimental.tensor_float_32_execution_enabled())
        return tf.zeros([2, 16, 16, 1])

    monkeypatch.setattr(tf.image, "ssim", lambda *args, **keywords: record()[0, 0, 0, 0])
    monkeypatch.setattr(tf.nn, "conv2d", record)
    image = np.zeros((16, 16, 3))
    tensor_float.use(True)
    metrics.ssim(image, image)
    lpips.Lpips([[(np.zeros((3, 3, 3, 1)), np.zeros(1, np.float32))]], [np.ones(1, np.float32)])(image, image)
    assert seen == [False, False]
    assert tf.config.experimental.tensor_float_32_execution_enabled()
