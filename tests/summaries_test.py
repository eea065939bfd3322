"""TensorBoard summaries of a run."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image as PILImage
from tensorboard.backend.event_processing import plugin_event_accumulator  # what TensorBoard's page is made from
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from view_files_test import make_image

from nerf_tf.output.summaries import Summaries


def read_summaries(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def scalars(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]


def image_summary(events: EventAccumulator, tag: str) -> np.ndarray:
    (event,) = events.Tensors(tag)
    width, height, *pngs = tf.make_ndarray(event.tensor_proto)
    assert len(pngs) == 1
    image = np.asarray(PILImage.open(io.BytesIO(pngs[0])))
    assert image.shape[:2] == (int(height), int(width))
    return image


def test_scalars_and_histograms(tmp_path):
    summaries = Summaries(tmp_path / "summaries")
    for step in (0, 100):
        summaries.write_histogram(step, "tran", tf.range(6.0) + step)
        summaries.write_scalars(step, loss=tf.constant(0.5 + step), psnr=3, psnr0=None)
    events = read_summaries(tmp_path / "summaries")  # complete while the run is still on
    assert sorted(events.Tags()["tensors"]) == ["loss", "psnr", "tran"]
    assert scalars(events, "loss") == [(0, 0.5), (100, 100.5)]
    assert scalars(events, "psnr") == [(0, 3.0), (100, 3.0)]
    first, second = (tf.make_ndarray(event.tensor_proto) for event in events.Tensors("tran"))  # [left, right, count]
    assert first[:, 2].sum() == 6
    assert (first[0, 0], first[-1, 1]) == (0.0, 5.0)
    assert (second[0, 0], second[-1, 1]) == (100.0, 105.0)


def test_a_view_beside_its_photo(tmp_path):
    image, photo = make_image(0), make_image(1).rgb
    Summaries(tmp_path).write_view(20, image, photo)
    events = read_summaries(tmp_path)
    assert sorted(events.Tags()["tensors"]) == ["acc", "disp", "disp0", "rgb", "rgb0", "rgb_holdout", "z_std"]
    assert events.Tensors("rgb")[0].step == 20
    expected = {"rgb": image.rgb, "rgb0": image.rgb0, "rgb_holdout": photo, "acc": image.acc}
    for tag, values in expected.items():
        np.testing.assert_array_equal(image_summary(events, tag), np.floor(255 * values))
    for tag, values in {"disp": image.disp, "disp0": image.disp0, "z_std": image.z_std}.items():
        np.testing.assert_allclose(image_summary(events, tag), 255 * values / values.max(), atol=1)


def test_a_view_without_a_fine_network(tmp_path):
    Summaries(tmp_path).write_view(0, make_image(0, fine=False), make_image(1).rgb)
    assert sorted(read_summaries(tmp_path).Tags()["tensors"]) == ["acc", "disp", "rgb", "rgb_holdout"]


def test_tensorboard_shows_one_curve_after_steps_are_done_again(tmp_path):
    for first_step, last_step in [(0, 5), (3, 4), (2, 6)]:
        summaries = Summaries(tmp_path, first_step)
        for step in range(first_step, last_step):
            summaries.write_scalars(step, loss=10 * first_step + step)
    events = plugin_event_accumulator.EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    assert scalars(events, "loss") == [(0, 0), (1, 1), (2, 22), (3, 23), (4, 24), (5, 25)]
