"""What the programs that look into a trained scene share: scene, networks and weights from the flags of its run."""

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


class Trained(NamedTuple):
    """A trained scene.

    Attributes:
        settings: all settings.
        scene: photos and cameras.
        renderer: the networks, and how the flags want them rendered.
    """

    settings: Settings
    scene: Scene
    renderer: Renderer

    @property
    def field(self) -> FieldFunction:
        """The network that knows best: the fine one if there is one."""
        return self.renderer.fine or self.renderer.coarse


def with_run(arguments: Sequence[str]) -> list[str]:
    """Flags of the program; where the first word is none, it is replaced by the flags that it stands for.

    That word is a run's folder, for its args.txt and its newest weights, or a file of coarse weights.

    Raises:
        ValueError: it is neither.
    """
    # Words further on may be values of flags that only the program knows.
    if not arguments or arguments[0].startswith("-"):
        return list(arguments)
    run, rest = Path(arguments[0]), arguments[1:]
    if run.suffix == ".npy":
        return ["--ft_path", str(run), *rest]
    if not (run / "args.txt").is_file():
        raise ValueError(f"{run}: neither a run's folder (there is no args.txt) nor a .npy file; flags begin with --")
    run = run.resolve()
    # The newest weights, whatever the run itself began with.
    newest = ["--ft_path=", "--no_reload=False"]
    return ["--config", str(run / "args.txt"), "--basedir", str(run.parent), "--expname", run.name, *newest, *rest]


def load(arguments: Sequence[str]) -> Trained:
    """The scene that a run or flags (see `with_run`) describe, with the weights that the program would render from.

    Raises:
        ValueError, OSError: data or weights are missing or malformed.
        SystemExit: the flags are wrong; one line says what.
    """
    settings = parsing.parse_settings([*with_run(arguments), "--render_only"])
    settings = settings.replace(occupancy=False)  # its networks answer only where there is something to see
    scene, trainer = restored(settings)
    if not len(scene.i_train):
        raise ValueError(f"{settings.datadir}: all views are held out, none is left to look from; raise --llffhold")
    return Trained(settings, scene, build.make_renderer(settings, scene, trainer))


def restored(settings: Settings) -> tuple[Scene, Trainer]:
    """The scene that the flags name, and networks with their weights.

    Raises:
        ValueError, OSError: files are missing or wrong.
    """
    scene = build.load_scene(settings)
    return scene, build.restored_trainer(settings, scene)
