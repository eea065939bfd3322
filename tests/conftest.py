"""Fixtures that several test files share."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest

ON_GPU = shutil.which("nvidia-smi") is not None and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")

# Read by TensorFlow when it is imported, here and in the programs that tests start.
# Its start-up notices only bury what a failing test has to say.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# As the program has it: with it the CPU's memory is counted.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
if ON_GPU:
    # Sums in a fixed order: what is equal bit for bit on a CPU is so on a GPU. XLA then tries out no kernels, either,
    # which takes most of the time of compilation.
    os.environ.setdefault("TF_DETERMINISTIC_OPS", "1")
    # Two test processes and their programs share the memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
else:
    # Few of the tests run long enough to make up for LLVM's optimisation. On a GPU it changes results, and some tests
    # compare with a program that runs as users run it.
    XLA_FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    if importlib.metadata.version("tensorflow").startswith("2.21."):  # another may end at flags that it does not know
        # Half the time of compilation.
        XLA_FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    os.environ.setdefault("XLA_FLAGS", " ".join(XLA_FLAGS))


def pytest_configure() -> None:
    """Has a GPU's memory taken as needed, before a test module computes something; afterwards nobody could.

    While modules are imported, nearly nothing is garbage, and looking for it takes a quarter of the time.
    """
    gc.disable()
    if ON_GPU:
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)


# Files that take long come first: so both workers end at about the same time.
LONGEST = ("app", "profile_memory", "distribution", "resume", "viewer", "hash_grid_app", "step", "guards", "golden")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first."""
    order = {f"{name}_test": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """Spares Python's garbage collector what all modules hold, and has it look less often.

    To make a graph takes hundreds of thousands of objects; otherwise all of TensorFlow's are looked through meanwhile.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


@contextlib.contextmanager
def without_gpus() -> Iterator[None]:
    """TensorFlow computes on the CPU and reports no GPU; programs that are started see none."""
    import tensorflow as tf

    every = tf.config.list_physical_devices

    def list_others(kind: str | None = None) -> list:
        return [device for device in every(kind) if device.device_type != "GPU"]

    with (
        mock.patch.object(tf.config, "list_physical_devices", list_others),
        mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES="-1"),
        tf.device("CPU:0"),
    ):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Keeps tests marked `on_cpu` off GPUs: they state what is so on a CPU."""
    with without_gpus() if item.get_closest_marker("on_cpu") else contextlib.nullcontext():
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves out TensorFlow's optimisation of graphs, and TensorFloat-32.

    The optimisation takes a third of the time of a run of a few steps. Results agree to rounding. Tests marked
    `optimised_graphs`, those of goldens and memory, take graphs as users do.
    This comes before the fixtures of a module or session, which would not see what a fixture of one test sets.
    """
    if "tensorflow" in sys.modules:
        import tensorflow as tf

        quick = item.get_closest_marker("optimised_graphs") is None
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": quick})
        # A test with a trainer in tf32 leaves that on.
        from nerf_tf import tensor_float

        tensor_float.use(False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None, item: pytest.Item) -> Iterator[None]:
    """Frees the graphs of a file's tests after the last one.

    TensorFlow registers the custom gradients of each graph, and never takes them out again; with them it keeps all
    graphs that use one. After some files, looking through that garbage and forking took most of the time of tests.
    """
    yield
    if "tensorflow" in sys.modules and (nextitem is None or nextitem.path != item.path):
        from tensorflow.python.framework import ops

        registry = ops.gradient_registry._registry
        for name in [name for name in registry if name.startswith("CustomGradient-")]:
            del registry[name]
        gc.collect()


@pytest.fixture(scope="session")
def portable() -> Path:
    """Inputs that we generated, and what the original code computed from them."""
    return Path(__file__).parent / "data" / "portable"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The authors' scenes and weights, and what the original code computed from them."""
    folder = os.environ.get("NERF_TF_REAL_DATA")
    if not folder:
        pytest.skip("NERF_TF_REAL_DATA, the folder of the authors' scenes, weights and goldens, is not set")
    path = Path(folder).resolve()
    # A misspelt folder must not pass for a machine without the data.
    assert path.is_dir(), f"NERF_TF_REAL_DATA={folder}: no such folder"
    return path


@pytest.fixture(scope="session")
def lego_views(real_data, tmp_path_factory) -> Path:
    """The authors' lego cut to its first view of each split; to read all 102 photos takes longer than most tests."""
    source, folder = real_data / "data" / "nerf_synthetic" / "lego", tmp_path_factory.mktemp("lego")
    for split in ("train", "val", "test"):
        meta = json.loads((source / f"transforms_{split}.json").read_text())
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta | {"frames": meta["frames"][:1]}))
        (folder / split).symlink_to(source / split)
    return folder


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a program of tools/ by name, as Python finds what lies beside a program that it runs."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "tools")
    return importlib.import_module


@pytest.fixture
def peak_memory() -> Callable[[Callable[[], object]], int]:
    """A function that runs another and returns the most bytes TensorFlow held meanwhile, over what it held before.

    They are counted on the device that computes: a GPU if there is one. That is the least of three times: independent
    operations may or may not happen to run side by side.
    """
    import tensorflow as tf

    from nerf_tf.memory import meter

    def measure_once(run: Callable[[], object]) -> int:
        gc.collect()  # what an earlier test left behind would be freed in the midst of it
        try:
            tf.config.experimental.reset_memory_stats(meter.device())
            before = tf.config.experimental.get_memory_info(meter.device())["current"]
        except ValueError as error:
            pytest.skip(f"this TensorFlow keeps no memory statistics: {error}")
        run()
        tf.test.experimental.sync_devices()
        return tf.config.experimental.get_memory_info(meter.device())["peak"] - before

    return lambda run: min(measure_once(run) for _ in range(3))
