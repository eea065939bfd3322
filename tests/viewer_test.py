"""tools/viewer.py: its pictures against the renderer, its errors, and its page in a real browser."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image as Photo

from nerf_tf import build
from nerf_tf.camera_paths.keyframes import load_keyframes
from nerf_tf.data.scene import Scene
from nerf_tf.field.mlp import build_mlp
from nerf_tf.geometry import paths
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.rays import Rays
from nerf_tf.marching import occupancy
from nerf_tf.output import pictures, view_files
from nerf_tf.render.passes import RenderSettings
from nerf_tf.render.renderer import Image, Renderer
from nerf_tf.settings import parsing
from nerf_tf.storage import tf1_weights

pytest.importorskip("viser", reason="the viewer needs viser: pip install -e '.[viewer]'")

SCENES = Path(__file__).parent / "data" / "portable" / "scenes"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# A browser without a screen or a GPU; --no-sandbox because CI may be root.
BROWSER_FLAGS = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]


def ball(points: tf.Tensor, viewdirs: tf.Tensor, visible_above: object = None) -> tf.Tensor:
    """An opaque ball at the origin whose colour says where on it one is."""
    inside = tf.norm(points, axis=-1, keepdims=True) < 1.0
    return tf.concat([3.0 * points, tf.where(inside, 20.0, -1.0)], axis=-1)


def pale_ball(points: tf.Tensor, viewdirs: tf.Tensor, visible_above: object = None) -> tf.Tensor:
    """The same ball in other colours."""
    return ball(points, viewdirs) * tf.constant([-1.0, -1.0, -1.0, 1.0])


def ball_renderer(ndc: bool = False, chunk: int = 256, samples: tuple[int, int] = (16, 8)) -> Renderer:
    settings = RenderSettings(*samples, white_bkgd=True, chunk=chunk)
    return Renderer(pale_ball, ball, settings, *((0.0, 1.0) if ndc else (2.0, 6.0)), ndc)


def ball_scene(ndc: bool = False) -> Scene:
    """Four photos of noise from a circle around the ball; under NDC the cameras look at it along -z."""
    poses = np.stack([paths.spherical_pose(theta, -30.0, 4.0) for theta in (0, 90, 180, 270)])
    if ndc:
        poses = np.tile(np.concatenate([np.eye(3), [[0.1], [0.2], [0.3]]], axis=-1), (4, 1, 1))
    poses = poses.astype(np.float32)
    images = np.random.default_rng(0).random([4, 80, 80, 3], np.float32)
    camera = Camera.centred(80, 80, 110.0)
    near, far = (0.0, 1.0) if ndc else (2.0, 6.0)
    return Scene(images, poses, (camera,) * 4, near, far, ndc, np.arange(3), np.array([3]), np.array([3]), poses)


def test_poses_go_to_the_browser_and_back(tool):
    views = tool("support.progressive_view")
    # OpenGL's axes at rest look along -z; in OpenCV's, that is half a turn about x.
    wxyz, position = views.pose_to_browser(np.eye(4)[:3])
    np.testing.assert_allclose(np.abs(wxyz), [0, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(position, 0.0)
    for c2w in paths.orbit_path(7, -20.0, 3.0):
        np.testing.assert_allclose(views.pose_from_browser(*views.pose_to_browser(c2w)), c2w, atol=1e-9)


def test_up_is_the_axis_that_the_cameras_agree_on(tool):
    up_axis = tool("support.progressive_view").up_axis
    np.testing.assert_array_equal(up_axis(paths.orbit_path()), [0, 0, 1])
    np.testing.assert_array_equal(up_axis(np.eye(4)[None, :3]), [0, 1, 0])
    upside_down = np.diag([-1.0, -1.0, 1.0, 1.0])[None, :3]
    np.testing.assert_array_equal(up_axis(upside_down), [0, -1, 0])


@pytest.mark.parametrize("shape", [(200, 320), (13, 17), (1, 1), (1000, 1), (800, 1280)])
def test_grids_hold_one_another_and_the_first_fits_a_chunk(tool, shape):
    steps = tool("support.progressive_view").grid_strides(*shape, 512)

    def count(step):
        return -(-shape[0] // step) * -(-shape[1] // step)

    assert steps[-1] == 1
    assert count(steps[0]) <= 512
    assert steps[0] == 1 or count(steps[0]) > 100
    assert all(coarse % fine == 0 for coarse, fine in itertools.pairwise(steps))


def test_a_view_is_refined_to_what_the_renderer_renders(tool):
    views = tool("support.progressive_view")
    scene, renderer, camera = ball_scene(), ball_renderer(), Camera.centred(30, 41, 40.0)
    expected = ball_renderer().image(camera, scene.poses[0])
    view = views.ProgressiveView(renderer, scene, camera, scene.poses[0])
    images, ends = [], []
    for complete in view.refine():
        images.append(view.image())
        if complete:
            ends.append(view.rendered)
    assert ends == [10 * 14, 30 * 41]  # every third pixel, then the rest: none twice
    np.testing.assert_allclose(images[0].rgb, expected.rgb[::3, ::3], atol=1e-5)
    # Halfway the first rows are there; below, the coarse grid's pixels stand in.
    np.testing.assert_allclose(images[1].depth[:4], expected.depth[:4], atol=1e-5)
    np.testing.assert_allclose(images[1].depth[28, :3], np.repeat(expected.depth[27, 0], 3), atol=1e-5)
    for got, want in zip(images[-1][:8], expected[:8], strict=True):  # all but depths in other units
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_views_of_all_sizes_share_one_graph(tool):
    views = tool("support.progressive_view")
    scene, renderer = ball_scene(), ball_renderer()
    for height in (7, 30):
        list(views.ProgressiveView(renderer, scene, Camera.centred(height, 23, 20.0), scene.poses[0]).refine())
    assert renderer._render_chunk.experimental_get_tracing_count() == 1


def test_ndc_is_the_scene_cameras_whatever_the_view(tool):
    views = tool("support.progressive_view")
    scene, renderer = ball_scene(ndc=True), ball_renderer(ndc=True)
    expected = renderer.image(scene.cameras[0], scene.poses[0]).rgb
    assert np.ptp(expected) > 0.5
    window = Camera(20, 30, 110.0, 110.0, 15.0, 10.0)  # the middle of the scene's camera, which has 80 x 80
    (*_, _) = (view := views.ProgressiveView(renderer, scene, window, scene.poses[0])).refine()
    np.testing.assert_allclose(view.image().rgb, expected[30:50, 25:55], atol=1e-5)
    backwards = scene.poses[0] * np.array([-1.0, 1.0, -1.0, 1.0], np.float32)
    (*_, _) = (view := views.ProgressiveView(renderer, scene, window, backwards)).refine()
    assert view.image().rgb.max() == 0.0


def test_pictures_show_what_they_are_asked_for(tool, tmp_path):
    views = tool("support.progressive_view")
    image = ball_renderer().image(Camera.centred(20, 20, 30.0), ball_scene().poses[0])
    for coarse in (False, True):
        seen = views.select_network(image, coarse)
        rgb, disp, acc = (image.rgb0, image.disp0, image.acc0) if coarse else (image.rgb, image.disp, image.acc)
        shown = {name: views.draw(seen, name) for name in views.SHOWN}
        assert {(found.shape, found.dtype) for found in shown.values()} == {((20, 20, 3), np.dtype(np.uint8))}
        np.testing.assert_array_equal(shown["rgb"], (255 * np.clip(rgb, 0, 1)).astype(np.uint8))
        far, near = np.percentile(disp[acc > 0.5], [1, 99])
        colours = pictures.false_colours(disp, acc, dark=far, light=near)
        np.testing.assert_allclose(shown["disparity"].astype(int), colours, atol=1)
        np.testing.assert_array_equal(shown["opacity"], pictures.apply_colour_map(acc))
        assert shown["depth"][0, 0].tolist() == [0, 0, 0]  # nothing there
        light = shown["depth"].sum(axis=-1)
        assert light[10, 10] > 0.9 * 255 * 2  # the ball's front
        assert light[10, 10] > light[acc > 0.9].min() + 200
        film = view_files.VideoBuffer(tmp_path)
        film.append(seen)
        np.testing.assert_array_equal(views.video_frames(film, "rgb")[0], shown["rgb"])
        for name in ("disparity", "opacity"):  # a film keeps opacity in 8 bits
            assert np.abs(views.video_frames(film, name)[0].astype(int) - shown[name]).max() <= 3


def test_rays_begin_and_end_as_in_training_however_far_the_camera_is(tool):
    views, scene = tool("support.progressive_view"), ball_scene()
    assert views.ray_range(scene, 2.0, 6.0, scene.poses[1, :, 3]) == pytest.approx((2.0, 6.0), abs=1e-5)
    assert views.ray_range(scene, 2.0, 6.0, np.array([0.0, 0.0, 11.0])) == pytest.approx((9.0, 13.0), abs=1e-5)
    assert views.ray_range(scene, 2.0, 6.0, np.array([1.5, 0.0, 0.0])) == pytest.approx((0.06, 3.5), abs=1e-5)
    assert views.ray_range(ball_scene(ndc=True), 0.0, 1.0, np.full(3, 9.0)) == (0.0, 1.0)
    parallel = dataclasses.replace(scene, poses=np.repeat(scene.poses[:1], 4, axis=0))
    assert views.ray_range(parallel, 2.0, 6.0, np.full(3, 9.0)) == (2.0, 6.0)
    # From three times as far through a lens three times as long the ball is what it was, but for perspective.
    far_away = scene.poses[0] * np.array([1.0, 1.0, 1.0, 3.0], np.float32)
    (*_, _) = (view := views.ProgressiveView(ball_renderer(), scene, Camera.centred(30, 30, 180.0), far_away)).refine()
    cover = view.image().acc
    assert cover[15, 15] > 0.99
    assert cover.mean() == pytest.approx(np.pi * 15.0**2 / 900.0, rel=0.1)


def test_distances_say_where_a_view_ends(tool):
    views, scene = tool("support.progressive_view"), ball_scene()
    view = views.ProgressiveView(ball_renderer(samples=(64, 64)), scene, Camera.centred(30, 30, 40.0), scene.poses[0])
    for _ in view.refine():
        distances = view.distances(view.image())
        assert distances.shape == view.image().acc.shape
        assert distances[0, 0] == np.inf
        assert distances[distances.shape[0] // 2, distances.shape[1] // 2] == pytest.approx(3.0, abs=0.1)


def test_fewer_samples_are_still_enough_to_render(tool):
    quality = tool("support.viewer_page").Quality
    assert list(quality(64, 64).choices()) == ["16 + 16", "32 + 32", "64 + 64", "128 + 128"]
    assert list(quality(8, 0).choices()) == ["2", "4", "8", "16"]
    assert quality(8, 2).scaled(0.25) == quality(3, 1)


@pytest.fixture
def run(tmp_path):
    """A run's folder, moved from where it was made: args.txt, weights of steps 3 and 7, the latter's returned too."""
    folder = tmp_path / "moved" / "tiny"
    arguments = ["--expname", "tiny", "--basedir", str(tmp_path / "elsewhere"), "--ft_path", "other.npy"]
    arguments += [
        "--dataset_type",
        "blender",
        "--datadir",
        str(SCENES / "blender"),
        "--use_viewdirs",
        "--testskip",
        "1",
    ]
    arguments += ["--netdepth", "2", "--netdepth_fine", "2", "--netwidth", "16", "--netwidth_fine", "16"]
    values = parsing.parse_settings([*arguments, "--N_samples", "8", "--N_importance", "4"])
    folder.mkdir(parents=True)
    (folder / "args.txt").write_text(parsing.args_text(values), encoding="utf-8")
    for step in (3, 7):
        weights = [build_mlp(build.field_settings(values, fine), step).get_weights() for fine in (False, True)]
        tf1_weights.save(folder / f"model_{step:06d}.npy", weights[0])
        tf1_weights.save(folder / f"model_fine_{step:06d}.npy", weights[1])
    return folder, weights


def test_a_run_means_its_settings_and_newest_weights(tool, run, tmp_path):
    viewer, run_loading, (folder, weights) = tool("viewer"), tool("support.run_loading"), run
    values = parsing.parse_settings([*run_loading.expand_run_argument([str(folder), "--N_samples", "6"])])
    made = viewer.make_viewer(values, None)
    assert made.out == folder
    assert str(made.quality) == "6 + 4"
    renderer = made.renderer(made.quality)
    np.testing.assert_array_equal(renderer.fine.mlp.get_weights()[0], weights[1][0])
    assert made.warm_up() > 0.0
    half = made.renderer(made.quality.scaled(0.5))
    assert (half.settings.N_samples, half.settings.N_importance) == (3, 2)
    assert half.settings.chunk == renderer.settings.chunk == viewer.CPU_CHUNK
    assert made.renderer(made.quality) is renderer
    assert run_loading.expand_run_argument(["model_000007.npy", "--fps=3"]) == [
        "--ft_path",
        "model_000007.npy",
        "--fps=3",
    ]
    assert run_loading.expand_run_argument(["--fps", "3"]) == ["--fps", "3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved"]


def test_a_quality_becomes_the_flags_of_its_renderer(tool, run, monkeypatch):
    monkeypatch.setattr(occupancy, "COARSE_CELLS", 8)
    monkeypatch.setattr(occupancy, "FINE_CELLS", 16)
    monkeypatch.setattr(occupancy, "BUILD_POINTS", 2**9)
    viewer, (folder, _) = tool("viewer"), run
    values = parsing.parse_settings([*tool("support.run_loading").expand_run_argument([str(folder)])])
    made = viewer.make_viewer(values, None)
    assert not made.quality.occupancy
    assert not (folder / "occupancy.npz").exists()
    fast = made.renderer(tool("support.viewer_page").Quality(5, 3, occupancy=True))
    assert (fast.settings.N_samples, fast.settings.N_importance) == (5, 3)
    assert isinstance(fast.fine, occupancy.OccupiedField)
    assert (folder / "occupancy.npz").exists()
    assert (values.N_samples, values.N_importance, values.occupancy) == (8, 4, False)


def failing_line(tool, capsys, *argv: str) -> str:
    """The one line that the viewer ends with."""
    assert tool("viewer").main(list(argv)) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("viewer: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def test_the_page_is_for_this_computer_unless_said_otherwise(tool):
    viewer = tool("viewer")
    assert viewer._arguments([])[0].host == "127.0.0.1"
    assert viewer._arguments(["--host", "0.0.0.0"])[0].host == "0.0.0.0"


def test_mistakes_are_answered_by_one_line(tool, run, tmp_path, capsys, monkeypatch):
    folder, _ = run
    assert "no args.txt" in failing_line(tool, capsys, str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = failing_line(tool, capsys, str(folder), "--port", port)
    assert port in line
    assert "give another --port or --host" in line
    assert "--host" in failing_line(tool, capsys, str(folder), "--host", "203.0.113.1")
    for path in folder.glob("*.npy"):
        path.unlink()
    assert "no weights to render" in failing_line(tool, capsys, str(folder), "--port", "0")
    monkeypatch.setitem(sys.modules, "viser", None)
    assert "pip install -e '.[viewer]'" in failing_line(tool, capsys, str(folder))


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Waits until `condition` holds; fails when it does not in time."""
    end = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def browser():
    """A headless browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[dev]'")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_FLAGS)
        yield browser
        browser.close()


class CountedRenderer(Renderer):
    """Counts what it renders, and can be held up."""

    chunks = 0

    @functools.cached_property
    def may_go_on(self) -> threading.Event:
        event = threading.Event()
        event.set()
        return event

    def rays(self, rays: Rays) -> Image:
        self.may_go_on.wait()
        self.chunks += 1
        return super().rays(rays)


@pytest.fixture
def ball_viewer(tool, tmp_path):
    """A viewer of the ball, and the address that it serves."""
    viewer = tool("viewer")
    quality = tool("support.viewer_page").Quality(16, 8)

    def make(quality) -> Renderer:
        plain = ball_renderer(samples=(quality.N_samples, quality.N_importance))
        return CountedRenderer(plain.coarse, plain.fine, plain.settings, plain.near, plain.far, plain.ndc)

    served = viewer.Viewer(ball_scene(), make, quality, tmp_path / "out")
    served.warm_up()
    yield served, f"http://127.0.0.1:{served.open('127.0.0.1', 0)}"
    served.close()


FULL_VIEW = 1 + 2 + 8 + 29  # chunks of 256 rays in grids of 10x15, 20x30, 40x60, 80x120 pixels, each less the last


class Window:
    """A page in the browser, eight of its pixels to one of the 80 x 120 rendered ones, and the viewer's side of it."""

    def __init__(self, viewer, browser, address: str):
        known = set(viewer.pages)
        self.tab = browser.new_page(viewport={"width": 960, "height": 640})
        self.tab.goto(address)
        wait_for(lambda: set(viewer.pages) - known, "the page to connect")
        (number,) = set(viewer.pages) - known
        self.page, self.viewer = viewer.pages[number], viewer
        wait_for(lambda: np.allclose(self.page.request().position, viewer.scene.poses[3][:, 3]), "the first pose")
        self.tab.locator("button.mantine-Notification-closeButton").click()  # that there is no GPU
        self.choose("Rows", "80")
        self.tab.get_by_label("Training cameras").click()

    def choose(self, label: str, option: str) -> None:
        self.tab.get_by_label(label, exact=True).first.click()
        self.tab.get_by_role("option", name=option, exact=True).click()

    def drag(self, x: int, y: int) -> None:
        before = self.page.request()
        self.tab.mouse.move(300, 300)
        self.tab.mouse.down()
        self.tab.mouse.move(300 + x, 300 + y, steps=4)
        self.tab.mouse.up()
        wait_for(lambda: self.page.request() != before, "the camera to move")
        while before != (before := self.page.request()):  # it glides on a little
            self.tab.wait_for_timeout(200)

    def expected(self, coarse: bool = False) -> np.ndarray:
        """The renderer's own picture of what the page looks at now."""
        from support.progressive_view import pose_from_browser, window_camera

        request = self.page.request()
        camera = window_camera(request.height, request.aspect, request.fov)
        image = ball_renderer().image(camera, pose_from_browser(request.wxyz, request.position))
        return image.rgb0 if coarse else image.rgb

    def shown(self) -> np.ndarray:
        """The page's picture at the middle of each rendered pixel: no panel and no axes lie over these."""
        self.tab.screenshot(path=self.viewer.out / "shot.png")
        with Photo.open(self.viewer.out / "shot.png") as photo:
            return np.asarray(photo.convert("RGB"))[4::8, 4::8][10:60, 10:70] / 255.0

    def shows_all_from(self, position: np.ndarray) -> bool:
        view = self.page._view
        return view.rendered == 80 * 120 and np.allclose(view.c2w[:, 3], position, atol=1e-3)

    def middle(self) -> np.ndarray:
        """The pixels around the page's centre."""
        self.tab.screenshot(path=self.viewer.out / "shot.png")
        with Photo.open(self.viewer.out / "shot.png") as photo:
            pixels = np.asarray(photo.convert("RGB")) / 255.0
        row, column = pixels.shape[0] // 2, pixels.shape[1] // 2
        return pixels[row - 16 : row + 16, column - 16 : column + 16]

    def resembles(self, expected: np.ndarray) -> bool:
        return float(np.mean(np.square(self.shown() - expected[10:60, 10:70]))) < 1e-3  # 30 dB


def test_a_browser_shows_what_the_renderer_renders(browser, ball_viewer):
    viewer, address = ball_viewer
    window = Window(viewer, browser, address)
    first = window.expected()
    assert first.shape == (80, 120, 3)
    wait_for(lambda: window.resembles(first), "the first picture")
    photos = window.page._photos
    np.testing.assert_allclose([photo.position for photo in photos], viewer.scene.poses[:3, :, 3], atol=1e-6)
    assert all(photo.visible for photo in photos)
    window.tab.get_by_role("button", name="Add keyframe").click()
    # While the first chunk of a view is being rendered, the camera moves on: nothing more of that view is rendered.
    renderer = viewer.renderer(viewer.quality)
    renderer.may_go_on.clear()
    before = renderer.chunks
    window.drag(60, 20)
    window.drag(60, 20)
    renderer.may_go_on.set()
    second = window.expected()
    wait_for(lambda: window.resembles(second), "the picture after moving")
    assert renderer.chunks - before <= 1 + FULL_VIEW
    assert not window.resembles(first)
    window.tab.get_by_role("button", name="Add keyframe").click()
    # Another browser begins where all begin, and takes nothing from the first.
    other = Window(viewer, browser, address)
    wait_for(lambda: other.resembles(first), "the other browser's picture")
    assert window.resembles(second)
    other.tab.close()
    wait_for(lambda: len(viewer.pages) == 1, "the other browser to be forgotten")
    # Depth is black around the ball, where colour is white, and light on it.
    window.choose("Show", "depth")
    wait_for(lambda: window.shown()[0, 0].max() < 0.1, "depth")
    assert window.shown()[25, 50].mean() > 0.5
    # A video of the two keyframes.
    window.choose("Rows", "20")
    window.tab.get_by_label("Seconds between").fill("0.2")
    renderer.may_go_on.clear()
    window.tab.get_by_role("button", name="Save and render video").click()
    wait_for(lambda: (viewer.out / "viewer_000.json").exists(), "the keyframes")
    window.choose("Show", "rgb")  # the video continues with what it began with
    renderer.may_go_on.set()
    wait_for(lambda: (viewer.out / "viewer_000.mp4").exists(), "the video")
    frames = np.stack(imageio.mimread(viewer.out / "viewer_000.mp4")).astype(int)
    assert frames.shape == (7, 20, 30, 3)
    assert frames[:, 0, 0].max() < 40
    assert frames.max() > 200
    path = load_keyframes(viewer.out / "viewer_000.json")
    np.testing.assert_allclose(path.times, [0.0, 0.2])
    np.testing.assert_allclose(path.poses[0], viewer.scene.poses[3], atol=1e-4)
    # The other switches.
    window.tab.get_by_text(re.compile(r"^30 × 20 pixels in \d+\.\d\d s, [\d,]+ rays/s$")).wait_for()
    window.choose("Rows", "80")
    window.choose("Network", "coarse")
    wait_for(lambda: window.resembles(window.expected(coarse=True)), "the coarse network")
    assert not window.resembles(second)
    window.choose("Samples", "8 + 4")
    window.tab.get_by_label("Skip empty space").click()
    wait_for(lambda: window.page.request().quality == type(viewer.quality)(8, 4, occupancy=True), "another quality")
    assert not window.page._all_photos.visible
    window.tab.get_by_label("Training cameras").click()
    wait_for(lambda: window.page._all_photos.visible, "the photos")
    window.tab.get_by_role("button", name="Remove the last").click()
    window.tab.get_by_role("button", name="Save keyframes").click()
    wait_for(lambda: (viewer.out / "viewer_001.json").exists(), "one keyframe")
    np.testing.assert_allclose(load_keyframes(viewer.out / "viewer_001.json").times, [0.0])


def test_photos_stand_in_front_of_the_scene_and_behind_it(tool, browser, ball_viewer, monkeypatch):
    monkeypatch.setattr(tool("support.viewer_page"), "PHOTO_SIZE", 0.2)
    viewer, address = ball_viewer
    window = Window(viewer, browser, address)
    photo = viewer.scene.poses[0, :, 3]
    # Three times as far away as training cameras: the ball is there all the same.
    camera = window.page._client.camera
    for towards, hidden in ((-3.0, True), (2.0, False)):
        camera.position, camera.look_at = towards * photo, np.zeros(3)
        wait_for(lambda at=towards * photo: window.shows_all_from(at), "the picture")
        window.tab.wait_for_timeout(500)
        without = window.middle()
        assert np.abs(without - 1.0).max() > 0.3  # not the background
        window.tab.get_by_label("Training cameras").click()
        window.tab.wait_for_timeout(1000)
        change = np.abs(window.middle() - without).mean()
        assert change < 0.02 if hidden else change > 0.1
        window.tab.get_by_label("Training cameras").click()
        window.tab.wait_for_timeout(500)


def test_a_video_is_finished_though_the_browser_has_gone(browser, ball_viewer):
    viewer, address = ball_viewer
    window = Window(viewer, browser, address)
    window.choose("Rows", "20")
    for _ in range(2):
        window.tab.get_by_role("button", name="Add keyframe").click()
    window.tab.get_by_label("Seconds between").fill("0.2")
    wait_for(lambda: window.page.request().height == 20, "fewer rows")
    renderer = viewer.renderer(viewer.quality)
    renderer.may_go_on.clear()
    window.tab.get_by_role("button", name="Save and render video").click()
    wait_for(lambda: viewer.video_job, "the video to begin")
    window.tab.get_by_role("button", name="Save and render video").click()
    window.tab.get_by_text("a video is being rendered: wait for it, or stop it").wait_for()
    window.tab.close()
    wait_for(lambda: not viewer.pages, "the browser to be forgotten")
    renderer.may_go_on.set()
    wait_for(lambda: viewer.video_job is None, "the video")
    assert len(imageio.mimread(viewer.out / "viewer_000.mp4")) == 7
    assert not (viewer.out / "viewer_001.json").exists()
