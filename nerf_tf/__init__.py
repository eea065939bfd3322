"""NeRF (Mildenhall et al., ECCV 2020) on TensorFlow 2 and Keras 3: the original's flags, files and numbers.

The names below are the package's public surface; docs/library.md describes them.
"""

import importlib
import os
import sys
from typing import Any

# Keras reads this when it is first imported; another backend, set for other projects, could not run a tf.function.
os.environ["KERAS_BACKEND"] = "tensorflow"
# TensorFlow reads this when it is first imported. Its default depends on the processor; with it on, products are no
# slower, and the memory of a CPU is counted.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.3.0"

# Where each public name is defined. They are imported when first used: TensorFlow takes seconds to load.
_PUBLIC = {
    "Settings": "settings.settings",
    "Scene": "data.scene",
    "read_config": "library",
    "load_scene": "build",
    "build_fields": "library",
    "load_renderer": "library",
    "train_scene": "library",
    "image_rays": "geometry.rays",
    "RenderSettings": "render.passes",
    "render_rays": "render.passes",
    "write_image": "library",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PUBLIC[name]}")
    if "tensorflow" in sys.modules:  # turns TensorFloat-32 off, also where only `render_rays` is used
        importlib.import_module(f"{__name__}.field")
    return getattr(module, name)
