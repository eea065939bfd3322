"""The package's public functions: scenes, fields and renderers from settings, without a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nerf_tf import app, build
from nerf_tf.data.scene import Scene
from nerf_tf.field.query import Field
from nerf_tf.output import view_files
from nerf_tf.render.renderer import Renderer
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings


def read_config(path: str | Path, **changes: Any) -> Settings:
    """Reads the settings in a config file, as `--config` does.

    Args:
        path: a file of `key = value` lines: one of configs/, or the args.txt of a run.
        changes: values of flags that the file does not decide, such as `datadir="data/lego"`.

    Raises:
        FileNotFoundError, ValueError: no such file, or a key or a value in it is wrong.
    """
    values = parsing.read_config(str(path)) | {"config": str(path)} | changes
    return Settings(**values, from_command_line=frozenset(changes))


def build_fields(settings: Settings) -> tuple[Field, Field | None]:
    """Builds the coarse and the fine network with fresh weights; None where `N_importance` is 0.

    A field takes points [R, S, 3] and unit view directions [R, 3], and returns raw [R, S, 4]: colour before the
    sigmoid, density before the ReLU.

    Raises:
        ValueError: the settings are those of a hash grid, which needs its scene.
    """
    if settings.field == "hash_grid":
        raise ValueError("field=hash_grid: a hash grid lies where its scene is; use train_scene, then load_renderer")
    trainer = build.make_trainer(settings, ndc=False)
    return trainer.coarse, trainer.fine


def load_renderer(settings: Settings, scene: Scene, weights: str | Path | None = None) -> Renderer:
    """Loads trained networks, and what renders views of the scene with them.

    Args:
        settings: shape of the networks, and how to render.
        scene: the scene that they were trained on.
        weights: a coarse weight file of the original or of a run, the fine one lies beside it; or a run's folder. None:
            the folder that `basedir` and `expname` name.

    Returns:
        `renderer.image(camera, c2w)` renders a view, `.path(cameras, poses)` views one after the other, and
        `.rays(rays)` R rays.

    Raises:
        FileNotFoundError, ValueError: there are no such weights, or they belong to networks of another shape.
    """
    settings = settings.replace(config=None, render_only=True, eval_only=False, eval_folder=None)
    if weights is not None and Path(weights).is_dir():
        run = Path(weights).resolve()
        settings = settings.replace(basedir=str(run.parent), expname=run.name, ft_path=None, no_reload=False)
    elif weights is not None:
        settings = settings.replace(ft_path=str(weights), no_reload=False)
    if settings.expname is None:
        settings = settings.replace(expname="none")  # no run's folder is read or written
    trainer = build.restored_trainer(settings, scene)
    return build.make_renderer(settings, scene, trainer)


def write_image(path: str | Path, rgb: np.ndarray) -> None:
    """Writes colours [H, W, 3] in [0, 1] as an 8-bit PNG, as the program writes views."""
    view_files.write_png(Path(path), view_files.to_8bit(rgb))


def train_scene(settings: Settings) -> Path:
    """Trains up to step `N_iters` and writes what the program writes; returns the run's folder.

    Raises:
        ValueError: the settings, the scene or the folder do not allow it, or training failed; the text says why.
        nerf_tf.memory.planning.OutOfMemory: a step does not fit into memory.
        nerf_tf.safety.stop.Stopped: Ctrl-C or SIGTERM asked to stop; a checkpoint is saved.
    """
    if settings.expname is None:
        raise ValueError("expname is missing: name the run")
    try:
        app.run(settings.replace(render_only=False, eval_only=False, eval_folder=None))
    except app.UserError as error:
        raise ValueError(str(error)) from error
    return settings.folder
