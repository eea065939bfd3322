"""The plotting programs: computations against closed forms, and the pictures that they write."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.util import event_pb2

from nerf_tf import build
from nerf_tf.field.mlp import build_mlp
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.rays import Rays
from nerf_tf.output import curve
from nerf_tf.render.passes import RenderSettings, render_rays
from nerf_tf.settings import parsing
from nerf_tf.storage import tf1_weights
from nerf_tf.storage.run_folder import summaries_folder

pytest.importorskip("matplotlib", reason="the plots need matplotlib: pip install -e '.[plots]'")

SCENES = Path(__file__).parent / "data" / "portable" / "scenes"


def assert_picture(path: Path, width: int, height: int) -> None:
    """The PNG has that size in pixels, and several colours in every quarter."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (width, height)
        pixels = np.asarray(image.convert("RGB"))
    for rows in np.array_split(pixels, 2):
        for quarter in np.array_split(rows, 2, axis=1):
            assert len(np.unique(quarter.reshape(-1, 3), axis=0)) > 10


def a_ray(near: float, far: float) -> Rays:
    return Rays(
        tf.constant([[0.1, 0.2, 0.0]]),
        tf.constant([[0.1, -0.2, 1.3]]),
        tf.constant([[0.0, 0.0, 1.0]]),
        tf.constant([[near]]),
        tf.constant([[far]]),
    )


def test_drawn_cdf_maps_u_to_the_samples_that_the_library_takes(tool):
    trace = tool("plot_sampling").built_in_trace()
    assert trace.cdf[0] == 0.0
    np.testing.assert_allclose(trace.cdf[-1], 1.0, atol=1e-6)
    np.testing.assert_allclose(np.diff(trace.cdf), trace.pdf, atol=1e-6)
    # At u = 1 rounding decides which edge is last, so the arrow there is left out.
    np.testing.assert_allclose(np.interp(trace.u, trace.cdf, trace.edges)[:-1], trace.fine_t[:-1], atol=2e-4)
    np.testing.assert_array_equal(trace.merged_t, np.sort(np.concatenate([trace.coarse_t, trace.fine_t])))


def test_traced_ray_is_the_one_that_render_rays_renders(tool):
    plot_sampling = tool("plot_sampling")
    settings = RenderSettings(N_samples=12, N_importance=9, lindisp=True).deterministic()
    rays = a_ray(1.0, 6.0)
    field = plot_sampling.leaf_and_wall
    trace = plot_sampling.trace_ray(field, field, rays, settings)
    expected = render_rays(field, None, rays, settings)
    np.testing.assert_allclose(trace.weights, expected.coarse.weights[0], rtol=1e-6)
    np.testing.assert_allclose(trace.merged_weights, expected.fine.weights[0], rtol=1e-6)


def test_most_fine_samples_lie_at_the_leaf_and_the_wall(tool):
    plot_sampling = tool("plot_sampling")
    trace = plot_sampling.built_in_trace()
    at_leaf = np.abs(trace.fine_t - plot_sampling.LEAF) < 0.5
    at_wall = np.abs(trace.fine_t - plot_sampling.WALL) < 0.5
    assert at_leaf.sum() >= 7
    assert at_wall.sum() >= 7
    assert (at_leaf | at_wall).mean() >= 0.85


def test_plot_sampling_writes_its_picture(tool, tmp_path, capsys):
    out = tmp_path / "new" / "sampling.png"
    assert tool("plot_sampling").main(["--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert_picture(out, 1080, 1380)


@pytest.fixture
def trained(tmp_path):
    """Arguments that name the Blender scene and a small network with fresh weights."""
    text = (
        "expname = tiny\nbasedir = {}\ndataset_type = blender\nuse_viewdirs = True\nN_samples = 8\nN_importance = 6\n"
        "netdepth = 2\nnetwidth = 8\nnetdepth_fine = 2\nnetwidth_fine = 8\ntestskip = 1\n"
    )
    (tmp_path / "tiny.txt").write_text(text.format(tmp_path / "logs"), encoding="utf-8")
    arguments = ["--config", str(tmp_path / "tiny.txt"), "--datadir", str(SCENES / "blender")]
    settings = parsing.parse_settings(arguments)
    weights = tmp_path / "model_000007.npy"
    for fine, path in ((False, weights), (True, tf1_weights.fine_path(weights))):
        tf1_weights.save(path, build_mlp(build.field_settings(settings, fine), 3).get_weights())
    return [*arguments, "--weights", str(weights), "--out", str(tmp_path / "ray.png")]


def test_plot_sampling_draws_a_ray_of_a_trained_network(tool, trained, tmp_path):
    assert tool("plot_sampling").main([*trained, "--view", "1", "--pixel", "2", "3"]) == 0
    assert_picture(tmp_path / "ray.png", 1080, 1380)


def test_plot_sampling_names_the_views_and_pixels_there_are(tool, trained, tmp_path, capsys):
    assert tool("plot_sampling").main([*trained, "--view", "5"]) == 1
    assert "test views 0 to 4" in capsys.readouterr().err
    assert tool("plot_sampling").main([*trained, "--pixel", "0", "1000"]) == 1
    assert "columns" in capsys.readouterr().err
    assert not (tmp_path / "ray.png").exists()


def test_frustum_of_a_camera_at_the_origin(tool):
    camera = Camera.centred(40, 80, 20.0)
    corners = tool("support.camera_drawing").frustum(camera, np.eye(4)[:3], 0.5)
    expected = [[0, 0, 0], [-1, 0.5, -0.5], [1, 0.5, -0.5], [1, -0.5, -0.5], [-1, -0.5, -0.5]]
    np.testing.assert_allclose(corners, expected, atol=1e-6)


def test_drawn_samples_in_space_and_in_ndc_are_the_same_points(tool):
    plot_cameras = tool("plot_cameras")
    camera = Camera.centred(30, 40, 25.0)
    c2w = pose_maths.look_at([0.1, -0.05, 1.0], [0.0, 1.0, 0.0], [0.3, -0.2, 0.1])
    cols, t_vals = np.array([0.0, 13.0, 40.0]), np.array([0.0, 0.25, 0.5, 0.9])
    x, y, z = np.moveaxis(plot_cameras.metric_samples(camera, c2w, cols, t_vals), -1, 0)
    np.testing.assert_allclose(-1.0 / z, np.tile(1.0 - t_vals, (3, 1)), rtol=1e-4)
    # Appendix C's projection of a point, with the near plane at 1.
    projected = np.stack([-25.0 / 20.0 * x / z, -25.0 / 15.0 * y / z, 1.0 + 2.0 / z], axis=-1)
    np.testing.assert_allclose(plot_cameras.ndc_samples(camera, c2w, cols, t_vals), projected, atol=2e-5)
    at_infinity = plot_cameras.ndc_samples(camera, c2w, cols, np.array([1.0]))
    np.testing.assert_allclose(at_infinity[..., 2], 1.0, atol=1e-6)


def test_axis_conventions_say_what_the_columns_are(tool):
    meaning = {"right": [1, 0, 0], "down": [0, -1, 0], "up": [0, 1, 0], "back": [0, 0, 1], "forward": [0, 0, -1]}
    for words, convert in tool("plot_cameras").CONVENTIONS.values():
        np.testing.assert_array_equal(convert(np.eye(4)[:3])[:, :3].T, [meaning[word] for word in words])


@pytest.mark.parametrize(
    ("arguments", "height"),
    [
        (["--datadir", str(SCENES / "llff")], 1320),
        (["--datadir", str(SCENES / "llff"), "--spherify"], 720),
        (["--dataset_type", "blender", "--datadir", str(SCENES / "blender")], 720),
        (["--dataset_type", "deepvoxels", "--datadir", str(SCENES / "deepvoxels"), "--testskip", "2"], 720),
        (["--axes"], 504),
    ],
)
def test_plot_cameras_writes_its_picture(tool, tmp_path, arguments, height):
    out = tmp_path / "cameras.png"
    assert tool("plot_cameras").main([*arguments, "--out", str(out)]) == 0
    assert_picture(out, 1440, height)


def test_plot_cameras_says_what_is_missing(tool, tmp_path, capsys):
    assert tool("plot_cameras").main(["--datadir", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 1
    assert str(tmp_path / "poses_bounds.npy") in capsys.readouterr().err


def write_run(basedir: Path, name: str, values: dict[int, float]) -> Path:
    with tf.summary.create_file_writer(str(basedir / "summaries" / name)).as_default():
        for step, value in values.items():
            tf.summary.scalar("psnr", value, step=step)
            tf.summary.scalar("loss", 10 ** (-value / 10), step=step)
            tf.summary.scalar("psnr_holdout", value - 1.0, step=step)
    (basedir / name).mkdir(exist_ok=True)
    return basedir / name


def test_curves_are_the_scalars_written_and_a_resumed_run_counts_last(tmp_path):
    run = write_run(tmp_path, "run", {0: 10.0, 100: 15.0, 200: 99.0})
    write_run(tmp_path, "run", {200: 20.0, 300: 22.0})
    curves = curve.History(summaries_folder(run)).curves()
    np.testing.assert_array_equal(curves["psnr"][0], [0, 100, 200, 300])
    np.testing.assert_allclose(curves["psnr"][1], [10.0, 15.0, 20.0, 22.0])
    np.testing.assert_allclose(curves["psnr_holdout"][1], [9.0, 14.0, 19.0, 21.0])


def test_history_before_a_step_and_of_a_file_cut_short(tmp_path):
    write_run(tmp_path, "run", {step: float(step) for step in range(0, 500, 100)})
    folder = tmp_path / "summaries" / "run"
    assert list(curve.History(folder, before=300).curves()["psnr"][0]) == [0, 100, 200]
    assert curve.History(folder, before=0).curves() == {}
    (events,) = folder.iterdir()
    events.write_bytes(events.read_bytes()[:-20])
    assert list(curve.History(folder).curves()["psnr"][0]) == [0, 100, 200, 300, 400]
    assert list(curve.History(folder).curves()["psnr_holdout"][0]) == [0, 100, 200, 300]


def test_what_another_program_calls_loss_is_no_matter(tmp_path):
    write_run(tmp_path, "run", {0: 10.0})
    folder = tmp_path / "summaries" / "run"
    with tf.summary.create_file_writer(str(folder), filename_suffix=".other").as_default():
        tf.summary.histogram("loss", [1.0, 2.0], step=1)
        tf.summary.text("psnr", "high", step=2)
        tf.summary.scalar("psnr", 11.0, step=3)
    curves = curve.History(folder).curves()
    assert {tag: list(steps) for tag, (steps, _) in curves.items()} == {
        "loss": [0],
        "psnr": [0, 3],
        "psnr_holdout": [0],
    }


def test_event_files_that_are_none_are_left_out(tmp_path, caplog):
    write_run(tmp_path, "run", {0: 10.0})
    folder = tmp_path / "summaries" / "run"
    (whole,) = folder.iterdir()
    (folder / "events.out.tfevents.1").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "events.out.tfevents.2")
    (folder / "events.out.tfevents.3").write_bytes(whole.read_bytes()[:30] + b"nonsense")
    with tf.io.TFRecordWriter(str(folder / "events.out.tfevents.4")) as writer:
        writer.write(b"no event at all")
    with tf.io.TFRecordWriter(str(folder / "events.out.tfevents.5")) as writer:
        event = event_pb2.Event(step=7)
        tensor = event.summary.value.add(tag="loss").tensor
        tensor.CopyFrom(tf.make_tensor_proto(1.0))
        tensor.tensor_shape.dim.add(size=10**15)
        writer.write(event.SerializeToString())
    assert {tag: list(steps) for tag, (steps, _) in curve.History(folder).curves().items()} == {
        "loss": [0],
        "psnr": [0],
        "psnr_holdout": [0],
    }
    assert "events.out.tfevents.4: the rest is left out (" in caplog.text


def test_a_curve_that_cannot_be_drawn_is_an_error_of_its_file(tmp_path, monkeypatch):
    def stumble(runs):
        raise RuntimeError("no font")

    file = curve.CurveFile(tmp_path / "curve.png", tmp_path / "summaries" / "run", start=0)
    file.add(0, loss=0.1)
    monkeypatch.setattr(curve, "draw_curves", stumble)
    with pytest.raises(OSError, match=r"curve.png: cannot be drawn \(no font\)"):
        file.write()
    assert list(tmp_path.iterdir()) == []


def test_a_curve_goes_on_where_an_earlier_run_stopped(tmp_path):
    write_run(tmp_path, "run", {0: 10.0, 100: 12.0, 200: 99.0})
    file = curve.CurveFile(tmp_path / "run" / "curve.png", tmp_path / "summaries" / "run", start=150)
    file.add(200, loss=0.1, psnr=tf.constant(13.0), other=1.0)
    steps, values = file.curves()["psnr"]
    np.testing.assert_allclose([steps, values], [[0, 100, 200], [10, 12, 13]])
    file.write()
    assert_picture(tmp_path / "run" / "curve.png", 1320, 504)


def test_a_curve_without_matplotlib_says_so_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level("INFO"):
        file = curve.CurveFile(tmp_path / "curve.png", tmp_path / "summaries" / "run", start=0)
        file.add(0, loss=0.1)
        file.write()
        file.write()
    assert [record.getMessage() for record in caplog.records] == [
        "no curve.png while training: drawing needs matplotlib: pip install -e '.[plots]'"
    ]
    assert list(tmp_path.iterdir()) == []


def test_smoothing_keeps_lines_and_quiets_noise():
    smooth = curve.smooth
    line = np.linspace(3.0, 7.0, 101)
    np.testing.assert_allclose(smooth(line), line, rtol=1e-12)
    np.testing.assert_allclose(smooth(np.array([4.0])), [4.0])
    noise = np.random.default_rng(0).normal(size=400)
    assert smooth(noise).std() < 0.3 * noise.std()
    gap = np.where(np.arange(101) == 50, np.nan, 1.0)
    np.testing.assert_allclose(smooth(gap), 1.0)


def test_plot_curve_draws_several_runs_into_the_first_ones_folder(tool, tmp_path, capsys):
    values = {step: 20.0 - 10.0 * 0.9**step for step in range(30)}
    runs = [write_run(tmp_path, name, values) for name in ("first", "second")]
    assert tool("plot_curve").main([str(run) for run in runs]) == 0
    assert capsys.readouterr().out == f"{runs[0] / 'curve.png'}\n"
    assert_picture(runs[0] / "curve.png", 1320, 504)


def test_plot_curve_says_where_it_looked(tool, tmp_path, capsys):
    assert tool("plot_curve").main([str(tmp_path / "nothing")]) == 1
    assert str(tmp_path / "summaries" / "nothing") in capsys.readouterr().err


def test_missing_matplotlib_names_the_remedy(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert tool("plot_cameras").main(["--axes", "--out", str(tmp_path / "axes.png")]) == 1
    assert "pip install -e '.[plots]'" in capsys.readouterr().err


def test_scaling_follows_the_ring(tool, tmp_path: Path, capsys: pytest.CaptureFixture):
    scaling = tool("plot_scaling")
    link = scaling.Link("x", bandwidth=1.0, latency=100.0)
    # 4 GPUs: 1.5 times 2 MB at 1 MB/ms, and 6 hops of 0.1 ms.
    assert scaling.all_reduce_ms(2.0, 4, link) == pytest.approx(3.6)
    step = scaling.Step(milliseconds=10.0, fixed=2.0, megabytes=2.0)
    assert scaling.efficiency(step, 1, link, together=True) == scaling.efficiency(step, 1, link, together=False) == 1.0
    assert scaling.efficiency(step, 4, link, together=False) == pytest.approx(10 / 13.6)
    assert scaling.efficiency(step, 4, link, together=True) == pytest.approx(10 / (4 * (2 + 2 + 3.6)))
    path = tmp_path / "scaling.png"
    assert scaling.main(["--step_ms=10", "--megabytes=2", f"--out={path}"]) == 0
    assert_picture(path, 1080, 432)
    assert capsys.readouterr().out.endswith(f"{path}\n")
    with pytest.raises(SystemExit):
        scaling.main(["--step_ms=1", "--fixed_ms=2", "--megabytes=2"])
