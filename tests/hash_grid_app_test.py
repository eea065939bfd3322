"""`--field hash_grid` through the program: trains, stops and continues, renders, evaluates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from app_test import SCENES, run

from nerf_tf import app, build, build_hash_grid
from nerf_tf.marching import importance
from nerf_tf.memory import planning
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import tf1_weights

TINY = "--grid_slots=1024 --grid_samples=32 --grid_levels=2 --grid_log2_table=10 --grid_finest=32 --N_rand=64"
FEW_FILES = "--i_img=0 --i_video=0 --i_testset=0"
COMMON = ["--field=hash_grid", "--use_viewdirs", "--random_seed=0", *TINY.split(), *FEW_FILES.split()]
BLENDER = [f"--datadir={SCENES / 'blender'}", "--dataset_type=blender", "--white_bkgd", "--testskip=2", *COMMON]
LLFF = [f"--datadir={SCENES / 'llff'}", "--factor=2", *COMMON]


def weights_in(folder: Path, step: int) -> list[np.ndarray]:
    return tf1_weights.load(folder / f"model_{step:06d}.npy")


@pytest.fixture(scope="module")
def through(tmp_path_factory) -> Path:
    """A run of 40 steps, undisturbed."""
    base = tmp_path_factory.mktemp("through")
    assert run(*BLENDER, f"--basedir={base}", "--expname=run", "--N_iters=40", "--i_weights=20").code == 0
    return base / "run"


def test_it_goes_on_bit_for_bit(through, tmp_path):
    """A run that died at its last checkpoint has, when it has gone on, all that it would have had."""
    killed = shutil.copytree(through, tmp_path / "run")
    checkpoints = sorted((killed / "checkpoints").glob("ckpt-*"))
    assert len(checkpoints) > 1
    shutil.rmtree(checkpoints[-1])
    (killed / "model_000039.npy").unlink()
    result = run(*BLENDER, f"--basedir={tmp_path}", "--expname=run", "--N_iters=40", "--i_weights=20")
    assert result.code == 0
    assert "continues at step 21" in result.stderr
    for one, other in zip(weights_in(through, 39), weights_in(killed, 39), strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_renders_and_evaluates_from_checkpoint_and_from_weights(through, tmp_path):
    base = [*BLENDER, f"--basedir={through.parent}", "--expname=run"]
    assert run(*base, "--eval_only").code == 0
    metrics = json.loads((through / "metrics.json").read_text())
    result = run(*base, "--render_only", "--render_test", f"--ft_path={through / 'model_000039.npy'}")
    assert result.code == 0, result.stderr
    again = json.loads((through / "metrics.json").read_text())
    assert metrics["psnr_8bit"] == again["psnr_8bit"]
    assert (through / "renderonly_test_000040" / "video.mp4").exists()


def test_larger_views_show_the_same(through):
    """Rays go through the middle of pixels, which of three times as many in a row every third one shares."""
    flags = [*BLENDER, f"--basedir={through.parent}", "--expname=run", "--render_only", "--render_width=60"]
    settings = parsing.parse_settings(flags)
    scene = build.load_scene(settings)
    renderer = build.make_renderer(settings, scene, build.restored_trainer(settings, scene))
    camera, c2w = scene.cameras[0], scene.poses[0]
    image, larger = renderer.image(camera, c2w), renderer.image(build.view_camera(settings, camera), c2w)
    assert larger.rgb.shape == (60, 60, 3)
    assert np.ptp(image.rgb) > 0.02
    np.testing.assert_allclose(larger.rgb[1::3, 1::3], image.rgb, atol=1e-5)


@pytest.mark.parametrize(("field", "gpu"), [("hash_grid", True), ("hash_grid", False), ("mlp", True)])
def test_what_determinism_costs_on_a_gpu_is_said(monkeypatch, field, gpu):
    turned_on = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: turned_on.append(True))
    monkeypatch.setattr(planning, "has_gpu", lambda: gpu)
    monkeypatch.setattr(app, "run", lambda settings: None)
    result = run(*BLENDER, f"--field={field}", "--expname=x", "--deterministic")
    assert (result.code, turned_on) == (0, [True])
    assert ("may take seconds a step" in result.stderr) == (field == "hash_grid" and gpu)


def test_a_field_of_the_other_kind_is_refused(through):
    result = run(*BLENDER, f"--basedir={through.parent}", "--expname=run", "--field=mlp", "--netwidth=16")
    assert result.code == 1
    assert "it is of --field=hash_grid, and this run is of --field=mlp" in result.stderr


@pytest.mark.parametrize("flags", [[], ["--no_ndc", "--spherify"]])
def test_it_trains_on_photos_for_minutes(tmp_path, flags):
    result = run(
        *LLFF, *flags, f"--basedir={tmp_path}", "--expname=run", "--train_minutes=0.005", "--i_print=1", "--i_weights=0"
    )
    assert result.code == 0, result.stderr
    steps = [int(path.stem[6:]) for path in (tmp_path / "run").glob("model_*.npy")]
    assert len(steps) == 1
    assert 0 < steps[0] < 10000
    again = run(*LLFF, *flags, f"--basedir={tmp_path}", "--expname=run", "--train_minutes=0.005")
    assert f"run is at step {steps[0] + 1} already; raise --train_minutes" in again.stderr


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"field": "hash_grid", "occupancy": True}, "skips empty space by itself"),
        ({"field": "hash_grid", "mixed_precision": "bfloat16"}, "computes in float32"),
        ({"train_minutes": 1.0}, "needs --field=hash_grid"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(flags, reason):
    with pytest.raises(ValueError, match=reason):
        Settings(**flags)


def test_flags_that_mean_nothing_to_it_are_known():
    assert Settings(field="hash_grid", N_samples=8, N_rand=8).without_effect_on_hash_grid() == ["N_samples"]


def test_a_bad_step_is_kept_and_replayed(tmp_path, tool, capsys):
    flags = ["--grid_lrate=1e38", "--max_bad_steps=3", "--N_iters=20"]
    result = run(*BLENDER, f"--basedir={tmp_path}", "--expname=bad", *flags)
    assert result.code == 1
    assert "3 steps in a row; first not finite: hash grid loss" in result.stderr
    assert "a lower --grid_lrate may help" in result.stderr
    (path,) = (tmp_path / "bad").glob("bad_step_*.npz")
    assert tool("replay_step").main([str(tmp_path / "bad"), str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "first that is not finite: hash grid loss"


def test_there_are_no_passes_to_draw(through, tool, capsys):
    assert tool("plot_sampling").main(["--config", str(through / "args.txt")]) == 1
    assert "--field=hash_grid has no coarse and fine pass to draw" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "spread"), [([], True), (["--no_ndc", "--spherify"], False)])
def test_views_have_samples_of_the_kind_of_training(flags, spread, monkeypatch):
    settings = parsing.parse_settings(["--expname=x", "--dataset_type=llff", *LLFF, *flags])
    scene = build.load_scene(settings)
    trainer = build.trainer_for(settings, scene)
    counts, draw = [], importance.draw_samples
    monkeypatch.setattr(importance, "draw_samples", lambda *given: counts.append(given[-1]) or draw(*given))
    build.make_renderer(settings, scene, trainer).image(scene.cameras[0], scene.poses[0])
    assert counts == ([build_hash_grid.RENDERED_RAY_SAMPLES] if spread else [])
    assert (trainer._training.ray_samples is not None) == spread
