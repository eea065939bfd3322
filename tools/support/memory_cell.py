"""One combination of settings whose memory is measured, and the measurement, which wants a process of its own."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from nerf_tf import build
from nerf_tf.data.pipeline import RayBatch
from nerf_tf.field.encoding import positional_encoding
from nerf_tf.field.mlp import FieldSettings
from nerf_tf.field.query import Field
from nerf_tf.geometry.rays import Rays
from nerf_tf.memory import planning, prediction
from nerf_tf.memory.meter import Meter, Stage, measure
from nerf_tf.render.passes import RenderSettings, render_rays
from nerf_tf.render.sampling import add_fine_samples, stratified_t_vals
from nerf_tf.render.volume import volume_render
from nerf_tf.settings.settings import Settings
from nerf_tf.train.step import Trainer

WAYS = ("original", "engine")  # of rendering a chunk: eager and encodings first, or tile by tile


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination of settings to measure.

    Attributes:
        mode: train or render.
        rays: those of a step; when rendering, those of the chunk.
        chunk, netchunk, N_samples, N_importance, precision, netwidth, netwidth_fine: as the program's flags.
        retraw: whether raw leaves the rendered chunk.
    """

    mode: str
    rays: int
    chunk: int
    netchunk: int
    N_samples: int
    N_importance: int
    retraw: bool
    precision: str
    netwidth: int
    netwidth_fine: int

    def settings(self, settings: Settings) -> Settings:
        """The program's settings with the values of this cell."""
        names = ("chunk", "netchunk", "N_samples", "N_importance", "netwidth", "netwidth_fine")
        own = {name: getattr(self, name) for name in names}
        return settings.replace(**own, N_rand=self.rays, mixed_precision=self.precision)

    @property
    def samples(self) -> str:
        """As in --samples."""
        return f"{self.N_samples}+{self.N_importance}"


def made_up_rays(settings: Settings, ndc: bool, count: int) -> Rays:
    """Rays such as a scene of this kind has: from around it to its middle, or under NDC straight through the cube."""
    rng = np.random.default_rng(0)
    if ndc:
        origins = np.stack([*rng.uniform(-1, 1, [2, count]), -np.ones(count)], axis=-1)
        directions = np.stack([*rng.uniform(-0.2, 0.2, [2, count]), np.full(count, 2.0)], axis=-1)
        default_near, default_far = 0.0, 1.0
    else:
        directions = rng.normal(size=[count, 3])
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        origins = rng.uniform(-0.5, 0.5, [count, 3]) - 4.0 * directions
        default_near, default_far = 2.0, 6.0
    viewdirs = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    near = np.full([count, 1], default_near if settings.near is None else settings.near)
    far = np.full([count, 1], default_far if settings.far is None else settings.far)
    return Rays(*(tf.constant(x, tf.float32) for x in (origins, directions, viewdirs, near, far)))


def built_trainer(cell: Cell, settings: Settings, weights: str, ndc: bool) -> Trainer:
    """The program's networks and optimizer for a cell, with typical weights or the worst."""
    trainer = build.make_trainer(cell.settings(settings), ndc)
    if weights == "worst":
        density = 1.0 + 4.0 * settings.raw_noise_std  # noise takes it below zero once in 30,000 samples
        for field in filter(None, (trainer.coarse, trainer.fine)):
            set_density(field, density)
        # Nor is the gradient of any sample too small to count.
        trainer.coarse = dataclasses.replace(trainer.coarse, row_tolerance=0.0)
        trainer.fine = trainer.fine and dataclasses.replace(trainer.fine, row_tolerance=0.0)
    elif settings.ft_path is not None:
        build.load_weights(trainer, Path(settings.ft_path))
    trainer.resize(cell.chunk, cell.netchunk)
    return trainer


def set_density(field: Field, density: float) -> None:
    """Gives every sample that raw density, whatever the other weights."""
    layer, column = ("alpha", 0) if field.settings.use_viewdirs else ("raw", 3)
    kernel, bias = field.mlp.get_layer(layer).get_weights()
    kernel[:, column], bias[column] = 0.0, density
    field.mlp.get_layer(layer).set_weights([kernel, bias])


def predicted_mb(cell: Cell, trainer: Trainer) -> float:
    """What the planner says that a cell takes."""
    work = build.workload(trainer, cell.mode == "train", cell.rays)
    return prediction.predict_memory(work, cell.chunk, cell.netchunk) / prediction.MEGABYTE


def work_of(cell: Cell, trainer: Trainer, rays: Rays) -> Callable[[], object]:
    """One step of training, or the rendering of one chunk."""
    if cell.mode == "train":
        batch = RayBatch(rays, tf.random.stateless_uniform([cell.rays, 3], [0, 0]))
        return lambda: trainer.train_step(batch)
    settings = trainer.rendering.deterministic()

    @tf.function
    def render_chunk(rays: Rays) -> list[tf.Tensor]:
        fine, coarse, z_std, raw = render_rays(trainer.coarse, trainer.fine, rays, settings, keep_raw=cell.retraw)
        kept = [fine.rgb, fine.disp, fine.acc, fine.depth]
        kept += [] if coarse is None else [coarse.rgb, coarse.disp, coarse.acc, z_std]
        return [*kept, raw] if cell.retraw else kept

    return lambda: render_chunk(rays)


# Takes points [R, S, 3] and view directions [R, 3] to raw [R, S, 4].
Network = Callable[[Meter, tf.Tensor, tf.Tensor], tf.Tensor]


def encode_all(points: tf.Tensor, viewdirs: tf.Tensor, settings: FieldSettings) -> tf.Tensor:
    """Encodings of all points of a chunk, side by side with those of a view direction for each point."""
    parts = [positional_encoding(tf.reshape(points, [-1, 3]), settings.multires)]
    if settings.use_viewdirs:
        each = tf.reshape(tf.broadcast_to(viewdirs[:, None], points.shape), [-1, 3])
        parts.append(positional_encoding(each, settings.multires_views))
    return tf.concat(parts, axis=-1)


def in_pieces(mlp: keras.Model, encoded: tf.Tensor, netchunk: int) -> tf.Tensor:
    """Raw of encodings, netchunk of them at a time."""
    widths = [x.shape[-1] for x in mlp.inputs]
    pieces = (encoded[i : i + netchunk] for i in range(0, encoded.shape[0], netchunk))
    return tf.concat([mlp(tf.split(piece, widths, axis=-1)) for piece in pieces], axis=0)


def original_network(name: str, field: Field) -> Network:
    """The original's way: encode all points of the chunk, then cut the encodings into pieces."""

    def raw(meter: Meter, points: tf.Tensor, viewdirs: tf.Tensor) -> tf.Tensor:
        encoded = meter(f"{name} encoding", encode_all, points, viewdirs, field.settings)
        flat = meter(f"{name} MLP", in_pieces, field.mlp, encoded, field.netchunk)
        return tf.reshape(flat, [*points.shape[:2], 4])

    return raw


def engine_network(name: str, field: Field, retraw: bool) -> Network:
    """The program's way: points are encoded inside a tile."""
    query = tf.function(lambda points, viewdirs: field(points, viewdirs, None if retraw else 0.0))

    def raw(meter: Meter, points: tf.Tensor, viewdirs: tf.Tensor) -> tf.Tensor:
        meter.add_nested_stage(f"{name} encoding")
        return meter(f"{name} MLP", query, points, viewdirs)

    return raw


def staged(way: str, trainer: Trainer, retraw: bool) -> Callable[[Meter, Rays], list[tf.Tensor]]:
    """Rendering of a chunk with a meter at every stage: eager as the original, or of compiled graphs as the program.

    Returns:
        A function that gives what leaves the chunk.
    """
    settings, original = trainer.rendering.deterministic(), way == "original"
    stage = (lambda function: function) if original else tf.function
    fields = {"coarse": trainer.coarse, "fine": trainer.fine}
    coarse, fine = (
        field and (original_network(name, field) if original else engine_network(name, field, retraw))
        for name, field in fields.items()
    )
    coarse_samples = stage(lambda rays: _coarse_samples(rays, settings))
    fine_samples = stage(lambda rays, t_vals, weights: _fine_samples(rays, t_vals, weights, settings))
    composite = stage(lambda raw, t_vals, rays: volume_render(raw, t_vals, rays.directions, None, settings.white_bkgd))

    def render(meter: Meter, rays: Rays) -> list[tf.Tensor]:
        t_vals, points = meter("coarse samples", coarse_samples, rays)
        raw = coarse(meter, points, rays.viewdirs)
        points = points if original else None  # a graph lets go of what nobody reads any more; Python does not
        final = meter("coarse compositing", composite, raw, t_vals, rays)
        further = []
        if fine is not None:
            first, raw = final, raw if original else None
            t_vals, points, z_std = meter("fine samples", fine_samples, rays, t_vals, first.weights)
            raw = fine(meter, points, rays.viewdirs)
            points = points if original else None
            final = meter("fine compositing", composite, raw, t_vals, rays)
            further = [first.rgb, first.disp, first.acc, z_std]
        kept = [final.rgb, final.disp, final.acc, *([] if original else [final.depth]), *further]
        return [*kept, raw] if retraw else kept

    return render


def _points(rays: Rays, t_vals: tf.Tensor) -> tf.Tensor:
    return rays.origins[:, None, :] + rays.directions[:, None, :] * t_vals[..., None]


def _coarse_samples(rays: Rays, settings: RenderSettings) -> tuple[tf.Tensor, tf.Tensor]:
    t_vals = stratified_t_vals(rays.near, rays.far, settings.N_samples, settings.lindisp)
    return t_vals, _points(rays, t_vals)


def _fine_samples(rays: Rays, t_vals: tf.Tensor, weights: tf.Tensor, settings: RenderSettings):
    u = tf.broadcast_to(tf.linspace(0.0, 1.0, settings.N_importance), [t_vals.shape[0], settings.N_importance])
    t_vals, new_t_vals = add_fine_samples(t_vals, weights, u)
    return t_vals, _points(rays, t_vals), tf.math.reduce_std(new_t_vals, axis=-1)


def account(way: str, trainer: Trainer, rays: Rays, retraw: bool) -> list[Stage]:
    """What each stage of rendering these rays costs, in their order."""
    render = staged(way, trainer, retraw)
    render(Meter(), rays)  # traces, and makes what is made only once
    meter = Meter()
    kept = render(meter, rays)
    meter("returned tensors", lambda: kept)
    return meter.stages


def run_cell(cell: Cell, way: str | None, settings: Settings, weights: str) -> int:
    """Measures a cell, or accounts for it the given way, and prints lines of JSON; returns the exit code."""
    settings = settings.replace(random_seed=settings.random_seed or 0)
    ndc = settings.dataset_type == "llff" and not settings.no_ndc
    try:
        trainer = built_trainer(cell, settings, weights, ndc)
        rays = made_up_rays(settings, ndc, cell.rays)
        if way is not None:
            for stage in account(way, trainer, rays, cell.retraw):
                print(json.dumps(stage._asdict()))
            return 0
        print(json.dumps({"predicted_mb": predicted_mb(cell, trainer)}), flush=True)  # it may be all there will be
        measured_mb, seconds = measure(work_of(cell, trainer, rays))
        print(json.dumps({"measured_mb": measured_mb, "seconds": seconds}))
    except tf.errors.ResourceExhaustedError as error:
        print("out of memory:", planning.failed_allocation(error), file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0
