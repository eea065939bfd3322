"""Checks an installation: versions, devices, arithmetic, memory counters, videos and images.

    python tools/check_install.py

Prints a line for each: `ok`, or `FAIL` with what to do. The exit code is 0 if all is well, and 1 otherwise.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

# Only the standard library is imported here: the other packages are what this program checks.

OLDEST, NEWEST = (3, 10), (3, 13)
INSTALL = "pip install -e ."
INSTALL_GPU = "pip install -e '.[gpu]'"
SIDE = 512  # of the matrices that are multiplied
# Relative to the product's largest value: float32 rounds at 1e-6 of it, TensorFloat-32 at 1e-3.
TOLERANCE = 1e-5
FRAMES = 10


class Problem(Exception):
    """What a check raises if it fails; its text says what is wrong and what to do, in one line."""


def check_python() -> str:
    """Checks the version of Python."""
    version = sys.version_info[:3]
    if not OLDEST <= version[:2] <= NEWEST:
        found, oldest, newest = (".".join(map(str, limit)) for limit in (version, OLDEST, NEWEST))
        raise Problem(f"{found} is not supported; make an environment with Python {oldest} to {newest}")
    return f"{sys.version.split()[0]}, {sys.executable}"


def check_packages() -> str:
    """Checks the versions of nerf_tf's dependencies against its requirements."""
    try:
        from packaging.requirements import Requirement

        required = [Requirement(text) for text in metadata.requires("nerf_tf") or ()]
    except (ImportError, metadata.PackageNotFoundError) as error:
        name = "nerf_tf" if isinstance(error, metadata.PackageNotFoundError) else error.name
        raise Problem(f"{name} is not installed; in the project's folder: {INSTALL}") from error
    found, wrong = [f"nerf_tf {metadata.version('nerf_tf')}"], []
    for requirement in required:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        found.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        raise Problem(f"{', '.join(wrong)}; in the project's folder: {INSTALL}")
    return ", ".join(found)


def check_tensorflow() -> str:
    """Checks that TensorFlow and Keras can be imported, and that Keras uses TensorFlow."""
    try:
        importlib.import_module("tensorflow")
        backend = importlib.import_module("keras").backend.backend()
    except (ImportError, OSError, AttributeError, TypeError, RuntimeError, ValueError) as error:
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        if backend == "tensorflow":
            raise Problem(f"cannot be imported ({error}); install it again in a new environment: {INSTALL}") from error
    if backend != "tensorflow":
        raise Problem(
            f"Keras computes with {backend}; set KERAS_BACKEND=tensorflow, or mend the backend in ~/.keras/keras.json"
        )
    return "imported, and Keras computes with it"


def check_devices() -> str:
    """Checks that TensorFlow sees the machine's GPU, if there is one."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if not gpus and _has_nvidia_gpu():
        raise Problem(f"TensorFlow does not see this machine's NVIDIA GPU: {_why_no_gpu()}")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
    return ", ".join(["CPU", *names]) + ("" if gpus else " (no NVIDIA GPU here)")


def _has_nvidia_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _why_no_gpu() -> str:
    """The reason why TensorFlow does not see the GPU, and what to do."""
    import tensorflow as tf

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES is {hidden!r}, which hides it; unset it"
    if not tf.test.is_built_with_cuda():
        return f"this TensorFlow is built without CUDA; on Linux, and on Windows in WSL2: {INSTALL_GPU}"
    try:
        subprocess.run(["nvidia-smi"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "its driver does not answer nvidia-smi; install the driver anew, or restart the machine"
    missing = _missing_cuda_packages()
    if missing:
        return f"CUDA's libraries are missing ({', '.join(missing)}); {INSTALL_GPU}"
    cuda = tf.sysconfig.get_build_info().get("cuda_version", "its CUDA")
    return f"its driver may be older than CUDA {cuda}; update the driver"


def _missing_cuda_packages() -> list[str]:
    """Packages that `tensorflow[and-cuda]` requires and that are not installed."""
    wanted = [text for text in metadata.requires("tensorflow") or () if "and-cuda" in text]
    installed = {distribution.metadata["Name"].lower() for distribution in metadata.distributions()}
    return [name for name in (re.match(r"[\w.-]+", text)[0].lower() for text in wanted) if name not in installed]


def check_products() -> str:
    """Compares a matrix product on each device with numpy's in double precision."""
    import numpy as np
    import tensorflow as tf

    from nerf_tf import tensor_float

    tensor_float.use(False)  # as in training
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, SIDE, SIDE)).astype(np.float32)
    expected = left.astype(np.float64) @ right
    found = []
    for device in tf.config.list_logical_devices():
        name = f"{device.device_type}:{device.name.rsplit(':', 1)[1]}"
        if device.device_type not in ("CPU", "GPU"):
            continue
        try:
            with tf.device(name):
                product = tf.matmul(left, right).numpy()
        except (tf.errors.OpError, RuntimeError) as error:
            reason = str(error).splitlines()[0][:200]
            raise Problem(
                f"{name} cannot multiply ({reason}); end other programs that hold its memory (nvidia-smi lists them), "
                "or update the driver"
            ) from error
        worst = float(np.abs(product - expected).max() / np.abs(expected).max())
        if not worst < TOLERANCE:
            raise Problem(f"{name} is wrong by {worst:.1e}; unset NVIDIA_TF32_OVERRIDE, or else suspect the hardware")
        found.append(f"{name} within {worst:.0e} of numpy")
    return ", ".join(found)


def check_memory_counters() -> str:
    """Checks that TensorFlow counts memory, which `--chunk auto` and the measuring programs need."""
    import tensorflow as tf

    from nerf_tf.memory import meter

    device = meter.device()
    try:
        _, peak = meter.measure(lambda: tf.zeros([SIDE, SIDE]) + 1.0), meter.measure(lambda: tf.ones([SIDE, SIDE]))[0]
    except ValueError as error:
        raise Problem(
            f"{device} keeps no count of memory ({error}); unset TF_ENABLE_ONEDNN_OPTS, or give --chunk and --netchunk "
            "as numbers"
        ) from error
    if peak <= 0:
        raise Problem(f"{device} counts no memory; give --chunk and --netchunk as numbers")
    return f"{device} counts {peak:.1f} MB for {SIDE}x{SIDE} numbers"


class _Kept(logging.Handler):
    """Keeps the messages that are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def check_video() -> str:
    """Writes a video of ten frames, as training does."""
    import imageio_ffmpeg
    import numpy as np

    from nerf_tf.output import view_files

    kept = _Kept()
    view_files.logger.addHandler(kept)
    view_files.logger.propagate = False
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            frames = [np.full((64, 96, 3), 25 * i, np.uint8) for i in range(FRAMES)]
            view_files.write_video(path, frames, fps=30)
            if not path.is_file():
                reason = " ".join(kept.lines).partition("no video (")[2].partition(");")[0]
                raise Problem(
                    f"no video ({reason}); pip install --force-reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to "
                    "an ffmpeg with libx264"
                )
            size = path.stat().st_size
    finally:
        view_files.logger.removeHandler(kept)
        view_files.logger.propagate = True
    return f"{FRAMES} frames in {size} bytes, ffmpeg {imageio_ffmpeg.get_ffmpeg_version()}"


def check_images() -> str:
    """Writes a PNG and a JPEG, and reads them back."""
    import numpy as np
    from PIL import Image

    from nerf_tf.output import view_files
    from nerf_tf.storage import image_reader

    pixels = np.linspace(0, 255, 64 * 96 * 3).reshape(64, 96, 3).astype(np.uint8)
    remedy = "pip install --force-reinstall pillow imageio"
    try:
        with tempfile.TemporaryDirectory() as folder:
            png, jpeg = Path(folder) / "image.png", Path(folder) / "image.jpg"
            view_files.write_png(png, pixels)
            Image.fromarray(pixels).save(jpeg, quality=95)
            errors = [np.abs(255 * image_reader.read_image(path) - pixels).max() for path in (png, jpeg)]
    except (OSError, ValueError) as error:
        raise Problem(f"{error}; {remedy}") from error
    if errors[0] > 0.01 or errors[1] > 16:
        raise Problem(f"pixels come back wrong by {errors[0]:g} (PNG) and {errors[1]:g} (JPEG) of 255; {remedy}")
    return "PNG comes back exactly, JPEG nearly"


# Each group needs the ones before it: after a failure, later groups are skipped.
CHECKS: tuple[tuple[tuple[str, Callable[[], str]], ...], ...] = (
    (("Python", check_python), ("packages", check_packages)),
    (("TensorFlow", check_tensorflow),),
    (
        ("devices", check_devices),
        ("products", check_products),
        ("memory counters", check_memory_counters),
        ("video", check_video),
        ("images", check_images),
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="check_install.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    failed = 0
    for group in CHECKS:
        for name, check in group:
            try:
                print(f"ok    {name}: {check()}", flush=True)
            except Problem as problem:
                failed += 1
                print(f"FAIL  {name}: {' '.join(str(problem).split())}", flush=True)
        if failed and group is not CHECKS[-1]:
            print("The rest was not checked.")
            break
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
