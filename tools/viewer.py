"""Shows a trained scene in the browser: look around while it is rendered, from coarse to fine.

    python tools/viewer.py logs/demo
    python tools/viewer.py model_200000.npy --config configs/lego.txt --datadir data/nerf_synthetic/lego
    python tools/viewer.py logs/demo --mixed_precision bfloat16 --port 8081

RUN is a run's folder, whose args.txt and newest weights are taken, or a file of coarse weights. Every flag of the
program may be given and means what it means there; --mixed_precision bfloat16 is a good deal faster. Keyframes and
videos made on the page are written to --out. The page is for this computer only unless --host says otherwise: whoever
can open it can look, and have files written to --out.
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
from support import commandline, refinement, trained
from support.viewer_page import Page, Quality

from nerf_tf import build
from nerf_tf.data.scene import Scene
from nerf_tf.render.renderer import Renderer
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings

if TYPE_CHECKING:
    import viser

logger = logging.getLogger("viewer")

# Rays between two looks at what the browser wants: half a second's work on two cores, or less where most is skipped.
CPU_CHUNK, CPU_CHUNK_OCCUPANCY, GPU_CHUNK = 512, 2048, 4096
SECONDS_TO_SETTLE = 0.1


class Viewer:
    """The server: one thread renders for all pages, a chunk for each in turn.

    Attributes:
        scene: photos and cameras.
        quality: the one to begin with.
        out: folder for keyframes and videos.
        pages: the open ones, by the browser's number.
        filming: renders a chunk of the video in work at every step; None if there is none.
    """

    def __init__(self, scene: Scene, make_renderer: Callable[[Quality], Renderer], quality: Quality, out: Path):
        self.scene, self.quality, self.out = scene, quality, out
        self.pages: dict[int, Page] = {}
        self.filming: Iterator[None] | None = None
        self._make_renderer, self._renderers = make_renderer, {}
        self._wake, self._stopped = threading.Event(), False
        self._thread = threading.Thread(target=self._render, name="render", daemon=True)

    def renderer(self, quality: Quality) -> Renderer:
        """Makes (or finds) the renderer of a quality."""
        if quality not in self._renderers:
            self._renderers[quality] = self._make_renderer(quality)
        return self._renderers[quality]

    def is_ready(self, quality: Quality) -> bool:
        """Whether that need not be made."""
        return quality in self._renderers

    def warm_up(self) -> float:
        """Renders first pictures, so that no page waits for their graphs; returns the seconds that one takes then."""
        c2w, _ = refinement.first_view(self.scene)
        for quality in (self.quality, self.quality.preview(), self.quality.preview()):
            view = refinement.View(self.renderer(quality), self.scene, self.scene.cameras[0], c2w)
            next(view.refine())
        return view.seconds

    def open(self, host: str, port: int) -> int:
        """Serves the page, and returns its port: a free one for port 0.

        Raises:
            OSError: the port is in use, or no such host is here.
        """
        import viser

        check_address(host, port)
        with contextlib.redirect_stdout(io.StringIO()):  # its banner; main says the address in one line
            self._server = viser.ViserServer(host=host, port=port, label="nerf_tf", verbose=False)
        self._server.gui.configure_theme(show_share_button=False)
        self._server.scene.set_up_direction(refinement.up_axis(self.scene.poses))
        c2w, target = refinement.first_view(self.scene)
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
        """Says that a page may want something."""
        self._wake.set()

    def _connect(self, client: viser.ClientHandle) -> None:
        # A browser begins with a camera of its own, and goes where it is told to begin a moment later.
        time.sleep(SECONDS_TO_SETTLE)
        if client.client_id not in self._server.get_clients():
            return  # and may be gone again
        self.pages[client.client_id] = Page(self, client)
        self.wake()

    def _render(self) -> None:
        while not self._stopped:
            self._wake.clear()
            busy = [page.work() for page in tuple(self.pages.values())]
            film = self.filming
            if film is not None and next(film, True) and self.filming is film:
                self.filming = film = None
            if film is None and not any(busy):
                self._wake.wait()


def check_viser() -> None:
    """Raises ValueError, which says how to get it, if viser is not installed."""
    if importlib.util.find_spec("viser") is None:
        raise ValueError("needs viser: pip install -e '.[viewer]'")


def check_address(host: str, port: int) -> None:
    """Raises OSError, which says how to go on, unless the address can be served; viser would wait for ever."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot serve {host}:{port} ({error}); give another --port or --host") from error


def chunk(quality: Quality) -> int:
    """How many rays a renderer of the viewer takes at a time."""
    if tf.config.list_physical_devices("GPU"):
        return GPU_CHUNK
    return CPU_CHUNK_OCCUPANCY if quality.occupancy else CPU_CHUNK


def make_viewer(settings: Settings, out: Path | None) -> Viewer:
    """The viewer of what the flags name, which writes to `out`, or to the run's folder.

    Raises:
        ValueError, OSError: files are missing or wrong.
    """
    settings = settings.replace(render_only=True)
    scene, trainer = trained.restored(settings)

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
    logging.getLogger("websockets").setLevel(logging.WARNING)  # it tells of every browser that comes and goes
    try:
        args, rest = _arguments(sys.argv[1:] if argv is None else argv)
        check_viser()
        settings = parsing.parse_settings(trained.with_run(rest))
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
