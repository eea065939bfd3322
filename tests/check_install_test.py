"""tools/check_install.py: all checks pass here, and each problem gives its message."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from nerf_tf.memory import meter
from nerf_tf.storage import image_reader

NAMES = ["Python", "packages", "TensorFlow", "devices", "products", "memory counters", "video", "images"]


@pytest.fixture
def check(tool, capsys):
    """Runs the program; returns its exit code, and what it says of each thing."""

    def run() -> tuple[int, dict[str, str]]:
        code = tool("check_install").main([])
        lines = capsys.readouterr().out.splitlines()
        return code, {line[6:].partition(": ")[0]: line for line in lines}

    return run


def test_all_is_well_where_the_tests_run(check):
    code, said = check()
    assert code == 0
    assert list(said) == NAMES
    assert all(line.startswith("ok    ") for line in said.values())
    assert f"tensorflow {metadata.version('tensorflow')}, keras {metadata.version('keras')}" in said["packages"]
    assert "CPU:0 within" in said["products"]
    assert "10 frames in" in said["video"]


def missing(name: str):
    version = metadata.version

    def found(asked: str) -> str:
        if asked == name:
            raise metadata.PackageNotFoundError(asked)
        return "2.10.0" if asked == "tensorflow" else version(asked)

    return found


def test_packages_that_are_missing_or_old(check, monkeypatch):
    monkeypatch.setattr(metadata, "version", missing("tqdm"))
    code, said = check()
    assert code == 1
    assert said["packages"].startswith("FAIL  packages: tensorflow 2.10.0 is not ")
    assert said["packages"].endswith(", tqdm is missing; in the project's folder: pip install -e .")
    assert list(said) == ["Python", "packages", "st was not checked."]


def test_a_project_that_was_not_installed(check, monkeypatch):
    def not_installed(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", not_installed)
    assert (
        check()[1]["packages"] == "FAIL  packages: nerf_tf is not installed; in the project's folder: pip install -e ."
    )


def test_another_python(tool, check, monkeypatch):
    monkeypatch.setattr(tool("check_install"), "OLDEST", (3, 99))
    code, said = check()
    assert code == 1
    assert said["Python"].endswith("is not supported; make an environment with Python 3.99 to 3.13")


def test_keras_on_another_backend(check, monkeypatch):
    import keras

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    code, said = check()
    assert code == 1
    assert said["TensorFlow"].startswith("FAIL  TensorFlow: Keras computes with jax; set KERAS_BACKEND=tensorflow")
    assert "devices" not in said


@pytest.fixture
def unseen(tool, monkeypatch, tmp_path):
    """A machine with an NVIDIA GPU that answers, and a TensorFlow with CUDA that does not see it."""
    monkeypatch.setattr(tool("check_install"), "_has_nvidia_gpu", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: True)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return program


def asserts_unseen(said: dict[str, str], reason: str) -> None:
    assert said["devices"].startswith("FAIL  devices: TensorFlow does not see this machine's NVIDIA GPU: ")
    assert reason in said["devices"]
    assert said["images"].startswith("ok")


def test_a_gpu_that_tensorflow_does_not_see(check, tool, unseen, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "distributions", list)
        asserts_unseen(check()[1], "CUDA's libraries are missing (nvidia-cublas-cu12, ")
        assert check()[1]["devices"].endswith("; pip install -e '.[gpu]'")
    monkeypatch.setattr(tool("check_install"), "_missing_cuda_packages", list)
    asserts_unseen(check()[1], "its driver may be older than CUDA ")
    unseen.write_text("#!/bin/sh\nexit 9\n")
    asserts_unseen(check()[1], "its driver does not answer nvidia-smi")
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: False)
    asserts_unseen(check()[1], "this TensorFlow is built without CUDA; on Linux, and on Windows in WSL2: pip install")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    code, said = check()
    assert code == 1
    asserts_unseen(said, "CUDA_VISIBLE_DEVICES is '-1', which hides it; unset it")


def test_a_device_that_cannot_multiply(check, monkeypatch):
    def fail(*_: object) -> None:
        raise tf.errors.InternalError(None, None, "Blas GEMM launch failed : a.shape=(512, 512)\nmore")

    monkeypatch.setattr(tf, "matmul", fail)
    code, said = check()
    assert code == 1
    assert said["products"] == (
        "FAIL  products: CPU:0 cannot multiply (Blas GEMM launch failed : a.shape=(512, 512)); end other programs that "
        "hold its memory (nvidia-smi lists them), or update the driver"
    )


def test_a_device_that_rounds_to_ten_bits(check, monkeypatch):
    product = tf.matmul

    def rounded(a: np.ndarray, b: np.ndarray) -> tf.Tensor:
        a, b = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b))
        return product(a, b)

    monkeypatch.setattr(tf, "matmul", rounded)
    code, said = check()
    assert code == 1
    assert said["products"].startswith("FAIL  products: CPU:0 is wrong by ")
    assert "unset NVIDIA_TF32_OVERRIDE" in said["products"]


@pytest.mark.on_cpu
def test_a_device_that_counts_no_memory(check, monkeypatch):
    def fail(_: object) -> None:
        raise ValueError("Cannot reset memory stats for device 'CPU:0'")

    monkeypatch.setattr(meter, "measure", fail)
    code, said = check()
    assert code == 1
    assert said["memory counters"].startswith("FAIL  memory counters: CPU:0 keeps no count of memory (Cannot reset ")


@pytest.mark.parametrize("program", ["/nowhere/ffmpeg", "/bin/false", "/bin/true"])
def test_an_ffmpeg_that_cannot_encode(check, monkeypatch, program):
    from imageio_ffmpeg import _io

    for cached in (_io.get_compiled_h264_encoders, _io.get_first_available_h264_encoder):
        getattr(cached, "cache_clear", lambda: None)()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program)
    code, said = check()
    assert code == 1
    assert said["video"].startswith("FAIL  video: no video (")
    assert said["video"].endswith("or set IMAGEIO_FFMPEG_EXE to an ffmpeg with libx264")


def test_images_that_come_back_wrong(check, monkeypatch):
    monkeypatch.setattr(image_reader, "read_image", lambda _: np.zeros((64, 96, 3), np.float32))
    code, said = check()
    assert code == 1
    assert (
        "pixels come back wrong by 255 (PNG) and 255 (JPEG) of 255; pip install --force-reinstall pil" in said["images"]
    )


def test_it_runs_where_nothing_is_installed(tmp_path):
    """Python alone: what is missing is said, and not shown as a stack of lines."""
    import subprocess
    import sys

    program = Path(__file__).parent.parent / "tools" / "check_install.py"
    result = subprocess.run(
        [sys.executable, "-I", "-S", str(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    assert result.stderr == ""
    assert result.stdout.splitlines()[1:] == [
        "FAIL  packages: packaging is not installed; in the project's folder: pip install -e .",
        "The rest was not checked.",
    ]
