"""The built-in scene: its geometry in closed form, its light, and its three formats through the three loaders."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image
from still_life import folders as procedural
from still_life import objects
from still_life.lighting import key_visibility, shade
from still_life.solids import box, crossing, ellipsoid, frustum, nearest_hit, normals, rotation
from still_life.tracing import depth, render

from nerf_tf.data import blender, deepvoxels, llff
from nerf_tf.geometry import paths, poses, rays
from nerf_tf.geometry.camera import Camera
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings

SIZE = 48
CAMERA = Camera.centred(SIZE, SIZE, 0.5 * SIZE / np.tan(0.5 * procedural.BLENDER_ANGLE))
FRONT = paths.spherical_pose(180.0, -30.0, 4.0)


def grey(local):
    return np.full(local.shape, 0.5)


def hits(camera, c2w, solids):
    """World points [P, 3], their solids [P] and pixels [P], of every ray that meets something."""
    z = depth(camera, c2w, solids).astype(np.float64).ravel()
    rows, cols = (a.ravel() for a in np.indices((camera.height, camera.width)))
    origins, directions = (a.numpy().astype(np.float64) for a in rays.pixel_rays(camera, c2w, rows, cols))
    hit = np.flatnonzero(np.isfinite(z))
    return origins[hit] + z[hit, None] * directions[hit], nearest_hit(solids, origins, directions)[1][hit], hit


def test_ray_to_a_spheres_centre_stops_one_radius_before_it():
    ball = ellipsoid((0.3, -0.2, 0.1), (0.7, 0.7, 0.7), grey)
    origins = np.array([[4.0, 0.0, 0.0], [0.0, -3.0, 2.0]])
    distance = np.linalg.norm(ball.centre - origins, axis=-1)
    t_in, t_out = crossing(ball, origins, (ball.centre - origins) / distance[:, None])
    np.testing.assert_allclose(t_in, distance - 0.7, atol=1e-12)
    np.testing.assert_allclose(t_out, distance + 0.7, atol=1e-12)


def test_camera_sees_a_ball_at_the_depth_and_size_that_geometry_says():
    ball = (ellipsoid((0.0, 0.0, 0.0), (0.8, 0.8, 0.8), grey),)
    seen = depth(CAMERA, FRONT, ball)
    # The ray of pixel (size / 2, size / 2) passes the image's centre, so the ball's.
    assert seen[SIZE // 2, SIZE // 2] == pytest.approx(4.0 - 0.8, abs=1e-6)
    tangent = CAMERA.fx * 0.8 / np.sqrt(4.0**2 - 0.8**2)
    assert render(CAMERA, FRONT, ball)[..., 3].sum() == pytest.approx(np.pi * tangent**2, rel=5e-3)


def test_cones_and_boxes_are_met_where_arithmetic_says():
    cone = frustum((0.0, 0.0, 0.0), 1.0, 0.0, 1.0, grey)  # radius (1 - z) / 2
    down = np.array([0.0, 0.0, -1.0])
    assert crossing(cone, np.array([[0.25, 0.0, 3.0]]), down)[0] == pytest.approx(2.5)  # steeper than the cone
    sideways = crossing(cone, np.array([[3.0, 0.0, 0.0]]), np.array([-1.0, 0.0, 0.0]))
    np.testing.assert_allclose(np.concatenate(sideways), [2.5, 3.5])
    miss = crossing(cone, np.array([[1.2, 0.0, 3.0]]), down)
    assert miss[0] > miss[1]
    cube = box((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), grey, yaw=45.0)
    assert crossing(cube, np.array([[3.0, 0.0, 0.0]]), np.array([-1.0, 0.0, 0.0]))[0] == pytest.approx(3 - np.sqrt(2))


def test_normals_follow_the_slope_of_the_surface():
    solid = ellipsoid((0.1, 0.2, 0.3), (0.3, 0.5, 0.9), grey, axes=rotation(35.0, 20.0), z_range=(-0.4, 1.0))
    origins = np.random.default_rng(0).normal(size=(200, 3)) * 3.0
    directions = solid.centre - origins
    points = origins + crossing(solid, origins, directions)[0][:, None] * directions
    local = (points - solid.centre) @ solid.to_local.T
    facing = normals(solid, local)
    np.testing.assert_allclose(np.linalg.norm(facing, axis=-1), 1.0)
    assert np.all(np.sum(facing * directions, axis=-1) < 0)
    # A step along the surface stays on it to first order.
    tangent = np.cross(facing, [0.3, 0.5, -0.8])
    moved = (points + 1e-6 * tangent - solid.centre) @ solid.to_local.T
    on_cap = np.abs(local[:, 2] + 0.4) < 1e-9
    assert 0 < on_cap.sum() < 200
    np.testing.assert_allclose(np.where(on_cap, moved[:, 2] + 0.4, np.sum(moved**2, axis=-1) - 1.0), 0.0, atol=1e-9)


def test_points_seen_from_one_view_are_where_another_view_sees_them():
    toys = objects.toys()
    other = paths.spherical_pose(150.0, -35.0, 4.0)
    points, owners, _ = hits(CAMERA, FRONT, toys)
    in_camera = (points - other[:, 3]) @ other[:, :3]
    cols = CAMERA.cx - CAMERA.fx * in_camera[:, 0] / in_camera[:, 2]
    rows = CAMERA.cy + CAMERA.fy * in_camera[:, 1] / in_camera[:, 2]
    origins, directions = rays.pixel_rays(CAMERA, other.astype(np.float32), rows, cols)
    t, seen = nearest_hit(toys, origins.numpy().astype(np.float64), directions.numpy().astype(np.float64))
    visible = np.abs(t + in_camera[:, 2]) < 1e-4
    assert visible.mean() > 0.5
    assert np.all(t[~visible] < -in_camera[~visible, 2] + 1e-3)  # what is not seen has something before it
    assert np.mean(seen[visible] == owners[visible]) > 0.99
    met = origins.numpy()[visible] + t[visible, None] * directions.numpy()[visible]
    change = np.abs(shade(toys, met, seen[visible]) - shade(toys, points[visible], owners[visible])).max(axis=-1)
    assert np.mean(change < 0.02) > 0.97  # all but points on the borders of textures and shadows


def test_only_the_highlight_depends_on_the_view():
    toys = objects.toys()
    points, owners, hit = hits(CAMERA, FRONT, toys)
    towards = points - FRONT[:, 3]
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    diffuse = shade(toys, points, owners)
    seen = shade(toys, points, owners, towards)
    elsewhere = shade(toys, points, owners, towards * [-1.0, 1.0, 1.0])
    assert np.all(seen >= diffuse - 1e-9)
    moved = np.abs(seen - elsewhere).max(axis=-1)
    assert moved.max() > 0.15
    assert np.median(moved) < 0.05
    # Where no contour passes the photograph shows just that colour; at this size that is most pixels.
    photo = render(CAMERA, FRONT)[..., :3].reshape(-1, 3)[hit]
    assert np.mean(np.abs(photo - seen).max(axis=-1) < 0.05) > 0.5


def test_shadows_fall_away_from_the_light_and_are_soft():
    floor = box((0.0, 0.0, -1.0), (9.0, 9.0, 1.0), grey)
    ball = ellipsoid((0.0, 0.0, 1.0), (0.4, 0.4, 0.4), grey)
    line = np.stack([np.linspace(-2.0, 3.0, 201), 1.1 * np.linspace(-2.0, 3.0, 201), np.zeros(201)], axis=-1)
    visible = key_visibility((floor, ball), line, np.zeros(201, int))
    assert visible.min() == 0.0
    assert visible[line[:, 0] < 0.0].min() == 1.0
    assert np.sum((visible > 0.0) & (visible < 1.0)) >= 4


def test_photographs_are_transparent_around_the_toys_opaque_on_them_and_soft_between():
    rgba = render(CAMERA, FRONT)
    assert rgba.dtype == np.float32
    assert rgba.shape == (SIZE, SIZE, 4)
    corners = rgba[[0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_array_equal(corners, 0.0)
    alpha = rgba[..., 3]
    assert alpha[SIZE // 2, SIZE // 2] == 1.0
    assert 0.25 < alpha.mean() < 0.6
    soft = (alpha > 0) & (alpha < 1)
    assert 50 < soft.sum() < 0.2 * SIZE * SIZE
    # Straight alpha: a pixel half covered is as bright as its surroundings, not half as bright.
    assert rgba[soft][:, :3].max(axis=-1).mean() > 0.4
    np.testing.assert_array_equal(rgba, render(CAMERA, FRONT))


def test_everything_lies_between_near_and_far_of_every_blender_view():
    for c2w in procedural.dome_poses(12, 4.0, np.random.default_rng(3)):
        seen = depth(CAMERA, c2w)
        hit = seen[np.isfinite(seen)]
        assert hit.min() > blender.NEAR
        assert hit.max() < blender.FAR
        assert np.linalg.norm(hits(CAMERA, c2w, objects.toys())[0], axis=-1).max() < objects.RADIUS
        edge = render(CAMERA, c2w)[..., 3]
        assert max(edge[0].max(), edge[-1].max(), edge[:, 0].max(), edge[:, -1].max()) == 0.0


def test_blender_folder_loads_back(tmp_path):
    folder = procedural.write_blender(tmp_path / "toys", 20, 24, 3, 1, 2, seed=5)
    scene = blender.load(folder, False, 1, True)
    assert [len(i) for i in (scene.i_train, scene.i_val, scene.i_test)] == [3, 1, 2]
    assert scene.cameras[0].fx == pytest.approx(12 / np.tan(0.5 * procedural.BLENDER_ANGLE))
    expected = np.concatenate(
        [procedural.dome_poses(n, 4.0, np.random.default_rng([5, k])) for k, n in enumerate((3, 1, 2))]
    )
    np.testing.assert_allclose(scene.poses, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(scene.poses[:, :, 3], axis=-1), 4.0, atol=1e-5)
    assert np.all(scene.poses[:, 2, 3] > 0.0)
    for image, camera, c2w in zip(scene.images, scene.cameras, expected, strict=True):
        rgba = render(camera.through_pixel_centres(), c2w)
        np.testing.assert_allclose(image, rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:], atol=1.01 / 255)


def test_llff_folder_loads_back(tmp_path):
    folder = procedural.write_llff(tmp_path / "room", 24, 32, 5)
    stored = poses.llff_to_opengl(np.load(folder / "poses_bounds.npy")[:, :15].reshape(-1, 3, 5)[:, :, :4])
    expected = procedural.forward_poses(5, np.random.default_rng(0))
    np.testing.assert_allclose(stored, expected, atol=1e-9)
    for factor in (1, 2):
        scene = llff.load(folder, factor, False, 2, False)
        assert scene.images.shape == (5, 24 // factor, 32 // factor, 3)
        for image, camera, c2w in zip(scene.images, scene.cameras, expected, strict=True):
            np.testing.assert_allclose(
                image, render(camera.through_pixel_centres(), c2w, objects.room())[..., :3], atol=0.51 / 255
            )
    # The loader scales and recentres; what it may not change is how one camera lies to another.
    scale = 1.0 / (0.75 * np.load(folder / "poses_bounds.npy")[:, 15].min())
    relative = poses.compose(poses.invert(scene.poses[0]), scene.poses[1])
    truth = poses.compose(poses.invert(expected[0]), expected[1])
    np.testing.assert_allclose(relative[:, :3], truth[:, :3], atol=1e-5)
    np.testing.assert_allclose(relative[:, 3], truth[:, 3] * scale, atol=1e-5)


def test_llff_bounds_hold_every_surface_and_no_ray_is_empty(tmp_path):
    folder = procedural.write_llff(tmp_path / "room", 24, 32, 3)
    near, far = np.load(folder / "poses_bounds.npy")[:, 15:].T
    for i, c2w in enumerate(procedural.forward_poses(3, np.random.default_rng(0))):
        seen = depth(Camera.centred(24, 32, 16 / np.tan(0.4)), c2w, objects.room())
        assert near[i] == pytest.approx(seen.min())
        assert far[i] == pytest.approx(seen.max())
    assert np.all((near > 1.0) & (far < 12.0))


def test_a_walk_around_the_toys_is_a_360_scene_without_empty_pixels(tmp_path):
    folder = procedural.write_llff(tmp_path / "hall", 12, 16, 6, surroundings="hall")
    scene = llff.load(folder, 1, spherify=True, llffhold=3, no_ndc=True)
    ahead = -scene.poses[:, :, 2]
    assert np.linalg.norm(ahead.mean(axis=0)) < 0.3, "they look every way"
    camera = scene.cameras[0]
    for c2w in procedural.walk_poses(6, np.random.default_rng(0)):
        assert np.isfinite(depth(camera, c2w, objects.hall())).all()


def test_deepvoxels_folder_loads_back(tmp_path):
    folder = procedural.write_deepvoxels(tmp_path / "voxels", "vase", 2, 1, 2, side=64)
    scene = deepvoxels.load(folder, "vase", 1)
    assert [len(i) for i in (scene.i_train, scene.i_val, scene.i_test)] == [2, 1, 2]
    expected = np.concatenate(
        [procedural.dome_poses(n, 2.5, np.random.default_rng([0, k])) for k, n in enumerate((2, 1, 2))]
    )
    np.testing.assert_allclose(scene.poses, expected, atol=1e-5)
    assert (scene.near, scene.far) == pytest.approx((1.5, 3.5), abs=1e-5)
    for image, camera, c2w in zip(scene.images, scene.cameras, expected, strict=True):
        in_scene = c2w * [1.0, 1.0, 1.0, objects.RADIUS]
        rgba = render(camera.through_pixel_centres(), in_scene)
        np.testing.assert_allclose(image, rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:], atol=0.51 / 255)
        seen = depth(camera, in_scene) / objects.RADIUS
        assert scene.near < seen[np.isfinite(seen)].min()
        assert seen[np.isfinite(seen)].max() < scene.far


def test_a_complete_folder_is_kept_and_another_one_never_overwritten(tmp_path, monkeypatch):
    folder = procedural.write_blender(tmp_path / "toys", 8, 8, 1, 1, 1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(procedural, "_take", None)  # would fail if anything were rendered
    assert procedural.write_blender(folder, 8, 8, 1, 1, 1) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(ValueError, match=r"toys: exists .* remove it or name another folder"):
        procedural.write_blender(folder, 8, 8, 2, 1, 1)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="mine: exists"):
        procedural.write_llff(mine, 8, 8, 2)
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


def test_an_interrupted_writer_leaves_nothing(tmp_path, monkeypatch):
    taken = []

    def fail_at_the_third(photo):
        taken.append(photo)
        if len(taken) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(procedural, "_take", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        procedural.write_blender(tmp_path / "toys", 8, 8, 4, 1, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: procedural.write_blender(folder, 8, 8, 0, 1, 1), "n_train = 0"),
        (lambda folder: procedural.write_llff(folder, 9, 8, 2), "sides must be even"),
        (lambda folder: procedural.write_deepvoxels(folder, "cube", 1, 1, 1, side=-1), "side = -1"),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "scene")


def test_splits_share_no_camera_and_cover_all_sides():
    train, test = (procedural.dome_poses(n, 4.0, np.random.default_rng([0, k])) for k, n in ((0, 60), (2, 10)))
    apart = np.linalg.norm(train[:, None, :, 3] - test[None, :, :, 3], axis=-1)
    assert apart.min() > 1e-3
    assert apart.min(axis=0).max() < 1.2  # no test view far from every training view
    for c2w in train:
        np.testing.assert_allclose(c2w[:, 3], 4.0 * c2w[:, 2], atol=1e-12)  # looks at the origin


def test_make_scene_command_prints_the_folder_and_explains_failure(tool, tmp_path, capsys):
    make_scene = tool("make_scene")
    out = tmp_path / "deep" / "demo"
    argv = ["--out", str(out), "--size", "8", "--train", "2", "--val", "1", "--test", "1", "--workers", "1"]
    assert make_scene.main(argv) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    assert len(json.loads((out / "transforms_train.json").read_text())["frames"]) == 2
    assert make_scene.main([*argv, "--seed", "1"]) == 1
    assert "remove it or name another folder" in capsys.readouterr().err


def test_processes_write_what_one_process_writes(tmp_path):
    one = procedural.write_llff(tmp_path / "one", 8, 8, 2, workers=1)
    two = procedural.write_llff(tmp_path / "two", 8, 8, 2, workers=2)
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_contact_sheet_shows_views_with_their_psnr(tool, tmp_path, capsys):
    contact_sheet = tool("contact_sheet")
    data = procedural.write_blender(tmp_path / "toys", 12, 12, 1, 1, 3)
    renders = tmp_path / "run" / "renderonly_test_000100"
    renders.mkdir(parents=True)
    values = Settings(expname="run", dataset_type="blender", datadir=str(data), white_bkgd=True, testskip=1)
    (tmp_path / "run" / "args.txt").write_text(parsing.args_text(values))
    photos = contact_sheet.load_photos(tmp_path / "run" / "args.txt")
    assert photos.shape == (3, 12, 12, 3)
    for i, photo in enumerate(photos):
        Image.fromarray(np.uint8(np.rint(255 * np.clip(photo * 0.9, 0, 1)))).save(renders / f"{i:03d}.png")
        ramp = np.linspace(0, 1, 144, dtype=np.float32).reshape(12, 12)
        np.savez(renders / f"{i:03d}.npz", rgb=photo, disp=ramp, acc=np.ones((12, 12), np.float32), depth=ramp)
    assert contact_sheet.main(["--run", str(tmp_path / "run"), "--views", "2"]) == 0
    sheet = tmp_path / "run" / "contact_sheet.png"
    assert capsys.readouterr().out.splitlines()[-1] == str(sheet)
    views = contact_sheet.read_views(renders, photos)
    error = (np.asarray(Image.open(renders / "000.png")) - np.rint(255 * photos[0])) / 255.0
    assert views[0].psnr == pytest.approx(-10 * np.log10(np.mean(error**2)))
    assert Image.open(sheet).width > 3 * contact_sheet.TILE_HEIGHT
    maps = renders / "002.npz"
    for write, message in (
        (lambda: np.savez(maps, disp=ramp[:5], acc=ramp), r"its disp is float32 of shape \[5, 12\] beside a PNG of \["),
        (lambda: np.savez(maps, disp=ramp), "it lacks 'acc'"),
        (lambda: maps.write_bytes(b"PK"), "cannot be read as an npz file"),
        (maps.unlink, "no such file; render again with --save_arrays"),
    ):
        write()
        assert contact_sheet.main(["--run", str(tmp_path / "run")]) == 1
        assert re.fullmatch(rf"contact_sheet: .*002\.npz: .*{message}.*\n", capsys.readouterr().err)


def test_contact_sheet_of_a_path(tool, tmp_path, capsys, monkeypatch):
    contact_sheet = tool("contact_sheet")
    assert contact_sheet.main(["--run", str(tmp_path), "--path"]) == 1
    assert "no renderonly_path_*; run it with --render_only --save_arrays" in capsys.readouterr().err
    (tmp_path / "renderonly_path_000200_old").mkdir()
    folder = tmp_path / "renderonly_path_000100"
    folder.mkdir()
    assert contact_sheet.main(["--run", str(tmp_path), "--path"]) == 1
    assert "no frames with arrays" in capsys.readouterr().err
    for i in range(6):
        Image.new("RGB", (16, 12), (40 * i, 0, 0)).save(folder / f"{i:03d}.png")
        plane = np.full((12, 16), 1 + i, np.float32)
        np.savez(folder / f"{i:03d}.npz", rgb=plane, disp=1 / plane, acc=np.ones_like(plane), depth=plane)
    monkeypatch.setattr(contact_sheet, "PATH_TILE_HEIGHT", 12)  # as they are
    assert contact_sheet.main(["--run", str(tmp_path), "--path", "--views", "3"]) == 0
    sheet = np.asarray(Image.open(tmp_path / "path_sheet.png"))
    assert sheet.shape == (4 + 4 * 16, 86 + 3 * 20, 3)
    rows = [sheet[4 + 16 * row + 6, [86 + 20 * column + 8 for column in range(3)]] for row in range(4)]
    np.testing.assert_array_equal(rows[0], [[0, 0, 0], [80, 0, 0], [160, 0, 0]])  # frames 0, 2 and 4
    for row in rows[1:3]:
        assert row.sum(axis=-1)[0] > row.sum(axis=-1)[1] > row.sum(axis=-1)[2]  # near is light
    assert np.ptp(rows[3], axis=0).max() == 0
    (folder / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert contact_sheet.main(["--run", str(tmp_path), "--path"]) == 1
    assert re.fullmatch(r"contact_sheet: .*000\.png: not a readable image.*\n", capsys.readouterr().err)
