"""What `build` makes of settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf import build
from nerf_tf.field.query import Field
from nerf_tf.geometry.rays import image_rays
from nerf_tf.marching.occupancy import Occupancy, OccupiedField
from nerf_tf.marching.visible_space import ray_box
from nerf_tf.memory import planning
from nerf_tf.safety import scene_checks
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings

SCENES = Path(__file__).parent / "data" / "portable" / "scenes"


def settings_of(*words: str, kind: str = "blender") -> Settings:
    own = [f"--dataset_type={kind}", f"--datadir={SCENES / kind}", "--expname=x", "--netdepth=1", "--netwidth=8"]
    return parsing.parse_settings([*own, *words])


@pytest.mark.parametrize(
    ("flag", "gpu", "compiled"),
    [("auto", True, True), ("auto", False, False), ("true", False, True), ("false", True, False)],
)
def test_xla_compiles_on_a_gpu_or_when_told_to(monkeypatch, flag, gpu, compiled):
    monkeypatch.setattr(planning, "has_gpu", lambda: gpu)
    trainer = build.make_trainer(settings_of(f"--jit_compile={flag}", "--N_importance=4"), ndc=False, seed=0)
    assert (trainer.coarse.compiled, trainer.fine.compiled) == (compiled, compiled)


def test_a_program_that_has_used_its_gpu_before_may_go_on(monkeypatch):
    def refuse(*_: object) -> None:
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", refuse)
    build.set_up_tensorflow.__wrapped__()


def test_without_occupancy_the_networks_themselves_are_asked(tmp_path):
    parts = []
    for words in ([], ["--occupancy"]):
        values = settings_of("--N_importance=4", f"--basedir={tmp_path}", *words)
        scene = build.load_scene(values)
        trainer = build.make_trainer(values, scene.ndc, seed=0)
        parts.append((trainer, build.make_renderer(values, scene, trainer)))
    (trainer, exact), (_, fast) = parts
    assert exact.prepare is None
    for field, network in ((exact.coarse, trainer.coarse), (exact.fine, trainer.fine)):
        assert type(field) is Field
        assert field.mlp is network.mlp
    assert [type(field) for field in (fast.coarse, fast.fine)] == [OccupiedField, OccupiedField]


@pytest.mark.parametrize("kind", ["blender", "llff"])
def test_the_box_of_the_grids_holds_all_that_cameras_see_and_little_more(kind):
    values = settings_of("--factor=1", kind=kind)
    scene = build.load_scene(values)
    assert scene.ndc == (kind == "llff")
    box = ray_box(scene)
    views = [*zip(scene.cameras, scene.poses, strict=True), *((scene.cameras[0], pose) for pose in scene.render_poses)]
    points = []
    for camera, pose in views:
        rays = image_rays(camera, pose, scene.near, scene.far, scene.ndc)
        points += [rays.origins + t * rays.directions for t in np.linspace(scene.near, scene.far, 5)]
    points = np.concatenate(points)
    assert (points >= box.lower).all()
    assert (points <= box.upper).all()
    # The last pixel's corner is a pixel further out than its ray.
    np.testing.assert_allclose(points.min(axis=0), box.lower, atol=0.1 * (box.upper - box.lower).max())
    np.testing.assert_allclose(points.max(axis=0), box.upper, atol=0.1 * (box.upper - box.lower).max())
    if scene.ndc:
        np.testing.assert_allclose([box.lower[2], box.upper[2]], [-1.0, 1.0], atol=0.01)


def test_grids_are_built_in_tiles_of_the_plan(tmp_path, monkeypatch):
    values = settings_of("--netchunk=auto", "--memory_budget_mb=200", "--occupancy", f"--basedir={tmp_path}")
    scene = build.load_scene(values)
    renderer = build.make_renderer(values, scene, build.make_trainer(values, scene.ndc, seed=0))
    found = []
    monkeypatch.setattr(Occupancy, "update", lambda self, fields, weights: found.append(fields[0].netchunk))
    renderer.prepare()
    smaller, _, _ = renderer.on_out_of_memory(tf.errors.ResourceExhaustedError(None, None, "OOM"))
    renderer.prepare()
    planned = renderer.coarse.field.netchunk
    assert found == [planned, smaller.field.netchunk] == [planned, planned // 2]


def test_a_scene_that_makes_no_sense_is_warned_of(caplog):
    caplog.set_level("WARNING")  # a run before may have set another
    build.load_scene(settings_of("--white_bkgd"))
    assert not caplog.messages
    scene = build.load_scene(settings_of("--white_bkgd", "--near=20", "--far=30"))
    assert caplog.messages == scene_checks.check_scene(scene)
    assert "the cameras look at a point 4 away" in caplog.text
