"""docs/nerf_in_200_lines.ipynb: its code learns and computes what the package does, and was saved with its pictures."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nerf_tf.field import encoding
from nerf_tf.geometry import paths, rays
from nerf_tf.geometry.camera import Camera
from nerf_tf.render import sampling, volume

NOTEBOOK = Path(__file__).parent.parent / "docs" / "nerf_in_200_lines.ipynb"
SIZE = 20


def code_cells() -> list[dict]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """What its cells define on a small scene in a few steps; `shown` are its pictures."""
    shown = []
    names = {"display": lambda picture, **_: shown.append(picture)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(NOTEBOOK.parent)  # where Jupyter starts it
        patch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
        for number, cell in enumerate(code_cells()):
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
            if number == 0:
                names["SCENE"] = tmp_path_factory.mktemp("notebook") / "scene"
                names |= {"SIZE": SIZE, "PHOTOS": 6, "STEPS": 100, "RAYS": 64, "COARSE": 16, "FINE": 16, "FRAMES": 3}
    plt.close("all")
    return SimpleNamespace(**{name: value for name, value in names.items() if name.isidentifier()}, shown=shown)


def test_it_learns(notebook):
    assert np.mean(notebook.losses[-20:]) < 0.5 * np.mean(notebook.losses[:5])
    white = [-10 * np.log10(np.mean((1 - photo) ** 2)) for photo in notebook.test_photos]
    assert np.mean(notebook.scores) > np.mean(white) + 2


def test_it_shows_pictures_and_a_video(notebook):
    *pictures, video = [picture for picture in notebook.shown if not isinstance(picture, plt.Figure)]
    assert [picture.size for picture in pictures] == [(count * SIZE, SIZE) for count in (6, 4, 3, 3, 3, 3)]
    with Image.open(io.BytesIO(base64.b64decode(video["image/png"]))) as frames:
        assert (frames.n_frames, frames.size) == (3, (2 * SIZE, SIZE))
    assert len(notebook.shown) == len(pictures) + 1 + 2  # figures


def test_it_computes_what_the_package_computes(notebook):
    rng = np.random.default_rng(0)
    c2w = notebook.poses[0].astype(np.float32)
    rows, cols = np.mgrid[:SIZE, :SIZE].reshape(2, -1)
    camera = Camera.centred(SIZE, SIZE, notebook.focal)
    for mine, theirs in zip(notebook.camera_rays(c2w), rays.pixel_rays(camera, c2w, rows, cols), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    directions = notebook.directions[:5]
    np.testing.assert_allclose(
        notebook.positional_encoding(tf.constant(directions), 4), encoding.positional_encoding(directions, 4), atol=1e-6
    )

    t_vals = np.sort(rng.uniform(2, 6, (5, 9)).astype(np.float32))
    raw = rng.normal(size=(5, 9, 4)).astype(np.float32)
    colour, depth, opacity, weights = notebook.volume_render(
        tf.sigmoid(raw[..., :3]), tf.nn.relu(raw[..., 3]), tf.constant(t_vals), tf.constant(directions)
    )
    expected = volume.volume_render(raw, t_vals, directions, white_bkgd=True)
    np.testing.assert_allclose(colour, expected.rgb, atol=1e-6)
    np.testing.assert_allclose(depth, expected.depth, atol=1e-5)
    np.testing.assert_allclose(opacity, expected.acc, atol=1e-6)
    np.testing.assert_allclose(weights, expected.weights, atol=1e-6)

    u = rng.uniform(size=(5, 7)).astype(np.float32)
    drawn = notebook.sample_pdf(tf.constant(t_vals), weights, u)
    np.testing.assert_allclose(drawn, sampling.add_fine_samples(t_vals, weights, u)[1], atol=1e-5)
    orbit = paths.spherical_pose(-np.degrees(0.3) - 180, -np.degrees(0.5), 4.0)
    np.testing.assert_allclose(notebook.orbit_pose(0.3, elevation=0.5), orbit, atol=1e-6)


def test_it_is_short_and_stands_alone():
    code = [line for cell in code_cells() for line in "".join(cell["source"]).splitlines() if line.strip()]
    assert len(code) <= 200
    assert not any("nerf_tf" in line for line in code)


def test_it_was_saved_as_it_ran():
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    text = "".join("".join(output.get("text", "")) for cell in cells for output in cell["outputs"])
    assert float(text.partition("mean PSNR of the test views: ")[2].split()[0]) > 26.0
    assert "/" not in text  # no path of the machine it ran on
    assert NOTEBOOK.stat().st_size < 1_000_000
