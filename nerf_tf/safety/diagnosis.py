"""Diagnosis of a bad training step: saves and replays it, and finds its first non-finite value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from nerf_tf.data.pipeline import AlphaRayBatch, RayBatch
from nerf_tf.field.query import Field
from nerf_tf.geometry.rays import Rays
from nerf_tf.hash_grid.field import HashGridField
from nerf_tf.hash_grid.packed_step import PackedTrainer
from nerf_tf.render.passes import coarse_pass, fine_pass
from nerf_tf.storage.atomic import complete_file
from nerf_tf.train.gradients import mean_squared_error
from nerf_tf.train.step import Trainer

AnyTrainer = Trainer | PackedTrainer


def replay_step(trainer: AnyTrainer, batch: RayBatch) -> Iterator[tuple[str, tf.Tensor]]:
    """Replays the trainer's next step, without changing the trainer, and yields its tensors with names.

    First the rays and the photos' colours. Then, for the coarse and the fine pass: weights, samples, raw network
    output, rendered values, loss, and the gradient of the loss (with float16, of the scaled loss) by each weight. For a
    hash grid: its weights, the samples' density, loss, and the gradient by each weight.
    """
    for name, tensor in batch.rays._asdict().items():
        yield f"rays {name}", tensor
    yield "photos rgb", batch.rgb
    if isinstance(trainer, PackedTrainer):
        variables = trainer.coarse.mlp.trainable_variables
        yield from ((f"hash grid {variable.path}", variable.value) for variable in variables)
        found = trainer.gradients(batch, trainer.draw(batch.rgb.shape[0]))
        yield "hash grid density", found.density
        yield "hash grid loss", found.loss
        for variable, gradient in zip(variables, found.gradients, strict=True):
            yield f"hash grid gradient of {variable.path}", gradient
        return
    shares, draws = tf.fill([batch.rgb.shape[0]], 1.0 / batch.rgb.shape[0]), trainer.draw(batch.rgb.shape[0])
    coarse_result = None
    for name, field in (("coarse", trainer.coarse), ("fine", trainer.fine)):
        if field is None:
            return
        variables = field.mlp.trainable_variables
        yield from ((f"{name} {variable.path}", variable.value) for variable in variables)
        with tf.GradientTape() as tape:
            if coarse_result is None:
                result = coarse_result = coarse_pass(field, batch.rays, trainer.rendering, draws.coarse)
            else:
                result, _ = fine_pass(field, batch.rays, coarse_result, trainer.rendering, draws.fine)
            loss = mean_squared_error(result.rendering.rgb, batch.rgb, shares)
            scaled_loss = trainer.optimizer.scale_loss(loss)
        yield f"{name} t_vals", result.t_vals
        yield f"{name} raw", result.raw
        yield f"{name} rgb", result.rendering.rgb
        yield f"{name} acc", result.rendering.acc
        yield f"{name} loss", loss
        for variable, gradient in zip(variables, tape.gradient(scaled_loss, [v.value for v in variables]), strict=True):
            yield f"{name} gradient of {variable.path}", gradient


def find_first_non_finite(trainer: AnyTrainer, batch: RayBatch) -> str:
    """Names the next step's first tensor with a NaN or an infinity, or says that there is none."""
    found = (name for name, tensor in replay_step(trainer, batch) if not np.isfinite(tensor).all())
    return next(found, "none: all values are finite, but the squares of some are not")


def diagnose(trainer: AnyTrainer, batch: RayBatch, step: int) -> str:
    """Calls `find_first_non_finite` for the step that the trainer has just skipped.

    Returns "unknown" with the reason when memory runs out, as the replay needs more of it than the step.
    """
    next_step = trainer.step.numpy()
    trainer.step.assign(step)
    try:
        return find_first_non_finite(trainer, batch)
    except (tf.errors.ResourceExhaustedError, MemoryError):
        return "unknown (memory ran out during the search)"
    finally:
        trainer.step.assign(next_step)


def save_step(path: Path, trainer: AnyTrainer, batch: RayBatch, step: int, ndc: bool) -> None:
    """Writes the step that the trainer has just skipped to an npz file, for `load_step`.

    The trainer's weights are those that the step used.

    Raises:
        OSError: the file cannot be written.
    """
    arrays = {f"rays_{name}": tensor.numpy() for name, tensor in batch.rays._asdict().items()}
    for name, field in _named_fields(trainer).items():
        arrays |= {f"{name}_{i:02d}": weights for i, weights in enumerate(field.mlp.get_weights())}
    arrays |= {"rgb": batch.rgb.numpy(), "seed": trainer.seed.numpy(), "step": step, "ndc": ndc}
    if isinstance(batch, AlphaRayBatch):
        arrays["alpha"] = batch.alpha.numpy()
    is_scaled = isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    scale = float(trainer.optimizer.dynamic_scale.numpy()) if is_scaled else 1.0
    with complete_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, loss_scale=scale, **arrays)


def load_step(arrays: dict[str, np.ndarray], trainer: AnyTrainer) -> RayBatch:
    """Sets the trainer to a step that `save_step` wrote, weights included; returns the step's batch.

    The trainer is one made with the flags of the run that wrote the file.

    Raises:
        ValueError: an array is missing, or differs from the trainer's in shape or type.
    """
    for name, field in _named_fields(trainer).items():
        weights = enumerate(field.mlp.weights)
        field.mlp.set_weights([_checked_array(arrays, f"{name}_{i:02d}", weight.shape) for i, weight in weights])
    trainer.seed.assign(_checked_array(arrays, "seed", (), np.int64))
    trainer.step.assign(_checked_array(arrays, "step", (), np.int64))
    if isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer):
        trainer.optimizer.dynamic_scale.assign(_checked_array(arrays, "loss_scale", ()))
    rgb = _checked_array(arrays, "rgb", (None, 3))
    widths = {"origins": 3, "directions": 3, "viewdirs": 3, "near": 1, "far": 1}
    rays = Rays(**{name: _checked_array(arrays, f"rays_{name}", (len(rgb), width)) for name, width in widths.items()})
    batch = RayBatch(rays, rgb)
    if "alpha" in arrays:
        batch = AlphaRayBatch(*batch, _checked_array(arrays, "alpha", (len(rgb), 1)))
    return tf.nest.map_structure(tf.constant, batch)


def _checked_array(
    arrays: dict[str, np.ndarray], name: str, shape: Sequence[int | None], dtype: type[np.generic] = np.float32
) -> np.ndarray:
    """Returns the named array as `dtype` after checking its shape, where None stands for any length but 0."""
    if name not in arrays:
        raise ValueError(f"it lacks {name}")
    array = arrays[name]
    expected = tuple(max(n, 1) if m is None else m for n, m in zip(array.shape, shape, strict=False))
    if array.shape != expected or len(shape) != array.ndim or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise ValueError(f"its {name} is {array.dtype} of shape {list(array.shape)}, not of {list(shape)}")
    return array.astype(dtype)


def _named_fields(trainer: AnyTrainer) -> dict[str, Field | HashGridField]:
    return {name: field for name, field in (("coarse", trainer.coarse), ("fine", trainer.fine)) if field}
