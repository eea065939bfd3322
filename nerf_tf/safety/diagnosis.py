"""A step that went wrong, kept in a file and taken again slowly, to see where its numbers stop being finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from nerf_tf.data.pipeline import RayBatch
from nerf_tf.field.query import Field
from nerf_tf.geometry.rays import Rays
from nerf_tf.render.passes import Pass, coarse_pass, fine_pass
from nerf_tf.storage.atomic import complete_file
from nerf_tf.train.gradients import mean_squared_error
from nerf_tf.train.step import Trainer


def stages(trainer: Trainer, batch: RayBatch) -> Iterator[tuple[str, tf.Tensor]]:
    """Takes the trainer's next step without moving anything, and yields what it computes by name, in its order.

    These are the rays and their colours; then for the coarse and for the fine pass its weights, samples, the network's
    output, what is rendered, the loss, and its gradient by each weight; with float16 that of the scaled loss.
    """
    for name, tensor in batch.rays._asdict().items():
        yield f"rays {name}", tensor
    yield "photos rgb", batch.rgb
    shares, seed = tf.fill([batch.rgb.shape[0]], 1.0 / batch.rgb.shape[0]), trainer.step_seed()
    first = None
    for name, field in (("coarse", trainer.coarse), ("fine", trainer.fine)):
        if field is None:
            return
        yield from _weights(name, field)
        with tf.GradientTape() as tape:
            if first is None:
                result = first = coarse_pass(field, batch.rays, trainer.rendering, seed)
            else:
                result, _ = fine_pass(field, batch.rays, first, trainer.rendering, seed)
            loss = mean_squared_error(result.rendering.rgb, batch.rgb, shares)
            scaled_loss = trainer.optimizer.scale_loss(loss)
        yield from _seen(name, result)
        yield f"{name} loss", loss
        variables = field.mlp.trainable_variables
        for variable, gradient in zip(variables, tape.gradient(scaled_loss, [v.value for v in variables]), strict=True):
            yield f"{name} gradient of {variable.path}", gradient


def _weights(name: str, field: Field) -> Iterator[tuple[str, tf.Tensor]]:
    for variable in field.mlp.trainable_variables:
        yield f"{name} {variable.path}", variable.value


def _seen(name: str, result: Pass) -> Iterator[tuple[str, tf.Tensor]]:
    yield f"{name} t_vals", result.t_vals
    yield f"{name} raw", result.raw
    yield f"{name} rgb", result.rendering.rgb
    yield f"{name} acc", result.rendering.acc


def first_non_finite(trainer: Trainer, batch: RayBatch) -> str:
    """The first of the stages that holds a NaN or an infinity; or that all are finite, if they are."""
    for name, tensor in stages(trainer, batch):
        if not np.isfinite(tensor).all():
            return name
    return "none: all are finite, but too large to be squared"


def diagnose(trainer: Trainer, batch: RayBatch, step: int) -> str:
    """`first_non_finite` of the step that the trainer has just taken without moving its weights, or why it is unknown.

    It may well be: one by one, the step's tensors take more memory than the step did.
    """
    following = trainer.step.numpy()
    trainer.step.assign(step)
    try:
        return first_non_finite(trainer, batch)
    except (tf.errors.ResourceExhaustedError, MemoryError):
        return "unknown, as memory ran out on looking for it"
    finally:
        trainer.step.assign(following)


def save_step(path: Path, trainer: Trainer, batch: RayBatch, step: int, ndc: bool) -> None:
    """Writes the step that the trainer has just taken, without moving its weights, to an npz file.

    It holds all that `load_step` needs, weights included, and is read without running code.

    Args:
        path: the file.
        trainer: its weights are those the step saw.
        batch: the step's rays.
        step: its number.
        ndc: the scene's.

    Raises:
        OSError: it cannot be written.
    """
    arrays = {f"rays_{name}": tensor.numpy() for name, tensor in batch.rays._asdict().items()}
    for name, field in _fields(trainer).items():
        arrays |= {f"{name}_{i:02d}": weights for i, weights in enumerate(field.mlp.get_weights())}
    arrays |= {"rgb": batch.rgb.numpy(), "seed": trainer.seed.numpy(), "step": step, "ndc": ndc}
    with complete_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, loss_scale=_loss_scale(trainer), **arrays)


def load_step(arrays: dict[str, np.ndarray], trainer: Trainer) -> RayBatch:
    """Gives the trainer the weights, seed and step of a file that `save_step` wrote, and returns the step's batch.

    Args:
        arrays: what the file holds.
        trainer: one made by the flags of the run that wrote it.

    Raises:
        ValueError: something is missing, or of another shape or kind than this trainer's.
    """
    for name, field in _fields(trainer).items():
        weights = enumerate(field.mlp.weights)
        field.mlp.set_weights([_array(arrays, f"{name}_{i:02d}", weight.shape) for i, weight in weights])
    trainer.seed.assign(_array(arrays, "seed", (), np.int64))
    trainer.step.assign(_array(arrays, "step", (), np.int64))
    if isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer):
        trainer.optimizer.dynamic_scale.assign(_array(arrays, "loss_scale", ()))
    rgb = _array(arrays, "rgb", (None, 3))
    widths = {"origins": 3, "directions": 3, "viewdirs": 3, "near": 1, "far": 1}
    rays = Rays(**{name: _array(arrays, f"rays_{name}", (len(rgb), width)) for name, width in widths.items()})
    return tf.nest.map_structure(tf.constant, RayBatch(rays, rgb))


def _array(
    arrays: dict[str, np.ndarray], name: str, shape: Sequence[int | None], dtype: type[np.generic] = np.float32
) -> np.ndarray:
    """The array of that name, checked and converted; a None in `shape` stands for any length but 0."""
    if name not in arrays:
        raise ValueError(f"it lacks {name}")
    found = arrays[name]
    wanted = tuple(max(n, 1) if m is None else m for n, m in zip(found.shape, shape, strict=False))
    if found.shape != wanted or len(shape) != found.ndim or not np.can_cast(found.dtype, dtype, "same_kind"):
        raise ValueError(f"its {name} is {found.dtype} of shape {list(found.shape)}, not of {list(shape)}")
    return found.astype(dtype)


def _fields(trainer: Trainer) -> dict[str, Field]:
    return {name: field for name, field in (("coarse", trainer.coarse), ("fine", trainer.fine)) if field}


def _loss_scale(trainer: Trainer) -> float:
    scaled = isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    return float(trainer.optimizer.dynamic_scale.numpy()) if scaled else 1.0
