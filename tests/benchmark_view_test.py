"""tools/benchmark_view.py: the table's figures are those of the images."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from nerf_tf import build
from nerf_tf.evaluation.metrics import psnr
from nerf_tf.marching import occupancy
from nerf_tf.output import pictures
from nerf_tf.settings import parsing
from nerf_tf.storage import tf1_weights

SCENE = Path(__file__).parent / "data" / "portable" / "scenes" / "blender"
# Few octaves: the density of random weights shall be smooth enough for a grid of few cells.
FLAGS = [
    *(f"--datadir={SCENE}", "--dataset_type=blender", "--white_bkgd", "--testskip=1", "--multires=2"),
    *("--netdepth=2", "--netdepth_fine=2", "--netwidth=16", "--netwidth_fine=16", "--N_samples=9", "--N_importance=7"),
]


@pytest.fixture
def benchmark_view(monkeypatch):
    """The program, imported as Python finds it when it is run, with grids of few cells."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "tools")
    monkeypatch.setattr(occupancy, "COARSE_CELLS", 32)
    monkeypatch.setattr(occupancy, "FINE_CELLS", 64)
    monkeypatch.setattr(occupancy, "BUILD_POINTS", 2**14)
    return importlib.import_module("benchmark_view")


@pytest.fixture
def weights(tmp_path) -> Path:
    """Random weights of both networks."""
    values = parsing.parse_settings([*FLAGS, "--expname=x", "--random_seed=1"])
    trainer = build.make_trainer(values, ndc=False)
    for name, field in (("model_000000.npy", trainer.coarse), ("model_fine_000000.npy", trainer.fine)):
        tf1_weights.save(tmp_path / name, field.mlp.get_weights())
    return tmp_path / "model_000000.npy"


def records(folder: Path) -> list[dict]:
    return json.loads((folder / "view.json").read_text())["engines"]


def test_a_view_with_and_without_occupancy(benchmark_view, weights, tmp_path, capsys):
    arguments = [*FLAGS, f"--ft_path={weights}", "--view=1", f"--out={tmp_path}"]
    assert benchmark_view.main(arguments) == 0, capsys.readouterr().err
    exact, fast, half = records(tmp_path)
    assert (exact["psnr_to_exact"], exact["times_faster"]) == (None, 1.0)
    assert exact["seconds"] / fast["seconds"] == pytest.approx(fast["times_faster"])
    assert fast["psnr"] == pytest.approx(exact["psnr"], abs=0.02)
    assert fast["psnr_to_exact"] > 35  # the grid is rough, and so is the density of random weights
    assert half["psnr_to_exact"] > 30
    assert capsys.readouterr().out.count("to the photo") == 3
    with PILImage.open(tmp_path / "view.png") as picture:
        row = np.asarray(picture)
    side = (row.shape[1] + pictures.GAP) // 4 - pictures.GAP  # three renders and a difference
    first, second, _, difference = (row[pictures.CAPTION :, i * (side + pictures.GAP) :][:, :side] for i in range(4))
    assert psnr(first / 255, second / 255) == pytest.approx(fast["psnr_to_exact"], abs=3)
    assert 0 < difference.mean() < 255


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--view=99", "--ft_path=x"], 1, "benchmark_view: --view 99: there are"),
        ([], 2, "benchmark_view: --ft_path is missing"),
    ],
)
def test_mistakes(benchmark_view, tmp_path, capsys, arguments, code, message):
    try:
        result = benchmark_view.main([*FLAGS, f"--out={tmp_path}", *arguments])
    except SystemExit as stop:
        result = stop.code
    assert result == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_authors_lego(benchmark_view, real_data, lego_views, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_view, "ENGINES", (("float32", False), ("bfloat16", True)))
    lego = Path(__file__).parent.parent / "configs" / "lego.txt"
    arguments = [f"--config={lego}", f"--datadir={lego_views}", "--testskip=1"]
    weights = real_data / "weights/lego_example/model_200000.npy"
    assert benchmark_view.main([*arguments, f"--ft_path={weights}", "--render_factor=16", f"--out={tmp_path}"]) == 0
    # 56 dB with the grids that the program uses; the cells of these are four times as long.
    assert records(tmp_path)[1]["psnr_to_exact"] > 35
