"""What the programs that look into a trained scene share: scene, networks and weights from the flags of its run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from nerf_tf import build, config
from nerf_tf.data.scene import Scene
from nerf_tf.render.renderer import FieldFunction, Renderer
from nerf_tf.train.checkpoint import CheckpointStore
from nerf_tf.train.trainer import Trainer


class Trained(NamedTuple):
    """A trained scene.

    Attributes:
        values: the flags.
        scene: photos and cameras.
        renderer: the networks, and how the flags want them rendered.
    """

    values: flags.FlagValues
    scene: Scene
    renderer: Renderer

    @property
    def field(self) -> FieldFunction:
        """The network that knows best: the fine one if there is one."""
        return self.renderer.fine or self.renderer.coarse


def load(program: str, arguments: Sequence[str]) -> Trained:
    """The scene that flags of the program describe, with the weights that the program would render from.

    Raises:
        ValueError, OSError: data or weights are missing or malformed.
        SystemExit: the flags are wrong; one line says what.
    """
    values = flags.FlagValues()
    config.parse_flags([program, *arguments, "--render_only"], values)
    values["occupancy"].value = False  # its networks answer only where there is something to see
    scene, trainer = restored(values)
    if not len(scene.i_train):
        raise ValueError(f"{values.datadir}: all views are held out, none is left to look from; raise --llffhold")
    return Trained(values, scene, build.make_renderer(values, scene, trainer))


def restored(values: flags.FlagValues) -> tuple[Scene, Trainer]:
    """The scene that the flags name, and networks with their weights.

    Raises:
        ValueError, OSError: files are missing or wrong.
    """
    scene = build.load_scene(values)
    trainer = build.make_trainer(values, scene.ndc)
    folder = Path(values.basedir) / values.expname
    build.restore(values, trainer, CheckpointStore(trainer, folder / "checkpoints"), folder)
    return scene, trainer
