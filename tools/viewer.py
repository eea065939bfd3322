"""Shows a trained scene in the browser, rendered from coarse to fine while one looks around.

    python tools/viewer.py logs/demo
    python tools/viewer.py model_200000.npy --config configs/lego.txt --datadir data/nerf_synthetic/lego
    python tools/viewer.py logs/demo --mixed_precision bfloat16 --port 8081

RUN is a run's folder, for its args.txt and newest weights, or a file of coarse weights. Every flag of the program may
be given and means what it means there; --mixed_precision bfloat16 is much faster. Keyframes and videos made on the page
are written to --out. The page is served to this computer only, unless --host names another address: everybody who can
open the page can look, and write such files to --out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf
from support import commandline, progressive_view, run_loading
from support.viewer_page import Page, Quality

from nerf_tf import build
from nerf_tf.data.scene import Scene
from nerf_tf.render.renderer import Renderer
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings

if TYPE_CHECKING:
    import viser

logger = logging.getLogger("viewer")

# Rays rendered before the browser is asked again: half a second's work on two cores, or less where most is skipped.
CPU_CHUNK, CPU_CHUNK_OCCUPANCY, GPU_CHUNK = 512, 2048, 4096
SECONDS_TO_CONNECT = 0.1  # until a browser has taken the first camera that it is told


class Viewer:
    """The server. One thread renders for all pages, a chunk for each in turn.

    Attributes:
        scene: photos and cameras.
        quality: that of the first picture.
        out: folder for keyframes and videos.
        pages: the open pages, by the browser's number.
        video_job: renders a chunk of a video at every step; None if no video is being rendered.
    """

    def __init__(self, scene: Scene, make_renderer: Callable[[Quality], Renderer], quality: Quality, out: Path):
        self.scene, self.quality, self.out = scene, quality, out
        self.pages: dict[int, Page] = {}
        self.video_job: Iterator[None] | None = None
        self._make_renderer, self._renderers = make_renderer, {}
        self._wake, self._stopped = threading.Event(), False
        self._thread = threading.Thread(target=self._render, name="render", daemon=True)

    def renderer(self, quality: Quality) -> Renderer:
        """The renderer of a quality, made at the first call."""
        if quality not in self._renderers:
            self._renderers[quality] = self._make_renderer(quality)
        return self._renderers[quality]

    def has_renderer(self, quality: Quality) -> bool:
        """Whether the renderer of a quality is made already."""
        return quality in self._renderers

    def warm_up(self) -> float:
        """Renders first pictures, so that no page waits for tracing; returns the seconds of a traced one."""
        c2w, _ = progressive_view.initial_view(self.scene)
        for quality in (self.quality, self.quality.preview(), self.quality.preview()):
            view = progressive_view.ProgressiveView(self.renderer(quality), self.scene, self.scene.cameras[0], c2w)
            next(view.refine())
        return view.seconds

    def open(self, host: str, port: int) -> int:
        """Serves the page and returns its port; port 0 chooses a free one.

        Raises:
            OSError: the port is in use, or the host is not this machine's.
        """
        import viser

        check_address(host, port)
        with contextlib.redirect_stdout(io.StringIO()):  # no banner; main prints the address
            self._server = viser.ViserServer(host=host, port=port, label="nerf_tf", verbose=False)
        self._server.gui.configure_theme(show_share_button=False)
        self._server.scene.set_up_direction(progressive_view.up_axis(self.scene.poses))
        c2w, target = progressive_view.initial_view(self.scene)
        camera = self.scene.cameras[0]
        self._server.initial_camera.position = c2w[:, 3]
        self._server.initial_camera.look_at = target
        self._server.initial_camera.fov = 2.0 * np.arctan(0.5 * camera.height / camera.fy)
        self._server.on_client_connect(self._connect)
        self._server.on_client_disconnect(lambda client: self.pages.pop(client.client_id, None))
        self._thread.start()
        return self._server.get_port()

    def close(self) -> None:
        """Stops serving and rendering."""
        self._stopped = True
        self.wake()
        self._thread.join()
        self._server.stop()

    def wake(self) -> None:
        """Wakes the render thread: a page may have changed."""
        self._wake.set()

    def _connect(self, client: viser.ClientHandle) -> None:
        # A browser starts with a camera of its own, and takes the one that it is told a moment later.
        time.sleep(SECONDS_TO_CONNECT)
        if client.client_id not in self._server.get_clients():
            return  # closed meanwhile
        self.pages[client.client_id] = Page(self, client)
        self.wake()

    def _render(self) -> None:
        while not self._stopped:
            self._wake.clear()
            busy = [page.render_chunk() for page in tuple(self.pages.values())]
            video = self.video_job
            if video is not None and next(video, True) and self.video_job is video:
                self.video_job = video = None
            if video is None and not any(busy):
                self._wake.wait()


def check_viser() -> None:
    """Raises ValueError if viser is not installed."""
    if importlib.util.find_spec("viser") is None:
        raise ValueError("needs viser: pip install -e '.[viewer]'")


def check_address(host: str, port: int) -> None:
    """Raises OSError unless the address can be served; viser would wait for ever."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot serve {host}:{port} ({error}); give another --port or --host") from error


def chunk(quality: Quality) -> int:
    """Rays that a renderer of the viewer renders at a time."""
    if tf.config.list_physical_devices("GPU"):
        return GPU_CHUNK
    return CPU_CHUNK_OCCUPANCY if quality.occupancy else CPU_CHUNK


def make_viewer(settings: Settings, out: Path | None) -> Viewer:
    """Makes the viewer of the run that the settings name; it writes to `out`, or to the run's folder.

    Raises:
        ValueError, OSError: files are missing or wrong.
    """
    settings = settings.replace(render_only=True)
    scene, trainer = run_loading.load_scene_and_trainer(settings)

    def renderer(quality: Quality) -> Renderer:
        own = settings.replace(chunk=chunk(quality), **dataclasses.asdict(quality))
        made = build.make_renderer(own, scene, trainer)
        if made.prepare is not None:
            made.prepare()
        return made

    quality = Quality(settings.N_samples, settings.N_importance, settings.occupancy)
    return Viewer(scene, renderer, quality, out or settings.folder)


def _arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    usage = "%(prog)s [RUN] [--host HOST] [--port PORT] [--out DIR] [flags of the program]"
    parser = commandline.Parser("viewer", __doc__, usage)
    parser.add_argument("--host", default="127.0.0.1", help="address to serve; 0.0.0.0: all (default: this computer)")
    parser.add_argument("--port", type=int, default=8080, help="port to serve (default: 8080; 0: any that is free)")
    parser.add_argument("--out", type=Path, help="folder for keyframes and videos (default: the run's)")
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command until it is interrupted; returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("websockets").setLevel(logging.WARNING)  # it logs every browser that connects and leaves
    try:
        args, rest = _arguments(sys.argv[1:] if argv is None else argv)
        check_viser()
        settings = parsing.parse_settings(run_loading.expand_run_argument(rest))
        check_address(args.host, args.port)
        viewer = make_viewer(settings, args.out)
        seconds = viewer.warm_up()
        port = viewer.open(args.host, args.port)
    except (ValueError, OSError) as error:
        return commandline.fail("viewer", error)
    print(f"http://{args.host}:{port} (a first picture takes {seconds:.1f} s); Ctrl-C ends it", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    viewer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
