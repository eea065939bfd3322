"""Measures the memory of one combination of settings; the process should do nothing else."""

from __future__ import annotations

import dataclasses
import functools
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
from nerf_tf.memory.meter import Meter, Stage, make_room, measure
from nerf_tf.render.passes import RenderSettings, render_rays
from nerf_tf.render.sampling import add_fine_samples, stratified_t_vals
from nerf_tf.render.volume import volume_render
from nerf_tf.settings.settings import Settings
from nerf_tf.train.step import Trainer

# Two ways of rendering a chunk: eagerly with all encodings first, or tile by tile.
WAYS = ("original", "engine")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination of settings to measure.

    Attributes:
        mode: train or render.
        rays: rays of a step; when rendering, of the chunk.
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
        """The given settings with this cell's values."""
        names = ("chunk", "netchunk", "N_samples", "N_importance", "netwidth", "netwidth_fine")
        own = {name: getattr(self, name) for name in names}
        return settings.replace(**own, N_rand=self.rays, mixed_precision=self.precision)

    @property
    def samples(self) -> str:
        """The samples as --samples takes them."""
        return f"{self.N_samples}+{self.N_importance}"


def random_rays(settings: Settings, ndc: bool, count: int) -> Rays:
    """Random rays like those of a scene: from around it towards its middle, or under NDC through the cube."""
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


def make_trainer(cell: Cell, settings: Settings, weights: str, ndc: bool) -> Trainer:
    """The program's networks and optimizer for a cell, with typical or worst-case weights."""
    trainer = build.make_trainer(cell.settings(settings), ndc)
    if weights == "worst":
        density = 1.0 + 4.0 * settings.raw_noise_std  # noise makes it negative in one of 30,000 samples at most
        for field in filter(None, (trainer.coarse, trainer.fine)):
            set_density(field, density)
        # And no sample's gradient is left out as too small.
        trainer.coarse = dataclasses.replace(trainer.coarse, row_tolerance=0.0)
        trainer.fine = trainer.fine and dataclasses.replace(trainer.fine, row_tolerance=0.0)
    elif settings.ft_path is not None:
        build.load_weights(trainer, Path(settings.ft_path))
    trainer.resize(cell.chunk, cell.netchunk)
    return trainer


def set_density(field: Field, density: float) -> None:
    """Sets the last layer so that every sample has this raw density."""
    layer, column = ("alpha", 0) if field.settings.use_viewdirs else ("raw", 3)
    kernel, bias = field.mlp.get_layer(layer).get_weights()
    kernel[:, column], bias[column] = 0.0, density
    field.mlp.get_layer(layer).set_weights([kernel, bias])


def predicted_mb(cell: Cell, trainer: Trainer) -> float:
    """The planner's prediction of a cell's memory, in MB."""
    work = build.workload(trainer, cell.mode == "train", cell.rays)
    return prediction.predict_memory(work, cell.chunk, cell.netchunk) / prediction.MEGABYTE


def make_workload(cell: Cell, trainer: Trainer, rays: Rays) -> Callable[[], object]:
    """A function that takes one training step, or renders one chunk."""
    if cell.mode == "train":
        batch = RayBatch(rays, tf.random.stateless_uniform([cell.rays, 3], [0, 0]))
        return lambda: trainer.train_step(batch)
    settings = trainer.rendering.deterministic()

    @tf.function(jit_compile=trainer.coarse.compiled)
    def render_chunk(rays: Rays) -> list[tf.Tensor]:
        fine, coarse, z_std, raw = render_rays(trainer.coarse, trainer.fine, rays, settings, keep_raw=cell.retraw)
        kept = [fine.rgb, fine.disp, fine.acc, fine.depth]
        kept += [] if coarse is None else [coarse.rgb, coarse.disp, coarse.acc, z_std]
        return [*kept, raw] if cell.retraw else kept

    return lambda: render_chunk(rays)


# From points [R, S, 3] and view directions [R, 3] to raw [R, S, 4].
Network = Callable[[Meter, tf.Tensor, tf.Tensor], tf.Tensor]


def encode_all(points: tf.Tensor, viewdirs: tf.Tensor, settings: FieldSettings) -> tf.Tensor:
    """Encodes all points of a chunk, and beside each point its view direction."""
    parts = [positional_encoding(tf.reshape(points, [-1, 3]), settings.multires)]
    if settings.use_viewdirs:
        each = tf.reshape(tf.broadcast_to(viewdirs[:, None], points.shape), [-1, 3])
        parts.append(positional_encoding(each, settings.multires_views))
    return tf.concat(parts, axis=-1)


def apply_in_pieces(mlp: keras.Model, encoded: tf.Tensor, netchunk: int) -> tf.Tensor:
    """Applies a network to encodings, netchunk of them at a time; returns raw."""
    widths = [x.shape[-1] for x in mlp.inputs]
    pieces = (encoded[i : i + netchunk] for i in range(0, encoded.shape[0], netchunk))
    return tf.concat([mlp(tf.split(piece, widths, axis=-1)) for piece in pieces], axis=0)


def original_network(name: str, field: Field) -> Network:
    """Evaluates as the original does: encodes all points of the chunk, then applies the network in pieces."""

    def raw(meter: Meter, points: tf.Tensor, viewdirs: tf.Tensor) -> tf.Tensor:
        encoded = meter(f"{name} encoding", encode_all, points, viewdirs, field.settings)
        flat = meter(f"{name} MLP", apply_in_pieces, field.mlp, encoded, field.netchunk)
        return tf.reshape(flat, [*points.shape[:2], 4])

    return raw


def engine_network(name: str, field: Field, retraw: bool) -> Network:
    """Evaluates as the program does: encodes points inside a tile."""
    query = tf.function(
        lambda points, viewdirs: field(points, viewdirs, None if retraw else 0.0), jit_compile=field.compiled
    )

    def raw(meter: Meter, points: tf.Tensor, viewdirs: tf.Tensor) -> tf.Tensor:
        meter.add_nested_stage(f"{name} encoding")
        return meter(f"{name} MLP", query, points, viewdirs)

    return raw


def stage_rendering(way: str, trainer: Trainer, retraw: bool) -> Callable[[Meter, Rays], list[tf.Tensor]]:
    """Builds the rendering of a chunk with a meter at every stage: eager, as the original, or in graphs.

    Returns:
        A function that returns the tensors that leave the chunk.
    """
    settings, original = trainer.rendering.deterministic(), way == "original"
    in_graph = functools.partial(tf.function, jit_compile=trainer.coarse.compiled)
    stage = (lambda function: function) if original else in_graph
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
        points = points if original else None  # a graph frees what is not read any more; Python does not
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


def measure_stages(way: str, trainer: Trainer, rays: Rays, retraw: bool) -> list[Stage]:
    """Measures each stage of rendering these rays, in order."""
    render = stage_rendering(way, trainer, retraw)
    render(Meter(), rays)  # traces, and allocates what stays
    meter = Meter()
    kept = render(meter, rays)
    meter("returned tensors", lambda: kept)
    return meter.stages


def run_cell(cell: Cell, way: str | None, settings: Settings, weights: str) -> int:
    """Measures a cell, or its stages if `way` is given; prints lines of JSON and returns the exit code."""
    settings = settings.replace(random_seed=settings.random_seed or 0)
    ndc = settings.dataset_type == "llff" and not settings.no_ndc
    try:
        trainer = make_trainer(cell, settings, weights, ndc)
        rays = random_rays(settings, ndc, cell.rays)
        if way is not None:
            for stage in measure_stages(way, trainer, rays, cell.retraw):
                print(json.dumps(stage._asdict()))
            return 0
        print(
            json.dumps({"predicted_mb": predicted_mb(cell, trainer)}), flush=True
        )  # printed first: the measurement may fail
        if trainer.coarse.compiled:
            make_room(4 * prediction.MEGABYTE * predicted_mb(cell, trainer))
        measured_mb, seconds = measure(make_workload(cell, trainer, rays))
        print(json.dumps({"measured_mb": measured_mb, "seconds": seconds}))
    except tf.errors.ResourceExhaustedError as error:
        print("out of memory:", planning.failed_allocation(error), file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0
