"""Meshes and point clouds of trained scenes, against exact shapes in the data set's coordinates."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nerf_tf.captures.worlds import transform_points
from nerf_tf.data import blender, deepvoxels, llff
from nerf_tf.data.scene import Scene
from nerf_tf.field.mlp import FieldSettings, build_mlp
from nerf_tf.geometry import paths
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.camera import Camera
from nerf_tf.render.passes import RenderSettings
from nerf_tf.render.renderer import Renderer
from nerf_tf.storage import tf1_weights

trimesh = pytest.importorskip("trimesh", reason="meshes need trimesh: pip install -e '.[mesh]'")
pytest.importorskip("skimage", reason="meshes need scikit-image: pip install -e '.[mesh]'")

SCENES = Path(__file__).parent / "data" / "portable" / "scenes"
RADIUS, THRESHOLD = 0.8, 10.0
CENTRE = np.array([0.1, -0.2, 0.05])
SIMILARITY = np.array([[0, -2.5, 0, 1], [2.5, 0, 0, -2], [0, 0, 2.5, 3], [0, 0, 0, 1.0]])


def a_scene(poses: np.ndarray, near: float, far: float, ndc: bool, to_dataset: np.ndarray) -> Scene:
    camera, count = Camera.centred(20, 20, 24.0), len(poses)
    views, none = np.arange(count), np.arange(0)
    images = np.zeros([count, 20, 20, 3], np.float32)
    poses = poses.astype(np.float32)
    return Scene(images, poses, (camera,) * count, near, far, ndc, views, none, none, poses, to_dataset)


def around(to_dataset: np.ndarray) -> Scene:
    """Eight cameras at distance 4 from the origin, and one that looks elsewhere."""
    poses = [paths.spherical_pose(theta, phi, 4.0) for phi in (-40, 30) for theta in (0, 90, 180, 270)]
    away = pose_maths.look_at([0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 12.0, 0.0])
    return a_scene(np.stack([*poses, away]), 2.0, 6.0, False, to_dataset)


def ball(centre: np.ndarray, radius: float, slope: float = 200.0, into_world=lambda points: points):
    """A field: a sphere on which density is THRESHOLD and grows inwards by `slope`, coloured by the view direction."""

    def field(points: tf.Tensor, viewdirs: tf.Tensor, *_: object) -> tf.Tensor:
        offsets = into_world(points) - tf.constant(centre, tf.float32)
        sigma = THRESHOLD + slope * (radius - tf.norm(offsets, axis=-1, keepdims=True))
        return tf.concat([tf.broadcast_to(-3.0 * viewdirs[:, None], tf.shape(points)), sigma], axis=-1)

    return field


def run_on(tool, scene: Scene, field, samples: int = 64):
    """What the tools load, for a field that is a formula."""
    renderer = Renderer(field, None, RenderSettings(N_samples=samples), scene.near, scene.far, scene.ndc)
    return tool("support.run_loading").LoadedRun(None, scene, renderer)


def arguments(out: Path, **changed: object) -> argparse.Namespace:
    values = {"resolution": 40, "threshold": THRESHOLD, "bounds": None, "min_seen": 0.5, "min_part": 0.0, "out": out}
    return argparse.Namespace(**(values | changed))


@pytest.mark.parametrize("to_dataset", [np.eye(4), SIMILARITY])
@pytest.mark.parametrize("ending", [".ply", ".obj", ".glb"])
def test_mesh_of_a_ball_is_a_sphere_in_the_data_sets_coordinates(tool, tmp_path, ending, to_dataset):
    run = run_on(tool, around(to_dataset), ball(CENTRE, RADIUS))
    out = tmp_path / "new" / f"ball{ending}"
    tool("extract_mesh").extract(run, arguments(out))
    mesh = trimesh.load(out, process=False, force="mesh")
    scale = np.cbrt(np.linalg.det(to_dataset[:3, :3]))
    from_centre = mesh.vertices - transform_points(to_dataset, CENTRE)
    np.testing.assert_allclose(np.linalg.norm(from_centre, axis=-1), scale * RADIUS, rtol=2e-3)
    # Turned inside out its volume would be negative.
    assert mesh.is_watertight or ending == ".obj"
    np.testing.assert_allclose(mesh.volume, 4 / 3 * np.pi * (scale * RADIUS) ** 3, rtol=0.01)
    # Seen straight on a point shows the colour for the direction that its normal, in the loaded world, is against.
    outward = from_centre @ to_dataset[:3, :3] / (scale**2 * RADIUS)
    expected = 255 / (1 + np.exp(-3.0 * outward))
    np.testing.assert_allclose(mesh.visual.vertex_colors[:, :3], expected, atol=12)
    assert len(mesh.vertices) > 2000
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_mesh_leaves_ndc(tool, tmp_path):
    poses = np.stack([np.eye(3, 4), np.eye(3, 4), np.eye(3, 4)])
    poses[:, 0, 3] = [-0.3, 0.0, 0.3]
    scene = a_scene(poses, 0.0, 1.0, True, SIMILARITY)
    centre, radius = np.array([0.2, -0.1, -4.0]), 1.0

    def into_world(points: tf.Tensor) -> tf.Tensor:
        z = 2.0 / (points[..., 2:] - 1.0)
        return tf.concat([-points[..., :2] * z * 20 / 48, z], axis=-1)

    out = tmp_path / "ball.ply"
    tool("extract_mesh").extract(
        run_on(tool, scene, ball(centre, radius, 10.0, into_world)),
        arguments(out, resolution=64, bounds=[-1] * 3 + [1, 1, 0.9]),
    )
    mesh = trimesh.load(out, process=False)
    from_centre = (mesh.vertices - transform_points(SIMILARITY, centre)) / 2.5
    np.testing.assert_allclose(np.linalg.norm(from_centre, axis=-1), radius, rtol=0.02)
    np.testing.assert_allclose(mesh.volume, 4 / 3 * np.pi * 2.5**3, rtol=0.03)


def test_what_few_cameras_see_is_left_out_and_the_box_closes_around_the_rest(tool, tmp_path):
    extract_mesh = tool("extract_mesh")
    scene, haze = around(np.eye(4)), np.array([0.0, 8.5, 0.0])

    def field(points: tf.Tensor, viewdirs: tf.Tensor, *_: object) -> tf.Tensor:
        return tf.maximum(ball(CENTRE, RADIUS)(points, viewdirs), ball(haze, RADIUS)(points, viewdirs))

    half = extract_mesh.extract(run_on(tool, scene, field), arguments(tmp_path / "half.ply"))
    assert half.vertices[:, 1].max() < 1.0
    once = extract_mesh.extract(run_on(tool, scene, field), arguments(tmp_path / "once.ply", min_seen=0.0))
    assert once.vertices[:, 1].max() > 9.0
    # As many grid points went along the ball alone as along all of it.
    assert len(half.vertices) > 10 * len(once.vertices)


def test_small_parts_can_be_left_out(tool):
    extract_mesh = tool("extract_mesh")
    grid = extract_mesh.make_grid(np.full(3, -1.0), np.full(3, 1.0), 41)
    points = np.stack(np.meshgrid(*3 * [np.linspace(-1.0, 1.0, 41)], indexing="ij"), axis=-1)

    def ball_at(x: float, radius: float) -> np.ndarray:
        return THRESHOLD + 200.0 * (radius - np.linalg.norm(points - [x, 0.0, 0.0], axis=-1))

    density = np.maximum(ball_at(-0.4, 0.5), ball_at(0.7, 0.15)).clip(0.0).astype(np.float32)
    space = extract_mesh.Space(around(np.eye(4)), 0.5)
    both, large = (extract_mesh.find_surface(density, grid, space, THRESHOLD, part) for part in (0.0, 0.2))
    assert both.vertices[:, 0].max() > 0.8
    assert large.vertices[:, 0].max() == pytest.approx(0.1, abs=0.02)
    assert 0.8 * len(both.faces) < len(large.faces) < len(both.faces)
    assert set(large.faces.reshape(-1)) == set(range(len(large.vertices)))
    offsets = large.vertices - np.array([-0.4, 0.0, 0.0])
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=-1), 0.5, atol=0.02)
    assert np.sum(large.normals * offsets, axis=-1).min() > 0


def test_views_that_see_a_point(tool):
    scene = around(SIMILARITY)
    points = transform_points(SIMILARITY, [[0, 0, 0], [0, 8, 0], [0, 0, 30], [0, 11.5, 0]])
    seen = {part: tool("extract_mesh").Space(scene, part).seen(points).tolist() for part in (0.0, 0.5, 8 / 9, 1.0)}
    assert seen[0.0] == [True, True, False, False]  # beyond far; nearer than near
    assert seen[0.5] == seen[8 / 9] == [True, False, False, False]
    assert seen[1.0] == [False] * 4


def test_grid_has_cubic_cells_over_the_whole_box(tool):
    grid = tool("extract_mesh").make_grid(np.array([-1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.3]), 21)
    assert grid.shape == (21, 11, 4)
    np.testing.assert_allclose(grid.step, 0.1)


def test_a_jump_in_density_has_its_surface_half_way(tool):
    extract_mesh = tool("extract_mesh")
    density = np.zeros([4, 4, 4], np.float32)
    density[2:] = 1e5
    grid, space = extract_mesh.Grid(np.zeros(3), 1.0, density.shape), extract_mesh.Space(around(np.eye(4)), 0.5)
    surface = extract_mesh.find_surface(density, grid, space, THRESHOLD)
    np.testing.assert_allclose(surface.vertices[:, 0], 1.5)
    np.testing.assert_allclose(surface.normals, np.tile([-1.0, 0, 0], [len(surface.normals), 1]), atol=1e-6)


# From flags to files, with networks whose weights are set by hand


def octahedron(path: Path, slope: float, centre: np.ndarray) -> list[str]:
    """Writes the weights of a network with density slope * (1 - |x| - |y| - |z|) and colour sigmoid(4 x), sigmoid(4 y),
    sigmoid(4 z), for x, y, z counted from `centre`; returns the flags that it needs."""
    mlp = build_mlp(FieldSettings(depth=2, width=6, multires=0, multires_views=0), 0)
    signs = np.concatenate([np.eye(3), -np.eye(3)], axis=1)  # [3, 6]: the parts of each coordinate above and below 0
    raw = np.concatenate([4 * signs.T, np.full([6, 1], -slope)], axis=1)
    mlp.set_weights([signs, -centre @ signs, np.eye(6), np.zeros(6), raw, np.array([0, 0, 0, slope])])
    tf1_weights.save(path, mlp.get_weights())
    network = ["--netdepth=2", "--netwidth=6", "--i_embed=-1", "--use_viewdirs=False", "--N_importance=0"]
    return [f"--ft_path={path}", *network, "--expname=o", f"--basedir={path.parent}"]


SCENE_OF = {
    "blender": lambda: blender.load(SCENES / "blender", testskip=0),
    "llff": lambda: llff.load(SCENES / "llff", factor=2, no_ndc=True),
    "deepvoxels": lambda: deepvoxels.load(SCENES / "deepvoxels", "greek", testskip=0),
}
FLAGS_OF = {
    "blender": ["--testskip=0"],
    "llff": ["--factor=2", "--no_ndc", "--near=0.1", "--far=9"],
    "deepvoxels": ["--testskip=0", "--shape=greek", "--render_factor=32"],
}


def dataset(kind: str) -> list[str]:
    return [f"--dataset_type={kind}", f"--datadir={SCENES / kind}", *FLAGS_OF[kind]]


def before_first_camera(scene: Scene) -> np.ndarray:
    """A point [3] that the first training camera looks at."""
    c2w = scene.poses[scene.i_train[0]].astype(np.float64)
    return c2w[:, 3] - c2w[:, 2] * (4.0 if scene.near < 1.5 else (scene.near + scene.far) / 2)


def test_extract_mesh_from_weights_and_flags(tool, tmp_path, capsys):
    flags_of_run = [*octahedron(tmp_path / "model_000007.npy", 50.0, np.zeros(3)), *dataset("blender"), "--white_bkgd"]
    out = tmp_path / "o.ply"
    box = ["--bounds", "-1.2", "-1.2", "-1.2", "1.2", "1.2", "1.2"]
    tool("extract_mesh").main([*flags_of_run, "--resolution=49", "--threshold=10", *box, "--out", str(out)])
    assert capsys.readouterr().out == f"{out}\n"
    mesh = trimesh.load(out, process=False)
    # Density is linear in each octant, so marching cubes is exact; only the edges between octants are cut off.
    assert np.abs(np.abs(mesh.vertices).sum(axis=1) - 0.8).max() < 1e-5
    np.testing.assert_allclose(mesh.volume, 4 / 3 * 0.8**3, rtol=0.01)
    expected = 255 / (1 + np.exp(-4 * mesh.vertices))
    np.testing.assert_allclose(mesh.visual.vertex_colors[:, :3], expected, atol=1.1)


def test_extract_mesh_from_a_run_folder(tool, tmp_path):
    scene = SCENE_OF["llff"]()
    centre = before_first_camera(scene)
    flags_of_run = [*octahedron(tmp_path / "o" / "model_000007.npy", 50.0, centre)[1:], *dataset("llff")]
    lines = [word.removeprefix("--") if "=" in word else f"{word.removeprefix('--')}=True" for word in flags_of_run]
    (tmp_path / "o" / "args.txt").write_text("\n".join([*lines, "basedir=moved", "ft_path=other.npy"]))
    out = tmp_path / "o.ply"
    words = ["--threshold=10", str(tmp_path / "o"), "--resolution=60", "--min_seen=0.2"]
    assert tool("extract_mesh").main([*words, "--out", str(out)]) == 0
    vertices = transform_points(np.linalg.inv(scene.to_dataset), trimesh.load(out, process=False).vertices) - centre
    assert np.abs(np.median(np.abs(vertices).sum(axis=1)) - 0.8) < 1e-3


def test_extract_mesh_says_what_is_wrong_in_one_line(tool, tmp_path, capsys, monkeypatch):
    out = tmp_path / "o.ply"
    words = [
        *octahedron(tmp_path / "model_000007.npy", 50.0, np.zeros(3)),
        *dataset("blender"),
        "--resolution=9",
        f"--out={out}",
    ]

    def complaint(*more: str) -> str:
        assert tool("extract_mesh").main([*words, *more]) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("extract_mesh: ")]
        assert len(lines) == 1
        assert not out.exists()
        return lines[0]

    line = complaint("--threshold=60")
    assert "--threshold 60" in line
    assert "from 0 to " in line
    assert "no_such.npy" in complaint("--ft_path=no_such.npy")
    monkeypatch.setitem(sys.modules, "trimesh", None)
    assert "pip install -e '.[mesh]'" in complaint()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out=mesh.stl"], ".ply, .obj, .glb"),
        (["--resolution=1"], "at least 2"),
        (["--threshold=0"], "above 0"),
        (["--min_seen=2"], "from 0 to 1"),
        (["--min_part=0.6"], "from 0 to 0.5"),
        (["--bounds", "0", "0", "0", "1", "-1", "1"], "expected the lower corner"),
    ],
)
def test_extract_mesh_checks_its_own_arguments(tool, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        tool("extract_mesh").main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", list(SCENE_OF))
def test_exported_points_lie_on_what_is_there(tool, tmp_path, capsys, kind):
    scene = SCENE_OF[kind]()
    centre = before_first_camera(scene)
    words = [*octahedron(tmp_path / "model_000007.npy", 1e5, centre), *dataset(kind), "--N_samples=400"]
    out = tmp_path / "points3d.ply"
    assert tool("export_points").main([*words, "--views=1", f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    cloud = trimesh.load(out)
    assert isinstance(cloud, trimesh.PointCloud)
    assert len(cloud.vertices) > 4
    points = transform_points(np.linalg.inv(scene.to_dataset), cloud.vertices) - centre
    assert np.abs(np.abs(points).sum(axis=1) - 1).max() < 0.06
    np.testing.assert_allclose(cloud.colors[:, :3], 255 / (1 + np.exp(-4 * points)), atol=6)


def test_depth_is_in_the_files_units(tool, tmp_path):
    scene = SCENE_OF["llff"]()
    centre = before_first_camera(scene)  # at depth 4
    words = [*octahedron(tmp_path / "model_000007.npy", 1e5, centre), *dataset("llff"), "--N_samples=400"]
    view = scene.i_train[0]
    camera = dataclasses.replace(scene.cameras[view], height=1, width=1, cx=0.0, cy=0.0)
    image = tool("support.run_loading").load_run(words).renderer.image(camera, scene.poses[view])
    back = scene.poses[view][:, 2]
    expected = (4 - 1 / np.abs(back).sum()) * scene.unit
    assert abs(scene.unit - 1) > 0.1
    np.testing.assert_allclose([image.depth_z, image.depth_ray], expected, rtol=0.01)


def test_points3d_has_the_columns_that_other_programs_look_for(tool, tmp_path):
    points, colours = np.array([[1.5, -2, 3], [4, 5, 6]]), np.array([[1, 2, 3], [253, 254, 255]], np.uint8)
    tool("export_points").write_points(tmp_path / "points3d.ply", points, colours)
    data = (tmp_path / "points3d.ply").read_bytes()
    names = [line.split()[-1] for line in data.split(b"end_header")[0].decode().splitlines() if "property" in line]
    assert names == ["x", "y", "z", "nx", "ny", "nz", "red", "green", "blue"]
    cloud = trimesh.load(tmp_path / "points3d.ply")
    np.testing.assert_array_equal(cloud.vertices, points)
    np.testing.assert_array_equal(cloud.colors[:, :3], colours)


def test_points_between_an_edge_and_what_is_behind_it_are_dropped(tool):
    depths = np.full([5, 5], 4.0)
    depths[:, 3:] = 6.0
    depths[:, 2] = 5.0  # half of both
    depths[0] = np.nan
    dropped = tool("export_points").in_mid_air(depths, 0.03)
    expected = np.zeros([5, 5], bool)
    expected[1:, 2] = True
    np.testing.assert_array_equal(dropped, expected)
    slope = np.tile(np.linspace(4.0, 4.3, 5), [5, 1])
    assert not tool("export_points").in_mid_air(slope, 0.03).any()
    rod = np.where(np.arange(5) == 2, 3.0, 4.0) * np.ones([5, 1])
    assert not tool("export_points").in_mid_air(rod, 0.03).any()


def test_export_points_says_what_is_wrong(tool, tmp_path, capsys):
    scene = around(np.eye(4))
    nothing = run_on(tool, scene, lambda points, *_: tf.zeros([*points.shape[:2], 4]), 4).renderer
    collect = tool("export_points").collect_points
    with pytest.raises(ValueError, match=r"--min_acc 0\.9: lower it"):
        collect(nothing, scene, [camera.downscaled(4) for camera in scene.cameras], 2, 0.9, 0.03)
    words = [*octahedron(tmp_path / "model_000007.npy", 1e5, np.zeros(3)), *dataset("llff"), "--llffhold=1"]
    assert tool("export_points").main(words) == 1
    assert "all views are held out" in capsys.readouterr().err
    assert tool("export_points").main(["--expname=o", f"--datadir={tmp_path}", "--out=x.ply"]) == 1
    assert "poses_bounds.npy" in capsys.readouterr().err


def test_plot_geometry_draws_a_mesh_beside_points(tool, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the plots need matplotlib: pip install -e '.[plots]'")
    red = trimesh.creation.icosphere(radius=1.0)
    red.visual.vertex_colors = [255, 0, 0, 255]
    red.export(tmp_path / "ball.ply")
    tool("export_points").write_points(
        tmp_path / "points.ply", red.vertices, np.tile(np.uint8([0, 0, 255]), [len(red.vertices), 1])
    )
    plot_geometry = tool("plot_geometry")
    plot_geometry.DOTS_AT_ONCE, plot_geometry.SIDE = 100_000, 160
    out = tmp_path / "both.png"
    assert plot_geometry.main([str(tmp_path / "ball.ply"), str(tmp_path / "points.ply"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
    left, right = np.array_split(pixels, 2, axis=1)
    middle = left[left.shape[0] // 2 - 20 : left.shape[0] // 2 + 20, left.shape[1] // 2 - 20 : left.shape[1] // 2 + 20]
    assert (middle[..., 0] > 200).all()
    assert (middle[..., 1:] < 60).mean() > 0.99
    assert ((right[..., 2] > 150) & (right[..., 0] < 100)).sum() > 500
    assert plot_geometry.main([str(tmp_path / "nothing.ply")]) == 1
    assert "nothing.ply: no such file" in capsys.readouterr().err
    (tmp_path / "noise.ply").write_text("noise")
    assert plot_geometry.main([str(tmp_path / "noise.ply")]) == 1
    assert "noise.ply: neither a mesh nor points" in capsys.readouterr().err


def test_nearer_points_hide_farther_ones(tool):
    canvas = tool("plot_geometry").Canvas(4, np.eye(4)[:3])
    points, colours = np.array([[0, 0, -2.0], [0, 0, -1.0], [0, 0, -3.0], [0, 0, 1.0]]), np.eye(4)[:, :3]
    canvas.draw(points, colours, 1)
    canvas.draw(points[::2], colours[::2], 1)
    np.testing.assert_array_equal(canvas.image[2, 2], [0, 1, 0])
    assert (canvas.image != 1).any(axis=-1).sum() == 1
