"""Loads a trained run for a program: its scene, its networks and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nerf_tf import build
from nerf_tf.data.scene import Scene
from nerf_tf.render.passes import FieldFunction
from nerf_tf.render.renderer import Renderer
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings
from nerf_tf.train.step import Trainer


class LoadedRun(NamedTuple):
    """A trained run.

    Attributes:
        settings: all settings.
        scene: photos and cameras.
        renderer: the networks, with the flags' way of rendering.
    """

    settings: Settings
    scene: Scene
    renderer: Renderer

    @property
    def field(self) -> FieldFunction:
        """The network to ask: the fine one if there is one."""
        return self.renderer.fine or self.renderer.coarse


def expand_run_argument(arguments: Sequence[str]) -> list[str]:
    """Replaces the argument RUN, if the first word is one, by the flags that it stands for.

    RUN is a run's folder, which stands for its args.txt and its newest weights, or a file of coarse weights.

    Raises:
        ValueError: the first word is neither a flag nor a RUN.
    """
    # Later words may be values of flags.
    if not arguments or arguments[0].startswith("-"):
        return list(arguments)
    run, rest = Path(arguments[0]), arguments[1:]
    if run.suffix == ".npy":
        return ["--ft_path", str(run), *rest]
    if not (run / "args.txt").is_file():
        raise ValueError(f"{run}: neither a run's folder (there is no args.txt) nor a .npy file; flags begin with --")
    run = run.resolve()
    # Load the newest weights, not those that the run started from.
    newest = ["--ft_path=", "--no_reload=False"]
    return ["--config", str(run / "args.txt"), "--basedir", str(run.parent), "--expname", run.name, *newest, *rest]


def load_run(arguments: Sequence[str]) -> LoadedRun:
    """Loads the run that arguments describe, see `expand_run_argument`, and the weights to render from.

    Raises:
        ValueError, OSError: data or weights are missing or malformed.
        SystemExit: the flags are wrong; one line says what.
    """
    settings = parsing.parse_settings([*expand_run_argument(arguments), "--render_only"])
    settings = settings.replace(occupancy=False)  # with it, networks give no values in empty space
    scene, trainer = load_scene_and_trainer(settings)
    if not len(scene.i_train):
        raise ValueError(f"{settings.datadir}: all views are held out, none is left to look from; raise --llffhold")
    return LoadedRun(settings, scene, build.make_renderer(settings, scene, trainer))


def load_scene_and_trainer(settings: Settings) -> tuple[Scene, Trainer]:
    """Loads the scene that the settings name, and networks with their weights.

    Raises:
        ValueError, OSError: files are missing or wrong.
    """
    scene = build.load_scene(settings)
    return scene, build.restored_trainer(settings, scene)
