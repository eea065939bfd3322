"""Runs of the program, many of them killed, that share one import of TensorFlow.

Started as a program, this file imports TensorFlow, without using it, and reads orders from stdin, one JSON object a
line. A forked process carries out each order: it runs the program as a user would, and dies as the order says. The
answer is the exit code, negative if a signal ended the process.
"""

from __future__ import annotations

import dataclasses
import errno
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SIDE = 16
VIEWS = 3


@dataclasses.dataclass(frozen=True)
class Death:
    """When a life ends.

    Attributes:
        place: a key of `places`, or "step".
        call: which call of it, counted from 0.
        moment: "before" it, "after" it, or "torn": after it, with what it wrote cut in half. With "full" nobody dies:
            the disk has no room for what it and all later calls write.
        delay: seconds from then on.
        signals: what is sent then, in this order.
    """

    place: str
    call: int = 0
    moment: str = "before"
    delay: float = 0.0
    signals: tuple[int, ...] = (signal.SIGKILL,)


class Launcher:
    """The process that starts lives, seen from a test."""

    def __init__(self, folder: Path, **more: str) -> None:
        """Starts it; what TensorFlow leaves in the folder of temporary files when it is killed goes to `folder`.

        `more` is added to the environment.
        """
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)} | more
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def live(
        self,
        *arguments: object,
        log: Path,
        death: Death | None = None,
        then: Death | None = None,
        largest_file: int | None = None,
        devices: int = 1,
    ) -> int:
        """Runs the program; what it says is added to `log`. Files longer than `largest_file` cannot be written.

        TensorFlow sees the CPU as so many `devices`.
        """
        return self._carry_out(
            arguments=[str(argument) for argument in arguments],
            log=str(log),
            deaths=[dataclasses.asdict(each) for each in (death, then) if each],
            largest_file=largest_file,
            devices=devices,
        )

    def call(self, function: str, *arguments: object, log: Path, devices: int) -> int:
        """Calls a function `module.name` of a file in this folder, which logs errors; returns 1 if it raised one.

        TensorFlow sees the CPU as so many `devices`.
        """
        return self._carry_out(function=function, arguments=arguments, log=str(log), devices=devices)

    def _carry_out(self, **order: Any) -> int:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def places() -> dict[str, tuple[Any, str]]:
    """Where a life can end: an object, and the name of its function."""
    import tensorflow as tf
    from imageio.plugins.ffmpeg import FfmpegFormat

    from nerf_tf.output.summaries import Summaries
    from nerf_tf.render.renderer import Renderer
    from nerf_tf.storage import tf1_weights

    return {
        "replace": (os, "replace"),  # a file gets its name
        "rename": (os, "rename"),  # a checkpoint gets its name, or loses it
        "fsync": (os, "fsync"),
        "checkpoint": (tf.train.Checkpoint, "write"),
        "removal": (os, "rmdir"),
        "weights": (tf1_weights.npy_format, "write_array_header_1_0"),  # the rest of the file follows it
        "image": (Path, "write_bytes"),
        "video": (FfmpegFormat.Writer, "_append_data"),
        "scalars": (Summaries, "write_scalars"),
        "view": (Summaries, "write_view"),
        "render": (Renderer, "image"),
    }


def main() -> None:
    """Carries out orders."""
    gc.disable()  # nothing of what is imported is garbage
    # What is imported late, too: each life would have to load it.
    import numpy as np
    from tensorboard.backend.event_processing import event_file_loader  # noqa: F401
    from tensorboard.util import tensor_util  # noqa: F401

    from nerf_tf import app  # noqa: F401
    from nerf_tf.output import curve, view_files

    curve.draw_curves({})  # has matplotlib find its fonts
    with tempfile.TemporaryDirectory() as folder:  # has imageio try ffmpeg's encoders, on hundreds of frames
        view_files.write_video(Path(folder, "a.mp4"), [np.zeros((SIDE, SIDE, 3), np.uint8)], 5)
    gc.freeze()  # what is here at the fork need not be looked through in each life
    gc.set_threshold(50_000, 20, 50)
    gc.enable()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            live(json.loads(line))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def live(order: dict[str, Any]) -> None:
    """Carries out an order, and ends this process."""
    import tensorflow as tf

    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored
    # Saves a third of the time that goes into making graphs, which is nearly all there is.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    if order["devices"] > 1:
        one = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [one] * order["devices"])
    code = call(**order) if "function" in order else run(**order)
    sys.stderr.flush()
    os._exit(code)


def call(function: str, arguments: list[Any], **_: Any) -> int:
    """Calls a function of a file in this folder; returns 1 if it raised something, and prints that."""
    module, name = function.split(".")
    try:
        getattr(importlib.import_module(module), name)(*arguments)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def run(arguments: list[str], deaths: list[dict[str, Any]], largest_file: int | None, **_: Any) -> int:
    """Runs the program; returns its exit code."""
    from nerf_tf import app
    from nerf_tf.settings import parsing

    make_small()
    for death in deaths:
        die(Death(**death))
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    return app.main(parsing.parse_settings(arguments))


def make_small() -> None:
    """Makes scenes small, as DeepVoxels' are 512 pixels wide whatever their files are, and paths and curves."""
    from nerf_tf import build
    from nerf_tf.output import curve, figures

    load = build.load_scene

    def load_small(values):
        scene = load(values)
        step = max(scene.images.shape[1] // SIDE, 1)
        return dataclasses.replace(
            scene,
            images=scene.images[:, ::step, ::step],
            cameras=tuple(camera.downscaled(step) for camera in scene.cameras),
            render_poses=scene.render_poses[:VIEWS],
            i_test=scene.i_test[:VIEWS],
        )

    build.load_scene = load_small
    # Drawn often, for a quarter of a second each, and compared with nothing.
    curve.draw_curves = lambda runs: figures.new_figure(1, 1)


def die(death: Death) -> None:
    """Sees to it that this process dies as it should."""
    count = -1

    def end() -> None:
        for number in death.signals:
            os.kill(os.getpid(), number)

    def counted(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        nonlocal count
        count += 1
        if death.moment == "full" and count >= death.call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if count != death.call:
            return function(*arguments, **keywords)
        if death.delay:
            threading.Timer(death.delay, end).start()
        elif death.moment == "before":
            end()
        result = function(*arguments, **keywords)
        if death.moment == "torn":
            tear(death.place, arguments)
        if death.moment in ("after", "torn"):
            end()
        if death.moment == "torn":
            time.sleep(60)  # what ends within a write gets no further, though a thread may yet have to see to it
        return result

    if death.place == "step":
        count_steps(counted)
    else:
        owner, name = places()[death.place]
        function = getattr(owner, name)
        setattr(owner, name, lambda *arguments, **keywords: counted(function, *arguments, **keywords))


def count_steps(counted: Callable[..., Any]) -> None:
    """Has each training step counted; the first is over when its graph is made."""
    from nerf_tf import training

    train = training.train

    def train_counted(trainer, *arguments, **keywords):
        step = trainer.train_step
        trainer.train_step = lambda batch: counted(step, batch)
        train(trainer, *arguments, **keywords)

    training.train = train_counted


def tear(place: str, arguments: tuple[Any, ...]) -> None:
    """Cuts what was just written, as if the process had died within the system's call."""
    if place == "image":
        path, size = Path(arguments[0]), 0.5
    elif place == "checkpoint":
        path, size = Path(f"{arguments[1]}.data-00000-of-00001"), 0.5
    else:
        path = max(arguments[0]._folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns)
        size = 1 - 5 / path.stat().st_size  # within the last record
    os.truncate(path, int(size * path.stat().st_size))


if __name__ == "__main__":
    main()
