"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

# Read by TensorFlow when it is imported: its start-up notices only bury what a failing test has to say.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Read by XLA when it first compiles: few of the tests run long enough to make up for LLVM's optimisation.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")


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
        from nerf_tf.field import tensor_float

        tensor_float.use(False)


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


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a program of tools/ by name, as Python finds what lies beside a program that it runs."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "tools")
    return importlib.import_module


@pytest.fixture
def peak_memory() -> Callable[[Callable[[], object]], int]:
    """A function that runs another and returns the most bytes TensorFlow held meanwhile, over what it held before.

    That is the least of three times: independent operations may or may not happen to run side by side.
    """
    import tensorflow as tf

    def measure_once(run: Callable[[], object]) -> int:
        gc.collect()  # what an earlier test left behind would be freed in the midst of it
        try:
            tf.config.experimental.reset_memory_stats("CPU:0")
            before = tf.config.experimental.get_memory_info("CPU:0")["current"]
        except ValueError as error:
            pytest.skip(f"this TensorFlow keeps no memory statistics on the CPU: {error}")
        run()
        return tf.config.experimental.get_memory_info("CPU:0")["peak"] - before

    return lambda run: min(measure_once(run) for _ in range(3))
