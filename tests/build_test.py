"""The parts of a run that flags ask for."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from absl import flags

from nerf_tf import build, config
from nerf_tf.render.occupancy import Occupancy

SCENE = Path(__file__).parent / "data" / "portable" / "scenes" / "blender"
FLAGS = ["--dataset_type=blender", f"--datadir={SCENE}", "--expname=x", "--netdepth=1", "--netwidth=8"]


def test_grids_are_built_in_tiles_of_the_plan(tmp_path, monkeypatch):
    values = flags.FlagValues()
    words = ["--netchunk=auto", "--memory_budget_mb=200", "--occupancy", f"--basedir={tmp_path}"]
    config.parse_flags(["test", *FLAGS, *words], values)
    scene = build.load_scene(values)
    renderer = build.make_renderer(values, scene, build.make_trainer(values, scene.ndc, seed=0))
    found = []
    monkeypatch.setattr(Occupancy, "update", lambda self, fields, weights: found.append(fields[0].netchunk))
    renderer.prepare()
    smaller, _, _ = renderer.give_way(tf.errors.ResourceExhaustedError(None, None, "OOM"))
    renderer.prepare()
    planned = renderer.coarse.field.netchunk
    assert found == [planned, smaller.field.netchunk] == [planned, planned // 2]
