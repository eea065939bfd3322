"""tools/race.py: configs of both fields, trained in turns for equal times."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from nerf_tf import build
from nerf_tf.settings import parsing

pytest.importorskip("matplotlib", reason="the race is drawn with matplotlib: pip install -e '.[plots]'")

SCENE = Path(__file__).parent / "data" / "portable" / "scenes" / "blender"
FLAGS = ["--dataset_type=blender", f"--datadir={SCENE}", "--testskip=1", "--use_viewdirs", "--white_bkgd"]
NETWORKS = "--N_rand=48 --netdepth=2 --netwidth=16 --N_samples=9"
GRID = "--field=hash_grid --grid_slots=1024 --grid_samples=32 --grid_levels=2 --grid_log2_table=10 --N_rand=64"


@pytest.fixture
def race(monkeypatch):
    """The program, imported as Python finds it when it is run."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "tools")
    return importlib.import_module("race")


def test_both_fields_train_for_equal_times(race, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(race, "EVALUATIONS", 3)
    (tmp_path / "networks.txt").write_text("lrate = 0.01\n")
    runs = [f"{tmp_path}/networks.txt {NETWORKS}", f"{tmp_path}/networks.txt {GRID}"]
    minutes = 0.01
    assert race.main(["--minutes", str(minutes), *runs, *FLAGS, f"--out={tmp_path / 'out'}"]) == 0
    records = json.loads((tmp_path / "out/race.json").read_text())
    assert list(records) == runs
    for record in records.values():
        assert record["step"][0] == record["seconds"][0] == 0
        assert record["seconds"] == sorted(record["seconds"])
        assert 60 * minutes <= record["seconds"][-1] < 60 * minutes + 1
        assert record["step"] == sorted(record["step"])
        assert len(record["psnr"]) >= 3
        assert np.isfinite(record["psnr"]).all()
        assert record["psnr"][-1] > record["psnr"][0]
    out = capsys.readouterr().out
    assert out == f"{tmp_path}/out/race.json\n{tmp_path}/out/race.png\n"
    assert (tmp_path / "out/race.png").stat().st_size > 5000


def test_a_scene_without_validation_views(race):
    scene = build.load_scene(parsing.parse_settings([*FLAGS, "--expname=x"]))
    with pytest.raises(ValueError, match="no validation views to compare with"):
        race.held_out_rays(dataclasses.replace(scene, i_val=scene.i_val[:0]), 0)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--minutes=0", "a.txt"], 2, "--minutes 0: give a positive number"),
        (["a.txt"], 2, "required: --minutes"),
        (["--minutes=1", "nowhere.txt"], 2, "nowhere.txt"),
    ],
)
def test_mistakes(race, tmp_path, capsys, arguments, code, message):
    with pytest.raises(SystemExit) as stop:
        race.main([*arguments, f"--out={tmp_path}/out"])
    assert stop.value.code == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
